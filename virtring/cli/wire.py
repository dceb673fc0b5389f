"""What a transfer puts into the ring, and what both its processes have to know.

A block of the file is a chain of two descriptors: a header of 16 bytes and the data. The last chain
is the trailer, whose header has the size of the file and whose data is the checksum.
"""

import hashlib
import struct
from dataclasses import dataclass

from virtring.memory import GuestMemory
from virtring.queue import EventFd, QueueConfig

#: kind, bytes of data, place in the file (trailer: size of the file); little-endian, 16 bytes.
HEADER = struct.Struct("<IIQ")
DATA = 0x4B4C4256       # "VBLK"
TRAILER = 0x444E4556    # "VEND"
DESCRIPTORS = 2
#: Bytes between two headers: a cache line each.
HEADER_STRIDE = 64
DIGEST_BYTES = 32
CHECKSUM = "blake2b-256"
#: Seconds after which a sleeping end looks whether its parent is still there.
NAP = 0.5


def new_checksum() -> hashlib.blake2b:
    """Each end computes its own."""
    return hashlib.blake2b(digest_size=DIGEST_BYTES)


@dataclass(frozen=True)
class Link:
    """Both ends of the ring; goes to the two processes by pickling.

    ``headers``, ``blocks``: guest addresses of the first ones; ``count`` of each, blocks ``stride``
    bytes apart and of ``block`` bytes. ``counters``: where each end keeps the bytes it has done.
    """

    memory: GuestMemory
    config: QueueConfig
    kick: EventFd
    call: EventFd
    headers: int
    blocks: int
    count: int
    block: int
    stride: int
    counters: int

    def counter(self, end: int) -> memoryview:
        """One uint64, of the sender (0) or the receiver (1)."""
        return self.memory.view(self.counters + end * HEADER_STRIDE, 8).cast("Q")


@dataclass(frozen=True)
class Report:
    """What an end says when it is done."""

    size: int
    checksum: str
