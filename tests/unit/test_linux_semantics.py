"""The corners in which the driver side does what Linux's virtio_ring.c does."""

from __future__ import annotations

from typing import Any

import pytest

from virtring import (
    Batch,
    Feature,
    GuestMemory,
    IotlbMemory,
    NoSpace,
    QueueBroken,
)
from virtring.errors import OutOfMemory

from ._rings import BASE, INDIRECT, KINDS, SIZE, Ring

IND = Feature.INDIRECT_DESC
EVENT = Feature.EVENT_IDX
both = pytest.mark.parametrize("kind", KINDS)


# -- going indirect ------------------------------------------------------------------------------


@both
def test_more_than_one_buffer_goes_indirect(kind: str) -> None:
    ring = Ring(kind, 4, IND)
    out, in_ = ring.buf(), ring.buf(24)
    ring.vq.add_sgs([out], [in_], "chain")
    assert ring.vq.num_free == 3
    assert ring.raw.desc[0]["flags"] & INDIRECT
    assert ring.raw.desc[0]["len"] == 32
    chain = ring.dq.next_chain()
    assert [(d.addr, d.len, d.writable) for d in chain] == [
        (ring.addr(out), 16, False),
        (ring.addr(in_), 24, True),
    ]
    chain.return_(24)
    assert ring.vq.get_buf() == ("chain", 24)
    assert ring.vq.num_free == 4


@both
def test_one_buffer_stays_direct(kind: str) -> None:
    ring = Ring(kind, 4, IND)
    ring.vq.add_outbuf([ring.buf()], 1)
    assert not ring.raw.desc[0]["flags"] & INDIRECT


@both
def test_indirect_takes_longer_chains_than_there_are_free_descriptors(kind: str) -> None:
    ring = Ring(kind, 4, IND)
    for i in range(4):
        ring.vq.add_sgs([ring.buf() for _ in range(4)], [], i)
    with pytest.raises(NoSpace):
        ring.vq.add_sgs([ring.buf() for _ in range(4)], [], 4)
    assert ring.serve() == 4
    assert [ring.vq.get_buf() for _ in range(5)] == [(0, 0), (1, 0), (2, 0), (3, 0), None]


@both
def test_tables_are_used_again(kind: str) -> None:
    ring = Ring(kind, 4, IND)
    bufs = [ring.buf() for _ in range(8)]
    allocated = set()
    for lap in range(30):
        for i in range(4):
            ring.vq.add_sgs(bufs[: 2 + (lap + i) % 3], [], i)
        assert ring.serve() == 4
        assert [ring.vq.get_buf()[0] for _ in range(4)] == [0, 1, 2, 3]
        allocated.add(ring.memory.allocated)
    assert len(allocated) == 1


@both
def test_rpmsg_keeps_a_chain_direct(kind: str) -> None:
    ring = Ring(kind, 4, IND)
    ring.vq.virtqueue_add([ring.buf()], [ring.buf()], "direct", rpmsg=True)
    assert ring.vq.num_free == 2
    assert not ring.raw.desc[0]["flags"] & INDIRECT
    with pytest.raises(NoSpace):
        ring.vq.virtqueue_add([ring.buf()], [ring.buf()] * 2, "long", rpmsg=True)
    ring.vq.virtqueue_add([ring.buf()], [ring.buf()] * 2, "long")
    assert ring.serve() == 2
    assert ring.vq.get_buf() == ("direct", 0)
    assert ring.vq.get_buf() == ("long", 0)


@both
def test_a_queue_with_contexts_stays_direct(kind: str) -> None:
    ring = Ring(kind, 4, IND, context=True)
    ring.vq.add_inbuf_ctx([ring.buf(), ring.buf()], "data", "ctx")
    assert ring.vq.num_free == 2
    assert not ring.raw.desc[0]["flags"] & INDIRECT


@both
def test_no_table_means_direct(kind: str) -> None:
    ring = Ring(kind, 4, IND)
    bufs = [ring.buf() for _ in range(3)]
    rest = ring.memory.available
    while rest:
        try:
            ring.memory.alloc(rest, 1)
        except OutOfMemory:
            rest //= 2
        else:
            rest = min(rest, ring.memory.available)
    ring.vq.add_sgs(bufs[:1], bufs[1:], "direct")
    assert ring.vq.num_free == 1
    with pytest.raises(NoSpace, match="needs 3 descriptors and 1 are free"):
        ring.vq.add_sgs(bufs[:1], bufs[1:], "no room")
    ring.vq.add_outbuf(bufs[0], "one")
    assert ring.serve(20) == 2
    assert ring.vq.get_buf() == ("direct", 20)
    # The token of the buffer that was refused is free.
    ring.vq.add_sgs(bufs[:1], bufs[1:], "no room")


@both
def test_memory_that_cannot_allocate_means_direct(kind: str) -> None:
    memory = GuestMemory.create(SIZE, base=BASE, kind="anonymous")
    ring = Ring(kind, 4, IND, memory=memory)
    tlb = IotlbMemory(memory, lambda addr, size, perm: None)
    tlb.map(BASE, SIZE, BASE)
    vq = type(ring.vq)(tlb, ring.vq.config)
    buf = tlb.view(memory.alloc(64), 64)
    vq.add_outbuf([buf[:8], buf[8:16]], 1)
    assert vq.num_free == 2


# -- a full queue, and what the device is told ---------------------------------------------------


@both
def test_a_full_queue_with_something_to_say_is_notified(kind: str) -> None:
    ring = Ring(kind, 2)
    buf = ring.buf()
    for i in range(2):
        ring.vq.add_outbuf(buf, i)
    assert ring.kicks == 0
    with pytest.raises(NoSpace, match="1 descriptors and 0 are free"):
        ring.vq.add_outbuf(buf, 2)
    assert ring.kicks == 1
    with pytest.raises(NoSpace):
        ring.vq.add_sgs([buf], [buf], 2)
    assert ring.kicks == 2
    with pytest.raises(NoSpace):
        ring.vq.add_inbuf(buf, 2)
    with pytest.raises(NoSpace):
        ring.vq.add_sgs([], [buf, buf], 2)
    assert ring.kicks == 2
    assert ring.serve() == 2


@both
def test_a_kick_is_forced_before_num_added_overflows(kind: str) -> None:
    ring = Ring(kind, 256)
    batch = Batch(256)
    batch.addr[:], batch.len[:] = ring.addr(ring.buf()), 8
    batch.written[:] = 0
    batch.count = 256
    for _ in range(255):
        assert ring.vq.add_outbuf_batch(batch) == 256
        assert ring.dq.pop(batch) == ring.dq.push(batch) == 256
        assert ring.vq.get_buf_batch(batch) == 256
    buf = ring.buf()
    for i in range(254):
        ring.vq.add_outbuf(buf, i)
    assert ring.kicks == 0  # 65534 added
    ring.vq.add_outbuf(buf, 254)
    assert ring.kicks == 1
    ring.serve()
    assert ring.vq.kick()
    assert ring.kicks == 2


@both
def test_a_kick_is_forced_before_a_batch_overflows(kind: str) -> None:
    ring = Ring(kind, 4, EVENT)
    batch = Batch(4)
    batch.addr[:], batch.len[:] = ring.addr(ring.buf()), 8
    batch.count = 4
    ring.dq.disable_notify()
    for round_ in range(16383):
        ring.vq.add_outbuf_batch(batch) if round_ % 2 else ring.vq.add_sgs_batch(batch)
        ring.dq.pop(batch)
        batch.written[:] = 0
        ring.dq.push(batch)
        ring.vq.get_buf_batch(batch)
    assert ring.kicks == 0
    assert ring.dq.enable_notify()
    ring.vq.add_outbuf_batch(batch)
    assert ring.vq.kick_prepare()


def test_a_packed_ring_kicks_after_more_descriptors_than_16_bits_count() -> None:
    """One long chain can take num_added from below 65535 to exactly 65536."""
    num = 32768
    ring = Ring("packed", num, EVENT)
    addr = ring.addr(ring.buf())
    chain = [(addr, 1)] * num
    ring.vq.add_outbuf_premapped(chain, "first")
    assert ring.serve() == 1
    assert ring.vq.get_buf() == ("first", 0)
    assert ring.dq.enable_notify()
    ring.vq.add_outbuf_premapped(chain, "second")
    assert ring.kicks == 1


@both
@pytest.mark.parametrize("how", ["kick", "notify", "full", "add"])
def test_a_device_that_cannot_be_notified_breaks_the_queue(kind: str, how: str) -> None:
    ring = Ring(kind, 1, notify=lambda vq: False)
    buf = ring.buf()
    ring.vq.add_outbuf(buf, "token")
    if how == "kick":
        assert ring.vq.kick() is False
    elif how == "notify":
        assert ring.vq.notify() is False
    else:
        with pytest.raises(NoSpace):
            ring.vq.add_outbuf(buf, "more") if how == "add" else ring.vq.add_sgs([buf], [], "more")
    assert ring.vq.is_broken
    assert ring.vq.kick() is False
    assert ring.vq.notify() is False
    with pytest.raises(QueueBroken, match="detach_unused_buf"):
        ring.vq.add_outbuf(buf, "more")
    with pytest.raises(QueueBroken):
        ring.vq.get_buf()
    assert ring.tokens() == ["token"]


@both
def test_a_forced_kick_that_fails_adds_nothing_more(kind: str) -> None:
    """The queue breaks in front of a batch, so none of its rows may be added."""
    ring = Ring(kind, 4, notify=lambda vq: False)
    batch = Batch(4)
    batch.addr[:], batch.len[:] = ring.addr(ring.buf()), 8
    batch.count = 4
    for _ in range(16383):
        ring.vq.add_outbuf_batch(batch)
        ring.dq.pop(batch)
        batch.written[:] = 0
        ring.dq.push(batch)
        ring.vq.get_buf_batch(batch)
    for add in (ring.vq.add_outbuf_batch, ring.vq.add_sgs_batch):
        with pytest.raises(QueueBroken):
            add(batch)
    assert ring.vq.in_flight == 0
    assert ring.dq.next_chain() is None


@both
def test_a_forced_kick_may_add_buffers_itself(kind: str) -> None:
    """notify() runs Python code, which may use up the room that the batch counted on."""
    added: list[object] = []

    def notify(vq: Any) -> None:
        if not added:
            added.append(1)
            vq.add_outbuf(buf, "mine")
            vq.add_outbuf(buf, "mine too")

    ring = Ring(kind, 4, notify=notify)
    buf = ring.buf()
    batch = Batch(4)
    batch.addr[:], batch.len[:] = ring.addr(ring.buf()), 8
    batch.count = 4
    for _ in range(16383):
        ring.vq.add_outbuf_batch(batch)
        ring.dq.pop(batch)
        batch.written[:] = 0
        ring.dq.push(batch)
        ring.vq.get_buf_batch(batch)
    assert ring.vq.add_outbuf_batch(batch) == 2
    assert ring.vq.num_free == 0
    assert ring.serve() == 4


@both
def test_kick_prepare_obeys_the_devices_flags(kind: str) -> None:
    ring = Ring(kind, 8)
    buf = ring.buf()
    ring.vq.add_outbuf(buf, 1)
    assert ring.vq.kick_prepare()
    ring.dq.disable_notify()
    ring.vq.add_outbuf(buf, 2)
    assert not ring.vq.kick_prepare()
    assert ring.vq.kick() is True
    assert ring.kicks == 0
    assert ring.dq.enable_notify() is False  # two chains wait
    ring.vq.add_outbuf(buf, 3)
    assert ring.vq.kick() is True
    assert ring.kicks == 1


@both
def test_event_index_asks_for_one_kick(kind: str) -> None:
    ring = Ring(kind, 8, EVENT)
    buf = ring.buf()
    assert ring.dq.enable_notify()
    wanted = []
    for i in range(6):
        ring.vq.add_outbuf(buf, i)
        wanted.append(ring.vq.kick_prepare())
    assert wanted == [True] + 5 * [False]
    assert ring.serve() == 6  # popping asks again
    ring.vq.add_outbuf(buf, "again")
    assert ring.vq.kick_prepare()
