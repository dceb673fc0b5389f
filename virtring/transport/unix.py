"""Unix sockets that carry messages with file descriptors: reading, sending, serving."""

import logging
import os
import selectors
import socket
import stat
from collections.abc import Sequence

from virtring.errors import InvalidArgument, VirtioError
from virtring.queue import EventFd

log = logging.getLogger(__name__)

#: Seconds that the rest of a message that has begun may take.
MESSAGE_TIME = 10.0


class ProtocolError(VirtioError):
    """The other end sent what its protocol does not allow; the session is over."""


def close_fds(fds: Sequence[int]) -> None:
    """Close descriptors that nobody else will."""
    for fd in fds:
        os.close(fd)


def read_exact(sock: socket.socket, size: int, fds: list[int], max_fds: int) -> bytes | None:
    """``size`` bytes, and the descriptors that came with them appended to ``fds``.

    None when the peer closed before the first byte. ProtocolError when it closes or stops in
    between, or sends more than ``max_fds`` descriptors; ``fds`` has what there was, to be closed.
    """
    data = bytearray()
    while len(data) < size:
        try:
            part, got, flags, _ = socket.recv_fds(sock, size - len(data), max_fds)
        except TimeoutError:
            raise ProtocolError("the peer stopped in mid-message") from None
        except ConnectionResetError:
            part, got, flags = b"", [], 0
        fds.extend(got)
        if flags & socket.MSG_CTRUNC or len(fds) > max_fds:
            raise ProtocolError(f"more than {max_fds} descriptors in a message")
        if not part:
            if data:
                raise ProtocolError("the peer closed in mid-message")
            return None
        data += part
    return bytes(data)


def send_all(sock: socket.socket, data: bytes, fds: Sequence[int] = ()) -> None:
    """Send everything; ConnectionError when the other end is gone or takes nothing."""
    try:
        sent = socket.send_fds(sock, [data], list(fds)) if fds else sock.send(data)
        if sent < len(data):
            sock.sendall(data[sent:])
    except (BrokenPipeError, ConnectionResetError, TimeoutError) as error:
        raise ConnectionError(f"the peer does not take messages: {error}") from error


def listen(path: str) -> socket.socket:
    """A listening Unix socket at ``path``; a socket that nobody serves is replaced.

    Raises InvalidArgument when the path is too long, is no socket, or is served by another process.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if os.path.lexists(path):
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise InvalidArgument(f"{path} is there already and is no socket")
            try:
                sock.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)
            else:
                raise InvalidArgument(f"{path} is served by another process")
            sock.close()
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.bind(path)
        sock.listen(1)
    except OSError as error:
        sock.close()
        raise InvalidArgument(f"cannot listen at {path}: {error}") from error
    except BaseException:
        sock.close()
        raise
    return sock


class SocketServer:
    """Serves one peer after another at a path, until :meth:`stop`. A subclass has ``serve``."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.sessions = 0
        self._listener = listen(path)
        self.stopping = EventFd()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self.stopping, selectors.EVENT_READ)

    def serve(self, sock: socket.socket) -> bool:
        """One session over a connected socket, which is closed; False when stopped meanwhile."""
        raise NotImplementedError

    def stop(self) -> None:
        """Make :meth:`run` return soon; from any thread or a signal handler."""
        self.stopping.signal()

    def close(self) -> None:
        """Stop listening and remove the socket's path. Again is fine."""
        if self._listener.fileno() >= 0:
            self._selector.close()
            self._listener.close()
            os.unlink(self.path)
            self.stopping.close()

    def run(self) -> None:
        """Serve peers until :meth:`stop`. A bad one only ends its own session."""
        while True:
            ready = {key.fileobj for key, _ in self._selector.select()}
            if self.stopping in ready:
                return
            sock, _ = self._listener.accept()
            self.sessions += 1
            log.info("%s: connected", self.path)
            try:
                if not self.serve(sock):
                    return
            except (VirtioError, OSError) as error:
                log.error("%s: session ended: %s", self.path, error)
            finally:
                sock.close()
            log.info("%s: gone", self.path)
