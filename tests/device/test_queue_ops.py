"""Queues and callbacks: find_vqs, del_vqs, reset of one queue, affinity, synchronize_cbs."""

from __future__ import annotations

import os
from threading import Event, Thread
from typing import Any

import pytest

from tests.device.parts import Bench, Parrot, Tamer, running
from virtring.device import RING_OFFER
from virtring.errors import (
    InvalidArgument,
    NotSupported,
    OutOfMemory,
    QueueBroken,
    QueueClosed,
    WrongState,
)
from virtring.memory import Region
from virtring.queue import Virtqueue, virtqueue_resize
from virtring.spec.features import Feature


def test_holes_among_the_names() -> None:
    """A name that is None leaves a hole, and the device's queues are counted without it."""

    class Holes(Tamer):
        names = ("left", None, "right", None)

    bench = running(None, Holes)
    left, gap, right, end = bench.driver.vqs
    assert gap is end is None
    assert left is not None
    assert right is not None
    assert [(vq.index, vq.name) for vq in (left, right)] == [(0, "left"), (1, "right")]
    assert bench.vdev.vqs == [left, right]
    assert bench.driver.send(1) == b"hello"
    assert [queue is not None for queue in bench.device.queues] == [True, True, False]


def test_a_queue_without_callback_is_polled() -> None:
    class Polled(Tamer):
        def probe(self) -> None:
            self.vqs = self.vdev.find_vqs([None, self.done], ["left", "right"])

    interrupts: list[int] = []
    bench = Bench(None, Polled)
    signal = bench.core._interrupt_queue

    def interrupt(index: int) -> None:
        interrupts.append(index)
        signal(index)

    bench.core.connect(interrupt, lambda: None)
    bench.register()
    interrupts.clear()
    # The device was asked not to interrupt for this one.
    assert bench.driver.send(0) == b"hello"
    assert (interrupts, bench.driver.used) == ([], [])
    assert bench.vdev.vqs[0].get_buf() is not None
    assert bench.driver.send(1) == b"hello"
    assert interrupts == [1]


def test_what_find_vqs_refuses() -> None:
    bench = running()
    with pytest.raises(WrongState, match="del_vqs first"):
        bench.vdev.find_vqs([None], ["left"])
    bench.vdev.reset()
    bench.ops.del_vqs(bench.vdev)
    for args in (([None], ["a", "b"]), ([None, None], ["a"]), ([None], ["a"], [True, False])):
        with pytest.raises(InvalidArgument, match="callbacks, names and contexts"):
            bench.vdev.find_vqs(*args)
    with pytest.raises(InvalidArgument):
        bench.ops.find_vqs(bench.vdev, 2, [None], ["a"])
    # The features are not final: nothing can be handed over, and nothing stays behind.
    with pytest.raises(NotSupported, match="before FEATURES_OK"):
        bench.vdev.find_vqs([None, None], ["a", "b"])
    assert bench.vdev.vqs == []
    assert bench.memory.allocated == 0


def test_contexts() -> None:
    class Context(Tamer):
        def probe(self) -> None:
            self.vqs = self.vdev.find_vqs([None, None], ["left", "right"], [True, False])

    bench = running(None, Context)
    addr = bench.memory.alloc(16)
    left, right = bench.vdev.vqs
    left.add_inbuf_premapped([(addr, 16)], "token", ctx="context")
    left.kick()
    assert left.get_buf_ctx() == ("token", 0, "context")
    with pytest.raises(InvalidArgument):
        right.add_inbuf_premapped([(addr, 16)], "token", ctx="context")
    bench.memory.free(addr)


def test_a_single_queue() -> None:
    class Single(Tamer):
        def probe(self) -> None:
            assert self.vdev.find_single_vq(self.done, "left").name == "left"

    assert running(None, Single).driver.send() == b"hello"


def test_the_ring_is_smaller_where_memory_is_short() -> None:
    bench = Bench(Parrot(queue_size=32768), Tamer)
    hog = bench.memory.alloc(bench.memory.available - (64 << 10))
    bench.register()
    sizes = [vq.vring_size for vq in bench.vdev.vqs]
    assert sizes[0] < 32768
    assert bench.device.queues[0] is not None
    assert bench.device.queues[0].size == sizes[0]
    assert bench.driver.send(1) == b"hello"
    bench.memory.free(hog)


def test_no_memory_for_any_ring() -> None:
    bench = Bench(None, Tamer)
    hog = bench.memory.alloc(bench.memory.available)
    with pytest.raises(OutOfMemory):
        bench.register()
    assert bench.memory.allocated == bench.memory.available + (1 << 20)
    bench.memory.free(hog)


def test_del_vqs_closes_them() -> None:
    bench = running()
    vq = bench.vdev.vqs[0]
    bench.vdev.reset()
    for _ in range(2):
        bench.ops.del_vqs(bench.vdev)
    assert bench.vdev.vqs == []
    with pytest.raises(QueueClosed):
        vq.kick()


def test_break_device() -> None:
    bench = running()
    bench.vdev.break_()
    for vq in bench.vdev.vqs:
        assert vq.is_broken
    with pytest.raises(QueueBroken):
        bench.driver.send()


# What a callback must not do.


@pytest.mark.parametrize("what", ["reset", "disable_vq_and_reset", "synchronize_cbs", "resize"])
def test_refused_in_a_callback(what: str) -> None:
    refused: list[str] = []

    class Rash(Tamer):
        def done(self, vq: Virtqueue) -> None:
            super().done(vq)
            calls = {
                "reset": self.vdev.reset,
                "disable_vq_and_reset": lambda: self.vdev.config.disable_vq_and_reset(vq),
                "synchronize_cbs": lambda: self.vdev.config.synchronize_cbs(self.vdev),
                "resize": lambda: virtqueue_resize(vq, 4),
            }
            with pytest.raises(WrongState, match="callback"):
                calls[what]()
            refused.append(what)

    bench = running(None, Rash)
    assert bench.driver.send() == b"hello"
    assert refused == [what]
    # All works as before.
    assert bench.driver.send(1) == b"hello"
    assert refused == [what] * 2


def test_what_a_callback_raises_comes_to_who_kicked() -> None:
    class Wrong(Tamer):
        def done(self, vq: Virtqueue) -> None:
            super().done(vq)
            if len(self.used) == 1:
                raise OSError("in a callback")

    bench = running(None, Wrong)
    with pytest.raises(OSError, match="in a callback"):
        bench.driver.send()
    assert bench.driver.send() == b"hello"
    assert len(bench.driver.used) == 2


# One queue reset.


def test_a_queue_is_reset_and_goes_on() -> None:
    bench = running()
    vq = bench.vdev.vqs[0]
    bench.driver.send()
    vq.add_inbuf_premapped([(bench.memory.alloc(16), 16)], "lost")
    tokens: list[Any] = []
    vq.reset(lambda vq, token: tokens.append(token))
    assert tokens == ["lost"]
    assert bench.driver.send(0) == bench.driver.send(1) == b"hello"
    assert bench.core.refused == 0


def test_nobody_touches_the_ring_in_between() -> None:
    bench = running()
    left, right = bench.vdev.vqs
    bench.ops.disable_vq_and_reset(left)
    assert bench.device.queues[0] is None
    assert not bench.core.queue_configs[0].enabled
    with pytest.raises(QueueBroken):
        bench.driver.send(0)
    with pytest.raises(WrongState, match="already"):
        bench.ops.disable_vq_and_reset(left)
    # The other one is not concerned.
    assert bench.driver.send(1) == b"hello"
    with pytest.raises(WrongState, match="without disable"):
        bench.ops.enable_vq_after_reset(right)
    left.recycle_all()
    left.restart()
    bench.ops.enable_vq_after_reset(left)
    assert bench.driver.send(0) == b"hello"
    with pytest.raises(WrongState, match="without disable"):
        bench.ops.enable_vq_after_reset(left)


def test_a_callback_that_waits_is_not_delivered_to_a_queue_in_reset() -> None:
    """It was posted while another callback ran; the queue is reset meanwhile."""
    inside, go = Event(), Event()

    class Slow(Tamer):
        def done(self, vq: Virtqueue) -> None:
            if vq.index == 1:
                inside.set()
                assert go.wait(10)
            super().done(vq)

    bench = running(None, Slow)
    other = Thread(target=lambda: bench.driver.send(1))
    other.start()
    assert inside.wait(10)
    # Used at once, but the callback has to wait for its turn.
    bench.core.set_status(int(bench.core.status))
    left = bench.vdev.vqs[0]
    left.add_inbuf_premapped([(bench.memory.alloc(16), 16)], "token")
    left.kick()
    resetter = Thread(target=lambda: bench.ops.disable_vq_and_reset(left))
    resetter.start()
    resetter.join(0.05)
    # It waits for the callback that runs: afterwards none does.
    assert resetter.is_alive()
    go.set()
    resetter.join(10)
    other.join(10)
    assert [index for index, _ in bench.driver.used] == [1]
    left.recycle_all()
    left.restart()
    bench.ops.enable_vq_after_reset(left)
    assert bench.driver.send(0) == b"hello"


def test_a_reset_needs_its_feature() -> None:
    bench = running(Parrot(ring_features=RING_OFFER & ~Feature.RING_RESET))
    with pytest.raises(NotSupported, match="RING_RESET"):
        bench.vdev.vqs[0].reset()
    assert bench.driver.send() == b"hello"
    bench.core.restart_queue(0)
    assert "without RING_RESET" in bench.core.refusals[-1]


def test_another_size() -> None:
    bench = running()
    virtqueue_resize(bench.vdev.vqs[0], 16)
    assert bench.device.queues[0] is not None
    assert bench.device.queues[0].size == 16
    for _ in range(40):
        assert bench.driver.send() == b"hello"


# Affinity.


def test_callbacks_run_on_their_cpus() -> None:
    cpus = sorted(os.sched_getaffinity(0))
    seen: list[tuple[int, frozenset[int]]] = []

    class Watching(Tamer):
        def done(self, vq: Virtqueue) -> None:
            super().done(vq)
            seen.append((vq.index, frozenset(os.sched_getaffinity(0))))

    bench = running(None, Watching)
    left, _ = bench.vdev.vqs
    for cpu in cpus:
        bench.ops.set_vq_affinity(left, {cpu})
        assert bench.ops.get_vq_affinity(bench.vdev, 0) == frozenset({cpu})
        bench.driver.send(0)
        assert seen[-1] == (0, frozenset({cpu}))
    # The other queue, and this thread afterwards, are where they were.
    bench.driver.send(1)
    assert seen[-1] == (1, frozenset(cpus))
    assert sorted(os.sched_getaffinity(0)) == cpus
    bench.ops.set_vq_affinity(left, None)
    assert bench.ops.get_vq_affinity(bench.vdev, 0) is None
    bench.driver.send(0)
    assert seen[-1] == (0, frozenset(cpus))


def test_affinities_that_cannot_be() -> None:
    bench, other = running(), running()
    left = bench.vdev.vqs[0]
    for mask in (set(), {100_000}, {-1}):
        with pytest.raises(InvalidArgument, match="CPUs"):
            bench.ops.set_vq_affinity(left, mask)
    for call in (
        lambda: bench.ops.set_vq_affinity(other.vdev.vqs[0], {0}),
        lambda: bench.ops.get_vq_affinity(bench.vdev, 2),
        lambda: bench.ops.disable_vq_and_reset(other.vdev.vqs[0]),
        lambda: bench.ops.enable_vq_after_reset(other.vdev.vqs[0]),
    ):
        with pytest.raises(InvalidArgument, match="queue"):
            call()
    assert bench.driver.send() == b"hello"


def test_a_cpu_that_is_gone_does_not_lose_the_callback(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = running()
    cpu = min(os.sched_getaffinity(0))
    bench.ops.set_vq_affinity(bench.vdev.vqs[0], {cpu})
    # As if it had been taken away since.
    monkeypatch.setitem(vars(bench.ops)["_affinity"], 0, frozenset({1023}))
    bench.driver.send()
    assert len(bench.driver.used) == 1


# synchronize_cbs.


def test_synchronize_cbs_waits_for_a_callback_in_another_thread() -> None:
    inside, go = Event(), Event()

    class Slow(Tamer):
        def done(self, vq: Virtqueue) -> None:
            inside.set()
            assert go.wait(10)
            super().done(vq)

    bench = running(None, Slow)
    sender = Thread(target=bench.driver.send)
    sender.start()
    assert inside.wait(10)
    for call in (lambda: bench.ops.synchronize_cbs(bench.vdev), bench.vdev.reset):
        waiter = Thread(target=call)
        waiter.start()
        waiter.join(0.05)
        assert waiter.is_alive()
    assert bench.driver.used == []
    go.set()
    waiter.join(10)
    sender.join(10)
    assert len(bench.driver.used) == 1


# Shared memory.


def test_shared_memory_regions() -> None:
    device = Parrot()
    region = Region.memfd(1 << 16)
    device.add_shared_memory(3, region, addr=0x8000_0000, offset=4096, size=8192)
    bench = running(device)
    shared = bench.vdev.get_shm_region(3)
    assert shared is not None
    assert (shared.id, shared.addr, shared.len) == (3, 0x8000_0000, 8192)
    shared.view()[:4] = b"here"
    assert bytes(memoryview(region)[4096:4100]) == b"here"
    assert bench.vdev.get_shm_region(0) is None
    with pytest.raises(InvalidArgument, match="exists already"):
        device.add_shared_memory(3, region)
    for offset, size in ((0, 1 << 17), (1 << 16, None), (-1, 5), (0, 0)):
        with pytest.raises(InvalidArgument, match="of 65536"):
            device.add_shared_memory(4, region, offset=offset, size=size)
