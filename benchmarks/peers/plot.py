"""The comparisons that have a target, as a picture."""

from pathlib import Path

from benchmarks.peers.cache import PeerMissing
from benchmarks.peers.report import Results, peer_name

_MET, _MISSED, _TARGET, _RANGE = "#2a9d63", "#c8553d", "#222222", "#666666"


def draw(results: Results, path: Path) -> None:
    """Bars of virtring / peer, shorter is better, each with its target. Needs matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PeerMissing("no picture: matplotlib is not installed") from error

    shown = [o for o in results.all_outcomes if o.comparison.at_most is not None]
    if not shown:
        raise PeerMissing("no picture: nothing with a target was measured")
    figure = Figure(figsize=(9, 1.2 + 0.34 * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places = range(len(shown))
    ratios = [o.ratio for o in shown]
    spread = [
        [max(0.0, o.ratio - o.spread[0]) for o in shown],
        [max(0.0, o.spread[1] - o.ratio) for o in shown],
    ]
    axes.barh(
        places,
        ratios,
        xerr=spread,
        ecolor=_RANGE,
        capsize=2,
        color=[_MET if o.met else _MISSED for o in shown],
    )
    targets = [o.comparison.at_most or 0.0 for o in shown]
    axes.plot(
        targets, places, linestyle="", marker="|", markersize=14, color=_TARGET, label="target"
    )
    axes.axvline(1, color=_RANGE, linewidth=0.8, linestyle=":")
    for place, outcome, at_most in zip(places, shown, targets, strict=True):
        end = max(outcome.ratio, outcome.spread[1], at_most)
        ns = f"   {outcome.ours.median:.3g} : {outcome.peer.median:.3g} ns"
        axes.text(end, place, ns, va="center", fontsize=7)
    names = [f"{o.comparison.name}\nbeside {peer_name(o)}" for o in shown]
    axes.set_yticks(list(places), names, fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.margins(x=0.25)
    axes.set_xlabel("virtring / peer, logarithmic: shorter is better, 1 is as fast")
    axes.legend(loc="lower right", fontsize=7)
    figure.savefig(path, dpi=80)
