"""Waits, in a thread of the driver's process, for whatever the back end has to say."""

import logging
import select
import threading
from collections.abc import Callable

from virtring.queue import EventFd

log = logging.getLogger(__name__)


class Listener:
    """Calls functions when descriptors become readable or their other end goes away.

    One thread runs them all, one after another. An error in one is logged; the others go on.
    """

    def __init__(self, name: str) -> None:
        self._epoll = select.epoll()
        self._calls: dict[int, Callable[[], object]] = {}
        self._stop = EventFd()
        self._epoll.register(self._stop, select.EPOLLIN)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def add(self, fd: int, call: Callable[[], object], *, hangup: bool = False) -> None:
        """Call when ``fd`` is readable; with ``hangup`` only when the other end has closed."""
        self._calls[fd] = call
        self._epoll.register(fd, select.EPOLLRDHUP if hangup else select.EPOLLIN)

    def remove(self, fd: int) -> None:
        """Before ``fd`` is closed. Again is fine."""
        if self._calls.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def close(self) -> None:
        """End the thread. Again is fine, and so is a call from the thread itself."""
        if self._stop.closed:
            return
        self._stop.signal()
        if self._thread is not threading.current_thread():
            self._thread.join()
            self._stop.close()
            self._epoll.close()

    def _run(self) -> None:
        stop = self._stop.fileno()
        while True:
            for fd, _ in self._epoll.poll():
                if fd == stop:
                    return
                # It may have been removed since.
                call = self._calls.get(fd)
                if call is None:
                    continue
                try:
                    call()
                except Exception:
                    log.exception("%s: a callback failed", self._thread.name)
