"""Does a buffer cost more, in time or memory, after many others? ``--buffers 1e8`` and see.

Each line is a tenth of the run. The time is for looking at; memory is judged: after the first tenth
the process may not grow.
"""

import argparse
import gc
import os
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path
from time import perf_counter

from benchmarks.loops import EVENT_IDX, RINGS, round_trip
from virtring import Batch, BufferPool, create_pair

STEPS = 10
BATCH = 256
# Single calls take so much longer that a share of the buffers is enough.
CALLS_SHARE = 50
# What the allocators below Python may round up to. A byte lost in each buffer would be far more.
SLACK = 256 << 10


def main() -> int:
    """Run the command. Returns 0, or 1 when the memory grew."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long_run", description=__doc__)
    parser.add_argument(
        "--buffers", type=_count, default=10_000_000, help="for each ring; 1e7 by default"
    )
    parser.add_argument("--ring", choices=[*RINGS], help="by default one after the other")
    parser.add_argument("--cpu", type=int, help="pin to this core")
    options = parser.parse_args()
    if options.cpu is not None:
        os.sched_setaffinity(0, {options.cpu})
    grown = [
        name
        for ring in ([options.ring] if options.ring else RINGS)
        for name, trip, n, buffers in _runs(ring, options.buffers)
        if not _run(name, trip, n, buffers)
    ]
    if grown:
        print(f"MEMORY GREW by more than {SLACK >> 10} KiB: {', '.join(grown)}")
    return int(bool(grown))


def _count(text: str) -> int:
    value = int(float(text))
    if value < STEPS:
        raise ValueError(text)
    return value


def _runs(ring: str, buffers: int) -> Iterator[tuple[str, Callable[[], None], int, int]]:
    """What to run: its name, a trip round the ring, buffers a trip, buffers in all."""
    yield f"{ring}, batches of {BATCH}", round_trip(ring, 1024, BATCH, EVENT_IDX), BATCH, buffers
    fewer = max(STEPS, buffers // CALLS_SHARE)
    yield f"{ring}, single calls with an object as token", _calls(ring), 1, fewer


def _calls(ring: str) -> Callable[[], None]:
    driver, device = create_pair(256, packed=RINGS[ring], features=EVENT_IDX)
    buffer = BufferPool(driver.memory, 1, 64).get()
    popped = Batch(1)

    def trip() -> None:
        token = object()
        driver.add_outbuf(buffer, token)
        driver.kick_prepare()
        device.pop(popped)
        device.push(popped)
        device.need_notify()
        if driver.get_buf() != (token, 0):
            raise AssertionError("the token did not come back")

    return trip


def _run(name: str, trip: Callable[[], None], n: int, buffers: int) -> bool:
    """Run and print one; whether its memory stayed as it was."""
    times = -(-buffers // (STEPS * n))
    print(f"{name}: {STEPS * times * n:.3g} buffers")
    print(f"{'buffers so far':>16}  {'ns a buffer':>11}  {'RSS, KiB':>9}")
    gc.collect()
    figures = []
    sizes = []
    for step in range(1, STEPS + 1):
        start = perf_counter()
        for _ in repeat(None, times):
            trip()
        figures.append((perf_counter() - start) / (times * n) * 1e9)
        sizes.append(_resident())
        print(f"{step * times * n:16.4g}  {figures[-1]:11.2f}  {sizes[-1] >> 10:9}", flush=True)
    grew = sizes[-1] - sizes[0]
    print(f"last tenth / first tenth: {figures[-1] / figures[0]:.2f}; grew {grew >> 10} KiB\n")
    return grew <= SLACK


def _resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    raise SystemExit(main())
