"""Sending as Linux's driver does it: the order of buffers, full rings, sleepers, errors."""

import threading
import time

import pytest

from tests.rpmsg._links import (
    HEADER,
    KINDS,
    RawDriver,
    both,
    driver_and_raw,
    message,
    rx_total,
    tx_total,
)
from virtring import (
    Feature,
    InvalidArgument,
    MessageTooLong,
    NoSpace,
    QueueBroken,
    QueueClosed,
    RingDevice,
    WaitTimeout,
)
from virtring.rpmsg import ADDR_ANY, DriverBus, Endpoint, Messages, create_link

pytestmark = pytest.mark.parametrize("kind", KINDS)


def test_the_bytes_of_a_message(kind: str) -> None:
    bus, raw = driver_and_raw(kind)
    bus.create_ept(addr=0x12345678, dst=0x9ABCDEF0).send(b"payload")
    (chain,) = raw.sent()
    assert chain.writable_bytes == 0
    assert len(chain) == 1
    assert chain.read() == bytes.fromhex("78563412f0debc9a0000000007000000") + b"payload"


def test_half_the_buffers_are_posted_and_num_bufs_is_linuxs(kind: str) -> None:
    for num, half in ((8, 8), (256, 256), (512, 256)):
        bus, _ = driver_and_raw(kind, num)
        assert (bus.port.rx_posted, bus.port.tx_free) == (half, half)
        assert bus.mtu == bus.rx_mtu == 496
    bus, raw = driver_and_raw(kind, 16, num_bufs=6, rx_buf_size=100, tx_buf_size=2000)
    assert (bus.port.rx_posted, bus.port.tx_free) == (3, 3)
    assert (bus.mtu, bus.rx_mtu) == (1984, 84)
    chain = raw.inputs.next_chain()
    assert chain is not None
    assert (chain.writable_bytes, chain.readable_bytes) == (100, 0)


@pytest.mark.parametrize("bad", [0, 1, 7, 18, -2])
def test_impossible_num_bufs(kind: str, bad: int) -> None:
    with pytest.raises(InvalidArgument, match="num_bufs"):
        create_link(8, packed=kind == "packed", num_bufs=bad)


def test_first_buffers_come_in_order_then_used_ones(kind: str) -> None:
    bus, raw = driver_and_raw(kind, 4)
    ept = bus.create_ept(dst=1)
    for i in range(4):
        assert bus.port.last_sbuf == i
        ept.trysend(bytes([i]))
    first = raw.sent()
    addresses = [chain[0].addr for chain in first]
    assert addresses == [addresses[0] + 512 * i for i in range(4)]
    with pytest.raises(NoSpace):
        ept.trysend(b"x")
    # What the device gives back first is used first, though it lies last.
    first[2].return_(0)
    first[0].return_(0)
    ept.trysend(b"y")
    ept.trysend(b"z")
    again = raw.sent()
    assert [chain[0].addr for chain in again] == [addresses[2], addresses[0]]
    assert bus.counters.tx_refused == 1
    assert tx_total(bus.port) == 4


def test_addresses_and_lengths_are_refused(kind: str) -> None:
    for bus in both(kind):
        ept = bus.create_ept(dst=7)
        for call in (ept.sendto, ept.trysendto):
            with pytest.raises(InvalidArgument, match="broadcast"):
                call(b"x", ADDR_ANY)
            with pytest.raises(InvalidArgument, match="32 bits"):
                call(b"x", 1 << 32)
        for off in (ept.send_offchannel, ept.trysend_offchannel):
            with pytest.raises(InvalidArgument, match="broadcast"):
                off(ADDR_ANY, 1, b"x")
        assert ept.get_mtu() == 496
        with pytest.raises(MessageTooLong, match="497"):
            ept.send(bytes(497))
        ept.send(bytes(496))
        assert bus.counters.tx_messages == 1


def test_rows_are_checked_before_any_is_sent(kind: str) -> None:
    for bus in both(kind):
        ept = bus.create_ept(dst=7)
        rows = Messages(4, 600)
        for i in range(4):
            rows.append(bytes([i]), dst=9)
        rows.dst[3] = ADDR_ANY
        with pytest.raises(InvalidArgument, match="row 3"):
            ept.sendto_many(rows)
        rows.len[2] = 497
        with pytest.raises(MessageTooLong, match="row 2"):
            ept.send_many(rows)
        rows.len[2] = 601
        with pytest.raises(InvalidArgument, match="row 2"):
            ept.send_many(rows)
        with pytest.raises(InvalidArgument, match="rows are in use"):
            ept.send_many(rows, 3, 2)
        with pytest.raises(InvalidArgument, match="not known"):
            bus.create_ept().send_many(rows)
        assert bus.counters.tx_messages == 0
        assert ept.send_many(rows, 0, 2) == 2


def test_rows_with_addresses_of_their_own(kind: str) -> None:
    """As many as there are buffers for, without waiting; the others can follow."""
    bus, raw = driver_and_raw(kind, 4)
    ept = bus.create_ept(addr=1100)
    rows = Messages(7, 64)
    for i in range(7):
        rows.append(bytes([i]), dst=2000 + i)
    assert ept.trysendto_many(rows) == 4
    assert ept.trysendto_many(rows, 4) == 0
    wanted = [message(1100, 2000 + i, bytes([i])) for i in range(7)]
    out = raw.sent()
    assert [chain.read() for chain in out] == wanted[:4]
    for chain in out:
        chain.return_(0)
    assert ept.trysendto_many(rows, 4) == 3
    assert [chain.read() for chain in raw.sent()] == wanted[4:]


def test_a_failed_add_loses_no_buffer(kind: str) -> None:
    """Linux loses it: a TODO in rpmsg_send_offchannel_raw says so."""
    bus, raw = driver_and_raw(kind, 4)
    ept = bus.create_ept(dst=1)
    rows = Messages(4)
    rows.count = 4
    for _ in range(10):
        bus.port.svq.break_()
        with pytest.raises(QueueBroken):
            ept.send(b"x")
        with pytest.raises(QueueBroken):
            ept.send_many(rows)
        bus.port.svq.unbreak()
        assert bus.port.tx_free == 4
    buffer = ept.get_tx_buffer()
    bus.port.svq.break_()
    with pytest.raises(QueueBroken):
        ept.send_nocopy(buffer, 1)
    bus.port.svq.unbreak()
    assert buffer.held
    ept.send_nocopy(buffer, 1)
    for i in range(3):
        ept.trysend(bytes([i]))
    assert [len(chain.read()) for chain in raw.sent()] == [17] * 4
    assert bus.counters.tx_messages == 4


def test_a_ring_that_others_filled_loses_no_buffer(kind: str) -> None:
    bus, raw = driver_and_raw(kind, 4)
    svq, memory = bus.port.svq, bus.port.svq.memory
    view = memory.view(memory.alloc(16), 16)
    for i in range(3):
        svq.add_outbuf(view[i : i + 1], f"foreign {i}")
    ept = bus.create_ept(dst=1)
    rows = Messages(4)
    rows.count = 4
    assert ept.trysend_many(rows) == 1
    with pytest.raises(NoSpace):
        ept.trysend(b"x")
    assert bus.port.tx_free == 3
    assert bus.counters.tx_messages == 1
    for chain in raw.sent():
        chain.return_(0)
    assert [svq.get_buf()[0] for _ in range(3)] == ["foreign 0", "foreign 1", "foreign 2"]
    assert ept.trysend_many(rows) == 4


def test_timeout_fires_and_notifications_go_off_again(kind: str) -> None:
    for bus in both(kind, 2, timeout=0.02):
        ept = bus.create_ept(dst=1)
        rows = Messages(3)
        rows.count = 3
        # Some went: no error. None did: the time runs out.
        assert ept.send_many(rows) == 2
        for call in (lambda e=ept: e.send(b"x"), lambda e=ept, r=rows: e.send_many(r),
                     ept.get_tx_buffer):
            with pytest.raises(WaitTimeout, match=r"0\.02"):
                call()
        assert bus.sleepers == 0
        assert (bus.counters.tx_timeouts, bus.counters.tx_waits) == (4, 4)


def test_sleepers_switch_the_notifications(kind: str) -> None:
    """Tx-complete notifications are on from the first sleeper to the last one's leaving."""
    bus, raw = driver_and_raw(kind, 2, timeout=10.0)
    ept = bus.create_ept(dst=1)
    ept.send(b"a")
    ept.send(b"b")
    chains = raw.sent()
    sent = [threading.Thread(target=ept.send, args=(bytes([i]),)) for i in range(2)]
    for thread in sent:
        thread.start()
    wait_until(lambda: bus.sleepers == 2)
    time.sleep(0.05)
    assert chains[0].read()[16:] == b"a"
    chains[0].return_(0)
    assert raw.outputs.signal(), "nobody wants to know, though two sleep"
    wait_until(lambda: bus.sleepers == 1)
    chains[1].return_(0)
    assert raw.outputs.signal()
    for thread in sent:
        thread.join(5)
        assert not thread.is_alive()
    assert bus.sleepers == 0
    again = raw.sent()
    assert sorted(chain.read()[16:] for chain in again) == [b"\0", b"\1"]
    assert bus.counters.tx_timeouts == 0


def wait_until(condition: object, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.001)


def send_fifty(ept: Endpoint, k: int) -> None:
    for i in range(50):
        ept.send(bytes([k, i]))


def test_blocked_senders_of_both_roles_are_woken(kind: str) -> None:
    """Many threads send more than the ring holds, and the receiver is slow to begin."""
    ends = both(kind, 4, timeout=30.0)
    for bus, other in (ends, ends[::-1]):
        target = other.create_ept(addr=2000)
        ept = bus.create_ept(dst=2000)
        threads = [threading.Thread(target=send_fifty, args=(ept, k)) for k in range(4)]
        for thread in threads:
            thread.start()
        wait_until(lambda b=bus: b.sleepers == 4)
        got = [target.recv(10)[0] for _ in range(200)]
        for thread in threads:
            thread.join(10)
        for k in range(4):
            assert [data[1] for data in got if data[0] == k] == list(range(50))
        assert bus.sleepers == 0
        assert bus.counters.tx_waits > 0
        other.destroy_ept(target)


def test_a_released_buffer_wakes_a_sleeper(kind: str) -> None:
    for bus in both(kind, 2, timeout=10.0):
        ept = bus.create_ept(dst=1)
        held = [ept.get_tx_buffer() for _ in range(2)]
        thread = threading.Thread(target=ept.send, args=(b"x",))
        thread.start()
        wait_until(lambda b=bus: b.sleepers == 1)
        held[0].release()
        thread.join(5)
        assert not thread.is_alive()
        held[1].release()


def test_zero_copy_send(kind: str) -> None:
    for bus, other in (lambda e: (e, e[::-1]))(both(kind)):
        target = other.create_ept(addr=2000)
        ept = bus.create_ept(addr=1, dst=2000)
        with ept.get_tx_buffer() as buffer:
            assert len(buffer.view) == ept.get_mtu()
            buffer.view[:5] = b"first"
            with pytest.raises(MessageTooLong):
                ept.send_nocopy(buffer, 497)
            with pytest.raises(InvalidArgument, match="broadcast"):
                ept.send_nocopy(buffer, 5, ADDR_ANY)
            ept.send_nocopy(buffer, 5)
            with pytest.raises(InvalidArgument, match="was sent"):
                ept.send_nocopy(buffer, 5)
        # One that is not sent comes again, by the single path and by batches.
        for _ in range(20):
            with ept.get_tx_buffer() as buffer:
                buffer.view[:4] = b"junk"
        with pytest.raises(InvalidArgument, match="released"):
            buffer.release()
        rows = Messages(2)
        rows.append(b"second")
        held = ept.get_tx_buffer()
        held.release()
        ept.send_many(rows)
        held = ept.get_tx_buffer()
        held.release()
        ept.send(b"third")
        assert [target.recv(5) for _ in range(3)] == [(b"first", 1), (b"second", 1), (b"third", 1)]
        assert bus.counters.tx_bytes == 16


def test_held_buffers_are_missing_until_released(kind: str) -> None:
    bus, device = both(kind, 4)
    ept = device.create_ept(dst=3000)
    target = bus.create_ept(addr=3000)
    for i in range(4):
        ept.trysend(bytes([i]))
    held = [target.recv_hold(1) for _ in range(4)]
    assert [bytes(m.data) for m in held] == [b"\0", b"\1", b"\2", b"\3"]
    with pytest.raises(NoSpace):
        ept.trysend(b"x")
    assert bus.port.rx_held == 4
    held[2].release()
    with pytest.raises(InvalidArgument, match="released"):
        held[2].release()
    ept.trysend(b"more")
    with pytest.raises(NoSpace):
        ept.trysend(b"x")
    for i in (0, 1, 3):
        held[i].release()
    assert target.recv(1)[0] == b"more"
    assert rx_total(bus.port) == 4
    assert bus.port.rx_held == 0


def test_a_reset_queue_gives_all_buffers_back(kind: str) -> None:
    class Transport:
        def disable_vq_and_reset(self, vq: object) -> None: ...
        def enable_vq_after_reset(self, vq: object) -> None: ...

    from virtring import GuestMemory, vring_create_virtqueue

    memory = GuestMemory.create(1 << 20, kind="anonymous")
    bits = Feature.VERSION_1 | (Feature.RING_PACKED if kind == "packed" else Feature(0))
    vdev = RingDevice(memory, bits, Transport())
    rvq, svq = (vring_create_virtqueue(i, 4, 64, vdev) for i in range(2))
    bus = DriverBus(rvq, svq)
    ept = bus.create_ept(dst=1)
    for _ in range(4):
        ept.trysend(b"x")
    svq.reset(bus.recycle_tx)
    rvq.reset(bus.recycle_rx)
    assert bus.post_rx() == 4
    assert (bus.port.tx_free, bus.port.rx_posted) == (4, 4)
    for _ in range(4):
        ept.trysend(b"x")
    with pytest.raises(InvalidArgument, match="not a buffer"):
        bus.recycle_rx(rvq, 99)


def test_a_buffer_in_pieces_is_written_and_read(kind: str) -> None:
    """The device may assume nothing about how a driver cuts its buffers (virtio 1.4, 2.7.4)."""
    raw = RawDriver(kind, rx_buf_size=64, tx_buf_size=64)
    ept = raw.bus.create_ept(addr=5, dst=6)
    rows = Messages(2, 48)
    rows.append(b"batch")
    for _ in range(3):
        raw.post(3, 10, 20, 31)
    ept.send(b"single")
    ept.send_many(rows)
    with ept.get_tx_buffer() as buffer:
        buffer.view[:4] = b"zero"
        ept.send_nocopy(buffer, 4)
    for text in (b"single", b"batch", b"zero"):
        assert raw.received() == message(5, 6, text)
    whole = message(9, 5, b"hello world")
    raw.send(whole[:1], whole[1:16], whole[16:20], whole[20:])
    raw.send(whole[:17], whole[17:])
    raw.send(whole[:7], whole[7:])
    assert ept.recv(1) == (b"hello world", 9)
    with ept.recv_hold(1) as held:
        assert bytes(held.data) == b"hello world"
    got = Messages(4, 48)
    assert ept.recv_batch(got) == 1
    assert got.payload(0) == b"hello world"
    assert raw.bus.port.rvq.in_flight == 0


def test_unusable_receive_buffers_go_back_unused(kind: str) -> None:
    raw = RawDriver(kind, 8)
    ept = raw.bus.create_ept(addr=5, dst=6)
    raw.post(511)
    raw.rvq.add_sgs([raw.buf(bytes(512))], [raw.buf(bytes(600))], [raw.buf(b"readable first")])
    raw.post(512)
    raw.post(100)
    raw.post(512)
    rows = Messages(2)
    rows.append(b"one")
    rows.append(b"two")
    assert ept.trysend_many(rows) == 2
    assert raw.bus.counters.bad_buffers == 3
    assert [raw.received() for _ in range(6)] == [
        b"", b"", message(5, 6, b"one"), b"", message(5, 6, b"two"), None
    ]
    raw.post(4)
    with pytest.raises(NoSpace):
        ept.trysend(b"x")
    raw.post(4)
    with pytest.raises(NoSpace):
        ept.get_tx_buffer(wait=False)
    assert raw.bus.counters.bad_buffers == 5


def test_closed(kind: str) -> None:
    for bus in both(kind, timeout=10.0):
        ept = bus.create_ept(dst=1)
        errors: list[BaseException] = []

        def receive(ept: object = ept, errors: list[BaseException] = errors) -> None:
            try:
                ept.recv(10)  # type: ignore[attr-defined]
            except QueueClosed as error:
                errors.append(error)

        thread = threading.Thread(target=receive)
        thread.start()
        wait_until(lambda b=bus: b.rx.count == 1)
        bus.close()
        bus.close()
        thread.join(5)
        assert len(errors) == 1
        for call in (lambda e=ept: e.send(b""), bus.process, bus.get_tx_buffer, bus.create_ept):
            with pytest.raises(QueueClosed):
                call()


def test_header_is_sixteen_bytes(kind: str) -> None:
    bus, raw = driver_and_raw(kind, rx_buf_size=17, tx_buf_size=17)
    assert HEADER.size == 16
    ept = bus.create_ept(addr=1, dst=2)
    ept.send(b"")
    ept.send(b"x")
    assert [chain.read() for chain in raw.sent()] == [message(1, 2, b""), message(1, 2, b"x")]
    raw.write(message(2, 1, b""))
    assert ept.recv(1) == (b"", 2)
    for size in (16, 0, 65552, "x"):
        with pytest.raises(InvalidArgument, match="buf_size"):
            create_link(8, rx_buf_size=size)
