"""A Unix socket that carries vhost-user messages and descriptors, one message at a time."""

import logging
import os
import socket
from collections.abc import Sequence

from virtring.transport.vhost_user.message import (
    HEADER,
    MAX_FDS,
    MAX_PAYLOAD,
    NEED_REPLY,
    REPLY,
    VERSION,
    VERSION_MASK,
    Message,
    ProtocolError,
)

log = logging.getLogger(__name__)

#: Seconds that the rest of a message that has begun may take.
MESSAGE_TIME = 10.0


def close_fds(fds: Sequence[int]) -> None:
    """Close descriptors that nobody else will."""
    for fd in fds:
        os.close(fd)


class Connection:
    """One end of a vhost-user socket. Takes the socket over."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(MESSAGE_TIME)

    def fileno(self) -> int:
        return self.sock.fileno()

    def close(self) -> None:
        self.sock.close()

    def recv(self) -> Message | None:
        """The next message; None when the other end has closed between two messages.

        ProtocolError for a message that is cut off, too long, of another version, or with more
        descriptors than fit; whatever descriptors came with it are closed then.
        """
        fds: list[int] = []
        try:
            head = self._read(HEADER.size, fds)
            if head is None:
                return None
            request, flags, size = HEADER.unpack(head)
            if flags & VERSION_MASK != VERSION:
                raise ProtocolError(f"version {flags & VERSION_MASK}, not {VERSION}")
            if size > MAX_PAYLOAD:
                raise ProtocolError(f"request {request}: {size} bytes; the most is {MAX_PAYLOAD}")
            payload = self._read(size, fds) if size else b""
            if payload is None:
                raise ProtocolError(f"request {request}: the peer closed in mid-message")
        except BaseException:
            close_fds(fds)
            raise
        return Message(request, flags, payload, fds)

    def _read(self, size: int, fds: list[int]) -> bytes | None:
        """``size`` bytes; None when the peer closed before the first."""
        data = bytearray()
        while len(data) < size:
            try:
                part, got, flags, _ = socket.recv_fds(self.sock, size - len(data), MAX_FDS)
            except TimeoutError:
                raise ProtocolError("the peer stopped in mid-message") from None
            except ConnectionResetError:
                part, got, flags = b"", [], 0
            fds.extend(got)
            if flags & socket.MSG_CTRUNC or len(fds) > MAX_FDS:
                raise ProtocolError(f"more than {MAX_FDS} descriptors in a message")
            if not part:
                if data:
                    raise ProtocolError("the peer closed in mid-message")
                return None
            data += part
        return bytes(data)

    def send(
        self,
        request: int,
        payload: bytes = b"",
        fds: Sequence[int] = (),
        *,
        reply: bool = False,
        need_reply: bool = False,
    ) -> None:
        """Send one message; ConnectionError when the other end is gone."""
        flags = VERSION | (REPLY if reply else 0) | (NEED_REPLY if need_reply else 0)
        data = HEADER.pack(request, flags, len(payload)) + payload
        try:
            sent = socket.send_fds(self.sock, [data], list(fds)) if fds else self.sock.send(data)
            if sent < len(data):
                self.sock.sendall(data[sent:])
        except (BrokenPipeError, ConnectionResetError, TimeoutError) as error:
            raise ConnectionError(f"the peer does not take messages: {error}") from error
