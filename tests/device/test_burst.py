"""The loop that serves one queue in a thread of its own: when it tells the driver."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from virtring import EventFd, Feature, GuestMemory, Virtqueue, create_pair, wait_used
from virtring.device.burst import QueueLoop
from virtring.devices.blk_io import BlkIo

RINGS = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
SECTORS = 64


class Disk:
    """The driver side of a queue whose reads are carried out in a thread."""

    def __init__(self, vq: Virtqueue, memory: GuestMemory, call: EventFd) -> None:
        self.vq, self.memory, self.call = vq, memory, call

    def submit(self, sector: int) -> int:
        addr = self.memory.alloc(1024)
        self.memory.write(addr, struct.pack("<IIQ", 0, 0, sector))
        writable = [(addr + 512, 512), (addr + 16, 1)]
        self.vq.virtqueue_add([(addr, 16)], writable, addr, premapped=True)
        return addr

    def finish(self) -> int:
        """Wait for the next one; gives the first number of its sector."""
        assert wait_used(self.vq, self.call, 20)
        got = self.vq.get_buf()
        assert got is not None
        addr = got[0]
        assert isinstance(addr, int)
        assert self.memory.read(addr + 16, 1) == b"\0"
        (number,) = struct.unpack("<Q", self.memory.read(addr + 512, 8))
        self.memory.free(addr)
        return int(number)


@contextmanager
def served(packed: bool) -> Iterator[tuple[Disk, QueueLoop]]:
    memory = GuestMemory.create(1 << 20)
    kick, call, wake = EventFd(), EventFd(), EventFd()
    features = Feature.VERSION_1 | Feature.EVENT_IDX
    vq, dq = create_pair(
        64, packed=packed, features=features, memory=memory, notify=kick, call=call
    )
    fd = os.memfd_create("disk")
    os.write(fd, b"".join(struct.pack("<Q504x", sector) for sector in range(SECTORS)))
    loop = QueueLoop(dq, BlkIo(fd, SECTORS), wake.fileno())
    thread = threading.Thread(target=loop.run, args=(kick.fileno(), call.fileno()))
    thread.start()
    try:
        yield Disk(vq, memory, call), loop
    finally:
        loop.stop()
        wake.signal()
        thread.join()
        os.close(fd)


@RINGS
def test_a_single_request_is_told_at_once(packed: bool) -> None:
    """But for a few in which it is learned that there is a single one only.

    Some waits end well even so, as the driver may look before it is told: it is the more trials.
    """
    with served(packed) as (disk, loop):
        for number in range(3000):
            disk.submit(number % SECTORS)
            disk.vq.kick()
            assert disk.finish() == number % SECTORS
        assert loop.vain < 150


@RINGS
@pytest.mark.parametrize("depth", [2, 5, 16])
def test_several_requests(packed: bool, depth: int) -> None:
    with served(packed) as (disk, _):
        numbers = [number % SECTORS for number in range(2000)]
        got = []
        for at, number in enumerate(numbers):
            disk.submit(number)
            disk.vq.kick()
            if at >= depth:
                got.append(disk.finish())
        got += [disk.finish() for _ in range(depth)]
        assert sorted(got) == sorted(numbers)
