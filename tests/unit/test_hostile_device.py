"""A device that writes garbage into the ring: the driver side says what, breaks, loses nothing."""

from __future__ import annotations

import re
from typing import Any

import pytest

from virtring import Batch, Feature, QueueBroken
from virtring.errors import BadUsedRing

from ._rings import AVAIL, KINDS, USED, WRITE, Ring

IN_ORDER = Feature.IN_ORDER
both = pytest.mark.parametrize("kind", KINDS)
by_call_and_batch = pytest.mark.parametrize("batched", [False, True], ids=["call", "batch"])


def write_used(ring: Ring, position: int, ident: int, length: int = 0) -> None:
    """The device's next used entry, in the first lap; split: also used.idx."""
    if ring.packed:
        entry = ring.raw.desc[position]
        entry["id"], entry["len"], entry["flags"] = ident, length, AVAIL | USED | WRITE
    else:
        ring.raw.used["ring"][position % ring.num] = (ident, length)
        ring.raw.used["idx"] = position + 1


class Taker:
    """Takes used buffers by single calls or by batches of four."""

    def __init__(self, ring: Ring, batched: bool) -> None:
        self.vq = ring.vq
        self.batch = Batch(4) if batched else None

    def __call__(self) -> list[Any]:
        if self.batch is None:
            got = self.vq.get_buf()
            return [] if got is None else [got]
        n = self.vq.get_buf_batch(self.batch)
        tokens = [self.batch.objects.get(i, int(self.batch.token[i])) for i in range(n)]
        return list(zip(tokens, self.batch.written[:n].tolist(), strict=True))


def fill(ring: Ring, n: int, objects: bool) -> list[Any]:
    """Add n writable buffers of 16 bytes; their tokens."""
    tokens: list[Any]
    if objects:
        tokens = [f"token {i}" for i in range(n)]
        for token in tokens:
            ring.vq.add_inbuf(ring.buf(), token)
        return tokens
    batch = Batch(n)
    batch.addr[:], batch.len[:], batch.token[:] = ring.addr(ring.buf()), 16, range(100, 100 + n)
    batch.count = n
    assert ring.vq.add_inbuf_batch(batch) == n
    return list(range(100, 100 + n))


def assert_broken_but_whole(ring: Ring, tokens: list[Any]) -> None:
    assert ring.vq.is_broken
    for call in (
        lambda: ring.vq.add_outbuf(ring.buf(), 1),
        ring.vq.get_buf,
        lambda: ring.vq.get_buf_batch(Batch(1)),
        lambda: ring.vq.add_inbuf_batch(Batch(1), 0, 1),
    ):
        with pytest.raises(QueueBroken):
            call()
    assert ring.tokens() == tokens
    assert (ring.vq.num_free, ring.vq.in_flight) == (ring.num, 0)


@both
@by_call_and_batch
@pytest.mark.parametrize("objects", [False, True], ids=["numbers", "objects"])
@pytest.mark.parametrize(
    ("ident", "message"),
    [
        (8, "used entry 0 names id 8; a ring of 8 has ids 0 to 8 - 1"),
        (0xFFFF, "names id 65535"),
        (5, "used entry 0 names id 5, which is not the head of a buffer in flight"),
    ],
)
@pytest.mark.parametrize("features", [Feature(0), IN_ORDER], ids=["any order", "in order"])
def test_bad_id(
    kind: str, batched: bool, objects: bool, ident: int, message: str, features: Feature
) -> None:
    ring = Ring(kind, 8, features)
    tokens = fill(ring, 3, objects)
    write_used(ring, 0, ident)
    with pytest.raises(BadUsedRing, match=re.escape(f"{kind} 0: ")) as caught:
        Taker(ring, batched)()
    assert message in str(caught.value)
    assert (caught.value.position, caught.value.value) == (0, ident)
    assert_broken_but_whole(ring, tokens)


@by_call_and_batch
def test_split_id_beyond_16_bits(batched: bool) -> None:
    ring = Ring("split", 8)
    tokens = fill(ring, 1, False)
    write_used(ring, 0, 0x10000)
    with pytest.raises(BadUsedRing, match="names id 65536"):
        Taker(ring, batched)()
    assert_broken_but_whole(ring, tokens)


@both
@by_call_and_batch
@pytest.mark.parametrize("objects", [False, True], ids=["numbers", "objects"])
def test_an_id_twice_is_told_after_what_was_good(kind: str, batched: bool, objects: bool) -> None:
    ring = Ring(kind, 8)
    tokens = fill(ring, 4, objects)
    for position, ident in enumerate((2, 0, 2)):
        write_used(ring, position, ident, 7)
    take = Taker(ring, batched)
    good = take() + ([] if batched else take())
    assert good == [(tokens[2], 7), (tokens[0], 7)]
    with pytest.raises(BadUsedRing, match="used entry 2 names id 2, which is not"):
        take()
    assert_broken_but_whole(ring, [tokens[1], tokens[3]])


@both
@by_call_and_batch
def test_inside_a_chain_is_no_head(kind: str, batched: bool) -> None:
    ring = Ring(kind, 8)
    ring.vq.add_sgs([ring.buf(), ring.buf()], [], "chain")
    write_used(ring, 0, 1)
    with pytest.raises(BadUsedRing, match="id 1, which is not the head"):
        Taker(ring, batched)()
    assert_broken_but_whole(ring, ["chain"])


@by_call_and_batch
@pytest.mark.parametrize("jump", [3, 9, 0x8000, 0xFFFF])
@pytest.mark.parametrize("features", [Feature(0), IN_ORDER], ids=["any order", "in order"])
def test_used_idx_jump(batched: bool, jump: int, features: Feature) -> None:
    ring = Ring("split", 8, features)
    tokens = fill(ring, 2, False)
    ring.raw.used["idx"] = jump
    message = rf"used.idx went from 0 to {jump}, but only 2 buffers are in flight"
    with pytest.raises(BadUsedRing, match=message):
        Taker(ring, batched)()
    assert_broken_but_whole(ring, tokens)


@both
@by_call_and_batch
@pytest.mark.parametrize("objects", [False, True], ids=["numbers", "objects"])
@pytest.mark.parametrize("features", [Feature(0), IN_ORDER], ids=["any order", "in order"])
@pytest.mark.parametrize("length", [17, 0xFFFFFFFF])
def test_length_is_clamped(
    kind: str, batched: bool, objects: bool, features: Feature, length: int
) -> None:
    ring = Ring(kind, 8, features)
    (token,) = fill(ring, 1, objects)
    write_used(ring, 0, 0, length)
    assert Taker(ring, batched)() == [(token, 16)]
    assert ring.vq.excess == 1
    assert not ring.vq.is_broken


@both
def test_length_of_what_the_device_cannot_write(kind: str) -> None:
    ring = Ring(kind, 8, Feature.INDIRECT_DESC)
    ring.vq.add_sgs([ring.buf(100)], [ring.buf(3), ring.buf(4)], "chain")
    ring.vq.add_outbuf(ring.buf(), "out")
    write_used(ring, 0, 0, 100)
    write_used(ring, 1, 1, 16)
    assert ring.vq.get_buf() == ("chain", 7)
    assert ring.vq.get_buf() == ("out", 0)
    assert ring.vq.excess == 2


@both
@by_call_and_batch
def test_in_order_group(kind: str, batched: bool) -> None:
    """One used entry stands for three buffers; those before the last count as full."""
    ring = Ring(kind, 8, IN_ORDER)
    tokens = fill(ring, 4, False)
    write_used(ring, 0, 2, 5)
    if not ring.packed:
        ring.raw.used["idx"] = 3
    take = Taker(ring, batched)
    got = take() + ([] if batched else take() + take())
    assert got == [(tokens[0], 16), (tokens[1], 16), (tokens[2], 5)]
    assert take() == []
    assert not ring.vq.is_broken


@by_call_and_batch
@pytest.mark.parametrize("idx", [1, 2])
def test_in_order_group_longer_than_the_index_says(batched: bool, idx: int) -> None:
    ring = Ring("split", 8, IN_ORDER)
    tokens = fill(ring, 4, False)
    write_used(ring, 0, 3, 5)
    ring.raw.used["idx"] = idx
    take = Taker(ring, batched)
    for token in tokens[: idx - 1]:
        assert take() == [(token, 16)]
    with pytest.raises(BadUsedRing, match="id 3 out of order"):
        take()
    assert_broken_but_whole(ring, tokens[idx - 1 :])


@both
def test_garbage_in_event_words_only_costs_notifications(kind: str) -> None:
    for event_idx in (Feature(0), Feature.EVENT_IDX):
        for garbage in (0, 1, 2, 3, 0x7FFF, 0x8001, 0xFFFF):
            ring = Ring(kind, 8, event_idx)
            buf = ring.buf()
            for i in range(20):
                if ring.packed:
                    ring.raw.device["off_wrap"] = garbage
                    ring.raw.device["flags"] = garbage
                else:
                    ring.raw.used["flags"] = garbage
                    ring.raw.used["avail_event"] = garbage
                ring.vq.add_outbuf(buf, i)
                ring.vq.kick()
                ring.serve()
                assert ring.vq.get_buf() == (i, 0)


@both
def test_descriptors_are_not_read_back(kind: str) -> None:
    """The device overwrites descriptors, tables and available entries; the driver has its own."""
    for features in (Feature(0), Feature.INDIRECT_DESC):
        ring = Ring(kind, 8, features)
        sgs = [ring.buf(), ring.buf()]
        for i in range(3):
            ring.vq.add_sgs(sgs[:1], sgs[1:], i)
        for chain in (ring.dq.next_chain(), ring.dq.next_chain()):
            chain.return_(16)
        for entry in ring.raw.desc[3:] if ring.packed else ring.raw.desc:
            entry["addr"], entry["len"] = 2**64 - 1, 0
            if not ring.packed:
                entry["flags"], entry["next"] = 0xFFFF, 0xFFFF
        assert [ring.vq.get_buf() for _ in range(2)] == [(0, 16), (1, 16)]
        assert ring.vq.num_free == (7 if features else 6)
        ring.vq.add_sgs(sgs[:1], sgs[1:], "next")
        assert sorted(ring.tokens(), key=str) == [2, "next"]
        assert ring.vq.num_free == 8


@both
def test_used_length_is_remembered_by_the_driver_not_by_the_ring(kind: str) -> None:
    ring = Ring(kind, 8)
    ring.vq.add_inbuf(ring.buf(), "x")
    ring.raw.desc[0]["len"] = 1 << 30
    write_used(ring, 0, 0, 1 << 20)
    assert ring.vq.get_buf() == ("x", 16)
