"""What do buffers and addresses cost?"""

import numpy as np
import pytest

from benchmarks.loops import Measure
from virtring import BufferPool, GuestMemory, Region


@pytest.fixture
def memory() -> GuestMemory:
    return GuestMemory.create(16 << 20)


def test_pool_get_put(measure: Measure, memory: GuestMemory) -> None:
    pool = BufferPool(memory, 1024, 2048)

    def run() -> None:
        pool.put(pool.get())

    measure(run, 1)


@pytest.mark.parametrize("regions", [1, 64])
def test_translate(measure: Measure, regions: int) -> None:
    """From a guest address to where it is mapped, by the number of regions."""
    memory = GuestMemory()
    for i in range(regions):
        memory.add_region(0x100000 * (i + 1), Region.anonymous(0x10000))
    addr = 0x100000 * regions + 0x1000
    measure(lambda: memory.translate(addr, 4096), 1)


def test_address_of(measure: Measure, memory: GuestMemory) -> None:
    """From a numpy array in the memory to its guest address."""
    pool = BufferPool(memory, 16, 4096)
    array = pool.array[7]
    assert memory.address_of(array) == (int(pool.addrs[7]), 4096)
    measure(lambda: memory.address_of(array), 1)


def test_view(measure: Measure, memory: GuestMemory) -> None:
    addr = memory.alloc(4096)
    measure(lambda: memory.view(addr, 4096), 1)


def test_copy_4096(measure: Measure, memory: GuestMemory) -> None:
    """write() and read() of 4 KiB."""
    addr = memory.alloc(4096)
    data = np.arange(4096, dtype=np.uint8).tobytes()

    def run() -> None:
        memory.write(addr, data)
        if memory.read(addr, 4096) != data:
            raise AssertionError("the copy differs")

    measure(run, 1)
