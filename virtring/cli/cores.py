"""Which processor cores a measurement runs on."""

import os
from pathlib import Path

SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def _numbers(text: str) -> set[int]:
    """The CPUs that the kernel's list syntax ("0-2,5") names."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def two_cores() -> tuple[int, ...]:
    """Two CPUs we may use, on different cores if there are such; one when there is only one."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) == 1:
        return (cpus[0],)
    try:
        same_core = _numbers(Path(SIBLINGS.format(cpus[0])).read_text())
    except (OSError, ValueError):
        same_core = set()
    others = [cpu for cpu in cpus[1:] if cpu not in same_core]
    return cpus[0], (others or cpus[1:])[0]


def pin(cpu: int | None) -> None:
    """Keep this process on one CPU; None leaves it where the scheduler wants it."""
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
