"""DPDK at the other end of a net device: its virtio-user, its vhost, rings of all four kinds."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.interop.daemons import pmd_counts, pmd_device, pmd_driver
from tests.interop.numbered import LAP, Checker, Stream
from tests.interop.process import Process
from tests.transport.vhost_user import ops, served
from virtring.device import RING_OFFER, VirtioBus
from virtring.device.packets import Packets
from virtring.devices.net import Net
from virtring.devices.net_backend import Echo
from virtring.drivers.net import NetDriver
from virtring.memory import GuestMemory
from virtring.spec.features import Feature
from virtring.spec.ids import DeviceID
from virtring.transport.vhost_user import vhost_user_device

pytestmark = [pytest.mark.interop, pytest.mark.timeout(120)]

PACKETS = 1_000_000
#: Of the rings, and how many packets are on their way at once: many, for where both ends share a
#: CPU with others.
SIZE = 1024
WINDOW = 12 * LAP
#: Through the device that only sends back.
ECHOED = 200_000
RING = Feature.RING_PACKED | Feature.IN_ORDER
#: Options of virtio-user, and what is negotiated then.
RINGS = pytest.mark.parametrize(
    ("options", "features"),
    [
        ("in_order=0", Feature(0)),
        ("packed_vq=1,in_order=0", Feature.RING_PACKED),
        ("in_order=1", Feature.IN_ORDER),
        ("packed_vq=1,in_order=1", RING),
    ],
    ids=["split", "packed", "split-in-order", "packed-in-order"],
)


def settle(driver: Process) -> tuple[int, int]:
    """Stop forwarding; what the port has received and sent then."""
    driver.ask("stop", "Done\\.")
    return pmd_counts(driver)


@RINGS
def test_numbered_packets(tmp_path: Path, options: str, features: Feature) -> None:
    """virtio-user forwards what our device sends; every packet comes back as it was."""
    wire = Checker(PACKETS, WINDOW)
    net = Net(wire, queue_size=SIZE)
    socket = tmp_path / "socket"
    with served(net, socket), pmd_driver(socket, size=SIZE, options=options) as driver:
        driver.ask("start", "RX queue: 0")
        wire.run(60)
        assert net.features & RING == features
        assert settle(driver) == (PACKETS, PACKETS)
        pair = net.pairs[0]
        assert (pair.received, pair.transmitted) == (PACKETS, PACKETS)
        assert (pair.dropped, pair.filtered, pair.malformed) == (0, 0, 0)


@RINGS
def test_echo(tmp_path: Path, options: str, features: Feature) -> None:
    """What virtio-user sends comes back; both ends count the same."""
    net = Net(Echo(), queue_size=SIZE)
    pair = net.pairs[0]
    socket = tmp_path / "socket"
    with served(net, socket, poll=True), pmd_driver(socket, size=SIZE, options=options) as driver:
        driver.ask("start tx_first 16", "RX queue: 0")
        limit = time.monotonic() + 60
        while pair.transmitted < ECHOED:
            assert time.monotonic() < limit, f"{pair.transmitted} packets came"
            time.sleep(0.05)
        assert net.features & RING == features
        _, sent = settle(driver)
        while pair.received < sent:
            assert time.monotonic() < limit, f"{pair.received} of {sent} packets went back"
            time.sleep(0.05)
        assert (pair.received, pair.transmitted) == (sent, sent)
        # Take what is still in the ring.
        driver.send("set fwd rxonly")
        driver.ask("start", "RX queue: 0")
        while (received := pmd_counts(driver)[0]) < sent:
            assert time.monotonic() < limit, f"{received} of {sent} packets came back"
        assert pmd_counts(driver) == (sent, sent)


def test_two_pairs(tmp_path: Path) -> None:
    wire = Checker(64_000, WINDOW, pairs=2)
    net = Net(wire, pairs=2, queue_size=SIZE)
    socket = tmp_path / "socket"
    with served(net, socket, poll=True), pmd_driver(socket, size=SIZE, queues=2) as driver:
        driver.ask("start", "RX queue: 0")
        wire.run(60)
        assert settle(driver) == (128_000, 128_000)
        assert [pair.transmitted for pair in net.pairs] == [64_000, 64_000]


@pytest.mark.parametrize(
    "features",
    [Feature(0), Feature.RING_PACKED, Feature.IN_ORDER, RING],
    ids=["split", "packed", "split-in-order", "packed-in-order"],
)
def test_vhost_pmd(tmp_path: Path, features: Feature) -> None:
    """DPDK's vhost forwards what our driver sends; every packet comes back as it was."""

    class Driver(NetDriver):
        ring_features = (RING_OFFER & ~RING) | features

    memory = GuestMemory.create(16 << 20)
    socket = tmp_path / "socket"
    stream, got = Stream(PACKETS), Packets(SIZE)
    with pmd_device(socket) as device:
        device.wait_for("testpmd> ")
        vdev = vhost_user_device(socket, memory, DeviceID.NET, queue_size=SIZE, interrupts=False)
        bus = VirtioBus()
        bus.register_driver(Driver)
        bus.register_device(vdev)
        driver = vdev.driver
        assert isinstance(driver, NetDriver)
        assert vdev.features & RING == features
        # What came before it is ready would be thrown away.
        device.wait_for("link state change")
        device.ask("start", "RX queue: 0")
        limit = time.monotonic() + 60
        while not stream.done:
            stream.send(driver.send_batch, WINDOW)
            got.clear()
            if driver.receive_batch(got):
                stream.check(got)
            else:
                time.sleep(0.0001)
                assert time.monotonic() < limit, f"{stream.checked} packets came back"
        assert settle(device) == (PACKETS, PACKETS)
        assert driver.rx[0].malformed == 0
        bus.unregister_device(vdev)
        ops(vdev).close()
