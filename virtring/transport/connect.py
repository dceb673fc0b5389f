"""A device behind a transport of this process and its driver's view, in one call."""

from virtring.device import Device, VirtioDevice
from virtring.errors import InvalidArgument
from virtring.memory import GuestMemory
from virtring.transport.irq import IrqLine
from virtring.transport.loopback import loopback
from virtring.transport.pci_bus import PciBus
from virtring.transport.pci_function import BusFunction
from virtring.transport.virtio_mmio import VirtioMmio
from virtring.transport.virtio_mmio_ops import mmio_device
from virtring.transport.virtio_pci import VirtioPci
from virtring.transport.virtio_pci_modern import pci_device

#: What ``connect`` takes as ``kind``.
KINDS = ("loopback", "pci", "pci-intx", "mmio")


def connect(
    device: Device,
    kind: str = "pci",
    memory: GuestMemory | None = None,
    *,
    bus: PciBus | None = None,
) -> VirtioDevice:
    """Attach ``device`` and give its driver's view; register that with a VirtioBus.

    kind: ``"pci"`` (with MSI-X), ``"pci-intx"``, ``"mmio"`` or ``"loopback"``. memory: the guest's,
    a new one of 16 MiB if none is given; ``vdev.memory`` is it. bus: where a PCI function is
    plugged in, a new one if none is given.

    Raises InvalidArgument for another kind, WrongState if the device is attached already.
    """
    if kind not in KINDS:
        raise InvalidArgument(f"kind {kind!r}; it takes one of {', '.join(KINDS)}")
    if memory is None:
        memory = GuestMemory.create(16 << 20)
    if kind == "loopback":
        return loopback(device, memory)
    if kind == "mmio":
        line = IrqLine()
        return mmio_device(VirtioMmio(device, memory, line), memory, line)
    bus = PciBus() if bus is None else bus
    slot, function = bus.add(VirtioPci(device, memory))
    return pci_device(BusFunction(bus, slot, function), memory, "msix" if kind == "pci" else "intx")
