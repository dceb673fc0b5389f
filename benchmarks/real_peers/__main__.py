"""Beside real peers, in turns: ``python -m benchmarks.real_peers [--rounds N] NAME...``.

NAME is a module of this folder with ``run(rounds)``. The peers are those of the interop tests:
``python -m tests.interop.setup`` brings them.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable

import pytest

from benchmarks.real_peers.row import Row, show


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_peers", description=__doc__)
    parser.add_argument("names", nargs="+", metavar="NAME", help="such as driver, blk, net")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side [5]")
    parser.add_argument("--markdown", action="store_true", help="a table for a README")
    arguments = parser.parse_args()
    rows: list[Row] = []
    for name in arguments.names:
        module = importlib.import_module(f"benchmarks.real_peers.{name}")
        run: Callable[[int], list[Row]] = module.run
        try:
            rows += run(arguments.rounds)
        except (pytest.skip.Exception, pytest.fail.Exception) as error:
            sys.exit(f"{name}: {error}")
    show(rows, arguments.markdown)


if __name__ == "__main__":
    main()
