"""What does a buffer cost, driver and device together, by the size of a batch?"""

import pytest

from benchmarks.loops import FEATURES, Measure, round_trip


@pytest.mark.parametrize("batch", [1, 4, 16, 64, 256, 1024])
@pytest.mark.parametrize("ring", ["split", "packed"])
def test_batch(measure: Measure, ring: str, batch: int) -> None:
    measure(round_trip(ring, 1024, batch, FEATURES["flags"]), batch)


@pytest.mark.parametrize("features", ["flags", "event_idx", "in_order"])
@pytest.mark.parametrize("ring", ["split", "packed"])
def test_features(measure: Measure, ring: str, features: str) -> None:
    measure(round_trip(ring, 1024, 256, FEATURES[features]), 256)
