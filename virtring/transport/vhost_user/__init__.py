"""vhost-user: devices of other processes, such as QEMU, over a Unix socket; both ends."""

from virtring.transport.unix import ProtocolError
from virtring.transport.vhost_user.frontend import VhostUserOps, vhost_user_device
from virtring.transport.vhost_user.message import Protocol, Request
from virtring.transport.vhost_user.server import VhostUserServer

__all__ = [
    "Protocol",
    "ProtocolError",
    "Request",
    "VhostUserOps",
    "VhostUserServer",
    "vhost_user_device",
]
