"""virtring's driver side beside Linux's: both ends of a ring in one thread."""

from itertools import repeat
from time import perf_counter_ns

import numpy as np

from benchmarks.peers.peer import Case
from virtring import Batch, BufferPool, Feature, GuestMemory, create_pair


class Pair:
    """A ring with both ends, and all that goes round it: made once, as Linux's scatter lists are.

    As there, the rings' flags say that nobody wants to be notified.
    """

    def __init__(self, case: Case) -> None:
        features = Feature.VERSION_1
        if case.indirect:
            features |= Feature.INDIRECT_DESC
        self.memory = GuestMemory.create(64 << 20)
        self.driver, self.device = create_pair(
            case.ring_size, packed=case.ring == "packed", features=features, memory=self.memory
        )
        self.driver.disable_cb()
        self.device.disable_notify()
        self.batch = batch = case.batch
        self.descriptors = count = case.descriptors
        # A buffer of one descriptor never goes into a table, as in Linux.
        self.full = case.ring_size if case.indirect else case.ring_size // count
        self.pool = BufferPool(self.memory, max(batch * count, count), 64)
        self.rows = Batch(batch, batch * count)
        self.rows.addr[:] = self.pool.addrs[: batch * count]
        self.rows.len[:] = 64
        self.rows.offsets[:] = np.arange(batch + 1) * count
        self.rows.token[:] = np.arange(batch) + 1
        self.rows.count = batch
        self.popped, self.used = Batch(batch, batch * count), Batch(batch)


def time_batches(pair: Pair, buffers: int) -> float:
    """Batches of several buffers; nanoseconds a buffer."""
    driver, device = pair.driver, pair.device
    rows, popped, used, batch = pair.rows, pair.popped, pair.used, pair.batch
    add = driver.add_outbuf_batch if pair.descriptors == 1 else driver.add_sgs_batch
    kick, get, pop, push = driver.kick, driver.get_buf_batch, device.pop, device.push
    times = -(-buffers // batch)
    start = perf_counter_ns()
    for _ in repeat(None, times):
        add(rows)
        kick()
        pop(popped)
        push(popped)
        if get(used) != batch:
            raise RuntimeError("not every buffer came back")
    spent = perf_counter_ns() - start
    if sorted(used.token) != list(range(1, batch + 1)):
        raise RuntimeError("other tokens came back")
    return spent / (times * batch)


def time_single(pair: Pair, buffers: int) -> float:
    """One buffer at a time with an object as token; nanoseconds a buffer."""
    driver, device, popped = pair.driver, pair.device, pair.popped
    taken = [pair.pool.get() for _ in range(pair.descriptors)]
    sg = taken[0] if pair.descriptors == 1 else taken
    add, kick, get, pop, push = (
        driver.add_outbuf, driver.kick, driver.get_buf, device.pop, device.push,
    )
    token = object()
    start = perf_counter_ns()
    for _ in repeat(None, buffers):
        add(sg, token)
        kick()
        pop(popped)
        push(popped)
        # A None, were the buffer missing, raises TypeError.
        back, _ = get()  # type: ignore[misc]
        if back is not token:
            raise RuntimeError("another token came back")
    spent = perf_counter_ns() - start
    for buffer in taken:
        pair.pool.put(buffer)
    return spent / buffers


def time_calls(pair: Pair, buffers: int) -> float:
    """The driver's three calls over a full ring, without the device; nanoseconds a buffer."""
    driver, device, full = pair.driver, pair.device, pair.full
    taken = [pair.pool.get() for _ in range(pair.descriptors)]
    sg = taken[0] if pair.descriptors == 1 else taken
    add, kick_prepare, get = driver.add_outbuf, driver.kick_prepare, driver.get_buf
    tokens = [object() for _ in range(full)]
    popped = Batch(full, full * pair.descriptors)
    spent = 0
    turns = -(-buffers // full)
    for _ in repeat(None, turns):
        start = perf_counter_ns()
        for token in tokens:
            add(sg, token)
            if kick_prepare():
                raise RuntimeError("kick_prepare asks for a notification")
        spent += perf_counter_ns() - start
        if device.pop(popped) != full or device.push(popped) != full:
            raise RuntimeError("the device did not find every buffer")
        start = perf_counter_ns()
        for token in tokens:
            back, _ = get()  # type: ignore[misc]
            if back is not token:
                raise RuntimeError("another token came back")
        spent += perf_counter_ns() - start
    for buffer in taken:
        pair.pool.put(buffer)
    return spent / (turns * full)
