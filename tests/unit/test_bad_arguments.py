"""What cannot be right is refused where it is said, not where it is used."""

from __future__ import annotations

from typing import Any

import pytest

from virtring import (
    DeviceQueue,
    Feature,
    GuestMemory,
    InvalidArgument,
    QueueConfig,
    RingDevice,
    create_pair,
    vring_create_virtqueue,
)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"notify": 5}, "notify is a int"),
        ({"callback": "soon"}, "callback is a str"),
        ({"index": -1}, "index -1"),
        ({"index": 65536}, "index 65536"),
        ({"index": "first"}, "index 'first'"),
        ({"name": 5}, "name 5"),
    ],
)
def test_creation(given: dict[str, Any], says: str) -> None:
    memory = GuestMemory.create(1 << 16)
    vdev = RingDevice(memory)
    whole = {"index": 0, "num": 8, "vring_align": 64, "vdev": vdev, **given}
    with pytest.raises(InvalidArgument, match=says):
        vring_create_virtqueue(**whole)
    assert memory.allocated == 0


@pytest.mark.parametrize("features", [-1, "x", None, 1.5])
def test_features(features: Any) -> None:
    with pytest.raises(InvalidArgument, match="no set of bits"):
        create_pair(8, features=features)
    with pytest.raises(InvalidArgument, match="no set of bits"):
        RingDevice(GuestMemory(), features)
    with pytest.raises(InvalidArgument, match="no set of bits"):
        QueueConfig(8, 0, 0x1000, 0x2000, features)


def test_the_device_side() -> None:
    vq, _ = create_pair(8, features=Feature.VERSION_1)
    with pytest.raises(InvalidArgument, match="call is a int"):
        DeviceQueue(vq.memory, vq.config, call=1)  # type: ignore[arg-type]
