"""Both halves of ``virtring rpmsg``: a process that echoes, and one that sends and measures."""

import os
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from virtring.cli.child import Child
from virtring.cli.failure import Failed
from virtring.cli.pattern import pattern
from virtring.errors import WaitTimeout
from virtring.queue import Spin
from virtring.rpmsg import (
    HEADER_SIZE,
    Channel,
    DriverBus,
    Endpoint,
    Messages,
    RpmsgDriver,
    RpmsgLink,
    create_link,
)

SERVICE = "virtring-echo"
#: Bytes of a buffer, unless the messages are longer.
BUF_SIZE = 512
#: Messages on their way at once, as far as the ring has room.
OUTSTANDING = 4
#: Seconds after which a sleeping end looks whether the other one is still there.
NAP = 0.5
#: Seconds without an answer, while some are due, after which the run fails.
STALL = 10.0
#: Bytes of a payload that number the message.
NUMBER = 8


@dataclass(frozen=True)
class Task:
    """What the options said."""

    count: int
    size: int
    batch: int
    packed: bool
    cores: tuple[int, ...]

    @property
    def num(self) -> int:
        """Entries of a ring."""
        return max(256, 1 << (OUTSTANDING * self.batch - 1).bit_length())

    @property
    def buf_size(self) -> int:
        return max(BUF_SIZE, self.size + HEADER_SIZE)


def echo(connection: Connection, link: RpmsgLink, batch: int) -> None:
    """Announce the service, and send every message back until the connection is closed."""
    bus = link.device(spin=Spin())
    driver = RpmsgDriver(SERVICE)
    connection.send("ready")
    connection.recv()
    channel = bus.create_channel(SERVICE, announce=True, driver=driver)
    ept = channel.ept
    assert ept is not None
    messages = Messages(max(batch, 1), bus.rx_mtu)
    while True:
        count = ept.recv_batch(messages, NAP)
        if count:
            messages.dst[:count] = messages.src[:count]
            sent = 0
            while sent < count:
                sent += ept.sendto_many(messages, sent)
        elif connection.poll(0):
            return


class Pinger:
    """The driver's half: sends numbered messages to the echo and checks what comes back."""

    def __init__(self, child: Child, ept: Endpoint, task: Task) -> None:
        self.child = child
        self.ept = ept
        self.task = task
        self.number = 0
        rows = OUTSTANDING * task.batch
        self.out = Messages(rows, task.size)
        self.out.data[:] = pattern(rows, task.size, 1)
        self.out.len[:] = task.size
        self.got = Messages(rows, ept.bus.rx_mtu)
        self.wide = min(NUMBER, task.size)

    def numbers(self, first: int, count: int) -> NDArray[np.uint8]:
        """What the payloads of messages ``first`` on begin with."""
        words = np.arange(first, first + count, dtype="<u8")
        return words.view(np.uint8).reshape(count, NUMBER)[:, : self.wide]

    def receive(self) -> int:
        """What came back, which must be what was sent next in order."""
        deadline = time.monotonic() + STALL
        while (count := self.ept.recv_batch(self.got, NAP)) == 0:
            if not self.child.alive or self.child.connection.poll(0):
                self.child.receive()
                raise self.child.failure()
            if time.monotonic() > deadline:
                raise Failed(f"no answer came for {STALL:.0f} s")
        return count

    def check(self, first: int, count: int) -> None:
        size = self.task.size
        got = self.got
        wanted = self.numbers(first, count)
        if not (got.len[:count] == size).all() or not np.array_equal(
            got.data[:count, : self.wide], wanted
        ):
            raise Failed(f"behind message {first} something was lost, reordered or changed")
        rows = (np.arange(first, first + count) % self.out.capacity)[:, None]
        rest = np.arange(self.wide, size)[None, :]
        if not np.array_equal(got.data[:count, self.wide : size], self.out.data[rows, rest]):
            raise Failed(f"behind message {first} the contents are not what was sent")

    def ping(self, count: int) -> list[int]:
        """One message at a time; nanoseconds of each round trip."""
        took = []
        data = self.out.data
        for number in range(count):
            row = number % self.out.capacity
            data[row, : self.wide] = self.numbers(number, 1)[0]
            payload = data[row].tobytes()
            start = time.perf_counter_ns()
            self.ept.send(payload)
            came = self.receive()
            took.append(time.perf_counter_ns() - start)
            if came != 1:
                raise Failed(f"{came} answers came for one message")
            self.check(number, 1)
        return took

    def stream(self, count: int) -> float:
        """As fast as the ring goes, in batches; seconds."""
        out, batch, window = self.out, self.task.batch, self.out.capacity
        sent = came = 0
        start = time.perf_counter()
        while came < count:
            while sent < count and sent - came + batch <= window:
                row = sent % window
                n = min(batch, count - sent, window - row)
                out.data[row : row + n, : self.wide] = self.numbers(sent, n)
                n = self.ept.trysend_many(out, row, n)
                if n == 0:
                    break
                sent += n
            n = self.receive()
            self.check(came, n)
            came += n
        return time.perf_counter() - start


def percentiles(took: list[int]) -> dict[str, float]:
    """Microseconds: ``median_us``, ``p99_us``, ``p999_us``."""
    values = np.percentile(np.array(took), [50, 99, 99.9], method="higher") / 1e3
    return dict(zip(("median_us", "p99_us", "p999_us"), values.tolist(), strict=True))


def find(bus: DriverBus) -> Channel | None:
    """The channel, if it was announced by now."""
    bus.process()
    return bus.find_channel(SERVICE)


def measure(task: Task) -> dict[str, Any]:
    """Both measurements of one ring, as a record for ``--json``."""
    bus, link = create_link(
        task.num, packed=task.packed, rx_buf_size=task.buf_size, tx_buf_size=task.buf_size,
        num_bufs=2 * task.num, spin=Spin(),
    )
    pinned = len(task.cores) > 1
    cores = os.sched_getaffinity(0)
    driver = RpmsgDriver(SERVICE)
    bus.register_driver(driver)
    cpu = task.cores[1] if pinned else None
    with Child("echo", echo, link, task.batch, cpu=cpu) as child:
        try:
            if pinned:
                os.sched_setaffinity(0, {task.cores[0]})
            child.receive()
            child.send("go")
            channel = bus.wait_rx(lambda: find(bus), STALL)
            if channel is None or channel.ept is None:
                if not child.alive:
                    raise child.failure()
                raise Failed(f"the echo process did not announce {SERVICE}")
            pinger = Pinger(child, channel.ept, task)
            took = pinger.ping(task.count)
            seconds = pinger.stream(task.count)
        except WaitTimeout as error:
            raise Failed(f"the echo process takes no messages: {error}") from None
        finally:
            os.sched_setaffinity(0, cores)
    counters = bus.counters
    lost = {reason: n for reason, n in counters.dropped.items() if n}
    if lost:
        raise Failed(f"messages were dropped: {lost}")
    return {
        "ring": "packed" if task.packed else "split",
        "count": task.count,
        "size": task.size,
        "batch": task.batch,
        **percentiles(took),
        "messages_per_second": task.count / seconds,
        "bytes_per_second": task.count * task.size / seconds,
        "seconds": seconds,
        "waits": counters.tx_waits,
    }
