"""A network device that sends everything back, and how long it goes on with one queue."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.devices.binding import RINGS, bound
from tests.devices.machine import until
from tests.devices.test_net import Wire, frames
from virtring.device.packets import Packets
from virtring.devices.net import Net
from virtring.devices.net_backend import Echo
from virtring.drivers.net import NetDriver
from virtring.errors import InvalidArgument
from virtring.spec.features import Feature


@pytest.mark.parametrize("later", [False, True], ids=["straight", "later"])
@pytest.mark.parametrize("mergeable", [True, False], ids=["merged", "whole"])
def test_echo(ring: Feature, kind: str, mergeable: bool, later: bool) -> None:
    """Everything comes back, in its order, also when the receive queue is full for a while."""
    net = Net(Echo(), queue_size=64, ring_features=ring, mergeable=mergeable)
    with bound(net, NetDriver, kind, later=later) as driver:
        some = frames(1000, 4)
        burst = Packets.of(some)
        got = Packets(1000)
        sent = 0

        def turn() -> bool:
            nonlocal sent
            # Sends without looking at what came back for as long as it can.
            while count := driver.send_batch(burst, sent):
                sent += count
            driver.receive_batch(got)
            return len(got) == 1000

        until(turn)
        assert [packet.tobytes() for packet in got] == some
        assert net.pairs[0].transmitted == net.pairs[0].received == 1000
        assert net.pairs[0].dropped == 0


def test_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """After its share of packets a queue lets others have a turn, and goes on by itself."""
    monkeypatch.setattr("virtring.devices.net.TURN", 8)
    wire = Wire()
    for backend in (wire, Echo()):
        net = Net(backend, queue_size=64)
        with bound(net, NetDriver) as driver:
            some = Packets.of(frames(50, 12))
            assert driver.send_batch(some) == 50
            assert net.pairs[0].transmitted == 50
            # And notifications are on again.
            driver.send(bytes(60))
            assert net.pairs[0].transmitted == 51
    assert len(wire.frames) == 51


def test_polling(ring: Feature) -> None:
    """A device that looks on for a while before it asks for kicks misses nothing."""
    net = Net(Echo(), poll=200.0, ring_features=ring)
    with bound(net, NetDriver, later=True) as driver:
        for frame in frames(200, 13):
            driver.send(frame)
            assert driver.receive(10) == frame


def test_echo_of_what_never_fits(ring: Feature) -> None:
    """A packet that needs more buffers than there are is dropped; others go on."""
    net = Net(Echo(), mtu=65535, queue_size=8, ring_features=ring)
    with bound(net, NetDriver) as driver:
        for frame in (bytes(40000), b"x" * 60, bytes(9000)):
            driver.send(frame)
        assert driver.receive(1) == b"x" * 60
        assert driver.receive(1) == bytes(9000)
        assert net.pairs[0].dropped == 1


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(14, 9018), min_size=1, max_size=60),
    name=st.sampled_from(sorted(RINGS)),
    mergeable=st.booleans(),
)
def test_any_sizes_echoed(sizes: list[int], name: str, mergeable: bool) -> None:
    net = Net(Echo(), mtu=9000, queue_size=32, ring_features=RINGS[name], mergeable=mergeable)
    with bound(net, NetDriver, size=4 << 20) as driver:
        rnd = random.Random(len(sizes))
        for size in sizes:
            frame = rnd.randbytes(size)
            driver.send(frame)
            assert driver.receive(1) == frame


@pytest.mark.parametrize("poll", [-1.0, 1e6 + 1, float("inf"), float("nan")])
def test_bad_poll(poll: float) -> None:
    with pytest.raises(InvalidArgument, match="poll"):
        Net(Echo(), poll=poll)
    net = Net(Echo())
    with bound(net, NetDriver):
        rx, tx = net.queues[:2]
        assert rx is not None
        assert tx is not None
        with pytest.raises(InvalidArgument, match="poll"):
            net.pairs[0].echo(net.memory, tx, rx, 1, poll)
