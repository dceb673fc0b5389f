"""Batches with a bad row: nothing is changed, and nothing of it comes to light later."""

from __future__ import annotations

import re

import pytest

from virtring import AddressError, Batch, Feature, InvalidArgument, NoSpace, VirtioError

from ._rings import BASE, KINDS, NEXT, SIZE, WRITE, Ring

both = pytest.mark.parametrize("kind", KINDS)
in_and_any_order = pytest.mark.parametrize(
    "features", [Feature(0), Feature.IN_ORDER], ids=["any order", "in order"]
)


def rows(ring: Ring, n: int) -> Batch:
    """n writable buffers of 16 bytes with tokens 100 and up."""
    batch = Batch(n, 2 * n)
    batch.addr[:], batch.len[:] = ring.addr(ring.buf()), 16
    batch.token[:] = range(100, 100 + n)
    batch.count = n
    return batch


def run_to(ring: Ring, position: int) -> None:
    """Buffers through both sides, until the ring's position is there."""
    buf = ring.buf()
    for i in range(position):
        ring.vq.add_inbuf(buf, i)
        assert ring.serve(16) == 1
        assert ring.vq.get_buf() == (i, 16)


BAD_ROWS = [
    (0x10, 16, AddressError, "row 3 is a buffer at 0x10 of 16 bytes"),
    (BASE + SIZE - 15, 16, AddressError, "row 3 is a buffer at 0x10fff1 of 16 bytes"),
    ((1 << 64) - 1, 16, AddressError, "row 3 is a buffer at 0xffffffffffffffff"),
    (BASE, 0, InvalidArgument, "row 3 has length 0"),
]


@both
@in_and_any_order
@pytest.mark.parametrize("start", [0, 3, 6, 8, 11, 14])
@pytest.mark.parametrize(("addr", "length", "error", "message"), BAD_ROWS)
def test_a_bad_row_adds_nothing(
    kind: str,
    features: Feature,
    start: int,
    addr: int,
    length: int,
    error: type[VirtioError],
    message: str,
) -> None:
    """From positions in both laps, also over the end of the ring."""
    ring = Ring(kind, 8, features)
    run_to(ring, start)
    batch = rows(ring, 6)
    good = batch.addr[3], batch.len[3]
    batch.addr[3], batch.len[3] = addr, length
    for add in (ring.vq.add_inbuf_batch, ring.vq.add_outbuf_batch, ring.vq.add_sgs_batch):
        with pytest.raises(error, match=re.escape(message)):
            add(batch)
        with pytest.raises(error, match=re.escape(message)):
            add(batch, 2)  # the row keeps its number
        assert (ring.vq.num_free, ring.vq.in_flight) == (8, 0)
        assert not ring.vq.more_used
        assert not ring.dq.more_available
    # Rows behind an odd number of good ones: an old flag would be seen at once.
    assert ring.vq.add_inbuf_batch(batch, 0, 1) == 1
    assert ring.dq.pop(Batch(8)) == 1
    batch.addr[3], batch.len[3] = good
    assert ring.vq.add_inbuf_batch(batch, 1) == 5
    popped = Batch(8)
    assert ring.dq.pop(popped) == 5
    popped.written[:5] = 16
    assert ring.dq.push(popped) == (0 if features else 5)
    if features:
        return
    assert ring.vq.get_buf_batch(popped) == 5
    assert popped.token[:5].tolist() == [101, 102, 103, 104, 105]
    assert ring.tokens() == [100]


@both
def test_a_bad_row_that_would_have_to_wait_is_told_too(kind: str) -> None:
    ring = Ring(kind, 4)
    batch = rows(ring, 8)
    batch.len[6] = 0
    with pytest.raises(InvalidArgument, match="row 6 has length 0"):
        ring.vq.add_outbuf_batch(batch)
    with pytest.raises(InvalidArgument, match="row 6 has length 0"):
        ring.vq.add_outbuf_batch(batch, 2)
    with pytest.raises(InvalidArgument, match="row 6 has length 0"):
        ring.vq.add_sgs_batch(batch)
    assert ring.vq.num_free == 4
    batch.len[6] = 1
    assert ring.vq.add_outbuf_batch(batch) == 4
    assert ring.vq.add_outbuf_batch(batch, 4) == 0


@both
def test_bad_chains(kind: str) -> None:
    ring = Ring(kind, 4)
    batch = rows(ring, 4)

    def refused(message: str, error: type[VirtioError] = InvalidArgument) -> None:
        with pytest.raises(error, match=message):
            ring.vq.add_sgs_batch(batch)
        assert ring.vq.num_free == 4

    batch.offsets[:] = [0, 1, 1, 2, 3]
    refused("row 1 has 0 descriptors; a buffer of this queue has 1 to 4")
    batch.offsets[:] = [0, 1, 6, 7, 8]
    refused("row 1 has 5 descriptors")
    batch.offsets[:] = [0, 2, 1, 3, 4]
    refused(r"offsets\[2\] is 1, less than offsets\[1\], 2")
    batch.offsets[:] = [0, 1, 2, 3, 9]
    refused(r"offsets\[4\] is 9; the batch has 8")
    batch.offsets[:] = [0, 2, 4, 6, 8]
    batch.flags[:4] = [0, WRITE, WRITE, 0]
    refused("row 1 has a readable descriptor behind a writable one")
    for flags in (NEXT, 4, 0x80, 0x8000, WRITE | NEXT):
        batch.flags[2:4] = [0, flags]
        refused(f"row 1 has a descriptor with flags {flags:#x}; it takes 2")
    batch.flags[:] = 0
    batch.len[5] = 0
    refused("row 2 has length 0")
    batch.len[5] = 16
    assert ring.vq.add_sgs_batch(batch) == 2
    assert ring.serve() == 2


@both
def test_windows_of_a_batch(kind: str) -> None:
    ring = Ring(kind, 8)
    batch = rows(ring, 4)
    for start, count in ((-1, None), (5, None), (0, 5), (4, 1), (2, -1), (1, 4)):
        for call in (ring.vq.add_outbuf_batch, ring.vq.add_sgs_batch, ring.dq.push):
            with pytest.raises(InvalidArgument, match="start"):
                call(batch, start, count)
    for room in (-1, 5):
        for take in (ring.dq.pop, ring.vq.get_buf_batch):
            with pytest.raises(InvalidArgument, match=f"room {room}"):
                take(batch, room)
    with pytest.raises(InvalidArgument, match="count"):
        batch.count = 5
    few = Batch(4, 2)
    few.addr[:], few.len[:] = batch.addr[:2], 1
    few.count = 4
    with pytest.raises(InvalidArgument, match="the batch has 2"):
        ring.vq.add_outbuf_batch(few)
    assert ring.vq.add_outbuf_batch(few, 0, 2) == 2
    assert ring.dq.push(batch, 0, 0) == 0


PUSHES = [
    ([0, 1, 9], [16, 16, 16], "id 9 (row 2) is not one the device holds"),
    ([0, 1, 1], [16, 16, 16], "id 1 (row 2) is not one the device holds"),
    ([0, 1, 70000], [16, 16, 16], "id 70000 (row 2) is not one"),
    ([0, 1, 2], [16, 16, 17], "row 2 says 17 bytes were written; the chain has room for 16"),
    ([0, 1, 2], [16, 0xFFFFFFFF, 16], "row 1 says 4294967295 bytes"),
    ([5, 0, 1], [0, 0, 0], "id 5 (row 0) is not one"),
]


@both
@in_and_any_order
@pytest.mark.parametrize(("ids", "written", "message"), PUSHES)
@pytest.mark.parametrize("start", [0, 6, 14])
def test_a_bad_push_publishes_nothing(
    kind: str, features: Feature, start: int, ids: list[int], written: list[int], message: str
) -> None:
    ring = Ring(kind, 8, features)
    run_to(ring, start)
    buf = ring.buf()
    for i in range(5):
        ring.vq.add_inbuf(buf, i)
    batch = Batch(5)
    assert ring.dq.pop(batch) == 5
    names = batch.id.tolist()  # ids of the chains 0 to 4
    free = [ident for ident in range(8) if ident not in names]
    bad = Batch(3)
    bad.id[:] = [names[k] if k < 5 else free[0] if k == 5 else k for k in ids]
    expected = message
    for k in (1, 5):
        expected = expected.replace(f"id {k} ", f"id {names[k] if k < 5 else free[0]} ")
    bad.written[:] = written
    with pytest.raises(InvalidArgument, match=re.escape(expected)):
        ring.dq.push(bad, 0, 3)
    assert not ring.dq.is_broken
    assert ring.dq.in_flight == 5
    assert not ring.vq.more_used
    assert ring.vq.get_buf() is None
    # One goes back: nothing that was written behind it may be taken for used.
    batch.written[:] = [1, 2, 3, 4, 5]
    assert ring.dq.push(batch, 0, 1) == 1
    assert ring.vq.get_buf() == (0, 1)
    assert ring.vq.get_buf() is None
    assert ring.dq.push(batch, 1, 4) == 4
    assert [ring.vq.get_buf() for _ in range(4)] == [(1, 2), (2, 3), (3, 4), (4, 5)]
    assert ring.vq.num_free == 8


@both
def test_a_bad_push_of_long_chains(kind: str) -> None:
    ring = Ring(kind, 7 if kind == "packed" else 8)
    buf = ring.buf()
    for lap in range(4):
        for i in range(3):
            ring.vq.add_sgs([], [buf, buf], i)
        batch = Batch(3, 6)
        assert ring.dq.pop(batch) == 3
        batch.written[:] = [32, 32, 33]
        with pytest.raises(InvalidArgument, match="row 2 says 33 bytes"):
            ring.dq.push(batch)
        assert ring.vq.get_buf() is None
        batch.written[:] = lap
        assert ring.dq.push(batch, 0, 1) == 1
        assert ring.vq.get_buf() == (0, lap)
        assert ring.vq.get_buf() is None
        assert ring.dq.push(batch, 1) == 2
        assert [ring.vq.get_buf(), ring.vq.get_buf()] == [(1, lap), (2, lap)]


@both
def test_in_order_waits_for_the_oldest(kind: str) -> None:
    ring = Ring(kind, 8, Feature.IN_ORDER)
    buf = ring.buf()
    for i in range(5):
        ring.vq.add_inbuf(buf, i)
    batch = Batch(5)
    ring.dq.pop(batch)
    batch.written[:] = [16, 16, 3, 16, 16]
    assert ring.dq.push(batch, 3, 2) == 0
    assert ring.dq.in_flight == 5
    assert ring.vq.get_buf() is None
    with pytest.raises(InvalidArgument, match=r"id 3 \(row 3\) is not one the device holds"):
        ring.dq.push(batch, 3, 1)
    assert ring.dq.push(batch, 1, 2) == 0
    assert ring.dq.push(batch, 0, 1) == 5
    assert ring.dq.in_flight == 0
    got = [ring.vq.get_buf() for _ in range(6)]
    assert got == [(0, 16), (1, 16), (2, 3), (3, 16), (4, 16), None]


@both
def test_a_chain_too_large_for_the_batch_waits(kind: str) -> None:
    ring = Ring(kind, 8)
    buf = ring.buf()
    ring.vq.add_outbuf(buf, 0)
    ring.vq.add_sgs([buf] * 3, [], 1)
    small = Batch(4, 2)
    assert ring.dq.pop(small) == 1
    with pytest.raises(InvalidArgument, match="descriptors; the batch has room for 2"):
        ring.dq.pop(small)
    assert not ring.dq.is_broken
    assert len(ring.dq.next_chain()) == 3


@both
def test_returning_twice(kind: str) -> None:
    ring = Ring(kind, 8)
    ring.vq.add_inbuf(ring.buf(), 0)
    chain = ring.dq.next_chain()
    with pytest.raises(InvalidArgument, match="17 bytes were written"):
        chain.return_(17)
    for written in (-1, 1 << 32):
        with pytest.raises(InvalidArgument, match="written"):
            chain.return_(written)
    with pytest.raises(InvalidArgument, match="do not fit into 16"):
        chain.write(bytes(17))
    chain.write(b"abc")
    chain.return_()
    with pytest.raises(InvalidArgument, match="is not a chain that this queue has out"):
        chain.return_()
    for use in (chain.read, lambda: chain.write(b"x"), lambda: chain[0]):
        with pytest.raises(InvalidArgument, match="belong to the driver again"):
            use()
    assert ring.vq.get_buf() == (0, 3)
    other = Ring(kind)
    other.vq.add_inbuf(other.buf(), 0)
    with pytest.raises(InvalidArgument, match="is not a chain that this queue has out"):
        ring.dq.return_(other.dq.next_chain())


@both
def test_what_cannot_be_added(kind: str) -> None:
    ring = Ring(kind, 4)
    buf = ring.buf()
    readonly = ring.memory.view(ring.addr(buf), 16, writable=False)
    cases = [
        (lambda: ring.vq.add_sgs([], [], "x"), InvalidArgument, "0 descriptors"),
        (lambda: ring.vq.add_sgs([buf] * 3, [buf] * 2, "x"), InvalidArgument, "of 5 descriptors"),
        (lambda: ring.vq.add_outbuf(bytearray(16)), AddressError, "does not lie inside"),
        (lambda: ring.vq.add_outbuf(buf[:0]), InvalidArgument, "0 bytes"),
        (lambda: ring.vq.add_inbuf(readonly), InvalidArgument, "device-writable"),
        (lambda: ring.vq.add_outbuf(buf[::2]), InvalidArgument, "device-readable"),
        (lambda: ring.vq.add_outbuf(42), InvalidArgument, "int cannot be a"),
    ]
    for call, error, message in cases:
        with pytest.raises(error, match=message):
            call()
    assert ring.vq.num_free == 4
    ring.vq.add_outbuf(readonly, "x")
    with pytest.raises(NoSpace):
        ring.vq.add_outbuf([buf] * 4, "y")


class Liar(list[memoryview]):
    """Says it has one item and gives many."""

    def __len__(self) -> int:
        return 1


@both
def test_a_sequence_that_lies_about_its_length(kind: str) -> None:
    ring = Ring(kind, 4)
    with pytest.raises(InvalidArgument, match="more items than its len"):
        ring.vq.add_sgs(Liar([ring.buf()] * 5000), [], "x")
    assert ring.vq.num_free == 4
