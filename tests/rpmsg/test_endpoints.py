"""Endpoints: addresses, callbacks, waiting receivers, batches, byte order."""

import select
import threading
from typing import Any

import pytest

from tests.rpmsg._links import KINDS, RawDevice, both, message
from virtring import (
    DeviceQueue,
    EventFd,
    Feature,
    GuestMemory,
    InvalidArgument,
    QueueClosed,
    RingDevice,
    WaitTimeout,
    vring_create_virtqueue,
)
from virtring.rpmsg import (
    ADDR_ANY,
    RESERVED_ADDRESSES,
    DeviceBus,
    DriverBus,
    Endpoint,
    Messages,
    RpmsgLink,
)

pytestmark = pytest.mark.parametrize("kind", KINDS)


def test_addresses(kind: str) -> None:
    for bus in both(kind):
        dynamic = [bus.create_ept() for _ in range(3)]
        assert [ept.addr for ept in dynamic] == [RESERVED_ADDRESSES + i for i in range(3)]
        fixed = bus.create_ept(addr=1027)
        assert bus.create_ept().addr == 1028
        low = bus.create_ept(addr=7)
        for taken in (7, 53, 1024, 1027):
            with pytest.raises(InvalidArgument, match="taken"):
                bus.create_ept(addr=taken)
        dynamic[1].destroy()
        dynamic[1].destroy()
        fixed.destroy()
        low.destroy()
        assert [bus.create_ept().addr for _ in range(3)] == [1025, 1027, 1029]
        for wrong in (-1, 1 << 32, "x", 1.5):
            with pytest.raises(InvalidArgument):
                bus.create_ept(addr=wrong)
        with pytest.raises(QueueClosed, match="destroyed"):
            low.send(b"x")


def test_callbacks_and_unknown_addresses(kind: str) -> None:
    for bus, other in (lambda e: (e, e[::-1]))(both(kind)):
        got: list[tuple[int, bytes, int]] = []

        def callback(ept: Endpoint, data: bytes, src: int, got: Any = got) -> None:
            got.append((ept.addr, data, src))

        first = bus.create_ept(callback, 100)
        bus.create_ept(callback, 101)
        for dst in (100, 101, 102, 100, 102):
            other.send_offchannel(9, dst, bytes([dst]))
        assert bus.process() == 5
        assert bus.process() == 0
        assert got == [(100, b"d", 9), (101, b"e", 9), (100, b"d", 9)]
        assert bus.counters.dropped["no_endpoint"] == 2
        first.destroy()
        other.send_offchannel(9, 100, b"x")
        bus.recv_done()
        assert bus.counters.dropped["no_endpoint"] == 3
        assert len(got) == 3


def test_a_callback_that_raises_loses_nothing_else(kind: str) -> None:
    for bus, other in (lambda e: (e, e[::-1]))(both(kind)):
        got: list[bytes] = []

        def callback(ept: Endpoint, data: bytes, src: int, got: Any = got) -> None:
            got.append(data)
            if data in (b"2", b"5"):
                raise ValueError(data)

        bus.create_ept(callback, 100)
        waits = bus.create_ept(addr=101)
        for i in range(6):
            other.send_offchannel(9, 100, b"%d" % i)
        with pytest.raises(ValueError, match="2"):
            bus.process()
        # Whoever comes next hands out the rest, in order.
        with pytest.raises(ValueError, match="5"):
            waits.recv(1)
        other.send_offchannel(9, 101, b"after")
        assert waits.recv(1) == (b"after", 9)
        assert got == [b"0", b"1", b"2", b"3", b"4", b"5"]


def test_a_callback_answers_but_cannot_wait(kind: str) -> None:
    bus, other = both(kind)
    seen: list[object] = []

    def callback(ept: Endpoint, data: bytes, src: int) -> None:
        ept.sendto(data[::-1], src)
        assert bus.process() == 0
        assert idle.recv_batch(Messages(4)) == 0
        try:
            idle.recv(1)
        except InvalidArgument as error:
            seen.append(str(error))

    idle = bus.create_ept()
    bus.create_ept(callback, 100)
    ask = other.create_ept(dst=100)
    ask.send(b"abc")
    bus.process()
    assert ask.recv(1) == (b"cba", 100)
    assert len(seen) == 1
    assert "callback" in str(seen[0])


def test_batch_callbacks_get_runs(kind: str) -> None:
    bus, other = both(kind, 16)
    runs: list[tuple[int, list[bytes]]] = []

    def echo(ept: Endpoint, messages: Messages, start: int, stop: int) -> None:
        runs.append((ept.addr, [messages.payload(row) for row in range(start, stop)]))
        messages.dst[start:stop] = messages.src[start:stop]
        assert ept.sendto_many(messages, start, stop - start) == stop - start

    bus.create_ept(addr=100, batch_callback=echo)
    bus.create_ept(addr=101, batch_callback=echo)
    ask = other.create_ept()
    rows = Messages(8)
    for i, dst in enumerate((100, 100, 101, 5, 5, 100, 101, 101)):
        rows.append(bytes([i]) * (i + 1), dst=dst)
    assert ask.sendto_many(rows) == 8
    bus.process()
    # "5" is nobody's; what is left keeps its order.
    assert runs == [
        (100, [b"\0", b"\1\1"]),
        (101, [b"\2" * 3]),
        (100, [b"\5" * 6]),
        (101, [b"\6" * 7, b"\7" * 8]),
    ]
    got = Messages(16)
    assert ask.recv_batch(got) == 6
    assert [got.payload(i)[0] for i in range(6)] == [0, 1, 2, 5, 6, 7]
    assert got.src[:6].tolist() == [100, 100, 101, 100, 101, 101]
    assert got.dst[:6].tolist() == [ask.addr] * 6
    with pytest.raises(InvalidArgument, match="not both"):
        bus.create_ept(lambda *_: None, batch_callback=echo)
    with pytest.raises(InvalidArgument, match="callback"):
        bus.endpoints[100].recv(0)


def test_single_and_batched_calls_mix(kind: str) -> None:
    ends = both(kind, 8)
    for bus, other in (ends, ends[::-1]):
        ept = bus.create_ept(addr=1, dst=2)
        target = other.create_ept(addr=2)
        rows, got = Messages(3), Messages(5)
        rows.count = 3
        rows.len[:] = 1
        number = 0
        for _ in range(60):
            for i in range(3):
                rows.data[i, 0] = (number + i) % 256
            assert ept.send_many(rows) == 3
            ept.send(bytes([(number + 3) % 256]))
            with ept.get_tx_buffer() as buffer:
                buffer.view[0] = (number + 4) % 256
                ept.send_nocopy(buffer, 1)
            came = [target.recv(1)[0][0]]
            with target.recv_hold(1) as held:
                came.append(held.data[0])
            assert target.recv_batch(got) == 3
            came += got.data[:3, 0].tolist()
            assert came == [(number + i) % 256 for i in range(5)]
            number += 5


def test_waiting_messages_come_before_those_of_the_ring(kind: str) -> None:
    bus, other = both(kind, 16)
    target = bus.create_ept(addr=2)
    ept = other.create_ept(dst=2)
    for i in range(3):
        ept.send(bytes([i]))
    assert bus.process() == 3
    for i in range(3, 6):
        ept.send(bytes([i]))
    got = Messages(2)
    seen: list[int] = []
    with target.recv_hold(0) as held:
        seen.append(held.data[0])
    while target.recv_batch(got):
        seen += got.data[: got.count, 0].tolist()
    assert seen == list(range(6))


def test_others_messages_are_kept_for_them(kind: str) -> None:
    bus, other = both(kind, 16)
    one, two = bus.create_ept(addr=1), bus.create_ept(addr=2)
    for i in range(12):
        other.send_offchannel(9, 1 + i % 2, bytes([i]))
    got = Messages(16)
    assert one.recv_batch(got) == 6
    assert got.data[:6, 0].tolist() == [0, 2, 4, 6, 8, 10]
    other.send_offchannel(9, 1, b"A")
    other.send_offchannel(9, 2, b"B")
    with two.recv_hold(1) as held:
        assert held.data[0] == 1
    assert [two.recv(1)[0][0] for _ in range(5)] == [3, 5, 7, 9, 11]
    # In place, past a message of another endpoint.
    with two.recv_hold(1) as held:
        assert bytes(held.data) == b"B"
    assert one.recv(1) == (b"A", 9)


def test_backlog_is_bounded(kind: str) -> None:
    bus, other = both(kind, 16)
    ept = bus.create_ept(addr=1, backlog=5)
    for i in range(12):
        other.send_offchannel(9, 1, bytes([i]))
    assert bus.process() == 12
    assert bus.counters.dropped["backlog"] == 7
    assert [ept.recv(0)[0][0] for _ in range(5)] == list(range(5))
    for wrong in (0, -1, None):
        with pytest.raises(InvalidArgument, match="backlog"):
            bus.create_ept(backlog=wrong)


def test_timeouts_of_receivers(kind: str) -> None:
    for bus in both(kind):
        ept = bus.create_ept()
        for call in (ept.recv, ept.recv_hold):
            with pytest.raises(WaitTimeout):
                call(0)
            with pytest.raises(WaitTimeout):
                call(0.01)
            with pytest.raises(InvalidArgument, match="timeout"):
                call(-1)
        assert ept.recv_batch(Messages(1), 0.01) == 0
        with pytest.raises(InvalidArgument, match="rows of 495"):
            ept.recv_batch(Messages(1, 495))


def receive_one(ept: Endpoint, got: list[tuple[int, bytes]]) -> None:
    got.append((ept.addr, ept.recv(10)[0]))


def test_several_receivers_sleep_on_one_ring(kind: str) -> None:
    ends = both(kind, 16)
    for bus, other in (ends, ends[::-1]):
        got: list[tuple[int, bytes]] = []
        threads = [
            threading.Thread(target=receive_one, args=(bus.create_ept(addr=i), got))
            for i in range(4)
        ]
        for thread in threads:
            thread.start()
        for i in (3, 1, 0, 2):
            other.send_offchannel(9, i, bytes([i]))
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
        assert sorted(got) == [(i, bytes([i])) for i in range(4)]
        assert bus.rx.count == 0


def test_poll(kind: str) -> None:
    for bus, other in (lambda e: (e, e[::-1]))(both(kind, 2)):
        ept, far = bus.create_ept(addr=1, dst=2), other.create_ept(addr=2, dst=1)
        assert ept.poll() == select.EPOLLOUT
        far.send(b"x")
        assert ept.poll() == select.EPOLLIN | select.EPOLLOUT
        ept.send(b"1")
        ept.send(b"2")
        assert ept.poll() == select.EPOLLIN
        ept.recv(0)
        assert ept.poll() == 0


def test_without_eventfds_somebody_calls_recv_done_and_xmit_done(kind: str) -> None:
    """As a transport does it: the queues' own callbacks are the interrupts."""
    memory = GuestMemory.create(1 << 20, kind="anonymous")
    bits = Feature.VERSION_1 | Feature.EVENT_IDX
    vdev = RingDevice(memory, bits | (Feature.RING_PACKED if kind == "packed" else Feature(0)))
    buses: dict[str, Any] = {}
    rvq = vring_create_virtqueue(
        0, 2, 64, vdev,
        notify=lambda _: buses["device"].xmit_done() if "device" in buses else None,
        callback=lambda _: buses["driver"].recv_done(),
    )
    svq = vring_create_virtqueue(
        1, 2, 64, vdev,
        notify=lambda _: buses["device"].recv_done(),
        callback=lambda _: buses["driver"].xmit_done(),
    )
    buses["driver"] = driver = DriverBus(rvq, svq, memory, timeout=5.0)
    buses["device"] = device = DeviceBus(
        DeviceQueue(memory, svq.config, call=lambda _: svq.vring_interrupt()),
        DeviceQueue(memory, rvq.config, call=lambda _: rvq.vring_interrupt()),
        memory,
        timeout=5.0,
    )
    device.create_ept(lambda ept, data, src: ept.sendto(data * 2, src), 100)
    ept = driver.create_ept(dst=100)
    for i in range(20):
        ept.send(bytes([i]))
        assert ept.recv(5) == (bytes([i]) * 2, 100)


def test_legacy_guests_have_their_own_byte_order(kind: str) -> None:
    if kind == "packed":
        return  # there is no legacy packed ring
    memory = GuestMemory.create(1 << 20, kind="anonymous")
    vdev = RingDevice(memory, Feature(0), big_endian=True)
    rvq, svq = (vring_create_virtqueue(i, 4, 4096, vdev) for i in range(2))
    driver = DriverBus(rvq, svq, features=1)
    outputs = DeviceQueue(memory, svq.config)
    inputs = DeviceQueue(memory, rvq.config)
    device = DeviceBus(outputs, inputs, features=1)
    assert driver.big_endian
    assert device.big_endian
    far = device.create_ept(addr=0x01020304)
    ept = driver.create_ept(addr=5, dst=0x01020304)
    ept.send(b"abc")
    chain = outputs.next_chain()
    assert chain is not None
    assert chain.read() == bytes.fromhex("00000005010203040000000000030000") + b"abc"
    chain.return_(0)
    ept.send(b"def")
    assert far.recv(0) == (b"def", 5)
    rows = Messages(1)
    rows.append(b"xyz")
    assert ept.send_many(rows) == 1
    with far.recv_hold(0) as held:
        assert (bytes(held.data), held.src) == (b"xyz", 5)
    far.sendto(b"back", 5)
    assert ept.recv(0) == (b"back", 0x01020304)


def test_wrong_queues(kind: str) -> None:
    driver, device = both(kind)
    rvq, svq, memory = driver.port.rvq, driver.port.svq, driver.port.rvq.memory
    for args in ((rvq, rvq), (rvq, device.port.svq), (rvq, svq, GuestMemory()), (None, svq)):
        with pytest.raises(InvalidArgument):
            DriverBus(*args)
    with pytest.raises(InvalidArgument, match="configure"):
        DeviceBus(DeviceQueue(memory), DeviceQueue(memory))
    with pytest.raises(InvalidArgument, match="EventFd"):
        DeviceBus(device.port.rvq, device.port.svq, rx_event=5)
    with pytest.raises(InvalidArgument, match="timeout"):
        DeviceBus(device.port.rvq, device.port.svq, timeout=-1)


def test_messages(kind: str) -> None:
    rows = Messages(2, 8)
    assert (rows.capacity, rows.size, rows.data.shape) == (2, 8, (2, 8))
    assert rows.append(b"one", 1, ADDR_ANY) == 0
    assert rows.append(memoryview(b""), 3, 4) == 1
    assert (len(rows), rows.payload(0), rows.payload(1)) == (2, b"one", b"")
    with pytest.raises(InvalidArgument, match="in use"):
        rows.append(b"")
    rows.count = 1
    for call in (lambda: rows.payload(1), lambda: rows.append(bytes(9)),
                 lambda: rows.append(b"", -1), lambda: setattr(rows, "count", 3),
                 lambda: Messages(0), lambda: Messages(1, 0), lambda: Messages(1, 65536)):
        with pytest.raises(InvalidArgument):
            call()
    rows.len[0] = 9
    with pytest.raises(InvalidArgument, match="len 9"):
        rows.payload(0)


def test_a_link_of_the_largest_messages(kind: str) -> None:
    size = 65535 + 16
    bus, device = both(kind, 4, rx_buf_size=size, tx_buf_size=size)
    data = bytes(range(256)) * 256
    ept = bus.create_ept(addr=1, dst=2)
    device.create_ept(lambda e, d, s: e.sendto(d, s), 2)
    ept.send(data[:65535])
    device.process()
    assert ept.recv(0) == (data[:65535], 2)


def test_a_device_that_came_late_finds_the_messages(kind: str) -> None:
    from virtring.rpmsg import create_link

    bus, link = create_link(8, packed=kind == "packed")
    assert isinstance(link, RpmsgLink)
    bus.send_offchannel(1, 2, b"early")
    raw = RawDevice(link)
    assert raw.sent()[0].read() == message(1, 2, b"early")
    assert isinstance(link.rx_kick, EventFd)
