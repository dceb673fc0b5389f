"""The results as a picture."""

from pathlib import Path

from virtring.cli.bench_table import NAMES, number
from virtring.cli.failure import Failed, one_line
from virtring.cli.measure import Result

COLOURS = {"split": "#3b6ea5", "packed": "#2a9d63"}
OTHERS = "#999999"


def draw(results: list[Result], path: str) -> None:
    """Bars of ns a buffer, shorter is better, with the range of the windows. Needs matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.2 + 0.45 * len(results)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    labels = [
        NAMES.get(result.ring)
        or f"{result.mode} {result.ring}, batch {result.batch}, {result.payload}"
        for result in results
    ]
    medians = [result.median for result in results]
    spread = [
        [result.median - min(result.ns) for result in results],
        [max(result.ns) - result.median for result in results],
    ]
    places = range(len(results))
    axes.barh(
        places, medians, xerr=spread, capsize=3, ecolor="#444444",
        color=[COLOURS.get(result.ring, OTHERS) for result in results],
    )
    for place, result in zip(places, results, strict=True):
        text = f" {number(result.median)} ns"
        axes.text(max(result.ns), place, text, va="center", fontsize=8)
    axes.set_xscale("log")
    axes.set_yticks(list(places), labels)
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set_xlabel("ns a buffer (logarithmic; shorter is better)")
    axes.set_title(f"Buffers of {results[0].size} bytes")
    try:
        figure.savefig(Path(path), dpi=120)
    except OSError as error:
        raise Failed(one_line(error)) from None
