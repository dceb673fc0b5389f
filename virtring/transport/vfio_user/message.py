"""The messages of the vfio-user protocol (QEMU docs/interop/vfio-user.rst)."""

import errno
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from virtring.transport.unix import MESSAGE_TIME, ProtocolError, close_fds, read_exact, send_all

#: message id, command, size with the header, flags, errno
HEADER = struct.Struct("<HHIII")
#: Bits of flags.
TYPE_MASK, TYPE_REPLY, NO_REPLY, ERROR = 0xF, 1, 1 << 4, 1 << 5
#: Most bytes that one read or write moves.
MAX_TRANSFER = 1 << 20
#: Most bytes of a message, header and all.
MAX_MESSAGE = MAX_TRANSFER + 64
#: Most descriptors in one message.
MAX_FDS = 16

#: major, minor; a JSON text may follow
VERSION = struct.Struct("<HH")
#: argsz, flags, offset in the file, DMA address, size
DMA_MAP = struct.Struct("<IIQQQ")
#: argsz, flags, DMA address, size
DMA_UNMAP = struct.Struct("<IIQQ")
#: argsz, flags, regions, irqs
DEVICE_INFO = struct.Struct("<IIII")
#: argsz, flags, index, capabilities' offset, size, offset
REGION_INFO = struct.Struct("<IIIIQQ")
#: argsz, flags, index, count
IRQ_INFO = struct.Struct("<IIII")
#: argsz, flags, index, start, count; booleans may follow
IRQ_SET = struct.Struct("<IIIII")
#: offset, region, count; data may follow
REGION_IO = struct.Struct("<QII")
#: address, count; data may follow
DMA_IO = struct.Struct("<QQ")


#: how many writes; then for each offset, region, count and 8 bytes of data
WRITE_MULTI, WRITE_ENTRY = struct.Struct("<Q"), struct.Struct("<QII8s")


class Refused(Exception):
    """A command that is answered with an errno; the session goes on."""

    def __init__(self, error: int, why: str) -> None:
        super().__init__(why)
        self.errno = error


class Command(IntEnum):
    """VFIO_USER_*; DMA_READ and DMA_WRITE go from the server to the client."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_REGION_IO_FDS = 6
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DMA_READ = 11
    DMA_WRITE = 12
    DEVICE_RESET = 13
    REGION_WRITE_MULTI = 15


@dataclass
class Message:
    """One message as it came; ``fds`` belong to whoever has it."""

    id: int
    command: int
    flags: int
    error: int = 0
    payload: bytes = b""
    fds: list[int] = field(default_factory=list)

    @property
    def is_reply(self) -> bool:
        """A reply, not a command; ProtocolError when it is neither."""
        kind = self.flags & TYPE_MASK
        if kind > TYPE_REPLY:
            raise ProtocolError(f"{self}: neither a command nor a reply, but of type {kind}")
        return kind == TYPE_REPLY

    @property
    def wants_reply(self) -> bool:
        return not self.flags & NO_REPLY

    def take(self, layout: struct.Struct) -> tuple[Any, ...]:
        """The payload's head by ``layout``; ProtocolError when it is shorter."""
        if len(self.payload) < layout.size:
            raise ProtocolError(f"{self}: it takes {layout.size} bytes")
        return layout.unpack_from(self.payload)

    def query(self, layout: struct.Struct) -> tuple[Any, ...]:
        """As :meth:`take`, for a layout that begins with argsz and is that of the answer too.

        Refused when the sender has no room for the answer.
        """
        fields = self.take(layout)
        if fields[0] < layout.size:
            raise Refused(errno.EINVAL, f"argsz {fields[0]}; the answer has {layout.size} bytes")
        return fields

    def __str__(self) -> str:
        try:
            name = Command(self.command).name
        except ValueError:
            name = f"command {self.command}"
        fds = f", {len(self.fds)} fd" if self.fds else ""
        return f"{name} ({len(self.payload)} bytes{fds})"


class Connection:
    """The server's end of a vfio-user socket. Takes the socket over."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(MESSAGE_TIME)

    def fileno(self) -> int:
        return self.sock.fileno()

    def close(self) -> None:
        self.sock.close()

    def recv(self) -> Message | None:
        """The next message; None when the client has closed between two messages.

        ProtocolError for one that is cut off, too long or has too many descriptors.
        """
        fds: list[int] = []
        try:
            head = read_exact(self.sock, HEADER.size, fds, MAX_FDS)
            if head is None:
                return None
            id, command, size, flags, error = HEADER.unpack(head)
            if not HEADER.size <= size <= MAX_MESSAGE:
                raise ProtocolError(f"command {command}: a message of {size} bytes")
            length = size - HEADER.size
            payload = read_exact(self.sock, length, fds, MAX_FDS) if length else b""
            if payload is None:
                raise ProtocolError(f"command {command}: the peer closed in mid-message")
        except BaseException:
            close_fds(fds)
            raise
        return Message(id, command, flags, error, payload, fds)

    def reply(self, to: Message, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Answer ``to``, if it wants an answer."""
        if to.wants_reply:
            head = HEADER.pack(to.id, to.command, HEADER.size + len(payload), TYPE_REPLY, 0)
            send_all(self.sock, head + payload, fds)

    def refuse(self, to: Message, error: int) -> None:
        """Answer ``to`` with an errno, if it wants an answer."""
        if to.wants_reply:
            flags = TYPE_REPLY | ERROR
            send_all(self.sock, HEADER.pack(to.id, to.command, HEADER.size, flags, error))

    def command(self, id: int, command: Command, payload: bytes) -> None:
        """Send the client a command; its answer comes by :meth:`recv`."""
        head = HEADER.pack(id, command, HEADER.size + len(payload), 0, 0)
        send_all(self.sock, head + payload)
