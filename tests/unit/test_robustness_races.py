"""The ring changes while it is looked at: what was checked once must be what is used.

Another process, or a thread while a batch runs without the GIL, scribbles over every number of the
ring and of the indirect tables. Whatever is seen, chains lie inside the memory, errors say that the
ring is broken, buffers come back once, and a reset mends it all.
"""

from __future__ import annotations

import multiprocessing
import random
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from virtring import Batch, Feature, GuestMemory, QueueBroken

from ._race_children import scribble, scribble_for_ever
from ._rings import BASE, KINDS, SIZE, WRITE, Ring

COMBINATIONS = {
    "plain": Feature(0),
    "indirect": Feature.INDIRECT_DESC | Feature.EVENT_IDX,
    "all": Feature.INDIRECT_DESC | Feature.EVENT_IDX | Feature.IN_ORDER,
}
#: Bytes of each part of a chain; each chain has a readable and a writable one.
PART = 16


class Raced:
    """Both ends of a ring, and what is out."""

    def __init__(self, kind: str, features: Feature, num: int) -> None:
        self.memory = GuestMemory.create(SIZE, base=BASE)
        self.ring = Ring(kind, num, features, memory=self.memory, callback=lambda vq: None)
        self.vq, self.dq = self.ring.vq, self.ring.dq
        self.rows = num // 2
        self.data = self.memory.alloc(2 * PART * self.rows)
        self.added, self.got = Batch(self.rows, 2 * self.rows), Batch(self.rows)
        # Even a chain of as many descriptors as there may be has room.
        self.popped = Batch(self.rows, 4 * num)
        self.added.offsets[:] = range(0, 2 * self.rows + 1, 2)
        self.added.addr[:] = self.data + PART * np.arange(2 * self.rows)
        self.added.len[:] = PART
        self.added.flags[1::2] = WRITE
        self.added.count = self.rows
        self.out: set[int] = set()
        self.next = 1
        self.chains = self.returned = self.broken = 0
        self.tables = self._warm_up()

    def _warm_up(self) -> tuple[int, int]:
        """Have the driver allocate all its indirect tables; where they are, and their bytes."""
        before = self.memory.alloc(PART)
        self.add_rows()
        behind = self.memory.alloc(PART)
        for addr in (before, behind):
            self.memory.free(addr)
        self.reset()
        size = behind - before - PART
        return before + PART, size // PART * PART

    # -- what both programs do

    def add_rows(self) -> None:
        self.added.token[:] = range(self.next, self.next + self.rows)
        n = self.vq.add_sgs_batch(self.added)
        self.out.update(range(self.next, self.next + n))
        self.next += n
        self.vq.kick_prepare()

    def add_one(self) -> None:
        if self.vq.num_free >= 2:
            first = self.data + 2 * PART * (self.next % self.rows)
            there, back = (first, PART), (first + PART, PART)
            self.vq.virtqueue_add([there], [back], self.next, premapped=True)
            self.out.add(self.next)
            self.next += 1
            self.vq.kick_prepare()

    def look_again(self) -> None:
        """Pop the same chains many times: there is little time between a check and a use."""
        if self.dq.in_flight:
            return
        position = self.dq.position
        for _ in range(30):
            try:
                self.check_rows(self.dq.pop(self.popped))
            except QueueBroken:
                self.broken += 1
            self.dq.reset()
            self.dq.configure(self.vq.config)
            self.dq.restore(position)

    def serve_rows(self) -> None:
        batch = self.popped
        n = self.dq.pop(batch)
        self.check_rows(n)
        self.chains += n
        batch.written[:n] = 0
        self.dq.push(batch, 0, n)
        self.dq.need_notify()
        self.dq.enable_notify()

    def check_rows(self, n: int) -> None:
        batch, end = self.popped, int(self.popped.offsets[n])
        lengths = np.diff(batch.offsets[: n + 1].astype(np.int64))
        assert ((lengths >= 1) & (lengths <= self.ring.num)).all()
        addr, length = batch.addr[:end], batch.len[:end].astype(np.uint64)
        assert ((addr >= BASE) & (addr < BASE + SIZE) & (length > 0)).all()
        assert (length <= BASE + SIZE - addr).all()
        # A readable part behind a writable one is where the next chain begins.
        steps = np.flatnonzero(np.diff(batch.flags[:end].astype(np.int64)) < 0) + 1
        assert np.isin(steps, batch.offsets[:n]).all()
        assert len(set(batch.id[:n].tolist())) == n

    def serve_one(self) -> None:
        chain = self.dq.next_chain()
        if chain is None:
            return
        self.chains += 1
        parts = list(chain)
        assert 1 <= len(parts) <= self.ring.num
        for part in parts:
            assert BASE <= part.addr < part.addr + part.len <= BASE + SIZE
        assert sorted(part.writable for part in parts) == [part.writable for part in parts]
        assert len(chain.read(64)) == min(64, chain.readable_bytes)
        chain.write(b"\x5a" * min(PART, chain.writable_bytes))
        chain.return_()
        self.dq.need_notify()

    def get_rows(self) -> None:
        n = self.vq.get_buf_batch(self.got)
        objects = self.got.objects
        tokens = [objects.get(row, int(self.got.token[row])) for row in range(n)]
        self.take(tokens, int(self.got.written[:n].max(initial=0)))
        self.vq.enable_cb()

    def get_one(self) -> None:
        used = self.vq.get_buf()
        if used is not None:
            self.take([used[0]], used[1])

    def take(self, tokens: list[int], most: int) -> None:
        assert most <= PART
        assert self.out.issuperset(tokens)
        assert len(set(tokens)) == len(tokens)
        self.out.difference_update(tokens)
        self.returned += len(tokens)

    def reset(self) -> None:
        """Everything that is out comes back, once."""
        tokens: list[int] = []
        self.dq.reset()
        self.vq.recycle_all(lambda vq, token: tokens.append(token))
        assert sorted(tokens) == sorted(self.out)
        self.out.clear()
        self.vq.restart()
        assert self.vq.num_free == self.ring.num
        self.dq.configure(self.vq.config)

    def rounds(self, count: int, batches: bool) -> None:
        """At least so many, and until everything that can happen has."""
        rng = random.Random(count)
        steps = (
            [self.add_rows, self.look_again, self.serve_rows, self.get_rows]
            if batches
            else [self.add_one, self.serve_one, self.get_one, self.get_rows, self.serve_rows]
        )
        for turn in range(100 * count):
            if turn >= count and self.broken and self.chains and self.returned:
                return
            for step in steps * 2:
                if rng.random() < 0.3:
                    # On a busy machine the other one has its turn now, and not only by chance.
                    time.sleep(1e-5)
                try:
                    step()
                except QueueBroken as error:
                    assert len(str(error)) > 20  # noqa: PT017
                    self.broken += 1
            if self.vq.is_broken or self.dq.is_broken or rng.random() < 0.1:
                self.reset()
        pytest.fail(f"{self.chains} chains, {self.returned} came back, {self.broken} errors")

    def mended(self) -> None:
        """Nobody scribbles any more."""
        self.reset()
        for _ in range(5):
            self.add_rows()
            before = self.returned
            for _ in range(self.rows):
                self.serve_rows()
                self.get_rows()
            assert self.returned == before + self.rows
            assert not self.out


@contextmanager
def another_process(raced: Raced) -> Iterator[None]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(
        target=scribble_for_ever, args=(raced.memory, raced.vq.config, raced.tables, there)
    )
    child.start()
    there.close()
    try:
        assert here.recv()
        yield
        assert child.is_alive()
    finally:
        child.kill()
        child.join()
        child.close()
        here.close()


@contextmanager
def another_thread(raced: Raced) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(
        target=scribble,
        args=(raced.memory, raced.vq.config, raced.tables, lambda: not stop.is_set()),
    )
    # The two take turns with the GIL, else of 5 ms each.
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread.start()
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        thread.join()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("features", COMBINATIONS.values(), ids=COMBINATIONS)
@pytest.mark.parametrize(("num", "count"), [(1024, 15), (8, 300)], ids=["batches", "calls"])
def test_beside_another_process(kind: str, features: Feature, num: int, count: int) -> None:
    raced = Raced(kind, features, num)
    with another_process(raced):
        raced.rounds(count, batches=num > 8)
    raced.mended()


@pytest.mark.parametrize("kind", KINDS)
def test_beside_another_thread(kind: str) -> None:
    """Batches of 512 rows and more: the thread runs while they do."""
    raced = Raced(kind, COMBINATIONS["indirect"], 2048)
    with another_thread(raced):
        raced.rounds(4, batches=True)
    raced.mended()
