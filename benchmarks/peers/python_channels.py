"""Channels between two Python processes: what is on PyPI, what comes with Python, and our own.

Each kind is timed by ``python_channels_harness.py`` in a process of its own, in an environment of
the cache folder that has only that package (ours and Python's own run in this one). Message sizes
from 64 bytes to 1 MiB; the cases are explained in the harness. ``python -m
benchmarks.peers.python_channels`` prints a table of nanoseconds a message, with MB/s, and of round
trips with their percentiles.

In :class:`Case`, ``ring_size`` is the size of a message in bytes.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.cache import Cache, PeerMissing, command
from benchmarks.peers.peer import Case, Record, Work, _first_two_cpus

SIZES = (64, 4096, 65536, 1 << 20)
#: Kind -> its release on PyPI; "" for what is here already.
KINDS = {
    "virtring": "",
    "multiprocessing-queue": "",
    "multiprocessing-pipe": "",
    "seqpacket": "",
    "cloudtoid-interprocess": "3.0.2",
    "kickmsg": "0.9.2",
    "iceoryx2": "0.10.0",
}
#: What each can do beside ``send`` and ``round-trip``; ``array`` and ``batch`` up to 64 KiB.
EXTRA = {
    "virtring": ("batch", "array", "passed", "round-trip-passed"),
    "cloudtoid-interprocess": ("batch",),
    "kickmsg": ("passed", "round-trip-passed"),
    "iceoryx2": ("passed", "round-trip-passed"),
}
_HARNESS = Path(__file__).with_name("python_channels_harness.py")
_ROOT = Path(__file__).resolve().parent.parent.parent


class PythonChannel:
    """One kind of channel in two processes."""

    def __init__(self, kind: str) -> None:
        self.name = "virtring, channel" if kind == "virtring" else kind
        self.version = ""
        self._kind = kind
        self._python: str | None = None
        self._home: dict[str, str] = {}

    def build(self, cache: Cache) -> None:
        """Install the package into an environment of its own, if it is not one of Python's."""
        release = KINDS[self._kind]
        if not release:
            self._python = sys.executable
            self._home = {"PYTHONPATH": f"{_ROOT}:{':'.join(sys.path)}"}
            self.version = f"Python {sys.version.split()[0]}"
            if self._kind == "virtring":
                import virtring.channel

                self.version = virtring.__version__
            return
        place = cache.folder("venvs") / f"{self._kind}-{release}-py{sys.version_info.minor}"
        python, done = place / "bin/python", place / "installed"
        if not done.exists():
            command([sys.executable, "-m", "venv", "--clear", place], cache.root)
            pip: list[str | Path] = [python, "-m", "pip", "install", "-q", "--only-binary", ":all:"]
            command([*pip, f"{self._kind}=={release}"], cache.root)
            done.touch()
        self._python = str(python)
        self.version = release

    def cases(self) -> Sequence[Case]:
        """Every size by every way this kind has."""
        return [
            Case(self.name, "channel", size, name, batch=32 if name in ("batch", "array") else 1)
            for size in SIZES
            for name in ("send", "round-trip", *EXTRA.get(self._kind, ()))
            if not (name in ("batch", "array") and size > 65536)
        ]

    def time(self, case: Case, work: Work) -> dict[str, Any]:
        """What the harness says of one case; :exc:`PeerMissing` if it fails."""
        if self._python is None:
            raise PeerMissing(f"{self.name} was not built")
        words: list[str | Path] = [
            *(self._python, _HARNESS, f"--kind={self._kind}", f"--case={case.name}"),
            *(f"--size={case.ring_size}", f"--rounds={work.rounds}"),
            f"--cpus={work.cpus[0]},{work.cpus[1]}",
        ]
        said = command(words, _ROOT, self._home).strip().splitlines()
        line: dict[str, Any] = json.loads(said[-1])
        return line

    def run(self, work: Work) -> list[Record]:
        """Time the wanted cases, each in two processes of its own."""
        if work.cpus[0] == work.cpus[1]:
            raise PeerMissing("two cores are needed: some of the channels poll")
        records = []
        for case in filter(work.wants, self.cases()):
            line = self.time(case, work)
            tails = ((float(line["p99"]), float(line["p999"])),) if "p99" in line else ()
            samples = tuple(float(ns) for ns in line["samples"])
            records.append(Record(case, samples, tails=tails))
        return records


def channel_engines() -> dict[str, Sequence[PythonChannel]]:
    """Every kind of channel, to be run in turns; none of them is installed yet."""
    return {"channels between two Python processes": tuple(PythonChannel(kind) for kind in KINDS)}


def main() -> int:
    """Print what each costs, size by size."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.python_channels")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN")
    options = parser.parse_args()
    work = Work(options.rounds, cpus=_first_two_cpus(), only=tuple(options.only) or ("*",))
    (peers,) = channel_engines().values()
    cache, missing = Cache.default(), {}
    for peer in peers:
        try:
            peer.build(cache)
        except PeerMissing as error:
            missing[peer.name] = str(error)
    lines: dict[Case, list[dict[str, Any]]] = {}
    for size in SIZES:
        for _ in range(options.turns):
            for peer in peers:
                for case in peer.cases():
                    if peer.name in missing or case.ring_size != size or not work.wants(case):
                        continue
                    try:
                        lines.setdefault(case, []).append(peer.time(case, work))
                    except PeerMissing as error:
                        missing[f"{peer.name}, {case.name} of {size} bytes"] = str(error)
    _print(lines)
    for name, reason in missing.items():
        print(f"{name}: MISSING: {reason}")
    for peer in peers:
        if peer.name not in missing:
            print(f"{peer.name}: version {peer.version}")
    return int(not lines)


def _middle(values: Iterable[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]


def _print(lines: dict[Case, list[dict[str, Any]]]) -> None:
    head = f"{'bytes':>8} {'case':<18} {'channel':<24} {'best':>9} {'median':>9} {'MB/s':>8}"
    print(f"{head} {'p99':>9} {'p99.9':>9}   (ns a message; round trips: ns there and back)")
    for case, taken in lines.items():
        samples = [ns for line in taken for ns in line["samples"]]
        median = _middle(samples)
        rate = f"{case.ring_size / median * 1e3:8.0f}" if "p99" not in taken[0] else " " * 8
        tail = " ".join(
            f"{_middle(line[part] for line in taken):9.0f}"
            for part in ("p99", "p999")
            if part in taken[0]
        )
        print(
            f"{case.ring_size:>8} {case.name:<18} {case.peer[8:]:<24} {min(samples):9.0f}"
            f" {median:9.0f} {rate} {tail}"
        )


if __name__ == "__main__":
    raise SystemExit(main())
