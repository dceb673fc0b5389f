"""Child processes that work at the other end of a ring: started, watched, never left behind."""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from virtring.cli.cores import pin
from virtring.cli.failure import Failed, one_line

#: Spawned, not forked: numpy may have started threads, which a fork does not survive.
CONTEXT = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Trouble:
    """Sent in place of an answer by a child that cannot go on."""

    text: str


class Child:
    """A process that runs ``target(connection, *args)``; ``name`` says what it is in messages.

    A context manager: at its end the process is gone, whatever happened. ``cpu`` pins it.
    """

    def __init__(
        self, name: str, target: Callable[..., None], *args: Any, cpu: int | None = None
    ) -> None:
        self.name = name
        self.connection, theirs = CONTEXT.Pipe()
        self.process = CONTEXT.Process(
            target=_serve, args=(name, cpu, theirs, target, args), name=name, daemon=True
        )
        # The tracker's start would unblock SIGINT, so it comes before we block it.
        resource_tracker.ensure_running()
        # Ctrl-C is the parent's business; a child would only add its traceback.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            theirs.close()

    @property
    def alive(self) -> bool:
        return self.process.is_alive()

    def send(self, message: object) -> None:
        """Raises Failed when the process is gone."""
        try:
            self.connection.send(message)
        except OSError:
            raise self.failure() from None

    def receive(self, timeout: float = 30.0) -> Any:
        """Its next message; raises Failed when it died, reported trouble or took too long."""
        ready = wait([self.connection, self.process.sentinel], timeout)
        if not ready:
            raise Failed(f"the {self.name} process (pid {self.process.pid}) does not answer")
        # What it sent before it died comes first.
        if self.connection.poll(0):
            with contextlib.suppress(EOFError, OSError):
                message = self.connection.recv()
                if isinstance(message, Trouble):
                    raise Failed(f"{self.name}: {message.text}")
                return message
        raise self.failure()

    def failure(self) -> Failed:
        """How it ended, as the error to raise."""
        self.process.join(1.0)
        code = self.process.exitcode
        if code is None:
            how = "does not answer any more"
        elif code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        else:
            how = f"ended with exit code {code}"
        return Failed(f"the {self.name} process (pid {self.process.pid}) {how}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A closed connection is the child's sign to leave by itself.
        self.connection.close()
        if kind is None:
            self.process.join(2.0)
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.process.close()


def _serve(
    name: str, cpu: int | None, connection: Connection, target: Callable[..., None], args: Any
) -> None:
    """What the child runs: the target, with its errors sent to the parent as one line."""
    # The parent ends us by closing the connection or by SIGKILL.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(f"vr-{name}"[:15])
    try:
        pin(cpu)
        target(connection, *args)
    except (EOFError, BrokenPipeError):
        os._exit(1)     # the parent is gone: nobody to tell
    except BaseException as error:
        text = str(error) if isinstance(error, Failed) else one_line(error)
        with contextlib.suppress(OSError):
            connection.send(Trouble(text))
        connection.close()
        os._exit(1)
