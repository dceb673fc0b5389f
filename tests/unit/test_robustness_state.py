"""Positions, event index over the wraps, barriers, frozen configuration, threads."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import pytest

from virtring import (
    AddressError,
    Batch,
    DeviceQueue,
    Feature,
    GuestMemory,
    InvalidArgument,
    MemoryInUse,
    QueueBusy,
    QueueConfig,
    Region,
    RingDevice,
    Virtqueue,
    vring_create_virtqueue,
)

from ._rings import BASE, KINDS, SIZE, Ring

EVENT = Feature.EVENT_IDX
both = pytest.mark.parametrize("kind", KINDS)
SIZES = [("split", 8), ("packed", 8), ("packed", 7), ("packed", 1), ("split", 1), ("packed", 3)]


def run(ring: Ring, n: int) -> None:
    buf = ring.buf()
    for i in range(n):
        ring.vq.add_inbuf(buf, i)
        assert ring.serve(16) == 1
        assert ring.vq.get_buf() == (i, 16)


# -- position ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "num"), SIZES)
@pytest.mark.parametrize("features", [Feature(0), EVENT, Feature.IN_ORDER])
def test_a_new_device_goes_on_where_the_old_one_stopped(
    kind: str, num: int, features: Feature
) -> None:
    ring = Ring(kind, num, features)
    for step in range(3 * num):
        ring.vq.add_inbuf(ring.buf(), step)
        ring.serve(16)
        position = ring.dq.position
        ring.dq.close()
        ring.dq = DeviceQueue(ring.memory, ring.vq.config)
        ring.dq.restore(position)
        assert ring.dq.position == position
        assert ring.dq.next_chain() is None
        assert ring.vq.get_buf() == (step, 16)


def test_positions_as_vhost_tells_them() -> None:
    ring = Ring("split", 8)
    run(ring, 3)
    assert ring.dq.position == 3
    ring = Ring("packed", 3)
    assert ring.dq.position == 0x8000_8000
    run(ring, 2)
    assert ring.dq.position == 0x8002_8002
    run(ring, 1)
    assert ring.dq.position == 0
    ring.vq.add_inbuf(ring.buf(), "out")
    ring.dq.next_chain()
    assert ring.dq.position == 1


@both
def test_restore_refuses(kind: str) -> None:
    ring = Ring(kind, 8)
    bad: list[Any] = [-1, 1 << 32, None, "0", 1.0]
    bad += [8, 0x8008, 8 << 16, 0x8008 << 16] if ring.packed else [1 << 16]
    for position in bad:
        with pytest.raises(InvalidArgument, match="position"):
            ring.dq.restore(position)
    ring.vq.add_outbuf(ring.buf(), 1)
    chain = ring.dq.next_chain()
    with pytest.raises(InvalidArgument, match="1 chains are held"):
        ring.dq.restore(0)
    chain.return_()
    ring.dq.restore(ring.dq.position)


@both
def test_a_restored_device_signals_what_the_old_one_did_not(kind: str) -> None:
    ring = Ring(kind, 8, EVENT, callback=lambda vq: None)
    ring.vq.disable_cb()
    ring.vq.enable_cb()
    for i in range(2):
        ring.vq.add_inbuf(ring.buf(), i)
    ring.serve(16, most=1)  # and died before it signalled
    dq = DeviceQueue(ring.memory, ring.vq.config)
    dq.restore(ring.dq.position)
    dq.next_chain().return_(16)
    assert dq.need_notify()
    assert not dq.need_notify()


# -- event index ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "num"), SIZES)
def test_one_notification_a_sleep_in_each_direction(kind: str, num: int) -> None:
    """No lost and no needless notification, with every batch size at every position."""
    ring = Ring(kind, num, EVENT, callback=lambda vq: None)
    ring.vq.disable_cb()
    batch = Batch(num)
    batch.addr[:], batch.len[:] = ring.addr(ring.buf()), 16
    for step in range(6 * num):
        n = step % num + 1
        assert ring.dq.enable_notify()
        wanted = []
        for part in (1, n - 1):
            batch.written[:] = 0
            assert ring.vq.add_inbuf_batch(batch, 0, part) == part
            wanted.append(ring.vq.kick_prepare())
        assert wanted == [True, False]
        assert ring.dq.pop(batch) == n
        ring.dq.disable_notify()
        assert ring.vq.enable_cb()
        signals = []
        for start, part in ((0, 1), (1, n - 1)):
            ring.dq.push(batch, start, part)
            signals.append(ring.dq.need_notify())
        assert signals == [True, False]
        ring.vq.disable_cb()
        assert ring.vq.get_buf_batch(Batch(num)) == n


@pytest.mark.parametrize("before", [65535 - 40, 65536 - 32, 65535, 65536])
@pytest.mark.parametrize("n", [1, 31, 32])
def test_batches_across_65535(before: int, n: int) -> None:
    ring = Ring("split", 32, EVENT, callback=lambda vq: None)
    batch = Batch(32)
    batch.addr[:], batch.len[:] = ring.addr(ring.buf()), 16

    def send(n: int) -> None:
        batch.written[:] = 0
        assert ring.vq.add_inbuf_batch(batch, 0, n) == n
        wanted = ring.vq.kick_prepare()
        assert wanted or not asleep
        assert ring.dq.pop(batch) == n
        assert ring.dq.push(batch) == n
        assert ring.dq.need_notify() or not asleep
        assert ring.vq.get_buf_batch(batch) == n

    asleep = False
    for done in range(0, before, 32):
        send(min(32, before - done))
    asleep = True
    for _ in range(5):
        assert ring.dq.enable_notify()
        assert ring.vq.enable_cb()
        send(n)
    assert ring.raw.avail["idx"] == ring.raw.used["idx"] == (before + 5 * n) % 65536


@both
def test_a_device_that_never_asked_tells_after_65536_buffers(kind: str) -> None:
    ring = Ring(kind, 256, EVENT, callback=lambda vq: None)
    batch = Batch(256)
    batch.addr[:], batch.len[:] = ring.addr(ring.buf()), 16
    assert ring.vq.enable_cb()
    for _ in range(256):
        ring.vq.add_inbuf_batch(batch, 0, 256)
        assert ring.dq.pop(batch) == 256
        batch.written[:] = 0
        ring.dq.push(batch)
        assert ring.vq.get_buf_batch(batch) == 256
    assert ring.dq.need_notify()


# -- barriers ------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("how", ["feature", "argument"])
def test_strong_barriers(kind: str, how: str) -> None:
    features = EVENT | (Feature.ORDER_PLATFORM if how == "feature" else Feature(0))
    ring = Ring(kind, 8, features, weak_barriers=how == "feature")
    assert not ring.vq.weak_barriers
    ring.dq = DeviceQueue(ring.memory, ring.vq.config, weak_barriers=how == "feature")
    assert not ring.dq.weak_barriers
    run(ring, 30)
    # Neither the one that Linux's call made nor one that is made over the same areas.
    config = ring.vq.config
    assert Virtqueue(ring.memory, config, weak_barriers=how == "feature").weak_barriers is False
    plain = Ring(kind)
    assert plain.vq.weak_barriers
    assert plain.dq.weak_barriers
    # What one ring had agreed on does not bind the next one.
    ring.dq.reset()
    ring.dq.configure(plain.vq.config)
    assert ring.dq.weak_barriers == (how == "feature")


# -- what is frozen ------------------------------------------------------------------------------


@both
def test_a_configured_queue_is_frozen(kind: str) -> None:
    ring = Ring(kind, 8)
    config = ring.vq.config
    with pytest.raises(InvalidArgument, match=r"is configured; reset\(\) it first"):
        ring.dq.configure(config)
    with pytest.raises(AttributeError):
        ring.dq.config = config  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.size = 16
    with pytest.raises(MemoryInUse):
        ring.memory.close()
    ring.vq.add_outbuf(ring.buf(), 1)
    chain = ring.dq.next_chain()
    ring.dq.reset()
    assert (ring.dq.size, ring.dq.in_flight) == (0, 0)
    for call in (ring.dq.next_chain, chain.return_, ring.dq.need_notify):
        with pytest.raises(InvalidArgument, match="not configured"):
            call()
    ring.dq.configure(config)
    with pytest.raises(InvalidArgument, match="is not a chain that this queue has out"):
        chain.return_()


@both
def test_areas_outside_the_memory(kind: str) -> None:
    ring = Ring(kind, 8)
    config = ring.vq.config
    for area in ("desc", "avail", "used"):
        for addr in (0x100, BASE + SIZE - 16 if area == "desc" else BASE + SIZE, 1 << 64):
            bad = dataclasses.replace(config, **{area: addr})
            for make in (DeviceQueue, Virtqueue):
                with pytest.raises(AddressError, match=f"{area} area"):
                    make(ring.memory, bad)
        with pytest.raises(InvalidArgument, match="not a multiple of"):
            dataclasses.replace(config, **{area: getattr(config, area) + 1})
    ring.memory.add_region(0x1000000, Region.anonymous(0x1000), perm="r")
    with pytest.raises(AddressError, match="read-only"):
        DeviceQueue(ring.memory, dataclasses.replace(config, used=0x1000000))


@both
@pytest.mark.parametrize("area", ["desc", "avail", "used"])
def test_areas_that_are_not_aligned_in_this_process(kind: str, area: str) -> None:
    """Guest addresses may be aligned where the host's are not: atomic access would not be."""
    ring = Ring(kind, 8)
    region = Region.from_buffer(memoryview(bytearray(0x1001))[1:])
    ring.memory.add_region(0x1000000, region)
    bad = dataclasses.replace(ring.vq.config, **{area: 0x1000000})
    for make in (DeviceQueue, Virtqueue):
        with pytest.raises(AddressError, match=f"{area} area is not mapped at a multiple of"):
            make(ring.memory, bad)


# -- threads -------------------------------------------------------------------------------------


@both
def test_a_second_thread_is_refused_or_waits(kind: str) -> None:
    """Two threads on one side: each call works or raises QueueBusy, and nothing is lost."""
    ring = Ring(kind, 4096)
    addr = ring.addr(ring.buf())
    refused = []
    added = [0, 0]

    def add(which: int) -> None:
        batch = Batch(1024)
        batch.addr[:], batch.len[:] = addr, 16
        batch.count = 1024
        for _ in range(200):
            try:
                added[which] += ring.vq.add_inbuf_batch(batch)
            except QueueBusy:
                refused.append(which)

    threads = [threading.Thread(target=add, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    served = taken = 0
    batch = Batch(1024)
    while any(thread.is_alive() for thread in threads) or taken < sum(added):
        n = ring.dq.pop(batch)
        batch.written[:n] = 0
        served += ring.dq.push(batch)
        try:
            taken += ring.vq.get_buf_batch(batch)
        except QueueBusy:
            refused.append(2)
    assert served == taken == sum(added)
    assert ring.vq.num_free == 4096


def test_configs_that_cannot_be() -> None:
    with pytest.raises(InvalidArgument, match="power of two"):
        QueueConfig(3, 0, 0, 0)
    for size in (0, 32769, -1, True, "8", 8.0):
        with pytest.raises(InvalidArgument, match="size"):
            QueueConfig(size, 0, 0, 0)  # type: ignore[arg-type]
    memory = GuestMemory.create(SIZE)
    for num in (0, 3, 65536):
        with pytest.raises(InvalidArgument, match=f"ring size {num}"):
            vring_create_virtqueue(0, num, 64, RingDevice(memory))
    for align in (0, 2, 3, 48, -4, None):
        with pytest.raises(InvalidArgument, match="vring_align"):
            vring_create_virtqueue(0, 8, align, RingDevice(memory))  # type: ignore[arg-type]
    for vdev in (None, memory, RingDevice(None)):  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match="vdev"):
            vring_create_virtqueue(0, 8, 64, vdev)  # type: ignore[arg-type]
