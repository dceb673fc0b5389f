"""Count the instructions of the hot paths and compare them with the baseline.

Only what runs inside virtring's own modules is judged (own); with Python and libc (all) it depends
on how Python was built. Fails when a step takes more than the baseline allows, or is not in it. A
build by another compiler, Cython or Python is printed but not judged, unless --strict says so.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.instructions.build import differences, facts
from benchmarks.instructions.callgrind import CannotCount, Count, as_json, count

BASELINE = Path(__file__).parent / "baseline.json"
#: The share by which a step may grow unnoticed.
TOLERANCE = 0.03


def main(words: Sequence[str] | None = None) -> int:
    """Run the command. Returns 0; 1 when a step grew; 2 when nothing could be counted."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__)
    parser.add_argument("--update", action="store_true", help="make these counts the baseline")
    parser.add_argument("--strict", action="store_true", help="judge whatever the compiler")
    parser.add_argument("--baseline", type=Path, default=BASELINE, help="instead of the committed")
    options = parser.parse_args(words)
    here = facts()
    try:
        counts = count()
    except CannotCount as reason:
        print(reason, file=sys.stderr)
        return 2
    path: Path = options.baseline
    old = json.loads(path.read_text()) if path.exists() else {"build": {}, "steps": {}}
    worse = _print(counts, old["steps"])
    if options.update:
        text = json.dumps({"build": here, "steps": as_json(counts)}, indent=1)
        path.write_text(text + "\n")
        print(f"\n{path.name} renewed: {_words(here)}")
        return 0
    return _judge(worse, here, old["build"], options.strict)


def _print(counts: dict[str, Count], steps: dict[str, dict[str, float]]) -> list[str]:
    """The table; returns a line for each step that grew too much or is not in the baseline."""
    worse = []
    width = max(len(step) for step in counts)
    print("Instructions a buffer")
    print(f"{'':{width}}  {'own':>8}  {'baseline':>8}  {'':>7}  {'all':>8}  {'baseline':>8}")
    for step, here in counts.items():
        before = steps.get(step)
        if before is None:
            print(f"{step:{width}}  {here.own:8.2f}  {'':8}  {'new':>7}  {here.all:8.2f}")
            worse.append(f"{step}: not in the baseline")
            continue
        change = here.own / before["own"] - 1
        mark = f"{change:+7.1%}" if abs(change) >= 0.0005 else f"{'=':>7}"
        print(
            f"{step:{width}}  {here.own:8.2f}  {before['own']:8.2f}  {mark}  "
            f"{here.all:8.2f}  {before['all']:8.2f}"
        )
        if change > TOLERANCE:
            worse.append(f"{step}: {here.own:.2f} instead of {before['own']:.2f}, {change:+.1%}")
    for step in sorted(set(steps) - set(counts)):
        worse.append(f"{step}: in the baseline, but not counted any more")
    return worse


def _judge(worse: list[str], here: dict[str, str], before: dict[str, str], strict: bool) -> int:
    print(f"\nBuilt by {_words(here)}; baseline: {_words(before)}.")
    if not worse:
        print(f"Nothing grew by more than {TOLERANCE:.0%}.")
        return 0
    print(f"Grew by more than {TOLERANCE:.0%}:", *worse, sep="\n  ")
    apart = differences(before, here)
    if apart and not strict:
        print(f"NOT JUDGED, as the build is another one: {'; '.join(apart)}.")
        return 0
    print("If it is meant: python -m benchmarks.instructions --update, and say why in the commit.")
    return 1


def _words(build: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in build.items()) or "none"


if __name__ == "__main__":
    raise SystemExit(main())
