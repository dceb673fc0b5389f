"""The life of a ring as the front end leads it: order of messages, stop and start, memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.transport.raw_front import (
    ALL,
    USER,
    RawFront,
    RawRing,
    memory_fd,
    new_file,
    settled,
    slot,
)
from tests.transport.vhost_user import Echo, open_fds, served
from virtring.memory import GuestMemory, Region
from virtring.spec.features import Feature
from virtring.transport.vhost_user import Protocol, Request
from virtring.transport.vhost_user.message import (
    F_LOG_ALL,
    F_PROTOCOL_FEATURES,
    LOG,
    MEM_REG,
    MEM_TABLE,
    REGION,
    U64,
    VRING_ADDR,
)

PACKED = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


@pytest.fixture
def device() -> Echo:
    return Echo()


@pytest.fixture
def server(path: Path, device: Echo) -> Iterator[None]:
    with served(device, path):
        yield


@pytest.fixture
def front(path: Path, server: None) -> Iterator[RawFront]:
    with RawFront(path, ALL & ~int(Protocol.LOG_SHMFD | Protocol.INFLIGHT_SHMFD)) as front:
        yield front


def ring(front: RawFront, packed: bool = False, **options: int) -> RawRing:
    made = RawRing(front, GuestMemory.create(1 << 20), packed=packed, **options)
    made.negotiate()
    made.set_memory()
    return made


@PACKED
def test_kick_before_enable(front: RawFront, packed: bool) -> None:
    one = ring(front, packed)
    one.start(enable=False)
    one.add(b"early")
    one.vq.kick()
    assert one.take(0.2) is None
    one.state(Request.SET_VRING_ENABLE, 1)
    assert one.take() == b"early"
    one.echo(b"later")
    one.state(Request.SET_VRING_ENABLE, 0)
    front.alive()
    one.add(b"waits")
    one.vq.kick()
    assert one.take(0.2) is None
    one.state(Request.SET_VRING_ENABLE, 1)
    assert one.take() == b"waits"


def test_kick_before_addresses(path: Path, server: None) -> None:
    before = open_fds()
    with RawFront(path) as front:
        one = ring(front)
        one.set_fd(Request.SET_VRING_KICK, one.kick)
        assert front.closed()
    del one
    with RawFront(path, ALL) as front:
        one = ring(front)
        one.start()
        one.echo(b"works")
    del one
    assert settled(before)


@PACKED
def test_stop_and_start_again(front: RawFront, packed: bool) -> None:
    """GET_VRING_BASE, then the same ring again: it goes on where it was, around its end."""
    one = ring(front, packed)
    for turn in range(12):
        one.start()
        for i in range(turn):
            one.echo(b"%d %d" % (turn, i))
        one.state(Request.SET_VRING_ENABLE, 0)
        one.stop()
        one.add(b"while stopped")
        one.vq.kick()
        assert one.take(0.02) is None
        one.start()
        assert one.take() == b"while stopped"
        one.stop()
        # Stopping what is stopped changes nothing.
        base = one.base
        assert one.stop() == base


def test_packed_position_without_the_used_half(front: RawFront) -> None:
    """DPDK's virtio-user says only where the next available descriptor is."""
    one = ring(front, packed=True)
    for turn in range(12):
        one.base &= 0xFFFF
        one.start()
        for i in range(turn):
            one.echo(b"%d %d" % (turn, i))
        one.stop()


@PACKED
def test_without_protocol_features(path: Path, server: None, packed: bool) -> None:
    """A front end of old: rings are on as soon as they have a kick."""
    with RawFront(path) as front:
        one = RawRing(front, GuestMemory.create(1 << 20), packed=packed)
        one.negotiate(protocol=False)
        one.set_memory()
        one.start(enable=False)
        one.echo(b"at once")


@PACKED
def test_call_that_comes_late(front: RawFront, packed: bool) -> None:
    one = ring(front, packed)
    one.state(Request.SET_VRING_NUM, one.config.size)
    one.state(Request.SET_VRING_BASE, one.base)
    front.tell(Request.SET_VRING_ADDR, one.addresses())
    one.set_fd(Request.SET_VRING_KICK, one.kick)
    one.state(Request.SET_VRING_ENABLE, 1)
    one.echo(b"unheard")
    one.set_fd(Request.SET_VRING_CALL, one.call)
    assert one.called()
    one.echo(b"heard")
    assert one.called()
    # Without one again, then with another.
    one.set_fd(Request.SET_VRING_CALL, None)
    one.echo(b"unheard")
    assert not one.called(0.1)


@PACKED
def test_no_descriptors_at_all(path: Path, packed: bool) -> None:
    """A front end and a back end that poll."""
    with served(Echo(), path, poll=True), RawFront(path, ALL) as front:
        one = ring(front, packed)
        one.state(Request.SET_VRING_NUM, one.config.size)
        one.state(Request.SET_VRING_BASE, one.base)
        front.tell(Request.SET_VRING_ADDR, one.addresses())
        for request in (Request.SET_VRING_CALL, Request.SET_VRING_ERR, Request.SET_VRING_KICK):
            one.set_fd(request, None)
        one.state(Request.SET_VRING_ENABLE, 1)
        for i in range(50):
            one.add(b"%d" % i)
            assert one.take() == b"%d" % i


def test_addresses_of_a_running_ring(front: RawFront, device: Echo) -> None:
    one = ring(front)
    one.start()
    one.echo(b"one")
    # The same ones may be said again.
    assert front.check(Request.SET_VRING_ADDR, one.addresses()) == 0
    fields = list(VRING_ADDR.unpack(one.addresses()))
    fields[2] += 16
    assert front.check(Request.SET_VRING_ADDR, VRING_ADDR.pack(*fields)) == 1
    other = int(Feature.VERSION_1 | Feature.EVENT_IDX)
    assert front.check(Request.SET_FEATURES, U64.pack(other)) == 1
    one.echo(b"two")


def test_table_again_while_running(front: RawFront) -> None:
    """Unchanged regions stay mapped; what is new can be used at once."""
    one = ring(front)
    one.start()
    fd = new_file(1 << 16)
    more = REGION.pack(1 << 32, 1 << 16, USER + (1 << 32), 0)
    region = Region.from_fd(fd, 1 << 16)
    for turn in range(20):
        one.echo(b"%d" % turn)
        table = MEM_TABLE.pack(2, 0) + slot(one.memory) + more
        assert front.check(Request.SET_MEM_TABLE, table, [memory_fd(one.memory), fd]) == 0
        one.memory.add_region(1 << 32, region)
        one.memory.write(1 << 32, b"there")
        one.vq.virtqueue_add([(1 << 32, 5)], [((1 << 32) + 8, 5)], turn, premapped=True)
        one.vq.kick()
        while (got := one.vq.get_buf()) is None:
            pass
        assert got[1] == 5
        assert one.memory.read((1 << 32) + 8, 5) == b"there"
        one.memory.remove_region(1 << 32)
        table = MEM_TABLE.pack(1, 0) + slot(one.memory)
        assert front.check(Request.SET_MEM_TABLE, table, [memory_fd(one.memory)]) == 0
    os.close(fd)


@PACKED
def test_buffers_in_memory_that_went(front: RawFront, packed: bool) -> None:
    """The ring is broken and says so; a reset mends it."""
    one = ring(front, packed)
    one.start()
    fd = new_file(1 << 16)
    part = MEM_REG.pack(0) + REGION.pack(1 << 32, 1 << 16, USER + (1 << 32), 0)
    region = Region.from_fd(fd, 1 << 16)
    assert front.check(Request.ADD_MEM_REG, part, [fd]) == 0
    assert front.check(Request.REM_MEM_REG, part) == 0
    one.memory.add_region(1 << 32, region)
    one.vq.virtqueue_add([(1 << 32, 5)], [], "stale", premapped=True)
    one.vq.kick()
    assert one.err.wait(20)
    assert front.check(Request.RESET_DEVICE) == 0
    again = ring(front, packed)
    again.start()
    again.echo(b"mended")
    os.close(fd)


@PACKED
@pytest.mark.parametrize("in_order", [0, int(Feature.IN_ORDER)])
def test_every_page_that_is_written_is_in_the_log(
    path: Path, server: None, packed: bool, in_order: int
) -> None:
    """Compares the log with what has really changed, page by page."""
    pages = 256
    with RawFront(path, ALL) as front:
        one = ring(front, packed, extra=in_order | int(Feature.EVENT_IDX), align=4096)
        memory = one.memory
        base = memory.regions[0].guest_addr
        fd = new_file(4096 + (base + (1 << 20)) // 4096 // 8)
        shared = Region.from_fd(fd)
        log = np.frombuffer(memoryview(shared), np.uint8)[4096:]
        one.start()
        one.echo(b"unlogged")
        answer = front.ask(Request.SET_LOG_BASE, LOG.pack(len(log), 4096), [fd])
        assert answer == U64.pack(0)
        assert not log.any()
        bits = int(one.features) | F_PROTOCOL_FEATURES | F_LOG_ALL
        front.tell(Request.SET_FEATURES, U64.pack(bits))
        front.tell(Request.SET_VRING_ADDR, one.addresses(flags=1, log=one.config.used))
        assert front.alive()
        places = [memory.alloc(4096, 4096) for _ in range(100)]
        rng = np.random.default_rng(3)
        for _ in range(60):
            before = memory.read(base, pages * 4096)
            log[:] = 0
            mine = set()
            count = int(rng.integers(1, 5))
            for at in rng.choice(len(places), count, replace=False):
                size = int(rng.integers(1, 4000))
                out, to = places[at], places[(at + 1) % len(places)] + int(rng.integers(0, 90))
                memory.write(out, rng.bytes(1))
                mine |= {out >> 12, (out + size - 1) >> 12}
                one.vq.virtqueue_add([(out, size)], [(to, size)], int(at), premapped=True)
            one.vq.kick()
            for _ in range(count):
                while one.vq.get_buf() is None:
                    pass
            # The answer comes after the last look at the ring has ended.
            assert front.alive()
            after = memory.read(base, pages * 4096)
            changed = {
                (base >> 12) + i
                for i in range(pages)
                if before[i * 4096 : (i + 1) * 4096] != after[i * 4096 : (i + 1) * 4096]
            }
            marked = set(np.flatnonzero(np.unpackbits(log, bitorder="little")).tolist())
            # What the driver side writes (its buffers, its part of the ring) is none of the log's.
            driver = mine | pages_of(one.config.avail, 4 if packed else 6 + 2 * one.config.size)
            if not packed:
                driver |= pages_of(one.config.desc, 16 * one.config.size)
            assert changed - driver <= marked
            assert marked <= changed | mine | {(p >> 12) + d for p in places for d in (0, 1)} | (
                pages_of(one.config.desc, 1) | pages_of(one.config.used, 6 + 8 * one.config.size)
            )
        front.tell(Request.SET_FEATURES, U64.pack(bits & ~F_LOG_ALL))
        front.tell(Request.SET_VRING_ADDR, one.addresses())
        # The answer comes after both, which a kick might overtake.
        assert front.alive()
        log[:] = 0
        one.echo(b"unlogged again")
        assert not log.any()
    os.close(fd)


def pages_of(addr: int, size: int) -> set[int]:
    return set(range(addr >> 12, (addr + size - 1 >> 12) + 1))
