"""QueueConfig: what cannot be a ring is refused, by name and number."""

import pytest

from virtring import Feature, InvalidArgument, QueueConfig

SPLIT = Feature.VERSION_1
PACKED = SPLIT | Feature.RING_PACKED


@pytest.mark.parametrize("features", [SPLIT, PACKED])
@pytest.mark.parametrize(
    ("first", "second"),
    [("desc", "avail"), ("desc", "used"), ("avail", "used"), ("used", "avail"), ("avail", "desc")],
)
def test_overlapping_areas_are_refused(features: Feature, first: str, second: str) -> None:
    places = {"desc": 0x10000, "avail": 0x20000, "used": 0x30000}
    QueueConfig(8, **places, features=features)
    places[second] = places[first]
    with pytest.raises(InvalidArgument, match="overlaps"):
        QueueConfig(8, **places, features=features)


@pytest.mark.parametrize("features", [SPLIT, PACKED])
def test_areas_may_touch(features: Feature) -> None:
    """The next area may begin at the very byte where one ends, but not before."""
    QueueConfig(8, 0x1000, 0x1000 + 128, 0x2000, features)
    with pytest.raises(InvalidArgument, match=r"desc area \(128 bytes at 0x1000\) overlaps"):
        QueueConfig(8, 0x1000, 0x1000 + 112, 0x2000, features)
