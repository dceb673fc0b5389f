"""What the ports of a served console are connected to: this terminal, or a Unix socket each."""

import os
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from select import POLLIN, poll
from threading import Thread

from virtring.devices.console_fd import FdBackend
from virtring.devices.console_port import Port
from virtring.queue import EventFd
from virtring.transport.unix import listen


@contextmanager
def on_stdio(port: Port) -> Iterator[None]:
    """Standard input and output are the port's. A terminal passes keys on as they are pressed."""
    fds = (0, 1)
    blocking = [os.get_blocking(fd) for fd in fds]
    terminal = termios.tcgetattr(fds[0]) if os.isatty(fds[0]) else None
    if terminal is not None:
        mode = termios.tcgetattr(fds[0])
        # Ctrl-C and its kind still are for this program, and its own lines still begin at the left.
        mode[3] &= ~(termios.ECHO | termios.ICANON)
        termios.tcsetattr(fds[0], termios.TCSADRAIN, mode)
    backend = FdBackend(port, *fds)
    try:
        yield
    finally:
        backend.close()
        if terminal is not None:
            termios.tcsetattr(fds[0], termios.TCSADRAIN, terminal)
        # Others have them open too, such as the shell.
        for fd, value in zip(fds, blocking, strict=True):
            os.set_blocking(fd, value)


class SocketWire:
    """A port at a Unix socket: whoever connects has it until it closes, then the next one.

    While nobody is connected the port is closed, but for one that is a console: what is written to
    that then goes nowhere. path: of the socket, made here and removed by close(). Raises
    InvalidArgument as ``listen``.
    """

    def __init__(self, port: Port, path: Path) -> None:
        self.port = port
        self.path = path
        self._listener = listen(str(path))
        self._stopping = EventFd()
        self._thread = Thread(target=self._run, name=f"console {path.name}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening; the connection ends."""
        self._stopping.signal()
        self._thread.join()
        self._listener.close()
        self._stopping.close()
        with suppress(FileNotFoundError):
            self.path.unlink()

    def _wait(self, fd: int) -> bool:
        """Until ``fd`` is readable; False when it is time to stop."""
        waiting = poll()
        waiting.register(fd, POLLIN)
        waiting.register(self._stopping, POLLIN)
        return self._stopping.fileno() not in dict(waiting.poll())

    def _run(self) -> None:
        going_on = True
        while going_on and self._wait(self._listener.fileno()):
            sock, _ = self._listener.accept()
            ended = EventFd()
            backend = FdBackend(self.port, sock.fileno(), sock.fileno(), on_end=ended.signal)
            self.port.open()
            going_on = self._wait(ended.fileno())
            backend.close()
            ended.close()
            sock.close()
            if self.port.console:
                self.port.open()
            else:
                self.port.close()


@contextmanager
def on_socket(port: Port, path: Path) -> Iterator[None]:
    """The port at a Unix socket; its console has it already."""
    wire = SocketWire(port, path)
    try:
        yield
    finally:
        wire.close()
