"""What runs under callgrind: every hot path, with a mark before and after each step.

A mark is a call of ``os.getppid``, at which callgrind writes down what it counted since the last
one. Each step is counted twice, over a few calls and over more; the difference has neither the mark
nor the loop's beginning in it. Prints, as JSON, the list of what lies between the marks.
"""

import gc
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from virtring import Batch, BufferPool, Feature, GuestMemory, create_pair

PLAIN = Feature.VERSION_1
RINGS = {"split": False, "packed": True}
#: Calls of a step in the short and in the long count.
FEW, MORE = 2, 6
BATCH = 256
#: A trip of FEW and one of MORE are once round the ring.
RING = BATCH * (FEW + MORE)
SINGLE_RING = 64
# As many as the interpreter needs to settle on its fast instructions, and the ring on its tables.
WARM = 12
# Small integers lie side by side in Python itself: where a token lies decides how it is hashed.
TOKENS = range(MORE)

#: A step by name, and the call for each of its arguments.
Step = tuple[str, Callable[[Any], object], Sequence[Any]]


class Marks:
    """What was counted between two marks, in order: (step, calls, buffers a call), or nothing."""

    def __init__(self, mark: Callable[[], object] = os.getppid) -> None:
        self.mark = mark
        self.spans: list[tuple[str, int, int] | None] = []

    def count(self, name: str, n: int, steps: Sequence[Step], calls: int) -> None:
        """Make each step's first ``calls`` calls, with marks around."""
        for step, call, arguments in steps:
            chosen = arguments[:calls]
            self.mark()
            for argument in chosen:
                call(argument)
            self.mark()
            self.spans += [None, (f"{name}: {step}", calls, n)]


def batched(packed: bool, features: Feature, descriptors: int, n: int) -> Sequence[Step]:
    """add, pop, push and get of batches of ``n`` buffers."""
    memory = GuestMemory.create(16 << 20)
    driver, device = create_pair(RING, packed=packed, features=features, memory=memory)
    device.disable_notify()
    pool = BufferPool(memory, n * descriptors, 64)
    rows = Batch(n, n * descriptors)
    rows.addr[:] = pool.addrs
    rows.len[:] = 64
    rows.offsets[:] = np.arange(n + 1) * descriptors
    rows.token[:] = np.arange(n)
    rows.count = n
    popped = [Batch(n, n * descriptors) for _ in range(MORE)]
    used = Batch(n)
    add = driver.add_outbuf_batch if descriptors == 1 else driver.add_sgs_batch
    return [
        ("add", add, [rows] * MORE),
        ("pop", device.pop, popped),
        ("push", device.push, popped),
        ("get", driver.get_buf_batch, [used] * MORE),
    ]


def single(packed: bool) -> Sequence[Step]:
    """The calls for one buffer, with an object as token and event indices."""
    driver, device = create_pair(
        SINGLE_RING, packed=packed, features=PLAIN | Feature.EVENT_IDX | Feature.INDIRECT_DESC
    )
    device.disable_notify()
    buffer = BufferPool(driver.memory, 1, 64).get()
    ones = [Batch(1) for _ in range(MORE)]

    # Together: alone, kick_prepare would have nothing to decide after the first.
    def add(token: object) -> None:
        driver.add_outbuf(buffer, token)
        driver.kick_prepare()

    return [
        ("add_outbuf + kick_prepare", add, TOKENS),
        ("pop of 1", device.pop, ones),
        ("push of 1", device.push, ones),
        ("get_buf", lambda _: driver.get_buf(), TOKENS),
    ]


def objects(packed: bool) -> Sequence[Step]:
    """The same with Chain objects on the device's side."""
    driver, device = create_pair(SINGLE_RING, packed=packed, features=PLAIN)
    device.disable_notify()
    pool = BufferPool(driver.memory, 2, 64)
    out_sgs, in_sgs = [pool.get()], [pool.get()]

    def serve(_: object) -> None:
        chain = device.next_chain()
        assert chain is not None
        device.return_(chain, 0)

    return [
        ("add_sgs of 1 + 1", lambda token: driver.add_sgs(out_sgs, in_sgs, token), TOKENS),
        ("next_chain + return_", serve, TOKENS),
        ("get_buf", lambda _: driver.get_buf(), TOKENS),
    ]


def paths() -> Iterator[tuple[str, int, Sequence[Step]]]:
    """Every hot path: its name, buffers a call, its steps."""
    indirect = PLAIN | Feature.INDIRECT_DESC
    for ring, packed in RINGS.items():
        yield f"{ring}, batched", BATCH, batched(packed, PLAIN, 1, BATCH)
        in_order = PLAIN | Feature.IN_ORDER
        yield f"{ring}, batched, in order", BATCH, batched(packed, in_order, 1, BATCH)
        yield f"{ring}, chains of 4", BATCH // 4, batched(packed, PLAIN, 4, BATCH // 4)
        yield f"{ring}, chains of 4, indirect", BATCH, batched(packed, indirect, 4, BATCH)
        yield f"{ring}, single calls", 1, single(packed)
        yield f"{ring}, single calls, chains", 1, objects(packed)


def main() -> None:
    gc.disable()
    marks = Marks()
    for name, n, steps in paths():
        unseen = Marks(os.getpid)
        for _ in range(WARM):
            unseen.count(name, n, steps, FEW)
            unseen.count(name, n, steps, MORE)
        marks.count(name, n, steps, FEW)
        marks.count(name, n, steps, MORE)
    print(json.dumps(marks.spans))


if __name__ == "__main__":
    main()
