"""virtring's device side beside vringh and rust-vmm: a split ring refilled by numpy writes."""

from collections.abc import Callable
from time import perf_counter_ns

import numpy as np

from benchmarks.peers.peer import Case
from virtring import Batch, DeviceQueue, Feature, GuestMemory, RingDevice, vring_create_virtqueue
from virtring.spec.dtypes import VRING_DESC

SEGMENT = 64
NEXT = 1


class Refilled:
    """A ring full of chains of one length, which the device empties.

    Descriptors lie in ring order, as a fresh driver hands them out, and never change: the driver
    only lists their heads. That is not timed.
    """

    def __init__(self, case: Case) -> None:
        size, count = case.ring_size, case.descriptors
        self.chains = chains = size // count
        self.descriptors = count
        memory = GuestMemory.create(4 << 20)
        vdev = RingDevice(memory, Feature.VERSION_1)
        # It makes the ring; from then on these arrays are the driver.
        self.driver = vring_create_virtqueue(0, size, 64, vdev)
        config = self.driver.config
        data = memory.alloc(size * SEGMENT)
        desc = np.frombuffer(memory.view(config.desc, 16 * size), VRING_DESC)
        ids = np.arange(size)
        last = ids % count == count - 1
        desc["addr"] = data + ids * SEGMENT
        desc["len"] = SEGMENT
        desc["flags"] = np.where(last, 0, NEXT)
        desc["next"] = np.where(last, 0, ids + 1)
        self.avail = np.frombuffer(memory.view(config.avail, 4 + 2 * size), np.uint16)
        self.used = np.frombuffer(memory.view(config.used, 4 + 8 * size), np.uint16)
        self.avail[0] = 1  # VRING_AVAIL_F_NO_INTERRUPT
        self.heads = (np.arange(chains) * count).astype(np.uint16)
        self.slots = np.arange(chains)
        self.wanted = data + np.arange(chains * count, dtype=np.uint64) * SEGMENT
        self.idx = 0
        self.device = DeviceQueue(memory, config)
        self.popped = Batch(chains, chains * count)

    def fill(self) -> None:
        """Make every chain available."""
        self.avail[2 + (self.idx + self.slots) % (len(self.avail) - 2)] = self.heads
        self.idx = (self.idx + self.chains) & 0xFFFF
        self.avail[1] = self.idx

    def empty(self, chains: int) -> float:
        """Take all, give all back; nanoseconds."""
        pop, push, popped = self.device.pop, self.device.push, self.popped
        start = perf_counter_ns()
        pop(popped)
        push(popped)
        return perf_counter_ns() - start

    def round(self, buffers: int, empty: Callable[[int], float] | None = None) -> float:
        """Nanoseconds a chain."""
        empty = empty or self.empty
        turns = -(-buffers // self.chains)
        total = 0.0
        for _ in range(turns):
            self.fill()
            total += empty(self.chains)
            if self.used[1] != self.idx:
                raise RuntimeError("not every chain was used")
        if (self.popped.addr != self.wanted).any() or (self.popped.len != SEGMENT).any():
            raise RuntimeError("a segment of another address or length")
        return total / (turns * self.chains)
