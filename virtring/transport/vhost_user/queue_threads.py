"""A thread for each ring of a device whose work is done in C, so that queues go on side by side.

The threads run between two messages only: :meth:`QueueThreads.quiet` ends them first. So a message
finds every ring, and the memory, as if there were no threads.
"""

import logging
import select
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

from virtring.device import Device
from virtring.device.burst import BurstWorker, Ended, QueueLoop
from virtring.errors import QueueBroken
from virtring.queue import DeviceQueue, EventFd
from virtring.transport.unix import ProtocolError
from virtring.transport.vhost_user.vring import Vring
from virtring.transport.vhost_user.watched import WatchedLoop, WatchedQueue

log = logging.getLogger(__name__)


def check_waitable(fd: int) -> None:
    """ProtocolError for a descriptor that nobody can wait for, such as a file's."""
    with select.epoll() as poller:
        try:
            poller.register(fd, select.EPOLLIN)
        except OSError as error:
            raise ProtocolError(f"nothing to wait for, the kick of a ring: {error}") from error


class QueueThreads:
    """The threads of one session. ``poll``: look at the rings all the time.

    :meth:`watch`, :meth:`unwatch` and :meth:`close` are for the thread of the session.
    """

    def __init__(self, device: Device, poll: bool) -> None:
        self.device = device
        self.poll = poll
        self.wake = EventFd()
        self._watched: dict[int, Vring] = {}
        self._running: list[tuple[QueueLoop, Thread]] = []
        #: Rings whose kicks can be waited for no more.
        self._deaf: set[int] = set()

    def watch(self, vring: Vring) -> bool:
        """Serve a ring from the end of :meth:`quiet` on; False when it takes another way."""
        if self.device.burst_worker(vring.index) is None:
            return False
        if vring.kick >= 0:
            check_waitable(vring.kick)
        self._watched[vring.index] = vring
        self._deaf.discard(vring.index)
        return True

    def unwatch(self, vring: Vring) -> None:
        """Its kick descriptor will be closed."""
        self._watched.pop(vring.index, None)

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """No thread runs inside; those that are wanted start at the end."""
        self._stop()
        yield
        self._start()

    def close(self) -> None:
        """End the threads. Again is fine."""
        self._watched.clear()
        self._stop()
        self.wake.close()

    def _stop(self) -> None:
        if not self._running:
            return
        for loop, _ in self._running:
            loop.stop()
        self.wake.signal()
        for _, thread in self._running:
            thread.join()
        self.wake.clear()
        self._running.clear()

    def _start(self) -> None:
        for vring in self._watched.values():
            queue = self.device.queues[vring.index]
            worker = self.device.burst_worker(vring.index)
            if (
                queue is None
                or worker is None
                or queue.is_broken
                or vring.index in self._deaf
                or not (vring.started and vring.enabled and self.device.core.running)
            ):
                continue
            loop = self._loop(queue, worker)
            thread = Thread(
                target=self._serve, args=(loop, worker, vring), name=f"virtring {queue.name}"
            )
            self._running.append((loop, thread))
            thread.start()

    def _loop(self, queue: DeviceQueue, worker: BurstWorker) -> QueueLoop:
        if isinstance(queue, WatchedQueue):
            return WatchedLoop(queue, worker, self.wake.fileno(), poll=self.poll)
        return QueueLoop(queue, worker, self.wake.fileno(), poll=self.poll)

    def _serve(self, loop: QueueLoop, worker: BurstWorker, vring: Vring) -> None:
        call = vring.call
        try:
            while (ended := loop.run(vring.kick, call)) is Ended.MUTE:
                log.warning("ring %d: the front end cannot be told", vring.index)
                call = -1
        except QueueBroken as error:
            self.device.needs_reset(str(error))
        except Exception as error:
            log.exception("ring %d", vring.index)
            self.device.needs_reset(repr(error))
        else:
            if ended is Ended.DEAF:
                log.warning("ring %d: its kick descriptor cannot be read", vring.index)
                self._deaf.add(vring.index)
            elif ended is Ended.MALFORMED:
                self.device.needs_reset(worker.complaint)
