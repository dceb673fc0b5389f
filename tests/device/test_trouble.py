"""Suspending, drivers that write garbage, devices with threads of their own."""

from __future__ import annotations

import logging
from collections import deque
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest

from tests.device.parts import CONFIG, Parrot, running
from virtring.device import RING_OFFER
from virtring.errors import NotSupported, WrongState
from virtring.queue import Chain, DeviceQueue, Virtqueue
from virtring.spec.features import Feature
from virtring.spec.status import Status

OK, SUSPEND = Status.DRIVER_OK, Status.SUSPEND


# Suspending (virtio 1.4, 3.4).


def test_suspend_and_resume() -> None:
    bench = running()
    bench.vdev.suspend()
    assert SUSPEND in bench.core.status
    assert OK not in bench.core.status
    # Nothing is looked at, though the driver kicks; it must not, but it may have before.
    assert bench.driver.send() == bytes(5)
    bench.vdev.resume()
    assert OK in bench.core.status
    assert SUSPEND not in bench.core.status
    assert len(bench.driver.used) == 1
    assert bench.driver.send() == b"hello"
    assert bench.calls == ["ready", "suspend", "resume"]


def test_what_may_be_done_while_suspended() -> None:
    bench = running()
    with pytest.raises(WrongState, match="set already"):
        bench.vdev.ready()
    bench.vdev.suspend()
    before = bench.core.status
    bench.core.set_status(int(Status.ACKNOWLEDGE))
    assert bench.core.status == before
    with pytest.raises(WrongState, match="is suspended"):
        bench.vdev.cwrite(CONFIG, "speed", 5)
    assert bench.core.refused == 1
    bench.ops.set(bench.vdev, 0, b"\5")
    assert "while suspended" in bench.core.refusals[-1]
    assert bench.vdev.cread(CONFIG, "speed") == 0
    bench.vdev.reset()
    assert bench.core.status == Status(0)


def test_changes_of_the_configuration_wait() -> None:
    bench = running()
    bench.vdev.suspend()
    generation = bench.core.generation
    bench.device.update_config(0, b"\1")
    bench.device.update_config(1, b"\2")
    assert (bench.core.generation, bench.driver.changes) == (generation, 0)
    assert bench.vdev.cread(CONFIG, "speed") == 0
    bench.vdev.resume()
    assert bench.driver.changes == 1
    assert bench.vdev.cread(CONFIG, "speed") == 0x0201


def test_suspending_needs_its_feature() -> None:
    bench = running(Parrot(ring_features=RING_OFFER))
    with pytest.raises(NotSupported, match="SUSPEND"):
        bench.vdev.suspend()
    bench.core.set_status(int(bench.core.status | SUSPEND))
    assert SUSPEND not in bench.core.status


class Keeper(Parrot):
    """Keeps each chain until :meth:`finish`, which may be called from any thread."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.kept: deque[Chain] = deque()
        self.finished: deque[Chain] = deque()

    def handle_queue(self, index: int, queue: DeviceQueue) -> None:
        self.kept.extend(self.chains(queue))
        while self.finished:
            chain = self.finished.popleft()
            chain.return_(chain.write(chain.read()))

    def finish(self) -> None:
        self.finished.append(self.kept.popleft())
        self.wake(0)

    def suspended(self, suspend: bool) -> None:
        super().suspended(suspend)
        if suspend and (queue := self.queues[0]) is not None:
            while self.kept:
                self.kept.popleft().return_(0)
            queue.signal()

    def queue_stopped(self, index: int, queue: DeviceQueue) -> None:
        self.kept.clear()
        self.finished.clear()


def test_what_is_in_hand_is_finished_and_signalled_before_the_device_rests() -> None:
    device = Keeper()
    bench = running(device)
    bench.driver.send()
    bench.driver.send()
    assert (len(device.kept), bench.driver.used) == (2, [])
    bench.vdev.suspend()
    assert len(bench.driver.used) == 2
    bench.vdev.resume()
    bench.driver.send()
    device.finish()
    assert len(bench.driver.used) == 3


def test_an_interrupt_that_is_too_late_comes_on_resuming() -> None:
    class Late(Keeper):
        def suspended(self, suspend: bool) -> None:
            """Does not care."""

    device = Late()
    bench = running(device)
    bench.driver.send()
    bench.vdev.suspend()
    bench.core.interrupt_queue(0)
    device.finish()
    assert bench.driver.used == []
    bench.vdev.resume()
    assert len(bench.driver.used) == 1


# Results from another thread.


def test_a_device_that_finishes_in_another_thread() -> None:
    device = Keeper()
    bench = running(device)
    for _ in range(20):
        bench.driver.send()
    threads = [Thread(target=device.finish) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(bench.driver.used) == 20


def test_waking_a_queue_that_is_not_there() -> None:
    device = Keeper()
    device.wake(0)
    bench = running(device)
    device.wake(2)
    bench.vdev.reset()
    device.wake(0)
    assert device.calls.count("reset") == 2


def test_a_device_whose_thread_ends_in_reset() -> None:
    """Its last answer runs the driver's callback, which kicks: no lock may be in the way."""
    started, stop = Event(), Event()

    class Threaded(Keeper):
        thread: Thread | None = None

        def handle_queue(self, index: int, queue: DeviceQueue) -> None:
            super().handle_queue(index, queue)
            if self.kept and self.thread is None:
                self.thread = Thread(target=self.work)
                self.thread.start()

        def work(self) -> None:
            started.set()
            assert stop.wait(10)
            self.finish()
            with self.locked():
                self.finished.clear()

        def reset(self) -> None:
            super().reset()
            if self.thread is not None:
                stop.set()
                self.thread.join(10)
                assert not self.thread.is_alive()

    bench = running(Threaded())
    bench.driver.send()
    assert started.wait(10)
    bench.bus.unregister_device(bench.vdev)
    assert bench.device.queues == [None] * 3


# Garbage.


def spoil(vq: Virtqueue, memory: Any) -> None:
    """A descriptor of the driver's that points nowhere, behind a kick."""
    addr = memory.alloc(16)
    vq.add_inbuf_premapped([(addr, 16)], "spoilt")
    desc = np.frombuffer(memory.view(vq.desc_addr, 16 * vq.vring_size), "<u8")
    desc[0] = 0xDEAD_0000_0000
    vq.kick()


@pytest.mark.parametrize("ring", [Feature.RING_PACKED, Feature(0)])
def test_garbage_in_a_ring_needs_a_reset(ring: Feature, caplog: pytest.LogCaptureFixture) -> None:
    bench = running(Parrot(ring_features=RING_OFFER & ~Feature.RING_PACKED | ring))
    with caplog.at_level(logging.WARNING, "virtring"):
        spoil(bench.vdev.vqs[0], bench.memory)
    assert Status.NEEDS_RESET in bench.core.status
    assert "needs a reset" in caplog.text
    assert "0xdead00000000" in bench.core.refusals[-1]
    # The driver was told; neither queue works any more, nothing is answered.
    assert bench.driver.changes == 1
    assert bench.driver.send(1) == bytes(5)
    assert bench.driver.used == []
    bench.core.set_status(int(bench.core.status | SUSPEND))
    assert "reset that is due" in bench.core.refusals[-1]
    # Only a reset mends that.
    bench.bus.freeze(bench.vdev)
    bench.bus.restore(bench.vdev)
    assert bench.driver.send(0) == bench.driver.send(1) == b"hello"
    assert Status.NEEDS_RESET not in bench.core.status


def test_what_was_used_before_an_error_is_signalled() -> None:
    class Clumsy(Parrot):
        def handle_queue(self, index: int, queue: DeviceQueue) -> None:
            for chain in self.chains(queue):
                chain.return_(chain.write(chain.read()))
                if self.calls[-1] != "dropped":
                    self.calls.append("dropped")
                    raise OSError("dropped it")

    bench = running(Clumsy())
    with pytest.raises(OSError, match="dropped it"):
        bench.driver.send()
    assert len(bench.driver.used) == 1
    assert bench.driver.send() == b"hello"


def test_a_device_that_gives_up_by_itself() -> None:
    bench = running()
    bench.device.needs_reset("tired")
    assert bench.driver.changes == 1
    bench.core.set_status(int(bench.core.status | Status.FAILED))
    assert Status.FAILED in bench.core.status
    assert bench.driver.send() == bytes(5)


def test_only_so_many_refusals_are_remembered() -> None:
    core = Parrot().core
    for _ in range(1000):
        core.notify(7)
    assert core.refused == 1000
    assert len(core.refusals) == 64
