"""vhost-user: a device served to another process, such as QEMU, over a Unix socket."""

from virtring.transport.vhost_user.message import Protocol, ProtocolError, Request
from virtring.transport.vhost_user.server import VhostUserServer

__all__ = ["Protocol", "ProtocolError", "Request", "VhostUserServer"]
