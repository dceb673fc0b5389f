"""Runs the hot paths under callgrind and reads what it counted."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import virtring
from benchmarks import ROOT

#: Seconds; it takes half a minute on a machine of 2020.
_LONGEST = 1200


class CannotCount(Exception):
    """Callgrind is missing, failed, or counted something else than was asked."""


@dataclass(frozen=True)
class Count:
    """Instructions a buffer: ``own`` in virtring's modules, ``all`` with Python and libc."""

    own: float
    all: float


def count() -> dict[str, Count]:
    """Instructions a buffer of every step of :mod:`benchmarks.instructions.hot_paths`."""
    if shutil.which("valgrind") is None:
        raise CannotCount("not installed: valgrind")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spans = _run(folder)
        sums: dict[str, list[tuple[int, Count]]] = defaultdict(list)
        for number, span in enumerate(spans, 1):
            if span is not None:
                step, calls, buffers = span
                sums[step].append((calls * buffers, _read(folder / f"out.{number}")))
    return {step: _difference(*pair) for step, pair in sums.items()}


def _run(folder: Path) -> list[tuple[str, int, int] | None]:
    """One run; leaves a file for each span in ``folder``."""
    words = [
        *("valgrind", "--quiet", "--tool=callgrind", f"--callgrind-out-file={folder / 'out'}"),
        # The marks. Names in full, and no lines: the files are read by object only.
        *("--dump-before=getppid", "--dump-line=no", "--compress-strings=no"),
        *(sys.executable, "-m", "benchmarks.instructions.hot_paths"),
    ]
    # No threads of numpy's, and the same hashes in every run.
    steady = {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "PYTHONMALLOC": "pymalloc"}
    try:
        done = subprocess.run(
            words,
            cwd=ROOT,
            env={**os.environ, **steady},
            capture_output=True,
            text=True,
            check=False,
            timeout=_LONGEST,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotCount(f"valgrind: {error}") from error
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()[-5:]
        raise CannotCount(f"valgrind ended with {done.returncode}: {' | '.join(said)}")
    spans = [None if span is None else tuple(span) for span in json.loads(done.stdout)]
    files = len(list(folder.glob("out.*")))
    if files != len(spans):
        raise CannotCount(f"callgrind wrote {files} files for {len(spans)} marks")
    return spans


def _read(path: Path) -> Count:
    """The sums of one file, ours by the object that they were counted in.

    The format: ``ob=`` names the object of the cost lines behind it; a cost line is a position and
    a number. The line after ``calls=`` is the cost of what was called, which is listed by itself.
    """
    package = str(Path(virtring.__file__).resolve().parent)
    own = every = 0
    ours = called = False
    for line in path.read_text().splitlines():
        if line.startswith("ob="):
            ours = line[3:].startswith(package)
        elif line.startswith("calls="):
            called = True
        elif line[:1] in set("0123456789+-*"):
            if not called:
                cost = int(line.split()[1])
                every += cost
                own += cost if ours else 0
            called = False
    totals = [line for line in path.read_text().splitlines() if line.startswith("totals:")]
    if totals != [f"totals: {every}"]:
        raise CannotCount(f"{path.name}: {every} instructions read, but it says {totals}")
    return Count(own, every)


def _difference(few: tuple[int, Count], more: tuple[int, Count]) -> Count:
    """A buffer's share of what the longer count has more than the shorter one."""
    buffers = more[0] - few[0]
    return Count((more[1].own - few[1].own) / buffers, (more[1].all - few[1].all) / buffers)


def as_json(counts: Mapping[str, Count]) -> dict[str, dict[str, float]]:
    """The form of the baseline."""
    return {
        step: {"own": round(c.own, 3), "all": round(c.all, 3)} for step, c in counts.items()
    }
