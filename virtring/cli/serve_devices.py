"""The devices of ``virtring serve``, each with what goes with it while it is served."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from time import sleep

import click

from virtring.cli.serve_console import on_socket, on_stdio
from virtring.device import Device
from virtring.devices.balloon import Balloon
from virtring.devices.blk import Blk
from virtring.devices.console import Console
from virtring.devices.console_port import Port
from virtring.devices.net import Net
from virtring.devices.net_backend import Echo, Tap
from virtring.errors import InvalidArgument, NotSupported
from virtring.rpmsg import DeviceBus, Endpoint, RpmsgDevice, RpmsgDriver
from virtring.spec.balloon import BALLOON_PFN_SHIFT, BalloonStat

log = logging.getLogger(__name__)

PAGE = 1 << BALLOON_PFN_SHIFT
UNITS = {"k": 10, "m": 20, "g": 30, "t": 40}
#: Seconds between two looks at a balloon.
NAP = 1.0
#: Announced unless another name is given.
SERVICE = "virtring-echo"
#: Seconds from the driver's start to the announcement. Linux 6.1 takes it in its interrupt, where
#: it must not meet a lock that is held. Drivers are bound under many, on a slow guest for long.
SETTLE = 4.0


def pages(text: str) -> int:
    """Pages of 4096 bytes: ``512`` of them, or as many as ``64M`` takes."""
    digits, unit = (text[:-1], text[-1].lower()) if text[-1:].isalpha() else (text, "")
    if not digits.isascii() or not digits.isdigit() or (unit and unit not in UNITS):
        raise InvalidArgument(f"{text!r} is no number of pages and no size such as 64M")
    count = (int(digits) << UNITS[unit]) // PAGE if unit else int(digits)
    if count >= 1 << 32:
        raise InvalidArgument(f"{text!r} is too big for a balloon; the most is 16T")
    return count


def address(text: str) -> bytes:
    """The 6 bytes of an Ethernet address, such as ``52:54:00:12:34:56``."""
    parts = text.split(":")
    try:
        mac = bytes(int(part, 16) for part in parts if len(part) == 2)
    except ValueError:
        mac = b""
    if len(mac) != 6 or len(parts) != 6 or mac[0] & 1:
        raise InvalidArgument(f"{text!r} is no address such as 52:54:00:12:34:56")
    return mac


@contextmanager
def disk(
    image: Path, *, read_only: bool = False, serial: bytes | None = None, num_queues: int = 1
) -> Iterator[Device]:
    """A file or block device as a disk."""
    with closing(Blk(image, read_only=read_only, serial=serial, num_queues=num_queues)) as device:
        yield device


@contextmanager
def interface(
    tap: str | None, *, mac: bytes | None = None, mtu: int | None = None, pairs: int = 1
) -> Iterator[Device]:
    """A network interface with a TAP interface behind it, or an echo."""
    with closing(Echo() if tap is None else Tap(tap)) as backend:
        yield Net(backend, mac=mac, mtu=mtu, pairs=pairs)


@contextmanager
def terminal(socket: Path | None, ports: Sequence[tuple[str, Path]] = ()) -> Iterator[Device]:
    """A console on this terminal or a socket, and further ports by name, on a socket each."""
    first = Port("console", console=True)
    others = [Port(name, opened=False) for name, _ in ports]
    device = Console([first, *others])
    with ExitStack() as stack:
        stack.enter_context(on_stdio(first) if socket is None else on_socket(first, socket))
        for port, (_, path) in zip(others, ports, strict=True):
            stack.enter_context(on_socket(port, path))
        yield device


@contextmanager
def balloon(target: int = 0) -> Iterator[Device]:
    """A balloon that is to have ``target`` pages; says in the log how far it is."""
    device = Balloon(on_stats=say_stats)
    device.set_target(target)
    ended = Event()
    watcher = Thread(target=_watch, args=(device, ended), name="balloon", daemon=True)
    watcher.start()
    try:
        yield device
    finally:
        ended.set()
        watcher.join()


def say_stats(stats: Mapping[int, int]) -> None:
    """Those that are known, in the log."""
    known = [f"{BalloonStat(tag).name.lower()} {value}" for tag, value in sorted(stats.items())]
    log.info("balloon: statistics: %s", ", ".join(known) or "none")


def _watch(device: Balloon, ended: Event) -> None:
    said = None
    while not ended.wait(NAP):
        now = (device.actual, device.target, device.discarded)
        if now != said:
            log.info("balloon: %d of %d pages; %d bytes were given back", *now)
            said = now
        with suppress(NotSupported):
            device.request_stats()


class Rpmsg(RpmsgDevice):
    """Announces its services a moment after the driver's start."""

    def started(self, bus: DeviceBus) -> None:
        sleep(SETTLE)
        super().started(bus)


@contextmanager
def echo_service(name: str = SERVICE) -> Iterator[Device]:
    """An RPMsg service that sends every message back; says at the end how many there were."""
    count = size = 0

    def echo(ept: Endpoint, data: bytes, src: int) -> None:
        nonlocal count, size
        count += 1
        size += len(data)
        ept.sendto(data, src)

    driver = RpmsgDriver(name, echo, probe=lambda channel: log.info("rpmsg: %r is there", channel))
    try:
        # The driver may announce a channel of that name, too.
        yield Rpmsg(services=[driver], drivers=[driver])
    finally:
        click.echo(f"{name}: {count} messages, {size} bytes echoed", err=True)
