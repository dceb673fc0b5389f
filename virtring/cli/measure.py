"""What is measured and what comes out: settings, timed windows, records."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from virtring.cli.failure import Failed
from virtring.spec.features import Feature

#: Timed windows a measurement; the figure is their median.
WINDOWS = 7
#: An untimed window comes first; it is this part of a timed one.
WARM_UP = 0.25
#: Guest memory a measurement may take, bytes.
MEMORY_LIMIT = 2 << 30

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """What the options said. ``batch`` None means the mode's own default."""

    size: int = 64
    seconds: float = 0.5
    batch: int | None = None
    features: Feature = Feature.VERSION_1 | Feature.EVENT_IDX
    cores: tuple[int, ...] = (0,)

    @property
    def window(self) -> float:
        """Seconds a timed window."""
        return self.seconds / WINDOWS

    @property
    def here(self) -> int | None:
        """The CPU of this process in runs of two processes."""
        return self.cores[0] if len(self.cores) > 1 else None

    @property
    def there(self) -> int | None:
        """The CPU of the other process."""
        return self.cores[1] if len(self.cores) > 1 else None


@dataclass
class Result:
    """One measurement. ``payload``: "passed" (by reference, contents stay where they are) or
    "copied". ``ns``: ns a buffer, one a window. ``verified``: buffers whose contents were compared.
    """

    ring: str
    mode: str
    payload: str
    batch: int
    size: int
    ns: list[float] = field(default_factory=list)
    seconds: float = 0.0
    buffers: int = 0
    verified: int = 0

    def add(self, seconds: float, buffers: int) -> None:
        """A timed window is over."""
        if buffers == 0:
            raise Failed(
                f"{self.ring} {self.mode}: no buffer went through in {seconds:.3f} s; the machine"
                " is too busy, or --seconds too short"
            )
        self.ns.append(seconds * 1e9 / buffers)
        self.seconds += seconds
        self.buffers += buffers

    @property
    def median(self) -> float:
        """ns a buffer."""
        return statistics.median(self.ns)

    def record(self) -> dict[str, Any]:
        """What ``--json`` writes of it."""
        median = self.median
        return {
            "ring": self.ring,
            "mode": self.mode,
            "payload": self.payload,
            "batch": self.batch,
            "size": self.size,
            "ns_per_buffer": median,
            "ns_min": min(self.ns),
            "ns_max": max(self.ns),
            "buffers_per_second": 1e9 / median,
            "bytes_per_second": self.size * 1e9 / median,
            "windows": len(self.ns),
            "seconds": self.seconds,
            "buffers": self.buffers,
            "verified": self.verified,
        }


def ring_size(entries: int) -> int:
    """Entries of a ring that takes ``entries`` at once: a power of two, 256 or more."""
    return max(256, 1 << (entries - 1).bit_length())


def memory_size(count: int, size: int, ring: int) -> int:
    """Bytes of guest memory for ``count`` buffers and a ring; Failed when it is too much."""
    total = count * (-(-size // 64) * 64) + ring * 32 + (1 << 16)
    if total > MEMORY_LIMIT:
        raise Failed(
            f"{count} buffers of {size} bytes are more than {MEMORY_LIMIT >> 30} GiB;"
            " choose a smaller --size or --batch"
        )
    return -(-total // 4096) * 4096


def timed(
    result: Result, window: float, run: Callable[[float], int], check: Callable[[], int]
) -> None:
    """Windows of ``run(end of the window) -> buffers``, with a check of the data after each."""
    run(time.perf_counter() + window * WARM_UP)
    result.verified += check()
    for _ in range(WINDOWS):
        start = time.perf_counter()
        buffers = run(start + window)
        result.add(time.perf_counter() - start, buffers)
        result.verified += check()
