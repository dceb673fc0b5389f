"""vfio-user: a whole PCI function served to another process, such as QEMU, over a Unix socket."""

from virtring.transport.vfio_user.server import VfioUserServer

__all__ = ["VfioUserServer"]
