"""Memory that changes while a queue runs: translations that are missing, regions that go."""

from __future__ import annotations

import pytest

from virtring import (
    AddressError,
    Batch,
    DeviceQueue,
    Feature,
    IotlbMemory,
    QueueBroken,
    Region,
    VirtioError,
    Virtqueue,
)
from virtring.errors import BadChain

from ._rings import BASE, KINDS, SIZE, Ring

both = pytest.mark.parametrize("kind", KINDS)


def iotlb(ring: Ring, iova: int) -> tuple[IotlbMemory, list[tuple[int, int, str]]]:
    """Translations of the ring itself, and a handler that maps a page at a time to iova - BASE."""
    asked = []

    def miss(addr: int, size: int, perm: str) -> None:
        asked.append((addr, size, perm))
        page = addr & ~0xFFF
        if iova <= page < iova + SIZE:
            tlb.map(page, 0x1000, page - iova + BASE)

    tlb = IotlbMemory(ring.memory, miss)
    tlb.map(BASE, SIZE, BASE)
    return tlb, asked


@both
@pytest.mark.parametrize("batched", [False, True])
def test_pop_asks_for_missing_translations(kind: str, batched: bool) -> None:
    ring = Ring(kind, 8, Feature.ACCESS_PLATFORM | Feature.INDIRECT_DESC)
    iova = 0x7000_0000_0000
    tlb, asked = iotlb(ring, iova)
    driver = IotlbMemory(ring.memory, lambda addr, size, perm: None)
    driver.map(BASE, SIZE, BASE)
    driver.map(iova, SIZE, BASE)
    vq = Virtqueue(driver, ring.vq.config)
    dq = DeviceQueue(tlb, ring.vq.config)
    offset = ring.addr(ring.buf(0x4000)) - BASE
    ring.memory.write(BASE + offset, b"one")
    at = iova + offset
    vq.add_outbuf_premapped([(at, 3)], 1)
    # Two descriptors, of which the second reaches into a page that nobody asked for.
    vq.add_inbuf_premapped([(at + 8, 8), (at + 0x1000, 0x1000)], 2)
    vq.add_outbuf_premapped([(at + 0x3000, 1)], 3)
    if batched:
        batch = Batch(4, 16)
        ids = []
        while dq.pop(batch):
            ids += batch.id[: len(batch)].tolist()
        assert len(ids) == 3
    else:
        first = dq.next_chain()
        assert first.read() == b"one"
        assert asked == [(at, 3, "r")]
        second = dq.next_chain()
        second.write(bytes(range(20)))
        assert len(dq.next_chain()) == 1
    pages = {addr & ~0xFFF for addr, _, _ in asked}
    assert len(asked) == len(pages)
    assert not dq.is_broken


@both
def test_an_address_that_nobody_translates_breaks_the_queue(kind: str) -> None:
    ring = Ring(kind, 8, Feature.ACCESS_PLATFORM)
    tlb, asked = iotlb(ring, 1 << 40)
    tlb.unmap(BASE, SIZE)
    config = ring.vq.config
    tlb.map(BASE, SIZE // 2, BASE)
    dq = DeviceQueue(tlb, config)
    ring.vq.add_outbuf_premapped([(BASE + SIZE // 2, 4)], 1)
    with pytest.raises(BadChain, match=f"has address {BASE + SIZE // 2:#x} and length 4"):
        dq.next_chain()
    assert asked == [(BASE + SIZE // 2, 4, "r")]
    with pytest.raises(QueueBroken):
        dq.next_chain()


@both
def test_what_a_miss_handler_raises_leaves_the_chain_there(kind: str) -> None:
    ring = Ring(kind, 8)
    broken = [True]

    def miss(addr: int, size: int, perm: str) -> None:
        if broken:
            raise LookupError("not now")
        tlb.map(1 << 40, 0x1000, BASE)

    tlb = IotlbMemory(ring.memory, miss)
    tlb.map(BASE, SIZE, BASE)
    driver = IotlbMemory(ring.memory, lambda addr, size, perm: None)
    driver.map(BASE, SIZE, BASE)
    driver.map(1 << 40, 0x1000, BASE)
    vq, dq = Virtqueue(driver, ring.vq.config), DeviceQueue(tlb, ring.vq.config)
    vq.add_outbuf_premapped([(1 << 40, 4)], 1)
    with pytest.raises(LookupError):
        dq.next_chain()
    broken.clear()
    assert dq.next_chain().readable_bytes == 4


@both
@pytest.mark.parametrize("how", ["reset", "close"])
def test_a_miss_handler_may_take_the_queue_away(kind: str, how: str) -> None:
    ring = Ring(kind, 8)

    def miss(addr: int, size: int, perm: str) -> None:
        getattr(dq, how)()
        tlb.map(0, 9, BASE)

    tlb = IotlbMemory(ring.memory, miss)
    tlb.map(BASE, SIZE // 2, BASE)
    dq = DeviceQueue(tlb, ring.vq.config)
    ring.vq.add_outbuf_premapped([(BASE + SIZE // 2, 4)], 1)
    with pytest.raises(VirtioError):
        dq.next_chain()
    assert dq.in_flight == 0


@both
def test_a_region_is_removed_while_chains_are_out(kind: str) -> None:
    ring = Ring(kind, 8)
    region = Region.anonymous(0x1000)
    ring.memory.add_region(0x1000000, region)
    view = ring.memory.view(0x1000000, 0x1000)
    view[:5] = b"hello"
    ring.vq.add_sgs([view[:5]], [view[16:32]], "out")
    ring.vq.add_outbuf(view[:5], "waiting")
    chain = ring.dq.next_chain()
    del view
    assert ring.memory.remove_region(0x1000000) is region
    # The chain still has the mapping; what is new does not get it.
    assert chain.read() == b"hello"
    assert chain.write(b"answer") == 6
    with pytest.raises(AddressError):
        chain[0]
    with pytest.raises(AddressError):
        ring.vq.add_outbuf_premapped([(0x1000000, 5)], "late")
    with pytest.raises(BadChain, match="has address 0x1000000"):
        ring.dq.next_chain()
    chain.return_()
    assert ring.vq.get_buf() == ("out", 6)
    assert ring.tokens() == ["waiting"]


@both
def test_a_region_takes_anothers_place(kind: str) -> None:
    ring = Ring(kind, 8)
    ring.memory.add_region(0x1000000, Region.anonymous(0x1000))
    ring.memory.write(0x1000000, b"old")
    ring.vq.add_outbuf_premapped([(0x1000000, 3)], 1)
    assert ring.dq.next_chain().read() == b"old"
    ring.memory.remove_region(0x1000000)
    ring.memory.add_region(0x1000000, Region.anonymous(0x1000))
    ring.memory.write(0x1000000, b"new")
    ring.vq.add_outbuf_premapped([(0x1000000, 3)], 2)
    assert ring.dq.next_chain().read() == b"new"
