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
        """The median over the rounds of ours by theirs: what slows a round down slows both."""
        return statistics.median(self.ratios)

    @property
    def ratios(self) -> tuple[float, ...]:
        """Of every round."""
        return tuple(one / two for one, two in zip(self.ours, self.theirs, strict=True))


def figure(value: float) -> str:
    """Three digits or more: 4320, 17.6, 0.93."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def spread(values: Sequence[float]) -> str:
    """Median and, with several rounds, between which values the middle half of them lies."""
    middle = figure(statistics.median(values))
    if len(values) == 1:
        return middle
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle} ({figure(low)}-{figure(high)})"


def show(rows: Sequence[Row], markdown: bool = False) -> None:
    """Print the table: medians over the rounds with the middle half of them."""
    names = ("what", "unit", "virtring", "the other", "ratio", "target")
    cells = [
        (
            row.what, row.unit, spread(row.ours), spread(row.theirs),
            spread(row.ratios), f"{row.target:.2f}",
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
