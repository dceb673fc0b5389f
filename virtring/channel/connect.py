"""Making channels: in one process, and between two that meet at a Unix socket."""

import contextlib
import errno
import os
import socket
import stat
import struct
import time
from types import TracebackType
from typing import Self

from virtring.channel.channel import Channel
from virtring.channel.layout import Layout
from virtring.errors import InvalidArgument, PeerDied, WaitTimeout
from virtring.memory.region import Region
from virtring.queue.eventfd import EventFd, check_timeout

Path = str | os.PathLike[str]

#: magic, slots, slot_size, side; little-endian, 24 bytes.
HEADER = struct.Struct("<8sIQI")
MAGIC = b"VRchannl"
#: How long a peer that has connected may take to say or to take what belongs to a channel.
PATIENCE = 10.0


def create(
    slots: int = 256, slot_size: int = 4096, *, spin_us: float | None = None
) -> tuple[Channel, Channel]:
    """Both ends of a new channel, one for this process, the other for another one (or a thread).

    Each direction has room for ``slots`` messages, at least, of up to ``slot_size`` bytes.
    ``spin_us`` is how long at most a waiting call polls before it sleeps (see
    :class:`~virtring.Spin`). Raises InvalidArgument, OutOfMemory.
    """
    layout = Layout(slots, slot_size)
    region = Region.memfd(layout.size, "virtring-channel")
    events = tuple(EventFd() for _ in range(4))
    one, two = (Channel(region, layout, side, events, spin_us=spin_us) for side in (0, 1))
    return one, two


def send_end(end: Channel, sock: socket.socket) -> None:
    """Hand a new end over a blocking AF_UNIX socket to whoever calls :func:`receive_end` there."""
    region, layout, side, events = end.hand_over()
    sock.sendall(HEADER.pack(MAGIC, layout.slots, layout.slot_size, side))
    region.send(sock)
    for event in events:
        event.send(sock)


def receive_end(
    sock: socket.socket, *, spin_us: float | None = None, watch: bool = False
) -> Channel:
    """The end that the other side of a blocking AF_UNIX socket hands over with :func:`send_end`.

    With ``watch`` the channel keeps the socket, whose end then shows the other end's death; else
    the socket stays the caller's. Raises PeerDied when the socket ends, InvalidArgument when what
    comes is no channel's end.
    """
    data = b""
    while len(data) < HEADER.size:
        more = sock.recv(HEADER.size - len(data))
        if not more:
            raise PeerDied("the socket was closed before a channel came")
        data += more
    magic, slots, slot_size, side = HEADER.unpack(data)
    if magic != MAGIC:
        raise InvalidArgument("the message does not begin with a channel's header")
    layout = Layout(slots, slot_size)
    region = Region.receive(sock)
    events = [EventFd.receive(sock) for _ in range(4)]
    return Channel(region, layout, side, events, sock=sock if watch else None, spin_us=spin_us)


class Listener:
    """A Unix socket at ``path`` where other processes :func:`connect`; made by :func:`listen`."""

    def __init__(
        self, path: Path, slots: int, slot_size: int, spin_us: float | None, backlog: int
    ) -> None:
        Layout(slots, slot_size)
        self.path = os.fspath(path)
        self._made = (slots, slot_size, spin_us)
        self._sock = _bound(self.path)
        self._sock.listen(backlog)

    def accept(self, timeout: float | None = None) -> Channel:
        """Wait for a process to connect; our end of a channel of its own.

        Raises WaitTimeout when nobody came in ``timeout`` seconds, PeerDied when who came left
        before the channel was set up.
        """
        slots, slot_size, spin_us = self._made
        self._sock.settimeout(check_timeout(timeout))
        try:
            sock, _ = self._sock.accept()
        except (TimeoutError, BlockingIOError):
            raise WaitTimeout(f"nobody connected to {self.path} in {timeout} seconds") from None
        try:
            sock.settimeout(PATIENCE)
            layout = Layout(slots, slot_size)
            region = Region.memfd(layout.size, "virtring-channel")
            events = tuple(EventFd() for _ in range(4))
            ours = Channel(region, layout, 0, events, sock=sock, spin_us=spin_us)
            send_end(Channel(region, layout, 1, events), sock)
            ours.attach()
        except OSError as error:
            sock.close()
            raise PeerDied(f"who connected did not take the channel: {error}") from error
        except BaseException:
            sock.close()
            raise
        return ours

    def fileno(self) -> int:
        """The listening socket's file descriptor, for ``select`` and the like."""
        return self._sock.fileno()

    def close(self) -> None:
        """Stop listening and remove the path. Channels that were accepted stay. Again is fine."""
        if self._sock.fileno() >= 0:
            self._sock.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _bound(path: str) -> socket.socket:
    """A socket bound to ``path``, also where one that nobody listens at was left behind."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            sock.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _left_behind(path):
                raise
            os.unlink(path)
            sock.bind(path)
    except BaseException:
        sock.close()
        raise
    return sock


def _left_behind(path: str) -> bool:
    """Whether it is a socket that nobody listens at; connecting to any other file looks the same.
    """
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
        try:
            trial.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


def listen(
    path: Path,
    slots: int = 256,
    slot_size: int = 4096,
    *,
    spin_us: float | None = None,
    backlog: int = 16,
) -> Listener:
    """Offer channels to unrelated processes at a Unix socket; each :func:`connect` gets its own.

    ``slots``, ``slot_size`` and ``spin_us`` as in :func:`create`. A socket file that nobody listens
    at any more is replaced. Who may connect is a matter of the file's rights and folder. Raises
    InvalidArgument, and OSError when the path cannot be used.
    """
    return Listener(path, slots, slot_size, spin_us, backlog)


def connect(path: Path, timeout: float | None = None, *, spin_us: float | None = None) -> Channel:
    """Our end of a new channel to the process that listens at ``path``.

    Waits up to ``timeout`` seconds, also for somebody to listen there at all; None waits for ever,
    0 tries once. Raises WaitTimeout, PeerDied when the other process hangs up, InvalidArgument when
    it does not speak this protocol.
    """
    timeout = check_timeout(timeout)
    deadline = None if timeout is None else time.monotonic() + timeout
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        while True:
            try:
                sock.connect(os.fspath(path))
                break
            except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
                if deadline is not None and time.monotonic() >= deadline:
                    raise WaitTimeout(f"nobody listens at {os.fspath(path)}") from None
                time.sleep(0.01)
        left = PATIENCE if deadline is None else max(PATIENCE, deadline - time.monotonic())
        sock.settimeout(left)
        end = receive_end(sock, spin_us=spin_us, watch=True)
        end.attach()
    except TimeoutError as error:
        sock.close()
        if isinstance(error, WaitTimeout):
            raise
        raise WaitTimeout(f"the process at {os.fspath(path)} did not answer") from None
    except ConnectionError as error:
        sock.close()
        if isinstance(error, PeerDied):
            raise
        raise PeerDied(f"the process at {os.fspath(path)} hung up: {error}") from error
    except BaseException:
        sock.close()
        raise
    return end
