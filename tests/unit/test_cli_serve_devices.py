"""``virtring serve`` of each kind of device over vhost-user, with our drivers at the other end."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import socket
import subprocess
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from tests.devices.machine import until
from tests.unit import _cli
from virtring.cli.serve_devices import address, pages
from virtring.device import VirtioBus, VirtioDriver
from virtring.devices.net_backend import TUN
from virtring.drivers.balloon import BalloonDriver
from virtring.drivers.console import ConsoleDriver
from virtring.drivers.net import NetDriver
from virtring.errors import InvalidArgument
from virtring.memory import GuestMemory
from virtring.rpmsg import Channel, RpmsgDriver, VirtioRpmsg
from virtring.spec.ids import DeviceID
from virtring.transport.vhost_user import VhostUserOps, vhost_user_device

AnyDriver = TypeVar("AnyDriver", bound=VirtioDriver)


@contextmanager
def serving(
    path: Path, *args: object, stdin: int | None = None, apart: bool = False
) -> Iterator[subprocess.Popen[str]]:
    """The command, once it listens; killed at the end if it still runs.

    ``apart``: in a network namespace of its own.
    """
    command = [*_cli.COMMAND, "serve", *map(str, args), "--vhost-user", str(path)]
    if apart:
        command = ["unshare", "--net", *command]
    with subprocess.Popen(
        command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=_cli.environment(),
    ) as process:
        try:
            assert process.stderr.readline() == f"serving at {path}\n"
            yield process
        finally:
            process.kill()


def ended(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> tuple[str, str]:
    """What it has printed, after a signal that ends it cleanly."""
    process.send_signal(number)
    # Not communicate(), which does not know of what was read ahead.
    err = process.stderr.read()
    assert process.wait(30) == 0, err
    return process.stdout.read(), err


@contextmanager
def plugged(path: Path, id: DeviceID, driver: type[AnyDriver]) -> Iterator[AnyDriver]:
    """Our driver of that device, over vhost-user."""
    memory = GuestMemory.create(8 << 20)
    vdev = vhost_user_device(path, memory, int(id))
    bus = VirtioBus()
    bus.register_driver(driver)
    bus.register_device(vdev)
    assert isinstance(vdev.driver, driver)
    try:
        yield vdev.driver
    finally:
        bus.unregister_device(vdev)
        assert isinstance(vdev.config, VhostUserOps)
        vdev.config.close()


def test_net_echoes(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    options = ("--mac", "52:54:00:00:00:07", "--queue-pairs", 2, "--mtu", 1400, "-v")
    with serving(path, "net", *options) as process:
        with plugged(path, DeviceID.NET, NetDriver) as driver:
            assert driver.mac == bytes.fromhex("525400000007")
            assert driver.mtu == 1400
            driver.send(b"\xff" * 12 + b"there and back")
            assert driver.receive().startswith(b"\xff" * 12 + b"there and back")
        _, err = ended(process)
        assert "-netdev vhost-user,id=n,chardev=c,queues=2 -device virtio-net-pci,netdev=n," in err
        assert "MTU MAC" in err


@pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists(TUN) or not all(map(shutil.which, ("ip", "nsenter"))),
    reason=f"takes root, {TUN}, and the commands ip and nsenter",
)
def test_net_on_a_tap(tmp_path: Path) -> None:
    """The kernel at the other end of the interface answers who it is."""
    path = tmp_path / "socket"
    with serving(path, "net", "--tap", "vr0", apart=True) as process:
        for words in ("addr add 10.9.9.1/24 dev vr0", "link set vr0 up"):
            where = ["nsenter", "--net", "--target", str(process.pid)]
            subprocess.run([*where, "ip", *words.split()], check=True)
        with plugged(path, DeviceID.NET, NetDriver) as driver:
            us, here, there = driver.mac, socket.inet_aton("10.9.9.2"), socket.inet_aton("10.9.9.1")
            assert us is not None
            question = b"\0\1\x08\0\6\4\0\1" + us + here + bytes(6) + there
            driver.send(b"\xff" * 6 + us + b"\x08\x06" + question)
            frame = driver.receive()
            # It may say something of its own first, such as that it speaks IPv6.
            while frame[12:14] != b"\x08\x06":
                frame = driver.receive()
            assert frame[:6] == us
            assert frame[20:22] == b"\0\2", "an answer"
            assert frame[28:32] == there
        ended(process)


def test_console_on_pipes(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with serving(path, "console", stdin=subprocess.PIPE) as process:
        with plugged(path, DeviceID.CONSOLE, ConsoleDriver) as driver:
            port = driver.port()
            process.stdin.write("typed\n")
            process.stdin.flush()
            assert port.read() == b"typed\n"
            port.write(b"printed\n")
            assert process.stdout.readline() == "printed\n"
        ended(process, signal.SIGINT)


def test_console_without_input(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with serving(path, "console", stdin=subprocess.DEVNULL) as process:
        with plugged(path, DeviceID.CONSOLE, ConsoleDriver) as driver:
            driver.port().write(b"printed\n")
            assert process.stdout.readline() == "printed\n"
        ended(process)


def test_console_on_a_terminal(tmp_path: Path) -> None:
    """Keys go on one by one and are not echoed; afterwards the terminal is as it was."""
    path = tmp_path / "socket"
    leader, follower = pty.openpty()
    before = termios.tcgetattr(follower)
    with serving(path, "console", stdin=follower) as process:
        with plugged(path, DeviceID.CONSOLE, ConsoleDriver) as driver:
            port = driver.port()
            os.write(leader, b"k")
            assert port.read() == b"k"
            assert not termios.tcgetattr(follower)[3] & (termios.ECHO | termios.ICANON)
        ended(process)
        assert termios.tcgetattr(follower) == before
        assert os.get_blocking(follower)
        os.close(leader)
        os.close(follower)


def test_console_on_sockets(tmp_path: Path) -> None:
    path, terminal, wire = (tmp_path / name for name in ("socket", "terminal", "wire"))
    with serving(path, "console", "--unix", terminal, "--port", f"wire={wire}", "-v") as process:
        with plugged(path, DeviceID.CONSOLE, ConsoleDriver) as driver:
            first, other = driver.port(0), driver.port("wire")
            assert (first.console, other.host_open) == (True, False)
            # Nobody is there: it goes nowhere, and does not wait.
            first.write(b"x" * 500_000, timeout=30)
            other.open()
            for turn in (b"one", b"another"):
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                    sock.connect(str(wire))
                    sock.settimeout(20)
                    until(lambda: other.host_open)
                    sock.sendall(turn)
                    assert other.read() == turn
                    other.write(turn.upper())
                    assert sock.recv(100) == turn.upper()
                until(lambda: not other.host_open)
        _, err = ended(process)
        assert "virtio-id=3,num_vqs=6,vq_size=64,config_size=12" in err
        assert not [file for file in tmp_path.iterdir() if file.is_socket()]


def test_balloon(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with serving(path, "balloon", "--target", "1M", "-v") as process:
        with plugged(path, DeviceID.BALLOON, BalloonDriver) as driver:
            assert driver.settle() == 256
            said = [process.stderr.readline()]
            while not said[-1].startswith("balloon: statistics: "):
                said.append(process.stderr.readline())
            assert "memtot " in said[-1]
            while not said[-1].startswith("balloon: 256 of 256 pages; "):
                said.append(process.stderr.readline())
            assert said[-1] == "balloon: 256 of 256 pages; 1048576 bytes were given back\n"
        ended(process)


def test_rpmsg_echoes_and_counts(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with serving(path, "rpmsg", "--service", "parrot") as process:
        channels: list[Channel] = []
        came: list[bytes] = []

        class Driver(VirtioRpmsg):
            services = (
                RpmsgDriver(
                    "parrot", lambda ept, data, src: came.append(data), probe=channels.append
                ),
            )

        with plugged(path, DeviceID.RPMSG, Driver):
            until(lambda: bool(channels))
            for number in range(10):
                channels[0].ept.send(b"message %d" % number)
            until(lambda: len(came) == 10)
            assert came == [b"message %d" % number for number in range(10)]
        _, err = ended(process)
        assert err == "parrot: 10 messages, 90 bytes echoed\n"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["net", "--mac", "52:54:00:00:00"], "no address such as 52:54:00:12:34:56"),
        (["net", "--mac", "01:00:00:00:00:00"], "no address"),
        (["net", "--mtu", "12"], "'--mtu'"),
        (["net", "--tap", "a name that is too long"], "no TAP interface"),
        (["net", "--tap", "no/name"], "no TAP interface"),
        (["balloon", "--target", "64X"], "'64X' is no number of pages and no size such as 64M"),
        (["balloon", "--target", "-1"], "'-1' is no number"),
        (["balloon", "--target", "100T"], "the most is 16T"),
        (["console", "--port", "name"], "it takes NAME=SOCKET"),
        (["console", "--unix", "missing/s"], "cannot listen at missing/s"),
        (["rpmsg", "--service", "n" * 40], "31"),
    ],
)
def test_wrong_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = _cli.run("serve", *args, "--vhost-user", "s")
    assert (done.returncode, done.stdout) == (2, "")
    assert said in _cli.one_line(done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_sizes() -> None:
    assert (pages("0"), pages("512"), pages("64M"), pages("1g")) == (0, 512, 16384, 262144)
    for wrong in ("", "M", "1.5G", "-5", "5 M", "\u0665"):
        with pytest.raises(InvalidArgument):
            pages(wrong)


def test_addresses() -> None:
    assert address("52:54:00:ab:CD:ef") == b"\x52\x54\0\xab\xcd\xef"
    for wrong in ("", "52:54:00:ab:cd", "52:54:00:ab:cd:", "5:54:00:ab:cd:ef", "52540012 3456"):
        with pytest.raises(InvalidArgument):
            address(wrong)
