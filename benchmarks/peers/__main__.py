"""``python -m benchmarks.peers``: build the peers, run them in turns, print what each costs."""

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.peers import ring_engines
from benchmarks.peers.cache import Cache, PeerMissing
from benchmarks.peers.peer import Peer, Record, Work, merge
from benchmarks.peers.ringtest import LEAST_BUFFERS


def main(words: Sequence[str] | None = None) -> int:
    """Run the command. Returns 0, or 1 if no peer could be measured."""
    options = _parser().parse_args(words)
    cache = Cache.default() if options.cache is None else Cache(options.cache.absolute())
    chosen = Work()
    work = Work(
        rounds=options.rounds,
        buffers=options.buffers,
        cpus=chosen.cpus if options.cpus is None else options.cpus,
        only=tuple(options.only) or chosen.only,
    )
    groups = {
        title: [peer for peer in peers if any(work.wants(case) for case in peer.cases())]
        for title, peers in ring_engines().items()
    }
    peers = [peer for group in groups.values() for peer in group]
    missing = _build(peers, cache)
    if options.build_only:
        for peer in peers:
            print(f"{peer.name}: {missing.get(peer.name) or f'built, version {peer.version}'}")
        return int(len(missing) == len(peers))
    records = {
        title: _take_turns(group, missing, work, options.turns) for title, group in groups.items()
    }
    if options.json:
        _print_json(peers, missing, records)
    else:
        _print_tables(peers, missing, records, replace(work, rounds=options.turns * options.rounds))
    return int(not any(records.values()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--turns", type=_positive, default=5, help="turns of every peer")
    parser.add_argument("--rounds", type=_positive, default=4, help="rounds of a case in a turn")
    parser.add_argument("--buffers", type=_positive, default=20_000, help="buffers a round")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="PATTERN",
        help="cases to run, such as 'linux-ring/packed-*'; may be repeated",
    )
    parser.add_argument("--cpus", type=_cpus, metavar="A,B", help="the two cores to pin to")
    parser.add_argument("--cache", type=Path, help="instead of $VIRTRING_PEERS_CACHE")
    parser.add_argument("--json", action="store_true", help="one line of JSON a case")
    parser.add_argument("--build-only", action="store_true", help="build what is missing and stop")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def _cpus(text: str) -> tuple[int, int]:
    first, second = (int(word) for word in text.split(","))
    return first, second


def _build(peers: Sequence[Peer], cache: Cache) -> dict[str, str]:
    """Build all of them; returns the reason for each one that is missing."""
    missing = {}
    for peer in peers:
        print(f"building {peer.name}", file=sys.stderr)
        try:
            peer.build(cache)
        except PeerMissing as reason:
            missing[peer.name] = str(reason)
    return missing


def _take_turns(
    peers: Sequence[Peer], missing: dict[str, str], work: Work, turns: int
) -> list[Record]:
    """One turn for every peer, again and again. A peer that fails is added to ``missing``."""
    records: list[Record] = []
    for turn in range(turns):
        for peer in peers:
            if peer.name in missing:
                continue
            print(f"turn {turn + 1} of {turns}: {peer.name}", file=sys.stderr)
            try:
                records += peer.run(work)
            except PeerMissing as reason:
                missing[peer.name] = str(reason)
    return [record for record in merge(records) if record.case.peer not in missing]


def _print_json(
    peers: Sequence[Peer], missing: dict[str, str], records: dict[str, list[Record]]
) -> None:
    for group in records.values():
        for record in group:
            print(json.dumps(record.as_dict()))
    for peer in peers:
        if peer.name in missing:
            print(json.dumps({"peer": peer.name, "missing": missing[peer.name]}))


_HEADS = (
    "peer",
    "ring",
    "size",
    "case",
    "descr",
    "table",
    "batch",
    "median",
    "best",
    "worst",
    "lost",
)
_WORDS = ("peer", "ring", "case", "table")


def _row(record: Record) -> tuple[str, ...]:
    case = record.case
    return (
        *(case.peer, case.ring, str(case.ring_size), case.name, str(case.descriptors)),
        *("indirect" if case.indirect else "", str(case.batch)),
        *(f"{ns:.1f}" for ns in (record.median, record.best, record.worst)),
        str(record.preempted),
    )


def _print_tables(
    peers: Sequence[Peer], missing: dict[str, str], records: dict[str, list[Record]], work: Work
) -> None:
    one, two = work.cpus
    print(
        f"Nanoseconds a buffer on {platform.machine()}: {work.rounds} rounds of {work.buffers} "
        f"buffers, fewer of several descriptors, at least {LEAST_BUFFERS} on two cores.\n"
        f"In turns; one thread on core {two}, two on {one} and {two}. "
        "lost: rounds that never had their core to themselves."
    )
    rows = {title: [_row(record) for record in group] for title, group in records.items()}
    every = [_HEADS, *(row for group in rows.values() for row in group)]
    widths = [max(len(row[column]) for row in every) for column in range(len(_HEADS))]
    for title, group in rows.items():
        if group:
            print(f"\n{title}")
            for row in (_HEADS, *group):
                print(_line(row, widths))
    print()
    for peer in peers:
        reason = missing.get(peer.name)
        print(f"{peer.name}: " + (f"MISSING: {reason}" if reason else f"version {peer.version}"))


def _line(row: tuple[str, ...], widths: Sequence[int]) -> str:
    cells = (
        cell.ljust(width) if head in _WORDS else cell.rjust(width)
        for head, cell, width in zip(_HEADS, row, widths, strict=True)
    )
    return "  ".join(cells)


if __name__ == "__main__":
    raise SystemExit(main())
