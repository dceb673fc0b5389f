"""What virtio 1.4 demands of a packed ring (2.8), read from the bytes of the ring."""

from __future__ import annotations

import numpy as np
import pytest

from virtring import Feature, NoSpace
from virtring.spec.dtypes import VRING_PACKED_DESC

from ._rings import AVAIL, INDIRECT, NEXT, USED, WRITE, Ring

NUMS = pytest.mark.parametrize("num", [1, 4, 5])


def used_ids(ring: Ring, first: int, count: int) -> list[int]:
    return [int(ring.raw.desc[(first + k) % ring.num]["id"]) for k in range(count)]


def test_the_device_starts_in_ring_order() -> None:
    """By place in the ring, not by id: the ids here are in no order."""
    ring = Ring("packed", 5)
    addr = ring.addr(ring.buf(64))
    for k, ident in enumerate((3, 0, 4, 1)):
        ring.raw.desc[k] = (addr + k, 1, ident, AVAIL)
    chains = [ring.dq.next_chain() for _ in range(4)]
    assert [chain.id for chain in chains] == [3, 0, 4, 1]
    assert [chain[0].addr for chain in chains] == [addr + k for k in range(4)]
    assert ring.dq.next_chain() is None


def test_used_descriptors_are_in_order_of_completion() -> None:
    ring = Ring("packed", 5)
    buf = ring.buf()
    place = 0
    for lap in range(7):
        for i in range(4):
            ring.vq.add_inbuf(buf, (lap, i))
        chains = [ring.dq.next_chain() for _ in range(4)]
        order = [chains[k] for k in (2, 0, 3, 1)]
        ids = [chain.id for chain in order]
        for done, chain in enumerate(order, 1):
            chain.return_(done)
            assert used_ids(ring, place, done) == ids[:done]
        place = (place + 4) % 5
        got = [ring.vq.get_buf() for _ in range(4)]
        assert got == [((lap, k), n) for n, k in enumerate((2, 0, 3, 1), 1)]


@NUMS
def test_only_available_descriptors_are_used(num: int) -> None:
    """AVAIL as the lap has it, USED the other way round; three of four pairs are not it."""
    ring = Ring("packed", num)
    buf = ring.buf()
    for step in range(3 * num):
        first = step // num % 2 == 0
        available = AVAIL if first else USED
        for bits in {0, AVAIL, USED, AVAIL | USED} - {available}:
            ring.raw.desc[step % num] = (ring.addr(buf), 16, 0, bits)
            assert ring.dq.next_chain() is None
            assert not ring.dq.more_available
        ring.raw.desc[step % num] = (ring.addr(buf), 16, 0, available)
        chain = ring.dq.next_chain()
        assert chain is not None
        chain.return_()
        assert ring.raw.desc[step % num]["flags"] & (AVAIL | USED) == (AVAIL | USED) * first


@NUMS
@pytest.mark.parametrize("event", [Feature(0), Feature.EVENT_IDX], ids=["flags", "event"])
def test_a_used_descriptor_stays(num: int, event: Feature) -> None:
    """Until the driver takes it, whatever the device does meanwhile."""
    ring = Ring("packed", num, event, callback=lambda vq: None)
    buf = ring.buf()
    for lap in range(5):
        for i in range(num):
            ring.vq.add_inbuf(buf, i)
        chains = [ring.dq.next_chain() for _ in range(num)]
        seen: dict[int, bytes] = {}
        for i, chain in enumerate(chains):
            chain.return_(lap + 1)
            seen[(lap * num + i) % num] = ring.raw.desc[(lap * num + i) % num].tobytes()
            ring.dq.need_notify()
            ring.dq.enable_notify()
            ring.dq.disable_notify()
            assert ring.dq.next_chain() is None
            assert {at: ring.raw.desc[at].tobytes() for at in seen} == seen
        assert [ring.vq.get_buf() for _ in range(num)] == [(i, lap + 1) for i in range(num)]


def test_a_list_goes_in_whole_or_not_at_all() -> None:
    """Without the room for all of it nothing is written, at every place in the ring."""
    ring = Ring("packed", 5)
    buf = ring.buf()
    for i in range(20):
        ring.vq.add_outbuf([buf] * 3, i)
        before = ring.raw.desc.tobytes()
        with pytest.raises(NoSpace, match="needs 3 descriptors and 2 are free"):
            ring.vq.add_sgs([buf], [buf] * 2, "no room")
        assert ring.raw.desc.tobytes() == before
        assert len(ring.dq.next_chain()) == 3
        assert ring.dq.next_chain() is None
        ring.dq.reset()
        ring.vq.detach_unused_buf()
        ring.vq.restart()
        ring.dq.configure(ring.vq.config)
        for _ in range(i % 5):
            ring.vq.add_outbuf(buf, "step")
            assert ring.serve() == 1
            ring.vq.get_buf()


def test_a_list_is_seen_in_the_order_of_the_ring() -> None:
    """Also where it goes over the end of the ring; its id is in its last descriptor."""
    ring = Ring("packed", 5)
    addr = ring.addr(ring.buf(64))
    bits = [AVAIL, AVAIL, AVAIL, USED, USED]
    for k in range(2):
        ring.raw.desc[k] = (addr, 1, k, AVAIL)
    assert ring.serve() == 2
    for k, flags in enumerate((NEXT, NEXT, WRITE | NEXT, WRITE | NEXT, WRITE)):
        ring.raw.desc[(2 + k) % 5] = (addr + 8 * k, k + 1, 9 if k < 4 else 3, flags | bits[k])
    chain = ring.dq.next_chain()
    assert chain.id == 3
    assert [(d.addr, d.len, d.writable) for d in chain] == [
        (addr + 8 * k, k + 1, k > 1) for k in range(5)
    ]
    chain.write(b"abcdefghijkl")
    chain.return_()
    data = [bytes(ring.memory.read(addr + 8 * k, k + 1)) for k in (2, 3, 4)]
    assert data == [b"abc", b"defg", b"hijkl"]


@pytest.mark.parametrize("event", [Feature(0), Feature.EVENT_IDX], ids=["flags", "event"])
def test_event_flags(event: Feature) -> None:
    """2.8.10, 2.8.14: no reserved bit, and DESC (2) only with EVENT_IDX."""
    ring = Ring("packed", 4, event, callback=lambda vq: None)
    buf = ring.buf()
    seen: tuple[set[int], set[int]] = (set(), set())
    for i in range(6):
        for step in (
            ring.vq.disable_cb,
            ring.dq.disable_notify,
            ring.vq.enable_cb,
            ring.dq.enable_notify,
            lambda i=i: ring.vq.add_outbuf(buf, i),  # type: ignore[misc]
            ring.vq.disable_cb,
            ring.vq.enable_cb_delayed,
            ring.serve,
            ring.dq.signal,
            ring.vq.get_buf,
        ):
            step()
            for flags, side in zip(seen, (ring.raw.driver, ring.raw.device), strict=True):
                flags.add(int(side["flags"]))
    # A new ring has 0, always tell; here the driver side has changed it before the first look.
    assert seen == (({1, 2}, {0, 1, 2}) if event else ({0, 1}, {0, 1}))


def test_a_table_has_no_flag_but_write() -> None:
    """2.8.7: the device ignores the others, and the id."""
    ring = Ring("packed", 4, Feature.INDIRECT_DESC)
    addr = ring.addr(ring.buf(64))
    table = np.zeros(4, VRING_PACKED_DESC)
    for k, flags in enumerate((0, NEXT | USED, AVAIL | WRITE, AVAIL | USED | NEXT | WRITE)):
        table[k] = (addr + 8 * k, 8, 0xFFF0 + k, flags)
    where = ring.memory.alloc(table.nbytes)
    ring.memory.write(where, table.tobytes())
    ring.raw.desc[0] = (where, table.nbytes, 2, AVAIL | INDIRECT | WRITE)
    chain = ring.dq.next_chain()
    assert chain.id == 2
    assert [(d.addr, d.len, d.writable) for d in chain] == [
        (addr + 8 * k, 8, k > 1) for k in range(4)
    ]
