"""What Python has already, for comparison: multiprocessing.Pipe and multiprocessing.Queue.

One way only: what the other process received is not sent back, which a ring's round trip includes.
"""

import os
import time
from collections.abc import Callable
from functools import partial
from itertools import repeat
from multiprocessing.connection import Connection
from multiprocessing.queues import Queue
from queue import Full

from virtring.cli.child import CONTEXT, Child
from virtring.cli.failure import Failed
from virtring.cli.measure import Result, Settings, timed
from virtring.cli.pattern import pattern

#: Different messages, sent in turn.
MESSAGES = 64
#: Messages between two looks at the clock.
ROUNDS = 4
#: Seconds that a Queue may stay full.
STALL = 10.0
#: Messages that a Queue holds at most.
QUEUE_DEPTH = 1024


def messages(size: int) -> list[bytes]:
    """What is sent, over and over."""
    return [row.tobytes() for row in pattern(MESSAGES, size, 1)]


def read_pipe(connection: Connection, data: Connection, size: int) -> None:
    """Receive until an empty message; answer with the count and the last message."""
    receive = data.recv_bytes
    connection.send("ready")
    while True:
        count, last = 0, b""
        while message := receive():
            count += 1
            last = message
        connection.send((count, last))


def read_queue(connection: Connection, data: "Queue[bytes]", size: int) -> None:
    """As :func:`read_pipe`."""
    receive = data.get
    connection.send("ready")
    while True:
        count, last = 0, b""
        while message := receive():
            count += 1
            last = message
        connection.send((count, last))


def run_ipc(ring: str, settings: Settings) -> Result:
    """``ring`` is "pipe" or "queue"; bytes objects of ``size`` bytes, one way, two processes."""
    result = Result(ring, "pair", "copied", 1, settings.size)
    cores = os.sched_getaffinity(0)
    if ring == "pipe":
        theirs, ours = CONTEXT.Pipe(duplex=False)
        reader = Child("reader", read_pipe, theirs, settings.size, cpu=settings.there)
        theirs.close()
        with ours, reader as child:
            _measure(result, settings, child, ours.send_bytes, cores)
        return result
    queue: Queue[bytes] = CONTEXT.Queue(QUEUE_DEPTH)
    put = partial(queue.put, timeout=STALL)
    try:
        with Child("reader", read_queue, queue, settings.size, cpu=settings.there) as child:
            _measure(result, settings, child, put, cores)
    finally:
        queue.cancel_join_thread()
        queue.close()
    return result


def _measure(
    result: Result,
    settings: Settings,
    child: Child,
    send: Callable[[bytes], None],
    cores: set[int],
) -> None:
    sent = messages(settings.size)
    clock = time.perf_counter
    count = 0

    def run(end: float) -> int:
        nonlocal count
        count = 0
        try:
            while clock() < end:
                for _ in repeat(None, ROUNDS):
                    for message in sent:
                        send(message)
                count += ROUNDS * MESSAGES
            send(b"")
        except (BrokenPipeError, Full):
            raise child.failure() from None
        seen, last = child.receive()
        if seen != count or last != sent[-1]:
            raise Failed(f"{result.ring}: {seen} messages of {count} came, or with other contents")
        return count

    def check() -> int:
        return 1    # compared in run(), after the last message of the window

    try:
        if settings.here is not None:
            os.sched_setaffinity(0, {settings.here})
        child.receive()
        timed(result, settings.window, run, check)
    finally:
        os.sched_setaffinity(0, cores)
