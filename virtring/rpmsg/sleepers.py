"""Waiting for one queue: who sleeps is counted, and notifications are on while anybody does."""

import contextlib
import threading
import time
from collections.abc import Callable, Generator
from typing import TypeVar

from virtring.errors import VirtioError
from virtring.queue.notify import EventFd, Spin
from virtring.rpmsg.doorbell import Doorbell

T = TypeVar("T")
#: What to sleep with: the number of rings, and seconds or None.
Step = tuple[int, float | None]


class Sleepers:
    """The senders, or the receivers, that wait for a queue.

    ``arm()`` turns the queue's notifications on and is False when something is there already;
    ``disarm()`` turns them off; both are called under ``lock``, which owns the queue.
    """

    def __init__(
        self,
        event: EventFd | None,
        lock: threading.RLock,
        arm: Callable[[], bool],
        disarm: Callable[[], None],
    ) -> None:
        self.bell = Doorbell(event)
        self.count = 0
        self.waits = 0
        self.timeouts = 0
        self._lock = lock
        self._arm = arm
        self._disarm = disarm

    def upref_sleepers(self) -> None:
        """One more; the first turns notifications on (Linux ``rpmsg_upref_sleepers``)."""
        with self._lock:
            self.count += 1
            self.waits += 1
            if self.count == 1:
                self._arm()

    def downref_sleepers(self) -> None:
        """One less; the last turns notifications off (Linux ``rpmsg_downref_sleepers``)."""
        with self._lock:
            self.count -= 1
            if self.count == 0:
                # A queue that broke meanwhile has nothing to turn off, and says so elsewhere.
                with contextlib.suppress(VirtioError):
                    self._disarm()

    def wake(self) -> None:
        """Something may have changed. Cheap when nobody sleeps."""
        if self.count:
            self.bell.ring()

    def _steps(self, attempt: Callable[[], T], timeout: float | None) -> Generator[Step, None, T]:
        """Until ``attempt()`` gives something true, or the time is over: then what it gave last."""
        deadline = None if timeout is None else time.monotonic() + timeout
        self.upref_sleepers()
        try:
            while True:
                seen = self.bell.rings
                result = attempt()
                if result:
                    return result
                # Again each time: another sleeper that was served may have moved the queue on.
                with self._lock:
                    idle = self._arm()
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    self.timeouts += 1
                    return result
                if idle:
                    yield seen, left
        finally:
            self.downref_sleepers()

    def wait(
        self,
        attempt: Callable[[], T],
        timeout: float | None,
        spin: Spin | None = None,
        poll: Callable[[float], bool] | None = None,
    ) -> T:
        """``attempt()`` until it gives something true or ``timeout`` seconds are over.

        ``poll(microseconds)`` is tried for a while before sleeping, as ``spin`` says.
        """
        result = attempt()
        if result or timeout == 0:
            return result
        start = time.monotonic()
        if spin is not None and poll is not None:
            most = spin.us if timeout is None else min(spin.us, timeout * 1e6)
            if most and poll(most):
                result = attempt()
                if result:
                    spin.waited((time.monotonic() - start) * 1e6, slept=False)
                    return result
        left = None if timeout is None else max(0.0, start + timeout - time.monotonic())
        steps = self._steps(attempt, left)
        try:
            while True:
                self.bell.wait(*next(steps))
        except StopIteration as end:
            result = end.value
        finally:
            steps.close()
        if spin is not None and poll is not None:
            spin.waited((time.monotonic() - start) * 1e6, slept=True)
        return result

    async def wait_async(self, attempt: Callable[[], T], timeout: float | None) -> T:
        """:meth:`wait` for an asyncio task; other tasks run meanwhile."""
        result = attempt()
        if result or timeout == 0:
            return result
        steps = self._steps(attempt, timeout)
        try:
            while True:
                await self.bell.wait_async(*next(steps))
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        finally:
            steps.close()
