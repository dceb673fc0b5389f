"""Driver and device in one process: by batches ("loop") and by single calls ("call")."""

import time
from itertools import repeat

import numpy as np

from virtring.cli.failure import Failed
from virtring.cli.measure import Result, Settings, memory_size, ring_size, timed
from virtring.cli.pattern import Payload, Place, check_tokens
from virtring.memory import BufferPool, GuestMemory
from virtring.queue import Batch, DeviceQueue, Virtqueue, create_pair

LOOP_BATCH = 256
#: Rounds between two looks at the clock.
BATCH_ROUNDS = 64
CALL_ROUNDS = 256
#: Seeds of the contents: as filled by the driver, as written back by the device.
ASK, ANSWER = 1, 2


class Local:
    """A ring with both its ends here, buffers, and the columns that name them."""

    def __init__(self, ring: str, batch: int, settings: Settings) -> None:
        entries = ring_size(batch)
        self.memory = GuestMemory.create(memory_size(batch, settings.size, entries))
        self.driver: Virtqueue
        self.device: DeviceQueue
        self.driver, self.device = create_pair(
            entries,
            packed=ring == "packed",
            features=settings.features,
            memory=self.memory,
            name=f"bench {ring}",
        )
        self.device.disable_notify()
        self.pool = BufferPool(self.memory, batch, settings.size)
        place = Place(int(self.pool.addrs[0]), batch, self.pool.stride, settings.size)
        self.payload = Payload(self.memory, place)
        self.adding, self.popped, self.got = Batch(batch), Batch(batch), Batch(batch)
        self.adding.addr[:] = self.pool.addrs
        self.adding.len[:] = settings.size
        self.adding.token[:] = np.arange(batch)
        self.adding.count = batch
        self.payload.fill(ASK)

    def check(self) -> int:
        """What went through last is what was sent; then buffers the other way. Untimed."""
        batch = self.adding.count
        rows = self.payload.rows_of(self.popped)
        check_tokens(rows.astype(np.uint64), batch, "the device")
        done = self.payload.check(rows, ASK, "the device")
        check_tokens(self.got.token[: self.got.count], batch, "the driver")
        return done + self.answer()

    def answer(self) -> int:
        """The device writes into every buffer, the driver checks what came back."""
        batch = self.adding.count
        self.driver.add_inbuf_batch(self.adding)
        self.device.pop(self.popped)
        rows = self.payload.rows_of(self.popped)
        self.payload.array[rows] = self.payload.wanted(ANSWER)[rows]
        self.popped.written[: len(rows)] = self.payload.place.size
        self.device.push(self.popped)
        self.driver.get_buf_batch(self.got)
        check_tokens(self.got.token[: self.got.count], batch, "the driver")
        check_written(self.got, self.payload.place.size)
        done = self.payload.check(self.got.token.astype(np.int64), ANSWER, "the driver")
        self.popped.written[:] = 0
        self.payload.fill(ASK)
        return done


def check_written(got: Batch, size: int) -> None:
    """Failed unless every used length is ``size``."""
    if (got.written[: got.count] != size).any():
        raise Failed(f"the driver: a used length is not the {size} bytes that were written")


def run_loop(ring: str, settings: Settings) -> Result:
    """add_outbuf_batch, pop, push, get_buf_batch, over and over."""
    batch = settings.batch or LOOP_BATCH
    local = Local(ring, batch, settings)
    add, get = local.driver.add_outbuf_batch, local.driver.get_buf_batch
    pop, push = local.device.pop, local.device.push
    adding, popped, got = local.adding, local.popped, local.got
    clock = time.perf_counter

    def run(end: float) -> int:
        rounds = 0
        while clock() < end:
            for _ in repeat(None, BATCH_ROUNDS):
                add(adding)
                pop(popped)
                push(popped)
                get(got)
            rounds += BATCH_ROUNDS
        if local.driver.in_flight or local.device.in_flight or got.count != batch:
            raise Failed(f"{ring} loop: buffers were left in the ring")
        return rounds * batch

    result = Result(ring, "loop", "passed", batch, settings.size)
    timed(result, settings.window, run, local.check)
    return result


def run_call(ring: str, settings: Settings) -> Result:
    """add_outbuf, kick_prepare, next_chain, return_, get_buf for one buffer, over and over."""
    local = Local(ring, 1, settings)
    driver, device = local.driver, local.device
    buffer = local.pool.get()
    add, kick_prepare, get = driver.add_outbuf, driver.kick_prepare, driver.get_buf
    next_chain, return_ = device.next_chain, device.return_
    clock = time.perf_counter

    def run(end: float) -> int:
        rounds = 0
        while clock() < end:
            for _ in repeat(None, CALL_ROUNDS):
                add(buffer)
                kick_prepare()
                # None, were the chain missing, raises TypeError: no check inside the timed loop.
                return_(next_chain(), 0)  # type: ignore[arg-type]
                get()
            rounds += CALL_ROUNDS
        return rounds

    def check() -> int:
        add(buffer)
        chain = next_chain()
        if chain is None or chain.read() != local.payload.wanted(ASK)[0].tobytes():
            raise Failed("the device: the chain does not hold what the driver wrote")
        return_(chain, 0)
        if get() != (buffer, 0) or get() is not None:
            raise Failed("the driver: the token did not come back exactly once")
        return 1 + local.answer()

    result = Result(ring, "call", "passed", 1, settings.size)
    timed(result, settings.window, run, check)
    return result
