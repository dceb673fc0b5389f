"""What does a round trip between two processes cost, both polling, by the size of a batch?"""

from __future__ import annotations

import multiprocessing
import os

import numpy as np
import pytest

from benchmarks.loops import EVENT_IDX, RINGS, Measure
from virtring import (
    Batch,
    BufferPool,
    DeviceQueue,
    GuestMemory,
    QueueConfig,
    create_pair,
    spin_available,
    spin_used,
)

#: Length of the buffer that ends the device.
STOP = 1


def serve(memory: GuestMemory, config: QueueConfig, batch: int, cpu: int) -> None:
    """The device: gives everything back at once."""
    os.sched_setaffinity(0, {cpu})
    device = DeviceQueue(memory, config)
    device.disable_notify()
    rows = Batch(batch)
    while True:
        n = device.pop(rows)
        if not n:
            spin_available(device, 1000)
            continue
        device.push(rows)
        if rows.len[n - 1] == STOP:
            return


@pytest.mark.parametrize("batch", [1, 32, 256])
@pytest.mark.parametrize("ring", ["split", "packed"])
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs to poll on")
def test_round_trip(measure: Measure, ring: str, batch: int) -> None:
    # A CPU each: sharing one, they would measure the scheduler.
    cpus = os.sched_getaffinity(0)
    here, there = sorted(cpus)[:2]
    memory = GuestMemory.create(1 << 20)
    driver, _ = create_pair(1024, packed=RINGS[ring], features=EVENT_IDX, memory=memory)
    pool = BufferPool(memory, batch, 64)
    rows, used = Batch(batch), Batch(batch)
    rows.addr[:] = pool.addrs
    rows.len[:] = 64
    rows.token[:] = np.arange(batch)
    rows.count = batch
    device = multiprocessing.get_context("spawn").Process(
        target=serve, args=(memory, driver.config, batch, there)
    )
    device.start()

    def run() -> None:
        driver.add_outbuf_batch(rows)
        left = batch
        while left:
            n = driver.get_buf_batch(used)
            left -= n
            if not n and not spin_used(driver, 5e6):
                raise AssertionError("the device does not answer")

    os.sched_setaffinity(0, {here})
    try:
        run()  # the device process is up
        measure(run, batch)
    finally:
        os.sched_setaffinity(0, cpus)
        rows.len[:] = STOP
        rows.count = 1
        driver.add_outbuf_batch(rows)
        device.join(10)
        device.kill()
    assert device.exitcode == 0
