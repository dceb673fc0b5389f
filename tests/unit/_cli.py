"""Runs the command line as a user does: in a process of its own."""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import virtring

ROOT = Path(virtring.__file__).parents[1]
COMMAND = (sys.executable, "-m", "virtring")


def environment(*first: Path) -> dict[str, str]:
    """With the package under test, and ``first`` before it on the path."""
    path = os.pathsep.join(str(folder) for folder in (*first, ROOT))
    return {**os.environ, "PYTHONPATH": path, "COLUMNS": "100", "PYTHONWARNINGS": "error"}


def run(
    *args: object, first: tuple[Path, ...] = (), limit: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``virtring`` to its end; ``limit``: bytes that a file may have."""
    return subprocess.run(
        [*COMMAND, *map(str, args)],
        capture_output=True, text=True, timeout=60, env=environment(*first), check=False,
        preexec_fn=None if limit is None else lambda: resource.setrlimit(
            resource.RLIMIT_FSIZE, (limit, limit)
        ),
    )


def start(*args: object) -> subprocess.Popen[str]:
    """Start ``virtring`` and go on."""
    return subprocess.Popen(
        [*COMMAND, *map(str, args)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )


def children(pid: int) -> dict[str, int]:
    """Names and pids of a process's children."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            try:
                found[Path(f"/proc/{child}/comm").read_text().strip()] = int(child)
            except OSError:
                continue        # ended meanwhile
    return found


def wait_child(process: "subprocess.Popen[str]", name: str, seconds: float = 20.0) -> int:
    """The pid of the child called ``name``, once there is one."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"virtring ended early: {process.communicate()}")
        if name in (found := children(process.pid)):
            return found[name]
        time.sleep(0.01)
    raise AssertionError(f"no child {name} after {seconds} s")


def gone(pid: int, seconds: float = 5.0) -> bool:
    """Whether the process ends within that time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


def one_line(text: str) -> str:
    """What was said on stderr: exactly one line, by virtring."""
    assert text.startswith("virtring: "), text
    assert text.endswith("\n"), text
    assert text.count("\n") == 1, text
    return text
