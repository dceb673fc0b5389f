"""Guest memory: the map, address checks, access, sharing, lifetime."""

import gc
import multiprocessing
import os
import pickle

import numpy as np
import pytest

from tests.unit import _children
from virtring.errors import (
    AddressError,
    InvalidArgument,
    MemoryInUse,
    NotSupported,
    OutOfMemory,
    QueueClosed,
)
from virtring.memory import GuestMemory, MemoryRegion, MemoryTable, Region

PAGE = 4096
TOP = 1 << 64


def three_regions() -> GuestMemory:
    """[0x1000, 0x2000) rw, [0x2000, 0x3000) r right behind it, the last page of all rw."""
    memory = GuestMemory()
    memory.add_region(TOP - PAGE, Region.anonymous(PAGE))
    memory.add_region(0x1000, Region.anonymous(PAGE))
    memory.add_region(0x2000, Region.anonymous(2 * PAGE), offset=PAGE, perm="r")
    return memory


# -- the map ---------------------------------------------------------------------------------------


def test_create() -> None:
    with GuestMemory.create(PAGE) as memory:
        (row,) = memory.regions
        assert (row.guest_addr, row.size, row.offset, row.perm) == (0x10000, PAGE, 0, "rw")
        assert row.region.kind == "memfd"
        assert memory.read(0x10000, PAGE) == bytes(PAGE)
    with GuestMemory.create(PAGE, base=0x5000, kind="anonymous") as memory:
        assert memory.regions[0][0] == 0x5000
        assert memory.regions[0].region.kind == "anonymous"


def test_create_with_wrong_arguments() -> None:
    with pytest.raises(InvalidArgument, match="kind"):
        GuestMemory.create(PAGE, kind="file")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="hugepages"):
        GuestMemory.create(PAGE, kind="anonymous", hugepages=True)
    with pytest.raises(InvalidArgument, match="size"):
        GuestMemory.create(0)
    with pytest.raises(AddressError, match="beyond"):
        GuestMemory.create(PAGE, base=TOP - PAGE + 1)


def test_entries_are_sorted() -> None:
    memory = three_regions()
    assert [row.guest_addr for row in memory.regions] == [0x1000, 0x2000, TOP - PAGE]
    assert [row.perm for row in memory.regions] == ["rw", "r", "rw"]
    assert "0x2000+0x1000 r" in repr(memory)


@pytest.mark.parametrize(
    ("guest_addr", "offset", "size"),
    [
        (0x1800, 0, PAGE),
        (0x1FFF, 0, 1),
        (0x0001, 0, PAGE),
        (0x0000, 0, 4 * PAGE),
        (0x8000, 0, 0),
        (0x8000, 0, 4 * PAGE + 1),
        (0x8000, 1, 4 * PAGE),
        (0x8000, 4 * PAGE, 1),
        (0x8000, 4 * PAGE, None),
        (0x8000, 5 * PAGE, None),
        (0x8000, TOP - 1, 2),
        (0x8000, -1, 1),
        (0x8000, 0, TOP),
        (TOP - PAGE - 1, 0, PAGE + 2),
        (TOP, 0, 1),
        (-1, 0, 1),
        ("0x8000", 0, 1),
        (0x8000, 0.0, 1),
    ],
)
def test_region_that_does_not_fit(guest_addr: int, offset: int, size: int | None) -> None:
    memory = three_regions()
    before = memory.regions
    region = Region.anonymous(4 * PAGE)
    with pytest.raises(AddressError):
        memory.add_region(guest_addr, region, offset=offset, size=size)
    assert memory.regions == before
    region.close()


def test_neighbours_are_no_overlap() -> None:
    memory = GuestMemory()
    memory.add_region(0x2000, Region.anonymous(PAGE))
    memory.add_region(0x1000, Region.anonymous(PAGE))
    memory.add_region(0x3000, Region.anonymous(PAGE))
    assert len(memory.regions) == 3


def test_other_wrong_arguments() -> None:
    memory = GuestMemory()
    region = Region.memfd(PAGE)
    with pytest.raises(InvalidArgument, match="perm"):
        memory.add_region(0, region, perm="x")
    with pytest.raises(InvalidArgument, match="Region"):
        memory.add_region(0, bytearray(8))  # type: ignore[arg-type]
    with pytest.raises(AddressError, match="read-only"):
        memory.add_region(0, Region.from_fd(region.fd, writable=False))
    with pytest.raises(InvalidArgument, match="MemoryRegion"):
        MemoryTable([1])  # type: ignore[list-item]
    region.close()
    with pytest.raises(QueueClosed):
        memory.add_region(0, region)
    assert memory.regions == []


def test_remove_region() -> None:
    memory = three_regions()
    with pytest.raises(AddressError):
        memory.remove_region(0x1001)
    with pytest.raises(AddressError):
        memory.remove_region(0x1000, PAGE - 1)
    region = memory.remove_region(0x1000, PAGE)
    assert region.size == PAGE
    assert len(memory.regions) == 2
    with pytest.raises(AddressError):
        memory.read(0x1000, 1)
    region.close()


def test_allocated_region_is_not_removed() -> None:
    memory = GuestMemory.create(PAGE)
    addr = memory.alloc(8)
    with pytest.raises(MemoryInUse):
        memory.remove_region(0x10000)
    assert memory.read(addr, 8) == bytes(8)
    memory.free(addr)
    memory.remove_region(0x10000)
    assert memory.available == 0


def test_old_table_keeps_its_regions() -> None:
    region = Region.anonymous(PAGE)
    old = MemoryTable([MemoryRegion(0x1000, PAGE, region, 0, "rw")])
    assert len(old) == 1
    with pytest.raises(MemoryInUse):
        region.close()
    del old
    region.close()
    with pytest.raises(AddressError, match="overlap"):
        MemoryTable([MemoryRegion(a, 32, Region.anonymous(64), 0, "r") for a in (0, 31)])


# -- address checks --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("addr", "length"),
    [
        (0x1000, PAGE),
        (0x1FFF, 1),
        (0x2000, PAGE),
        (0x2FFF, 1),
        (TOP - PAGE, PAGE),
        (TOP - 1, 1),
    ],
)
def test_ranges_that_are_inside(addr: int, length: int) -> None:
    memory = three_regions()
    assert memory.read(addr, length) == bytes(length)
    assert memory.view(addr, length).nbytes == length
    assert memory.translate(addr, length)[0] in [row.region for row in memory.regions]


@pytest.mark.parametrize(
    ("addr", "length"),
    [
        (0x0FFF, 1),
        (0x0FFF, 2),
        (0x1000, PAGE + 1),
        (0x1FFF, 2),
        (0x1000, 2 * PAGE),
        (0x3000, 1),
        (0x2FFF, 2),
        (0, 1),
        (TOP - PAGE - 1, 1),
        (TOP - 1, 2),
        (TOP - PAGE, PAGE + 1),
        (TOP - PAGE, TOP - 1),
        (0x1000, TOP - 1),
        (0x1000, TOP - 0x1000),
        (0x1000, TOP),
        (TOP, 1),
        (0x1000, 0),
        (0x1000, -1),
        (-0x1000, 1),
        (1.0, 1),
        (0x1000, "1"),
        (None, 1),
    ],
)
def test_ranges_that_are_not(addr: int, length: int) -> None:
    memory = three_regions()
    for call in (memory.read, memory.view, memory.translate):
        with pytest.raises(AddressError):
            call(addr, length)


def test_nobody_is_asked_for_guest_addresses() -> None:
    memory = three_regions()
    assert memory.resolve(0x5000, 16) is False
    for addr, length in [(TOP - 1, 2), (0, 0), (-1, 1)]:
        with pytest.raises(AddressError):
            memory.resolve(addr, length)


def test_numpy_integers_are_addresses() -> None:
    memory = three_regions()
    assert memory.view(np.uint64(0x1000), np.uint16(4)).nbytes == 4  # type: ignore[arg-type]


def test_permissions() -> None:
    memory = three_regions()
    memory.add_region(0x8000, Region.anonymous(PAGE), perm="w")
    memory.write(0x8000, b"x")
    with pytest.raises(AddressError, match="rights 'r'"):
        memory.read(0x8000, 1)
    with pytest.raises(AddressError, match="rights 'w'"):
        memory.write(0x2000, b"x")
    assert memory.view(0x2000, 1).readonly
    assert not memory.view(0x1000, 1).readonly
    assert memory.view(0x1000, 1, writable=False).readonly
    assert memory.translate(0x2001, 1)[1] == PAGE + 1
    for perm in ("w", "rw"):
        with pytest.raises(AddressError):
            memory.translate(0x2000, 1, perm)


# -- access ----------------------------------------------------------------------------------------


def test_write_read_and_view_are_the_same_memory() -> None:
    memory = three_regions()
    memory.write(0x1FFC, b"tail")
    memory.write(0x1000, np.arange(3, dtype=np.uint32))
    view = memory.view(0x1FFC, 4)
    assert bytes(view) == b"tail"
    view[0] = ord("T")
    assert memory.read(0x1FFC, 4) == b"Tail"
    assert memory.read(0x1004, 1) == b"\1"
    memory.write(0x1001, memory.view(0x1000, 12))
    assert memory.read(0x1000, 13) == b"\0" + np.arange(3, dtype=np.uint32).tobytes()


def test_write_that_fails_writes_nothing() -> None:
    memory = three_regions()
    for addr, data in [(0x1FFC, b"fives"), (0x1000, b""), (TOP - 1, b"ab")]:
        with pytest.raises(AddressError):
            memory.write(addr, data)
    for wrong in (5, "text", np.zeros((4, 4), np.uint8)[:, 1]):
        with pytest.raises(InvalidArgument, match="buffer"):
            memory.write(0x1000, wrong)  # type: ignore[arg-type]
    assert memory.read(0x1000, PAGE) == bytes(PAGE)


def test_address_of() -> None:
    memory = three_regions()
    view = memory.view(0x1000, PAGE)
    assert memory.address_of(view) == (0x1000, PAGE)
    assert memory.address_of(view[PAGE - 1 :]) == (0x1FFF, 1)
    assert memory.address_of(memory.view(0x2010, 8)) == (0x2010, 8)
    words = np.frombuffer(view, np.uint32)
    assert memory.address_of(words[3:5]) == (0x100C, 8)
    assert memory.address_of(words[:8].reshape(2, 4)) == (0x1000, 32)
    with pytest.raises(AddressError, match="not contiguous"):
        memory.address_of(words[::2])
    with pytest.raises(AddressError, match="empty"):
        memory.address_of(view[:0])
    with pytest.raises(AddressError, match="does not lie"):
        memory.address_of(bytearray(8))
    with pytest.raises(InvalidArgument, match="buffer"):
        memory.address_of(5)  # type: ignore[arg-type]


def test_address_of_sees_the_edges_of_a_part_of_a_region() -> None:
    region = Region.anonymous(3 * PAGE)
    memory = GuestMemory()
    memory.add_region(0x8000, region, offset=PAGE, size=PAGE)
    view = memoryview(region)
    assert memory.address_of(view[PAGE : 2 * PAGE]) == (0x8000, PAGE)
    for start, stop in [
        (PAGE - 1, PAGE),
        (PAGE - 1, PAGE + 1),
        (2 * PAGE - 1, 2 * PAGE + 1),
        (2 * PAGE, 2 * PAGE + 1),
    ]:
        with pytest.raises(AddressError):
            memory.address_of(view[start:stop])


def test_two_entries_never_count_as_one() -> None:
    """Neighbours in guest addresses and in the mapping are still two regions of the map."""
    region = Region.anonymous(2 * PAGE)
    memory = GuestMemory()
    memory.add_region(0x1000, region, size=PAGE)
    memory.add_region(0x2000, region, offset=PAGE)
    with pytest.raises(AddressError):
        memory.read(0x1FFF, 2)
    with pytest.raises(AddressError):
        memory.address_of(memoryview(region)[PAGE - 1 : PAGE + 1])
    with pytest.raises(OutOfMemory):
        memory.alloc(PAGE + 1)
    assert memory.available == 2 * PAGE


# -- allocation ------------------------------------------------------------------------------------


def test_alloc_and_free() -> None:
    memory = GuestMemory.create(PAGE)
    first = memory.alloc(10)
    second = memory.alloc(100, 256)
    assert (first, second % 256) == (0x10000, 0)
    assert memory.allocated == 110
    assert memory.available == PAGE - 110
    with pytest.raises(OutOfMemory):
        memory.alloc(PAGE)
    memory.free(first)
    with pytest.raises(InvalidArgument, match="freed before"):
        memory.free(first)
    memory.free(second)
    assert memory.alloc(PAGE) == 0x10000


def test_only_readable_regions_are_not_allocated() -> None:
    memory = GuestMemory()
    memory.add_region(0x1000, Region.anonymous(PAGE), perm="r")
    with pytest.raises(OutOfMemory):
        memory.alloc(1)
    memory.remove_region(0x1000)


# -- lifetime and sharing --------------------------------------------------------------------------


def test_view_outlives_the_memory() -> None:
    memory = GuestMemory.create(PAGE)
    view = memory.view(0x10000, 16)
    region = memory.regions[0].region
    memory.close()
    memory.close()
    assert memory.closed
    with pytest.raises(MemoryInUse):
        region.close()
    del memory, region
    gc.collect()
    view[15] = 1
    assert view[15] == 1


def test_closed_memory() -> None:
    memory = GuestMemory.create(PAGE)
    memory.close()
    for call in (
        lambda: memory.read(0x10000, 1),
        lambda: memory.alloc(1),
        lambda: memory.remove_region(0x10000),
        lambda: memory.add_region(0, Region.anonymous(8)),
        lambda: memory.address_of(bytearray(1)),
        lambda: pickle.dumps(memory),
        memory.__enter__,
    ):
        with pytest.raises(QueueClosed):
            call()
    assert "closed" in repr(memory)


def test_memory_frees_its_descriptors() -> None:
    gc.collect()
    before = set(os.listdir("/proc/self/fd"))
    memory = GuestMemory.create(PAGE)
    memory.add_region(0x100000, Region.memfd(PAGE))
    assert len(os.listdir("/proc/self/fd")) == len(before) + 2
    memory.close()
    assert set(os.listdir("/proc/self/fd")) == before


def test_spawned_child_uses_the_memory_but_cannot_allocate() -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with ours, GuestMemory.create(PAGE) as memory:
        memory.add_region(0x80000, Region.memfd(2 * PAGE), offset=PAGE, size=100, perm="r")
        addr = memory.alloc(4)
        memory.write(addr, b"ping")
        child = context.Process(target=_children.use_memory, args=(memory, addr, theirs))
        child.start()
        theirs.close()
        seen, refused, rows = ours.recv()
        child.join()
        assert child.exitcode == 0
        child.close()
        assert (seen, refused) == (b"ping", "NotSupported")
        assert rows == [(0x10000, PAGE, 0, "rw"), (0x80000, 100, PAGE, "r")]
        assert memory.read(addr, 4) == b"pong"
        memory.free(addr)


def test_forked_child_uses_the_memory_but_cannot_allocate() -> None:
    memory = GuestMemory.create(PAGE, kind="anonymous")
    addr = memory.alloc(4)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            memory.write(addr, b"fork")
            memory.alloc(4)
        except NotSupported:
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert memory.read(addr, 4) == b"fork"
    assert memory.alloc(4) != addr


def test_anonymous_memory_is_not_pickled() -> None:
    memory = GuestMemory.create(PAGE, kind="anonymous")
    with pytest.raises(NotSupported, match=r"Region\.memfd"):
        pickle.dumps(memory)
    with pytest.raises(NotSupported):
        pickle.dumps(MemoryTable())
