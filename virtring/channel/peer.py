"""Whether the process on the other end still lives, and sleeping without missing its death."""

import asyncio
import os
import select
import socket
import struct
import threading
from collections.abc import Callable

from virtring.errors import PeerClosed, PeerDied
from virtring.queue.eventfd import EventFd, check_timeout

#: What an end's control word says of it in its low half (0: nobody uses it yet); its process id is
#: in the high half.
OPEN, CLOSED = 1, 2
#: Added to OPEN: before it sleeps it makes every process's memory accesses orderly (membarrier(2)).
FENCES = 0x100

_CREDENTIALS = struct.Struct("3i")


class Peer:
    """The other end, by its control word and by what the kernel tells of its process.

    ``word()`` gives the control word. ``sock`` is a connected Unix socket whose other end only the
    peer has, or None: then the process is found by the id in its word. What the word says is the
    peer's own claim; a false one harms only the peer.
    """

    def __init__(self, word: Callable[[], int], sock: socket.socket | None) -> None:
        self._word = word
        self._sock = sock
        self._fds: list[tuple[int, int]] = []  # with what poll() tells an end by
        self._pidfd = -1
        self._wakers: list[Waker] = []
        self._lock = threading.Lock()  # a sender and a receiver may look at the same time
        self.dead = False
        if sock is not None:
            # Data that comes there says nothing; the end of the connection does.
            self._add(sock.fileno(), select.POLLRDHUP)
            credentials = sock.getsockopt(
                socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
            )
            # 0: it lives in another namespace of process ids.
            self._follow(_CREDENTIALS.unpack(credentials)[0])

    def _follow(self, pid: int) -> None:
        """Have the kernel tell when process ``pid`` ends."""
        if pid <= 0 or pid == os.getpid():
            return
        try:
            self._pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            self.dead = self._sock is None
            return
        except OSError:  # an old kernel, or a number that is none
            return
        self._add(self._pidfd, select.POLLIN)

    def _add(self, fd: int, events: int) -> None:
        self._fds.append((fd, events))
        for waker in self._wakers:
            waker.add(fd, events)

    def add_waker(self, waker: "Waker") -> None:
        """Have ``waker`` end its sleep when the peer dies."""
        self._wakers.append(waker)
        for fd, events in self._fds:
            waker.add(fd, events)

    def check(self) -> None:
        """Raise PeerClosed or PeerDied when the other end closed or its process is gone."""
        word = self._word()
        if word & 0xFF == CLOSED:
            raise PeerClosed("the other end of the channel was closed")
        with self._lock:
            if self._sock is None and self._pidfd < 0 and word & 0xFF == OPEN:
                self._follow(word >> 32)
            self.dead = self.dead or self._ended()
        if self.dead:
            # It may have closed in good order between the two looks.
            if self._word() & 0xFF == CLOSED:
                raise PeerClosed("the other end of the channel was closed")
            raise PeerDied("the process on the other end of the channel is gone")

    def _ended(self) -> bool:
        poll = select.poll()
        for fd, events in self._fds:
            poll.register(fd, events)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Let go of what was opened to watch it."""
        self._wakers, self._fds = [], []
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        if self._sock is not None:
            self._sock.close()


class Waker(EventFd):
    """An eventfd whose waits end with PeerDied or PeerClosed when there is no peer any more."""

    _epoll: select.epoll | None = None
    _peer: Peer
    _last_look: Callable[[], bool]

    def watch(self, peer: Peer, last_look: Callable[[], bool]) -> None:
        """Look after ``peer`` from now on; do not sleep when ``last_look()`` finds something."""
        self._last_look = last_look
        self._epoll = select.epoll()
        self._epoll.register(self.fileno(), select.EPOLLIN)
        self._peer = peer
        peer.add_waker(self)

    def add(self, fd: int, events: int) -> None:
        """End sleeps when ``fd``, a pidfd or a socket, has one of ``events`` (of ``poll``)."""
        assert self._epoll is not None
        self._epoll.register(fd, events)  # epoll's numbers are those of poll

    def wait(self, timeout: float | None = None) -> bool:
        """As :meth:`EventFd.wait`; PeerDied or PeerClosed when the peer is gone."""
        timeout = check_timeout(timeout)
        if self.clear() or self._last_look():
            return True
        self._peer.check()
        assert self._epoll is not None
        if not self._epoll.poll(timeout):
            return False
        return bool(self.clear())

    async def wait_async(self, timeout: float | None = None) -> bool:
        """As :meth:`EventFd.wait_async`; PeerDied or PeerClosed when the peer is gone."""
        timeout = check_timeout(timeout)
        if self.clear() or self._last_look():
            return True
        self._peer.check()
        assert self._epoll is not None
        loop = asyncio.get_running_loop()
        woken = loop.create_future()
        fd = self._epoll.fileno()

        def wake() -> None:
            loop.remove_reader(fd)
            if not woken.done():
                woken.set_result(None)

        loop.add_reader(fd, wake)
        try:
            async with asyncio.timeout(timeout):
                await woken
        except TimeoutError:
            return bool(self.clear())
        finally:
            loop.remove_reader(fd)
        return bool(self.clear())

    def close(self) -> None:
        """Close the eventfd and what goes with it; only while nobody waits."""
        if self._epoll is not None:
            self._epoll.close()
        super().close()
