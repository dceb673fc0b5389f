"""Serves a device to vhost-user front ends on a Unix socket, one after another."""

import selectors
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from virtring.device import Device
from virtring.errors import QueueBroken, QueueBusy, QueueClosed
from virtring.queue import EventFd, spin_any_available
from virtring.transport.unix import ProtocolError, SocketServer
from virtring.transport.vhost_user.backend import BackEnd
from virtring.transport.vhost_user.connection import Connection
from virtring.transport.vhost_user.queue_threads import QueueThreads
from virtring.transport.vhost_user.vring import Vring, drain

#: Microseconds of looking at the rings between two looks at the descriptors, when polling.
LOOK = 50.0


class VhostUserServer(SocketServer):
    """One device behind one socket. :meth:`run` serves until :meth:`stop`.

    device: begins anew for every front end. path: of the socket, made here and removed by close().
    poll: look at the rings all the time instead of waiting for kicks; takes a whole CPU, or one for
    each queue where the device's work is done in C (:meth:`Device.burst_worker`): such queues have
    a thread each.
    """

    def __init__(self, device: Device, path: str, *, poll: bool = False) -> None:
        super().__init__(path)
        self.device = device
        self.poll = poll

    def serve(self, sock: socket.socket) -> bool:
        session = Session(self.device, sock, self.stopping, self.poll)
        try:
            return session.run()
        finally:
            session.close()


class Session:
    """Waits for messages and kicks of one front end."""

    def __init__(self, device: Device, sock: socket.socket, stop: EventFd, poll: bool) -> None:
        self.device = device
        self.stop = stop
        self.poll = poll
        self.selector = selectors.DefaultSelector()
        self.kicks: dict[int, int] = {}
        self.threads = QueueThreads(device, poll)
        self.backend = BackEnd(
            device, Connection(sock), self._watch, self._unwatch, self.threads.quiet
        )
        self.selector.register(sock, selectors.EVENT_READ, self._message)
        self.selector.register(stop, selectors.EVENT_READ, self._stopped)
        self.open = True
        self.stopping = False

    def close(self) -> None:
        self.threads.close()
        self.backend.close()
        self.selector.close()

    def run(self) -> bool:
        """Until the front end closes (True) or a stop is asked for (False)."""
        while self.open:
            polled = self._look_around() if self.poll else False
            for key, _ in self.selector.select(0 if polled else None):
                call: Callable[[], object] = key.data
                call()
                if not self.open:
                    break
        return not self.stopping

    def _message(self) -> None:
        self.open = self.backend.handle() and self.open

    def _stopped(self) -> None:
        self.open = False
        self.stopping = True

    def _look_around(self) -> bool:
        """Look at the running rings for a while; False when there is none.

        Other threads can run meanwhile: with short looks between calls of ``select`` the GIL is
        free too briefly for any of them to get it, and too often for one to demand it.
        """
        running = [
            (vring.index, queue)
            for vring in self.backend.vrings
            if vring.started
            and vring.enabled
            and self.device.polled(vring.index)
            and self.device.burst_worker(vring.index) is None
            and (queue := self.device.queues[vring.index]) is not None
            and not queue.is_broken
        ]
        if not running:
            return False
        full: list[int] = []
        # A thread of the device's that is in a queue, or broke it, is found out by the next look.
        with suppress(QueueBroken, QueueBusy, QueueClosed):
            if spin_any_available([queue for _, queue in running], LOOK):
                full = [index for index, queue in running if queue.more_available]
        for index in full:
            self.device.kick(index)
        return True

    def _watch(self, vring: Vring) -> None:
        if self.threads.watch(vring):
            return
        if vring.kick >= 0 and vring.index not in self.kicks:
            try:
                self.selector.register(
                    vring.kick, selectors.EVENT_READ, partial(self._kicked, vring)
                )
            except OSError as error:
                raise ProtocolError(f"nothing to wait for, the kick of a ring: {error}") from error
            self.kicks[vring.index] = vring.kick

    def _unwatch(self, vring: Vring) -> None:
        self.threads.unwatch(vring)
        # While the descriptor is open: epoll goes on reporting a file that the peer has open too.
        fd = self.kicks.pop(vring.index, None)
        if fd is not None:
            self.selector.unregister(fd)

    def _kicked(self, vring: Vring) -> None:
        # A message handled just before may have taken the descriptor away.
        if vring.index in self.kicks:
            if not drain(vring.kick):
                self._unwatch(vring)
            self.device.kick(vring.index)
