"""A driver that writes garbage into the ring: the device side says what, breaks, loses nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from virtring import Batch, Feature, QueueBroken, Region
from virtring.errors import BadChain
from virtring.spec.dtypes import VRING_DESC, VRING_PACKED_DESC

from ._rings import AVAIL, BASE, INDIRECT, KINDS, NEXT, SIZE, USED, WRITE, Ring

IND = Feature.INDIRECT_DESC
TOP = 1 << 64
both = pytest.mark.parametrize("kind", KINDS)
#: Address, length in bytes, flags, and (split) next.
Desc = tuple[int, ...]


def put(ring: Ring, position: int, descs: Sequence[Desc], *, offer: bool = True) -> None:
    """Write a chain where the device looks next; split: descriptors from ``position`` on.

    Packed: every descriptor but those with flags >= 128 looks available in the first lap.
    """
    for k, (addr, length, flags, *link) in enumerate(descs):
        index = (position + k) % ring.num
        if ring.packed:
            flags |= 0 if flags >= AVAIL else AVAIL
            ring.raw.desc[index] = (addr, length, position, flags)
        else:
            ring.raw.desc[index] = (addr, length, flags, link[0] if link else index + 1)
    if not ring.packed and offer:
        idx = int(ring.raw.avail["idx"])
        ring.raw.avail["ring"][idx % ring.num] = position
        ring.raw.avail["idx"] = idx + 1


def pop(ring: Ring, batched: bool) -> list[Any]:
    """Ids of what the device gets at one stroke."""
    if not batched:
        chain = ring.dq.next_chain()
        return [] if chain is None else [chain.id]
    batch = Batch(4, 64)
    ids: list[Any] = batch.id[: ring.dq.pop(batch)].tolist()
    return ids


def table(ring: Ring, descs: Sequence[Desc]) -> int:
    """An indirect table; its guest address."""
    addr = ring.memory.alloc(16 * len(descs))
    dtype = VRING_PACKED_DESC if ring.packed else VRING_DESC
    array = np.frombuffer(ring.memory.view(addr, 16 * len(descs)), dtype)
    for k, (at, length, flags, *link) in enumerate(descs):
        array[k] = (
            (at, length, 0, flags) if ring.packed else (at, length, flags, *(link or [k + 1]))
        )
    return addr


def data(ring: Ring) -> int:
    return ring.addr(ring.buf(64))


def assert_bad(ring: Ring, message: str, batched: bool = False, position: int = 0) -> None:
    with pytest.raises(BadChain, match=f"^{ring.kind} 0: .*{re.escape(message)}") as caught:
        pop(ring, batched)
    assert caught.value.position == position
    assert ring.dq.is_broken
    with pytest.raises(QueueBroken):
        ring.dq.next_chain()
    with pytest.raises(QueueBroken):
        ring.dq.pop(Batch(1))


Case = Callable[[Ring, int], Sequence[Desc]]
CASES: dict[str, tuple[Case, str]] = {
    "zero length": (lambda ring, a: [(a, 0, 0)], "has length 0"),
    "zero length behind": (lambda ring, a: [(a, 1, NEXT), (a, 0, WRITE)], "has length 0"),
    "readable after writable": (
        lambda ring, a: [(a, 1, WRITE | NEXT), (a, 1, 0)],
        "readable descriptor behind a writable one",
    ),
    "unmapped": (lambda ring, a: [(0x10, 1, 0)], "has address 0x10 and length 1"),
    "before the memory": (lambda ring, a: [(BASE - 1, 2, 0)], "has address 0xffff"),
    "over the edge": (
        lambda ring, a: [(BASE + SIZE - 8, 9, WRITE)],
        f"has address {BASE + SIZE - 8:#x} and length 9",
    ),
    "behind the memory": (lambda ring, a: [(BASE + SIZE, 1, 0)], "has address 0x110000"),
    "larger than the memory": (lambda ring, a: [(BASE, 0xFFFFFFFF, 0)], "length 4294967295"),
    "address overflow": (lambda ring, a: [(TOP - 1, 2, 0)], "has address 0xffffffffffffffff"),
    "address overflow to good": (
        lambda ring, a: [(TOP - 16, 0xFFFFFFFF, WRITE)],
        "has address 0xfffffffffffffff0",
    ),
    "indirect, not negotiated": (lambda ring, a: [(a, 16, INDIRECT)], "not negotiated"),
}


@both
@pytest.mark.parametrize("batched", [False, True], ids=["call", "batch"])
@pytest.mark.parametrize(("case", "message"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("before", [0, 2])
def test_bad_descriptor(kind: str, batched: bool, case: Case, message: str, before: int) -> None:
    """Good chains in front of a bad one are delivered, and can be pushed on the broken queue."""
    ring = Ring(kind, 8)
    addr = data(ring)
    for k in range(before):
        put(ring, k, [(addr, 4, WRITE)])
    put(ring, before, case(ring, addr))
    got: list[int] = []
    while len(got) < before:
        got += pop(ring, batched)
    assert got == list(range(before))
    assert_bad(ring, message, batched, before)
    batch = Batch(4)
    batch.id[:before], batch.written[:before] = got, 4
    if before:
        assert ring.dq.push(batch, 0, before) == before
    assert ring.dq.in_flight == 0


TABLE_CASES: dict[str, tuple[Case, str]] = {
    "indirect with next": (
        lambda ring, a: [(table(ring, [(a, 1, 0)]), 16, INDIRECT | NEXT), (a, 1, 0)],
        "INDIRECT together with NEXT",
    ),
    "nested": (
        lambda ring, a: [(table(ring, [(a, 16, INDIRECT)]), 16, INDIRECT)],
        "INDIRECT descriptor inside an indirect table",
    ),
    "empty table": (lambda ring, a: [(a, 0, INDIRECT)], "indirect table of 0 bytes"),
    "odd table": (lambda ring, a: [(a, 24, INDIRECT)], "indirect table of 24 bytes"),
    "long table": (
        lambda ring, a: [(table(ring, [(a, 1, NEXT)] * 9), 16 * 9, INDIRECT)],
        "indirect table of 144 bytes; it takes a multiple of 16, from 16 to 16 * 8",
    ),
    "huge table": (lambda ring, a: [(BASE, 0xFFFFFFF0, INDIRECT)], "table of 4294967280 bytes"),
    "table over the edge": (
        lambda ring, a: [(BASE + SIZE - 16, 32, INDIRECT)],
        "and length 32, not inside",
    ),
    "table at the top": (lambda ring, a: [(TOP - 16, 32, INDIRECT)], "0xfffffffffffffff0"),
    "bad address in the table": (
        lambda ring, a: [(table(ring, [(a, 1, NEXT), (TOP - 4, 8, 0)]), 32, INDIRECT)],
        "and length 8, not inside",
    ),
    "zero length in the table": (
        lambda ring, a: [(table(ring, [(a, 1, NEXT), (a, 0, 0)]), 32, INDIRECT)],
        "has length 0",
    ),
    "order in the table": (
        lambda ring, a: [(table(ring, [(a, 1, WRITE | NEXT), (a, 1, 0)]), 32, INDIRECT)],
        "readable descriptor behind",
    ),
    "order across the table": (
        lambda ring, a: [(a, 1, WRITE | NEXT), (table(ring, [(a, 1, 0)]), 16, INDIRECT)],
        "readable descriptor behind",
    ),
    "too long with the table": (
        lambda ring, a: [
            *[(a, 1, NEXT)] * 4,
            (table(ring, [*[(a, 1, NEXT)] * 4, (a, 1, 0)]), 80, INDIRECT),
        ],
        "more than 8 descriptors",
    ),
}


@both
@pytest.mark.parametrize("batched", [False, True], ids=["call", "batch"])
@pytest.mark.parametrize(("case", "message"), TABLE_CASES.values(), ids=TABLE_CASES)
def test_bad_table(kind: str, batched: bool, case: Case, message: str) -> None:
    ring = Ring(kind, 8, IND)
    put(ring, 0, case(ring, data(ring)))
    assert_bad(ring, message, batched)


@pytest.mark.parametrize("link", [2, 0xFFFF])
def test_next_outside_a_split_table(link: int) -> None:
    ring = Ring("split", 8, IND)
    addr = data(ring)
    put(ring, 0, [(table(ring, [(addr, 1, NEXT, link), (addr, 1, 0)]), 32, INDIRECT)])
    assert_bad(ring, f"has next {link}; the table has 2 entries")


@pytest.mark.parametrize("flags", [0, WRITE])
def test_loop_in_a_split_table(flags: int) -> None:
    ring = Ring("split", 8, IND)
    addr = data(ring)
    put(ring, 0, [(table(ring, [(addr, 1, NEXT | flags, 1), (addr, 1, NEXT | flags, 0)]), 32, 4)])
    assert_bad(ring, "more than 8 descriptors: it loops or is too long")


@both
def test_what_is_legal_is_taken(kind: str) -> None:
    """A chain and a table of exactly the ring's size; WRITE beside INDIRECT; a direct start."""
    ring = Ring(kind, 8, IND)
    addr = data(ring)
    full = [(addr + k, 1, NEXT if k < 7 else 0) for k in range(8)]
    put(ring, 0, full)
    assert [d.addr for d in ring.dq.next_chain()] == [addr + k for k in range(8)]
    ring = Ring(kind, 8, IND)
    addr = data(ring)
    full = [(addr + k, 1, NEXT if k < 7 else 0) for k in range(8)]
    put(ring, 0, [(table(ring, full), 128, INDIRECT | WRITE)])
    chain = ring.dq.next_chain()
    assert [(d.addr, d.writable) for d in chain] == [(addr + k, False) for k in range(8)]
    ring = Ring(kind, 8, IND)
    addr = data(ring)
    put(ring, 0, [(addr, 1, NEXT), (table(ring, full[1:]), 112, INDIRECT)])
    assert len(ring.dq.next_chain()) == 8
    # The last byte of the memory is inside it.
    ring = Ring(kind, 8)
    put(ring, 0, [(BASE + SIZE - 1, 1, 0)])
    assert ring.dq.next_chain().readable_bytes == 1
    ring = Ring(kind, 8)
    put(ring, 0, [(BASE, SIZE, 0)])
    assert ring.dq.next_chain().readable_bytes == SIZE


@both
@pytest.mark.parametrize("batched", [False, True], ids=["call", "batch"])
def test_a_buffer_over_two_regions(kind: str, batched: bool) -> None:
    ring = Ring(kind, 8)
    ring.memory.add_region(BASE + SIZE, Region.anonymous(0x1000))
    put(ring, 0, [(BASE + SIZE, 0x1000, 0)])
    put(ring, 1, [(BASE + SIZE - 1, 2, 0)])
    assert pop(ring, batched) == [0]
    assert_bad(ring, "and length 2, not inside the memory", batched, 1)


@both
@pytest.mark.parametrize(("perm", "flags"), [("r", WRITE), ("w", 0)])
def test_memory_without_the_right(kind: str, perm: str, flags: int) -> None:
    ring = Ring(kind, 8)
    ring.memory.add_region(0x1000000, Region.anonymous(0x1000), perm=perm)
    put(ring, 0, [(0x1000000, 8, flags ^ WRITE)])
    put(ring, 1, [(0x1000000, 8, flags)])
    assert pop(ring, False) == [0]
    assert_bad(ring, "not inside the memory with the rights", position=1)


@pytest.mark.parametrize("batched", [False, True], ids=["call", "batch"])
@pytest.mark.parametrize("jump", [9, 0x8000, 0xFFFF])
def test_avail_idx_jump(batched: bool, jump: int) -> None:
    ring = Ring("split", 8)
    ring.raw.avail["idx"] = jump
    assert_bad(ring, f"avail.idx went from 0 to {jump}, more than the ring's 8", batched)


def test_avail_idx_beyond_what_is_in_flight() -> None:
    ring = Ring("split", 4)
    addr = data(ring)
    for k in range(4):
        put(ring, k, [(addr, 1, 0)])
    assert pop(ring, True) == [0, 1, 2, 3]
    ring.raw.avail["idx"] = 5
    assert_bad(ring, "avail.idx went from 4 to 5", position=4)


@pytest.mark.parametrize("batched", [False, True], ids=["call", "batch"])
@pytest.mark.parametrize("head", [8, 0xFFFF])
@pytest.mark.parametrize("before", [0, 1])
def test_head_out_of_range(batched: bool, head: int, before: int) -> None:
    ring = Ring("split", 8)
    for k in range(before):
        put(ring, k, [(data(ring), 1, 0)])
    ring.raw.avail["ring"][before] = head
    ring.raw.avail["idx"] = before + 1
    assert pop(ring, batched) == [0] if before else True
    message = f"available entry {before} names head {head}; a ring of 8 has heads 0 to 8 - 1"
    assert_bad(ring, message, batched, before)


@both
@pytest.mark.parametrize("batched", [False, True], ids=["call", "batch"])
@pytest.mark.parametrize("long", [False, True])
def test_a_head_twice(kind: str, batched: bool, long: bool) -> None:
    ring = Ring(kind, 8)
    addr = data(ring)
    put(ring, 0, [(addr, 1, 0)])
    put(ring, 1, [(addr, 1, NEXT), (addr, 1, WRITE)] if long else [(addr, 1, 0)])
    if ring.packed:
        ring.raw.desc["id"][:3] = 0
    else:
        ring.raw.avail["ring"][1] = 0
    assert pop(ring, batched) == [0]
    assert_bad(ring, "names head 0, which the device still holds", batched, 1)


def test_next_out_of_range() -> None:
    for link in (8, 0xFFFF):
        ring = Ring("split", 8)
        put(ring, 0, [(data(ring), 1, NEXT, link)])
        assert_bad(ring, f"has next {link}; the table has 8 entries")


@pytest.mark.parametrize("length", [1, 2, 8])
def test_split_loop(length: int) -> None:
    ring = Ring("split", 8)
    addr = data(ring)
    put(ring, 0, [(addr, 1, NEXT, (k + 1) % length) for k in range(length)])
    assert_bad(ring, "the chain at 0 has more than 8 descriptors: it loops or is too long")


def test_packed_chain_without_end() -> None:
    ring = Ring("packed", 5)
    put(ring, 0, [(data(ring), 1, NEXT)] * 5)
    assert_bad(ring, "more than 5 descriptors")


@pytest.mark.parametrize("flags", [USED | NEXT, AVAIL | USED])
def test_packed_chain_cut(flags: int) -> None:
    ring = Ring("packed", 5)
    addr = data(ring)
    put(ring, 0, [(addr, 1, NEXT), (addr, 1, NEXT), (addr, 1, flags)])
    assert_bad(ring, "the chain at 0 is cut off: descriptor 2 of it is not available")


def test_packed_more_in_flight_than_the_ring_has() -> None:
    """The device holds all; descriptors that look available in the next lap cannot be."""
    ring = Ring("packed", 4)
    addr = data(ring)
    put(ring, 0, [(addr, 1, NEXT), (addr, 1, NEXT), (addr, 1, 0)])
    assert pop(ring, True) == [0]
    ring.raw.desc[3] = (addr, 1, 7, AVAIL | NEXT)
    ring.raw.desc[0] = (addr, 1, 7, USED)
    assert_bad(ring, "5 descriptors are in flight in a ring of 4", position=3)
    ring = Ring("packed", 4)
    put(ring, 0, [(addr, 1, 0)])
    for k in range(4):
        put(ring, k, [(addr, 1, 0)])
    assert pop(ring, True) == [0, 1, 2, 3]
    ring.raw.desc[0] = (addr, 1, 9, USED)
    assert_bad(ring, "5 descriptors are in flight", True)


@both
def test_garbage_in_event_words_only_costs_notifications(kind: str) -> None:
    for event_idx in (Feature(0), Feature.EVENT_IDX):
        for garbage in (0, 1, 2, 3, 0x7FFF, 0x8001, 0xFFFF):
            ring = Ring(kind, 8, event_idx)
            buf = ring.buf()
            for i in range(20):
                ring.vq.add_outbuf(buf, i)
                if ring.packed:
                    ring.raw.driver["off_wrap"] = garbage
                    ring.raw.driver["flags"] = garbage
                else:
                    ring.raw.avail["flags"] = garbage
                    ring.raw.avail["used_event"] = garbage
                assert ring.serve() == 1
                ring.dq.signal()
                assert ring.vq.get_buf() == (i, 0)


@both
def test_a_queue_reset_mends(kind: str) -> None:
    ring = Ring(kind, 8)
    put(ring, 0, [(data(ring), 0, 0)])
    assert_bad(ring, "has length 0")
    ring.dq.reset()
    ring.vq.restart()
    ring.dq.configure(ring.vq.config)
    ring.vq.add_outbuf(ring.buf(), "fine")
    assert ring.serve() == 1
    assert ring.vq.get_buf() == ("fine", 0)
