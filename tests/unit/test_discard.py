"""Region.discard and GuestMemory.discard: pages really go, and read as zeros afterwards."""

from __future__ import annotations

import mmap
import os
import re
from pathlib import Path

import numpy as np
import pytest

from virtring import GuestMemory, Region
from virtring.errors import AddressError, InvalidArgument, NotSupported, QueueClosed

PAGE = mmap.PAGESIZE


def held(region: Region) -> int:
    """Bytes of a file that take up memory."""
    return os.fstat(region.fd).st_blocks * 512


def resident(view: memoryview) -> int:
    """Bytes of the mapping around ``view`` that are in memory, as the kernel counts them."""
    at = np.frombuffer(view, np.uint8).ctypes.data
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if (found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)) is not None:
            inside = int(found[1], 16) <= at < int(found[2], 16)
        elif inside and line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the mapping is not in smaps")


def test_pages_of_a_memfd_go() -> None:
    region = Region.memfd(64 * PAGE)
    view = memoryview(region)
    view[:] = b"\xab" * len(view)
    assert held(region) == 64 * PAGE
    assert region.discard(8 * PAGE, 16 * PAGE) == 16 * PAGE
    assert held(region) == 48 * PAGE
    assert view[8 * PAGE - 1] == view[24 * PAGE] == 0xAB
    # And they are there again as soon as they are touched.
    view[8 * PAGE] = 1
    assert held(region) == 49 * PAGE
    assert bytes(view[9 * PAGE : 24 * PAGE]) == bytes(15 * PAGE)


def test_another_mapping_of_the_file_sees_zeros() -> None:
    region = Region.memfd(4 * PAGE)
    other = Region.from_fd(region.fd)
    memoryview(region)[:] = b"x" * 4 * PAGE
    other.discard(PAGE, PAGE)
    assert bytes(memoryview(region)) == b"x" * PAGE + bytes(PAGE) + b"x" * 2 * PAGE


def test_a_region_that_begins_inside_a_file() -> None:
    whole = Region.memfd(8 * PAGE)
    memoryview(whole)[:] = b"x" * 8 * PAGE
    part = Region.from_fd(whole.fd, 4 * PAGE, 2 * PAGE)
    assert part.discard(PAGE, PAGE) == PAGE
    assert bytes(memoryview(whole)) == b"x" * 3 * PAGE + bytes(PAGE) + b"x" * 4 * PAGE


@pytest.mark.parametrize("kind", ["anonymous", "numpy"])
def test_pages_without_a_file_go(kind: str) -> None:
    size = 256 * PAGE
    if kind == "anonymous":
        region = Region.anonymous(size)
    else:
        region = Region.from_buffer(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE))
    view = memoryview(region)
    view[:] = b"\xab" * size
    before = resident(view)
    assert region.discard(0, 200 * PAGE) == 200 * PAGE
    assert before - resident(view) == 200 * PAGE
    assert not any(view[: 200 * PAGE])
    assert view[200 * PAGE] == 0xAB


@pytest.mark.parametrize(
    ("start", "length", "gone"),
    [(1, PAGE, 0), (1, 2 * PAGE - 1, 1), (1, 2 * PAGE, 1), (0, PAGE - 1, 0), (0, 3 * PAGE + 5, 3)],
)
def test_only_whole_pages_go(start: int, length: int, gone: int) -> None:
    region = Region.memfd(8 * PAGE)
    view = memoryview(region)
    view[:] = b"\xab" * len(view)
    assert region.discard(start, length) == gone * PAGE
    assert held(region) == (8 - gone) * PAGE
    assert bytes(view).count(0) == gone * PAGE


def test_what_cannot_be() -> None:
    region = Region.memfd(4 * PAGE)
    for offset, length in ((0, 5 * PAGE), (4 * PAGE, 1), (-1, PAGE), (0, 0), (1 << 62, 1 << 62)):
        with pytest.raises(InvalidArgument):
            region.discard(offset, length)
    region.close()
    with pytest.raises(QueueClosed):
        region.discard(0, PAGE)


def test_a_read_only_mapping_is_left_alone() -> None:
    region = Region.memfd(2 * PAGE)
    memoryview(region)[:] = b"x" * 2 * PAGE
    reader = Region.from_fd(region.fd, writable=False)
    with pytest.raises(NotSupported, match="cannot be given back"):
        reader.discard(0, PAGE)
    assert bytes(memoryview(region)) == b"x" * 2 * PAGE


def test_a_private_mapping_of_a_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"f" * PAGE)
    with path.open("r+b") as file:
        private = mmap.mmap(file.fileno(), PAGE, access=mmap.ACCESS_COPY)
    private[:] = b"p" * PAGE
    region = Region.from_buffer(private)
    with pytest.raises(NotSupported):
        region.discard(0, PAGE)
    assert bytes(memoryview(region)) == b"p" * PAGE


def test_by_guest_address() -> None:
    memory = GuestMemory()
    low, high = Region.memfd(4 * PAGE), Region.memfd(4 * PAGE)
    memory.add_region(16 * PAGE, low)
    memory.add_region(20 * PAGE, high, perm="r")
    memory.write(16 * PAGE, b"x" * 4 * PAGE)
    assert memory.discard(17 * PAGE, 2 * PAGE) == 2 * PAGE
    assert held(low) == 2 * PAGE
    assert memory.read(16 * PAGE, 4 * PAGE) == b"x" * PAGE + bytes(2 * PAGE) + b"x" * PAGE
    for addr, length in ((19 * PAGE, 2 * PAGE), (20 * PAGE, PAGE), (15 * PAGE, PAGE)):
        with pytest.raises(AddressError):
            memory.discard(addr, length)
