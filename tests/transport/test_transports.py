"""The same device and driver over every transport of this process: what holds whatever the bus."""

import os
from typing import Any

import pytest

from tests.transport.common import LAYOUTS, Echo, EchoDriver, Rig, bound
from virtring.device import RING_OFFER, VirtioBus
from virtring.devices.rng import Rng
from virtring.drivers.rng import RngDriver
from virtring.errors import (
    FeaturesRejected,
    InvalidArgument,
    NotSupported,
    QueueBroken,
    WrongState,
)
from virtring.memory import GuestMemory
from virtring.queue import virtqueue_resize
from virtring.spec.features import Feature
from virtring.spec.status import Status
from virtring.transport.connect import connect

BOUND = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK


class PlainRng(Rng):
    def __init__(self, ring_features: int) -> None:
        super().__init__()
        self.core.device_features = Feature(ring_features)


def test_random_bytes(kind: str, layout: str) -> None:
    vdev, driver, bus = bound(PlainRng(LAYOUTS[layout]), kind, RngDriver)
    assert (Feature.RING_PACKED in vdev.features) == (layout == "packed")
    data = driver.read(20_000)
    assert len(data) == 20_000
    assert len(set(data)) == 256
    bus.unregister_device(vdev)
    assert vdev.config.get_status(vdev) == Status.ACKNOWLEDGE
    assert vdev.vqs == []


def test_queues_answer_and_a_hole_does_not_count(rig: Rig) -> None:
    first, hole, second = rig.driver.vqs
    assert hole is None
    assert [vq.index for vq in rig.vdev.vqs] == [0, 1]
    assert [config.enabled for config in rig.device.core.queue_configs] == [True, True, False]
    for turn in range(50):
        for vq in (first, second):
            assert rig.driver.echo(vq, b"%d of %d" % (turn, vq.index)) == b"%d of %d" % (
                turn,
                vq.index,
            )
    assert rig.device.served == 100


def test_a_queue_without_callback_is_served_but_does_not_call(kind: str) -> None:
    class Quiet(EchoDriver):
        names = ("first",)

        def probe(self) -> None:
            super().probe()
            self.vdev.reset()
            self.vdev.config.del_vqs(self.vdev)
            for bits in (Status.ACKNOWLEDGE, Status.DRIVER):
                self.vdev.add_status(bits)
            self.vdev.config.finalize_features(self.vdev)
            self.vdev.features_ok()
            self.vqs = self.vdev.find_vqs([None], ["first"])

    _, driver, _ = bound(Echo(), kind, Quiet)
    (vq,) = driver.vqs
    out, into = driver.pool.get(), driver.pool.get()
    out.len = 3
    vq.add_sgs([out], [into], "token")
    vq.kick()
    assert driver.answers == []
    assert vq.get_buf() == ("token", 3)


def test_more_queues_than_there_are_leave_nothing_behind(kind: str) -> None:
    class Greedy(EchoDriver):
        names = ("first", "second", "third", "fourth")

    device = Echo()
    bus = VirtioBus()
    bus.register_driver(Greedy)
    memory = GuestMemory.create(1 << 20)
    vdev = connect(device, kind, memory)
    with pytest.raises(NotSupported, match="queue 3"):
        bus.register_device(vdev)
    assert vdev.vqs == []
    assert Status.FAILED in vdev.config.get_status(vdev)
    assert not any(config.enabled for config in device.core.queue_configs)
    # And the next driver gets them all.
    bus.unregister_driver(Greedy)
    bus.register_driver(EchoDriver)
    assert vdev.driver.echo(vdev.vqs[0], b"again") == b"again"


def test_find_vqs_is_refused_twice_and_with_lists_that_do_not_fit(rig: Rig) -> None:
    with pytest.raises(WrongState, match="del_vqs"):
        rig.vdev.find_vqs([None], ["x"])
    with pytest.raises(InvalidArgument, match="2 queues"):
        rig.ops.find_vqs(rig.vdev, 2, [None], ["x"])
    assert rig.driver.echo(rig.vdev.vqs[0], b"unharmed") == b"unharmed"


def test_a_queue_is_reset_and_goes_on(rig: Rig) -> None:
    first, _, second = rig.driver.vqs
    out = rig.driver.pool.get()
    # Not kicked: the device does not know of it, and the reset gives it back.
    first.add_outbuf(out, "left")
    recycled: list[Any] = []
    first.reset(lambda vq, token: recycled.append(token))
    assert recycled == ["left"]
    rig.driver.pool.put(out)
    for vq in (first, second, first):
        assert rig.driver.echo(vq, b"after reset") == b"after reset"


def test_a_queue_is_off_between_disable_and_enable(rig: Rig) -> None:
    first = rig.driver.vqs[0]
    with pytest.raises(WrongState):
        rig.ops.enable_vq_after_reset(first)
    rig.ops.disable_vq_and_reset(first)
    assert not rig.device.core.queue_configs[0].enabled
    assert rig.device.core.queue_configs[1].enabled
    with pytest.raises(QueueBroken):
        rig.driver.echo(first, b"nobody there")
    with pytest.raises(WrongState):
        rig.ops.disable_vq_and_reset(first)
    first.restart()
    rig.ops.enable_vq_after_reset(first)
    rig.driver.pool = type(rig.driver.pool)(rig.vdev.memory, 8, 256)
    assert rig.driver.echo(first, b"back") == b"back"


def test_a_queue_is_resized(rig: Rig) -> None:
    first = rig.driver.vqs[0]
    for size in (2, 8, 4):
        virtqueue_resize(first, size)
        assert rig.device.queues[0].size == first.vring_size == size
        for turn in range(20):
            assert rig.driver.echo(first, b"%d" % turn) == b"%d" % turn


def test_without_ring_reset_no_queue_is_reset(kind: str) -> None:
    _, driver, _ = bound(Echo(RING_OFFER & ~Feature.RING_RESET), kind)
    with pytest.raises(NotSupported, match="RING_RESET"):
        driver.vqs[0].reset()
    assert driver.echo(driver.vqs[0], b"unharmed") == b"unharmed"


def test_status_and_features(rig: Rig, layout: str) -> None:
    offer = LAYOUTS[layout] | 1 << 3
    assert rig.ops.get_features(rig.vdev) == offer
    assert rig.vdev.features == offer == rig.device.core.driver_features
    assert rig.ops.get_status(rig.vdev) == BOUND
    with pytest.raises(InvalidArgument, match="reset"):
        rig.ops.set_status(rig.vdev, Status(0))
    rig.vdev.reset()
    assert rig.ops.get_status(rig.vdev) == 0
    assert rig.device.core.driver_features == 0
    rig.ops.set_status(rig.vdev, Status.ACKNOWLEDGE)
    assert rig.ops.get_status(rig.vdev) == Status.ACKNOWLEDGE


def test_features_may_be_finalized_twice_and_unknown_ones_go(kind: str) -> None:
    device = Echo()
    vdev = connect(device, kind)
    vdev.reset()
    vdev.add_status(Status.ACKNOWLEDGE)
    vdev.add_status(Status.DRIVER)
    for extra in (0, 1 << 41):
        vdev.features = Feature.VERSION_1 | Feature.EVENT_IDX | extra
        vdev.config.finalize_features(vdev)
        assert vdev.features == Feature.VERSION_1 | Feature.EVENT_IDX
    vdev.features_ok()
    assert device.core.driver_features == Feature.VERSION_1 | Feature.EVENT_IDX


def test_features_that_were_not_offered_are_refused(kind: str) -> None:
    device = Echo()
    vdev = connect(device, kind)
    vdev.reset()
    vdev.add_status(Status.ACKNOWLEDGE | Status.DRIVER)
    vdev.features = Feature.VERSION_1 | Feature(1 << 5)
    vdev.config.finalize_features(vdev)
    with pytest.raises(FeaturesRejected):
        vdev.features_ok()
    assert "not offered" in device.core.refusals[-1]


def test_affinity(rig: Rig) -> None:
    first = rig.driver.vqs[0]
    cpu = min(os.sched_getaffinity(0))
    before = os.sched_getaffinity(0)
    seen: list[set[int]] = []
    rig.ops.set_vq_affinity(first, [cpu])
    assert rig.ops.get_vq_affinity(rig.vdev, 0) == {cpu}
    assert rig.ops.get_vq_affinity(rig.vdev, 1) is None

    class Recorder(list[Any]):
        def append(self, item: Any) -> None:
            seen.append(os.sched_getaffinity(0))
            super().append(item)

    rig.driver.answers = Recorder()
    assert rig.driver.echo(first, b"here") == b"here"
    assert seen == [{cpu}]
    assert os.sched_getaffinity(0) == before
    rig.ops.set_vq_affinity(first, None)
    assert rig.ops.get_vq_affinity(rig.vdev, 0) is None
    with pytest.raises(InvalidArgument):
        rig.ops.get_vq_affinity(rig.vdev, 2)


def test_names_callbacks_and_deletion(rig: Rig) -> None:
    assert rig.ops.bus_name(rig.vdev)
    assert rig.ops.bus_name(rig.vdev) in repr(rig.vdev)
    rig.ops.synchronize_cbs(rig.vdev)
    first = rig.driver.vqs[0]
    rig.vdev.reset()
    rig.ops.del_vqs(rig.vdev)
    assert rig.vdev.vqs == []
    assert first.is_closed
    rig.ops.del_vqs(rig.vdev)


def test_no_reset_in_a_callback(rig: Rig) -> None:
    caught: list[BaseException] = []

    class Resetter(list[Any]):
        def append(self, item: Any) -> None:
            super().append(item)
            try:
                rig.vdev.reset()
            except WrongState as error:
                caught.append(error)

    rig.driver.answers = Resetter()
    assert rig.driver.echo(rig.driver.vqs[0], b"hello") == b"hello"
    assert len(caught) == 1
    assert rig.ops.get_status(rig.vdev) == BOUND


def test_a_device_that_needs_a_reset_says_so_and_recovers(rig: Rig) -> None:
    rig.device.needs_reset("tested")
    assert rig.driver.changes == 1
    assert Status.NEEDS_RESET in rig.ops.get_status(rig.vdev)
    rig.device.core.refusals.clear()
    rig.bus.unregister_driver(EchoDriver)
    rig.bus.register_driver(EchoDriver)
    driver = rig.vdev.driver
    assert driver.echo(driver.vqs[0], b"well again") == b"well again"


def test_an_odd_queue_size_is_a_power_of_two_for_a_split_ring(kind: str, layout: str) -> None:
    device = Echo(LAYOUTS[layout], queue_size=100)
    _, driver, _ = bound(device, kind)
    assert driver.vqs[0].vring_size == (100 if layout == "packed" else 64)
    assert driver.echo(driver.vqs[0], b"fits") == b"fits"


@pytest.mark.parametrize("bits", [Feature.NOTIFICATION_DATA, Feature.ORDER_PLATFORM])
def test_notification_data_and_platform_order(kind: str, layout: str, bits: Feature) -> None:
    device = Echo(LAYOUTS[layout] | bits)
    vdev, driver, _ = bound(device, kind)
    assert bits in vdev.features
    for turn in range(300):
        assert driver.echo(driver.vqs[0], b"%d" % turn) == b"%d" % turn
    assert list(device.core.refusals) == []


def test_suspend_and_resume(kind: str, layout: str) -> None:
    device = Echo(LAYOUTS[layout] | Feature.SUSPEND)
    vdev, driver, _ = bound(device, kind)
    vdev.suspend()
    assert Status.SUSPEND in vdev.config.get_status(vdev)
    device.update_config(8, b"\x01\x00\x00\x00")
    assert driver.changes == 0
    vdev.resume()
    assert driver.changes == 1
    assert driver.echo(driver.vqs[0], b"awake") == b"awake"


def test_freeze_and_restore(rig: Rig) -> None:
    rig.bus.freeze(rig.vdev)
    assert rig.vdev.vqs == []
    rig.bus.restore(rig.vdev)
    assert rig.driver.echo(rig.driver.vqs[0], b"warm") == b"warm"


def test_a_device_is_behind_one_transport_only(kind: str) -> None:
    device = Echo()
    connect(device, kind)
    with pytest.raises(WrongState):
        connect(device, kind)
    with pytest.raises(InvalidArgument, match="kind"):
        connect(Echo(), "isa")
