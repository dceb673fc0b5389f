"""Regions: making, mapping, sharing with other processes, closing."""

import array
import fcntl
import gc
import mmap
import multiprocessing
import os
import pickle
import socket
import struct
import tempfile
import weakref
from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory

import numpy as np
import pytest

from tests.unit import _children
from virtring.errors import (
    InvalidArgument,
    MemoryInUse,
    NotSupported,
    OutOfMemory,
    PeerDied,
    QueueClosed,
)
from virtring.memory import GuestMemory, Region

PAGE = mmap.PAGESIZE
HEADER = struct.Struct("<8sIIQQ")


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.fixture
def no_leak() -> Iterator[None]:
    gc.collect()
    before = open_fds()
    yield
    gc.collect()
    assert open_fds() == before


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    with left, right:
        yield left, right


# -- making ----------------------------------------------------------------------------------------


def test_anonymous() -> None:
    with Region.anonymous(5000) as region:
        assert (region.size, len(region), region.fd, region.kind) == (5000, 5000, -1, "anonymous")
        with memoryview(region) as view:
            assert (view.format, view.nbytes, view.readonly) == ("B", 5000, False)
            assert bytes(view) == bytes(5000)
            view[4999] = 7
            assert view[4999] == 7


def test_memfd_is_sealed_against_truncation() -> None:
    with Region.memfd(PAGE, "some name") as region:
        assert region.kind == "memfd"
        assert os.readlink(f"/proc/self/fd/{region.fd}").startswith("/memfd:some name")
        assert not os.get_inheritable(region.fd)
        with pytest.raises(PermissionError):
            os.ftruncate(region.fd, 0)
        with pytest.raises(PermissionError):
            os.ftruncate(region.fd, 2 * PAGE)
        with pytest.raises(PermissionError):
            fcntl.fcntl(region.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def test_unsealed_memfd_can_grow_until_somebody_maps_it() -> None:
    with Region.memfd(PAGE, seal=False) as region:
        os.ftruncate(region.fd, 2 * PAGE)
        with Region.from_fd(region.fd) as other:
            assert other.size == 2 * PAGE
            with pytest.raises(PermissionError):
                os.ftruncate(region.fd, PAGE)


@pytest.mark.parametrize("size", [0, -1, 1 << 63, 1 << 64, 1.5, "4096", None])
def test_wrong_size(size: object, no_leak: None) -> None:
    with pytest.raises(InvalidArgument, match="size"):
        Region.anonymous(size)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="size"):
        Region.memfd(size)  # type: ignore[arg-type]


def test_too_large_for_the_machine(no_leak: None) -> None:
    with pytest.raises(OutOfMemory):
        Region.anonymous((1 << 63) - 1)
    with pytest.raises(OutOfMemory):
        Region.memfd(1 << 62)


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", 5])
def test_wrong_name(name: object, no_leak: None) -> None:
    with pytest.raises(InvalidArgument, match="name"):
        Region.memfd(PAGE, name)  # type: ignore[arg-type]


def test_hugepages_take_whole_pages(no_leak: None) -> None:
    with pytest.raises((InvalidArgument, OutOfMemory)):
        Region.memfd(PAGE + 1, hugepages=True)


def test_class_methods_only() -> None:
    with pytest.raises(InvalidArgument, match=r"Region\.anonymous"):
        Region()


# -- from a descriptor -----------------------------------------------------------------------------


def test_from_fd_maps_the_part() -> None:
    with tempfile.TemporaryFile() as file:
        file.write(bytes(PAGE) + b"second page")
        file.flush()
        with Region.from_fd(file.fileno(), 6, PAGE) as region:
            assert region.kind in ("file", "memfd")
            assert region.fd != file.fileno()
            assert not os.get_inheritable(region.fd)
            with memoryview(region) as view:
                assert bytes(view) == b"second"
                view[:3] = b"SEC"
        file.seek(PAGE)
        assert file.read() == b"SECond page"


def test_from_fd_to_the_end() -> None:
    with Region.memfd(2 * PAGE + 100) as whole, Region.from_fd(whole.fd, offset=PAGE) as part:
        assert part.size == PAGE + 100
        assert part.kind == "memfd"


def test_read_only() -> None:
    with Region.memfd(PAGE) as whole, Region.from_fd(whole.fd, writable=False) as region:
        assert not region.writable
        with memoryview(region) as view:
            assert view.readonly
        assert not np.frombuffer(memoryview(region), np.uint8).flags.writeable
        with open("/dev/zero", "rb") as zero, pytest.raises(TypeError, match="read-write"):
            zero.readinto(region)


@pytest.mark.parametrize(
    ("size", "offset"),
    [
        (PAGE + 1, 0),
        (PAGE, PAGE),
        (1, PAGE),
        (None, PAGE),
        (None, 2 * PAGE),
        (0, 0),
        (-1, 0),
        ((1 << 63) - 1, PAGE),
        (1 << 64, 0),
        (16, 8),
        (16, -PAGE),
        (16, (1 << 63) - PAGE),
        (16, 1 << 63),
    ],
)
def test_from_fd_outside_the_file(size: int | None, offset: int) -> None:
    with Region.memfd(PAGE) as region:
        before = open_fds()
        with pytest.raises(InvalidArgument):
            Region.from_fd(region.fd, size, offset)
        assert open_fds() == before


def test_from_fd_that_cannot_be_mapped(no_leak: None) -> None:
    read, write = os.pipe()
    for fd in (read, write):
        with pytest.raises(InvalidArgument):
            Region.from_fd(fd)
        os.close(fd)
    for bad in (read, -1, 1 << 40):
        with pytest.raises(InvalidArgument, match="fd"):
            Region.from_fd(bad)
    folder = os.open("/", os.O_RDONLY)
    with pytest.raises(InvalidArgument):
        Region.from_fd(folder, 1)
    os.close(folder)


def test_from_read_only_fd(no_leak: None, tmp_path: "os.PathLike[str]") -> None:
    path = os.path.join(tmp_path, "file")
    with open(path, "wb") as file:
        file.write(bytes(100))
    with open(path, "rb") as file:
        with pytest.raises(InvalidArgument, match="cannot be mapped"):
            Region.from_fd(file.fileno())
        Region.from_fd(file.fileno(), writable=False).close()


# -- from a buffer ---------------------------------------------------------------------------------


def test_from_buffer_is_zero_copy() -> None:
    words = np.zeros(8, np.uint32)
    with Region.from_buffer(words) as region:
        assert (region.size, region.kind, region.fd) == (32, "buffer", -1)
        with memoryview(region) as view:
            view[0] = 5
    assert words[0] == 5


def test_from_buffer_keeps_it_exported() -> None:
    data = bytearray(64)
    region = Region.from_buffer(data)
    with pytest.raises(BufferError):
        data.append(1)
    region.close()
    data.append(1)


def test_from_shared_memory_and_mmap() -> None:
    shared = SharedMemory(create=True, size=PAGE)
    try:
        whole = memoryview(shared.buf or b"")
        with Region.from_buffer(whole) as region, memoryview(region) as view:
            view[0] = 9
        assert whole[0] == 9
        whole.release()
    finally:
        shared.close()
        shared.unlink()
    with mmap.mmap(-1, PAGE) as mapping:
        with Region.from_buffer(mapping) as region, memoryview(region) as view:
            view[1] = 8
        assert mapping[1] == 8


@pytest.mark.parametrize(
    "obj",
    [
        b"read-only",
        bytearray(),
        np.zeros((4, 4), np.uint8)[:, 1],
        np.asfortranarray(np.zeros((4, 4))),
        np.array([None, None]),
        17,
        "text",
    ],
)
def test_from_unusable_buffer(obj: object) -> None:
    with pytest.raises(InvalidArgument):
        Region.from_buffer(obj)  # type: ignore[arg-type]


# -- closing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Region.anonymous, Region.memfd])
def test_close_is_refused_while_views_live(make: object) -> None:
    region: Region = make(PAGE)  # type: ignore[operator]
    view = memoryview(region)
    part = view[10:20]
    view.release()
    with pytest.raises(MemoryInUse, match="1 views"):
        region.close()
    assert not region.closed
    part.release()
    region.close()
    region.close()
    assert region.closed
    assert region.fd == -1
    with pytest.raises(QueueClosed):
        memoryview(region)
    with pytest.raises(QueueClosed), region:
        pass


def test_numpy_array_counts_as_view() -> None:
    region = Region.anonymous(PAGE)
    words = np.frombuffer(memoryview(region), np.uint32)[3:5]
    with pytest.raises(MemoryInUse):
        region.close()
    words[0] = 1
    del words
    region.close()


def test_close_is_refused_while_a_memory_has_it() -> None:
    region = Region.anonymous(PAGE)
    memory = GuestMemory()
    memory.add_region(0x1000, region)
    with pytest.raises(MemoryInUse, match="guest memories"):
        region.close()
    memory.remove_region(0x1000)
    region.close()


def test_view_keeps_the_mapping() -> None:
    before = open_fds()
    view = memoryview(Region.memfd(PAGE))
    gc.collect()
    assert len(open_fds() - before) == 1
    view[PAGE - 1] = 3
    assert view[PAGE - 1] == 3
    del view
    gc.collect()
    assert open_fds() == before


def test_exit_does_not_mask_an_exception() -> None:
    region = Region.anonymous(PAGE)
    views = [memoryview(region)]
    with pytest.raises(ZeroDivisionError), region:
        raise ZeroDivisionError
    with pytest.raises(MemoryInUse), region:
        pass
    views[0].release()
    region.close()


def test_dropped_region_lets_its_buffer_go() -> None:
    class Held(bytearray):
        pass

    data = Held(8)
    gone = weakref.ref(data)
    region = Region.from_buffer(data)
    del data
    assert gone() is not None
    del region
    gc.collect()
    assert gone() is None


# -- other processes -------------------------------------------------------------------------------


def test_fork_shares_anonymous_memory() -> None:
    with Region.anonymous(PAGE) as region:
        pid = os.fork()
        if pid == 0:
            memoryview(region)[:5] = b"child"
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        with memoryview(region) as view:
            assert bytes(view[:5]) == b"child"


def test_spawned_child_gets_the_memfd(no_leak: None) -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with ours, Region.memfd(3 * PAGE) as whole, Region.from_fd(whole.fd, 100, PAGE) as region:
        with memoryview(region) as view:
            view[:4] = b"ping"
        child = context.Process(target=_children.write_region, args=(region, b"pong", theirs))
        child.start()
        theirs.close()
        assert ours.recv() == (b"ping", "memfd", 100, PAGE)
        child.join()
        assert child.exitcode == 0
        child.close()
        with memoryview(whole) as view:
            assert bytes(view[PAGE : PAGE + 4]) == b"pong"


def test_region_through_a_pipe() -> None:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    with ours, Region.memfd(PAGE) as region:
        child = context.Process(target=_children.receive_and_write, args=(theirs,))
        child.start()
        theirs.close()
        ours.send(region)
        assert ours.recv() == child.pid
        child.join()
        with memoryview(region) as view:
            assert bytes(view[:5]) == b"piped"


def test_what_cannot_be_passed_on(pair: tuple[socket.socket, socket.socket]) -> None:
    for region in (Region.anonymous(PAGE), Region.from_buffer(bytearray(8))):
        with pytest.raises(NotSupported, match=r"Region\.memfd"):
            pickle.dumps(region)
        with pytest.raises(NotSupported, match=r"Region\.memfd"):
            region.send(pair[0])
        region.close()
        with pytest.raises(QueueClosed):
            region.send(pair[0])


# -- over a socket ---------------------------------------------------------------------------------


def test_send_and_receive(no_leak: None, pair: tuple[socket.socket, socket.socket]) -> None:
    with (
        Region.memfd(2 * PAGE) as whole,
        Region.from_fd(whole.fd, 10, PAGE, writable=False) as part,
    ):
        whole.send(pair[0])
        part.send(pair[0])
        with Region.receive(pair[1]) as first, Region.receive(pair[1]) as second:
            assert (first.size, first.offset, first.writable) == (2 * PAGE, 0, True)
            assert (second.size, second.offset, second.writable) == (10, PAGE, False)
            assert not os.get_inheritable(first.fd)
            with memoryview(first) as view:
                view[PAGE] = 77
            with memoryview(second) as view:
                assert view[0] == 77
    pair[0].close()
    with pytest.raises(PeerDied):
        Region.receive(pair[1])


GOOD = (b"VRregion", 1, 0, PAGE, 0)


@pytest.mark.parametrize(
    "fields",
    [
        (b"VRregioX", 1, 0, PAGE, 0),
        (b"VRregion", 2, 0, PAGE, 0),
        (b"VRregion", 1, 1, PAGE, 0),
        (b"VRregion", 1, 0, PAGE + 1, 0),
        (b"VRregion", 1, 0, 0, 0),
        (b"VRregion", 1, 0, (1 << 64) - PAGE, PAGE),
        (b"VRregion", 1, 0, 16, (1 << 64) - 8),
        (b"VRregion", 1, 0, 16, 8),
    ],
)
def test_hostile_header(
    fields: tuple[bytes, int, int, int, int],
    no_leak: None,
    pair: tuple[socket.socket, socket.socket],
) -> None:
    with Region.memfd(PAGE) as region:
        socket.send_fds(pair[0], [HEADER.pack(*fields)], [region.fd])
    with pytest.raises(InvalidArgument):
        Region.receive(pair[1])


@pytest.mark.parametrize("count", [0, 2, 5, 40])
def test_wrong_number_of_descriptors(
    count: int, no_leak: None, pair: tuple[socket.socket, socket.socket]
) -> None:
    with Region.memfd(PAGE) as region:
        fds = array.array("i", [region.fd] * count)
        socket.send_fds(pair[0], [HEADER.pack(*GOOD)], fds)
    with pytest.raises(InvalidArgument, match="descriptors"):
        Region.receive(pair[1])


def test_header_in_pieces(no_leak: None, pair: tuple[socket.socket, socket.socket]) -> None:
    data = HEADER.pack(*GOOD)
    with Region.memfd(PAGE) as region:
        socket.send_fds(pair[0], [data[:5]], [region.fd])
        pair[0].sendall(data[5:])
    with Region.receive(pair[1]) as region:
        assert region.size == PAGE


def test_peer_dies_in_mid_header(no_leak: None, pair: tuple[socket.socket, socket.socket]) -> None:
    with Region.memfd(PAGE) as region:
        socket.send_fds(pair[0], [b"VRreg"], [region.fd])
    pair[0].close()
    with pytest.raises(PeerDied):
        Region.receive(pair[1])


def test_not_a_file_over_the_socket(
    no_leak: None, pair: tuple[socket.socket, socket.socket]
) -> None:
    socket.send_fds(pair[0], [HEADER.pack(*GOOD)], [pair[0].fileno()])
    with pytest.raises(InvalidArgument):
        Region.receive(pair[1])
