"""The network driver and the network device, together over every transport and ring."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from threading import Thread

import numpy as np
import pytest

from tests.devices.binding import bound
from tests.devices.machine import until
from virtring.device.packets import Packets
from virtring.devices.net import Net
from virtring.devices.net_backend import NetBackend
from virtring.drivers.net import NetDriver
from virtring.errors import (
    FeaturesRejected,
    InvalidArgument,
    NoSpace,
    NotSupported,
    WaitTimeout,
    WrongState,
)
from virtring.spec.features import Feature
from virtring.spec.net import NET_CONFIG, NetCtrl, NetCtrlRx, NetFeature

MAC = b"\x52\x54\x00\x01\x02\x03"


class Wire(NetBackend):
    """Keeps what the driver sends."""

    def __init__(self) -> None:
        self.frames: list[tuple[int, bytes]] = []
        self.bursts: list[int] = []

    def transmit(self, pair: int, packets: Packets) -> None:
        self.bursts.append(len(packets))
        self.frames += [(pair, packet.tobytes()) for packet in packets]


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def net(wire: Wire) -> Net:
    return Net(wire, mac=MAC, mtu=1500, pairs=2)


@pytest.fixture
def driver(net: Net, kind: str) -> Iterator[NetDriver]:
    with bound(net, NetDriver, kind) as driver:
        yield driver


def frames(count: int, seed: int = 0, low: int = 14, high: int = 1518) -> list[bytes]:
    rnd = random.Random(seed)
    return [rnd.randbytes(rnd.randrange(low, high + 1)) for _ in range(count)]


def test_send_and_receive(driver: NetDriver, net: Net, wire: Wire) -> None:
    assert (driver.mac, driver.mtu, driver.pairs) == (MAC, 1500, 2)
    some = frames(50)
    for frame in some:
        driver.send(frame)
    assert [frame for _, frame in wire.frames] == some
    assert net.receive(Packets.of(some)) == 50
    assert [driver.receive(0) for _ in some] == some
    with pytest.raises(WaitTimeout):
        driver.receive(0.01)
    pair = net.pairs[0]
    assert pair.transmitted == pair.received == 50
    assert pair.transmitted_bytes == pair.received_bytes == sum(map(len, some))
    assert pair.dropped == pair.malformed == pair.filtered == 0


def test_frames_of_wrong_length(driver: NetDriver, net: Net, wire: Wire) -> None:
    for size in (0, 13, 1519, 100_000):
        with pytest.raises(InvalidArgument):
            driver.send(bytes(size))
    packets = Packets.of([bytes(60), bytes(13)])
    with pytest.raises(InvalidArgument, match="packet 1"):
        driver.send_batch(packets)
    with pytest.raises(InvalidArgument, match="packet 1"):
        net.receive(packets)
    with pytest.raises(InvalidArgument, match="pair 2"):
        net.receive(packets, 2)
    with pytest.raises(InvalidArgument):
        driver.send(bytes(60), pair=1)
    assert wire.frames == []


def columns(packets: list[bytes]) -> Packets:
    """A burst laid out by hand: backwards, with gaps."""
    burst = Packets(len(packets), sum(len(p) + 3 for p in packets))
    at = 0
    for i, packet in reversed(list(enumerate(packets))):
        burst.offsets[i], burst.lengths[i] = at + 1, len(packet)
        burst.data[at + 1 : at + 1 + len(packet)] = np.frombuffer(packet, np.uint8)
        at += len(packet) + 3
    burst.count = len(packets)
    return burst


@pytest.mark.parametrize("mergeable", [True, False], ids=["merged", "whole"])
def test_batches(wire: Wire, ring: Feature, mergeable: bool) -> None:
    net = Net(wire, mergeable=mergeable, ring_features=ring)
    with bound(net, NetDriver, "pci") as driver:
        some = frames(1000, 1)
        sent = 0
        burst = columns(some)
        while sent < len(some):
            count = driver.send_batch(burst, sent)
            assert count
            sent += count
        assert [frame for _, frame in wire.frames] == some
        # No object per packet: the device hands over whole bursts.
        assert max(wire.bursts) >= 128
        got = Packets(1000)
        for start in range(0, 1000, 100):
            assert net.receive(columns(some[start : start + 100])) == 100
            assert driver.receive_batch(got) == 100
        assert [packet.tobytes() for packet in got] == some
        assert driver.receive_batch(got) == 0


def test_no_buffer_drops_and_counts(wire: Wire, ring: Feature) -> None:
    net = Net(wire, queue_size=16, ring_features=ring)
    with bound(net, NetDriver) as driver:
        some = frames(40, 2)
        assert net.receive(Packets.of(some)) == 16
        assert net.pairs[0].dropped == 24
        got = Packets(40)
        # What does not fit into the caller's burst stays where it is.
        small = Packets(3, 3 * 1518)
        assert driver.receive_batch(small) == 3
        assert driver.receive_batch(got) == 13
        assert [p.tobytes() for p in small] + [p.tobytes() for p in got] == some[:16]
        assert net.receive(Packets.of(some)) == 16


@pytest.mark.parametrize("mergeable", [True, False], ids=["merged", "whole"])
def test_long_packets(wire: Wire, ring: Feature, mergeable: bool) -> None:
    """Several buffers for one packet with MRG_RXBUF; without it, one that is large enough."""
    net = Net(wire, mtu=9000, queue_size=64, ring_features=ring, mergeable=mergeable)
    with bound(net, NetDriver, size=64 << 20) as driver:
        some = frames(10, 3, 5000, 9018)
        for frame in some:
            driver.send(frame)
        assert [frame for _, frame in wire.frames] == some
        assert net.receive(Packets.of(some)) == 10
        assert [driver.receive(1) for _ in some] == some
        # 65589 bytes take 33 of the merged buffers; without merging there is no room for it.
        giant = random.Random(1).randbytes(65589)
        assert net.receive(Packets.of([giant, giant, some[0]])) == (2 if mergeable else 1)
        assert net.pairs[0].dropped == (1 if mergeable else 2)
        got = Packets(3, 1 << 20)
        if mergeable:
            with pytest.raises(NoSpace):
                driver.receive_batch(Packets(1, 60000))
        driver.receive_batch(got)
        assert [p.tobytes() for p in got] == ([giant, some[0]] if mergeable else [some[0]])


def test_receive_from_a_thread(net: Net, kind: str) -> None:
    """The host gives packets in one thread while the driver waits in another."""
    some = frames(300, 5)
    with bound(net, NetDriver, kind) as driver:
        seen: list[int] = []
        driver.on_receive = seen.append

        def feed() -> None:
            at = 0
            while at < len(some):
                # When the buffers run out, the rest of a burst is dropped.
                count = net.receive(Packets.of(some[at : at + 7]))
                at += count
                if not count:
                    time.sleep(0.001)

        # At most 256 buffers: the driver gives them back while the thread runs.
        thread = Thread(target=feed)
        thread.start()
        got = [driver.receive(10) for _ in range(150)]
        thread.join(10)
        got += [driver.receive(10) for _ in range(150)]
        assert got == some
        assert set(seen) == {0}


def test_pairs(driver: NetDriver, net: Net, wire: Wire) -> None:
    assert net.receive(Packets.of([bytes(60)]), 1) == 0
    driver.set_pairs(2)
    driver.send(b"a" * 60, pair=1)
    driver.send(b"b" * 60, pair=0)
    assert wire.frames == [(1, b"a" * 60), (0, b"b" * 60)]
    assert net.receive(Packets.of([b"c" * 60]), 1) == 1
    got = Packets(4)
    assert driver.receive_batch(got, 0) == 0
    assert driver.receive_batch(got, 1) == 1
    driver.set_pairs(1)
    assert net.receive(Packets.of([b"c" * 60]), 1) == 0
    for pairs in (0, 3):
        with pytest.raises(InvalidArgument):
            driver.set_pairs(pairs)


def frame_to(mac: bytes, vlan: int | None = None) -> bytes:
    tag = b"" if vlan is None else b"\x81\x00" + (0xE000 | vlan).to_bytes(2, "big")
    return mac + MAC + tag + b"\x08\x00" + bytes(46)


def passes(net: Net, frame: bytes) -> bool:
    return net.receive(Packets.of([frame])) == 1


def test_filter(driver: NetDriver, net: Net) -> None:
    other, group, broadcast = b"\2" * 6, b"\1\0\x5e\0\0\1", b"\xff" * 6
    assert passes(net, frame_to(other)), "promiscuous at first"
    driver.set_receive_mode(NetCtrlRx.PROMISC, False)
    assert [passes(net, frame_to(m)) for m in (MAC, other, group, broadcast)] == [1, 0, 0, 1]
    driver.set_mac_table([other], [group])
    assert [passes(net, frame_to(m)) for m in (MAC, other, group, broadcast)] == [1, 1, 1, 1]
    for mode, lost in (
        (NetCtrlRx.NOUNI, {MAC, other}),
        (NetCtrlRx.NOMULTI, {group}),
        (NetCtrlRx.NOBCAST, {broadcast}),
    ):
        driver.set_receive_mode(mode, True)
        for mac in (MAC, other, group, broadcast):
            assert passes(net, frame_to(mac)) == (mac not in lost)
        driver.set_receive_mode(mode, False)
    driver.set_mac_table([], [])
    driver.set_receive_mode(NetCtrlRx.ALLMULTI, True)
    assert [passes(net, frame_to(m)) for m in (other, group)] == [0, 1]
    driver.set_receive_mode(NetCtrlRx.ALLUNI, True)
    assert [passes(net, frame_to(m)) for m in (other, group)] == [1, 1]
    driver.set_receive_mode(NetCtrlRx.ALLUNI, False)
    # Too many for the table: it lets through all of the kind.
    driver.set_mac_table([bytes([2, 0, 0, 0, 0, i]) for i in range(65)], [])
    assert passes(net, frame_to(other))
    driver.set_mac_table([], [])
    driver.set_mac(other)
    assert [passes(net, frame_to(m)) for m in (MAC, other)] == [0, 1]
    assert bytes(driver.vdev.cread(NET_CONFIG, "mac")) == other == driver.mac
    assert net.pairs[0].filtered == 8


def test_vlan_filter(driver: NetDriver, net: Net) -> None:
    driver.set_receive_mode(NetCtrlRx.PROMISC, False)
    assert not passes(net, frame_to(MAC, 5))
    driver.add_vlan(5)
    driver.add_vlan(4095)
    assert [passes(net, frame_to(MAC, vlan)) for vlan in (4, 5, 6, 4095, None)] == [0, 1, 0, 1, 1]
    driver.delete_vlan(5)
    assert not passes(net, frame_to(MAC, 5))
    driver.set_receive_mode(NetCtrlRx.PROMISC, True)
    assert passes(net, frame_to(MAC, 5))
    with pytest.raises(InvalidArgument):
        driver.add_vlan(4096)


def test_reset_forgets_the_filter(net: Net) -> None:
    with bound(net, NetDriver) as driver:
        driver.set_receive_mode(NetCtrlRx.PROMISC, False)
        driver.set_mac(b"\2" * 6)
        driver.set_pairs(2)
    with bound(net, NetDriver) as driver:
        assert driver.mac == MAC
        assert passes(net, frame_to(b"\4" * 6))
        assert net.receive(Packets.of([bytes(60)]), 1) == 0


def test_link(driver: NetDriver, net: Net, wire: Wire) -> None:
    assert driver.link_up
    net.link_up = False
    assert not driver.link_up
    driver.send(bytes(60))
    assert wire.frames == []
    assert not passes(net, frame_to(MAC))
    net.link_up = True
    assert driver.link_up
    assert passes(net, frame_to(MAC))


@pytest.mark.parametrize("later", [False, True], ids=["straight", "later"])
def test_announce(net: Net, wire: Wire, kind: str, later: bool) -> None:
    with bound(net, NetDriver, kind, later=later) as driver:
        driver.on_announce = lambda: driver.send(b"\xff" * 60)
        net.announce()
        until(lambda: int(driver.vdev.cread(NET_CONFIG, "status")) == 1)
        until(lambda: wire.frames == [(0, b"\xff" * 60)])
        assert driver.link_up


class Plain(NetDriver):
    """Knows no feature of network devices."""

    def validate(self) -> None:
        self.vdev.features = Feature(int(self.vdev.features) & ~self.driver_features())


def test_without_features(wire: Wire, kind: str, ring: Feature) -> None:
    net = Net(wire, pairs=2, ring_features=ring)
    with bound(net, Plain, kind) as driver:
        assert (driver.mac, driver.mtu, driver.pairs, driver.control) == (None, 1500, 1, None)
        some = frames(20, 6)
        for frame in some:
            driver.send(frame)
        assert [frame for _, frame in wire.frames] == some
        assert net.receive(Packets.of(some)) == 20
        assert [driver.receive(1) for _ in some] == some
        for call in (
            lambda: driver.set_receive_mode(NetCtrlRx.PROMISC, True),
            lambda: driver.set_mac(MAC),
            lambda: driver.add_vlan(1),
        ):
            with pytest.raises(NotSupported):
                call()
        assert driver.link_up


class Single(NetDriver):
    """Takes the control queue, but not MQ."""

    def validate(self) -> None:
        self.vdev.features = Feature(int(self.vdev.features) & ~int(NetFeature.MQ))


def test_control_queue_without_mq(net: Net, kind: str) -> None:
    """It is queue 2 then, however many pairs the device has (5.1.2)."""
    with bound(net, Single, kind) as driver:
        driver.set_receive_mode(NetCtrlRx.PROMISC, False)
        assert not net.filter.promisc
        assert passes(net, frame_to(MAC))


class Careless(NetDriver):
    """Takes MQ without the queue that it needs."""

    def validate(self) -> None:
        self.vdev.features = Feature(int(self.vdev.features) & ~int(NetFeature.CTRL_VQ))


def test_features_that_need_the_control_queue(net: Net) -> None:
    with pytest.raises(FeaturesRejected), bound(net, Careless):
        pass


def test_removal(net: Net, kind: str) -> None:
    with bound(net, NetDriver, kind) as driver:
        memory = driver.vdev.memory
        driver.send(bytes(60))
        net.receive(Packets.of([bytes(60)]))
        assert memory.allocated
    assert memory.allocated == 0
    for call in (
        lambda: driver.send(bytes(60)),
        lambda: driver.receive(0),
        lambda: driver.set_mac(MAC),
    ):
        with pytest.raises(WrongState):
            call()
    assert net.receive(Packets.of([bytes(60)])) == 0
    net.close()


def test_commands_that_are_refused(driver: NetDriver) -> None:
    assert driver.control is not None
    for group, command, data in (
        (NetCtrl.RX, 0, b""),
        (NetCtrl.RX, 0, b"\2"),
        (NetCtrl.RX, 0, b"\1\0"),
        (NetCtrl.MAC, 1, b"\1\0\0\0\0\1"),
    ):
        with pytest.raises(WrongState, match="refused"):
            driver.control.send(group, command, data)
    many = [driver.control.start(NetCtrl.RX, 0, b"\1") for _ in range(20)]
    assert all(command.result(5) for command in many)
