"""What is peculiar to net devices over vhost-user."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.transport.raw_front import ALL, RawFront
from tests.transport.vhost_user import ops, served
from virtring.device import VirtioBus
from virtring.devices.net import Net
from virtring.devices.net_backend import Echo
from virtring.drivers.net import NetDriver
from virtring.memory import GuestMemory
from virtring.spec.features import Feature
from virtring.spec.ids import DeviceID
from virtring.spec.net import NetFeature
from virtring.spec.status import Status
from virtring.transport.vhost_user import Protocol, Request, vhost_user_device
from virtring.transport.vhost_user.backend import BackEnd
from virtring.transport.vhost_user.message import F_PROTOCOL_FEATURES, U64, Message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


@contextmanager
def driven(path: Path) -> Iterator[NetDriver]:
    """The driver of what is served at ``path``."""
    vdev = vhost_user_device(path, GuestMemory.create(4 << 20), DeviceID.NET)
    bus = VirtioBus()
    bus.register_driver(NetDriver)
    bus.register_device(vdev)
    assert isinstance(vdev.driver, NetDriver)
    try:
        yield vdev.driver
    finally:
        bus.unregister_device(vdev)
        ops(vdev).close()


def test_control_queue_kept_by_the_front_end(path: Path) -> None:
    """QEMU and DPDK do not pass it on, but the features that it is for."""
    kept = NetFeature.MQ | NetFeature.CTRL_RX | NetFeature.CTRL_VLAN | NetFeature.GUEST_ANNOUNCE
    with served(Net(Echo(), pairs=2), path), RawFront(path, ALL) as front:
        bits = int(Feature.VERSION_1) | int(kept) | F_PROTOCOL_FEATURES
        front.tell(Request.SET_FEATURES, U64.pack(bits))
        status = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK
        front.tell(Request.SET_STATUS, U64.pack(int(status)))
        assert front.ask(Request.GET_STATUS) == U64.pack(int(status))


class PacketsOnly(BackEnd):
    """Like DPDK's vhost: no configuration, and queues are counted in pairs."""

    protocol_offer = Protocol.MQ | Protocol.REPLY_ACK

    def _get_queue_num(self, message: Message) -> bytes:
        return U64.pack(1)


def test_back_end_that_only_moves_packets(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no configuration to read and no control queue, whatever features it offers."""
    monkeypatch.setattr("virtring.transport.vhost_user.server.BackEnd", PacketsOnly)
    with served(Net(Echo(), mtu=4000, pairs=2), path), driven(path) as driver:
        assert ops(driver.vdev).front.queues == 1
        assert (driver.mac, driver.mtu, driver.pairs, driver.control) == (None, 1500, 1, None)
        frame = bytes(range(100))
        driver.send(frame)
        assert driver.receive() == frame


def test_whole_device(path: Path) -> None:
    """A back end with a configuration is used with all that it has."""
    with served(Net(Echo(), mtu=4000, pairs=2), path), driven(path) as driver:
        # All queues, as the protocol has it: two pairs and the control queue.
        assert ops(driver.vdev).front.queues == 5
        assert (driver.mtu, driver.pairs) == (4000, 2)
        driver.set_pairs(2)


@pytest.mark.parametrize("poll", [0.0, 50.0], ids=["looks", "stays"])
def test_polling_server(path: Path, poll: float) -> None:
    """Receive buffers are always there: they are nothing to wake up for."""
    net = Net(Echo(), poll=poll)
    with served(net, path, poll=True), driven(path) as driver:
        for number in range(200):
            frame = number.to_bytes(2, "big") * 50
            driver.send(frame)
            assert driver.receive() == frame
        assert [net.polled(index) for index in range(3)] == [False, True, True]


def test_polling_server_lets_threads_run(path: Path) -> None:
    """Those of the same process: here the driver's, which never takes the GIL by force."""
    interval = sys.getswitchinterval()
    with served(Net(Echo()), path, poll=True), driven(path) as driver:
        sys.setswitchinterval(1000)
        try:
            for number in range(2000):
                frame = number.to_bytes(2, "big") * 50
                driver.send(frame)
                assert driver.receive() == frame
        finally:
            sys.setswitchinterval(interval)
