"""The driver side of virtio over PCI: what it finds, and what it does with less than usual."""

from typing import Any

import pytest

from tests.transport.common import Echo, EchoDriver, bound
from tests.transport.raw import Raw, plugged
from virtring.device import VirtioBus
from virtring.devices.rng import Rng
from virtring.errors import InvalidArgument, NotSupported
from virtring.memory import GuestMemory
from virtring.spec.pci import MSI_NO_VECTOR, CfgType
from virtring.transport import PciBus, VirtioPci, pci_device, pci_scan
from virtring.transport.pci_device import PciCapability
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


def test_a_driver_passes_over_capabilities_that_it_does_not_know(raw: Raw) -> None:
    function = raw.function
    bus = plugged(raw)
    own = list(function.capabilities.values())
    common = next(cap for cap in own if cap.id == 9 and cap.data[1] == CfgType.COMMON)

    def common_like(kind: int, bar: int) -> PciCapability:
        return PciCapability(9, common.data[:1] + bytes([kind, bar]) + common.data[3:])

    own.remove(common)
    longer = bytes([common.data[0] + 8]) + common.data[1:10]
    longer += (128).to_bytes(4, "little") + bytes(8)
    function.set_capabilities(
        [
            # A reserved type, two reserved BARs, another capability; then the right one, with more
            # data than known and a structure longer than known.
            common_like(0x33, 0),
            common_like(CfgType.COMMON, 6),
            common_like(CfgType.COMMON, 0xFF),
            PciCapability(1, bytes(4)),
            PciCapability(9, longer),
            *[cap for cap in own if cap.data[1] != CfgType.SHARED_MEMORY],
        ]
    )
    (vdev,) = pci_scan(bus, raw.memory)
    drivers = VirtioBus()
    drivers.register_driver(EchoDriver)
    drivers.register_device(vdev)
    driver: Any = vdev.driver
    assert driver.echo(driver.vqs[0], b"found") == b"found"


@pytest.mark.parametrize(
    ("id", "subsystem", "revision"), [(0x1059, 0x1059, 0x7F), (0x1059, 1, 0), (0x1005, 25, 0)]
)
def test_a_driver_goes_by_ids_and_no_revision(
    raw: Raw, id: int, subsystem: int, revision: int
) -> None:
    bus = plugged(raw)
    config = raw.function.config
    config[2:4], config[0x2E:0x30] = id.to_bytes(2, "little"), subsystem.to_bytes(2, "little")
    config[8] = revision
    (vdev,) = pci_scan(bus, raw.memory)
    assert vdev.id.device == 25


@pytest.mark.parametrize(("vendor", "id"), [(0x1AF5, 0x1059), (0x1AF4, 0x1080), (0x1AF4, 0xFFF)])
def test_a_driver_leaves_other_functions_alone(raw: Raw, vendor: int, id: int) -> None:
    bus = plugged(raw)
    config = raw.function.config
    config[:4] = vendor.to_bytes(2, "little") + id.to_bytes(2, "little")
    before = bytes(config)
    assert pci_scan(bus, raw.memory) == []
    assert bytes(config) == before


def test_one_interrupt_for_changes_and_used_buffers() -> None:
    device = Echo()
    vdev, driver, _ = bound(device, "pci-intx")
    function: Any = next(iter(vdev.config.function.host.devices.values()))  # type: ignore[attr-defined]
    function.write_config(4, 2, 0x406)
    with pytest.raises(IndexError):
        driver.echo(driver.vqs[0], b"both")
    device.update_config(0, b"\x01")
    assert function.isr == 3
    function.write_config(4, 2, 6)
    assert driver.answers == [(0, b"both")]
    assert driver.changes == 1
