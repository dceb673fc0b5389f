"""Waiting for the other side of a queue: a while of busy polling, then sleep on its eventfd.

The sleep misses nothing: ask to be notified, look again, and only then sleep (virtio 1.4, 2.7.7.1
and 2.7.10.1; Linux ``virtqueue_enable_cb`` and ``vringh_notify_enable`` are the first two steps).
"""

import os
import time
from collections.abc import Generator
from typing import Protocol

from virtring.errors import InvalidArgument
from virtring.queue.device import DeviceQueue
from virtring.queue.driver import Virtqueue
from virtring.queue.eventfd import EventFd, check_timeout
from virtring.queue.spin import spin_available, spin_used
from virtring.queue.state import callbacks_on, notify_on

__all__ = [
    "EventFd",
    "Spin",
    "async_wait_available",
    "async_wait_used",
    "wait_available",
    "wait_used",
]


class Spin:
    """How long to poll before sleeping, in microseconds; adapts itself to what it meets.

    Between ``min_us`` and ``max_us``. Grows by ``factor`` when polling found something, and when a
    sleep was so short that polling for ``max_us`` would have; shrinks by it after a longer sleep.
    Polling takes a CPU from others, so ``max_us`` is 50 by default, and 0 where this process has
    only one CPU, on which the other side could not run meanwhile. ``min_us`` is 2 by default: where
    waking up takes long, a poll now and then is how a fast other side is noticed again. One object
    belongs to one waiter.
    """

    __slots__ = ("_us", "factor", "max_us", "min_us")

    def __init__(
        self, max_us: float | None = None, *, min_us: float | None = None, factor: float = 2.0
    ) -> None:
        if max_us is None:
            max_us = 50.0 if len(os.sched_getaffinity(0)) > 1 else 0.0
        if min_us is None:
            min_us = min(2.0, max_us)
        if not 0 <= min_us <= max_us <= 1e6:
            raise InvalidArgument(
                f"min_us {min_us} and max_us {max_us}: it takes 0 <= min_us <= max_us <= 1000000"
            )
        if not 1 < factor <= 100:
            raise InvalidArgument(f"factor {factor}: it takes more than 1, at most 100")
        self.max_us = float(max_us)
        self.min_us = float(min_us)
        self.factor = float(factor)
        self._us = self.max_us

    @property
    def us(self) -> float:
        """How long the next wait polls."""
        return self._us

    def waited(self, us: float, *, slept: bool) -> None:
        """Learn from a wait of ``us`` microseconds, which ended in a sleep or did not."""
        if not slept or us <= self.max_us:
            self._us = min(max(self._us, 1.0) * self.factor, self.max_us)
        else:
            shorter = self._us / self.factor
            self._us = shorter if shorter >= max(self.min_us, 0.5) else self.min_us

    def __repr__(self) -> str:
        return f"Spin({self.max_us:g}, min_us={self.min_us:g}, factor={self.factor:g})"


class _End(Protocol):
    """What the protocol needs of a side."""

    def ready(self) -> bool: ...
    def spin(self, us: float) -> bool: ...
    def arm(self) -> bool: ...
    def disarm(self) -> None: ...


class _DriverEnd:
    def __init__(self, vq: Virtqueue) -> None:
        self.vq = vq
        self.was_on = callbacks_on(vq)

    def ready(self) -> bool:
        return self.vq.more_used

    def spin(self, us: float) -> bool:
        return spin_used(self.vq, us)

    def arm(self) -> bool:
        return self.vq.enable_cb()

    def disarm(self) -> None:
        if not (self.was_on or self.vq.is_broken or self.vq.is_closed):
            self.vq.disable_cb()


class _DeviceEnd:
    def __init__(self, dq: DeviceQueue) -> None:
        self.dq = dq
        self.was_on = notify_on(dq)

    def ready(self) -> bool:
        return self.dq.more_available

    def spin(self, us: float) -> bool:
        return spin_available(self.dq, us)

    def arm(self) -> bool:
        return self.dq.enable_notify()

    def disarm(self) -> None:
        if not (self.was_on or self.dq.is_broken or self.dq.is_closed or self.dq.config is None):
            self.dq.disable_notify()


#: Yields how long to sleep at most (seconds, None for ever); its value is whether something came.
_Protocol = Generator[float | None, None, bool]


def _protocol(end: _End, timeout: float | None, spin: Spin | None) -> _Protocol:
    """The steps of a wait, for threads and tasks alike; the caller sleeps where it yields."""
    start = time.monotonic()
    deadline = None if timeout is None else start + timeout
    budget = 0.0 if spin is None else spin.us
    if timeout is not None:
        budget = min(budget, timeout * 1e6)
    if spin is not None and budget and end.spin(budget):
        spin.waited((time.monotonic() - start) * 1e6, slept=False)
        return True
    try:
        while True:
            # False from arm: something came before the other side could see that we want to know.
            found = not end.arm()
            left = None if deadline is None else deadline - time.monotonic()
            if found or (left is not None and left <= 0):
                break
            yield left
            # Woken, or timed out, or for nothing (a signal left over from before): look again.
            found = end.ready()
            if found:
                break
    finally:
        end.disarm()
    if spin is not None:
        spin.waited((time.monotonic() - start) * 1e6, slept=True)
    return found


def _check(side: object, kind: type, event: EventFd, spin: Spin | None) -> None:
    if not isinstance(side, kind):
        raise InvalidArgument(f"a {type(side).__name__} to wait on; it takes a {kind.__name__}")
    if not isinstance(event, EventFd):
        raise InvalidArgument(f"a {type(event).__name__} to sleep on; it takes an EventFd")
    if spin is not None and not isinstance(spin, Spin):
        raise InvalidArgument(f"spin is a {type(spin).__name__}; it takes a Spin or None")


def _run(protocol: _Protocol, event: EventFd) -> bool:
    try:
        while True:
            event.wait(next(protocol))
    except StopIteration as end:
        return bool(end.value)
    finally:
        protocol.close()


async def _run_async(protocol: _Protocol, event: EventFd) -> bool:
    try:
        while True:
            await event.wait_async(next(protocol))
    except StopIteration as end:
        return bool(end.value)
    finally:
        protocol.close()


def wait_used(
    vq: Virtqueue, call: EventFd, timeout: float | None = None, spin: Spin | None = None
) -> bool:
    """Wait until :meth:`Virtqueue.get_buf` has something; False when ``timeout`` seconds ran out.

    ``call`` is what the device signals, an eventfd that nobody else waits for. ``spin`` polls for
    a while before sleeping. None as ``timeout`` waits for ever, 0 only looks. The GIL is released.
    Callbacks are on during the sleep, and afterwards what they were before.

    Raises what :attr:`Virtqueue.more_used` raises: QueueBroken, QueueClosed; a sleeper learns of
    either at the next signal.
    """
    timeout = check_timeout(timeout)
    _check(vq, Virtqueue, call, spin)
    if vq.more_used:
        return True
    if timeout == 0:
        return False
    return _run(_protocol(_DriverEnd(vq), timeout, spin), call)


def wait_available(
    dq: DeviceQueue, kick: EventFd, timeout: float | None = None, spin: Spin | None = None
) -> bool:
    """Wait until :meth:`DeviceQueue.next_chain` has something; otherwise as :func:`wait_used`.

    ``kick`` is what the driver signals. Kicks are asked for during the sleep, and afterwards if
    they were before: a device that only ever waits calls :meth:`DeviceQueue.disable_notify` once.
    """
    timeout = check_timeout(timeout)
    _check(dq, DeviceQueue, kick, spin)
    if dq.more_available:
        return True
    if timeout == 0:
        return False
    return _run(_protocol(_DeviceEnd(dq), timeout, spin), kick)


async def async_wait_used(
    vq: Virtqueue, call: EventFd, timeout: float | None = None, spin: Spin | None = None
) -> bool:
    """:func:`wait_used` for an asyncio task; other tasks run while it sleeps, not in a poll."""
    timeout = check_timeout(timeout)
    _check(vq, Virtqueue, call, spin)
    if vq.more_used:
        return True
    if timeout == 0:
        return False
    return await _run_async(_protocol(_DriverEnd(vq), timeout, spin), call)


async def async_wait_available(
    dq: DeviceQueue, kick: EventFd, timeout: float | None = None, spin: Spin | None = None
) -> bool:
    """:func:`wait_available` for an asyncio task; as :func:`async_wait_used`."""
    timeout = check_timeout(timeout)
    _check(dq, DeviceQueue, kick, spin)
    if dq.more_available:
        return True
    if timeout == 0:
        return False
    return await _run_async(_protocol(_DeviceEnd(dq), timeout, spin), kick)
