"""Runs what ``virtring serve`` serves: sockets, threads, signals, and what is said meanwhile."""

import json
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import click

from virtring.cli.failure import one_line
from virtring.device import Device
from virtring.devices.net import Net
from virtring.errors import InvalidArgument
from virtring.spec.ids import DeviceID
from virtring.transport.unix import SocketServer


def start_log(verbose: bool, *, several: bool = False) -> None:
    """Say on stderr what goes wrong, or all that happens; ``several``: and in which thread."""
    who = "%(threadName)s: " if several else ""
    if verbose:
        logging.basicConfig(stream=sys.stderr, format=f"{who}%(message)s")
        logging.getLogger("virtring").setLevel(logging.DEBUG)
    else:
        logging.basicConfig(stream=sys.stderr, format=f"virtring: {who}%(message)s")


@contextmanager
def listening(make: Callable[[], SocketServer], option: str) -> Iterator[SocketServer]:
    """The server, until it is closed; a path that cannot be is wrong usage of ``option``."""
    try:
        server = make()
    except InvalidArgument as error:
        raise click.UsageError(f"{option}: {one_line(error).partition(': ')[2]}") from None
    try:
        yield server
    finally:
        server.close()


def run(servers: Mapping[str, SocketServer], *, hint: str = "") -> None:
    """Serve, a thread each, until SIGTERM or Ctrl-C, or until one of them fails; then none is left.

    Names are those of the threads. ``hint`` is said first, with the paths.
    """
    failures: list[BaseException] = []

    def stop() -> None:
        for server in servers.values():
            server.stop()

    def serve(server: SocketServer) -> None:
        try:
            server.run()
        except BaseException as error:
            failures.append(error)
        finally:
            stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop())
    threads = [
        Thread(target=serve, args=(server,), name=name) for name, server in servers.items()
    ]
    # They listen already; what their threads say comes later.
    for server in servers.values():
        click.echo(f"serving at {server.path}", err=True)
    if hint:
        click.echo(hint, err=True)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in (signal.SIGTERM, signal.SIGINT):
        # It is ending; what it was told to end with is about to be closed.
        signal.signal(number, signal.SIG_IGN)
    if failures:
        raise failures[0]


def vhost_user_hint(device: Device, path: Path) -> str:
    """What QEMU takes to be the front end of this device."""
    queues, id = len(device.queues), int(device.device_id)
    if isinstance(device, Net):
        pairs = len(device.pairs)
        several = f",queues={pairs}" if pairs > 1 else ""
        more = f",mq=on,vectors={2 * pairs + 2}" if pairs > 1 else ""
        words = f"-netdev vhost-user,id=n,chardev=c{several} -device virtio-net-pci,netdev=n{more}"
    elif id == DeviceID.BLOCK:
        words = f"-device vhost-user-blk-pci,chardev=c,num-queues={queues}"
    elif id == DeviceID.RNG:
        words = "-device vhost-user-rng-pci,chardev=c"
    else:
        sizes = f"num_vqs={queues},vq_size={device.core.queue_configs[0].size_max}"
        config = f"config_size={device.core.config_size}"
        words = f"-device vhost-user-test-device-pci,chardev=c,virtio-id={id},{sizes},{config}"
    return f"for QEMU: -chardev socket,id=c,path={path} {words}"


def vfio_user_hint(path: str) -> str:
    """What QEMU takes to plug in the function behind that socket."""
    device = {"driver": "vfio-user-pci", "socket": {"type": "unix", "path": path}}
    return f"for QEMU: -device '{json.dumps(device)}'"
