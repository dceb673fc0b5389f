"""What a peer is, what it is asked to do, and what it reports."""

import json
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Protocol

from benchmarks.peers.cache import Cache, PeerMissing, command


@dataclass(frozen=True)
class Case:
    """One thing that a peer can be timed at.

    ``name`` says which calls are timed; each peer's module explains its own names. ``batch`` counts
    buffers between two notifications, or the chains that the device finds each time.
    """

    peer: str
    ring: str
    ring_size: int
    name: str
    descriptors: int = 1
    batch: int = 1
    indirect: bool = False

    @property
    def key(self) -> str:
        """A name that no other case has, such as ``linux-ring/split-256/round/d4-indirect/b16``."""
        table = "-indirect" if self.indirect else ""
        return (
            f"{self.peer}/{self.ring}-{self.ring_size}/{self.name}"
            f"/d{self.descriptors}{table}/b{self.batch}"
        )


@dataclass(frozen=True)
class Record:
    """What one case cost: nanoseconds a buffer, one figure a round.

    A round in which another process took the core measures that process too; it is run again, a
    limited number of times. ``preempted`` counts the rounds that never had the core to themselves.
    ``tails`` are the 99th and the 99.9th percentile of each run that timed every single one.
    """

    case: Case
    samples: tuple[float, ...]
    preempted: int = 0
    tails: tuple[tuple[float, float], ...] = ()

    @property
    def median(self) -> float:
        """Nanoseconds a buffer in the middle round."""
        return statistics.median(self.samples)

    @property
    def best(self) -> float:
        """Nanoseconds a buffer in the fastest round."""
        return min(self.samples)

    @property
    def worst(self) -> float:
        """Nanoseconds a buffer in the slowest round."""
        return max(self.samples)

    @property
    def tail(self) -> tuple[float, float] | None:
        """The two percentiles of the middle run, in nanoseconds, where there are any."""
        if not self.tails:
            return None
        p99, p999 = zip(*self.tails, strict=True)
        return statistics.median(p99), statistics.median(p999)

    def as_dict(self) -> dict[str, object]:
        """The flat form of a line of ``--json``."""
        p99, p999 = self.tail or (None, None)
        return {
            "peer": self.case.peer,
            "ring": self.case.ring,
            "ring_size": self.case.ring_size,
            "case": self.case.name,
            "descriptors": self.case.descriptors,
            "batch": self.case.batch,
            "indirect": self.case.indirect,
            "ns_per_buffer_median": round(self.median, 3),
            "ns_per_buffer_min": round(self.best, 3),
            "ns_p99": p99,
            "ns_p999": p999,
            "rounds": len(self.samples),
            "preempted": self.preempted,
            "samples": list(self.samples),
        }


def merge(records: Iterable[Record]) -> list[Record]:
    """Join the rounds of equal cases, in the order in which cases first appear.

    With this, peers can take turns: one round each, again and again, so that a noisy moment of the
    machine hits all of them.
    """
    joined: dict[Case, Record] = {}
    for record in records:
        first = joined.get(record.case, Record(record.case, ()))
        joined[record.case] = Record(
            record.case,
            first.samples + record.samples,
            first.preempted + record.preempted,
            first.tails + record.tails,
        )
    return list(joined.values())


def _first_two_cpus() -> tuple[int, int]:
    cpus = sorted(os.sched_getaffinity(0))
    return cpus[0], cpus[min(1, len(cpus) - 1)]


@dataclass(frozen=True)
class Work:
    """How much to run, where, and which cases.

    ``buffers`` is the number of buffers in one round, at least: a round ends with a whole batch.
    Buffers of n descriptors come in an n-th of that number. It is small, as a short round is
    likelier to have the core to itself. One-thread peers run on the last of ``cpus`` (the first one
    gets most of a machine's interrupts); two-thread peers take both.
    """

    rounds: int = 10
    buffers: int = 20_000
    cpus: tuple[int, int] = field(default_factory=_first_two_cpus)
    only: tuple[str, ...] = ("*",)

    def wants(self, case: Case) -> bool:
        """Whether a pattern of ``only`` fits the case's key."""
        return any(fnmatchcase(case.key, pattern) for pattern in self.only)

    def arguments(self, case: Case) -> list[str]:
        """The part of a harness's command line that says how much to run and where."""
        return [
            f"--rounds={self.rounds}",
            f"--buffers={max(1, self.buffers // case.descriptors)}",
            f"--cpu={self.cpus[-1]}",
        ]


class Peer(Protocol):
    """A peer: first built, then run as often as one likes."""

    @property
    def name(self) -> str:
        """What tables call it."""

    @property
    def version(self) -> str:
        """The version that was built; empty before :meth:`build`."""

    def build(self, cache: Cache) -> None:
        """Fetch and build what is not in the cache. Raises :exc:`PeerMissing` with the reason."""

    def cases(self) -> Sequence[Case]:
        """Everything that :meth:`run` can time."""

    def run(self, work: Work) -> list[Record]:
        """Time the cases that ``work`` wants, one process each. Only after :meth:`build`."""


def run_harness(program: Path | None, case: Case, arguments: Sequence[str]) -> Record:
    """Run one of our harnesses for one case and read the JSON line that it prints.

    Raises :exc:`PeerMissing` if it was not built, fails, or timed something else than asked.
    """
    if program is None:
        raise PeerMissing(f"{case.peer} was not built")
    return read_report(case, command([program, *arguments], program.parent))


def read_report(case: Case, text: str) -> Record:
    """The JSON line of a harness; :exc:`PeerMissing` if it timed something else than ``case``."""
    line = json.loads(text)
    ran = Case(
        peer=case.peer,
        ring=line["ring"],
        ring_size=line["ring_size"],
        name=line["case"],
        descriptors=line["descriptors"],
        batch=line["batch"],
        indirect=line["indirect"],
    )
    if ran != case:
        raise PeerMissing(f"{case.key} was asked for, but {ran.key} ran")
    return Record(case, tuple(float(ns) for ns in line["samples"]), line["preempted"])
