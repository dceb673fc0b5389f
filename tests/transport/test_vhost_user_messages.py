"""Front ends that send what they must not: the session ends, the server goes on, nothing leaks."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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
from virtring.errors import InvalidArgument
from virtring.memory import GuestMemory
from virtring.transport.vhost_user import Protocol, Request
from virtring.transport.vhost_user.message import (
    CONFIG,
    HEADER,
    INFLIGHT,
    LOG,
    MAX_PAYLOAD,
    MEM_REG,
    MEM_TABLE,
    NO_FD,
    REGION,
    SHAPES,
    U64,
    VRING_ADDR,
    VRING_STATE,
)

M64 = (1 << 64) - 1


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("vhost") / "socket"
    with served(Echo(config=bytes(32)), path):
        # What the server itself opens is open from here on.
        with RawFront(path) as front:
            assert front.alive()
        yield path


@pytest.fixture(scope="module")
def memory() -> GuestMemory:
    return GuestMemory.create(1 << 20)


def ends(path: Path, send: object, fds: list[int] | None = None) -> None:
    """After ``send`` the session is over, without a leak, and the next one works."""
    before = open_fds()
    with RawFront(path, ALL) as front:
        assert front.alive()
        if isinstance(send, bytes):
            front.raw(send, fds)
        else:
            assert callable(send)
            send(front)
        assert front.closed()
    with RawFront(path) as front:
        assert front.alive()
    for fd in fds or []:
        os.close(fd)
        before -= 1
    assert settled(before)


@pytest.mark.parametrize(
    "data",
    [
        HEADER.pack(Request.GET_FEATURES, 0, 0),
        HEADER.pack(Request.GET_FEATURES, 2, 0),
        HEADER.pack(Request.GET_FEATURES, 3, 0),
        HEADER.pack(Request.GET_FEATURES, 5, 0),
        HEADER.pack(Request.GET_FEATURES, 1, MAX_PAYLOAD + 1),
        HEADER.pack(Request.SET_MEM_TABLE, 1, 0xFFFFFFFF),
        HEADER.pack(0, 1, 0),
        HEADER.pack(22, 1, 0),
        HEADER.pack(99, 1, 0),
        HEADER.pack(0xFFFFFFFF, 1, 0),
    ],
)
def test_headers(path: Path, data: bytes) -> None:
    ends(path, data)


@pytest.mark.parametrize("request_", list(SHAPES), ids=lambda r: r.name)
def test_sizes_and_descriptors(path: Path, request_: Request) -> None:
    """Every request with a byte too many, a byte too few and a descriptor too many."""
    shape = SHAPES[request_]
    ends(path, HEADER.pack(request_, 1, shape.most + 1) + bytes(shape.most + 1))
    if shape.least:
        ends(path, HEADER.pack(request_, 1, shape.least - 1) + bytes(shape.least - 1))
    if shape.fds < 8:
        fds = [new_file(4096) for _ in range(shape.fds + 1)]
        ends(path, HEADER.pack(request_, 1, shape.least) + bytes(shape.least), fds)


@pytest.mark.parametrize("count", [9, 16, 60])
def test_many_descriptors(path: Path, count: int) -> None:
    ends(path, HEADER.pack(Request.GET_FEATURES, 1, 0), [new_file(1) for _ in range(count)])


def test_a_message_that_stops_in_the_middle(path: Path) -> None:
    before = open_fds()
    for data in (b"\1", HEADER.pack(Request.SET_FEATURES, 1, 8) + bytes(7)):
        with RawFront(path) as front:
            front.raw(data)
        with RawFront(path) as front:
            assert front.alive()
    assert settled(before)


def region(guest: int = 0, size: int = 4096, user: int = USER, offset: int = 0) -> bytes:
    return REGION.pack(guest, size, user, offset)


@pytest.mark.parametrize(
    "regions",
    [
        [region(size=0)],
        [region(size=M64)],
        [region(guest=M64 - 4094)],
        [region(user=M64 - 4094)],
        [region(offset=M64 - 4094)],
        [region(size=1 << 62)],
        [region(size=8193)],
        [region(offset=4097)],
        [region(offset=8192)],
        [region(), region()],
        [region(), region(guest=4095, user=USER + 8192)],
        [region(), region(guest=8192, user=USER + 4095)],
    ],
)
def test_regions(path: Path, regions: list[bytes]) -> None:
    """Of a file of 8192 bytes: empty, too large, beyond the end, around 2**64, overlapping."""
    fds = [new_file(8192) for _ in regions]
    table = MEM_TABLE.pack(len(regions), 0) + b"".join(regions)
    ends(path, HEADER.pack(Request.SET_MEM_TABLE, 1, len(table)) + table, fds)

    def one_by_one(front: RawFront) -> None:
        for part, fd in zip(regions, fds2, strict=True):
            front.tell(Request.ADD_MEM_REG, MEM_REG.pack(0) + part, [fd])

    fds2 = [new_file(8192) for _ in regions]
    ends(path, one_by_one)
    for fd in fds2:
        os.close(fd)


@pytest.mark.parametrize("count", [0, 2, 8, 9, 0xFFFFFFFF])
def test_table_of_another_count(path: Path, count: int) -> None:
    table = MEM_TABLE.pack(count, 0) + region()
    ends(path, HEADER.pack(Request.SET_MEM_TABLE, 1, len(table)) + table, [new_file(8192)])


def test_files_that_are_no_memory(path: Path) -> None:
    table = MEM_TABLE.pack(1, 0) + region()
    message = HEADER.pack(Request.SET_MEM_TABLE, 1, len(table)) + table
    reader, writer = os.pipe()
    ends(path, message, [reader])
    os.close(writer)
    ends(path, message, [os.open("/", os.O_RDONLY)])
    ends(path, message, [os.open("/dev/null", os.O_RDWR)])


@pytest.mark.parametrize(
    "payload", [U64.pack(2), U64.pack(0xFF), U64.pack(1 << 9), U64.pack(M64), U64.pack(0)]
)
@pytest.mark.parametrize(
    "request_", [Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR]
)
def test_ring_descriptors(path: Path, request_: Request, payload: bytes) -> None:
    """No such ring, bits that mean nothing, no descriptor where one should be."""
    (value,) = U64.unpack(payload)
    fds = [] if value == 0 else [new_file(1)]
    ends(path, HEADER.pack(request_, 1, 8) + payload, fds)
    if value == 0:
        # And one where none should be.
        ends(path, HEADER.pack(request_, 1, 8) + U64.pack(NO_FD), [new_file(1)])


@pytest.mark.parametrize(
    ("request_", "payload"),
    [
        *[
            (request, VRING_STATE.pack(index, 1))
            for request in (
                Request.SET_VRING_NUM, Request.SET_VRING_BASE, Request.GET_VRING_BASE,
                Request.SET_VRING_ENABLE,
            )
            for index in (2, 256, 0x10000, 0xFFFFFFFF)
        ],
        (Request.SET_VRING_ADDR, VRING_ADDR.pack(2, 0, 0, 0, 0, 0)),
        (Request.SET_VRING_ENABLE, VRING_STATE.pack(0, 2)),
        (Request.SET_FEATURES, U64.pack(1 << 3)),
        (Request.SET_FEATURES, U64.pack(M64)),
        (Request.SET_PROTOCOL_FEATURES, U64.pack(1 << 8)),
        (Request.SET_PROTOCOL_FEATURES, U64.pack(M64)),
        (Request.SET_STATUS, U64.pack(256)),
        (Request.GET_CONFIG, CONFIG.pack(0, 5, 0) + bytes(4)),
        (Request.SET_CONFIG, CONFIG.pack(0, 5, 0) + bytes(4)),
        (Request.SET_CONFIG, CONFIG.pack(30, 4, 0) + bytes(4)),
        (Request.SET_CONFIG, CONFIG.pack(0xFFFFFFFF, 4, 0) + bytes(4)),
        (Request.REM_MEM_REG, MEM_REG.pack(0) + region()),
        (Request.ADD_MEM_REG, MEM_REG.pack(0) + region()),
        (Request.SET_BACKEND_REQ_FD, b""),
        (Request.SET_INFLIGHT_FD, INFLIGHT.pack(4096, 0, 1, 64)),
        (Request.GET_INFLIGHT_FD, INFLIGHT.pack(0, 0, 0, 64)),
        (Request.GET_INFLIGHT_FD, INFLIGHT.pack(0, 0, 1, 0)),
        (Request.GET_INFLIGHT_FD, INFLIGHT.pack(0, 0, 1, 32769)),
        (Request.SET_LOG_BASE, LOG.pack(4096, 0)),
    ],
)
def test_payloads(path: Path, request_: Request, payload: bytes) -> None:
    ends(path, HEADER.pack(request_, 1, len(payload)) + payload)


@pytest.mark.parametrize(
    ("request_", "payload"),
    [
        (Request.SET_INFLIGHT_FD, INFLIGHT.pack(0, 0, 1, 64)),
        (Request.SET_INFLIGHT_FD, INFLIGHT.pack(4096, 1, 1, 64)),
        (Request.SET_INFLIGHT_FD, INFLIGHT.pack(M64, 0, 1, 64)),
        (Request.SET_INFLIGHT_FD, INFLIGHT.pack(4096, M64, 1, 64)),
        (Request.SET_INFLIGHT_FD, INFLIGHT.pack(4096, 0, 100, 64)),
        (Request.SET_INFLIGHT_FD, INFLIGHT.pack(4096, 0, 1, 0)),
        (Request.SET_INFLIGHT_FD, INFLIGHT.pack(4096, 0, 1, 60000)),
        (Request.SET_LOG_BASE, LOG.pack(0, 0)),
        (Request.SET_LOG_BASE, LOG.pack(4097, 0)),
        (Request.SET_LOG_BASE, LOG.pack(4096, 4096)),
        (Request.SET_LOG_BASE, LOG.pack(M64, M64)),
    ],
)
def test_shared_areas(path: Path, request_: Request, payload: bytes) -> None:
    """In a file of 4096 bytes."""
    ends(path, HEADER.pack(request_, 1, len(payload)) + payload, [new_file(4096)])


def test_what_was_not_negotiated(path: Path) -> None:
    before = open_fds()
    for request, payload in (
        (Request.GET_INFLIGHT_FD, INFLIGHT.pack(0, 0, 1, 64)),
        (Request.SET_LOG_BASE, LOG.pack(4096, 0)),
    ):
        with RawFront(path) as front:
            front.tell(request, payload, [new_file(1)] if request == Request.SET_LOG_BASE else [])
            assert front.closed()
    with RawFront(path) as front:
        assert front.alive()
    # The descriptor of this test's own.
    assert settled(before + 1)


def test_refusal_by_acknowledgement(path: Path, memory: GuestMemory) -> None:
    """With REPLY_ACK the back end says no and the session goes on as it was."""
    before = open_fds()
    with RawFront(path, ALL) as front:
        fd = memory_fd(memory)
        add = MEM_REG.pack(0) + slot(memory)
        assert front.check(Request.ADD_MEM_REG, add, [fd]) == 0
        assert front.check(Request.ADD_MEM_REG, add, [fd]) == 1
        assert front.check(Request.REM_MEM_REG, MEM_REG.pack(0) + region()) == 1
        assert front.check(Request.SET_VRING_NUM, VRING_STATE.pack(7, 1)) == 1
        assert front.check(Request.SET_FEATURES, U64.pack(1 << 3)) == 1
        assert front.check(Request.REM_MEM_REG, add) == 0
        assert front.check(Request.REM_MEM_REG, add) == 1
        # The protocol lets a descriptor come with it, which is not used.
        assert front.check(Request.ADD_MEM_REG, add, [fd]) == 0
        assert front.check(Request.REM_MEM_REG, add, [fd]) == 0
        assert front.alive()
    assert settled(before)


def test_too_many_regions(path: Path) -> None:
    before = open_fds()
    fd = new_file(4096)
    with RawFront(path, ALL) as front:
        answer = front.ask(Request.GET_MAX_MEM_SLOTS)
        assert answer is not None
        (most,) = U64.unpack(answer)
        for i in range(most):
            part = region(guest=8192 * i, user=USER + 8192 * i)
            assert front.check(Request.ADD_MEM_REG, MEM_REG.pack(0) + part, [fd]) == 0
        part = region(guest=1 << 40, user=USER + (1 << 40))
        assert front.check(Request.ADD_MEM_REG, MEM_REG.pack(0) + part, [fd]) == 1
    os.close(fd)
    assert settled(before)


@pytest.mark.parametrize("num", [0, 3, 32769, 65536, 0xFFFFFFFF])
def test_ring_sizes(path: Path, memory: GuestMemory, num: int) -> None:
    def send(front: RawFront) -> None:
        ring = RawRing(front, memory)
        ring.negotiate()
        ring.set_memory()
        ring.setup()
        ring.state(Request.SET_VRING_NUM, num)
        ring.set_fd(Request.SET_VRING_KICK, ring.kick)

    ends(path, send)


@pytest.mark.parametrize("where", range(3))
@pytest.mark.parametrize("address", [0, 8, USER, USER + (1 << 21), M64 - 15])
def test_ring_addresses(path: Path, memory: GuestMemory, where: int, address: int) -> None:
    def send(front: RawFront) -> None:
        ring = RawRing(front, memory)
        ring.negotiate()
        ring.set_memory()
        ring.setup()
        fields = list(VRING_ADDR.unpack(ring.addresses()))
        fields[2 + where] = address
        front.tell(Request.SET_VRING_ADDR, VRING_ADDR.pack(*fields))
        ring.set_fd(Request.SET_VRING_KICK, ring.kick)

    ends(path, send)


def test_what_only_net_devices_have(path: Path, tmp_path: Path) -> None:
    class Net(Echo):
        def __init__(self) -> None:
            super().__init__()
            self.told: list[object] = []

        def send_rarp(self, mac: bytes) -> None:
            self.told.append(mac)

        def set_mtu(self, mtu: int) -> None:
            if mtu < 68:
                raise InvalidArgument(f"MTU {mtu}")
            self.told.append(mtu)

    both = int(Protocol.RARP | Protocol.MTU)
    with RawFront(path) as front:
        answer = front.ask(Request.GET_PROTOCOL_FEATURES)
        assert answer is not None
        assert not U64.unpack(answer)[0] & both
    ends(path, HEADER.pack(Request.SEND_RARP, 1, 8) + bytes(8))
    device = Net()
    with served(device, tmp_path / "net"), RawFront(tmp_path / "net", ALL | both) as front:
        assert front.check(Request.SEND_RARP, b"\2\0\0\0\0\1\0\0") == 0
        assert front.check(Request.NET_SET_MTU, U64.pack(9000)) == 0
        assert front.check(Request.NET_SET_MTU, U64.pack(1)) == 1
    assert device.told == [b"\2\0\0\0\0\1", 9000]


messages = st.tuples(
    st.sampled_from([*Request, 0, 22, 26, 33, 41, 1000]),
    st.sampled_from([1, 1, 1, 9, 5, 0, 3]),
    st.one_of(
        st.binary(max_size=80),
        st.tuples(st.integers(0, 3), st.integers(0, 300)).map(lambda s: struct.pack("<II", *s)),
        st.integers(0, M64).map(U64.pack),
        st.integers(0, 300).map(U64.pack),
        st.lists(st.sampled_from([0, 1, 4096, USER, 1 << 20, M64]), max_size=9).map(
            lambda words: struct.pack(f"<{len(words)}Q", *words)
        ),
    ),
    st.integers(0, 2),
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(messages, min_size=1, max_size=12))
def test_anything(path: Path, found: list[tuple[int, int, bytes, int]]) -> None:
    before = open_fds()
    fd = new_file(1 << 16)
    with RawFront(path) as front:
        for request, flags, payload, count in found:
            front.tell(request, payload, [fd] * count, flags)
    os.close(fd)
    with RawFront(path) as front:
        assert front.alive()
    assert settled(before)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(min_size=1, max_size=400))
def test_any_bytes(path: Path, data: bytes) -> None:
    before = open_fds()
    with RawFront(path) as front:
        front.raw(data)
    with RawFront(path) as front:
        assert front.alive()
    assert settled(before)
