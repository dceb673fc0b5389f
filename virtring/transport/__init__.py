"""How drivers reach devices: loopback, PCI, MMIO and, to other processes, vfio-user, vhost-user."""

from virtring.transport.loopback import loopback

__all__ = ["loopback"]
