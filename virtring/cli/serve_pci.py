"""``virtring serve pci``: whole PCI functions over vfio-user."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path

import click

from virtring.cli import serve_devices
from virtring.cli.serve_run import listening, run, start_log, vfio_user_hint
from virtring.device import Device
from virtring.devices.rng import Rng
from virtring.errors import InvalidArgument
from virtring.transport.unix import SocketServer
from virtring.transport.vfio_user import VfioUserServer

Made = AbstractContextManager[Device]


def _blk(detail: str) -> Made:
    if not detail:
        raise InvalidArgument("it takes an image: blk:disk.img")
    return serve_devices.disk(Path(detail))


def _rng(detail: str) -> Made:
    if detail:
        raise InvalidArgument("rng takes nothing behind a colon")
    return nullcontext(Rng())


def _net(detail: str) -> Made:
    return serve_devices.interface(detail or None)


def _console(detail: str) -> Made:
    return serve_devices.terminal(Path(detail) if detail else None)


def _balloon(detail: str) -> Made:
    return serve_devices.balloon(serve_devices.pages(detail) if detail else 0)


def _rpmsg(detail: str) -> Made:
    return serve_devices.echo_service(detail or serve_devices.SERVICE)


KINDS: dict[str, Callable[[str], Made]] = {
    "blk": _blk,
    "rng": _rng,
    "net": _net,
    "console": _console,
    "balloon": _balloon,
    "rpmsg": _rpmsg,
}


@click.command()
@click.argument("devices", metavar="DEVICE...", nargs=-1, required=True)
@click.option("--socket", "path", required=True, metavar="PATH",
              type=click.Path(path_type=Path, dir_okay=False),
              help="The socket, which is made, and removed at the end; of several devices the"
              " sockets are PATH.0, PATH.1 and so on.")
@click.option("--intx", is_flag=True,
              help="Interrupts by the function's pin only; without it, by MSI-X too.")
@click.option("--verbose", "-v", is_flag=True,
              help="Say what happens, on stderr, and first QEMU's options for these devices.")
def pci(devices: tuple[str, ...], path: Path, intx: bool, verbose: bool) -> None:
    """Serve PCI functions over vfio-user, one for each DEVICE.

    \b
    DEVICE is one of
      blk:IMAGE          the file or block device IMAGE as a disk
      rng                random bytes
      net, net:NAME      a network interface: an echo, or the TAP interface NAME
      console,           a console on this terminal, or on a Unix socket
      console:SOCKET
      balloon,           a memory balloon; what the guest is to do without: 64M,
      balloon:SIZE       or a number of pages of 4096 bytes
      rpmsg, rpmsg:NAME  an RPMsg service that echoes; its name

    Shared memory of the machine ('virtring serve --help') is used where it is; without it, all goes
    by messages, which is slow.

    \b
    For QEMU 10.1 and later:
      -device '{"driver": "vfio-user-pci", "socket": {"type": "unix", "path": "PATH"}}'
    """
    if [kind.partition(":")[0] for kind in devices if ":" not in kind].count("console") > 1:
        raise click.UsageError("this terminal is one console; others take a socket")
    start_log(verbose, several=len(devices) > 1)
    names = [f"{text.partition(':')[0]}.{number}" for number, text in enumerate(devices)]
    servers: dict[str, SocketServer] = {}
    with ExitStack() as stack:
        for number, (name, text) in enumerate(zip(names, devices, strict=True)):
            device = _enter(stack, text)
            where = f"{path}.{number}" if len(devices) > 1 else str(path)
            servers[name] = stack.enter_context(listening(_maker(device, where, intx), "--socket"))
        hints = [vfio_user_hint(server.path) for server in servers.values()]
        run(servers, hint="\n".join(hints) if verbose else "")


def _enter(stack: ExitStack, text: str) -> Device:
    """The device that ``text`` says."""
    kind, _, detail = text.partition(":")
    if kind not in KINDS:
        raise click.UsageError(f"DEVICE {text!r}: there are {', '.join(KINDS)}")
    try:
        return stack.enter_context(KINDS[kind](detail))
    except InvalidArgument as error:
        raise click.UsageError(f"DEVICE {text!r}: {error}") from None


def _maker(device: Device, path: str, intx: bool) -> Callable[[], SocketServer]:
    return lambda: VfioUserServer(device, path, vectors=0 if intx else None)
