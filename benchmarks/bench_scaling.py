"""Does the size of the ring cost anything? It should not: batch 64 whatever the ring."""

import pytest

from benchmarks.loops import EVENT_IDX, Measure, round_trip


@pytest.mark.parametrize("size", [64, 256, 1024, 4096, 32768])
@pytest.mark.parametrize("ring", ["split", "packed"])
def test_ring_size(measure: Measure, ring: str, size: int) -> None:
    measure(round_trip(ring, size, 64, EVENT_IDX), 64)
