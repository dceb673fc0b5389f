"""The memory balloon and its driver: pages go to the system and come back."""

from __future__ import annotations

import mmap

import numpy as np
import pytest

from tests.devices.conftest import MakeMachine
from tests.devices.machine import Machine, until
from virtring.devices.balloon import Balloon
from virtring.drivers.balloon import BalloonDriver
from virtring.errors import InvalidArgument, NotSupported, WaitTimeout, WrongState
from virtring.queue import DeviceQueue
from virtring.spec.balloon import BALLOON_CONFIG, BalloonFeature, BalloonStat
from virtring.spec.status import Status

PAGE = 4096
whole_pages = pytest.mark.skipif(mmap.PAGESIZE != PAGE, reason="counts pages of 4096 bytes")


def offer(machine: Machine, features: int = 0, **given: int) -> Balloon:
    return Balloon(features=features, ring_features=machine.ring_features, **given)


@whole_pages
def test_inflate_and_deflate(machine: Machine) -> None:
    """More pages than one request tells of, and the memory of the system really goes down."""
    device = offer(machine)
    machine.touch()
    driver = machine.plug(device, BalloonDriver)
    before, allocated = machine.held, machine.memory.allocated
    device.set_target(600)
    assert driver.settle() == 600
    assert machine.held == before - 600 * PAGE
    assert machine.memory.allocated == allocated + 600 * PAGE
    assert {page // PAGE for page in driver.pages} == device.pages
    assert (device.target, device.actual, device.discarded) == (600, 600, 600 * PAGE)
    # They read as zeros, and are there again once they are used.
    assert machine.memory.read(driver.pages[0], PAGE) == bytes(PAGE)
    device.set_target(10)
    assert driver.settle() == 10
    assert (device.actual, len(device.pages), device.ignored) == (10, 10, 0)
    assert machine.memory.allocated == allocated + 10 * PAGE


def test_removal_empties_the_balloon_with_notice(simple: Machine) -> None:
    device = offer(simple, BalloonFeature.MUST_TELL_HOST)
    told: list[int] = []
    driver = simple.plug(device, BalloonDriver)
    device.set_target(300)
    driver.settle()
    before = device.reset

    def reset() -> None:
        told.append(len(device.pages))
        before()

    device.__dict__["reset"] = reset
    simple.bus.unregister_device(simple.vdev)
    assert told == [0]
    assert simple.memory.allocated == 0
    with pytest.raises(WrongState):
        driver.settle()


class Deaf(Balloon):
    """Takes no notice of anything until it is told to."""

    listens = False

    def handle_queue(self, index: int, queue: DeviceQueue) -> None:
        if self.listens:
            super().handle_queue(index, queue)


def test_a_page_in_a_request_is_not_used_before_the_answer(simple: Machine) -> None:
    device = Deaf(ring_features=simple.ring_features)
    driver = simple.plug(device, BalloonDriver)
    device.listens = True
    device.set_target(4)
    driver.settle()
    device.listens = False
    allocated = simple.memory.allocated
    device.set_target(0)
    with pytest.raises(WaitTimeout, match="0 pages after"):
        driver.settle(timeout=0.02)
    assert simple.memory.allocated == allocated
    device.listens = True
    device.wake(1)
    assert driver.settle() == 0
    assert simple.memory.allocated == allocated - 4 * PAGE


def test_a_device_that_never_answers_does_not_keep_removal(simple: Machine) -> None:
    device = Deaf(ring_features=simple.ring_features)
    driver = simple.plug(device, BalloonDriver)
    driver.FAREWELL = 0.02  # type: ignore[misc]
    device.set_target(4)
    until(lambda: simple.vdev.vqs[0].in_flight)
    simple.bus.unregister_device(simple.vdev)
    assert simple.memory.allocated == 0


def test_the_target_changes_while_a_request_is_on_its_way(simple: Machine) -> None:
    device = offer(simple)
    driver = simple.plug(device, BalloonDriver)
    for target in (500, 3, 700, 0, 256, 257):
        device.set_target(target)
    assert driver.settle() == 257
    assert device.actual == len(device.pages) == 257


def test_more_than_there_is(simple: Machine) -> None:
    device = offer(simple, BalloonFeature.DEFLATE_ON_OOM)
    driver = simple.plug(device, BalloonDriver)
    device.set_target(1 << 30)
    count = driver.settle()
    assert driver.starved
    assert simple.memory.available < 2 * PAGE
    assert 900 < count < 1024
    # Memory is short: some comes back, and stays out.
    assert driver.out_of_memory(100) == 100
    assert driver.settle() == count - 100
    assert device.actual == count - 100
    assert simple.memory.available >= 100 * PAGE
    device.set_target(count - 50)
    assert driver.settle() == count - 50


def test_oom_needs_its_feature(simple: Machine) -> None:
    driver = simple.plug(offer(simple), BalloonDriver)
    with pytest.raises(NotSupported, match="DEFLATE_ON_OOM"):
        driver.out_of_memory()
    with pytest.raises(NotSupported, match="PAGE_REPORTING"):
        driver.report_free_pages()


# Statistics.


def test_statistics(machine: Machine) -> None:
    heard: list[dict[int, int]] = []
    device = Balloon(
        ring_features=machine.ring_features, queue_size=8, on_stats=lambda s: heard.append(dict(s))
    )
    driver = machine.plug(device, BalloonDriver)
    until(lambda: len(heard) == 1)
    assert heard[0][BalloonStat.MEMTOT] == 4 << 20
    driver.statistics = lambda: {BalloonStat.SWAP_IN: 1 << 63, 77: 5, BalloonStat.HTLB_PGFAIL: 0}
    device.request_stats()
    until(lambda: len(heard) == 2)
    # What it does not know it leaves out.
    assert heard[1] == device.stats == {BalloonStat.SWAP_IN: 1 << 63, BalloonStat.HTLB_PGFAIL: 0}
    driver.statistics = lambda: {BalloonStat.CACHES: len(heard)}
    while len(heard) < 30:
        before = len(heard)
        device.request_stats()
        until(lambda before=before: len(heard) > before)  # type: ignore[misc]
        assert heard[before] == {BalloonStat.CACHES: before}
    assert machine.vdev.vqs[2].in_flight == 1


@pytest.mark.parametrize("wrong", [{0: -1}, {0: 1 << 64}, {1 << 16: 0}, {0: "many"}, {0: None}, {}])
def test_wrong_statistics_are_said_and_the_last_ones_stay(
    make_machine: MakeMachine, wrong: dict[int, int]
) -> None:
    device = Balloon()
    driver = make_machine().plug(device, BalloonDriver)
    driver.statistics = lambda: wrong
    before = device.stats
    with pytest.raises(InvalidArgument, match="statistics"):
        device.request_stats()
    assert device.stats == before
    driver.statistics = lambda: {BalloonStat.SWAP_IN: 7}
    device.request_stats()
    assert device.stats == {BalloonStat.SWAP_IN: 7}


def test_too_many_statistics(make_machine: MakeMachine) -> None:
    device = Balloon()
    driver = make_machine().plug(device, BalloonDriver)
    driver.statistics = lambda: dict.fromkeys(range(200), 1)
    with pytest.raises(InvalidArgument):
        device.request_stats()


def test_statistics_need_their_queue(simple: Machine) -> None:
    device = offer(simple)
    simple.plug(device, BalloonDriver)
    assert len(simple.vdev.vqs) == 2
    with pytest.raises(NotSupported, match="STATS_VQ"):
        device.request_stats()


# Free pages.


@whole_pages
@pytest.mark.parametrize("stats", [0, BalloonFeature.STATS_VQ])
def test_free_pages_go_to_the_system(machine: Machine, stats: int) -> None:
    """Whichever number the queue has: Linux closes the gap without statistics."""
    device = offer(machine, BalloonFeature.PAGE_REPORTING | stats)
    machine.touch()
    driver = machine.plug(device, BalloonDriver)
    mine = machine.memory.alloc(10 * PAGE, PAGE)
    before, available = machine.held, machine.memory.available
    gone = driver.report_free_pages()
    assert machine.held == before - gone
    assert available - 2 * PAGE < gone <= available
    # The ring keeps a table of descriptors for the next time.
    assert available - machine.memory.available < PAGE
    assert machine.memory.read(mine, 10 * PAGE) == b"\x01" * 10 * PAGE
    machine.memory.free(mine)


def test_a_report_without_answer(simple: Machine) -> None:
    device = Deaf(ring_features=simple.ring_features)
    driver = simple.plug(device, BalloonDriver)
    available = simple.memory.available
    with pytest.raises(WaitTimeout, match="no notice"):
        driver.report_free_pages(timeout=0.02)
    with pytest.raises(WrongState, match="reporting already"):
        driver.report_free_pages()
    device.listens = True
    device.wake(3)
    until(lambda: available - simple.memory.available < PAGE)


# What a driver can do wrong.


class Raw(BalloonDriver):
    """Sends whatever page numbers the test wants."""

    def send(self, vq_index: int, *pfns: int, cut: int = 0) -> None:
        data = np.array(pfns, "<u4").tobytes()
        addr = self.memory.alloc(max(len(data), 1), 16)
        self.memory.write(addr, data)
        vq = self.vdev.vqs[vq_index]
        vq.add_outbuf_premapped([(addr, len(data) - cut)], addr)
        vq.kick()
        self.memory.free(addr)

    def _told(self, vq: object) -> None:
        while self.vdev.vqs[0].get_buf() or self.vdev.vqs[1].get_buf():
            pass


def test_page_numbers_of_no_memory_are_ignored(make_machine: MakeMachine) -> None:
    machine = make_machine()
    machine.touch()
    device = Balloon()
    driver = machine.plug(device, Raw)
    last = (machine.memory.regions[0].guest_addr + machine.memory.regions[0].size) // PAGE - 1
    free = machine.memory.alloc(2 * PAGE, PAGE) // PAGE
    before = machine.held
    driver.send(0, 0, 1, last + 1, 0xFFFFFFFF, free, free + 1, free)
    assert device.pages == {free, free + 1}
    assert device.ignored == 4
    assert machine.held <= before - PAGE
    # A number that is cut off is none; pages that are not in the balloon cannot come out.
    driver.send(0, free + 5, cut=2)
    driver.send(1, free + 7, 0xFFFFFFFF, free)
    assert device.pages == {free + 1}
    assert Status.NEEDS_RESET not in machine.vdev.config.get_status(machine.vdev)
    machine.memory.free(free * PAGE)


def test_a_driver_that_gives_its_own_ring_away(make_machine: MakeMachine) -> None:
    """The ring is zeros then. The device may find it empty or broken, but goes on after a reset."""
    machine = make_machine(ring="split")
    device = Balloon(ring_features=machine.ring_features)
    driver = machine.plug(device, Raw)
    start = machine.memory.regions[0].guest_addr // PAGE
    driver.send(0, *range(start, start + 16))
    driver.send(0, 1)
    machine.bus.unbind(machine.vdev)
    machine.bus.bind(machine.vdev, Raw)
    assert device.pages == set()
    assert isinstance(machine.vdev.driver, Raw)
    machine.vdev.driver.send(0, 2, 3)
    assert device.ignored >= 2


def test_actual_in_a_write_of_everything(simple: Machine) -> None:
    """As QEMU brings it over vhost-user; the rest may be what was once so."""
    device = offer(simple)
    simple.plug(device, BalloonDriver)
    device.set_target(3)
    device.core.write_config(0, (7).to_bytes(4, "little") + (1 << 24).to_bytes(4, "little") * 3)
    assert (device.target, device.actual) == (3, 1 << 24)
    assert bytes(device.core.config[8:]) == bytes(8)
    device.core.write_config(6, b"\x05" * 4)
    assert device.actual == 0x05050000
    assert bytes(device.core.config[8:]) == bytes(8)


def test_only_actual_is_the_drivers_to_write(make_machine: MakeMachine) -> None:
    machine = make_machine()
    device = Balloon()
    machine.plug(device, BalloonDriver)
    machine.vdev.cwrite(BALLOON_CONFIG, "num_pages", 99)
    machine.vdev.cwrite(BALLOON_CONFIG, "poison_val", 99)
    machine.vdev.cwrite(BALLOON_CONFIG, "actual", 0x01020304)
    assert (device.target, device.actual) == (0, 0x01020304)
    assert bytes(device.core.config[8:]) == bytes(8)
    with pytest.raises(InvalidArgument):
        machine.vdev.cwrite(BALLOON_CONFIG, "actual", -1)


# Pages of the system that are larger than the driver's.


@whole_pages
def test_only_whole_host_pages_go(make_machine: MakeMachine) -> None:
    machine = make_machine()
    machine.touch()
    device = Balloon(host_page=4 * PAGE)
    driver = machine.plug(device, Raw)
    first = machine.memory.alloc(16 * PAGE, 4 * PAGE) // PAGE
    before = machine.held
    driver.send(0, first, first + 1, first + 2)
    assert (machine.held, device.discarded) == (before, 0)
    driver.send(0, first + 3, first + 4)
    assert (machine.held, device.discarded) == (before - 4 * PAGE, 4 * PAGE)
    # One that was taken out meanwhile does not count.
    driver.send(1, first + 4)
    driver.send(0, first + 5, first + 6, first + 7)
    assert machine.held == before - 4 * PAGE
    driver.send(0, first + 4, *range(first + 8, first + 16))
    assert machine.held == before - 16 * PAGE
    assert machine.memory.read(first * PAGE, 16 * PAGE) == bytes(16 * PAGE)
    machine.memory.free(first * PAGE)


def test_sleep_and_wake(simple: Machine) -> None:
    device = offer(simple, BalloonFeature.STATS_VQ)
    driver = simple.plug(device, BalloonDriver)
    device.set_target(20)
    assert driver.settle() == 20
    simple.bus.freeze(simple.vdev)
    assert simple.memory.allocated == 0
    assert (device.actual, device.pages) == (0, set())
    simple.bus.restore(simple.vdev)
    assert driver.settle() == 20
    assert len(device.pages) == 20


@pytest.mark.parametrize("given", [{"host_page": 2048}, {"host_page": 12288}, {"features": 1 << 3}])
def test_a_balloon_that_cannot_be(given: dict[str, int]) -> None:
    with pytest.raises(InvalidArgument):
        Balloon(**given)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument):
        Balloon().set_target(1 << 32)
