"""vhost-user: a device served to another process, such as QEMU, over a Unix socket."""

from virtring.transport.unix import ProtocolError
from virtring.transport.vhost_user.message import Protocol, Request
from virtring.transport.vhost_user.server import VhostUserServer

__all__ = ["Protocol", "ProtocolError", "Request", "VhostUserServer"]
