"""One comparison of the table: what we reached and what the other implementation did."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """``ours`` and ``theirs`` are a figure a round, more is better; round i of both ran in turn."""

    what: str
    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    unit: str
    target: float

    @property
    def ratio(self) -> float:
        """The median of ours by the median of theirs."""
        return statistics.median(self.ours) / statistics.median(self.theirs)


def figure(value: float) -> str:
    """Three digits or more: 4320, 17.6, 0.93."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def spread(values: Sequence[float]) -> str:
    """Median and, with several rounds, the range."""
    middle = figure(statistics.median(values))
    if len(values) == 1:
        return middle
    return f"{middle} ({figure(min(values))}-{figure(max(values))})"


def show(rows: Sequence[Row], markdown: bool = False) -> None:
    """Print the table: medians with the range of the rounds, and the ratio of the medians."""
    names = ("what", "unit", "virtring", "the other", "ratio", "target")
    cells = [
        (
            row.what, row.unit, spread(row.ours), spread(row.theirs),
            f"{row.ratio:.2f}", f"{row.target:.2f}",
        )
        for row in rows
    ]
    if markdown:
        for line in (names, ("---",) * len(names), *cells):
            print("| " + " | ".join(line) + " |")
        return
    table = Table(*names)
    for cell in cells:
        table.add_row(*cell)
    Console().print(table)
