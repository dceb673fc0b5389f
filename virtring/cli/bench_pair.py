"""Driver and device in two processes, both busy polling: the driver's half, and the measurement.

The driver keeps a few batches outstanding, so that each side finds work while the other one works.
"""

import os
import time
from itertools import cycle, repeat

import numpy as np

from virtring.cli.bench_device import Job, serve
from virtring.cli.bench_local import ANSWER, ASK, check_written
from virtring.cli.child import Child
from virtring.cli.failure import Failed
from virtring.cli.measure import Result, Settings, memory_size, ring_size, timed
from virtring.cli.pattern import Payload, Place, check_tokens, pattern
from virtring.memory import BufferPool, GuestMemory
from virtring.queue import Batch, RingDevice, Virtqueue, vring_create_virtqueue
from virtring.queue.config import MAX_SIZE
from virtring.spec.features import Feature

PAIR_BATCH = 32
#: Batches on their way at once.
OUTSTANDING = 4
#: Polls between two looks at the clock.
POLLS = 256
#: Seconds without a used buffer, while some are out, after which the run fails.
STALL = 10.0


class Driver:
    """This process's half. A round is a batch that went to the device and came back."""

    def __init__(self, ring: str, settings: Settings, copied: bool) -> None:
        self.batch = settings.batch or PAIR_BATCH
        outstanding = max(1, min(OUTSTANDING, MAX_SIZE // self.batch))
        self.count = count = self.batch * outstanding
        entries = ring_size(count)
        features = settings.features | (Feature.RING_PACKED if ring == "packed" else 0)
        self.memory = GuestMemory.create(memory_size(count, settings.size, entries))
        vdev = RingDevice(self.memory, features)
        self.queue: Virtqueue = vring_create_virtqueue(
            0, entries, 64, vdev, name=f"bench {ring}"
        )
        self.pool = BufferPool(self.memory, count, settings.size)
        place = Place(int(self.pool.addrs[0]), count, self.pool.stride, settings.size)
        self.payload = Payload(self.memory, place)
        self.seed = ASK
        self.payload.fill(self.seed)
        self.alone = len(settings.cores) < 2
        self.job = Job(
            self.memory, self.queue.config, place, self.batch, copied=copied, alone=self.alone
        )
        self.batches = []
        for first in range(0, count, self.batch):
            adding = Batch(self.batch)
            rows = slice(first, first + self.batch)
            adding.addr[:] = self.pool.addrs[rows]
            adding.len[:] = settings.size
            adding.token[:] = np.arange(first, first + self.batch)
            adding.count = self.batch
            self.batches.append(adding)
        self.got = Batch(self.batch)
        # What the driver copies into the buffers, and the places it goes to, batch by batch.
        self.source = pattern(count, settings.size, self.seed)
        self.parts = [
            (adding, self.payload.array[first : first + self.batch],
             self.source[first : first + self.batch])
            for adding, first in zip(self.batches, range(0, count, self.batch), strict=True)
        ]
        self.sent = 0

    def run_passed(self, end: float) -> int:
        """Rounds until ``end`` (of perf_counter); buffers that went there and back."""
        add, get = self.queue.add_outbuf_batch, self.queue.get_buf_batch
        got, batch = self.got, self.batch
        clock, alone, give_way = time.perf_counter, self.alone, os.sched_yield
        following = cycle(self.batches).__next__
        rounds = 0
        for _ in self.batches:
            add(following())
        while clock() < end:
            for _ in repeat(None, POLLS):
                taken = get(got)
                if taken:
                    if taken != batch:
                        self.complete(taken)
                    add(following())
                    rounds += 1
                elif alone:
                    give_way()
        for _ in self.batches:
            self.complete(0)
        return self.finish(rounds + len(self.batches))

    def run_copied(self, end: float) -> int:
        """As :meth:`run_passed`, with the contents copied in before each add."""
        add, get = self.queue.add_outbuf_batch, self.queue.get_buf_batch
        got, batch = self.got, self.batch
        clock, alone, give_way, copy = time.perf_counter, self.alone, os.sched_yield, np.copyto
        following = cycle(self.parts).__next__
        rounds = 0
        for adding, buffers, source in self.parts:
            following()
            copy(buffers, source)
            add(adding)
        while clock() < end:
            for _ in repeat(None, POLLS):
                taken = get(got)
                if taken:
                    if taken != batch:
                        self.complete(taken)
                    adding, buffers, source = following()
                    copy(buffers, source)
                    add(adding)
                    rounds += 1
                elif alone:
                    give_way()
        for _ in self.parts:
            self.complete(0)
        return self.finish(rounds + len(self.parts))

    def finish(self, rounds: int) -> int:
        """The last batch is back: it has to be the one that was added last."""
        last = self.batches[(rounds - 1) % len(self.batches)]
        if not np.array_equal(self.got.token, last.token):
            raise Failed(f"the driver: tokens {self.got.token.tolist()} came back last")
        self.sent += rounds * self.batch
        return rounds * self.batch

    def complete(self, taken: int) -> None:
        """Take the rest of a batch of which ``taken`` buffers are here. Raises when it stalls."""
        get, got = self.queue.get_buf_batch, self.got
        deadline = time.perf_counter() + STALL
        while taken < self.batch:
            more = get(got, self.batch - taken)
            taken += more
            if more == 0:
                self.stalled(deadline)

    def stalled(self, deadline: float) -> None:
        """Nothing came back: is the device still there?"""
        if self.alone:
            os.sched_yield()
        if not self.child.alive:
            self.child.receive()    # raises what it reported, if it did
            raise self.child.failure()
        if time.perf_counter() > deadline:
            raise Failed(f"the device process used no buffer for {STALL:.0f} s")

    def check(self) -> int:
        """The device verifies what it was given, then writes answers for us to verify. Untimed."""
        if self.queue.in_flight:
            raise Failed(f"{self.queue.in_flight} buffers did not come back")
        self.child.send((self.seed, self.sent, ANSWER))
        done: int = self.child.receive()
        done += self.answers()
        self.child.receive()
        self.seed += ANSWER
        self.source[:] = pattern(self.count, self.payload.place.size, self.seed)
        self.payload.fill(self.seed)
        return done

    def answers(self) -> int:
        """Offer every buffer to be written; every token and answer has to come back."""
        self.payload.array[:] = 0
        for adding in self.batches:
            if self.queue.add_inbuf_batch(adding) != self.batch:
                raise Failed("the ring took fewer buffers than it has free entries")
        tokens: list[int] = []
        deadline = time.perf_counter() + STALL
        while len(tokens) < len(self.batches) * self.batch:
            if self.queue.get_buf_batch(self.got) == 0:
                self.stalled(deadline)
                continue
            check_written(self.got, self.payload.place.size)
            tokens.extend(self.got.token[: self.got.count].tolist())
        check_tokens(np.array(tokens, np.uint64), self.count, "the driver")
        return self.payload.check(np.array(tokens), ANSWER, "the driver")

    def measure(self, result: Result, settings: Settings) -> None:
        """Start the device, run the windows, end it."""
        cores = os.sched_getaffinity(0)
        with Child("device", serve, self.job, cpu=settings.there) as self.child:
            try:
                if settings.here is not None:
                    os.sched_setaffinity(0, {settings.here})
                self.child.receive()
                run = self.run_copied if self.job.copied else self.run_passed
                timed(result, settings.window, run, self.check)
            finally:
                os.sched_setaffinity(0, cores)


def run_pair(ring: str, settings: Settings, *, copied: bool = False) -> Result:
    """Round trips between two processes; ``copied``: with the contents copied in and out."""
    driver = Driver(ring, settings, copied)
    result = Result(ring, "pair", "copied" if copied else "passed", driver.batch, settings.size)
    driver.measure(result, settings)
    return result
