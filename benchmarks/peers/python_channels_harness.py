"""Time one kind of channel between two processes on two cores; prints one line of JSON.

    python python_channels_harness.py --kind=kickmsg --case=send --size=64 --cpus=0,1 --rounds=5

Run as a file, in the environment that has the kind's package. ``send``, ``batch``, ``array`` and
``passed`` stream one way: from the 64th message to the last, as seen by the receiver, a message.
``round-trip`` and ``round-trip-passed`` go there and back, one message at a time. All messages of a
first round, which is not timed, are compared with what was sent; in timed rounds one of 64 is, and
every one's number when it is passed in place.
"""

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parent)

from python_channels_wires import BATCH, End, depth, wire  # type: ignore[import-not-found]  # noqa: E402

KINDS_OF_MESSAGE = 64
#: Short, so that some rounds have both cores to themselves on a machine with other work.
ROUND_SECONDS = 0.01
MOST = 1 << 20
#: Bytes; how many messages of more than that are kept at a time matters.
LARGE = 4096


class Damaged(Exception):
    """What came is not what was sent."""


def messages(size: int) -> list[bytes]:
    """Different messages of ``size`` bytes, the same in both processes."""
    rng = random.Random(size)
    return [rng.randbytes(size) for _ in range(KINDS_OF_MESSAGE)]


def stream_sender(end: End, case: str, size: int) -> Callable[[int], None]:
    """A function that sends so many messages, the first one being message 0 of the list."""
    known = messages(size)

    def send(count: int) -> None:
        one = end.send
        for _ in range(count // KINDS_OF_MESSAGE):
            for data in known:
                one(data)

    def batch(count: int) -> None:
        parts = [known[:BATCH], known[BATCH:]]
        many = end.send_batch
        for i in range(count // BATCH):
            many(parts[i & 1])

    def array(count: int) -> None:
        import numpy as np

        whole = np.frombuffer(b"".join(known), np.uint8).reshape(2, BATCH, size)
        many = end.send_array
        for i in range(count // BATCH):
            many(whole[i & 1])

    def passed(count: int) -> None:
        one = end.send_passed
        for i in range(count):
            one(i, size)

    return {"send": send, "batch": batch, "array": array, "passed": passed}[case]


def stream_receiver(end: End, case: str, size: int) -> Callable[[int, int], int]:
    """A function that receives so many messages and compares one of ``every``; gives the ns."""
    known = messages(size)
    clock = time.perf_counter_ns

    def send(count: int, every: int) -> int:
        one = end.recv
        places = range(KINDS_OF_MESSAGE)
        start = 0
        for i in range(0, count, KINDS_OF_MESSAGE):
            found = [one() for _ in places]
            if i == 0:
                start = clock()
            if found[::every] != known[::every]:
                raise Damaged(f"one of the messages from {i} on")
        return clock() - start

    def one_by_one(count: int, every: int) -> int:
        """The same for large messages: keeping many of them would time the pages of the heap."""
        one = end.recv
        start = 0
        for i in range(count):
            data = one()
            if i == KINDS_OF_MESSAGE - 1:
                start = clock()
            if i % every == 0 and data != known[i % KINDS_OF_MESSAGE]:
                raise Damaged(f"message {i}")
        return clock() - start

    def batch(count: int, every: int) -> int:
        if end.recv_batch is None:
            return send(count, every)
        many = end.recv_batch
        got = start = 0
        while got < count:
            found = many()
            if got < KINDS_OF_MESSAGE <= got + len(found):
                start = clock()
            for i in range(0, len(found), every):
                if found[i] != known[(got + i) & 63]:
                    raise Damaged(f"message {got + i}")
            got += len(found)
        return clock() - start

    def array(count: int, every: int) -> int:
        import numpy as np

        out, lengths = np.empty(BATCH * size, np.uint8), np.empty(BATCH, np.uint32)
        many = end.recv_array
        got = start = 0
        while got < count:
            n = many(out, lengths)
            if got < KINDS_OF_MESSAGE <= got + n:
                start = clock()
            for i in range(0, n, every):
                if bytes(out[i * size : i * size + size]) != known[(got + i) & 63]:
                    raise Damaged(f"message {got + i}")
            if every == 1 and not (lengths[:n] == size).all():
                raise Damaged("sizes")
            got += n
        return clock() - start

    def passed(count: int, every: int) -> int:
        one = end.recv_passed
        start = 0
        for i in range(count):
            if one() != (i, size):
                raise Damaged(f"message {i}")
            if i == KINDS_OF_MESSAGE - 1:
                start = clock()
        return clock() - start

    if case == "send" and size > LARGE:
        return one_by_one
    return {"send": send, "batch": batch, "array": array, "passed": passed}[case]


def echo(there: End, back: End, case: str, size: int, count: int) -> None:
    """Send back what comes, so many times."""
    if case == "round-trip":
        recv, send = there.recv, back.send
        for _ in range(count):
            send(recv())
    else:
        recv, send = there.recv_passed, back.send_passed
        for _ in range(count):
            number, length = recv()
            send(number, length)


def ask(there: End, back: End, case: str, size: int, count: int) -> list[int]:
    """Send and wait for the answer, so many times; the nanoseconds of each."""
    known = messages(size)
    clock = time.perf_counter_ns
    times = []
    for i in range(count):
        if case == "round-trip":
            start = clock()
            there.send(known[i & 63])
            data = back.recv()
            times.append(clock() - start)
            if data != known[i & 63]:
                raise Damaged(f"answer {i}")
        else:
            start = clock()
            there.send_passed(i, size)
            answer = back.recv_passed()
            times.append(clock() - start)
            if answer != (i, size):
                raise Damaged(f"answer {i}")
    return times


def child(wires: list[Any], case: str, size: int, cpu: int, orders: Connection) -> None:
    """The other process: does what comes over ``orders``, so many messages at a time."""
    os.sched_setaffinity(0, {cpu})
    if case.startswith("round"):
        there, back = wires[0].receiver(), wires[1].sender()
        work: Callable[[int], None] = lambda count: echo(there, back, case, size, count)  # noqa: E731
    else:
        work = stream_sender(wires[0].sender(), case, size)
    orders.send_bytes(b"ready")
    while (count := int(orders.recv_bytes())) > 0:
        work(count)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Both processes' work; the line that is printed."""
    case, size = options.case, options.size
    cpus = [int(cpu) for cpu in options.cpus.split(",")]
    wires = [wire(options.kind, size, which) for which in range(2)]
    ours, theirs = Pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            child(wires, case, size, cpus[1], theirs)
            code = 0
        finally:
            os._exit(code)
    os.sched_setaffinity(0, {cpus[0]})
    theirs.close()
    samples: list[float] = []
    result: dict[str, Any] = {"kind": options.kind, "case": case, "size": size}
    if case.startswith("round"):
        there, back = wires[0].sender(), wires[1].receiver()
        ours.recv_bytes()
        count = 256
        times: list[int] = []
        for number in range(options.rounds + 1):
            ours.send_bytes(b"%d" % count)
            got = ask(there, back, case, size, count)
            if number == 0:
                median = statistics.median(got)
                count = int(min(50_000, max(256, 2 * ROUND_SECONDS * 1e9 / median)))
            else:
                times += got
                samples.append(statistics.median(got))
        times.sort()
        for name, part in (("p99", 0.99), ("p999", 0.999)):
            result[name] = times[int(part * (len(times) - 1))]
    else:
        receive = stream_receiver(wires[0].receiver(), case, size)
        ours.recv_bytes()
        count = 2 * max(KINDS_OF_MESSAGE, depth(size))
        for number in range(options.rounds + 1):
            while True:
                ours.send_bytes(b"%d" % count)
                ns = receive(count, 1 if number == 0 else KINDS_OF_MESSAGE)
                if number or ns >= ROUND_SECONDS * 1e9 / 2 or count >= MOST:
                    break
                count *= 2
            if number:
                samples.append(ns / (count - KINDS_OF_MESSAGE))
    ours.send_bytes(b"0")
    os.waitpid(pid, 0)
    result["messages"] = count
    result["samples"] = samples
    return result


def main() -> None:
    """Read the command line, print the line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kind", required=True)
    parser.add_argument("--case", required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--cpus", default="0,1")
    print(json.dumps(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
    # What some of the packages leave running must not keep this process.
    sys.stdout.flush()
    os._exit(0)
