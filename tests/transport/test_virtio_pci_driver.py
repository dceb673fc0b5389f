"""The driver side of virtio over PCI: what it finds, and what it does with less than usual."""

from typing import Any

import pytest

from tests.transport.common import Echo, EchoDriver, bound
from tests.transport.raw import Raw, plugged
from virtring.device import VirtioBus
from virtring.devices.rng import Rng
from virtring.errors import InvalidArgument, NotSupported
from virtring.memory import GuestMemory
from virtring.spec.pci import MSI_NO_VECTOR
from virtring.transport import PciBus, VirtioPci, pci_device, pci_scan
from virtring.transport.pci_function import BusFunction


@pytest.fixture
def raw() -> Raw:
    return Raw(Echo(shm=True))


def test_kicks_without_bus_mastering_are_made_up_for() -> None:
    vdev, driver, _ = bound(Echo(), "pci")
    function: Any = vdev.config.function  # type: ignore[attr-defined]
    function.write_config(4, 2, 2)
    with pytest.raises(IndexError):
        driver.echo(driver.vqs[0], b"late")
    function.write_config(4, 2, 6)
    assert driver.answers == [(0, b"late")]


@pytest.mark.parametrize("multiplier", [0, 4, 64])
def test_a_driver_follows_the_multiplier(multiplier: int) -> None:
    raw = Raw(Echo(), notify_multiplier=multiplier)
    (vdev,) = pci_scan(plugged(raw), raw.memory)
    bus = VirtioBus()
    bus.register_driver(EchoDriver)
    bus.register_device(vdev)
    driver: Any = vdev.driver
    assert driver.echo(driver.vqs[2], b"second") == b"second"


@pytest.mark.parametrize(
    ("vectors", "used"), [(4, [1, 2]), (3, [1, 2]), (2, [1, 1]), (1, []), (0, [])]
)
def test_a_driver_makes_do_with_fewer_vectors(vectors: int, used: list[int]) -> None:
    device = Echo()
    raw = Raw(device, vectors=vectors)
    (vdev,) = pci_scan(plugged(raw), raw.memory)
    bus = VirtioBus()
    bus.register_driver(EchoDriver)
    bus.register_device(vdev)
    driver: Any = vdev.driver
    for vq in vdev.vqs:
        assert driver.echo(vq, b"heard") == b"heard"
    device.update_config(0, b"\x07")
    assert driver.changes == 1
    queues = device.core.queue_configs[:2]
    assert [q.vector for q in queues if q.vector != MSI_NO_VECTOR] == used
    assert (raw.function.msix is not None and raw.function.msix.enabled) == bool(used)


def test_a_driver_passes_over_structures_that_reach_out_of_their_bar(raw: Raw) -> None:
    bus = plugged(raw)
    at = raw.function.find_capability(9)
    raw.function.config[at + 8 : at + 12] = (4096 - 32).to_bytes(4, "little")
    with pytest.raises(NotSupported, match="COMMON"):
        pci_scan(bus, raw.memory)


def test_a_function_reset_takes_the_device_with_it() -> None:
    vdev, driver, _ = bound(Echo(), "pci")
    host: Any = vdev.config.function.host  # type: ignore[attr-defined]
    (function,) = host.devices.values()
    function.reset()
    assert function.core.status == 0
    assert not function.core.queue_configs[0].enabled
    assert function.command == 0
    assert vdev.config.get_status(vdev) == 0xFF
    with pytest.raises(IndexError):
        driver.echo(driver.vqs[0], b"lost")


def test_a_function_that_is_pulled_out(raw: Raw) -> None:
    bus = plugged(raw)
    (vdev,) = pci_scan(bus, raw.memory)
    drivers = VirtioBus()
    drivers.register_driver(EchoDriver)
    drivers.register_device(vdev)
    bus.remove(raw.function)
    raw.function.close()
    assert vdev.config.get_status(vdev) == 0
    drivers.unregister_device(vdev)
    assert vdev.vqs == []
    assert pci_scan(bus, raw.memory) == []
    # The device can be plugged in again.
    raw = Raw(raw.device)
    (vdev,) = pci_scan(plugged(raw), raw.memory)
    drivers.register_device(vdev)
    driver: Any = vdev.driver
    assert driver.echo(driver.vqs[0], b"again") == b"again"


def test_a_scan_finds_virtio_devices_only() -> None:
    bus = PciBus()
    memory = GuestMemory.create(1 << 20)
    bus.add(VirtioPci(Rng(), memory), 4)
    bus.add(VirtioPci(Echo(), memory), 4, 1)
    found = pci_scan(bus, memory, "intx")
    assert [vdev.id.device for vdev in found] == [4, 25]
    assert [vdev.config.bus_name(vdev) for vdev in found] == ["0000:00:04.0", "0000:00:04.1"]
    with pytest.raises(NotSupported, match="not a virtio device"):
        pci_device(BusFunction(bus, 9), memory)
    with pytest.raises(InvalidArgument, match="irq"):
        pci_scan(bus, memory, "msi")
