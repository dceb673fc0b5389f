"""A console port on a socket, a pty, pipes."""

from __future__ import annotations

import os
import pty
import socket
import threading
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.devices.machine import Machine, until
from virtring.devices.console import Console
from virtring.devices.console_fd import LIMIT, FdBackend
from virtring.devices.console_port import Port
from virtring.drivers.console import ConsoleDriver
from virtring.drivers.console_port import ConsolePort
from virtring.errors import InvalidArgument, WrongState

BIG = os.urandom(700_000)


class Wire:
    """A machine whose port 1 is on one end of a socket; ``far`` is the other."""

    def __init__(self, machine: Machine) -> None:
        self.port = Port("wire")
        self.device = Console([Port(), self.port], ring_features=machine.ring_features)
        self.near, self.far = socket.socketpair()
        self.far.settimeout(10)
        self.ours: ConsolePort = machine.plug(self.device, ConsoleDriver).port("wire")
        self.ours.open()
        self.backend = FdBackend(self.port, self.near.fileno(), self.near.fileno())

    def close(self) -> None:
        self.backend.close()
        self.near.close()
        self.far.close()


@pytest.fixture
def wire(simple: Machine) -> Iterator[Wire]:
    made = Wire(simple)
    yield made
    made.close()


def test_much_in_both_directions_at_once(wire: Wire) -> None:
    came: list[bytes] = []

    def far() -> None:
        sender = threading.Thread(target=lambda: wire.far.sendall(BIG))
        sender.start()
        while sum(map(len, came)) < len(BIG):
            came.append(wire.far.recv(1 << 16))
        sender.join(10)

    other = threading.Thread(target=far)
    writer = threading.Thread(target=lambda: wire.ours.write(BIG))
    other.start()
    writer.start()
    got = b""
    while len(got) < len(BIG):
        got += wire.ours.read(1 << 16)
    writer.join(10)
    other.join(10)
    assert got == BIG
    assert b"".join(came) == BIG


def test_a_far_end_that_does_not_read_holds_the_driver_up(wire: Wire) -> None:
    """No memory is filled meanwhile, and all arrives in the end."""
    writer = threading.Thread(target=lambda: wire.ours.write(BIG * 4, timeout=30))
    writer.start()
    until(lambda: wire.port.held)
    assert writer.is_alive()
    assert len(wire.backend._output) <= 1 << 16
    got = 0
    while got < 4 * len(BIG):
        got += len(wire.far.recv(1 << 16))
    writer.join(10)
    assert got == 4 * len(BIG)


def test_a_driver_that_does_not_read_holds_the_far_end_up(wire: Wire) -> None:
    sender = threading.Thread(target=lambda: wire.far.sendall(BIG))
    sender.start()
    until(lambda: wire.port.pending >= LIMIT)
    assert wire.port.pending < 2 * LIMIT
    assert sender.is_alive()
    got = 0
    while got < len(BIG):
        got += len(wire.ours.read(1 << 16))
    sender.join(10)


def test_the_far_end_closes(wire: Wire) -> None:
    wire.far.sendall(b"last words")
    wire.far.close()
    assert wire.ours.read() == b"last words"
    assert wire.ours.read() == b""
    assert not wire.port.opened


def test_closing_a_backend_lets_go_of_a_driver_that_waits(wire: Wire) -> None:
    writer = threading.Thread(target=lambda: wire.ours.write(BIG * 4, timeout=30))
    writer.start()
    until(lambda: wire.port.held)
    wire.backend.close()
    wire.backend.close()
    writer.join(10)
    assert not writer.is_alive()


def test_a_pty(simple: Machine) -> None:
    port = Port(console=True)
    driver = simple.plug(Console([port], size=(80, 25)), ConsoleDriver)
    ours = driver.port()
    leader, follower = pty.openpty()
    tty.setraw(follower)
    backend = FdBackend(port, leader, leader)
    os.write(follower, b"login: ")
    assert ours.read() == b"login: "
    ours.write(b"root")
    assert os.read(follower, 100) == b"root"
    os.close(follower)
    until(lambda: not port.opened)
    backend.close()
    os.close(leader)


def test_pipes_and_one_way_only(simple: Machine) -> None:
    one, two = Port("in"), Port("out")
    device = Console([one, two], ring_features=simple.ring_features)
    driver = simple.plug(device, ConsoleDriver)
    source, feed = os.pipe()
    drain, sink = os.pipe()
    backends = [FdBackend(one, source, None), FdBackend(two, None, sink)]
    driver.port("in").open()
    os.write(feed, b"water")
    assert driver.port("in").read() == b"water"
    # Nobody reads what goes the other way.
    driver.port("in").write(bytes(100_000))
    driver.port("in").flush()
    driver.port("out").write(b"drop")
    assert os.read(drain, 10) == b"drop"
    # The reader goes: what is written is dropped, nobody hangs.
    os.close(drain)
    driver.port("out").write(bytes(300_000))
    driver.port("out").flush()
    for backend in backends:
        backend.close()
    for fd in (source, feed, sink):
        os.close(fd)


def test_a_port_that_is_unplugged(wire: Wire) -> None:
    wire.device.remove_port(1)
    wire.far.sendall(b"x")
    until(lambda: not wire.backend._thread.is_alive())


def test_what_cannot_be() -> None:
    port = Port()
    with pytest.raises(WrongState, match="no console"):
        FdBackend(port, 0, None)
    Console([port])
    with pytest.raises(InvalidArgument, match="file descriptor"):
        FdBackend(port, 9999, None)


@pytest.mark.parametrize("kind", ["file", "null"])
def test_files(simple: Machine, tmp_path: Path, kind: str) -> None:
    """A file as input ends at its end, and takes output."""
    port = Port()
    driver = simple.plug(Console([port], ring_features=simple.ring_features), ConsoleDriver)
    source = Path(os.devnull)
    if kind == "file":
        source = tmp_path / "input"
        source.write_bytes(BIG)
    ended = threading.Event()
    output = tmp_path / "output"
    with source.open("rb") as feed, output.open("wb") as sink:
        backend = FdBackend(port, feed.fileno(), sink.fileno(), on_end=ended.set)
        ours, got = driver.port(), b""
        while kind == "file" and len(got) < len(BIG):
            got += ours.read(1 << 16)
        assert ended.wait(10)
        assert not port.opened
        ours.write(BIG)
        ours.flush()
        backend.close()
    assert got == (BIG if kind == "file" else b"")
    assert output.read_bytes() == BIG
