"""Which case of virtring is set beside which case of a peer, and what is aimed at."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.peers.linux_vringh import LinuxVringh
from benchmarks.peers.ours import CHAINS, CYTHON, FLAT_BATCH, FLAT_SIZES, PYTHON, RINGS
from benchmarks.peers.peer import Case, Peer, Record
from benchmarks.peers.ringtest import PROGRAMS
from benchmarks.peers.ringtest import RING_SIZE as RINGTEST_SIZE
from benchmarks.peers.rust_vmm import RELEASES, RustVmm


@dataclass(frozen=True)
class Comparison:
    """virtring's case, the peer's, and the target: the ratio of the two that is aimed at."""

    work: str
    ours: Case
    peer: Case
    at_most: float | None = None

    @property
    def name(self) -> str:
        """Which ring and which shape of buffers."""
        case = self.ours
        if case.ring == "channel":
            return f"{self.work}, batch {case.batch}" if case.batch > 1 else self.work
        table = " indirect" if case.indirect else ""
        shape = f"{case.descriptors} descr{table}, batch {case.batch}"
        by = " (Cython)" if case.peer == CYTHON else ""
        return f"{self.work}: {case.ring}, {shape}{by}"


@dataclass(frozen=True)
class Outcome:
    """A comparison with the figures of one run."""

    comparison: Comparison
    ours: Record
    peer: Record
    turns: int

    @property
    def ratio(self) -> float:
        """Our median by the peer's; less than 1 is faster."""
        return self.ours.median / self.peer.median

    @property
    def spread(self) -> tuple[float, float]:
        """The least and the largest ratio of the medians of one turn."""
        pairs = zip(self._turns(self.ours), self._turns(self.peer), strict=True)
        ratios = [ours / peer for ours, peer in pairs]
        return min(ratios), max(ratios)

    def _turns(self, record: Record) -> list[float]:
        step = len(record.samples) // self.turns
        return [
            statistics.median(record.samples[i * step : (i + 1) * step]) for i in range(self.turns)
        ]

    @property
    def met(self) -> bool | None:
        """Whether the target was reached; None without a target."""
        at_most = self.comparison.at_most
        return None if at_most is None else self.ratio <= at_most

    def as_dict(self) -> dict[str, object]:
        """The form of ``--json``."""
        low, high = self.spread
        return {
            "work": self.comparison.work,
            "virtring": self.comparison.ours.key,
            "peer": self.comparison.peer.key,
            "ns_virtring": round(self.ours.median, 3),
            "ns_peer": round(self.peer.median, 3),
            "ratio": round(self.ratio, 4),
            "ratio_range": [round(low, 4), round(high, 4)],
            "target_at_most": self.comparison.at_most,
            "met": self.met,
        }


# What is aimed at, as a ratio to the peer.
_BATCHED = 1 / 3
_CALLS = 8.0
_DEVICE = {1: 1 / 3, 8: 1 / 2}
_TWO_CORES: dict[str, tuple[str, float | None]] = {
    "packed-like": ("packed", 1.0),
    "split": ("split", 1 / 2),
    # No virtqueues of today's standard, but what else is tried there.
    "split-inorder": ("split", None),
    "pointers": ("packed", None),
}
# Between a ring that fits the first cache and one of half a megabyte of descriptors alone.
_FLAT = 1.5


def ring_comparisons() -> dict[str, list[Comparison]]:
    """Every comparison of the ring engine, by its question."""
    return {
        "driver and device in one thread, beside Linux's virtio_ring.c": [*_rounds()],
        "add_outbuf + kick_prepare + get_buf by single calls, beside Linux's in C": [*_calls()],
        "device side, a full ring taken and given back": [*_device()],
        "round trip between two cores, beside Linux's ringtest": [*_two_cores()],
        f"what the size of the ring costs: {FLAT_SIZES[1]} entries beside {FLAT_SIZES[0]}": [
            Comparison(
                "ring size",
                Case(PYTHON, ring, FLAT_SIZES[1], "round", batch=FLAT_BATCH),
                Case(PYTHON, ring, FLAT_SIZES[0], "round", batch=FLAT_BATCH),
                _FLAT,
            )
            for ring in RINGS
        ],
    }


def _linux(ours: Case) -> Case:
    return replace(ours, peer="linux-ring")


def _rounds() -> Iterator[Comparison]:
    for ring in RINGS:
        for descriptors, indirect in ((1, False), (4, False), (4, True)):
            for batch in (256, 16, 1):
                ours = Case(PYTHON, ring, 1024, "round", descriptors, batch, indirect)
                target = _BATCHED if (descriptors, batch) == (1, 256) else None
                work = "batched calls" if batch > 1 else "single calls"
                yield Comparison(work, ours, _linux(ours), target)
                if descriptors == 1:
                    bare = replace(ours, peer=CYTHON)
                    yield Comparison("without Python", bare, _linux(ours))


def _calls() -> Iterator[Comparison]:
    for ring in RINGS:
        for descriptors, indirect in ((1, False), (4, False), (4, True)):
            ours = Case(PYTHON, ring, 1024, "call", descriptors, 1, indirect)
            target = _CALLS if descriptors == 1 else None
            yield Comparison("single calls", ours, _linux(ours), target)


def _device() -> Iterator[Comparison]:
    # The newest release as it is meant to be used, and the cheapest of all that rust-vmm offers.
    newest, fastest = RustVmm(RELEASES[0]).name, RustVmm(RELEASES[-1]).name
    for count in CHAINS:
        ours = Case(PYTHON, "split", 256, "device", count, 256 // count)
        bare = replace(ours, peer=CYTHON)
        target = _DEVICE.get(count)
        yield Comparison("pop + push", ours, replace(ours, peer=newest, name="pop"), target)
        yield Comparison("pop + push", ours, replace(ours, peer=fastest, name="iter"), target)
        yield Comparison("pop + push", ours, replace(ours, peer=LinuxVringh.name))
        yield Comparison("without Python", bare, replace(ours, peer=fastest, name="iter"))


def _two_cores() -> Iterator[Comparison]:
    for program, layout in PROGRAMS.items():
        ring, target = _TWO_CORES[layout]
        for name, batch in (("window", 32), ("free", 1)):
            peer = Case(f"ringtest-{program}", layout, RINGTEST_SIZE, name, batch=batch)
            ours = replace(peer, peer=PYTHON, ring=ring)
            yield Comparison(f"round trip, {name}", ours, peer, target)


# What a peer that passes buffers in place is asked by, and what one that only copies.
_PASSING = {"passed": "send", "round-trip-passed": "round-trip"}
_SMALL, _LARGE = 64, 65536


def channel_comparisons(groups: Mapping[str, Sequence[Peer]]) -> dict[str, list[Comparison]]:
    """Every comparison of the channel, for groups of peers by their question.

    In each group, the peer whose name begins with ``virtring`` is ours; it is set beside all
    others, case by case and size by size. Messages of 64 KiB and more that virtring passes in place
    stand beside the copies of a peer that cannot do so.
    """
    return {title: [*_like_with_like(peers)] for title, peers in groups.items()}


def _like_with_like(peers: Sequence[Peer]) -> Iterator[Comparison]:
    mine = [case for peer in peers if peer.name.startswith(PYTHON) for case in peer.cases()]
    others = [peer for peer in peers if not peer.name.startswith(PYTHON)]
    for ours in mine:
        for peer in others:
            theirs = peer.cases()
            same = replace(ours, peer=peer.name)
            copied = replace(same, name=_PASSING.get(ours.name, ""))
            if same in theirs:
                yield Comparison(_message(ours), ours, same, _aim(ours, peer.name))
            elif copied in theirs and ours.ring_size >= _LARGE:
                yield Comparison(_message(ours), ours, copied, _aim(ours, peer.name))


def _message(case: Case) -> str:
    size, unit = case.ring_size, "B"
    for larger in ("KiB", "MiB"):
        if size >= 1024:
            size, unit = size // 1024, larger
    return f"{case.name}, {size} {unit}"


def _aim(ours: Case, peer: str) -> float | None:
    """Twice the others' rate for small messages and for passed ones; twenty times the Queue's."""
    if peer == "multiprocessing-queue":
        return 1 / 20 if ours.ring_size < _LARGE or ours.name in _PASSING else None
    if peer.startswith("multiprocessing"):
        return None
    few = ours.ring_size == _SMALL and ours.name in ("send", "batch")
    return 1 / 2 if few or (ours.ring_size == _LARGE and ours.name == "passed") else None
