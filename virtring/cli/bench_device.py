"""The device's half of a two-process benchmark, in a process of its own."""

import os
from dataclasses import dataclass
from itertools import repeat
from multiprocessing.connection import Connection

import numpy as np

from virtring.cli.failure import Failed
from virtring.cli.pattern import Payload, Place, same_rows
from virtring.memory import GuestMemory
from virtring.queue import Batch, DeviceQueue, QueueConfig

#: Polls between two looks at the connection, about a millisecond.
POLLS = 2048


@dataclass(frozen=True)
class Job:
    """What the device needs to know. ``alone``: both processes share one core."""

    memory: GuestMemory
    config: QueueConfig
    place: Place
    batch: int
    copied: bool
    alone: bool


class Device:
    """Pops and pushes as fast as it can until the driver's process says otherwise."""

    def __init__(self, connection: Connection, job: Job) -> None:
        self.connection = connection
        self.job = job
        self.queue = DeviceQueue(job.memory, job.config)
        self.queue.disable_notify()
        self.payload = Payload(job.memory, job.place)
        self.popped = Batch(job.batch)
        self.served = 0
        count, size = job.place.count, job.place.size
        # Copied contents end up here; by the address of a batch's first buffer, from and to where.
        self.copies = np.zeros((count, size), np.uint8)
        self.parts = {
            int(self.payload.addrs[first]): (
                self.copies[first : first + job.batch],
                self.payload.array[first : first + job.batch],
            )
            for first in range(0, count, job.batch)
        }

    def run_passed(self) -> None:
        """Buffers change hands; returns when a message is waiting."""
        pop, push, popped = self.queue.pop, self.queue.push, self.popped
        waiting, alone, give_way = self.connection.poll, self.job.alone, os.sched_yield
        served = 0
        while not waiting(0):
            for _ in repeat(None, POLLS):
                count = pop(popped)
                if count:
                    push(popped)
                    served += count
                elif alone:
                    give_way()
        self.served += served

    def run_copied(self) -> None:
        """As :meth:`run_passed`, with the contents copied out before they are pushed."""
        pop, push, popped = self.queue.pop, self.queue.push, self.popped
        waiting, alone, give_way = self.connection.poll, self.job.alone, os.sched_yield
        copy, parts, first = np.copyto, self.parts, popped.addr.item
        served = 0
        while not waiting(0):
            for _ in repeat(None, POLLS):
                count = pop(popped)
                if count:
                    out, buffers = parts[first(0)]
                    copy(out, buffers)
                    push(popped)
                    served += count
                elif alone:
                    give_way()
        self.served += served

    def check(self, seed: int, sent: int) -> int:
        """All that was sent was served, and the buffers hold what they should."""
        if self.served != sent:
            raise Failed(f"{self.served} buffers came of {sent} that were added")
        # pop() has cleared the count since; the columns still name the last batch.
        self.popped.count = self.job.batch
        rows = self.payload.rows_of(self.popped)
        if (np.diff(rows) != 1).any() or rows[-1] % self.job.batch != self.job.batch - 1:
            raise Failed(f"the last batch names the buffers {rows.tolist()}, out of order")
        every = np.arange(self.job.place.count)
        if self.job.copied:
            same_rows(self.copies, self.payload.wanted(seed), every, "what was copied out")
        return self.payload.check(every, seed, "what was passed")

    def answer(self, seed: int, count: int) -> None:
        """Write into the next ``count`` buffers."""
        wanted = self.payload.wanted(seed)
        while count:
            if self.queue.pop(self.popped) == 0:
                if self.connection.poll(0):
                    raise Failed(f"the driver went on with {count} answers missing")
                continue
            rows = self.payload.rows_of(self.popped)
            self.payload.array[rows] = wanted[rows]
            self.popped.written[: len(rows)] = self.job.place.size
            self.queue.push(self.popped)
            count -= len(rows)
        self.popped.written[:] = 0


def serve(connection: Connection, job: Job) -> None:
    """Run until the driver's process closes the connection."""
    device = Device(connection, job)
    run = device.run_copied if job.copied else device.run_passed
    connection.send("ready")
    while True:
        run()
        try:
            seed, sent, answer = connection.recv()
        except EOFError:
            return
        # What the driver adds once it has the result is for answer(), not for run().
        connection.send(device.check(seed, sent))
        device.answer(answer, job.place.count)
        connection.send("answered")
