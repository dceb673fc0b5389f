"""A started peer: what it says, words to it, and its end by its own process id."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

import pytest

from tests.interop.cache import Program

SHOWN_LINES = 40


class Process:
    """Starts `program` with `arguments`. A context manager: leaving it ends the process.

    All that it prints, to both outputs, is kept as text without carriage returns.
    """

    def __init__(self, program: Program, arguments: Sequence[str | Path] = ()) -> None:
        self.name = program.name
        self._text = ""
        self._ended = False
        self._news = threading.Condition()
        # To a terminal a program prints at once; to a pipe, when its buffer is full.
        self._terminal, its_end = os.openpty()
        self._process = subprocess.Popen(
            [*program.command, *map(str, arguments)],
            env={**os.environ, **program.env},
            stdin=subprocess.PIPE,
            stdout=its_end,
            stderr=its_end,
            bufsize=0,
        )
        os.close(its_end)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def _read(self) -> None:
        # EIO is how a terminal ends.
        with contextlib.suppress(OSError):
            while chunk := os.read(self._terminal, 1 << 16):
                with self._news:
                    self._text += chunk.decode(errors="replace").replace("\r", "")
                    self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def output(self) -> str:
        """What it has printed so far."""
        with self._news:
            return self._text

    def wait_for(self, pattern: str, timeout: float = 60, *, start: int = 0) -> re.Match[str]:
        """The first match of the regular expression in its output from character `start` on.

        Fails the test when the process ends without having printed it, or after `timeout` seconds.
        """
        wanted = re.compile(pattern, re.MULTILINE)
        limit = time.monotonic() + timeout
        with self._news:
            while True:
                found = wanted.search(self._text, start)
                if found:
                    return found
                left = limit - time.monotonic()
                if self._ended or left <= 0:
                    why = "ended" if self._ended else f"{timeout:g} s passed"
                    self.fail(f"{why} without {pattern!r}")
                self._news.wait(left)

    def finish(self, timeout: float = 60) -> str:
        """Wait for its end. Returns all it printed; fails the test unless its exit code is 0."""
        code = self.wait(timeout)
        if code != 0:
            self.fail(f"ended with code {code}")
        return self.output()

    def wait(self, timeout: float = 60) -> int:
        """Its exit code. Fails the test when it is not at its end after `timeout` seconds."""
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.fail(f"still running after {timeout:g} s")
        self._reader.join(timeout)
        return code

    def send(self, line: str) -> None:
        """One line to its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")

    def ask(self, line: str, pattern: str, timeout: float = 60) -> re.Match[str]:
        """Send `line`; the first match of `pattern` in what it prints from then on."""
        start = len(self.output())
        self.send(line)
        return self.wait_for(pattern, timeout, start=start)

    def fail(self, why: str) -> NoReturn:
        """Fail the test, showing the last lines that the process printed."""
        lines = self.output().splitlines()[-SHOWN_LINES:]
        shown = "\n".join(f"    {line}" for line in lines)
        pytest.fail(f"{self.name}: {why}; the last it printed:\n{shown}", pytrace=False)

    def stop(self, timeout: float = 10) -> None:
        """End it: politely, and after `timeout` seconds for good."""
        if self.running:
            self._process.terminate()
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._reader.join()
        os.close(self._terminal)
        assert self._process.stdin is not None
        self._process.stdin.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def _listens(path: Path) -> bool:
    # The file is there a moment earlier, and connecting just to see would use up a connection.
    for line in Path("/proc/net/unix").read_text().splitlines():
        words = line.split(maxsplit=7)
        if words[7:] == [str(path)] and words[3] == "00010000":  # __SO_ACCEPTCON
            return True
    return False


class Daemon(Process):
    """A peer that serves: it is there when it listens on its `sockets`, and stays until `stop`.

    A socket left over from before is removed first. Fails the test when the process ends, or does
    not listen within `timeout` seconds.
    """

    def __init__(
        self,
        program: Program,
        arguments: Sequence[str | Path] = (),
        *,
        sockets: Sequence[Path] = (),
        timeout: float = 60,
    ) -> None:
        for path in sockets:
            path.unlink(missing_ok=True)
        super().__init__(program, arguments)
        limit = time.monotonic() + timeout
        try:
            while not all(map(_listens, sockets)):
                if not self.running:
                    self.fail(f"ended with code {self.wait()} before it listened")
                if time.monotonic() > limit:
                    self.fail(f"does not listen after {timeout:g} s")
                time.sleep(0.01)
        except BaseException:
            self.stop()
            raise
