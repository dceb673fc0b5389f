"""Nanoseconds a buffer, beside pytest-benchmark's own table. No benchmark fails for being slow."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Behind the installed packages: see tests/conftest.py.
ROOT = str(Path(__file__).resolve().parent.parent)
if ROOT not in sys.path:
    sys.path.append(ROOT)

from benchmarks.loops import Measure  # noqa: E402

_ROWS: list[tuple[str, Any, int]] = []


@pytest.fixture
def measure(benchmark: Any, request: pytest.FixtureRequest) -> Measure:
    """``measure(function, n)`` times a function that moves n buffers, and reports one of them."""

    def run(function: Callable[[], object], n: int) -> None:
        benchmark(function)
        stats = getattr(benchmark.stats, "stats", None)
        if stats is None:  # --benchmark-disable: it ran once
            return
        benchmark.extra_info["buffers"] = n
        benchmark.extra_info["ns_per_buffer"] = round(stats.median / n * 1e9, 2)
        benchmark.extra_info["ns_per_buffer_min"] = round(stats.min / n * 1e9, 2)
        question = request.path.stem.removeprefix("bench_")
        name = f"{question}: {request.node.name.removeprefix('test_')}"
        _ROWS.append((name, stats, n))

    return run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # A round long enough that reading the clock does not count.
    for item in items:
        item.add_marker(pytest.mark.benchmark(min_time=0.001))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _ROWS:
        return
    out = terminalreporter
    width = max(len(name) for name, _, _ in _ROWS)
    out.section("nanoseconds a buffer")
    out.write_line(f"{'':{width}}  {'median':>9}  {'least':>9}  {'M buffers/s':>11}")
    for name, stats, n in _ROWS:
        median, least = stats.median / n * 1e9, stats.min / n * 1e9
        out.write_line(f"{name:{width}}  {median:9.2f}  {least:9.2f}  {1e3 / median:11.2f}")
