"""In-flight tracking, cut off wherever a process can be killed, split and packed."""

from __future__ import annotations

import random
import struct
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from virtring import Batch, RingDevice, Virtqueue, vring_create_virtqueue
from virtring.errors import InvalidArgument, QueueBroken
from virtring.memory import GuestMemory
from virtring.queue import Chain
from virtring.spec.features import Feature
from virtring.transport.vhost_user.inflight import Inflight, inflight_bytes
from virtring.transport.vhost_user.watched import WatchedQueue

NUM = 16
BASE = Feature.VERSION_1 | Feature.INDIRECT_DESC | Feature.EVENT_IDX


class Rig:
    """A ring, its driver side and its device side with a tracking area."""

    def __init__(self, packed: bool, in_order: bool) -> None:
        features = BASE
        if packed:
            features |= Feature.RING_PACKED
        if in_order:
            features |= Feature.IN_ORDER
        self.packed, self.in_order = packed, in_order
        self.memory = GuestMemory.create(1 << 16)
        self.vq: Virtqueue = vring_create_virtqueue(0, NUM, 64, RingDevice(self.memory, features))
        self.area: NDArray[np.uint8] = np.zeros(inflight_bytes(NUM), np.uint8)
        place = self.memory.alloc(16 * NUM)
        self.free = [place + 16 * i for i in range(NUM)]
        self.where: dict[int, int] = {}
        self.added = 0
        self.dq = self.device()

    def device(self) -> WatchedQueue:
        dq = WatchedQueue(self.memory, self.vq.config)
        dq.begin(Inflight(self.area, NUM, self.packed), None, None)
        return dq

    def add(self, parts: int) -> bool:
        """A buffer of 1 to 3 descriptors that says its number."""
        if self.vq.num_free < parts:
            return False
        addr = self.where[self.added] = self.free.pop()
        self.memory.write(addr, struct.pack("<I", self.added))
        pieces = [(addr, 4)] if parts == 1 else [(addr, 2), (addr + 2, 2)]
        inside = [(addr + 8, 4)] if parts == 3 else []
        self.vq.virtqueue_add(pieces, inside, self.added, premapped=True)
        self.vq.kick_prepare()
        self.added += 1
        return True

    def used(self) -> list[int]:
        found = []
        while (got := self.vq.get_buf()) is not None:
            found.append(got[0])
            self.free.append(self.where.pop(got[0]))
        return found

    def ring(self) -> list[tuple[int, bytes]]:
        """What the device side writes of the ring."""
        config = self.vq.config
        areas = [(config.desc, 16 * NUM)] if self.packed else [(config.used, 6 + 8 * NUM)]
        return [(addr, self.memory.read(addr, size)) for addr, size in areas]

    def unfinished(self, before: NDArray[np.uint8]) -> None:
        """Put the area back to where the last batch was linked but not struck off."""
        if self.packed:
            entry, first = 32, 32
            for at, size in ((14, 2), (18, 2), (21, 1)):
                self.area[at : at + size] = before[at : at + size]
        else:
            entry, first = 16, 16
            self.area[14:16] = before[14:16]
        for i in range(NUM):
            self.area[first + entry * i] = before[first + entry * i]


def number(chain: Chain) -> int:
    return int(struct.unpack("<I", chain.read(4))[0])


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 1 << 32),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["after", "published", "linked"]),
    st.integers(1, 60),
)
def test_killed(seed: int, packed: bool, in_order: bool, where: str, steps: int) -> None:
    rng = random.Random(seed)
    rig = Rig(packed, in_order)
    out: list[Chain] = []
    #: Numbers in the order in which they were popped; struck off when the driver can see them.
    held: list[int] = []
    done: set[int] = set()
    seen: list[int] = []
    batch = Batch(NUM, 4 * NUM)
    for step in range(steps):
        for _ in range(rng.randrange(6)):
            rig.add(rng.randrange(1, 4))
        for _ in range(rng.randrange(6)):
            if (chain := rig.dq.next_chain()) is not None:
                out.append(chain)
                held.append(number(chain))
        if not out:
            continue
        # A batch of some, in any order.
        count = rng.randrange(1, len(out) + 1)
        chosen = rng.sample(out, count)
        numbers = [number(chain) for chain in chosen]
        area, ring = rig.area.copy(), rig.ring()
        batch.id[:count] = [chain.id for chain in chosen]
        batch.written[:count] = 0
        batch.count = count
        published = rig.dq.push(batch)
        if step == steps - 1 and where != "after":
            rig.unfinished(area)
            if where == "linked":
                for addr, data in ring:
                    rig.memory.write(addr, data)
                break
        out = [chain for chain in out if chain not in chosen]
        done |= set(numbers)
        if not in_order:
            held = [n for n in held if n not in done]
        else:
            assert all(n in done for n in held[:published])
            held = held[published:]
        if rng.randrange(2):
            seen += rig.used()
    # Killed. The next one begins with the same area.
    dq = rig.device()
    assert dq.in_flight == 0
    again: list[int] = []
    if seed % 2:
        while (chain := dq.next_chain()) is not None:
            again.append(number(chain))
            if rng.randrange(2) and not in_order:
                chain.return_()
            else:
                out = [*out, chain]
        for chain in [c for c in out if c.queue is dq and not c.returned]:
            chain.return_()
    else:
        while count := dq.pop(batch, rng.randrange(1, NUM)):
            for row in range(count):
                first = batch.desc[batch.offsets[row] : batch.offsets[row + 1]]
                data = b"".join(
                    rig.memory.read(int(d["addr"]), int(d["len"])) for d in first if not d["flags"]
                )
                again.append(int(struct.unpack("<I", data)[0]))
            batch.written[:count] = 0
            dq.push(batch)
    assert again[: len(held)] == held
    assert again[len(held) :] == sorted(again[len(held) :])
    seen += rig.used()
    assert sorted(seen) == list(range(rig.added))
    assert rig.vq.in_flight == 0
    # And it goes on.
    for _ in range(3 * NUM):
        assert rig.add(2)
        chain = dq.next_chain()
        assert chain is not None
        chain.return_()
        assert rig.used() == [rig.added - 1]
    # Nothing is left for a third one.
    assert rig.device().next_chain() is None


@pytest.mark.parametrize("packed", [False, True])
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_area_of_garbage(packed: bool, data: st.DataObject) -> None:
    """The front end can write there: a ring begins or is refused, and pops what it can check."""
    rig = Rig(packed, False)
    for _ in range(4):
        rig.add(2)
    for _ in range(3):
        rig.dq.next_chain()
    for _ in range(data.draw(st.integers(1, 12))):
        at = data.draw(st.integers(8, len(rig.area) - 1))
        rig.area[at] = data.draw(st.sampled_from([0, 1, 2, 15, 16, 128, 255]))
    try:
        dq = rig.device()
    except InvalidArgument:
        return
    seen = 0
    with suppress(QueueBroken):
        while (chain := dq.next_chain()) is not None:
            chain.return_()
            seen += 1
    assert seen <= 3 * NUM


def test_areas_that_do_not_fit() -> None:
    rig = Rig(False, False)
    with pytest.raises(InvalidArgument, match="bytes"):
        Inflight(np.zeros(64, np.uint8), NUM, False)
    with pytest.raises(InvalidArgument, match="not 8"):
        Inflight(rig.area, 8, False)
    other = Inflight(np.zeros(inflight_bytes(NUM), np.uint8), NUM, True)
    with pytest.raises(InvalidArgument, match="another ring"):
        WatchedQueue(rig.memory, rig.vq.config).begin(other, None)
    # Used entries that the tracking never saw.
    rig.memory.write(rig.vq.config.used + 2, struct.pack("<H", 500))
    with pytest.raises(InvalidArgument, match="behind"):
        rig.device()
