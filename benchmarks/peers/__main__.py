"""Build the peers, run them and virtring in turns, print both beside the target."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.peers import comparisons, engines
from benchmarks.peers.cache import Cache, PeerMissing
from benchmarks.peers.compare import Comparison, Outcome
from benchmarks.peers.ours import PYTHON
from benchmarks.peers.peer import Case, Peer, Record, Work, merge
from benchmarks.peers.plot import draw
from benchmarks.peers.report import Results, figures, markdown, replace_between, text, versions

#: Turns, rounds a turn.
FULL, QUICK = (5, 4), (2, 2)


def main(words: Sequence[str] | None = None) -> int:
    """Run the command. Returns 0, or 1 if virtring failed or nothing could be measured."""
    options = _parser().parse_args(words)
    cache = Cache.default() if options.cache is None else Cache(options.cache.absolute())
    turns, rounds = QUICK if options.quick else FULL
    work = Work(
        rounds=options.rounds or rounds,
        buffers=options.buffers,
        cpus=options.cpus or Work().cpus,
        only=tuple(options.only) or ("*",),
    )
    chosen = _chosen(work, options.quick)
    cases = _cases(chosen)
    if options.all:
        cases += [case for peer in engines() for case in peer.cases() if work.wants(case)]
        cases = list(dict.fromkeys(cases))
    wanted = {case.peer for case in cases}
    peers = [peer for peer in engines() if peer.name in wanted]
    results = Results(peers, work, options.turns or turns, _build(peers, cache))
    if options.build_only:
        print("\n".join(versions(results)))
        return int(len(results.missing) == len(peers))
    _take_turns(cases, results)
    _compare(chosen, results)
    _write(options, results)
    return int(PYTHON in results.missing or not results.records)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="what has a target, in a minute")
    parser.add_argument("--turns", type=_positive, help="turns of every case")
    parser.add_argument("--rounds", type=_positive, help="rounds of a case in a turn")
    parser.add_argument("--buffers", type=_positive, default=20_000, help="buffers a round")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="PATTERN",
        help="comparisons with such a case, as 'linux-ring/packed-*'; may be repeated",
    )
    parser.add_argument("--all", action="store_true", help="also the cases that are not compared")
    parser.add_argument("--cpus", type=_cpus, metavar="A,B", help="the two cores to pin to")
    parser.add_argument("--cache", type=Path, help="instead of $VIRTRING_PEERS_CACHE")
    parser.add_argument("--json", metavar="PATH", help="everything as JSON; - prints only that")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="a picture (matplotlib)")
    parser.add_argument(
        "--readme", type=Path, metavar="FILE.md", help="renew the table between the marks of a file"
    )
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


def _chosen(work: Work, quick: bool) -> dict[str, list[Comparison]]:
    return {
        title: [
            one
            for one in group
            if (work.wants(one.ours) or work.wants(one.peer))
            and (one.at_most is not None or not quick)
        ]
        for title, group in comparisons().items()
    }


def _cases(chosen: dict[str, list[Comparison]]) -> list[Case]:
    """Each case once, the two of a comparison close together."""
    every = (case for group in chosen.values() for one in group for case in (one.ours, one.peer))
    return list(dict.fromkeys(every))


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


def _take_turns(cases: Sequence[Case], results: Results) -> None:
    """One turn for every case, again and again. A peer that fails is added to ``missing``.

    Figures of one moment can be compared on a shared machine; hence not one peer after another.
    """
    peers = {peer.name: peer for peer in results.peers}
    records: list[Record] = []
    for turn in range(results.turns):
        print(f"turn {turn + 1} of {results.turns}: {len(cases)} cases", file=sys.stderr)
        for case in cases:
            if case.peer in results.missing:
                continue
            try:
                records += peers[case.peer].run(replace(results.work, only=(case.key,)))
            except PeerMissing as reason:
                results.missing[case.peer] = str(reason)
    results.records = [r for r in merge(records) if r.case.peer not in results.missing]


def _compare(chosen: dict[str, list[Comparison]], results: Results) -> None:
    found = {record.case: record for record in results.records}
    results.outcomes = {
        title: [
            Outcome(one, found[one.ours], found[one.peer], results.turns)
            for one in group
            if one.ours in found and one.peer in found
        ]
        for title, group in chosen.items()
    }


def _write(options: argparse.Namespace, results: Results) -> None:
    everything = json.dumps(results.as_dict(), indent=1)
    if options.json == "-":
        print(everything)
    else:
        print(text(results))
        if options.all:
            print(f"\n{figures(results)}")
        if options.json:
            Path(options.json).write_text(everything + "\n")
    if options.plot:
        try:
            draw(results, options.plot)
        except PeerMissing as reason:
            print(reason, file=sys.stderr)
            options.plot = None
    if options.readme:
        beside = options.readme.absolute().parent
        plot = os.path.relpath(options.plot.absolute(), beside) if options.plot else None
        replace_between(options.readme, markdown(results, plot))


if __name__ == "__main__":
    raise SystemExit(main())
