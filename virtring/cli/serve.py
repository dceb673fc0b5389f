"""``virtring serve``: a device of ours for another process, such as QEMU, until it is stopped."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import TypeVar

import click

from virtring.cli import serve_devices
from virtring.cli.serve_devices import SERVICE
from virtring.cli.serve_pci import pci
from virtring.cli.serve_run import listening, run, start_log, vhost_user_hint
from virtring.device import Device
from virtring.devices.rng import Rng
from virtring.errors import InvalidArgument
from virtring.transport.vhost_user import VhostUserServer

Command = TypeVar("Command", bound=Callable[..., object])
Value = TypeVar("Value")


def read_by(
    read: Callable[[str], Value],
) -> Callable[[click.Context, click.Parameter, str | None], Value | None]:
    """For an option whose text ``read`` understands, or raises InvalidArgument."""

    def convert(ctx: click.Context, param: click.Parameter, text: str | None) -> Value | None:
        try:
            return None if text is None else read(text)
        except InvalidArgument as error:
            raise click.BadParameter(str(error), ctx, param) from None

    return convert


@click.group()
def serve() -> None:
    """Serve a device to another process, such as a virtual machine in QEMU.

    Over vhost-user it is the back end of a device that QEMU has; the command is its name. 'pci'
    serves whole PCI functions over vfio-user.

    \b
    The machine's memory must be shared:
      -object memory-backend-memfd,id=ram,size=1G,share=on -machine memory-backend=ram -m 1G

    \b
    Examples:
      virtring serve blk disk.img --vhost-user /tmp/disk.sock
      virtring serve net --tap tap0 --vhost-user /tmp/net.sock -v
      virtring serve pci blk:disk.img net:tap0 rng --socket /tmp/pci
    """


def over_vhost_user(command: Command) -> Command:
    """The options of every device that is served over vhost-user."""
    for option in (
        click.option(
            "--verbose", "-v", is_flag=True,
            help="Say what happens, on stderr, and first QEMU's options for this device.",
        ),
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

    \b
    For QEMU:
      -chardev socket,id=c,path=PATH -device vhost-user-blk-pci,chardev=c,num-queues=N
    """
    raw = None if serial is None else serial.encode()
    if raw is not None and len(raw) > 20:
        raise click.UsageError(f"--serial {serial!r} has {len(raw)} bytes; 20 fit")
    disk = serve_devices.disk(image, read_only=read_only, serial=raw, num_queues=num_queues)
    serve_device(disk, path, poll=poll, verbose=verbose)


@serve.command()
@over_vhost_user
def rng(path: Path, poll: bool, verbose: bool) -> None:
    """Serve random bytes.

    \b
    For QEMU:
      -chardev socket,id=c,path=PATH -device vhost-user-rng-pci,chardev=c
    """
    serve_device(nullcontext(Rng()), path, poll=poll, verbose=verbose)


@serve.command()
@over_vhost_user
@click.option("--tap", metavar="NAME",
              help="What it is connected to: a TAP interface of this host, made if it is not there."
              " Without it, packets go back to where they came from, as far as the driver"
              " wants to receive them.")
@click.option("--mac", callback=read_by(serve_devices.address), metavar="ADDRESS",
              help="Its address  [default: a random one; QEMU's netdev has its own]")
@click.option("--queue-pairs", type=click.IntRange(1, 64), default=1, show_default=True,
              metavar="N", help="Pairs of queues.")
@click.option("--mtu", type=click.IntRange(68, 65535), metavar="BYTES",
              help="Tell the driver how long a packet may be.")
def net(
    path: Path, poll: bool, verbose: bool, tap: str | None, mac: bytes | None, queue_pairs: int,
    mtu: int | None,
) -> None:
    """Serve a network interface.

    \b
    For QEMU; with N pairs of queues, what is in brackets too:
      -chardev socket,id=c,path=PATH -netdev vhost-user,id=n,chardev=c[,queues=N]
      -device virtio-net-pci,netdev=n,packed=on[,mq=on,vectors=2N+2]
    """
    interface = serve_devices.interface(tap, mac=mac, mtu=mtu, pairs=queue_pairs)
    serve_device(interface, path, poll=poll, verbose=verbose)


@serve.command()
@over_vhost_user
@click.option("--unix", "socket", metavar="SOCKET",
              type=click.Path(path_type=Path, dir_okay=False),
              help="Connect the console to a Unix socket, for one program at a time, instead of to"
              " standard input and output.")
@click.option("--port", "ports", multiple=True, metavar="NAME=SOCKET",
              help="Another port, which Linux calls /dev/virtio-ports/NAME, on a socket of its own."
              " May be given again.")
def console(
    path: Path, poll: bool, verbose: bool, socket: Path | None, ports: tuple[str, ...]
) -> None:
    """Serve a console, on this terminal.

    Linux calls it /dev/hvc0. What a guest writes while nobody is connected to a socket is lost.

    \b
    For QEMU 11; with --port, num_vqs is 4 and 2 more for each:
      -chardev socket,id=c,path=PATH -device vhost-user-test-device-pci,
         chardev=c,virtio-id=3,num_vqs=2,vq_size=64,config_size=12
    """
    named = []
    for text in ports:
        name, equals, where = text.partition("=")
        if not (name and equals and where):
            raise click.UsageError(f"--port {text!r}: it takes NAME=SOCKET")
        named.append((name, Path(where)))
    serve_device(serve_devices.terminal(socket, named), path, poll=poll, verbose=verbose)


@serve.command()
@over_vhost_user
@click.option("--target", callback=read_by(serve_devices.pages), default="0", metavar="SIZE",
              help="Memory that the guest is to do without, such as 64M, or a number of pages of"
              " 4096 bytes  [default: none]")
def balloon(path: Path, poll: bool, verbose: bool, target: int) -> None:
    """Serve a memory balloon: what the guest gives away is free for others here.

    With -v the size and the guest's statistics are said as they change.

    \b
    For QEMU 11:
      -chardev socket,id=c,path=PATH -device vhost-user-test-device-pci,
         chardev=c,virtio-id=5,num_vqs=5,vq_size=128,config_size=16
    """
    serve_device(serve_devices.balloon(target), path, poll=poll, verbose=verbose)


@serve.command()
@over_vhost_user
@click.option("--service", default=SERVICE, show_default=True, metavar="NAME",
              help="The name that is announced; Linux's sample client wants rpmsg-client-sample.")
def rpmsg(path: Path, poll: bool, verbose: bool, service: str) -> None:
    """Serve RPMsg: announce a service that sends every message back, and count them.

    \b
    For QEMU 11:
      -chardev socket,id=c,path=PATH -device vhost-user-test-device-pci,
         chardev=c,virtio-id=7,num_vqs=2,vq_size=256,config_size=0
    """
    serve_device(serve_devices.echo_service(service), path, poll=poll, verbose=verbose)


serve.add_command(pci)


def serve_device(
    made: AbstractContextManager[Device], path: Path, *, poll: bool, verbose: bool
) -> None:
    """Serve until SIGTERM or Ctrl-C, which end it cleanly."""
    start_log(verbose)
    with ExitStack() as stack:
        try:
            device = stack.enter_context(made)
        except InvalidArgument as error:
            raise click.UsageError(str(error)) from None
        server = stack.enter_context(
            listening(lambda: VhostUserServer(device, str(path), poll=poll), "--vhost-user")
        )
        run({"device": server}, hint=vhost_user_hint(device, path) if verbose else "")
