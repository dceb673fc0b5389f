"""DPDK at the other end of a net device: its virtio-user, its vhost, rings of all four kinds."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.interop.daemons import pmd_counts, pmd_driver
from tests.interop.numbered import Checker
from tests.interop.process import Process
from tests.transport.vhost_user import served
from virtring.devices.net import Net
from virtring.devices.net_backend import Echo
from virtring.spec.features import Feature

pytestmark = [pytest.mark.interop, pytest.mark.timeout(120)]

PACKETS = 1_000_000
SIZE = 256
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
    wire = Checker(PACKETS)
    net = Net(wire, queue_size=SIZE)
    socket = tmp_path / "socket"
    with served(net, socket, poll=True), pmd_driver(socket, size=SIZE, options=options) as driver:
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
        driver.ask("start tx_first 4", "RX queue: 0")
        limit = time.monotonic() + 60
        while pair.transmitted < PACKETS:
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
    wire = Checker(64_000, pairs=2)
    net = Net(wire, pairs=2, queue_size=SIZE)
    socket = tmp_path / "socket"
    with served(net, socket, poll=True), pmd_driver(socket, size=SIZE, queues=2) as driver:
        driver.ask("start", "RX queue: 0")
        wire.run(60)
        assert settle(driver) == (128_000, 128_000)
        assert [pair.transmitted for pair in net.pairs] == [64_000, 64_000]
