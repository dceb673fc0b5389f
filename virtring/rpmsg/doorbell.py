"""Sleeping until something may have changed, for any number of threads and tasks."""

import asyncio
import threading
import time

from virtring.queue.notify import EventFd


class Doorbell:
    """One of the sleepers waits for ``event``; when it wakes up, all do and look again.

    Without an event only :meth:`ring` wakes. The order is: take :attr:`rings`, look, and if there
    is nothing, wait with the number taken; a ring in between is then not missed.
    """

    def __init__(self, event: EventFd | None) -> None:
        self.event = event
        self._cond = threading.Condition()
        self._rings = 0
        self._leader = False
        self._tasks: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []

    @property
    def rings(self) -> int:
        """Changes whenever somebody rings."""
        return self._rings

    def ring(self) -> None:
        """Wake all sleepers."""
        with self._cond:
            if self._leader and self.event is not None and not self.event.closed:
                self.event.signal()
            self._wake()

    def _wake(self) -> None:
        self._rings += 1
        self._cond.notify_all()
        tasks, self._tasks = self._tasks, []
        for loop, future in tasks:
            if not loop.is_closed():
                loop.call_soon_threadsafe(_finish, future)

    def wait(self, seen: int, timeout: float | None) -> None:
        """Sleep until it rings, the event is signalled, or ``timeout`` seconds are over."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._cond:
            while self._rings == seen:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return
                if self.event is None or self._leader:
                    self._cond.wait(left)
                    continue
                self._leader = True
                self._cond.release()
                try:
                    self.event.wait(left)
                finally:
                    self._cond.acquire()
                    self._leader = False
                    # Also when nothing came: one of the others has to wait for the event now.
                    self._wake()

    async def wait_async(self, seen: int, timeout: float | None) -> None:
        """:meth:`wait` for a task of the running loop."""
        loop = asyncio.get_running_loop()
        with self._cond:
            if self._rings != seen:
                return
            lead = self.event is not None and not self._leader
            if lead:
                self._leader = True
            else:
                future: asyncio.Future[None] = loop.create_future()
                self._tasks.append((loop, future))
        if not lead:
            try:
                async with asyncio.timeout(timeout):
                    await future
            except TimeoutError:
                pass
            finally:
                with self._cond:
                    self._tasks = [entry for entry in self._tasks if entry[1] is not future]
            return
        assert self.event is not None
        try:
            await self.event.wait_async(timeout)
        finally:
            with self._cond:
                self._leader = False
                self._wake()


def _finish(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
