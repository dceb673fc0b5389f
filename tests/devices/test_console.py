"""The console and its driver: bytes, ports that come and go, sizes, emergency writes."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from tests.devices.conftest import MakeMachine
from tests.devices.machine import Machine, until
from virtring.device import RING_OFFER
from virtring.devices.console import Console
from virtring.devices.console_port import Port
from virtring.drivers.console import ConsoleDriver
from virtring.drivers.console_port import ConsolePort
from virtring.errors import InvalidArgument, NotSupported, WaitTimeout, WrongState
from virtring.queue import Virtqueue
from virtring.spec.console import CONSOLE_CONFIG, CONSOLE_CONTROL, ConsoleEvent
from virtring.spec.features import Feature

TEXT = bytes(range(256)) * 200


def echo(name: str = "", **given: Any) -> Port:
    port = Port(name, **given)
    port.output = port.send
    return port


def console(machine: Machine, *ports: Port, **given: Any) -> Console:
    return Console(ports, ring_features=machine.ring_features, **given)


def read(port: ConsolePort, size: int) -> bytes:
    out = b""
    while len(out) < size:
        out += port.read(size - len(out))
    return out


def test_one_port_echoes(machine: Machine) -> None:
    """More than all buffers of both directions hold."""
    driver = machine.plug(console(machine, echo()), ConsoleDriver)
    port = driver.port(0)
    assert port.write(TEXT) == len(TEXT)
    assert read(port, len(TEXT)) == TEXT
    port.flush()
    with pytest.raises(WaitTimeout, match="nothing from"):
        port.read(timeout=0.001)


def test_several_ports(machine: Machine) -> None:
    device = console(machine, echo("tty", console=True), echo("a"), echo("b"), size=(80, 25))
    driver = machine.plug(device, ConsoleDriver)
    for name in ("tty", "a", "b"):
        port = driver.port(name)
        if name != "tty":
            port.open()
        text = name.encode() * 5000
        port.write(text)
        assert read(port, len(text)) == text
        assert port.host_open
        assert port.console == (name == "tty")
    until(lambda: driver.port(0).size == (80, 25))
    assert [device.ports[id].guest_open for id in range(3)] == [True] * 3


def test_reads_of_any_size(simple: Machine) -> None:
    port = echo()
    driver = simple.plug(console(simple, port), ConsoleDriver)
    for part in (b"one", b"", b"two", b"x" * 10000):
        port.send(part)
    sizes = [1, 1, 3, 4000, 1, 20000]
    got = b""
    for size in sizes:
        part = driver.port().read(size)
        assert 1 <= len(part) <= size
        got += part
    got += read(driver.port(), 10006 - len(got))
    assert got == b"onetwo" + b"x" * 10000
    with pytest.raises(InvalidArgument):
        driver.port().read(0)


def test_a_reader_waits_for_the_host(simple: Machine) -> None:
    port = echo()
    driver = simple.plug(console(simple, port), ConsoleDriver)
    got: list[bytes] = []
    thread = threading.Thread(target=lambda: got.append(driver.port().read()))
    thread.start()
    port.send(b"late")
    thread.join(10)
    assert got == [b"late"]


def test_a_host_that_has_enough_holds_the_driver_up(simple: Machine) -> None:
    out = bytearray()
    port = Port(output=out.extend)
    driver = simple.plug(console(simple, port), ConsoleDriver)
    port.hold()
    with pytest.raises(WaitTimeout, match="takes nothing"):
        driver.port().write(bytes(1 << 20), timeout=0.05)
    with pytest.raises(WaitTimeout, match="has not taken all"):
        driver.port().flush(timeout=0.01)
    assert out == b""
    port.release()
    driver.port().flush()
    assert len(out) == 8 * 4096
    driver.port().write(b"more")
    driver.port().flush()
    assert out.endswith(b"more")


def test_what_the_guest_does_not_take_waits(simple: Machine) -> None:
    room: list[int] = []
    port = Port("data", on_room=lambda port: room.append(port.pending))
    driver = simple.plug(console(simple, port, max_ports=2), ConsoleDriver)
    ours = driver.port("data")
    port.send(b"x" * 100_000)
    # Closed at the guest's end: nothing is sent.
    assert (port.pending, room) == (100_000, [])
    ours.open()
    until(lambda: port.pending == 100_000 - 8 * 4096)
    assert read(ours, 100_000) == b"x" * 100_000
    until(lambda: room[-1:] == [0])
    # Closed in the middle: what was in the driver's buffers is dropped.
    port.send(b"y" * 10)
    until(lambda: port.pending == 0)
    ours.close()
    until(lambda: not port.guest_open)
    port.send(b"z" * 10)
    ours.open()
    assert read(ours, 10) == b"z" * 10


# Ports that come and go.


def test_ports_come_and_go(machine: Machine) -> None:
    device = console(machine, echo("first"), max_ports=3)
    driver = machine.plug(device, ConsoleDriver)
    driver.port("first")
    for turn in range(5):
        port = echo(f"turn {turn}")
        assert device.add_port(port) == 1
        ours = driver.port(f"turn {turn}")
        ours.open()
        ours.write(TEXT[:9000])
        assert read(ours, 9000) == TEXT[:9000]
        device.remove_port(1)
        until(lambda ours=ours: ours.removed)  # type: ignore[misc]
        for call in (ours.read, ours.open, ours.close, ours.flush, lambda o=ours: o.write(b"x")):
            with pytest.raises(WrongState, match="removed"):
                call()
        with pytest.raises(WrongState):
            port.send(b"nobody")


def test_a_port_goes_while_its_output_is_held(simple: Machine) -> None:
    device = console(simple, Port("a"), Port("b"))
    driver = simple.plug(device, ConsoleDriver)
    ours = driver.port("b")
    ours.wait_open()
    device.ports[1].hold()
    ours.write(b"x" * 20000)
    device.remove_port(1)
    out = bytearray()
    device.add_port(Port("c", output=out.extend))
    # What was written to the old one is gone; its buffers are not.
    again = driver.port("c")
    again.write(b"y" * 50000)
    again.flush()
    until(lambda: out.endswith(b"y" * 50000))


def test_the_plugs(make_machine: MakeMachine) -> None:
    device = Console([Port(), Port()])
    with pytest.raises(InvalidArgument, match="all 2 ports"):
        device.add_port(Port())
    with pytest.raises(InvalidArgument, match="no port 2"):
        device.remove_port(2)
    device.remove_port(0)
    with pytest.raises(InvalidArgument, match="already"):
        device.add_port(device.ports[1])
    assert device.add_port(Port()) == 0
    with pytest.raises(InvalidArgument):
        Console([])
    with pytest.raises(InvalidArgument):
        Console([Port()], max_ports=256)
    with pytest.raises(InvalidArgument):
        Console([Port(), Port()], multiport=False)
    make_machine().plug(Console([], max_ports=2), ConsoleDriver)


def test_the_hosts_end_opens_and_closes(simple: Machine) -> None:
    host = Port("data", opened=False)
    driver = simple.plug(console(simple, host, max_ports=2), ConsoleDriver)
    ours = driver.port("data")
    with pytest.raises(WaitTimeout, match="did not open"):
        ours.wait_open(timeout=0.01)
    with pytest.raises(WaitTimeout, match="host's end is closed"):
        ours.write(b"x", timeout=0.01)
    host.open()
    ours.wait_open()
    ours.open()
    ours.write(b"x")
    host.send(b"last")
    until(lambda: not host.pending)
    host.close()
    assert ours.read() == b"last"
    assert ours.read() == b""
    host.open()
    host.send(b"again")
    ours.wait_open()
    assert ours.read() == b"again"


# Size, emergency, features.


def test_a_new_size(machine: Machine) -> None:
    device = console(machine, echo("tty", console=True), echo("b", console=True), size=(80, 25))
    driver = machine.plug(device, ConsoleDriver)
    until(lambda: driver.port("b").size == (80, 25))
    assert driver.size == (80, 25)
    device.resize(132, 50)
    until(lambda: driver.size == driver.port(0).size == driver.port("b").size == (132, 50))
    with pytest.raises(InvalidArgument):
        device.resize(1 << 16, 1)


def test_a_console_without_size(simple: Machine) -> None:
    device = console(simple, echo())
    driver = simple.plug(device, ConsoleDriver)
    assert driver.size is None
    with pytest.raises(InvalidArgument, match="SIZE"):
        device.resize(80, 25)


def test_emergency_writes_need_no_driver(machine: Machine) -> None:
    said = bytearray()
    device = console(machine, Port(), emergency=said.extend)
    driver = machine.plug(device, ConsoleDriver)
    driver.emergency_write(b"oops")
    machine.bus.unregister_device(machine.vdev)
    machine.vdev.cwrite(CONSOLE_CONFIG, "emerg_wr", 0x2100 + ord("!"))
    assert said == b"oops!"
    # Nothing else there is the driver's to write.
    machine.vdev.cwrite(CONSOLE_CONFIG, "cols", 7)
    assert bytes(device.core.config[:4]) == bytes(4)


def test_emergency_in_a_write_of_everything(simple: Machine) -> None:
    """As QEMU brings it over vhost-user."""
    said = bytearray()
    device = console(simple, Port(), emergency=said.extend)
    simple.plug(device, ConsoleDriver)
    device.core.write_config(0, bytes(8) + b"!\0\0\0")
    device.core.write_config(9, b"123")
    device.core.write_config(0, b"12345678")
    assert said == b"!"


def test_emergency_writes_go_to_port_0(simple: Machine) -> None:
    out = bytearray()
    device = console(simple, Port(output=out.extend))
    driver = simple.plug(device, ConsoleDriver)
    driver.emergency_write(b"x")
    assert out == b"x"


def test_without_multiport_there_is_port_0(make_machine: MakeMachine) -> None:
    machine = make_machine()
    device = Console([echo("first"), echo("second")])
    device.core.device_features = RING_OFFER
    driver = machine.plug(device, ConsoleDriver)
    port = driver.port(0)
    port.write(b"hello")
    assert port.read() == b"hello"
    assert list(driver.ports) == [0]
    with pytest.raises(NotSupported):
        driver.emergency_write(b"x")


def test_sleep_and_wake(simple: Machine) -> None:
    device = console(simple, echo("tty", console=True), echo("b"))
    driver = simple.plug(device, ConsoleDriver)
    before = driver.port("b")
    simple.bus.freeze(simple.vdev)
    assert simple.memory.allocated == 0
    with pytest.raises(WrongState):
        before.read()
    device.ports[1].send(b"meanwhile")
    simple.bus.restore(simple.vdev)
    port = driver.port("b")
    port.open()
    assert port.read() == b"meanwhile"


def test_removal_wakes_readers_and_writers(simple: Machine) -> None:
    port = Port()
    driver = simple.plug(console(simple, port), ConsoleDriver)
    port.hold()
    ours = driver.port()
    ended: list[str] = []

    def attempt(call: Any) -> None:
        try:
            call()
        except WrongState as error:
            ended.append(str(error))

    calls = [lambda: ours.read(timeout=30), lambda: ours.write(bytes(1 << 20), timeout=30)]
    threads = [threading.Thread(target=attempt, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    until(lambda: simple.vdev.vqs[1].in_flight == 8)
    simple.bus.unregister_device(simple.vdev)
    for thread in threads:
        thread.join(10)
    assert ended == ["port 0 was removed"] * 2
    with pytest.raises(WrongState):
        driver.port()


# What the other side can do wrong.


class Rude(ConsoleDriver):
    """Sends the control messages that a test wants."""

    def say(self, *message: int, cut: int = 0) -> None:
        data = np.array(message, CONSOLE_CONTROL).tobytes()
        addr = self.vdev.memory.alloc(len(data), 16)
        self.vdev.memory.write(addr, data)
        vq = self.vdev.vqs[3]
        vq.add_outbuf_premapped([(addr, len(data) - cut)], addr)
        vq.kick()
        self.vdev.memory.free(addr)

    def _control_sent(self, vq: Virtqueue) -> None:
        while vq.get_buf() is not None:
            pass


def test_senseless_control_messages(make_machine: MakeMachine) -> None:
    device = Console([echo("a"), echo("b")], max_ports=4)
    driver = make_machine().plug(device, Rude)
    for id in (0, 1, 3, 4, 0xFFFFFFFF):
        for event in range(9):
            if event != ConsoleEvent.PORT_OPEN:
                driver.say(id, event, 2)
    driver.say(0, ConsoleEvent.PORT_OPEN, 1, cut=4)
    assert not device.ports[0].guest_open
    # Ready again and again: the ports are added once, and what waits does not grow.
    before = len(driver.ports)
    for _ in range(50):
        driver.say(0, ConsoleEvent.DEVICE_READY, 1)
        driver.say(1, ConsoleEvent.PORT_READY, 1)
    assert len(driver.ports) == before == 2
    port = driver.port("b")
    driver.say(1, ConsoleEvent.PORT_OPEN, 1)
    port.guest_open = True
    port.write(b"still fine")
    assert port.read() == b"still fine"


def test_messages_do_not_pile_up_for_a_driver_without_buffers(make_machine: MakeMachine) -> None:
    class Mean(Rude):
        def _control_received(self, vq: Virtqueue) -> None:
            """Gives no buffer back."""

    device = Console([echo("a"), echo("b")])
    driver = make_machine().plug(device, Mean)
    for _ in range(200):
        driver.say(1, ConsoleEvent.PORT_READY, 1)
    assert len(device._control) <= len(ConsoleEvent) * 2


class Wild(Console):
    """Says what the test wants."""

    def say(self, *message: int, extra: bytes = b"", cut: int = 0) -> None:
        data = np.array(message, CONSOLE_CONTROL).tobytes() + extra
        with self.locked():
            self._control[len(self._control), ConsoleEvent.RESIZE] = data[: len(data) - cut]
            self.wake(2)


def test_senseless_messages_of_the_device(make_machine: MakeMachine) -> None:
    device = Wild([echo("a")], max_ports=2)
    driver = make_machine().plug(device, ConsoleDriver)
    for id in (0, 1, 2, 0xFFFFFFFF):
        for event in (0, 2, 3, 5, 7, 8, 0xFFFF):
            if (id, event) not in ((0, 2), (0, 7)):
                device.say(id, event, 0)
    device.say(0, ConsoleEvent.RESIZE, 0, extra=b"abc")
    device.say(0, ConsoleEvent.PORT_OPEN, 0, cut=1)
    device.say(0, ConsoleEvent.DEVICE_ADD, 0)
    device.say(0, ConsoleEvent.PORT_NAME, 1, extra=b"\xff" * 600)
    assert list(driver.ports) == [0]
    port = driver.port(0)
    assert port.host_open
    assert port.size is None
    assert set(port.name) == {"�"}


@pytest.mark.parametrize("count", [0, 256, 0xFFFFFFFF, 100])
def test_a_number_of_ports_that_cannot_be(make_machine: MakeMachine, count: int) -> None:
    """100: the device says so, but has no such queues."""
    machine = make_machine()
    device = Console([Port(), Port()])
    device.core.config[4:8] = count.to_bytes(4, "little")
    with pytest.raises(NotSupported):
        machine.plug(device, ConsoleDriver)
    assert machine.memory.allocated == 0
    assert Feature.VERSION_1 in machine.vdev.features
