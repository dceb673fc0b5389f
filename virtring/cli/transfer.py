"""``virtring transfer``: the options, what is refused, and the progress bar."""

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from virtring.cli.failure import one_line
from virtring.cli.transfer_run import Task, Watch, transfer_file
from virtring.cli.wire import CHECKSUM, DESCRIPTORS
from virtring.queue.config import MAX_SIZE

UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
MAX_BLOCK = 64 << 20
#: Guest memory that all blocks together may take, bytes.
MEMORY_LIMIT = 2 << 30


def byte_count(context: click.Context, option: click.Parameter, value: str) -> int:
    """ "4096", "256KiB", "1M": bytes, with units of 1024."""
    match = re.fullmatch(r"(\d+)\s*([kmg]?)(i?b)?", value.strip(), re.IGNORECASE | re.ASCII)
    size = int(match[1]) * UNITS[match[2].lower()] if match else 0
    if not 1 <= size <= MAX_BLOCK:
        raise click.BadParameter(
            f"{value!r} is not a size from 1 to 64MiB, like 4096, 256KiB or 1MiB", context, option
        )
    return size


@click.command(
    epilog="Exit codes: 0 done, 1 failed on the way, 2 wrong usage (nothing was done),"
    " 130 interrupted. Unless it is 0, DST is what it was before."
)
@click.argument("src", type=click.Path(path_type=Path))
@click.argument("dst", type=click.Path(path_type=Path))
@click.option(
    "--ring", type=click.Choice(["split", "packed"]), default="split", show_default=True,
    help="Ring layout.",
)
@click.option(
    "--block", callback=byte_count, default="256KiB", show_default=True, metavar="SIZE",
    help="Bytes of the file a buffer.",
)
@click.option(
    "--num", type=click.IntRange(2, MAX_SIZE), default=64, show_default=True, metavar="N",
    help="Ring entries, two a buffer; a split ring takes a power of two.",
)
@click.option("--force", "-f", is_flag=True, help="Replace DST if it exists.")
def transfer(src: Path, dst: Path, ring: str, block: int, num: int, force: bool) -> None:
    """Copy the file SRC to DST through a virtqueue between two processes.

    One process reads SRC straight into shared buffers, the other one writes DST straight from
    them. Both compute a checksum; DST gets its name when they agree and the data is on disk.

    \b
    Examples:
      virtring transfer disk.img copy.img
      virtring transfer disk.img copy.img --ring packed --block 1MiB --num 32 --force
    """
    size, mode = check_source(src)
    check_target(src, dst, force)
    if ring == "split" and num & (num - 1):
        raise click.UsageError(f"--num {num}: a split ring takes a power of two")
    if num // DESCRIPTORS * block > MEMORY_LIMIT:
        raise click.UsageError(
            f"--num {num} with --block {block} takes more than {MEMORY_LIMIT >> 30} GiB of memory"
        )
    task = Task(src, dst, size, mode, ring == "packed", block, num, force)
    with progress_bar(size) as watch:
        outcome = transfer_file(task, watch)
    rate = outcome.size / 1e6 / max(outcome.seconds, 1e-9)
    click.echo(
        f"{dst}: {outcome.size} bytes in {outcome.seconds:.2f} s, {rate:.0f} MB/s over a {ring}"
        f" ring; {CHECKSUM} {outcome.checksum} at both ends"
    )


def check_source(src: Path) -> tuple[int, int]:
    """Size and mode of a file that can be sent; UsageError for anything else."""
    try:
        # Without O_NONBLOCK a FIFO would wait here for its writer.
        fd = os.open(src, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise click.UsageError(f"cannot read SRC: {one_line(error)}") from None
    try:
        found = os.fstat(fd)
    finally:
        os.close(fd)
    if not stat.S_ISREG(found.st_mode):
        what = "a directory" if stat.S_ISDIR(found.st_mode) else "not a regular file"
        raise click.UsageError(f"cannot read SRC: {src} is {what}")
    return found.st_size, found.st_mode


def check_target(src: Path, dst: Path, force: bool) -> None:
    """UsageError when DST cannot or must not be written."""
    folder = dst.parent
    if not folder.is_dir():
        raise click.UsageError(f"cannot write DST: the directory {folder} does not exist")
    if dst.is_dir():
        raise click.UsageError(f"cannot write DST: {dst} is a directory; name the file in it")
    if dst.exists() and os.path.samefile(src, dst):
        raise click.UsageError(f"SRC and DST are the same file: {dst}")
    if os.path.lexists(dst):
        if not force:
            raise click.UsageError(f"{dst} exists; --force replaces it")
        if dst.exists() and not dst.is_file():
            raise click.UsageError(f"cannot write DST: {dst} is not a regular file")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise click.UsageError(f"cannot write DST: no permission to make files in {folder}")


@contextlib.contextmanager
def progress_bar(total: int) -> Iterator[Watch]:
    """Gives a function to call with the bytes done; draws on stderr when that is a terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("transfer"), BarColumn(), DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
    )
    with Progress(
        *columns, console=console, auto_refresh=False, transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task("", total=max(total, 1))

        def watch(done: int) -> None:
            progress.update(task, completed=done, refresh=True)

        yield watch
