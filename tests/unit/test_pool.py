"""Buffer pools: layout, handing out, zero-copy, lifetime."""

import gc
import os

import numpy as np
import pytest

from virtring.errors import InvalidArgument, NoSpace, NotSupported, OutOfMemory
from virtring.memory import Buffer, BufferPool, GuestMemory, IotlbMemory


@pytest.fixture
def memory() -> GuestMemory:
    return GuestMemory.create(1 << 16, base=0x40000)


def test_layout(memory: GuestMemory) -> None:
    pool = BufferPool(memory, 5, 100)
    assert (len(pool), pool.size, pool.stride, pool.free_count) == (5, 100, 128, 5)
    assert pool.addrs.dtype == np.uint64
    assert pool.addrs.tolist() == [pool[i].addr for i in range(5)]
    assert np.diff(pool.addrs).tolist() == [128] * 4
    assert (pool.addrs % 64 == 0).all()
    assert not pool.addrs.flags.writeable
    assert pool.array.shape == (5, 128)
    assert memory.allocated == 5 * 128
    assert [pool[i].index for i in range(5)] == list(range(5))
    assert pool[-1] is pool[4]
    with pytest.raises(IndexError):
        pool[5]
    with pytest.raises(IndexError):
        pool[-6]
    with pytest.raises(InvalidArgument):
        pool["0"]  # type: ignore[index]


@pytest.mark.parametrize(("size", "align", "stride"), [(1, 1, 1), (64, 64, 64), (65, 4096, 4096)])
def test_stride(memory: GuestMemory, size: int, align: int, stride: int) -> None:
    pool = BufferPool(memory, 3, size, align=align)
    assert pool.stride == stride
    assert all(addr % align == 0 for addr in pool.addrs.tolist())


def test_everything_is_the_same_memory(memory: GuestMemory) -> None:
    pool = BufferPool(memory, 4, 100)
    for index in range(4):
        buf = pool[index]
        np.frombuffer(memoryview(buf), np.uint8)[:] = index + 1
        assert memory.read(buf.addr, 100) == bytes([index + 1]) * 100
        assert pool.array[index, :100].tolist() == [index + 1] * 100
        assert memory.address_of(buf) == (buf.addr, 100)
    memory.write(pool[2].addr, b"hello")
    assert bytes(memoryview(pool[2])[:5]) == b"hello"
    assert bytes(pool.array[1, 96:104]) == bytes([2, 2, 2, 2, 0, 0, 0, 0])
    with memoryview(pool[0]) as view:
        assert (view.format, view.nbytes, view.readonly) == ("B", 100, False)


def test_used_length(memory: GuestMemory) -> None:
    buf = BufferPool(memory, 1, 100).get()
    assert buf.len == buf.size == 100
    buf.len = 7
    assert buf.view.nbytes == 7
    buf.view[:] = b"7 bytes"
    assert memory.read(buf.addr, 8) == b"7 bytes\0"
    assert memoryview(buf).nbytes == 100
    for wrong in (101, -1, 1 << 32, 1 << 64, 2.0, None):
        with pytest.raises(InvalidArgument, match="len"):
            buf.len = wrong  # type: ignore[assignment]
    assert buf.len == 7
    buf.len = 0
    assert buf.view.nbytes == 0
    with pytest.raises(AttributeError):
        buf.addr = 0  # type: ignore[misc]


def test_get_and_put(memory: GuestMemory) -> None:
    pool = BufferPool(memory, 3, 10)
    out = [pool.get() for _ in range(3)]
    assert [buf.index for buf in out] == [0, 1, 2]
    assert pool.free_count == 0
    with pytest.raises(NoSpace, match="all 3"):
        pool.get()
    out[1].len = 4
    pool.put(out[1])
    with pytest.raises(InvalidArgument, match="not out"):
        pool.put(out[1])
    assert pool.free_count == 1
    again = pool.get()
    assert again is out[1]
    assert again.len == 10


def test_put_of_a_stranger(memory: GuestMemory) -> None:
    pool, other = BufferPool(memory, 2, 10), BufferPool(memory, 2, 10)
    stranger = other.get()
    for wrong in (stranger, None):
        with pytest.raises(InvalidArgument, match="not a buffer of this pool"):
            pool.put(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        pool.put(b"bytes")  # type: ignore[arg-type]
    assert pool.free_count == 2
    with pytest.raises(InvalidArgument):
        Buffer()


@pytest.mark.parametrize(
    ("count", "size", "align"),
    [
        (0, 1, 1),
        (1, 0, 1),
        (-1, 1, 1),
        (1 << 32, 1, 1),
        (1, 1 << 32, 1),
        (1, 1, 3),
        (1, 1, 0),
        (1.5, 1, 1),
        (1, "1", 1),
    ],
)
def test_wrong_arguments(memory: GuestMemory, count: int, size: int, align: int) -> None:
    with pytest.raises(InvalidArgument):
        BufferPool(memory, count, size, align=align)
    assert memory.allocated == 0


def test_wrong_memory(memory: GuestMemory) -> None:
    with pytest.raises(InvalidArgument, match="GuestMemory"):
        BufferPool(bytearray(100), 1, 1)  # type: ignore[arg-type]
    with pytest.raises(NotSupported):
        BufferPool(IotlbMemory(memory, print), 1, 1)
    with pytest.raises(OutOfMemory):
        BufferPool(memory, (1 << 32) - 1, (1 << 32) - 1)


def test_allocation_lives_as_long_as_anything_over_it(memory: GuestMemory) -> None:
    pool = BufferPool(memory, 4, 64)
    buf = pool[0]
    column = pool.array[:, 3]
    del pool
    gc.collect()
    assert memory.allocated == 256
    view = buf.view
    del buf, column
    gc.collect()
    assert memory.allocated == 256
    view[0] = 1
    del view
    gc.collect()
    assert memory.allocated == 0


def test_buffers_survive_a_closed_memory(memory: GuestMemory) -> None:
    pool = BufferPool(memory, 4, 64)
    memory.close()
    pool[3].view[63] = 9
    assert pool.array[3, 63] == 9
    del pool
    gc.collect()


def test_forked_copy_does_not_free(memory: GuestMemory) -> None:
    pool = BufferPool(memory, 2, 64)
    pid = os.fork()
    if pid == 0:
        pool[1].view[0] = 42
        del pool
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert pool[1].view[0] == 42
    assert memory.allocated == 128
