"""The device status: the order of its bits, what is refused, what a reset does."""

from __future__ import annotations

import pytest

from tests.device.parts import ONE, THREE, TWO, Bench, Parrot, Tamer, running
from virtring.device import RING_OFFER, Device
from virtring.errors import FeaturesRejected, InvalidArgument, NotSupported, WrongState
from virtring.spec.features import Feature
from virtring.spec.status import Status

A, D, F, OK = Status.ACKNOWLEDGE, Status.DRIVER, Status.FEATURES_OK, Status.DRIVER_OK
BASE = int(Feature.VERSION_1)


def test_a_device_that_runs() -> None:
    bench = running()
    assert bench.core.status == A | D | F | OK
    assert bench.calls == ["ready"]
    assert bench.vdev.features == RING_OFFER | Feature.SUSPEND | ONE | TWO
    assert bench.device.features == bench.vdev.features
    assert bench.core.refused == 0


@pytest.mark.parametrize(
    ("steps", "end", "refusal"),
    [
        ([A, A | D], A | D, None),
        ([A | D], A | D, None),
        ([A, A | D, A | D | F], A | D | F, None),
        ([A, A | D, A | D | F, A | D | F | OK], A | D | F | OK, None),
        ([A, A | D, A | D | F | OK], A | D | F | OK, None),
        ([A, A | D, A | D | OK], A | D, "DRIVER_OK before FEATURES_OK"),
        ([OK], Status(0), "DRIVER_OK before FEATURES_OK"),
        ([A | F], A, "FEATURES_OK before"),
        ([D | F], D, "FEATURES_OK before"),
        ([A | D, A], A | D, "clears bits"),
        ([A | D | F | OK, A | D], A | D | F | OK, "clears bits"),
        ([A | Status.FAILED], Status.FAILED, None),
        ([A, A | Status.FAILED, A | Status.FAILED | D], A | Status.FAILED, "reset that is due"),
        ([A | D | Status.SUSPEND], A | D, "SUSPEND without"),
        ([A | D | F | Status.SUSPEND], A | D | F, "SUSPEND without"),
        # NEEDS_RESET is the device's bit.
        ([A | Status.NEEDS_RESET], A, None),
        ([A | 32], A, None),
    ],
)
def test_the_order_of_the_bits(steps: list[int], end: Status, refusal: str | None) -> None:
    core = Parrot().core
    core.set_features(BASE)
    for step in steps:
        core.set_status(int(step))
    assert core.status == end
    assert core.refused == (0 if refusal is None else 1)
    if refusal is not None:
        assert refusal in core.refusals[-1]


@pytest.mark.parametrize(
    ("features", "refusal"),
    [
        (BASE, None),
        (BASE | ONE | TWO, None),
        (BASE | THREE, "were not offered"),
        (BASE | 1 << 63, "were not offered"),
        (ONE, "without VERSION_1"),
        (int(Feature.RING_PACKED), "without VERSION_1"),
    ],
)
def test_which_features_are_taken(features: int, refusal: str | None) -> None:
    core = Parrot().core
    core.set_features(features)
    core.set_status(A | D)
    core.set_status(A | D | F)
    assert (F in core.status) == (refusal is None)
    if refusal is not None:
        assert refusal in core.refusals[-1]
        # Others may do, without a reset.
        core.set_features(BASE)
        core.set_status(A | D | F)
        assert F in core.status


def test_legacy_drivers_only_where_they_are_wanted() -> None:
    core = Parrot().core
    core.accept_legacy = True
    assert not core.negotiated or not core.driver_features
    core.set_features(ONE)
    core.set_status(A | D | OK)
    assert OK in core.status
    core.reset()
    core.set_features(int(Feature.RING_PACKED))
    core.set_status(A | D | F)
    assert "RING_PACKED without VERSION_1" in core.refusals[-1]


def test_features_do_not_change_once_they_are_final() -> None:
    core = Parrot().core
    core.set_features(BASE)
    core.set_status(A | D | F)
    core.set_features(BASE | ONE)
    assert core.driver_features == BASE
    core.set_feature_word(0, ONE)
    assert core.driver_features == BASE
    assert core.refused == 2


def test_features_by_words() -> None:
    core = Parrot().core
    assert core.feature_word(0) | core.feature_word(1) << 32 == int(core.device_features)
    assert core.feature_word(2) == core.driver_feature_word(2) == 0
    core.set_feature_word(1, 0xFFFF_0001)
    core.set_feature_word(0, 5)
    assert core.driver_features == 0xFFFF_0001_0000_0005
    assert (core.driver_feature_word(0), core.driver_feature_word(1)) == (5, 0xFFFF_0001)
    core.set_feature_word(2, 0)
    assert core.refused == 0
    core.set_feature_word(2, 1)
    assert core.refused == 1


def test_a_reset_forgets_all() -> None:
    bench = running()
    assert bench.driver.send() == b"hello"
    bench.vdev.reset()
    core = bench.core
    assert (core.status, core.driver_features) == (Status(0), Feature(0))
    assert bench.calls == ["ready", "reset"]
    assert bench.device.queues == [None] * 3
    for queue in core.queue_configs:
        assert (queue.enabled, queue.size, queue.desc) == (False, queue.size_max, 0)


# What the driver side says to it.


def test_status_0_is_not_for_set_status() -> None:
    bench = running()
    with pytest.raises(InvalidArgument, match="reset"):
        bench.ops.set_status(bench.vdev, Status(0))
    assert OK in bench.core.status


def test_ready_only_once() -> None:
    bench = running()
    with pytest.raises(WrongState, match="set already"):
        bench.vdev.ready()
    assert bench.calls == ["ready"]


class Picky(Parrot):
    """Takes one of two features, never both."""

    def validate_features(self, features: Feature) -> bool:
        return int(features) & (ONE | TWO) != ONE | TWO


def test_features_that_the_device_does_not_take() -> None:
    bench = Bench(Picky(), Tamer)
    with pytest.raises(FeaturesRejected, match="were refused"):
        bench.register()
    assert bench.vdev.driver is None
    assert bench.core.status == A | D | Status.FAILED
    assert bench.memory.allocated == 0


def test_a_driver_that_validates_away_what_does_not_fit() -> None:
    class Wise(Tamer):
        def validate(self) -> None:
            self.vdev.features = Feature(int(self.vdev.features) & ~TWO)

    bench = running(Picky(), Wise)
    assert bench.driver.send() == b"hello"
    assert bench.vdev.has_feature(ONE)
    assert not bench.vdev.has_feature(TWO)
    with pytest.raises(InvalidArgument, match="feature_table"):
        bench.vdev.has_feature(THREE)


def test_a_driver_that_chooses_what_was_not_offered() -> None:
    class Greedy(Tamer):
        def validate(self) -> None:
            self.vdev.features = Feature(int(self.vdev.features) | THREE)

    bench = Bench(None, Greedy)
    with pytest.raises(FeaturesRejected, match="0x4, which was not offered"):
        bench.register()
    assert Status.FAILED in bench.core.status


def test_only_what_both_know_is_negotiated() -> None:
    bench = running(Parrot(features=TWO | THREE, ring_features=BASE | int(Feature.EVENT_IDX)))
    assert bench.vdev.features == BASE | TWO | int(Feature.EVENT_IDX)
    assert bench.driver.send() == b"hello"


def test_what_the_transport_cannot_do_is_dropped() -> None:
    """finalize_features; it may be called again."""
    bench = Bench(Parrot(ring_features=RING_OFFER))
    bench.core.device_features |= Feature.SR_IOV | Feature.ADMIN_VQ
    bench.vdev.features = Feature(bench.ops.get_features(bench.vdev))
    assert Feature.SR_IOV in bench.vdev.features
    for _ in range(2):
        bench.ops.finalize_features(bench.vdev)
        assert bench.vdev.features == RING_OFFER | ONE | TWO
        assert bench.core.driver_features == bench.vdev.features


# Queues.


def test_queues_before_the_features_are_final() -> None:
    core = Parrot().core
    core.set_queue_area(0, "desc", 0x10000)
    core.enable_queue(0)
    assert "before FEATURES_OK" in core.refusals[-1]
    assert not core.queue_configs[0].enabled


@pytest.mark.parametrize("size", [0, 129, 1 << 16])
def test_sizes_that_cannot_be(size: int) -> None:
    core = Parrot().core
    core.set_queue_size(0, size)
    assert f"size {size} of queue 0" in core.refusals[-1]
    assert core.queue_configs[0].size == 128


def test_an_enabled_queue_does_not_change() -> None:
    bench = running()
    before = vars(bench.core.queue_configs[0]).copy()
    bench.core.set_queue_size(0, 4)
    bench.core.set_queue_area(0, "desc", 0)
    bench.core.set_queue_word(0, "used", True, 7)
    bench.core.enable_queue(0)
    assert bench.core.refused == 4
    assert vars(bench.core.queue_configs[0]) == before
    assert bench.driver.send() == b"hello"


def test_queues_that_do_not_exist() -> None:
    bench = running()
    for call in (
        lambda: bench.core.set_queue_size(3, 4),
        lambda: bench.core.set_queue_area(-1, "desc", 0),
        lambda: bench.core.enable_queue(99),
        lambda: bench.core.notify(3),
        lambda: bench.core.restart_queue(3),
    ):
        before = bench.core.refused
        call()
        assert bench.core.refused == before + 1
    # There, but not handed over.
    bench.core.notify(2)
    assert "not enabled" in bench.core.refusals[-1]


@pytest.mark.parametrize("area", ["desc", "avail", "used"])
def test_rings_in_no_memory(area: str) -> None:
    core = (bench := Bench()).core
    core.set_features(BASE)
    core.set_status(A | D | F)
    for number, name in enumerate(("desc", "avail", "used")):
        core.set_queue_area(0, name, 1 << 40 if name == area else 0x10000 + 4096 * number)
    core.enable_queue(0)
    assert "not enabled" in core.refusals[-1]
    assert not core.queue_configs[0].enabled
    assert bench.device.queues[0] is None


def test_kicks_before_driver_ok_are_made_up_for() -> None:
    class Early(Tamer):
        def probe(self) -> None:
            super().probe()
            assert self.send() == bytes(5)
            assert self.used == []

    bench = running(None, Early)
    assert len(bench.driver.used) == 1


def test_a_device_is_behind_one_transport() -> None:
    bench = Bench()
    with pytest.raises(WrongState, match="attached"):
        Bench(bench.device)
    bench.device.detach()
    bench.device.detach()
    with pytest.raises(WrongState):
        _ = bench.device.memory
    assert Bench(bench.device, Tamer).register().driver.send() == b"hello"


def test_a_device_without_its_own_logic_says_so() -> None:
    class Empty(Device):
        device_id = Parrot.device_id
        queue_names = ("left", "right")

    bench = Bench(Empty(features=ONE), Tamer)
    with pytest.raises(NotImplementedError):
        bench.register()
    assert Status.FAILED in bench.core.status


def test_a_queue_that_the_device_has_not() -> None:
    bench = running()
    bench.vdev.reset()
    bench.ops.del_vqs(bench.vdev)
    with pytest.raises(NotSupported, match="no queue 3"):
        bench.vdev.find_vqs([None] * 4, ["a", "b", "c", "d"])
    assert bench.memory.allocated == 0
