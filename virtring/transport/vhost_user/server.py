"""Serves a device to vhost-user front ends on a Unix socket, one after another."""

import logging
import os
import selectors
import socket
import stat
from collections.abc import Callable
from functools import partial

from virtring.device import Device
from virtring.errors import InvalidArgument, MemoryInUse
from virtring.queue import EventFd
from virtring.transport.vhost_user.backend import BackEnd
from virtring.transport.vhost_user.connection import Connection
from virtring.transport.vhost_user.message import ProtocolError
from virtring.transport.vhost_user.vring import Vring, drain

log = logging.getLogger(__name__)

#: Looks at the rings between two looks at the descriptors, when polling.
SPINS = 256


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


class VhostUserServer:
    """One device behind one socket. :meth:`run` serves until :meth:`stop`.

    device: begins anew for every front end. path: of the socket, made here and removed by close().
    poll: look at the rings all the time instead of waiting for kicks; takes a whole CPU.
    """

    def __init__(self, device: Device, path: str, *, poll: bool = False) -> None:
        self.device = device
        self.path = path
        self.poll = poll
        self.sessions = 0
        self._listener = listen(path)
        self._stop = EventFd()

    def stop(self) -> None:
        """Make :meth:`run` return soon; from any thread or a signal handler."""
        self._stop.signal()

    def close(self) -> None:
        """Stop listening and remove the socket's path. Again is fine."""
        if self._listener.fileno() >= 0:
            self._listener.close()
            os.unlink(self.path)
            self._stop.close()

    def run(self) -> None:
        """Serve front ends, one at a time, until :meth:`stop`. A bad one only ends its session."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._stop, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select()}
                if self._stop in ready:
                    return
                sock, _ = self._listener.accept()
                self.sessions += 1
                if not self.serve(sock):
                    return

    def serve(self, sock: socket.socket) -> bool:
        """One session over a connected socket, which is closed; False when stopped meanwhile."""
        session = Session(self.device, sock, self._stop, self.poll)
        log.info("front end connected")
        try:
            return session.run()
        except (ProtocolError, MemoryInUse) as error:
            log.error("session ended: %s", error)
        except ConnectionError as error:
            log.info("session ended: %s", error)
        finally:
            session.close()
            log.info("front end gone")
        return True


class Session:
    """Waits for messages and kicks of one front end."""

    def __init__(self, device: Device, sock: socket.socket, stop: EventFd, poll: bool) -> None:
        self.device = device
        self.stop = stop
        self.poll = poll
        self.selector = selectors.DefaultSelector()
        self.kicks: dict[int, int] = {}
        self.backend = BackEnd(device, Connection(sock), self._watch, self._unwatch)
        self.selector.register(sock, selectors.EVENT_READ, self._message)
        self.selector.register(stop, selectors.EVENT_READ, self._stopped)
        self.open = True
        self.stopping = False

    def close(self) -> None:
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
        """Look at the running rings many times; False when there is none."""
        running = [
            (vring.index, queue)
            for vring in self.backend.vrings
            if vring.started and vring.enabled
            and (queue := self.device.queues[vring.index]) is not None
            and not queue.is_broken
        ]
        if not running:
            return False
        for _ in range(SPINS):
            for index, queue in running:
                if queue.more_available:
                    self.device.kick(index)
        return True

    def _watch(self, vring: Vring) -> None:
        if vring.kick >= 0 and vring.index not in self.kicks:
            self.kicks[vring.index] = vring.kick
            self.selector.register(vring.kick, selectors.EVENT_READ, partial(self._kicked, vring))

    def _unwatch(self, vring: Vring) -> None:
        # While the descriptor is open: epoll goes on reporting a file that the peer has open too.
        fd = self.kicks.pop(vring.index, None)
        if fd is not None:
            self.selector.unregister(fd)

    def _kicked(self, vring: Vring) -> None:
        # A message handled just before may have taken the descriptor away.
        if vring.index in self.kicks:
            drain(vring.kick)
            self.device.kick(vring.index)
