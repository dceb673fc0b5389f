"""Linux's driver side, ``drivers/virtio/virtio_ring.c``, in user space.

Cases (``linux_ring.c`` has the details):

``round``
    ``batch`` times add_outbuf, one kick, a device step of a few lines, ``batch`` times get_buf.
``call``
    add_outbuf + kick_prepare for every buffer until the ring is full, then get_buf for every
    buffer. The device step between the two is not timed at all, so nothing is subtracted, and the
    clock is read four times a ring, not four times a buffer. ``batch`` is 1: each buffer pays for
    its own kick_prepare.
``device``
    That device step alone, for comparisons which would rather subtract it.

Scatter lists are made once, notifications and callbacks are switched off by the flags of the rings
(no event index): the cheapest way that Linux has. Without DMA mapping, as in a plain guest; a table
of indirect descriptors is malloc and free instead of the kernel's slab.
"""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.peers.cache import Cache
from benchmarks.peers.linux_source import linux_source
from benchmarks.peers.peer import Case, Record, Work, run_harness

RING_SIZES = (1024, 256)
BATCHES = (1, 16, 256)
# Descriptors a buffer, and whether they go into a table.
SHAPES = ((1, False), (4, False), (4, True))


class LinuxRing:
    """The harness ``linux_ring.c`` with virtio_ring.c of a kernel source."""

    name = "linux-ring"

    def __init__(self) -> None:
        self.version = ""
        self._program: Path | None = None

    def build(self, cache: Cache) -> None:
        """Unpack the kernel source and compile both files."""
        source = linux_source(cache)
        self._program = source.compile(
            cache, "linux_ring.c", "drivers/virtio/virtio_ring.c", ["-Wl,--wrap=malloc"]
        )
        self.version = source.version

    def cases(self) -> Sequence[Case]:
        """Split and packed, direct and indirect; batches that do not fit the ring are left out."""
        return [
            Case(self.name, ring, size, name, descriptors, batch, indirect)
            for ring in ("split", "packed")
            for size in RING_SIZES
            for descriptors, indirect in SHAPES
            for name, batch in (*(("round", n) for n in BATCHES), ("call", 1), ("device", 1))
            if batch * (1 if indirect else descriptors) <= size
        ]

    def run(self, work: Work) -> list[Record]:
        """Time each wanted case in a process of its own, on one core."""
        return [self._run(case, work) for case in self.cases() if work.wants(case)]

    def _run(self, case: Case, work: Work) -> Record:
        words = [
            f"--ring={case.ring}",
            f"--size={case.ring_size}",
            f"--descriptors={case.descriptors}",
            f"--batch={case.batch}",
            f"--case={case.name}",
        ]
        if case.indirect:
            words.append("--indirect")
        return run_harness(self._program, case, [*words, *work.arguments(case)])
