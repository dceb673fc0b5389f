"""Linux's device side, ``drivers/vhost/vringh.c``, in user space. It knows split rings only.

The one case, ``device``: the ring is full of chains, and the device empties it with
vringh_getdesc_kern and vringh_complete_kern. Filling is not timed. These are the calls for rings in
the device's own address space: addresses are taken as they are, without translation or a check of
their range. ``batch`` is the number of chains in the ring.
"""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.peers.cache import Cache
from benchmarks.peers.linux_source import linux_source
from benchmarks.peers.peer import Case, Record, Work, run_harness

RING_SIZE = 256
CHAINS = (1, 2, 4, 8)


class LinuxVringh:
    """The harness ``linux_vringh.c`` with vringh.c of a kernel source."""

    name = "linux-vringh"

    def __init__(self) -> None:
        self.version = ""
        self._program: Path | None = None

    def build(self, cache: Cache) -> None:
        """Unpack the kernel source and compile both files."""
        source = linux_source(cache)
        self._program = source.compile(cache, "linux_vringh.c", "drivers/vhost/vringh.c")
        self.version = source.version

    def cases(self) -> Sequence[Case]:
        """Chains of 1, 2, 4 and 8 readable descriptors."""
        return [
            Case(self.name, "split", RING_SIZE, "device", length, RING_SIZE // length)
            for length in CHAINS
        ]

    def run(self, work: Work) -> list[Record]:
        """Time each wanted case in a process of its own, on one core."""
        records = []
        for case in self.cases():
            if work.wants(case):
                words = [f"--size={case.ring_size}", f"--descriptors={case.descriptors}"]
                records.append(run_harness(self._program, case, [*words, *work.arguments(case)]))
        return records
