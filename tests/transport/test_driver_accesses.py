"""The driver sides do to registers what virtio 1.4 allows, all through a device's life."""

from typing import Any

import numpy as np
import pytest

from tests.transport.common import CONFIG, LAYOUTS, Echo, EchoDriver, bound
from tests.transport.strict import StrictFunction, StrictWindow
from virtring.device import Device, VirtioBus, VirtioDevice
from virtring.memory import GuestMemory
from virtring.queue import DeviceQueue, virtqueue_resize
from virtring.spec.features import Feature
from virtring.spec.mmio import MmioReg
from virtring.spec.pci import CommonReg
from virtring.transport import PciBus, VirtioMmio, VirtioPci, mmio_device, mmio_scan, pci_device


def live(vdev: VirtioDevice, device: Echo) -> None:
    """Everything that a driver can ask of its transport."""
    bus = VirtioBus()
    bus.register_driver(EchoDriver)
    bus.register_device(vdev)
    driver: Any = vdev.driver
    for _ in range(2):
        for vq in vdev.vqs:
            assert driver.echo(vq, b"alive") == b"alive"
        first = vdev.vqs[0]
        first.reset()
        virtqueue_resize(first, 4)
        virtqueue_resize(first, 8)
        assert driver.echo(first, b"anew") == b"anew"
        vdev.cread(CONFIG)
        vdev.cwrite(CONFIG, "capacity", 1 << 40)
        vdev.cwrite(CONFIG, "mac", np.arange(6))
        changes = driver.changes
        device.update_config(8, b"\x01")
        assert driver.changes == changes + 1
        vdev.suspend()
        vdev.resume()
        bus.freeze(vdev)
        bus.restore(vdev)
    bus.unregister_device(vdev)
    assert list(device.core.refusals) == []


@pytest.fixture(params=LAYOUTS)
def packed(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "packed")


@pytest.fixture(params=[False, True], ids=["index", "data"])
def device(request: pytest.FixtureRequest, packed: bool) -> Echo:
    extra = Feature.SUSPEND | (Feature.NOTIFICATION_DATA if request.param else 0)
    return Echo(LAYOUTS["packed" if packed else "split"] | extra, queue_size=8)


def packed_now(device: Device) -> bool:
    return Feature.RING_PACKED in device.core.driver_features


@pytest.mark.parametrize("irq", ["msix", "intx"])
def test_pci(device: Echo, irq: str) -> None:
    memory = GuestMemory.create(1 << 20)
    bus = PciBus()
    bus.add(VirtioPci(device, memory))
    function = StrictFunction(bus, 0)
    function.start(
        lambda: packed_now(device),
        lambda: Feature.NOTIFICATION_DATA in device.core.driver_features,
        4,
    )
    live(pci_device(function, memory, irq), device)
    # With MSI-X the ISR status is left alone.
    assert bool(function.isr_reads) == (irq == "intx")


def test_mmio(device: Echo) -> None:
    memory = GuestMemory.create(1 << 20)
    back = VirtioMmio(device, memory)
    window = StrictWindow(back, lambda: packed_now(device))
    window.unknown = 0x8000_0004
    live(mmio_device(window, memory, back.irq), device)
    order = [MmioReg.MAGIC_VALUE, MmioReg.VERSION, MmioReg.DEVICE_ID]
    assert window.log[:3] == [(reg, None) for reg in order]
    assert not [reg for reg, _ in window.log if reg.name.startswith("SHM")]


def test_mmio_placeholders_are_passed_over_untouched() -> None:
    memory = GuestMemory.create(1 << 20)
    good, empty = (VirtioMmio(Echo(), memory) for _ in range(2))
    empty.core.device_id = 0
    strict = StrictWindow(empty, lambda: False)
    (vdev,) = mmio_scan([(strict, empty.irq), (good, good.irq)], memory)
    assert vdev.id.device == 25
    assert [reg for reg, _ in strict.log] == [
        MmioReg.MAGIC_VALUE,
        MmioReg.VERSION,
        MmioReg.DEVICE_ID,
    ]


@pytest.mark.parametrize("kind", ["pci", "mmio"])
def test_a_queue_reset_that_goes_on_reads_1(kind: str) -> None:
    seen: list[tuple[int, int]] = []

    class Watching(Echo):
        def queue_stopped(self, index: int, queue: DeviceQueue) -> None:
            seen.append(registers())

    def registers() -> tuple[int, int]:
        ops: Any = vdev.config
        if kind == "pci":
            return ops.read(CommonReg.QUEUE_RESET, 2), ops.read(CommonReg.QUEUE_ENABLE, 2)
        return ops.read(MmioReg.QUEUE_RESET), ops.read(MmioReg.QUEUE_READY)

    vdev, driver, _ = bound(Watching(), kind)
    vdev.vqs[0].reset()
    assert seen == [(1, 0)]
    assert registers() == (0, 1)
    assert driver.echo(vdev.vqs[0], b"over") == b"over"
