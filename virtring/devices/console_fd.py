"""A console port on file descriptors: a socket, a pty, two pipes."""

import logging
import os
import selectors
from collections.abc import Callable
from contextlib import suppress
from threading import Lock, Thread

from virtring.devices.console_port import Port, ignore
from virtring.errors import InvalidArgument, WrongState

log = logging.getLogger(__name__)

#: Bytes read at once, and how many may wait for the driver before no more are read.
PIECE = 1 << 14
LIMIT = 1 << 16


class FdBackend:
    """Carries bytes between ``port`` and two file descriptors, in a thread of its own.

    read_fd and write_fd may be the same, either may be None; they stay the caller's and do not
    block any more. The port belongs to a console already (WrongState). When the other end closes,
    the port is closed, then on_end() called; what the driver still writes is dropped if nobody
    takes it. :meth:`close` ends it.
    """

    def __init__(
        self,
        port: Port,
        read_fd: int | None,
        write_fd: int | None,
        *,
        on_end: Callable[[], object] = ignore,
    ) -> None:
        if port.owner is None:
            raise WrongState(f"port {port.name!r} belongs to no console yet")
        for fd in (read_fd, write_fd):
            if fd is not None:
                try:
                    os.set_blocking(fd, False)
                except OSError as error:
                    raise InvalidArgument(f"file descriptor {fd}: {error.strerror}") from None
        self.port = port
        self._read_fd = read_fd
        self._write_fd = write_fd
        self._lock = Lock()
        self._output = bytearray()
        self._closing = False
        self._on_end = on_end
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        port.output = self._take
        port.on_room = self._room
        self._thread = Thread(target=self._run, name=f"console port {port.id}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop. Again is fine; not from the port's own callbacks."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
        self._ring()
        self._thread.join()
        os.close(self._bell)
        if self.port.held and self.port.owner is not None:
            self.port.release()

    def _ring(self) -> None:
        os.eventfd_write(self._bell, 1)

    # Called by the console, which must not wait.

    def _take(self, data: bytes) -> None:
        with self._lock:
            if self._write_fd is None or self._closing:
                return
            self._output += data
            if not self._write():
                self.port.hold()
                self._ring()

    def _room(self, port: Port) -> None:
        with self._lock:
            if not self._closing:
                self._ring()

    def _write(self) -> bool:
        """Write what the descriptor takes; is all gone?"""
        while self._output and self._write_fd is not None:
            try:
                count = os.write(self._write_fd, self._output)
            except BlockingIOError:
                return False
            except OSError as error:
                log.debug("console port %d: %s", self.port.id, error)
                self._write_fd = None
                self._output.clear()
            else:
                del self._output[:count]
        return True

    # The thread.

    def _run(self) -> None:
        # Not epoll, which refuses files and /dev/null.
        with selectors.PollSelector() as selector:
            selector.register(self._bell, selectors.EVENT_READ)
            watched: dict[int, int] = {}
            while not self._closing and self.port.owner is not None:
                self._watch(selector, watched)
                selector.select()
                with suppress(BlockingIOError):
                    os.eventfd_read(self._bell)
                try:
                    self._move()
                except Exception:
                    # A driver's callback runs here too; its faults are not the port's end.
                    log.exception("console port %d", self.port.id)

    def _watch(self, selector: selectors.BaseSelector, watched: dict[int, int]) -> None:
        """Wait for what can be done something about, and for nothing else."""
        wanted: dict[int, int] = {}
        with self._lock:
            if self._read_fd is not None and self.port.pending < LIMIT:
                wanted[self._read_fd] = selectors.EVENT_READ
            if self._write_fd is not None and self._output:
                wanted[self._write_fd] = wanted.get(self._write_fd, 0) | selectors.EVENT_WRITE
        for fd in watched.keys() - wanted.keys():
            selector.unregister(fd)
        for fd, events in wanted.items():
            if fd not in watched:
                selector.register(fd, events)
            elif watched[fd] != events:
                selector.modify(fd, events)
        watched.clear()
        watched.update(wanted)

    def _move(self) -> None:
        with self._lock:
            done = self._write()
        if done and self.port.held:
            self.port.release()
        if self._read_fd is None or self.port.pending >= LIMIT:
            return
        try:
            data = os.read(self._read_fd, PIECE)
        except BlockingIOError:
            return
        except OSError as error:
            # A pty whose other end is closed answers so.
            log.debug("console port %d: %s", self.port.id, error)
            data = b""
        if data:
            self.port.send(data)
        else:
            self._read_fd = None
            self.port.close()
            self._on_end()
