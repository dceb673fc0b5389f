"""How drivers reach devices: loopback, PCI, MMIO and, to other processes, vhost-user."""

from virtring.transport.connect import connect
from virtring.transport.loopback import loopback
from virtring.transport.pci_bus import PciBus
from virtring.transport.pci_device import PciDevice
from virtring.transport.virtio_mmio import VirtioMmio
from virtring.transport.virtio_mmio_ops import mmio_device, mmio_scan
from virtring.transport.virtio_pci import VirtioPci
from virtring.transport.virtio_pci_modern import pci_device, pci_scan

__all__ = [
    "PciBus",
    "PciDevice",
    "VirtioMmio",
    "VirtioPci",
    "connect",
    "loopback",
    "mmio_device",
    "mmio_scan",
    "pci_device",
    "pci_scan",
]
