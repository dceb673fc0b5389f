"""Random bytes anywhere in the ring while both sides run: VirtioError or nothing, and no hang."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from virtring import Batch, DeviceQueue, Feature, QueueConfig, VirtioError

from ._rings import KINDS, WRITE, Ring

FEATURES = Feature.EVENT_IDX | Feature.INDIRECT_DESC
combinations = pytest.mark.parametrize(
    "features",
    [Feature(0), FEATURES, FEATURES | Feature.IN_ORDER],
    ids=["plain", "event+indirect", "all"],
)
#: What to do next, and where and which byte garbage is.
steps = st.lists(
    st.tuples(
        st.integers(0, 11), st.integers(0, 1 << 16), st.sampled_from([0, 1, 2, 4, 7, 8, 128, 255])
    ),
    min_size=5,
    max_size=80,
)  # fmt: skip


class Pair:
    """Both sides of a ring of 4 and everything a program can do with them."""

    def __init__(self, kind: str, features: Feature) -> None:
        self.ring = ring = Ring(kind, 4, features, callback=lambda vq: None)
        config: QueueConfig = ring.vq.config
        ends = [(config.desc, 64), (config.avail, 4), (config.used, 4)]
        if kind == "split":
            ends[1:] = [(config.avail, 6 + 8), (config.used, 6 + 32)]
        if features & Feature.INDIRECT_DESC:
            # A table gets the memory behind what is allocated.
            at = ring.memory.alloc(128)
            ring.memory.free(at)
            ends.append((at, 128))
        self.bytes = [np.frombuffer(ring.memory.view(at, size), np.uint8) for at, size in ends]
        self.bufs = [ring.buf() for _ in range(4)]
        self.batch = Batch(4, 8)
        self.batch.addr[:], self.batch.len[:] = ring.addr(self.bufs[0]), 16
        self.batch.offsets[:] = [0, 2, 4, 5, 8]
        self.batch.flags[1::2] = WRITE
        self.batch.flags[7] = self.batch.flags[6] = WRITE
        self.got = Batch(4)
        self.chains: list[object] = []
        self.next = 0
        self.added = self.returned = 0

    def garbage(self, where: int, value: int) -> None:
        area = self.bytes[where % len(self.bytes)]
        area[(where >> 4) % len(area)] = value

    def add(self) -> None:
        self.next += 1
        self.ring.vq.add_sgs(self.bufs[:1], self.bufs[1 : 1 + self.next % 3], ("token", self.next))
        self.added += 1

    def add_rows(self) -> None:
        self.added += self.ring.vq.add_inbuf_batch(self.batch, 0, 3)

    def add_chains(self) -> None:
        self.added += self.ring.vq.add_sgs_batch(self.batch, 0, 3)

    def get(self) -> None:
        self.returned += self.ring.vq.get_buf() is not None

    def get_rows(self) -> None:
        self.returned += self.ring.vq.get_buf_batch(self.got)

    def pop(self) -> None:
        chain = self.ring.dq.next_chain()
        if chain is not None:
            assert len(chain) <= 4
            chain.read()
            chain.write(bytes(min(4, chain.writable_bytes)))
            self.chains.append(chain)

    def push(self) -> None:
        if self.chains:
            self.ring.dq.return_(self.chains.pop(self.next % len(self.chains)))

    def move(self) -> None:
        rows = Batch(4, 16)
        n = self.ring.dq.pop(rows)
        rows.written[:n] = 0
        self.ring.dq.push(rows, 0, n)

    def kick(self) -> None:
        self.ring.vq.kick()
        self.ring.vq.disable_cb()
        self.ring.vq.enable_cb_delayed()

    def signal(self) -> None:
        self.ring.dq.signal()
        self.ring.dq.disable_notify()
        self.ring.dq.enable_notify()

    def do(self, what: int) -> None:
        actions: list[Callable[[], None]] = [
            self.add, self.add_rows, self.add_chains, self.get, self.get_rows, self.pop,
            self.push, self.move, self.kick, self.signal,
        ]  # fmt: skip
        try:
            actions[what]()
        except VirtioError as error:
            assert len(str(error)) > 20  # noqa: PT017


@pytest.mark.parametrize("kind", KINDS)
@combinations
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=steps)
def test_garbage_everywhere(
    kind: str, features: Feature, steps: list[tuple[int, int, int]]
) -> None:
    pair = Pair(kind, features)
    vq = pair.ring.vq
    for what, where, value in steps:
        if what < 10:
            pair.do(what)
        else:
            pair.garbage(where, value)
        assert vq.num_free <= 4
        assert pair.ring.dq.in_flight <= 4
        assert vq.in_flight == pair.added - pair.returned
    # Nothing of the driver's is lost, whatever was written.
    assert len(pair.ring.tokens()) == pair.added - pair.returned
    assert (vq.num_free, vq.in_flight) == (4, 0)
    # A reset mends it all.
    vq.restart()
    dq = DeviceQueue(pair.ring.memory, vq.config)
    for i in range(9):
        vq.add_inbuf(pair.bufs[0], ("mended", i))
        dq.next_chain().return_(3)
        assert vq.get_buf() == (("mended", i), 3)
