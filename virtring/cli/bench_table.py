"""The results as a table."""

from rich.table import Table

from virtring.cli.measure import Result, Settings

NAMES = {"pipe": "multiprocessing.Pipe", "queue": "multiprocessing.Queue"}


def make_table(results: list[Result], settings: Settings) -> Table:
    """A row a measurement; the last column compares with multiprocessing.Pipe."""
    cores = len(settings.cores)
    table = Table(
        title=f"buffers of {settings.size} bytes, {settings.seconds:g} s a line, "
        + (f"pairs on CPUs {settings.cores[0]} and {settings.cores[1]}" if cores > 1
           else "pairs on one CPU"),
        caption="median of several windows; passed: contents stay where they are; copied: also"
        " copied in and out; GB/s is what changed hands",
        title_justify="left",
        caption_justify="left",
    )
    for name in ("mode", "ring", "payload"):
        table.add_column(name, no_wrap=True)
    for name in ("batch", "ns/buffer", "fastest-slowest", "M buffers/s", "GB/s", "vs Pipe"):
        table.add_column(name, justify="right", no_wrap=True)
    pipe = next((result.median for result in results if result.ring == "pipe"), None)
    for result in results:
        other = NAMES.get(result.ring)
        table.add_row(
            "pair, one way" if other else result.mode,
            other or result.ring,
            result.payload,
            str(result.batch),
            number(result.median),
            f"{number(min(result.ns))}-{number(max(result.ns))}",
            f"{1e3 / result.median:.2f}",
            f"{result.size / result.median:.2f}",
            f"{number(pipe / result.median)}x" if pipe else "-",
        )
    return table


def number(value: float) -> str:
    """About three digits."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"
