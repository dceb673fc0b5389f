"""The figures of a run as text, as a table for README, and as JSON."""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.peers.compare import Outcome
from benchmarks.peers.peer import Peer, Record, Work

BEGIN, END = "<!-- peers: begin -->", "<!-- peers: end -->"


@dataclass
class Results:
    """All that one run found."""

    peers: Sequence[Peer]
    work: Work
    turns: int
    missing: dict[str, str] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    outcomes: dict[str, list[Outcome]] = field(default_factory=dict)

    @property
    def all_outcomes(self) -> list[Outcome]:
        return [outcome for group in self.outcomes.values() for outcome in group]

    def machine(self) -> str:
        """What it ran on, in a line."""
        kernel = ".".join(platform.release().split(".")[:2])
        return f"{os.cpu_count()} cores, {_processor()}, Linux {kernel}"

    def method(self) -> str:
        """How it was measured, in a line or two."""
        one, two = self.work.cpus
        return (
            f"Nanoseconds a buffer, medians of {self.turns * self.work.rounds} rounds in "
            f"{self.turns} turns, virtring and the peer one after the other in each; one thread on "
            f"core {two}, two processes on {one} and {two}."
        )

    def as_dict(self) -> dict[str, object]:
        """The form of ``--json``."""
        return {
            "machine": self.machine(),
            "turns": self.turns,
            "rounds": self.work.rounds,
            "buffers": self.work.buffers,
            "cpus": list(self.work.cpus),
            "versions": {peer.name: peer.version for peer in self.peers},
            "missing": self.missing,
            "comparisons": [outcome.as_dict() for outcome in self.all_outcomes],
            "records": [record.as_dict() for record in self.records],
        }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.machine()


def target(outcome: Outcome) -> str:
    """``<= 0.33``, or nothing."""
    at_most = outcome.comparison.at_most
    return "" if at_most is None else f"<= {at_most:.3g}"


def verdict(outcome: Outcome) -> str:
    """``met``, ``missed``, or nothing without a target."""
    return {True: "met", False: "missed", None: ""}[outcome.met]


def peer_name(outcome: Outcome) -> str:
    """The peer and which of its cases, where that is not told by ours."""
    case, ours = outcome.comparison.peer, outcome.comparison.ours
    if case.peer == ours.peer:
        return f"{case.peer}, ring of {case.ring_size}"
    return case.peer if case.name == ours.name else f"{case.peer} {case.name}"


_HEADS = ("what", "virtring", "range", "peer", "ns", "range", "ratio", "range", "target", "")
_LEFT = {0, 3, 9}


def text(results: Results) -> str:
    """All comparisons for a terminal."""
    rows = {title: [_cells(o) for o in group] for title, group in results.outcomes.items() if group}
    lines = [results.machine(), results.method(), "lost: rounds that never had their core alone."]
    every = [_HEADS, *(row for group in rows.values() for row in group)]
    for title, group in rows.items():
        lines += ["", title, *align([_HEADS, *group], _LEFT, every)]
    trips = round_trips(results)
    if trips:
        lines += ["", "round trips of messages, every one timed: microseconds"]
        lines += align(trips, {0, 1})
    return "\n".join([*lines, "", *versions(results)])


def round_trips(results: Results) -> list[tuple[str, ...]]:
    """Median and percentiles of the cases that timed every single one, below their heads."""
    rows = [
        (
            f"{record.case.name}, {record.case.ring_size} B",
            record.case.peer,
            *(f"{ns / 1000:.1f}" for ns in (record.median, *record.tail)),
        )
        for record in sorted(results.records, key=lambda r: (r.case.ring_size, r.case.name))
        if record.tail is not None
    ]
    return [("there and back", "channel", "median", "p99", "p99.9"), *rows] if rows else []


def _cells(outcome: Outcome) -> tuple[str, ...]:
    low, high = outcome.spread
    lost = outcome.ours.preempted + outcome.peer.preempted
    return (
        outcome.comparison.name,
        *_figures(outcome.ours),
        peer_name(outcome),
        *_figures(outcome.peer),
        f"{outcome.ratio:.2f}",
        f"{low:.2f}..{high:.2f}",
        target(outcome),
        verdict(outcome) + (f" (lost {lost})" if lost else ""),
    )


def _figures(record: Record) -> tuple[str, str]:
    return f"{record.median:.1f}", f"{record.best:.1f}..{record.worst:.1f}"


def versions(results: Results) -> list[str]:
    """A line a peer: its version, or why it is missing."""
    return [
        f"{peer.name}: "
        + (
            f"MISSING: {' '.join(results.missing[peer.name].split())}"
            if peer.name in results.missing
            else f"version {peer.version}"
        )
        for peer in results.peers
    ]


def align(
    rows: Sequence[Sequence[str]], left: set[int], widest: Sequence[Sequence[str]] | None = None
) -> list[str]:
    """Rows as lines with columns as wide as in ``widest``; ``left`` are adjusted to the left."""
    widths = [max(len(row[i]) for row in widest or rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


_RECORD_HEADS = (
    *("peer", "ring", "size", "case", "descr", "table", "batch"),
    *("median", "best", "worst", "lost"),
)


def figures(results: Results) -> str:
    """Every case by itself, for a terminal."""
    rows = [
        (
            *(record.case.peer, record.case.ring, str(record.case.ring_size), record.case.name),
            str(record.case.descriptors),
            "indirect" if record.case.indirect else "",
            str(record.case.batch),
            *(f"{ns:.1f}" for ns in (record.median, record.best, record.worst)),
            str(record.preempted),
        )
        for record in results.records
    ]
    return "\n".join(align([_RECORD_HEADS, *rows], {0, 1, 3, 5}))


def markdown(results: Results, plot: str | None) -> str:
    """The comparisons that have a target, as a table; ``plot`` is the picture's path."""
    lines = [
        f"{results.machine()}. {results.method()} By `python -m benchmarks.peers`.",
        "",
        "| what | virtring | peer | | ratio | range | target | |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    lines += [
        f"| {o.comparison.name} | {o.ours.median:.1f} ns | {peer_name(o)} | {o.peer.median:.1f} ns "
        f"| {o.ratio:.2f} | {o.spread[0]:.2f}..{o.spread[1]:.2f} | {target(o)} | {verdict(o)} |"
        for o in results.all_outcomes
        if o.comparison.at_most is not None
    ]
    trips = round_trips(results)
    if trips:
        lines += ["", "Round trips of messages between two processes, every one timed, in µs:", ""]
        rows = [f"| {' | '.join(row)} |" for row in trips]
        lines += [rows[0], "| --- | --- | ---: | ---: | ---: |", *rows[1:]]
    built = "; ".join(f"{p.name} {p.version}" for p in results.peers if p.version)
    lines += ["", f"Versions: {built}."]
    absent = [f"{name} ({' '.join(why.split())})" for name, why in results.missing.items()]
    if absent:
        lines.append(f"Missing: {', '.join(absent)}.")
    if plot:
        lines += ["", f"![Ratios of virtring to its peers, with the targets]({plot})"]
    return "\n".join(lines)


def replace_between(path: Path, table: str) -> None:
    """Put the table between the two marks of a file; ValueError if it does not have them."""
    old = path.read_text()
    if old.count(BEGIN) != 1 or old.count(END) != 1 or old.index(BEGIN) > old.index(END):
        raise ValueError(f"{path} does not have one {BEGIN} and one {END} behind it")
    before, rest = old.split(BEGIN)
    path.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}")
