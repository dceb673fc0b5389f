"""Two processes: nothing is lost, reordered or changed, however fast it goes.

RPMSG_MESSAGES sets how many messages go there and back; a million by default.
"""

import gc
import multiprocessing
import os
import socket
import threading
from typing import Any

import numpy as np
import pytest

from tests.rpmsg import _children
from tests.rpmsg._links import KINDS, rx_total, tx_total
from virtring import InvalidArgument, PeerDied, Spin
from virtring.rpmsg import Channel, Messages, RpmsgDriver, RpmsgLink, create_link
from virtring.rpmsg.link import HEAD, MAGIC

MESSAGES = int(os.environ.get("RPMSG_MESSAGES", "1000000"))
SIZE = 24
BATCH = 32

pytestmark = pytest.mark.parametrize("kind", KINDS)


def numbered(first: int, count: int) -> np.ndarray:
    """Payloads: the number three times, each a little different."""
    words = np.arange(first, first + count, dtype="<u8")
    return np.stack([words, ~words, words * 0x9E3779B97F4A7C15], axis=1).view(np.uint8)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_fast_echo(kind: str, method: str) -> None:
    count = MESSAGES if method == "spawn" else 5000
    bus, link = create_link(
        128, packed=kind == "packed", timeout=60, spin=Spin() if method == "spawn" else None
    )
    seen: list[Channel] = []
    driver = RpmsgDriver("echo", probe=seen.append, remove=seen.append)
    bus.register_driver(driver)
    context: Any = multiprocessing.get_context(method)
    peer = context.Process(target=_children.echo, args=(link, count, 50))
    peer.start()
    try:
        bus.wait_rx(lambda: bus.process() or seen, 60)
        (channel,) = bus.channels
        ept = channel.ept
        assert ept is not None
        rows, got = Messages(BATCH, SIZE), Messages(256, bus.rx_mtu)
        rows.count = BATCH
        rows.len[:] = SIZE
        sent = came = 0
        while came < count:
            while sent < count and sent - came < 100:
                n = min(BATCH, count - sent)
                rows.data[:n] = numbered(sent, n)
                sent += ept.trysend_many(rows, 0, n)
            n = ept.recv_batch(got, 60)
            assert n, f"no message behind {came}"
            assert (got.len[:n] == SIZE).all()
            np.testing.assert_array_equal(got.data[:n, :SIZE], numbered(came, n))
            came += n
        bus.wait_rx(lambda: bus.process() or len(seen) == 2, 60)
        peer.join(60)
        assert peer.exitcode == 0
    finally:
        peer.kill()
        peer.join()
    assert seen == [channel, channel]
    assert bus.channels == []
    counters = bus.counters
    assert counters.tx_messages == count
    assert counters.rx_messages == count + 2    # and two announcements
    assert not any(counters.dropped.values())
    assert (tx_total(bus.port), rx_total(bus.port)) == (128, 128)


def test_a_link_over_a_unix_socket(kind: str) -> None:
    bus, link = create_link(16, packed=kind == "packed", timeout=30, features=0)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        peer = multiprocessing.get_context("spawn").Process(
            target=_children.echo_singly, args=(theirs,)
        )
        peer.start()
        link.send(ours)
        ept = bus.create_ept(dst=100)
        try:
            for text in (b"olleh", b"", b"x" * 496, b"stop"):
                ept.send(text)
                assert ept.recv(60) == (text[::-1], 100)
            peer.join(30)
            assert peer.exitcode == 0
        finally:
            peer.kill()
            peer.join()


def test_a_flood_from_another_process(kind: str) -> None:
    count = 20000
    bus, link = create_link(64, packed=kind == "packed")
    ept = bus.create_ept(addr=2000, backlog=1 << 20)
    other = bus.create_ept(addr=2001)
    peer = multiprocessing.get_context("spawn").Process(
        target=_children.flood, args=(link, count)
    )
    peer.start()
    try:
        with pytest.raises(TimeoutError):
            other.recv(0.3)
        got = Messages(256)
        came = 0
        while came < count:
            n = ept.recv_batch(got, 60)
            assert n
            numbers = got.data[:n, :8].copy().view("<u8").ravel()
            np.testing.assert_array_equal(numbers, np.arange(came, came + n))
            came += n
        peer.join(30)
        assert peer.exitcode == 0
    finally:
        peer.kill()
        peer.join()
    assert not any(bus.counters.dropped.values())


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (b"[]", "description"),
        (b"{", "description"),
        (b'{"base": "x"}', "64 bits"),
        (b'{"base": 65536}', "description"),
        (b'{"base": 65536, "rx": [3, 0, 0, 0, 0, 0], "tx": 1}', "power of two"),
    ],
)
def test_a_socket_that_sends_something_else(kind: str, text: bytes, word: str) -> None:
    _, link = create_link(8, packed=kind == "packed")
    gc.collect()  # what earlier tests left would go at any time
    before = len(os.listdir("/proc/self/fd"))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(HEAD.pack(MAGIC, len(text)) + text)
        link.memory.regions[0].region.send(ours)

        def events() -> None:
            for event in (link.rx_kick, link.rx_call, link.tx_kick, link.tx_call):
                event.send(ours)

        thread = threading.Thread(target=events)
        thread.start()
        with pytest.raises(InvalidArgument, match=word):
            RpmsgLink.receive(theirs)
        thread.join()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_socket_that_ends(kind: str) -> None:
    for data, error in (
        (b"", PeerDied), (b"VR", PeerDied), (HEAD.pack(MAGIC, 5) + b"[]", PeerDied),
        (HEAD.pack(b"nonsense", 5), InvalidArgument), (HEAD.pack(MAGIC, 1 << 30), InvalidArgument),
    ):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.sendall(data)
            ours.close()
            with pytest.raises(error):
                RpmsgLink.receive(theirs)
