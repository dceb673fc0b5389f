"""What virtio 1.4 demands of both layouts alike (2.7, 2.8), read from the bytes of the ring."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from virtring import (
    Batch,
    Feature,
    GuestMemory,
    InvalidArgument,
    NoSpace,
    RingDevice,
    vring_create_virtqueue,
)
from virtring.spec.dtypes import VRING_DESC, VRING_PACKED_DESC

from ._rings import BASE, INDIRECT, KINDS, NEXT, SIZE, WRITE, Ring

IND = Feature.INDIRECT_DESC
IN_ORDER = Feature.IN_ORDER
EVENT = Feature.EVENT_IDX
both = pytest.mark.parametrize("kind", KINDS)
tables = pytest.mark.parametrize("features", [Feature(0), IND], ids=["direct", "indirect"])


def head(ring: Ring, position: int) -> int:
    """The index of the first descriptor of the buffer added at ``position``."""
    return position % ring.num if ring.packed else int(ring.raw.avail["ring"][position % ring.num])


def in_ring(ring: Ring, index: int) -> list[Any]:
    """The descriptors of a chain that are in the ring itself."""
    found = [ring.raw.desc[index].copy()]
    while found[-1]["flags"] & NEXT:
        index = (index + 1) % ring.num if ring.packed else int(found[-1]["next"])
        found.append(ring.raw.desc[index].copy())
    return found


def in_table(ring: Ring, descriptor: Any) -> list[Any]:
    """The entries of the indirect table that a descriptor refers to, as they lie in memory."""
    raw = ring.memory.read(int(descriptor["addr"]), int(descriptor["len"]))
    return list(np.frombuffer(raw, VRING_PACKED_DESC if ring.packed else VRING_DESC))


def everything(ring: Ring, position: int) -> list[Any]:
    found = in_ring(ring, head(ring, position))
    if found[-1]["flags"] & INDIRECT:
        found[-1:] = in_table(ring, found[-1])
    return found


def add_in_every_way(ring: Ring, shape: tuple[int, int]) -> int:
    """Add a buffer of ``shape`` (readable, writable parts) by each method; how many were added."""
    out, in_ = ([ring.buf() for _ in range(n)] for n in shape)
    pairs = [(ring.addr(buf), len(buf)) for buf in out + in_]
    ring.vq.add_sgs(out, in_, "sgs")
    ring.vq.virtqueue_add(out, in_, "add")
    ring.vq.virtqueue_add(out, in_, "rpmsg", rpmsg=True)
    ring.vq.virtqueue_add(pairs[: shape[0]], pairs[shape[0] :], "premapped", premapped=True)
    batch = Batch(1, len(pairs))
    batch.addr[:], batch.len[:] = np.array(pairs).T
    batch.flags[: shape[0]], batch.flags[shape[0] :] = 0, WRITE
    batch.offsets[:2], batch.count = [0, len(pairs)], 1
    assert ring.vq.add_sgs_batch(batch) == 1
    return 5


SHAPES = [(1, 0), (0, 1), (1, 1), (3, 0), (0, 3), (2, 4)]


@pytest.mark.parametrize("align", [4, 64, 4096])
@pytest.mark.parametrize(
    ("kind", "version"),
    [("split", Feature(0)), ("split", Feature.VERSION_1), ("packed", Feature.VERSION_1)],
    ids=["legacy", "split", "packed"],
)
def test_every_part_is_aligned(kind: str, version: Feature, align: int) -> None:
    packed = kind == "packed"
    memory = GuestMemory.create(SIZE, base=BASE, kind="anonymous")
    vdev = RingDevice(memory, version | (Feature.RING_PACKED if packed else 0))
    for num in range(1, 40) if packed else [1, 2, 4, 8, 16, 32]:
        memory.alloc(num * 3 % 7 + 1, 1)
        config = vring_create_virtqueue(0, num, align, vdev).config
        assert config.desc % 16 == 0
        assert config.avail % (4 if packed else 2) == 0
        assert config.used % 4 == 0


@both
@tables
def test_the_device_sees_the_message_however_it_is_framed(kind: str, features: Feature) -> None:
    message, answer = bytes(range(1, 25)), bytes(range(100, 124))
    for cuts in ([24], [12, 24], [1, 2, 3, 24], [7, 8, 20, 24], [23, 24]):
        ring = Ring(kind, 16, features)
        starts = [0, *cuts[:-1]]
        out = [ring.buf(end - start) for start, end in zip(starts, cuts, strict=True)]
        in_ = [ring.buf(end - start) for start, end in zip(starts, cuts, strict=True)][::-1]
        for buf, start, end in zip(out, starts, cuts, strict=True):
            buf[:] = message[start:end]
        ring.vq.add_sgs(out, in_, "framed")
        chain = ring.dq.next_chain()
        assert chain.read() == message
        assert chain.write(answer) == 24
        chain.return_()
        assert ring.vq.get_buf() == ("framed", 24)
        assert b"".join(in_) == answer


@both
@tables
@pytest.mark.parametrize("shape", SHAPES)
def test_writable_parts_come_last(kind: str, features: Feature, shape: tuple[int, int]) -> None:
    ring = Ring(kind, 32, features)
    position = 0
    for _ in range(add_in_every_way(ring, shape)):
        flags = [int(d["flags"]) & WRITE for d in everything(ring, position)]
        assert flags == shape[0] * [0] + shape[1] * [WRITE]
        position += len(in_ring(ring, head(ring, position))) if ring.packed else 1


@both
@pytest.mark.parametrize("shape", SHAPES)
def test_no_table_unless_negotiated(kind: str, shape: tuple[int, int]) -> None:
    ring = Ring(kind, 32)
    add_in_every_way(ring, shape)
    assert not (ring.raw.desc["flags"] & INDIRECT).any()
    assert ring.vq.num_free == 32 - 5 * sum(shape)


@both
@pytest.mark.parametrize("features", [IND, IND | IN_ORDER], ids=["any order", "in order"])
@pytest.mark.parametrize("shape", [(3, 0), (0, 3), (2, 4)])
def test_flags_of_tables(kind: str, features: Feature, shape: tuple[int, int]) -> None:
    ring = Ring(kind, 32, features)
    position = found = 0
    for _ in range(add_in_every_way(ring, shape)):
        direct = in_ring(ring, head(ring, position))
        position += len(direct) if ring.packed else 1
        for descriptor in direct:
            if not descriptor["flags"] & INDIRECT:
                continue
            found += 1
            assert direct == [descriptor]  # never with NEXT, and nothing links to it
            entries = in_table(ring, descriptor)
            assert len(entries) == sum(shape)
            assert not any(entry["flags"] & INDIRECT for entry in entries)
            if ring.packed:
                assert {int(entry["flags"]) for entry in entries} <= {0, WRITE}
            else:
                # in order, as IN_ORDER wants it; here always
                assert [int(e["next"]) for e in entries[:-1]] == list(range(1, len(entries)))
                more = [bool(entry["flags"] & NEXT) for entry in entries]
                assert more == [True] * (len(entries) - 1) + [False]
    assert found == 4  # all but the one for RPMsg


@both
@tables
def test_a_chain_is_at_most_the_ring(kind: str, features: Feature) -> None:
    ring = Ring(kind, 4, features)
    addr = ring.addr(ring.buf(64))
    pairs = [(addr + k, 1) for k in range(5)]
    with pytest.raises(InvalidArgument, match="5 descriptors; this queue takes 1 to 4"):
        ring.vq.add_outbuf_premapped(pairs, "long")
    with pytest.raises(InvalidArgument, match="5 descriptors"):
        ring.vq.add_sgs([ring.buf() for _ in range(2)], [ring.buf() for _ in range(3)], "long")
    batch = Batch(1, 5)
    batch.addr[:], batch.len[:], batch.offsets[:2], batch.count = addr, 1, [0, 5], 1
    with pytest.raises(InvalidArgument, match="row 0 has 5 descriptors"):
        ring.vq.add_sgs_batch(batch)
    assert ring.dq.next_chain() is None
    ring.vq.add_outbuf_premapped(pairs[:4], "whole")
    assert len(ring.dq.next_chain()) == 4


@both
def test_a_readable_buffer_is_not_written(kind: str) -> None:
    ring = Ring(kind, 8)
    out, in_ = ring.buf(), ring.buf()
    out[:] = b"r" * 16
    ring.vq.add_sgs([out], [in_], "both")
    ring.vq.add_outbuf(out, "out")
    chain = ring.dq.next_chain()
    assert [view.readonly for view in chain.readable] == [True]
    assert [chain[0].data.readonly, chain[1].data.readonly] == [True, False]
    with pytest.raises(TypeError, match="read-only"):
        chain[0].data[0] = 1
    chain.write(b"w" * 16)
    with pytest.raises(InvalidArgument):
        chain.write(b"more")
    with pytest.raises(InvalidArgument):
        chain.return_(17)
    chain.return_()
    only_readable = ring.dq.next_chain()
    with pytest.raises(InvalidArgument):
        only_readable.write(b"x")
    with pytest.raises(InvalidArgument):
        only_readable.return_(1)
    only_readable.return_()
    assert bytes(out) == b"r" * 16
    assert [ring.vq.get_buf() for _ in range(2)] == [("both", 16), ("out", 0)]


@both
@pytest.mark.parametrize("event", [Feature(0), EVENT], ids=["flags", "event"])
@tables
def test_exposed_buffers_are_left_alone(kind: str, event: Feature, features: Feature) -> None:
    """Whatever the driver does, descriptors and tables that the device has not used stay."""
    ring = Ring(kind, 8, features | event, callback=lambda vq: None)
    bufs = [ring.buf() for _ in range(2)]
    count = 8 if features else 4
    for i in range(count):
        ring.vq.add_sgs(bufs[:1], bufs[1:], i)

    def exposed(from_: int) -> list[bytes]:
        step = 1 if features else 2
        at = [head(ring, i * step if ring.packed else i) for i in range(from_, count)]
        found = [d for index in at for d in in_ring(ring, index)]
        tables = [entry for d in found if d["flags"] & INDIRECT for entry in in_table(ring, d)]
        return [bytes(d) for d in found + tables]

    def do_things() -> None:
        with pytest.raises((NoSpace, InvalidArgument)):
            ring.vq.add_sgs([bufs[0]] * 9, [], "no room")
        ring.vq.disable_cb()
        ring.vq.enable_cb()
        ring.vq.poll(ring.vq.enable_cb_prepare())
        ring.vq.enable_cb_delayed()
        ring.vq.kick()
        ring.vq.vring_interrupt()

    before = exposed(0)
    do_things()
    with pytest.raises(NoSpace):
        ring.vq.add_sgs(bufs[:1], bufs[1:], "no room")
    assert ring.vq.get_buf() is None
    assert exposed(0) == before
    # One after the other comes back, its place is taken again, and those behind it stay.
    for used in range(count - 1):
        before = exposed(used + 1)
        assert ring.serve(16, most=1) == 1
        assert ring.vq.get_buf() == (used, 16)
        ring.vq.add_sgs(bufs[1:], bufs[:1], ("again", used))
        do_things()
        assert exposed(used + 1) == before


@both
@pytest.mark.parametrize("event", [Feature(0), EVENT], ids=["flags", "event"])
def test_spurious_notifications(kind: str, event: Feature) -> None:
    called: list[Any] = []
    ring = Ring(kind, 4, event, callback=called.append)
    for i in range(10):
        for _ in range(2):
            assert ring.dq.next_chain() is None
            assert ring.dq.pop(Batch(4)) == 0
            assert not ring.vq.vring_interrupt()
            assert ring.vq.get_buf() is None
        ring.vq.add_inbuf(ring.buf(), i)
        ring.vq.notify()
        ring.vq.notify()
        assert not ring.vq.vring_interrupt()
        assert ring.serve(16) == 1
        assert ring.vq.get_buf() == (i, 16)
    assert (called, ring.vq.num_free, ring.dq.in_flight) == ([], 4, 0)


@both
def test_a_new_ring_is_zero(kind: str) -> None:
    memory = GuestMemory.create(SIZE, base=BASE, kind="anonymous")
    memory.write(BASE, b"\xff" * SIZE)
    ring = Ring(kind, 8, memory=memory, callback=lambda vq: None)
    assert not any(ring.raw.desc.tobytes())
    if ring.packed:
        assert (ring.raw.device["flags"], ring.raw.device["off_wrap"]) == (0, 0)
        assert ring.raw.driver["flags"] == 0
    else:
        assert (ring.raw.used["flags"], ring.raw.used["idx"]) == (0, 0)
        assert (ring.raw.avail["flags"], ring.raw.avail["idx"]) == (0, 0)
    assert ring.dq.next_chain() is None
    assert ring.vq.get_buf() is None


@both
def test_after_a_reset_the_device_leaves_the_queue_alone(kind: str) -> None:
    """2.6.1: no request is executed and nothing is told until the queue is enabled again."""
    ring = Ring(kind, 8, callback=lambda vq: None)
    for i in range(3):
        ring.vq.add_inbuf(ring.buf(), i)
    chain = ring.dq.next_chain()
    ring.dq.reset()
    before = [part.tobytes() for part in vars(ring.raw).values()]
    for call in (ring.dq.next_chain, ring.dq.need_notify, ring.dq.signal, chain.return_):
        with pytest.raises(InvalidArgument):
            call()
    assert [part.tobytes() for part in vars(ring.raw).values()] == before
    assert ring.calls == 0
    # Enabled again it begins where a new queue begins, not where it was.
    ring.vq.restart()
    ring.dq.configure(ring.vq.config)
    assert ring.dq.position == (0x8000_8000 if ring.packed else 0)
    assert ring.dq.in_flight == 0
    ring.vq.add_inbuf(ring.buf(), "first")
    assert ring.serve(16) == 1
    assert ring.dq.signal()
    assert ring.vq.get_buf() == ("first", 16)


@both
@pytest.mark.parametrize("features", [Feature(0), IND], ids=["direct", "indirect"])
def test_a_chain_of_more_than_4_gib_is_refused(kind: str, features: Feature) -> None:
    bits = Feature.VERSION_1 | features
    if kind == "packed":
        bits |= Feature.RING_PACKED
    # Sparse: only the ring and the tables are ever written.
    with GuestMemory.create((1 << 30) + (1 << 20)) as memory:
        vq = vring_create_virtqueue(0, 8, 64, RingDevice(memory, bits))
        gib = (0x10000 + (1 << 20), 1 << 30)
        vq.add_outbuf_premapped([gib] * 4, "all of 4 GiB")
        free = vq.num_free
        with pytest.raises(InvalidArgument, match="4294967297 bytes in all"):
            vq.add_outbuf_premapped([gib] * 3 + [(gib[0], (1 << 30) - 1), (gib[0], 2)], "more")
        rows = Batch(1, 5)
        rows.addr[:] = gib[0]
        rows.len[:] = gib[1]
        rows.offsets[:] = [0, 5]
        rows.count = 1
        with pytest.raises(InvalidArgument, match="5368709120 bytes in all"):
            vq.add_sgs_batch(rows)
        assert vq.num_free == free
        assert vq.detach_unused_buf() == "all of 4 GiB"
        vq.close()
