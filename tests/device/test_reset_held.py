"""A queue or the whole device is reset while threads of the device hold chains of several queues.

The device here is as rude as it can be: it keeps its chains over every reset and returns them
later, from a thread of its own. They must be refused, and harm neither the new ring nor the others.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any

import numpy as np
import pytest

from tests.devices.binding import KINDS, RINGS, Raw, bound, raw_driver
from tests.devices.machine import until
from virtring.device import Device, VirtioBus
from virtring.errors import InvalidArgument, QueueClosed
from virtring.queue import Chain, DeviceQueue, Virtqueue
from virtring.spec.features import Feature
from virtring.spec.ids import DeviceID

#: Bytes of a buffer; what the driver and the device put there.
SIZE = 16
BLANK, ANSWER = b"\xee" * SIZE, b"\x5a" * SIZE


class Hoarder(Device):
    """Takes all chains there are, and returns what :meth:`give_back` names, in its thread."""

    device_id = DeviceID.SOUND
    queue_names = ("one", "two", "three")

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.lock = Lock()
        self.held: list[tuple[int, Chain]] = []
        self.refused: list[Chain] = []
        self.errors: list[BaseException] = []
        self.orders: SimpleQueue[list[tuple[int, Chain]] | None] = SimpleQueue()
        self.thread = Thread(target=self._work)
        self.thread.start()

    def handle_queue(self, index: int, queue: DeviceQueue) -> None:
        for chain in self.chains(queue):
            with self.lock:
                self.held.append((index, chain))

    def take(self, index: int | None = None) -> list[tuple[int, Chain]]:
        """What it holds of one queue or of all, oldest first; it forgets them."""
        with self.lock:
            taken = [entry for entry in self.held if index in (None, entry[0])]
            self.held = [entry for entry in self.held if index not in (None, entry[0])]
        return taken

    def count(self, index: int) -> int:
        with self.lock:
            return [which for which, _ in self.held].count(index)

    def give_back(self, chains: list[tuple[int, Chain]]) -> None:
        """Write the answer and return them, in the device's own thread."""
        self.orders.put(chains)

    def _work(self) -> None:
        while (chains := self.orders.get()) is not None:
            for index, chain in chains:
                try:
                    self.defer(object(), lambda i=index, c=chain: self._answer(i, c))  # type: ignore[misc]
                except BaseException as error:
                    self.errors.append(error)

    def _answer(self, index: int, chain: Chain) -> None:
        try:
            chain.write(ANSWER)
            chain.return_()
            chain.queue.signal()
        except (InvalidArgument, QueueClosed):
            # Only for this reason.
            assert chain.queue.is_closed
            assert self.queues[index] is not chain.queue
            self.refused.append(chain)

    def stop(self) -> None:
        self.orders.put(None)
        self.thread.join(20)
        assert not self.thread.is_alive()
        assert self.errors == []


class Sender:
    """The driver's program: buffers that are out, by token, and where each of them is."""

    def __init__(self, raw: Raw) -> None:
        self.raw = raw
        memory = raw.vdev.memory
        self.area = memory.alloc(SIZE * 256)
        self.bytes = np.frombuffer(memory.view(self.area, SIZE * 256), f"V{SIZE}")
        self.free = list(range(256))
        self.out: dict[int, tuple[Virtqueue, int]] = {}
        #: Of those that are free, the ones that a reset gave back.
        self.recycled: set[int] = set()
        self.next = 1
        self.lost = self.returned = 0

    def add(self, vq: Virtqueue, n: int) -> None:
        for _ in range(n):
            slot = self.free.pop()
            self.bytes[slot] = BLANK
            self.recycled.discard(slot)
            vq.add_inbuf_premapped([(self.area + SIZE * slot, SIZE)], self.next)
            self.out[self.next] = vq, slot
            self.next += 1
        vq.kick()

    def get(self, vq: Virtqueue) -> int:
        n = 0
        while (used := vq.get_buf()) is not None:
            token, written = used
            owner, slot = self.out.pop(token)
            assert owner is vq
            assert written == SIZE
            assert bytes(self.bytes[slot]) == ANSWER
            self.free.append(slot)
            self.returned += 1
            n += 1
        return n

    def recycle(self, vq: Virtqueue, token: int) -> None:
        """The device is not to touch this buffer any more."""
        owner, slot = self.out.pop(token)
        assert owner is vq
        self.bytes[slot] = BLANK
        self.recycled.add(slot)
        self.free.append(slot)
        self.lost += 1

    def untouched(self) -> bool:
        """Nobody has written to what a reset gave back."""
        return all(bytes(self.bytes[slot]) == BLANK for slot in self.recycled)


class Rig:
    def __init__(self, device: Hoarder, raw: Raw) -> None:
        self.device, self.raw = device, raw
        self.sender = Sender(raw)

    @property
    def vqs(self) -> list[Virtqueue]:
        return self.raw.vqs

    def out(self, vq: Virtqueue) -> list[int]:
        return sorted(token for token, (owner, _) in self.sender.out.items() if owner is vq)

    def fill(self, n: int) -> None:
        """The device holds ``n`` more chains of each queue."""
        before = [self.device.count(index) for index in range(len(self.vqs))]
        for vq in self.vqs:
            self.sender.add(vq, n)
        until(lambda: [self.device.count(i) for i in range(3)] == [old + n for old in before])

    def begin_again(self) -> None:
        """Queues away and set up anew, as when a machine sleeps and wakes."""
        bus = VirtioBus()
        bus.freeze(self.raw.vdev)
        bus.restore(self.raw.vdev)

    def come_back(self, vq: Virtqueue, n: int) -> None:
        """Exactly ``n`` come back."""
        got = 0

        def take() -> bool:
            nonlocal got
            got += self.sender.get(vq)
            return got >= n

        until(take)
        assert got == n

    def is_refused(self, chains: list[tuple[int, Chain]]) -> None:
        """The device tries to return them."""
        before = len(self.device.refused)
        self.device.give_back(chains)
        until(lambda: len(self.device.refused) == before + len(chains))


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=RINGS)
def rig(request: pytest.FixtureRequest, kind: str) -> Iterator[Rig]:
    device = Hoarder(ring_features=RINGS[request.param] | Feature.RING_RESET, queue_size=16)
    driver = raw_driver(DeviceID.SOUND, queues=3)
    try:
        with bound(device, driver, kind, later=True) as raw:
            rig = Rig(device, raw)
            yield rig
            assert not device.core.refusals
            raw.owned.append(rig.sender.area)
    finally:
        device.stop()


def test_one_queue_is_reset(rig: Rig) -> None:
    first, second, third = rig.vqs
    ops, sender = rig.raw.vdev.config, rig.sender
    rig.fill(6)
    lost = rig.out(first)
    ops.disable_vq_and_reset(first)
    old = rig.device.take(0)
    recycled: list[int] = []

    def recycle(vq: Virtqueue, token: int) -> None:
        recycled.append(token)
        sender.recycle(vq, token)

    first.recycle_all(recycle)
    assert sorted(recycled) == lost
    assert first.num_free == 16
    # While there is no ring, and another queue goes on.
    rig.is_refused(old[:3])
    rig.device.give_back(rig.device.take(1))
    rig.come_back(second, 6)
    first.restart()
    ops.enable_vq_after_reset(first)
    # With the new ring, whose chains have the ids of the old ones.
    sender.add(first, 6)
    until(lambda: rig.device.count(0) == 6)
    rig.is_refused(old[3:])
    assert first.get_buf() is None
    assert rig.device.queues[0].in_flight == 6
    assert sender.untouched()
    rig.device.give_back(rig.device.take())
    rig.come_back(first, 6)
    rig.come_back(third, 6)
    assert not sender.out
    assert [vq.num_free for vq in rig.vqs] == [16] * 3
    assert not rig.raw.needs_reset


def test_the_device_is_reset(rig: Rig) -> None:
    sender, vdev = rig.sender, rig.raw.vdev
    rig.fill(5)
    vdev.reset()
    assert rig.device.queues == [None] * 3
    old = rig.device.take()
    for vq in rig.vqs:
        expected = rig.out(vq)
        assert len(expected) == 5
        vq.recycle_all(sender.recycle)
        assert rig.out(vq) == []
    rig.is_refused(old[:8])
    rig.begin_again()
    rig.fill(5)
    rig.is_refused(old[8:])
    assert [vq.get_buf() for vq in rig.vqs] == [None] * 3
    assert sender.untouched()
    rig.device.give_back(rig.device.take())
    for vq in rig.vqs:
        rig.come_back(vq, 5)
        assert vq.num_free == 16
    assert not sender.out


def test_resets_at_any_time(rig: Rig) -> None:
    """While the device's thread returns what it holds of this ring and of rings before."""
    rng, sender, device = random.Random(5), rig.sender, rig.device
    sent = 0
    for turn in range(60):
        for vq in rig.vqs:
            n = rng.randint(0, vq.num_free)
            sender.add(vq, n)
            sent += n
        if rng.random() < 0.8:
            device.give_back(device.take(rng.choice((None, 0, 1, 2))))
        # The threads of the device are in the middle of it.
        time.sleep(rng.choice((0, 0.0002, 0.001)))
        if turn % 20 == 10:
            rig.raw.vdev.reset()
            for vq in rig.vqs:
                vq.recycle_all(sender.recycle)
            rig.begin_again()
        elif rng.random() < 0.4:
            rng.choice(rig.vqs).reset(sender.recycle)
        for vq in rig.vqs:
            sender.get(vq)

    def all_back() -> bool:
        device.give_back(device.take())
        for vq in rig.vqs:
            sender.get(vq)
        return not sender.out

    until(all_back)
    assert sender.returned + sender.lost == sent
    assert sender.lost
    assert sender.returned
    assert [vq.num_free for vq in rig.vqs] == [16] * 3
    assert sender.untouched()
    assert not rig.raw.needs_reset
