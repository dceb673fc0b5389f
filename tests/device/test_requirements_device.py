"""What virtio 1.4 demands of devices (2.1 to 2.5, 3.4, 6.2): our devices over every transport."""

from __future__ import annotations

from typing import Any

import pytest

from tests.transport.common import LAYOUTS, Echo, EchoDriver, bound
from virtring.device import RING_OFFER, Device, VirtioDevice
from virtring.errors import InvalidArgument, WrongState
from virtring.memory import GuestMemory
from virtring.queue import Virtqueue
from virtring.spec.features import Feature
from virtring.spec.status import Status
from virtring.transport.connect import connect

A, D, OK = Status.ACKNOWLEDGE, Status.DRIVER, Status.DRIVER_OK
SUSPEND, NEEDS_RESET = Status.SUSPEND, Status.NEEDS_RESET


def lay(driver: EchoDriver, vq: Virtqueue) -> None:
    """A buffer that the device is not told of."""
    out, into = driver.pool.get(), driver.pool.get()
    out.len = 4
    vq.add_sgs([out], [into], (out, into))


def ring(vdev: VirtioDevice) -> list[bytes]:
    """All that the device could write to of its queues."""
    return [
        bytes(vdev.memory.view(vq.desc_addr, vq.used_addr + 8 * vq.vring_size - vq.desc_addr))
        for vq in vdev.vqs
    ]


def stir(device: Echo) -> None:
    """Everything that could make a device look at its queues or say something."""
    for index in range(3):
        device.core.notify(index)
        device.wake(index)
        device.core.interrupt_queue(index)
    device.update_config(8, b"\x07")


def test_nothing_is_taken_and_nothing_said_before_driver_ok(kind: str, layout: str) -> None:
    class Early(EchoDriver):
        def probe(self) -> None:
            super().probe()
            lay(self, self.vdev.vqs[0])
            before = ring(self.vdev)
            self.vdev.vqs[0].kick()
            self.vdev.config_enable()
            stir(device)
            assert (device.served, self.answers, self.changes) == (0, [], 0)
            assert ring(self.vdev) == before
            self.vdev.config_disable()

    device = Echo(LAYOUTS[layout])
    _, driver, _ = bound(device, kind, Early)
    assert (device.served, len(driver.answers)) == (1, 1)


def test_a_device_that_was_reset_is_silent(kind: str, layout: str) -> None:
    device = Echo(LAYOUTS[layout])
    vdev, driver, _ = bound(device, kind)
    first = vdev.vqs[0]
    assert driver.echo(first, b"alive") == b"alive"
    lay(driver, first)
    before = ring(vdev)
    with device.locked():
        # Comes up before the reset, and would be said after it.
        device.update_config(8, b"\x05")
        device.core.interrupt_queue(0)
        vdev.config.reset_device(vdev)  # type: ignore[attr-defined]
    assert vdev.config.get_status(vdev) == 0
    for status in (Status(0), A, A | D):
        if status:
            vdev.config.set_status(vdev, status)
        stir(device)
        device.needs_reset("tested")
        device.core.status &= ~NEEDS_RESET
        assert (device.served, driver.answers, driver.changes) == (1, [], 0)
        assert ring(vdev) == before


def test_every_field_can_be_read_before_features_ok(kind: str, name: str, device: Device) -> None:
    vdev = connect(device, kind, GuestMemory.create(1 << 20))
    vdev.reset()
    config = bytes(device.core.config)
    for status in (Status(0), A, A | D):
        if status:
            vdev.config.set_status(vdev, status)
        assert b"".join(vdev.config.get(vdev, at, 1) for at in range(len(config))) == config
    assert list(device.core.refusals) == []


# What is offered.


def test_the_offer_can_be_accepted_as_it_is(kind: str, name: str, device: Device) -> None:
    """All that a feature needs is offered with it, VERSION_1 always, SR_IOV never."""
    vdev = connect(device, kind, GuestMemory.create(1 << 20))
    offer = vdev.config.get_features(vdev)
    assert offer & Feature.VERSION_1
    assert not offer & Feature.SR_IOV
    vdev.reset()
    vdev.add_status(A)
    vdev.add_status(D)
    vdev.features = Feature(offer)
    vdev.config.finalize_features(vdev)
    assert int(vdev.features) == offer
    vdev.features_ok()
    assert list(device.core.refusals) == []


@pytest.mark.parametrize(
    "bit", [1 << 24, 1 << 30, Feature.SR_IOV, Feature.ADMIN_VQ, Feature.NOTIF_CONFIG_DATA, 1 << 49]
)
def test_what_nothing_here_can_do_is_not_offered(bit: int) -> None:
    with pytest.raises(InvalidArgument, match=f"{int(bit):#x}"):
        Echo(RING_OFFER | Feature(bit))


# Suspending.


class Sleepy(Echo):
    """Fails to suspend or to resume when told so."""

    fails: bool | None = None

    def suspended(self, suspend: bool) -> None:
        if suspend is self.fails:
            raise OSError("cannot")


def sleepy(kind: str, layout: str = "packed") -> tuple[Sleepy, VirtioDevice, Any]:
    device = Sleepy(LAYOUTS[layout] | Feature.SUSPEND)
    vdev, driver, _ = bound(device, kind)
    return device, vdev, driver


def test_suspending_before_driver_ok_is_ignored(kind: str) -> None:
    class Early(EchoDriver):
        def probe(self) -> None:
            super().probe()
            before = self.vdev.config.get_status(self.vdev)
            with pytest.raises(WrongState, match="did not suspend"):
                self.vdev.suspend()
            assert self.vdev.config.get_status(self.vdev) == before

    device = Echo(RING_OFFER | Feature.SUSPEND)
    vdev, driver, _ = bound(device, kind, Early)
    assert vdev.config.get_status(vdev) & (OK | SUSPEND) == OK
    assert driver.echo(driver.vqs[0], b"awake") == b"awake"


def test_a_suspended_device_leaves_all_alone_and_is_silent(kind: str, layout: str) -> None:
    device, vdev, driver = sleepy(kind, layout)
    lay(driver, vdev.vqs[0])
    with device.locked():
        # Comes up while it still runs, and would be said when it does not any more.
        device.core.interrupt_config()
        vdev.suspend()
    config, before = bytes(device.core.config), ring(vdev)
    stir(device)
    vdev.config.set(vdev, 0, b"\xff")
    assert (device.served, driver.answers, driver.changes) == (0, [], 0)
    assert bytes(device.core.config) == config
    assert ring(vdev) == before
    vdev.resume()
    assert (device.served, len(driver.answers), driver.changes) == (1, 1, 1)
    assert device.core.config[8] == 7


def test_a_device_that_cannot_suspend_needs_a_reset(kind: str) -> None:
    device, vdev, driver = sleepy(kind)
    device.fails = True
    with pytest.raises(OSError, match="cannot"):
        vdev.suspend()
    assert vdev.config.get_status(vdev) & (NEEDS_RESET | SUSPEND) == NEEDS_RESET
    assert driver.changes == 1
    assert "could not suspend" in device.core.refusals[-1]


def test_a_device_that_cannot_resume_needs_a_reset(kind: str) -> None:
    device, vdev, driver = sleepy(kind)
    vdev.suspend()
    device.fails = False
    with pytest.raises(OSError, match="cannot"):
        vdev.resume()
    assert vdev.config.get_status(vdev) & (NEEDS_RESET | SUSPEND | OK) == NEEDS_RESET | SUSPEND
    assert driver.changes == 0
    # It is awake in the end, but not well.
    device.fails = None
    vdev.resume()
    assert vdev.config.get_status(vdev) & (NEEDS_RESET | SUSPEND | OK) == NEEDS_RESET | OK
    assert driver.changes == 1


def test_trouble_of_a_suspended_device_is_said_when_it_resumes(kind: str) -> None:
    device, vdev, driver = sleepy(kind)
    vdev.suspend()
    device.needs_reset("in its sleep")
    assert driver.changes == 0
    vdev.resume()
    assert driver.changes == 1
    assert NEEDS_RESET in vdev.config.get_status(vdev)
