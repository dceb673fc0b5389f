"""The entropy device and its driver."""

from __future__ import annotations

import threading

import pytest

from tests.devices.conftest import MakeMachine
from tests.devices.machine import Machine
from virtring.device import RING_OFFER
from virtring.devices.rng import Rng
from virtring.drivers.rng import RngDriver
from virtring.errors import InvalidArgument, WaitTimeout, WrongState
from virtring.queue import DeviceQueue


def counted(ring_features: int = RING_OFFER) -> tuple[bytearray, Rng]:
    """A device whose bytes count up, and all that it gave."""
    given = bytearray()

    def source(size: int) -> bytes:
        data = bytes((len(given) + i) & 0xFF for i in range(size))
        given.extend(data)
        return data

    return given, Rng(source, ring_features=ring_features)


def test_bytes_come_in_order(machine: Machine) -> None:
    given, device = counted(machine.ring_features)
    driver = machine.plug(device, RngDriver)
    got = b"".join(driver.read(size) for size in (1, 4096, 4097, 10000, 0, 3))
    assert len(got) == 18197
    assert got == given[: len(got)]
    assert machine.vdev.features == machine.ring_features


def test_real_entropy(simple: Machine) -> None:
    driver = simple.plug(Rng(ring_features=simple.ring_features), RngDriver)
    first, second = driver.read(64), driver.read(64)
    assert first != second
    assert len(set(first + second)) > 40


def test_a_device_that_gives_little_at_once(simple: Machine) -> None:
    given, device = counted(simple.ring_features)
    device.limit = 7
    driver = simple.plug(device, RngDriver)
    assert driver.read(100) == given[:100]


class Slow(Rng):
    """Answers when it is told to."""

    open = False

    def handle_queue(self, index: int, queue: DeviceQueue) -> None:
        if self.open:
            super().handle_queue(index, queue)


def test_an_answer_that_comes_too_late_is_not_lost(simple: Machine) -> None:
    device = Slow(lambda size: b"r" * size, ring_features=simple.ring_features)
    driver = simple.plug(device, RngDriver)
    with pytest.raises(WaitTimeout, match="0 of 10 random bytes"):
        driver.read(10, timeout=0.01)
    # Once more: the buffer is still with the device.
    with pytest.raises(WaitTimeout):
        driver.read(10, timeout=0.01)
    assert driver.vq.in_flight == 1
    device.open = True
    device.wake(0)
    assert driver.read(10) == b"r" * 10
    assert driver.read(5000) == b"r" * 5000


def test_a_device_that_gives_nothing_does_not_keep_the_reader(simple: Machine) -> None:
    driver = simple.plug(Rng(lambda size: b""), RngDriver)
    with pytest.raises(WaitTimeout):
        driver.read(1, timeout=0.02)


def test_many_readers(simple: Machine) -> None:
    given, device = counted(simple.ring_features)
    driver = simple.plug(device, RngDriver)
    parts: list[bytes] = []
    threads = [threading.Thread(target=lambda: parts.append(driver.read(3000))) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(part) for part in parts] == [3000] * 5
    # No byte was given to two of them.
    assert sorted(b"".join(parts)) == sorted(given[:15000])


def test_removal_wakes_a_reader(simple: Machine) -> None:
    driver = simple.plug(Slow(ring_features=simple.ring_features), RngDriver)
    ended: list[BaseException] = []

    def read() -> None:
        try:
            driver.read(1, timeout=30)
        except WrongState as error:
            ended.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    while not driver.vq.in_flight:
        pass
    simple.bus.unregister_device(simple.vdev)
    thread.join(10)
    assert "removed" in str(ended[0])
    # At once, though the driver object still lives.
    assert simple.memory.allocated == 0
    with pytest.raises(WrongState):
        driver.read(1)


def test_sleep_and_wake(simple: Machine) -> None:
    driver = simple.plug(Rng(ring_features=simple.ring_features), RngDriver)
    assert len(driver.read(10)) == 10
    simple.bus.freeze(simple.vdev)
    assert simple.memory.allocated == 0
    simple.bus.restore(simple.vdev)
    assert len(driver.read(10)) == 10


def test_a_number_of_bytes_that_cannot_be(make_machine: MakeMachine) -> None:
    driver = make_machine().plug(Rng(), RngDriver)
    with pytest.raises(InvalidArgument):
        driver.read(-1)
