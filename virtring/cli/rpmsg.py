"""``virtring rpmsg``: the options, and the table."""

import json
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from virtring.cli.bench import check_target
from virtring.cli.cores import two_cores
from virtring.cli.rpmsg_run import OUTSTANDING, Task, measure
from virtring.rpmsg.wire import MAX_PAYLOAD

RINGS = ("split", "packed")
#: Guest memory that all buffers may take, bytes.
MEMORY_LIMIT = 2 << 30


@click.command(
    epilog="Exit codes: 0 done, 1 failed (also when a message was lost, changed or out of order),"
    " 2 wrong usage, 130 interrupted."
)
@click.option(
    "--count", type=click.IntRange(1, 1 << 32), default=20000, show_default=True, metavar="N",
    help="Round trips to measure, and then messages to stream.",
)
@click.option(
    "--size", type=click.IntRange(1, MAX_PAYLOAD), default=64, show_default=True, metavar="BYTES",
    help="Payload of a message; the buffers have 512 bytes, or what the message needs.",
)
@click.option(
    "--batch", type=click.IntRange(1, 32768 // OUTSTANDING), default=32, show_default=True,
    metavar="N", help="Messages sent at once when streaming.",
)
@click.option(
    "--ring", type=click.Choice([*RINGS, "both"]), default="both", show_default=True,
    help="Ring layout.",
)
@click.option(
    "--json", "json_path", type=click.Path(dir_okay=False), metavar="PATH",
    help="Write the results as a JSON list of records; - for stdout, instead of the table.",
)
def rpmsg(count: int, size: int, batch: int, ring: str, json_path: str | None) -> None:
    """Send RPMsg messages to another process, which echoes them, and measure.

    The other process is the device: it announces an echo service, and this one, the driver, finds
    it by its name. First one message at a time there and back, then batches, a few of them on
    their way at once. Every message is numbered, and checked when it comes back.

    \b
    Examples:
      virtring rpmsg
      virtring rpmsg --ring packed --size 496 --batch 64 --count 1000000
      virtring rpmsg --json - > rpmsg.json
    """
    tasks = [
        Task(count, size, batch, layout == "packed", two_cores())
        for layout in (RINGS if ring == "both" else (ring,))
    ]
    if 2 * tasks[0].num * tasks[0].buf_size > MEMORY_LIMIT:
        raise click.UsageError(
            f"--batch {batch} with --size {size} takes more than {MEMORY_LIMIT >> 30} GiB of memory"
        )
    check_target(json_path)
    records = [measure(task) for task in tasks]
    text = json.dumps(records, indent=2)
    if json_path == "-":
        click.echo(text)
        return
    table = Table(title=f"{count} messages of {size} bytes there and back, two processes")
    for name in ("ring", "median", "p99", "p99.9", "batch", "messages/s", "MB/s each way"):
        table.add_column(name, justify="left" if name == "ring" else "right")
    for row in records:
        table.add_row(
            row["ring"],
            *(f"{row[name]:.1f} us" for name in ("median_us", "p99_us", "p999_us")),
            str(batch),
            f"{row['messages_per_second']:,.0f}",
            f"{row['bytes_per_second'] / 1e6:.0f}",
        )
    Console().print(table)
    if json_path is not None:
        Path(json_path).write_text(text + "\n")
