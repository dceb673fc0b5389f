"""``virtring bench``: the options, and the order of the measurements."""

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from virtring.cli.bench_ipc import run_ipc
from virtring.cli.bench_local import LOOP_BATCH, run_call, run_loop
from virtring.cli.bench_pair import OUTSTANDING, PAIR_BATCH, run_pair
from virtring.cli.bench_table import make_table
from virtring.cli.cores import two_cores
from virtring.cli.failure import Failed, one_line
from virtring.cli.measure import Result, Settings, memory_size
from virtring.queue.config import MAX_SIZE
from virtring.spec.features import Feature

RINGS = ("split", "packed")
#: Ring features that can be chosen; the others change nothing here.
FEATURES = ("EVENT_IDX", "INDIRECT_DESC", "IN_ORDER", "ORDER_PLATFORM")
RUN: dict[str, Callable[[str, Settings], Result]] = {
    "loop": run_loop, "call": run_call, "pair": run_pair,
}
Job = tuple[str, Callable[[], Result]]


def finite(context: click.Context, option: click.Parameter, value: float) -> float:
    """A range lets "nan" through."""
    if math.isnan(value):
        raise click.BadParameter("it takes a number", context, option)
    return value


def feature_bits(context: click.Context, option: click.Parameter, value: str) -> Feature:
    """Names of ring features with commas between them, or "none", as bits."""
    features = Feature.VERSION_1
    for name in value.upper().replace("-", "_").split(","):
        if name in FEATURES:
            features |= Feature[name]
        elif name != "NONE":
            raise click.BadParameter(
                f"{name!r} is not one of {', '.join(FEATURES)} or none", context, option
            )
    return features


@click.command(
    epilog="Exit codes: 0 done, 1 failed (wrong data, a process that died), 2 wrong usage,"
    " 130 interrupted."
)
@click.option(
    "--ring", type=click.Choice([*RINGS, "both"]), default="both", show_default=True,
    help="Ring layout.",
)
@click.option(
    "--mode", type=click.Choice(["loop", "pair", "call", "all"]), default="all", show_default=True,
    help="loop: one process, by batches. pair: two processes, by batches, round trips."
    " call: one process, a buffer at a time.",
)
@click.option(
    "--batch", type=click.IntRange(1, MAX_SIZE), metavar="N",
    help=f"Buffers a batch.  [default: {LOOP_BATCH} for loop, {PAIR_BATCH} for pair]",
)
@click.option(
    "--size", type=click.IntRange(1, 1 << 30), default=64, show_default=True, metavar="BYTES",
    help="Bytes of a buffer.",
)
@click.option(
    "--seconds", type=click.FloatRange(0.01, 3600), callback=finite, default=0.5,
    show_default=True, metavar="S",
    help="Time for each line of the table.",
)
@click.option(
    "--features", callback=feature_bits, default="EVENT_IDX", show_default=True, metavar="NAMES",
    help=f"Ring features, with commas: {', '.join(FEATURES)}, or none.",
)
@click.option(
    "--compare/--no-compare", default=True, show_default=True,
    help="Measure multiprocessing.Pipe and Queue too.",
)
@click.option(
    "--json", "json_path", type=click.Path(dir_okay=False), metavar="PATH",
    help="Write the results as a JSON list of records; - for stdout, instead of the table.",
)
@click.option(
    "--plot", "plot_path", type=click.Path(dir_okay=False), metavar="FILE.png",
    help="Draw the results (needs virtring[plot]).",
)
def bench(
    ring: str,
    mode: str,
    batch: int | None,
    size: int,
    seconds: float,
    features: Feature,
    compare: bool,
    json_path: str | None,
    plot_path: str | None,
) -> None:
    """Measure the rings on this machine, over shared memory, and check the data they moved.

    Driver and device run in one process or in two, pinned to two cores. A figure is the median of
    several windows. "passed" means that buffers change hands and their contents stay where they
    are; "copied" that the contents are also copied in and out. After every window the device
    compares what it was given, and the driver what it got back.

    \b
    Examples:
      virtring bench
      virtring bench --ring packed --mode pair --batch 64
      virtring bench --size 4096 --json - > results.json
      virtring bench --plot rings.png
    """
    try:
        # The most that any of the measurements needs.
        memory_size(max(batch or LOOP_BATCH, PAIR_BATCH * OUTSTANDING), size, MAX_SIZE)
    except Failed as error:
        raise click.UsageError(str(error)) from None
    check_plot(plot_path)
    for path in (json_path, plot_path):
        check_target(path)
    settings = Settings(size, seconds, batch, features, two_cores())
    jobs = plan(RINGS if ring == "both" else (ring,), mode, compare, settings)
    results = run_all(jobs)
    records = json.dumps([result.record() for result in results], indent=2)
    if json_path == "-":
        click.echo(records)
    else:
        Console(width=None if sys.stdout.isatty() else 132).print(make_table(results, settings))
        if json_path is not None:
            Path(json_path).write_text(records + "\n")
    if plot_path is not None:
        from virtring.cli.bench_plot import draw

        draw(results, plot_path)


def plan(rings: tuple[str, ...], mode: str, compare: bool, settings: Settings) -> list[Job]:
    """What is to be measured, in order."""
    jobs: list[Job] = []
    modes = ("loop", "call", "pair") if mode == "all" else (mode,)
    for which in modes:
        for ring in rings:
            jobs.append((f"{which} {ring}", partial(RUN[which], ring, settings)))
    if "pair" in modes:
        for ring in rings:
            jobs.append((f"pair {ring}, copied", partial(run_pair, ring, settings, copied=True)))
    if compare:
        jobs.append(("multiprocessing.Pipe", partial(run_ipc, "pipe", settings)))
        jobs.append(("multiprocessing.Queue", partial(run_ipc, "queue", settings)))
    return jobs


def run_all(jobs: list[Job]) -> list[Result]:
    """Run the jobs one after the other, with a bar on stderr when that is a terminal."""
    results: list[Result] = []
    with progress_bar(len(jobs)) as step:
        for name, job in jobs:
            step(name, len(results))
            results.append(job())
        step("done", len(results))
    return results


@contextlib.contextmanager
def progress_bar(total: int) -> Iterator[Callable[[str, int], None]]:
    """Gives ``step(what, how many are done)``.

    The bar is drawn between measurements only: a thread that draws would disturb them.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:22}"), BarColumn(), TimeElapsedColumn())
    with Progress(
        *columns, console=console, auto_refresh=False, transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task("", total=total)

        def step(what: str, done: int) -> None:
            progress.update(task, description=what, completed=done, refresh=True)

        yield step


def check_plot(path: str | None) -> None:
    """Before any measurement: can the picture be drawn at all?"""
    if path is None:
        return
    if Path(path).suffix.lower() not in (".png", ".svg", ".pdf"):
        raise click.UsageError(f"--plot {path}: the name has to end in .png, .svg or .pdf")
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        raise click.UsageError(
            "--plot: matplotlib is missing: pip install virtring[plot]"
        ) from None


def check_target(path: str | None) -> None:
    """Before any measurement: can the file be written?"""
    if path is None or path == "-":
        return
    folder = Path(path).parent
    if not folder.is_dir():
        raise click.UsageError(f"{path}: the directory {folder} does not exist")
    if not os.access(path if Path(path).exists() else folder, os.W_OK):
        raise Failed(one_line(PermissionError(13, "Permission denied", path)))
