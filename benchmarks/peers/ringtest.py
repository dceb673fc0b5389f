"""Linux's ``tools/virtio/ringtest``: two threads on two cores, nothing but the ring between them.

The guest thread adds buffers and gets them back, the host thread uses them: a round trip. Both poll
(no eventfd). The programs print no time, so the whole process is timed, less what a run of a single
buffer takes, and divided by the number of buffers.

Cases: ``free`` lets the guest fill the ring; ``window`` allows 64 buffers under way (and passes
``--batch 32``, which only matters to runs that sleep). Both relax the core while they poll.
"""

import resource
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.peers.cache import Cache, PeerMissing, command, need, settle
from benchmarks.peers.linux_source import linux_source
from benchmarks.peers.peer import Case, Record, Work

# Program, and what its ring is.
PROGRAMS = {
    "ring": "packed-like",
    "virtio_ring_0_9": "split",
    "virtio_ring_inorder": "split-inorder",
    "ptr_ring": "pointers",
}
RING_SIZE = 256
WINDOW = 64
# A process is timed, so a round has to be long against starting it.
LEAST_BUFFERS = 500_000
_START_RUNS = 5
# How often a round is run again in which one of the two threads lost its core.
_MAX_TRIES = 5
# ptr_ring.h of 6.12 allocates through wrappers that ringtest's stand-ins lack; 6.1 has no such
# wrappers. Quoted, as make hands this to a shell.
_FLAGS = "'-Dalloc_hooks(x)=(x)' -Dkvmalloc_array_noprof=kvmalloc_array"


class Ringtest:
    """One program of ringtest, built by its own Makefile."""

    def __init__(self, program: str) -> None:
        self.name = f"ringtest-{program}"
        self.version = ""
        self._source = program
        self._program: Path | None = None

    def build(self, cache: Cache) -> None:
        """Unpack the kernel source and run make in a copy."""
        need("make", "gcc")
        source = linux_source(cache)
        place = cache.folder("programs") / f"{self.name}-{source.version}"
        if not place.is_dir():
            work = cache.scratch()
            try:
                # Its sources reach for ../../../include.
                for part in ("tools/virtio/ringtest", "include/linux"):
                    shutil.copytree(source.path / part, work / "tree" / part)
                folder = work / "tree/tools/virtio/ringtest"
                command(["make", self._source], folder, {"CFLAGS": _FLAGS})
                made = work / "made"
                made.mkdir()
                (folder / self._source).rename(made / self._source)
                settle(made, place)
            finally:
                shutil.rmtree(work, ignore_errors=True)
        self._program = place / self._source
        self.version = source.version

    def cases(self) -> Sequence[Case]:
        """The ring of 256 entries, filled freely or with a window."""
        ring = PROGRAMS[self._source]
        return [
            Case(self.name, ring, RING_SIZE, "free"),
            Case(self.name, ring, RING_SIZE, "window", batch=32),
        ]

    def run(self, work: Work) -> list[Record]:
        """Time each wanted case, one process a round, host and guest on a core of their own."""
        host, guest = work.cpus
        if host == guest:
            raise PeerMissing("two cores are needed: the two sides wait for each other by polling")
        buffers = max(work.buffers, LEAST_BUFFERS)
        records = []
        for case in self.cases():
            if not work.wants(case):
                continue
            words = [
                f"--host-affinity={host}",
                f"--guest-affinity={guest}",
                f"--ring-size={case.ring_size}",
                "--relax",
            ]
            if case.name == "window":
                words += [f"--batch={case.batch}", f"--outstanding={WINDOW}"]
            start = min(self._seconds(words, 1)[0] for _ in range(_START_RUNS))
            samples = []
            preempted = 0
            for _ in range(work.rounds):
                seconds, switches = self._least_disturbed(words, buffers)
                samples.append((seconds - start) / (buffers - 1) * 1e9)
                preempted += switches > 0
            records.append(Record(case, tuple(samples), preempted))
        return records

    def _least_disturbed(self, words: Sequence[str], buffers: int) -> tuple[float, int]:
        tries = []
        for _ in range(_MAX_TRIES):
            tries.append(self._seconds(words, buffers))
            if tries[-1][1] == 0:
                break
        return min(tries, key=lambda tried: tried[1])

    def _seconds(self, words: Sequence[str], buffers: int) -> tuple[float, int]:
        """Time one process; also how often it was switched out against its will."""
        if self._program is None:
            raise PeerMissing(f"{self.name} was not built")
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_nivcsw
        start = time.perf_counter()
        command([self._program, *words, f"--run-cycles={buffers}"], self._program.parent)
        seconds = time.perf_counter() - start
        return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_nivcsw - before
