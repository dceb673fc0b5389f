"""One trip round a ring by batches, and the pair it runs on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from virtring import Batch, BufferPool, Feature, GuestMemory, create_pair

#: Runs a function again and again: (function, buffers a call).
Measure = Callable[[Callable[[], object], int], None]

PLAIN = Feature.VERSION_1
EVENT_IDX = PLAIN | Feature.EVENT_IDX
IN_ORDER = PLAIN | Feature.IN_ORDER
INDIRECT = PLAIN | Feature.INDIRECT_DESC

FEATURES = {"flags": PLAIN, "event_idx": EVENT_IDX, "in_order": IN_ORDER}
RINGS = {"split": False, "packed": True}


def round_trip(
    ring: str, size: int, batch: int, features: Feature, *, descriptors: int = 1
) -> Callable[[], None]:
    """A function that sends ``batch`` buffers to the device and takes them back.

    Each has ``descriptors`` readable descriptors of 64 bytes. It checks that all came back, and the
    tokens once, now.
    """
    memory = GuestMemory.create(64 << 20)
    driver, device = create_pair(size, packed=RINGS[ring], features=features, memory=memory)
    pool = BufferPool(memory, batch * descriptors, 64)
    rows = Batch(batch, batch * descriptors)
    popped, used = Batch(batch, batch * descriptors), Batch(batch)
    rows.addr[:] = pool.addrs
    rows.len[:] = 64
    rows.offsets[:] = np.arange(batch + 1) * descriptors
    rows.token[:] = np.arange(batch) + 1
    rows.count = batch
    add = driver.add_outbuf_batch if descriptors == 1 else driver.add_sgs_batch

    def run() -> None:
        add(rows)
        driver.kick_prepare()
        device.pop(popped)
        device.push(popped)
        device.need_notify()
        if driver.get_buf_batch(used) != batch:
            raise AssertionError("a buffer was lost")

    run()
    assert sorted(used.token) == list(range(1, batch + 1))
    assert popped.offsets[batch] == batch * descriptors
    return run
