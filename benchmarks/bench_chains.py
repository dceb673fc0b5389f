"""What does a chain of several descriptors cost, in the ring and through an indirect table?"""

import pytest

from benchmarks.loops import INDIRECT, PLAIN, Measure, round_trip


@pytest.mark.parametrize("table", ["direct", "indirect"])
@pytest.mark.parametrize("descriptors", [2, 4, 8])
@pytest.mark.parametrize("ring", ["split", "packed"])
def test_chain(measure: Measure, ring: str, descriptors: int, table: str) -> None:
    features = INDIRECT if table == "indirect" else PLAIN
    measure(round_trip(ring, 1024, 64, features, descriptors=descriptors), 64)
