"""virtring beside ringtest: driver and device in two processes on two cores, both polling.

As there: nothing but the ring between them, nobody is notified, and a core that finds nothing
relaxes. ringtest's guest adds and gets one buffer after another; ours does so by batches.
"""

import multiprocessing
import os
from pathlib import Path
from time import perf_counter_ns
from types import TracebackType
from typing import Self

import numpy as np

from benchmarks.peers.peer import Case
from benchmarks.peers.ringtest import WINDOW
from virtring import (
    Batch,
    BufferPool,
    DeviceQueue,
    Feature,
    GuestMemory,
    QueueConfig,
    RingDevice,
    spin_available,
    spin_used,
    vring_create_virtqueue,
)

#: Length of the buffer that ends the device.
STOP = 1
SEGMENT = 64
# Microseconds without a buffer after which the other side is taken for dead.
_PATIENCE = 10e6
# How long the device polls before it looks whether its parent is still there, in microseconds.
_LOOK = 100_000.0


def serve(memory: GuestMemory, config: QueueConfig, cpu: int, room: int, parent: int) -> None:
    """The device: gives everything back at once."""
    os.sched_setaffinity(0, {cpu})
    device = DeviceQueue(memory, config)
    device.disable_notify()
    popped = Batch(room)
    pop, push, lens = device.pop, device.push, popped.len
    while True:
        n = pop(popped)
        if n:
            push(popped)
            if lens[n - 1] == STOP:
                return
        elif not spin_available(device, _LOOK) and os.getppid() != parent:
            return


class Polled:
    """The driver here and the device in a child, as long as the context lasts."""

    def __init__(self, case: Case, other_cpu: int) -> None:
        if other_cpu in os.sched_getaffinity(0):
            raise SystemExit("two cores are needed: the two sides wait for each other by polling")
        # "free": as many as the ring holds, in halves, so that neither side waits for all of it.
        self.window = WINDOW if case.name == "window" else case.ring_size
        self.batch = case.batch if case.name == "window" else case.ring_size // 2
        self.memory = GuestMemory.create(4 << 20)
        features = Feature.VERSION_1
        if case.ring == "packed":
            features |= Feature.RING_PACKED
        vdev = RingDevice(self.memory, features)
        self.driver = vring_create_virtqueue(0, case.ring_size, 64, vdev)
        self.driver.disable_cb()
        pool = BufferPool(self.memory, self.batch, SEGMENT)
        self.rows, self.used = Batch(self.batch), Batch(self.batch)
        self.rows.addr[:] = pool.addrs
        self.rows.len[:] = SEGMENT
        self.rows.token[:] = np.arange(self.batch)
        self.rows.count = self.batch
        self.device = multiprocessing.get_context("spawn").Process(
            target=serve,
            args=(self.memory, self.driver.config, other_cpu, self.batch, os.getpid()),
            daemon=True,
        )

    def __enter__(self) -> Self:
        self.device.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.rows.len[:] = STOP
            self.driver.add_outbuf_batch(self.rows, 0, 1)
            self.device.join(10)
        self.device.kill()
        self.device.join()

    def preemptions(self) -> int:
        """How often either process lost its core."""
        lost = 0
        for pid in (os.getpid(), self.device.pid):
            status = Path(f"/proc/{pid}/status").read_text()
            lost += int(status.split("nonvoluntary_ctxt_switches:")[1])
        return lost

    def round(self, buffers: int) -> float:
        """Nanoseconds a buffer, there and back."""
        driver, rows, used, batch = self.driver, self.rows, self.used, self.batch
        add, get = driver.add_outbuf_batch, driver.get_buf_batch
        ahead = self.window // batch
        trips = -(-buffers // batch)
        start = perf_counter_ns()
        for _ in range(ahead):
            add(rows)
        for left in range(trips, 0, -1):
            taken = get(used)
            while taken != batch:
                if not spin_used(driver, _PATIENCE):
                    raise RuntimeError("the device does not answer")
                taken += get(used, batch - taken)
            if left > ahead:
                add(rows)
        spent = perf_counter_ns() - start
        if driver.in_flight:
            raise RuntimeError("buffers were left in the ring")
        return spent / (trips * batch)
