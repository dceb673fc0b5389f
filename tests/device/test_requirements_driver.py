"""What virtio 1.4 demands of drivers (2.1 to 2.6, 3.1, 3.4): our drivers over every transport."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from tests.device.bundled import BUNDLED
from tests.transport.common import CONFIG, Echo, EchoDriver, bound, config_record
from virtring.device import RING_OFFER, Device, VirtioBus, VirtioDevice
from virtring.devices import net_backend
from virtring.devices.console import Console
from virtring.devices.console_port import Port
from virtring.devices.net import NEED_CONTROL, Net
from virtring.drivers.console import ConsoleDriver
from virtring.drivers.net import NetDriver
from virtring.errors import FeaturesRejected, NotSupported, WrongState
from virtring.memory import GuestMemory
from virtring.spec.console import ConsoleFeature
from virtring.spec.features import RING_FEATURES, Feature
from virtring.spec.net import NetFeature
from virtring.spec.status import Status
from virtring.transport.connect import connect

A, D, F, OK = Status.ACKNOWLEDGE, Status.DRIVER, Status.FEATURES_OK, Status.DRIVER_OK
SUSPEND, FAILED = Status.SUSPEND, Status.FAILED

Steps = list[tuple[Any, ...]]


def watch(vdev: VirtioDevice, device: Device) -> Steps:
    """What the driver does from now on, step by step, with values that matter."""
    steps: Steps = []
    ops: Any = vdev.config
    core: Any = device.core

    def wrap(owner: Any, what: str, note: Callable[[Any, Any], tuple[Any, ...]]) -> None:
        real = getattr(owner, what)

        def call(*args: Any, **given: Any) -> Any:
            at = len(steps)
            value = real(*args, **given)
            steps.insert(at, (what, *note(args, value)))
            return value

        setattr(owner, what, call)

    for what in ("reset", "get_features", "find_vqs"):
        wrap(ops, what, lambda args, value: ())
    wrap(ops, "set_status", lambda args, value: (args[1],))
    wrap(ops, "get_status", lambda args, value: (value,))
    wrap(ops, "finalize_features", lambda args, value: (int(vdev.features),))
    wrap(ops, "get", lambda args, value: (args[1], args[2]))
    wrap(ops, "set", lambda args, value: (args[1],))
    wrap(core, "notify", lambda args, value: (args[0],))
    return steps


def lives(steps: Steps) -> list[Steps]:
    """The steps from each reset to the next."""
    found: list[Steps] = []
    for step in steps:
        if step[0] == "reset":
            found.append([])
        found[-1].append(step)
    return found


def test_initialisation_goes_step_by_step(kind: str, name: str, device: Device) -> None:
    """Also after sleep; the status only grows, and is read again after FEATURES_OK."""
    vdev = connect(device, kind, GuestMemory.create(8 << 20))
    steps = watch(vdev, device)
    bus = VirtioBus()
    bus.register_driver(BUNDLED[name][1])
    bus.register_device(vdev)
    bus.freeze(vdev)
    bus.restore(vdev)
    bus.unregister_device(vdev)
    started = 0
    for life in lives(steps):
        writes = [step[1] for step in life if step[0] == "set_status"]
        for before, after in pairwise(writes):
            assert before & after == before
        if OK not in (writes or [Status(0)])[-1]:
            continue
        started += 1
        order = ("reset", "set_status", "get_features", "finalize_features", "find_vqs")
        assert [step for step in life if step[0] in order] == [
            ("reset",),
            ("set_status", A),
            ("set_status", A | D),
            ("get_features",),
            ("finalize_features", int(BUNDLED[name][1].choose(device.core.device_features))),
            ("set_status", A | D | F),
            ("find_vqs",),
            ("set_status", A | D | F | OK),
        ]
        agreed = life.index(("set_status", A | D | F))
        assert life[agreed + 1] == ("get_status", A | D | F)
        assert not [step for step in life[:agreed] if step[0] == "set"]
        ready = life.index(("set_status", A | D | F | OK))
        assert not [step for step in life[:ready] if step[0] == "notify"]
    assert started == 2
    assert list(device.core.refusals) == []


class Unlucky(EchoDriver):
    """Chooses, or asks for, or does what cannot be."""

    fails = ""

    def validate(self) -> None:
        if self.fails == "features":
            raise FeaturesRejected("not with these")

    def probe(self) -> None:
        if self.fails == "queues":
            self.vdev.find_vqs([None] * 9, ["?"] * 9)
        super().probe()
        if self.fails == "probe":
            raise OSError("no luck")


@pytest.mark.parametrize("fails", ["features", "refused", "queues", "probe"])
def test_a_driver_that_fails_stops_until_a_reset(kind: str, fails: str) -> None:
    class This(Unlucky):
        pass

    This.fails = fails
    device = Echo()
    if fails == "refused":
        device.core.validate_features = lambda _: False
    vdev = connect(device, kind, GuestMemory.create(1 << 20))
    bus = VirtioBus()
    bus.register_device(vdev)
    steps = watch(vdev, device)
    with pytest.raises((FeaturesRejected, NotSupported, OSError)):
        bus.register_driver(This)
    changes = ("reset", "set_status", "finalize_features", "find_vqs", "notify", "set")
    done = [step for step in steps if step[0] in changes]
    assert FAILED in done[-1][1]
    assert not [step for step in done if step[0] == "set_status" and OK in step[1]]
    This.fails = ""
    device.core.validate_features = lambda _: True
    steps.clear()
    bus.bind(vdev, This)
    assert next(step for step in steps if step[0] in changes) == ("reset",)
    driver: Any = vdev.driver
    assert driver.echo(vdev.vqs[0], b"at last") == b"at last"


# Features.


def test_bits_that_nobody_knows_are_passed_over(kind: str) -> None:
    device = Echo()
    device.core.device_features = Feature((1 << 64) - 1)
    vdev, driver, _ = bound(device, kind)
    known = int(RING_FEATURES | Feature.SUSPEND) | 1 << 3
    assert int(vdev.features) == int(device.core.driver_features) == known
    assert driver.echo(driver.vqs[0], b"fine") == b"fine"


def test_a_driver_passes_over_bits_of_the_device_type_that_it_cannot_use(
    kind: str, name: str, device: Device
) -> None:
    driver = BUNDLED[name][1]
    offer = int(device.core.device_features)
    device.core.device_features = Feature(offer | ~driver.driver_features() & 0xFF_FFFF | 1 << 63)
    vdev, _, _ = bound(device, kind, driver, 8 << 20)
    assert int(vdev.features) == offer & driver.all_features()


def test_a_feature_is_not_accepted_without_the_one_that_it_needs(kind: str) -> None:
    """The device should not have offered it like this (virtio 1.4, 5.1.3.1)."""
    device = Net(net_backend.Echo(), pairs=2)
    device.core.device_features &= ~Feature(NetFeature.CTRL_VQ)
    assert int(device.core.device_features) & NEED_CONTROL
    vdev, driver, _ = bound(device, kind, NetDriver, 8 << 20)
    assert not int(vdev.features) & NEED_CONTROL
    assert OK in vdev.config.get_status(vdev)
    assert driver.pairs == 1


def test_a_device_without_version_1_is_given_up(kind: str) -> None:
    device = Echo(RING_OFFER & ~(Feature.VERSION_1 | Feature.RING_PACKED))
    vdev = connect(device, kind, GuestMemory.create(1 << 20))
    bus = VirtioBus()
    bus.register_driver(EchoDriver)
    with pytest.raises(NotSupported):
        bus.register_device(vdev)
    assert vdev.driver is None
    assert FAILED in vdev.config.get_status(vdev)
    assert OK not in device.core.status


# The configuration.


def test_fields_of_features_that_are_not_there_are_not_read(
    kind: str, name: str, device: Device
) -> None:
    _, driver, least = BUNDLED[name]
    device.core.device_features = Feature(Feature.VERSION_1)
    vdev = connect(device, kind, GuestMemory.create(8 << 20))
    steps = watch(vdev, device)
    bus = VirtioBus()
    bus.register_driver(driver)
    bus.register_device(vdev)
    assert OK in device.core.status
    device.core.interrupt_config()
    reads = [at + size for what, *(at, size) in (s for s in steps if s[0] == "get")]
    assert max(reads, default=0) == least


def test_a_console_reads_its_size_alone(kind: str) -> None:
    device = Console([Port()], size=(80, 25))
    device.core.device_features = Feature.VERSION_1 | Feature(ConsoleFeature.SIZE)
    vdev = connect(device, kind, GuestMemory.create(8 << 20))
    steps = watch(vdev, device)
    bus = VirtioBus()
    bus.register_driver(ConsoleDriver)
    bus.register_device(vdev)
    driver: Any = vdev.driver
    assert driver.size == (80, 25)
    assert {step[1:] for step in steps if step[0] == "get"} == {(0, 2), (2, 2)}


def test_a_larger_configuration_is_fine(kind: str) -> None:
    device = Echo()
    device.core.config.extend(b"\xee" * 300)
    vdev, driver, _ = bound(device, kind)
    assert vdev.cread(CONFIG).tobytes() == config_record()
    assert driver.echo(driver.vqs[0], b"fine") == b"fine"


# Suspending.


@pytest.mark.parametrize("what", ["suspend", "resume"])
def test_the_driver_looks_whether_the_device_followed(kind: str, what: str) -> None:
    device = Echo(RING_OFFER | Feature.SUSPEND)
    vdev, driver, _ = bound(device, kind)
    if what == "resume":
        vdev.suspend()
    take, core = device.core.set_status, vars(device.core)
    # A device that is deaf to this one request.
    core["set_status"] = lambda value: None
    with pytest.raises(WrongState, match=f"did not {what}"):
        getattr(vdev, what)()
    core["set_status"] = take
    vdev.suspend()
    vdev.resume()
    assert driver.echo(driver.vqs[0], b"awake") == b"awake"


def test_the_configuration_of_a_suspended_device_is_not_written(kind: str) -> None:
    device = Echo(RING_OFFER | Feature.SUSPEND)
    vdev, _, _ = bound(device, kind)
    vdev.suspend()
    steps = watch(vdev, device)
    write = partial(vdev.cwrite, CONFIG, "mac", np.zeros(6))
    with pytest.raises(WrongState, match="is suspended"):
        write()
    assert not [step for step in steps if step[0] == "set"]
    vdev.resume()
    write()
    assert bytes(device.core.config[:6]) == bytes(6)
