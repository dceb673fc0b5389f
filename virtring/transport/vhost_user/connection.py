"""A Unix socket that carries vhost-user messages and descriptors, one message at a time."""

import socket
from collections.abc import Sequence

from virtring.transport.unix import MESSAGE_TIME, ProtocolError, close_fds, read_exact, send_all
from virtring.transport.vhost_user.message import (
    HEADER,
    MAX_FDS,
    MAX_PAYLOAD,
    NEED_REPLY,
    REPLY,
    VERSION,
    VERSION_MASK,
    Message,
)


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
            head = read_exact(self.sock, HEADER.size, fds, MAX_FDS)
            if head is None:
                return None
            request, flags, size = HEADER.unpack(head)
            if flags & VERSION_MASK != VERSION:
                raise ProtocolError(f"version {flags & VERSION_MASK}, not {VERSION}")
            if size > MAX_PAYLOAD:
                raise ProtocolError(f"request {request}: {size} bytes; the most is {MAX_PAYLOAD}")
            payload = read_exact(self.sock, size, fds, MAX_FDS) if size else b""
            if payload is None:
                raise ProtocolError(f"request {request}: the peer closed in mid-message")
        except BaseException:
            close_fds(fds)
            raise
        return Message(request, flags, payload, fds)

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
        send_all(self.sock, HEADER.pack(request, flags, len(payload)) + payload, fds)
