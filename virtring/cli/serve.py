"""``virtring serve``: a device of ours for another process, such as QEMU, until it is stopped."""

import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from virtring.cli.failure import one_line
from virtring.device import Device
from virtring.devices.blk import Blk
from virtring.devices.rng import Rng
from virtring.errors import InvalidArgument
from virtring.transport.vhost_user import VhostUserServer

Command = TypeVar("Command", bound=Callable[..., object])


@click.group()
def serve() -> None:
    """Serve a device to another process, such as a virtual machine in QEMU.

    \b
    Examples:
      virtring serve blk disk.img --vhost-user /tmp/disk.sock
      virtring serve rng --vhost-user /tmp/rng.sock -v
    """


def over_vhost_user(command: Command) -> Command:
    """The options of every device that is served over vhost-user."""
    for option in (
        click.option("--verbose", "-v", is_flag=True, help="Say what happens, on stderr."),
        click.option(
            "--poll", is_flag=True,
            help="Look at the rings all the time instead of waiting for kicks: quicker answers, but"
            " it takes a whole CPU.",
        ),
        click.option(
            "--vhost-user", "path", required=True, metavar="PATH",
            type=click.Path(path_type=Path, dir_okay=False),
            help="The socket, which is made, and removed at the end.",
        ),
    ):
        command = option(command)
    return command


@serve.command()
@click.argument("image", type=click.Path(path_type=Path, exists=True))
@over_vhost_user
@click.option("--num-queues", type=click.IntRange(1, 64), default=1, show_default=True, metavar="N",
              help="Request queues.")
@click.option("--read-only", is_flag=True, help="Refuse writes.")
@click.option("--serial", metavar="TEXT", help="Serial number  [default: IMAGE's name]")
def blk(
    image: Path, path: Path, poll: bool, verbose: bool, num_queues: int, read_only: bool,
    serial: str | None,
) -> None:
    """Serve the file or block device IMAGE as a disk.

    For QEMU: -chardev socket,id=c,path=PATH -device vhost-user-blk-pci,chardev=c,num-queues=N, with
    shared memory (-object memory-backend-memfd,share=on and -machine memory-backend=...).
    """
    raw = None if serial is None else serial.encode()
    if raw is not None and len(raw) > 20:
        raise click.UsageError(f"--serial {serial!r} has {len(raw)} bytes; 20 fit")
    try:
        disk = Blk(image, read_only=read_only, serial=raw, num_queues=num_queues)
    except InvalidArgument as error:
        raise click.UsageError(str(error)) from None
    try:
        serve_device(disk, path, poll=poll, verbose=verbose)
    finally:
        disk.close()


@serve.command()
@over_vhost_user
def rng(path: Path, poll: bool, verbose: bool) -> None:
    """Serve random bytes.

    For QEMU: -chardev socket,id=c,path=PATH -device vhost-user-rng-pci,chardev=c, with memory that
    is shared (-object memory-backend-memfd,share=on and -machine memory-backend=...).
    """
    serve_device(Rng(), path, poll=poll, verbose=verbose)


def serve_device(device: Device, path: Path, *, poll: bool, verbose: bool) -> None:
    """Serve until SIGTERM or Ctrl-C, which end it cleanly."""
    if verbose:
        logging.basicConfig(stream=sys.stderr, format="%(message)s")
        logging.getLogger("virtring").setLevel(logging.DEBUG)
    else:
        logging.basicConfig(stream=sys.stderr, format="virtring: %(message)s")
    try:
        server = VhostUserServer(device, str(path), poll=poll)
    except InvalidArgument as error:
        raise click.UsageError(f"--vhost-user: {one_line(error).partition(': ')[2]}") from None
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: server.stop())
        click.echo(f"serving at {path}", err=True)
        server.run()
    finally:
        server.close()
