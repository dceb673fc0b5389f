"""A peer that writes garbage: nothing crashes, hangs or gets lost, and what was dropped shows."""

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rpmsg._links import (
    HEADER,
    KINDS,
    RawDriver,
    driver_and_raw,
    message,
    rx_total,
    tx_total,
)
from tests.unit._rings import Raw
from virtring import BadChain, BadUsedRing, NoSpace, QueueBroken
from virtring.rpmsg import ADDR_ANY, Messages

pytestmark = pytest.mark.parametrize("kind", KINDS)

HERE = 100
#: (bytes in the buffer, bytes the ring says were used)
GARBAGE = [
    (b"", 0),
    (message(1, HERE, b"")[:15], 15),
    (message(1, HERE, b"abc"), 0),
    (message(1, HERE, b"abc"), 1),
    (message(1, HERE, b"abc"), 18),
    (message(1, HERE, b"", 1), 16),
    (message(1, HERE, b"abc", 0xFFFF), 19),
    (message(1, HERE, b"abc", 0xFFFF), 512),
    (message(1, HERE, b"abc", 497), 512),
]


def test_bad_lengths_at_the_driver(kind: str) -> None:
    bus, raw = driver_and_raw(kind, 4)
    ept = bus.create_ept(addr=HERE)
    got = Messages(8)
    for number in range(3 * len(GARBAGE)):
        data, used = GARBAGE[number // 3]
        raw.write(data, used)
        raw.write(message(7, HERE, b"good"))
        if number % 3 == 0:
            assert ept.recv(1) == (b"good", 7)
        elif number % 3 == 1:
            assert ept.recv_batch(got) == 1
            assert got.payload(0) == b"good"
        else:
            with ept.recv_hold(1) as held:
                assert bytes(held.data) == b"good"
        assert rx_total(bus.port) == 4
    assert bus.counters.dropped["short"] == 3 * 4
    assert bus.counters.dropped["length"] == 3 * 5


def test_bad_lengths_at_the_device(kind: str) -> None:
    raw = RawDriver(kind, 4)
    ept = raw.bus.create_ept(addr=HERE)
    got = Messages(8)
    cases = [data[:used] for data, used in GARBAGE if 0 < used <= len(data)]
    cases += [message(1, HERE, bytes(497)), message(1, HERE, bytes(700), 3)]
    for number in range(3 * len(cases)):
        raw.send(cases[number // 3])
        raw.send(message(7, HERE, b"good"))
        if number % 3 == 0:
            assert ept.recv(1) == (b"good", 7)
        elif number % 3 == 1:
            assert ept.recv_batch(got) == 1
        else:
            with ept.recv_hold(1) as held:
                assert bytes(held.data) == b"good"
        while raw.svq.get_buf() is not None:
            pass
        assert raw.svq.in_flight == 0
    dropped = raw.bus.counters.dropped
    assert (dropped["short"] + dropped["length"], dropped["length"]) == (3 * len(cases), 3 * 5)


def test_a_used_length_beyond_the_buffer_is_clamped_and_counted(kind: str) -> None:
    bus, raw = driver_and_raw(kind, 4)
    ept = bus.create_ept(addr=HERE)
    chain = raw.inputs.next_chain()
    assert chain is not None
    chain.write(message(7, HERE, bytes(496)))
    chain.return_(512)
    ring = Raw(raw.link.memory, raw.link.tx)
    if kind == "packed":
        ring.desc["len"][0] = 1 << 30
    else:
        ring.used["ring"]["len"][0] = 1 << 30
    assert ept.recv(1) == (bytes(496), 7)
    assert bus.counters.excess == 1


@pytest.mark.parametrize("queue", ["receive", "send"])
def test_bad_used_ids_break_the_queue_and_lose_no_buffer(kind: str, queue: str) -> None:
    bus, raw = driver_and_raw(kind, 4)
    ept = bus.create_ept(addr=HERE, dst=1)
    for i in range(4):
        ept.send(bytes([i]))
    if queue == "send":
        side, config = raw.outputs, raw.link.rx
    else:
        side, config = raw.inputs, raw.link.tx
    for _ in range(2):
        chain = side.next_chain()
        assert chain is not None
        if queue == "receive":
            chain.write(message(1, HERE, b"x"))
        chain.return_()
    ring = Raw(raw.link.memory, config)
    if kind == "packed":
        ring.desc["id"][1] = 77
    else:
        ring.used["ring"]["id"][1] = 77
    call = ept.recv if queue == "receive" else (lambda _: ept.trysend(b"again"))
    call(1)         # what came before the fault is sound
    with pytest.raises(BadUsedRing):
        call(1)
    with pytest.raises(QueueBroken):
        call(1)
    assert rx_total(bus.port) == 4
    assert tx_total(bus.port) == 4
    vq = bus.port.rvq if queue == "receive" else bus.port.svq
    recycle = bus.port.recycle_rx if queue == "receive" else bus.port.recycle_tx
    while (token := vq.detach_unused_buf()) is not None:
        recycle(token)
    free = bus.port.rx_unposted if queue == "receive" else bus.port.tx_free
    assert free == 4


def test_a_bad_chain_breaks_the_devices_queue_only(kind: str) -> None:
    raw = RawDriver(kind, 4)
    ept = raw.bus.create_ept(addr=HERE, dst=1)
    raw.send(message(7, HERE, b"good"))
    raw.send(message(7, HERE, b"bad"))
    ring = Raw(raw.memory, raw.svq.config)
    ring.desc["addr"][1] = 1 << 60
    assert ept.recv(1) == (b"good", 7)
    with pytest.raises(BadChain):
        ept.recv(1)
    raw.post(512)
    ept.send(b"still works")
    assert raw.received() == message(HERE, 1, b"still works")


def test_memory_that_goes_while_a_message_lies_in_it(kind: str) -> None:
    from virtring import Region

    raw = RawDriver(kind, 4)
    ept = raw.bus.create_ept(addr=HERE, dst=1)
    raw.memory.add_region(1 << 40, Region.anonymous(4096))
    view = raw.memory.view(1 << 40, 4096)
    view[:17] = message(7, HERE, b"x")
    raw.svq.add_outbuf(view[:17], "out")
    raw.rvq.add_inbuf(view[512:1024], "in")
    del view
    held = ept.recv_hold(1)
    buffer = ept.get_tx_buffer()
    raw.memory.remove_region(1 << 40)
    # Whoever holds it keeps it mapped.
    assert bytes(held.data) == b"x"
    buffer.view[:2] = b"ok"
    ept.send_nocopy(buffer, 2)
    held.release()
    raw.send(message(7, HERE, b"next"))
    assert ept.recv(1) == (b"next", 7)


def test_a_flooding_peer_keeps_nobody(kind: str) -> None:
    """Messages for nobody, faster than they are taken: waits end in time, memory is bounded."""
    bus, raw = driver_and_raw(kind, 8)
    ept = bus.create_ept(addr=HERE)
    junk = message(1, 999, b"junk")

    def flood() -> None:
        while (chain := raw.inputs.next_chain()) is not None:
            chain.write(junk)
            chain.return_()

    for _ in range(200):
        flood()
        assert bus.process() <= 8
    flood()
    with pytest.raises(TimeoutError):
        ept.recv(0.01)
    assert bus.counters.dropped["no_endpoint"] == 201 * 8
    assert rx_total(bus.port) == 8


headers = st.builds(
    lambda src, dst, reserved, length, flags: HEADER.pack(src, dst, reserved, length, flags),
    st.sampled_from([0, 1, 53, HERE, 1024, ADDR_ANY]),
    st.sampled_from([0, 1, 53, HERE, 1024, ADDR_ANY]),
    st.integers(0, 0xFFFFFFFF),
    st.one_of(st.integers(0, 64), st.integers(0, 0xFFFF)),
    st.integers(0, 0xFFFF),
)
buffers = st.tuples(
    st.builds(
        lambda header, rest, cut: (header + rest)[: max(cut, 1)],
        headers, st.binary(max_size=60), st.integers(0, 80),
    ),
    st.integers(0, 64),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(buffers, st.integers(0, 3)), max_size=40))
def test_random_buffers_at_the_driver(
    kind: str, steps: list[tuple[tuple[bytes, int], int]]
) -> None:
    bus, raw = driver_and_raw(kind, 4, rx_buf_size=64, tx_buf_size=64)
    ept = bus.create_ept(addr=HERE)
    got = Messages(3, 48)
    wanted: list[bytes] = []
    came: list[bytes] = []
    posted = 0
    for (data, used), how in steps:
        data = data[:64]
        # What the buffer held before belongs to it too: start from zeros.
        raw.write(data.ljust(64, b"\0"), used)
        posted += 1
        _, dst, _, length, _ = HEADER.unpack(data.ljust(64, b"\0")[:16])
        if used >= 16 and length <= used - 16 and dst == HERE:
            wanted.append(data.ljust(64, b"\0")[16 : 16 + length])
        if how == 0:
            bus.process()
        elif how == 1:
            ept.recv_batch(got)
            came += [got.payload(i) for i in range(got.count)]
        elif how == 2:
            with contextlib.suppress(TimeoutError), ept.recv_hold(0) as held:
                came.append(bytes(held.data))
        else:
            with contextlib.suppress(TimeoutError):
                came.append(ept.recv(0)[0])
        assert rx_total(bus.port) == 4
    while ept.recv_batch(got):
        came += [got.payload(i) for i in range(got.count)]
    assert came == wanted
    counters = bus.counters
    assert rx_total(bus.port) == bus.port.rx_posted == 4
    dropped = counters.dropped
    assert counters.rx_messages + dropped["short"] + dropped["length"] == posted
    assert counters.tx_messages == 0


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            buffers, st.integers(0, 3), st.lists(st.integers(1, 70), min_size=1, max_size=4)
        ),
        max_size=40,
    )
)
def test_random_buffers_at_the_device(
    kind: str, steps: list[tuple[tuple[bytes, int], int, list[int]]]
) -> None:
    raw = RawDriver(kind, 8, rx_buf_size=64, tx_buf_size=64)
    ept = raw.bus.create_ept(addr=HERE, dst=5)
    got = Messages(3, 48)
    wanted: list[bytes] = []
    came: list[bytes] = []
    answers = 0
    for (data, cut), how, sizes in steps:
        pieces = [piece for piece in (data[:cut], data[cut:]) if piece]
        raw.send(*pieces)
        if len(data) >= 16:
            _, dst, _, length, _ = HEADER.unpack(data[:16])
            if len(data) <= 64 and length <= len(data) - 16 and dst == HERE:
                wanted.append(data[16 : 16 + length])
        raw.post(*sizes)
        try:
            if how % 2:
                ept.trysend(b"answer")
            else:
                rows = Messages(1, 48)
                rows.append(b"answer")
                if ept.trysend_many(rows) == 0:
                    raise NoSpace
            answers += 1
        except NoSpace:
            assert sum(sizes) < 64
        if how == 0:
            raw.bus.process()
        elif how == 1:
            ept.recv_batch(got)
            came += [got.payload(i) for i in range(got.count)]
        elif how == 2:
            with contextlib.suppress(TimeoutError), ept.recv_hold(0) as held:
                came.append(bytes(held.data))
        else:
            with contextlib.suppress(TimeoutError):
                came.append(ept.recv(0)[0])
        while (back := raw.received()) is not None:
            assert back in (b"", message(HERE, 5, b"answer"))
            answers -= back != b""
        raw.svq.get_buf()
        raw.svq.get_buf()
    assert answers == 0
    assert raw.rvq.in_flight == 0
    while ept.recv_batch(got):
        came += [got.payload(i) for i in range(got.count)]
    assert came == wanted
    while raw.svq.get_buf() is not None:
        pass
    assert raw.svq.in_flight == 0


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 5)), max_size=80))
def test_no_transmit_buffer_is_ever_lost(kind: str, steps: list[tuple[int, int]]) -> None:
    """Any mix of sends, batches, held and released buffers, broken queues and completions."""
    bus, raw = driver_and_raw(kind, 4)
    ept = bus.create_ept(addr=HERE, dst=1)
    rows = Messages(6)
    rows.count = 6
    held = []
    out = []
    sent = 0
    for step, n in steps:
        free = bus.port.tx_free
        try:
            if step == 0:
                ept.trysend(bytes(n))
                sent += 1
            elif step == 1:
                sent += ept.trysend_many(rows, 0, n)
            elif step == 2:
                held.append(ept.get_tx_buffer(wait=False))
            elif step == 3 and held:
                ept.send_nocopy(held.pop(n % len(held)), n)
                sent += 1
            elif step == 4 and held:
                held.pop(n % len(held)).release()
            elif step == 5:
                bus.port.svq.break_()
                with pytest.raises(QueueBroken):
                    ept.trysend(b"x")
                bus.port.svq.unbreak()
                # A used buffer may have been noticed, none may have gone.
                assert bus.port.tx_free >= free
            elif step == 6:
                out += raw.sent()
            elif step == 7 and out:
                out.pop(n % len(out)).return_(0)
        except NoSpace:
            assert step in (0, 2)
        assert tx_total(bus.port) == 4
        assert bus.port.tx_held == len(held)
    assert bus.counters.tx_messages == sent
    for buffer in held:
        buffer.release()
    for chain in out + raw.sent():
        chain.return_(0)
    assert ept.trysend_many(rows, 0, 4) == 4
