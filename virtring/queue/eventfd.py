"""Eventfds: how one side of a queue wakes the other, between threads and processes."""

import array
import asyncio
import contextlib
import fcntl
import math
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from multiprocessing import reduction
from types import TracebackType
from typing import Any, Self

from virtring.errors import InvalidArgument, PeerDied, QueueBusy, QueueClosed

#: What goes over a socket beside the descriptor, so that nothing else is taken for one.
MAGIC = b"VReventf"
#: More than the one that is expected, so that extra ones are seen (and closed).
_FD_SPACE = socket.CMSG_SPACE(4 * array.array("i").itemsize)
#: The longest single poll(), whose milliseconds are a C int.
_LONGEST = 86400.0


def check_timeout(timeout: float | None) -> float | None:
    """``timeout`` as seconds, None for ever; InvalidArgument when it is negative or no number."""
    if timeout is None or (type(timeout) is float and 0 <= timeout < math.inf):
        return timeout
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or math.isnan(timeout):
        raise InvalidArgument(f"timeout {timeout!r}: it takes seconds or None")
    if timeout < 0:
        raise InvalidArgument(f"timeout {timeout!r}: it takes 0 or more seconds, or None")
    return None if math.isinf(timeout) else float(timeout)


class EventFd:
    """A counter in the kernel that one side signals and the other waits for (``eventfd(2)``).

    The kick or the call of a queue. Calling an object signals it, so it can stand as
    ``notify=kick`` of a :class:`Virtqueue` and as ``call=call`` of a :class:`DeviceQueue`. Any
    number may signal; only one at a time should wait, for a wake-up goes to a single waiter.

    Reaches another process by fork, as an argument of a spawned ``multiprocessing.Process``, over a
    ``multiprocessing`` connection, or with :meth:`send` over a Unix socket. Close-on-exec and
    non-blocking.
    """

    def __init__(self) -> None:
        self._take(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))

    def _take(self, fd: int) -> None:
        self._fd = fd
        self._closed = False
        self._waiters = 0
        self._reader: asyncio.Future[None] | None = None
        self._lock = threading.Lock()

    @classmethod
    def from_fd(cls, fd: int) -> Self:
        """An object around a duplicate of ``fd``, which stays the caller's.

        Raises InvalidArgument when it is not an open eventfd. It is made non-blocking, which holds
        for everybody who shares it.
        """
        try:
            own = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)
        except (OSError, TypeError, ValueError, OverflowError) as error:
            raise InvalidArgument(f"{fd!r} is not an open file descriptor: {error}") from None
        try:
            kind = os.readlink(f"/proc/self/fd/{own}")
        except OSError:  # no /proc: the caller's word has to do
            kind = "anon_inode:[eventfd]"
        if kind != "anon_inode:[eventfd]":
            os.close(own)
            raise InvalidArgument(f"file descriptor {fd} is {kind}, not an eventfd")
        os.set_blocking(own, False)
        self = cls.__new__(cls)
        self._take(own)
        return self

    # -- signals -------------------------------------------------------------------------------

    def signal(self) -> None:
        """Add one to the counter, which wakes the waiter. Never blocks. QueueClosed when closed."""
        # A counter at its end, 2**64 signals that nobody took, is signalled already.
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self.fileno(), 1)

    def __call__(self, *_queue: object) -> bool:
        """:meth:`signal`; takes the queue that ``notify`` and ``call`` get, and gives True."""
        self.signal()
        return True

    def clear(self) -> int:
        """Set the counter to 0; how many signals there were. Never blocks."""
        try:
            return os.eventfd_read(self.fileno())
        except BlockingIOError:
            return 0

    # -- waits ---------------------------------------------------------------------------------

    def wait(self, timeout: float | None = None) -> bool:
        """Block until there is a signal, and clear it; False when ``timeout`` seconds ran out.

        None waits for ever, 0 only looks; fractions are rounded up to a millisecond. The GIL is
        released. Raises QueueClosed when it is closed, also by another thread meanwhile.
        """
        timeout = check_timeout(timeout)
        if self.clear():
            return True
        if timeout == 0:
            return False
        deadline = None if timeout is None else time.monotonic() + timeout
        self._enter()
        try:
            poll = select.poll()
            poll.register(self._fd, select.POLLIN)
            while True:
                left = _LONGEST if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    return False
                ready = poll.poll(math.ceil(min(left, _LONGEST) * 1000))
                # Somebody else may have taken the signal: then there is nothing to clear.
                if ready and self.clear():
                    return True
        finally:
            self._leave()

    async def wait_async(self, timeout: float | None = None) -> bool:
        """:meth:`wait` for a task of the running asyncio loop; other tasks go on meanwhile.

        Only one task can wait at a time: QueueBusy for a second one. A cancelled wait takes no
        signal.
        """
        timeout = check_timeout(timeout)
        if self.clear():
            return True
        if timeout == 0:
            return False
        if self._reader is not None:
            raise QueueBusy("another task waits for this eventfd already")
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        self._enter()
        try:
            while True:
                try:
                    async with asyncio.timeout_at(deadline):
                        await self._readable(loop)
                except TimeoutError:
                    return bool(self.clear())
                if self.clear():
                    return True
        finally:
            self._leave()

    async def _readable(self, loop: asyncio.AbstractEventLoop) -> None:
        reader = self._reader = loop.create_future()

        def wake() -> None:
            # Once: the signal is only taken when the task runs, and until then it stays readable.
            loop.remove_reader(self._fd)
            if not reader.done():
                reader.set_result(None)

        loop.add_reader(self._fd, wake)
        try:
            await reader
        finally:
            loop.remove_reader(self._fd)
            self._reader = None

    def _enter(self) -> None:
        with self._lock:
            self.fileno()
            self._waiters += 1

    def _leave(self) -> None:
        with self._lock:
            self._waiters -= 1
            if self._closed and self._waiters == 0:
                os.close(self._fd)

    # -- its life ------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    def fileno(self) -> int:
        """The file descriptor, for ``select`` and the like; readable while there is a signal."""
        if self._closed:
            raise QueueClosed("the eventfd is closed")
        return self._fd

    def close(self) -> None:
        """Close the descriptor; again is fine. Waits in threads and tasks raise QueueClosed."""
        with self._lock:
            if self._closed:
                return
            if self._waiters:
                # Woken, the last of them closes it: a number in use must not be given away.
                self.signal()
                self._closed = True
            else:
                self._closed = True
                os.close(self._fd)

    def __enter__(self) -> Self:
        self.fileno()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # An __init__ that failed leaves no descriptor; one with waiters is not garbage.
        if not getattr(self, "_closed", True):
            self._closed = True
            os.close(self._fd)

    def __repr__(self) -> str:
        return f"<EventFd {'closed' if self._closed else f'fd {self._fd}'}>"

    # -- to another process --------------------------------------------------------------------

    def __reduce__(self) -> tuple[Callable[[Any], "EventFd"], tuple[Any]]:
        return _unpickle, (reduction.DupFd(self.fileno()),)

    def send(self, sock: socket.socket) -> None:
        """Send it over a blocking AF_UNIX socket, for :meth:`receive` on the other end."""
        sent = socket.send_fds(sock, [MAGIC], [self.fileno()])
        if sent < len(MAGIC):
            sock.sendall(MAGIC[sent:])

    @classmethod
    def receive(cls, sock: socket.socket) -> Self:
        """What the other end sends with :meth:`send`.

        Raises PeerDied when the socket was closed, InvalidArgument for anything but one eventfd; no
        descriptor is leaked.
        """
        fds = array.array("i")
        try:
            data = b""
            while len(data) < len(MAGIC):
                data += _receive(sock, fds, len(MAGIC) - len(data))
            if data != MAGIC or len(fds) != 1:
                raise InvalidArgument(
                    f"the message is not an eventfd's: {data!r} with {len(fds)} descriptors"
                )
            return cls.from_fd(fds[0])
        finally:
            for fd in fds:
                os.close(fd)


def _receive(sock: socket.socket, fds: "array.array[int]", want: int) -> bytes:
    # socket.recv_fds drops its flags in Python 3.11, and the descriptors must not be inherited.
    data, ancillary, flags, _ = sock.recvmsg(want, _FD_SPACE, socket.MSG_CMSG_CLOEXEC)
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    if flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
        raise InvalidArgument("the message is longer, or has more descriptors, than an eventfd's")
    if not data:
        raise PeerDied("the socket was closed before an eventfd came")
    return data


def _unpickle(handle: Any) -> EventFd:
    fd = handle.detach()
    try:
        return EventFd.from_fd(fd)
    finally:
        os.close(fd)
