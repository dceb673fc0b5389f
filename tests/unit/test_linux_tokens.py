"""What Linux's driver side does with tokens, contexts and buffers, and at the end of a queue."""

from __future__ import annotations

import pytest

from virtring import (
    AddressError,
    Batch,
    BufferPool,
    Feature,
    GuestMemory,
    InvalidArgument,
    QueueBroken,
    QueueClosed,
    virtio_break_device,
    virtio_unbreak_device,
    vring_del_virtqueue,
)

from ._rings import BASE, KINDS, SIZE, WRITE, Ring

IND = Feature.INDIRECT_DESC
both = pytest.mark.parametrize("kind", KINDS)


# -- tokens and contexts -------------------------------------------------------------------------


@both
def test_get_buf_ctx(kind: str) -> None:
    ring = Ring(kind, 4, context=True)
    a, b = ring.buf(), ring.buf()
    ring.vq.add_inbuf_ctx(a, "a", ["ctx"])
    ring.vq.add_inbuf_ctx([b], "b", None)
    ring.serve(3)
    assert ring.vq.get_buf_ctx() == ("a", 3, ["ctx"])
    assert ring.vq.get_buf_ctx() == ("b", 3, None)
    assert ring.vq.get_buf_ctx() is None
    with pytest.raises(InvalidArgument, match="context=True"):
        Ring(kind).vq.add_inbuf_ctx(a, "a", "ctx")


@both
@pytest.mark.parametrize("how", ["get_buf", "get_buf_batch", "detach"])
def test_a_context_goes_with_its_buffer(kind: str, how: str) -> None:
    ring = Ring(kind, 1, context=True)
    buf = ring.buf()
    ring.vq.add_inbuf_ctx(buf, "old", "old ctx")
    if how == "detach":
        assert ring.tokens() == ["old"]
        ring.vq.restart()
        ring.dq.restore(0x80008000 if ring.packed else 0)
    else:
        ring.serve()
        assert ring.vq.get_buf() if how == "get_buf" else ring.vq.get_buf_batch(Batch(2))
    ring.vq.add_inbuf(buf, "new")
    ring.serve()
    assert ring.vq.get_buf_ctx() == ("new", 0, None)
    ring.vq.add_inbuf_ctx(buf, "old", "old ctx")
    ring.serve()
    ring.vq.get_buf()
    batch = Batch(1)
    batch.addr[0], batch.len[0], batch.token[0], batch.count = ring.addr(buf), 16, 7, 1
    ring.vq.add_inbuf_batch(batch)
    ring.serve()
    assert ring.vq.get_buf_ctx() == (7, 0, None)


@both
def test_tokens_are_any_object_but_none_and_once_in_flight(kind: str) -> None:
    ring = Ring(kind, 4)
    a, token = ring.buf(), object()
    for add in (ring.vq.add_outbuf, ring.vq.add_inbuf, ring.vq.add_outbuf_premapped):
        with pytest.raises(InvalidArgument, match="None"):
            add([a], None)
        with pytest.raises(InvalidArgument, match="None"):
            add(a, None)
    ring.vq.add_outbuf(a, token)
    for add in (ring.vq.add_outbuf, ring.vq.add_inbuf):
        with pytest.raises(InvalidArgument, match="already stands for a buffer in flight"):
            add(a, token)
        with pytest.raises(InvalidArgument, match="already"):
            add([a, a], token)
    assert ring.vq.num_free == 3
    assert ring.serve() == 1
    assert ring.vq.get_buf() == (token, 0)
    ring.vq.add_outbuf(a, token)
    # By default the buffer itself is the token.
    ring.vq.add_inbuf(a)
    with pytest.raises(InvalidArgument, match="already"):
        ring.vq.add_outbuf(a)
    ring.serve()
    assert ring.vq.get_buf() == (token, 0)
    got = ring.vq.get_buf()
    assert got is not None
    assert got[0] is a


@both
def test_object_and_batch_tokens_mix(kind: str) -> None:
    ring = Ring(kind, 8)
    buf = ring.buf()
    batch = Batch(8)
    batch.addr[:], batch.len[:], batch.token[:] = ring.addr(buf), 16, range(100, 108)
    ring.vq.add_inbuf(buf, "first")
    ring.vq.add_inbuf_batch(batch, 0, 2)
    ring.vq.add_inbuf([buf, buf], "second")
    ring.vq.add_inbuf_batch(batch, 2, 1)
    assert ring.serve(16) == 5
    assert ring.vq.get_buf() == ("first", 16)
    assert ring.vq.get_buf() == (100, 16)
    assert ring.vq.get_buf_batch(batch) == 3
    assert batch.count == len(batch) == 3
    assert batch.objects == {1: "second"}
    assert [int(batch.token[0]), int(batch.token[2])] == [101, 102]
    assert list(batch.written[:3]) == [16, 16, 16]
    assert ring.vq.get_buf_batch(batch) == 0
    assert batch.objects == {}
    ring.vq.add_inbuf(buf, "detached")
    batch.token[0] = 0
    ring.vq.add_inbuf_batch(batch, 0, 1)
    assert sorted(ring.tokens(), key=str) == [0, "detached"]


@both
def test_pool_buffers_send_what_is_in_use(kind: str) -> None:
    ring = Ring(kind, 8)
    pool = BufferPool(ring.memory, 2, 64)
    out, in_ = pool.get(), pool.get()
    out.len = 5
    out.view[:] = b"hello"
    in_.len = 1
    ring.vq.add_sgs([out], [in_], "x")
    chain = ring.dq.next_chain()
    assert chain.read() == b"hello"
    assert chain.writable_bytes == 64
    chain.write(b"world!")
    chain.return_()
    assert ring.vq.get_buf() == ("x", 6)
    assert bytes(in_)[:6] == b"world!"
    out.len = 0
    for sg in (out, [out]):
        with pytest.raises(InvalidArgument):
            ring.vq.add_outbuf(sg, "empty")
    other = BufferPool(GuestMemory.create(SIZE), 1, 64)
    with pytest.raises(AddressError, match="another guest memory"):
        ring.vq.add_outbuf(other.get(), "foreign")
    assert ring.vq.num_free == 8


@both
def test_premapped(kind: str) -> None:
    ring = Ring(kind, 4, context=True)
    addr = ring.addr(ring.buf(64))
    ring.vq.add_outbuf_premapped([(addr, 8), (addr + 8, 4)], "out")
    ring.vq.add_inbuf_premapped([(addr + 16, 32)], "in", "ctx")
    parts = [(d.addr, d.len, d.writable) for d in ring.dq.next_chain()]
    assert parts == [(addr, 8, False), (addr + 8, 4, False)]
    chain = ring.dq.next_chain()
    assert [(d.addr, d.len, d.writable) for d in chain] == [(addr + 16, 32, True)]
    chain.return_(2)
    assert ring.vq.get_buf_ctx() == ("in", 2, "ctx")
    for bad in ([addr], [(addr,)], [(addr, 1, 1)], [(-1, 1)], [(addr, 1 << 32)], [("x", 1)]):
        with pytest.raises(InvalidArgument, match="pair"):
            ring.vq.add_outbuf_premapped(bad, "bad")
    with pytest.raises(AddressError):
        ring.vq.add_outbuf_premapped([(BASE + SIZE - 1, 2)], "bad")
    assert ring.vq.num_free == 2


# -- the end of a queue --------------------------------------------------------------------------


@both
def test_detach_unused_buf(kind: str) -> None:
    ring = Ring(kind, 8, IND)
    bufs = [ring.buf() for _ in range(3)]
    ring.vq.add_outbuf(bufs[0], "a")
    ring.vq.add_sgs(bufs[:2], bufs[2:], "b")
    ring.vq.add_inbuf(bufs[2], "c")
    ring.serve(most=1)
    assert ring.vq.get_buf() == ("a", 0)
    assert sorted(ring.tokens()) == ["b", "c"]
    assert ring.vq.num_free == 8
    assert ring.vq.in_flight == 0
    if not ring.packed:
        assert ring.raw.avail["idx"] == 1


@both
@pytest.mark.parametrize("in_order", [False, True])
def test_a_broken_queue_gives_everything_back(kind: str, in_order: bool) -> None:
    ring = Ring(kind, 8, Feature.IN_ORDER if in_order else Feature(0))
    for i in range(5):
        ring.vq.add_inbuf(ring.buf(), i)
    ring.serve(16, most=2)
    assert ring.vq.get_buf() == (0, 16)
    ring.vq.break_()
    assert ring.tokens() == [1, 2, 3, 4]
    assert ring.vq.num_free == 8
    ring.vq.unbreak()
    ring.vq.restart()
    ring.dq.restore(0x80008000 if ring.packed else 0)
    for lap in range(3):
        for i in range(8):
            ring.vq.add_inbuf(ring.buf(), (lap, i))
        assert ring.serve(16) == 8
        assert [ring.vq.get_buf() for i in range(8)] == [((lap, i), 16) for i in range(8)]


@both
def test_break_device(kind: str) -> None:
    rings = [Ring(kind), Ring(kind)]
    vqs = [rings[0].vq, None, rings[1].vq]
    virtio_break_device(vqs)
    for ring in rings:
        with pytest.raises(QueueBroken):
            ring.vq.add_outbuf(ring.buf(), 1)
        assert ring.vq.kick() is False
    virtio_unbreak_device(vqs)
    for ring in rings:
        ring.vq.add_outbuf(ring.buf(), 1)
        assert ring.serve() == 1


@both
def test_a_deleted_queue_gives_its_ring_back(kind: str) -> None:
    ring = Ring(kind, 8, IND)
    addr = ring.addr(ring.buf())
    kept = ring.memory.allocated
    ring.vq.virtqueue_add([(addr, 8)], [(addr, 8)], "in flight", premapped=True)
    ring.raw = None  # type: ignore[assignment]
    ring.dq.close()
    vring_del_virtqueue(ring.vq)
    vring_del_virtqueue(ring.vq)
    assert ring.memory.allocated < kept
    for call in (
        lambda: ring.vq.add_outbuf_premapped([(addr, 8)], 1),
        ring.vq.get_buf,
        ring.vq.kick,
        ring.vq.kick_prepare,
        ring.vq.detach_unused_buf,
        ring.vq.enable_cb,
        ring.dq.next_chain,
        ring.dq.need_notify,
        lambda: ring.dq.pop(Batch(1)),
        lambda: ring.dq.push(Batch(1)),
        lambda: ring.dq.configure(ring.vq.config),
    ):
        with pytest.raises(QueueClosed):
            call()
    assert ring.vq.notify() is False
    ring.memory.close()


@both
def test_writable_flag_is_what_the_device_sees(kind: str) -> None:
    ring = Ring(kind, 4)
    ring.vq.add_inbuf(ring.buf(), 1)
    assert ring.raw.desc[0]["flags"] & WRITE
