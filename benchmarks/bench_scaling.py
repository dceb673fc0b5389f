"""Does a larger ring, a longer chain or another queue make anything dearer? It should not."""

import pytest

from benchmarks.loops import EVENT_IDX, INDIRECT, PLAIN, Measure, round_trip

BATCH = 64


@pytest.mark.parametrize("size", [64, 256, 1024, 4096, 32768])
@pytest.mark.parametrize("ring", ["split", "packed"])
def test_ring_size(measure: Measure, ring: str, size: int) -> None:
    measure(round_trip(ring, size, BATCH, EVENT_IDX), BATCH)


@pytest.mark.parametrize("table", ["direct", "indirect"])
@pytest.mark.parametrize("descriptors", [1, 2, 4, 8, 16, 32, 64])
@pytest.mark.parametrize("ring", ["split", "packed"])
def test_descriptor_in_chain(measure: Measure, ring: str, descriptors: int, table: str) -> None:
    """Nanoseconds a descriptor, not a buffer."""
    features = INDIRECT if table == "indirect" else PLAIN
    run = round_trip(ring, 1024, 16, features, descriptors=descriptors)
    measure(run, 16 * descriptors)


@pytest.mark.parametrize("queues", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("ring", ["split", "packed"])
def test_queues(measure: Measure, ring: str, queues: int) -> None:
    """One thread serves so many queues in turn."""
    trips = [round_trip(ring, 256, BATCH, EVENT_IDX) for _ in range(queues)]

    def run() -> None:
        for trip in trips:
            trip()

    measure(run, queues * BATCH)
