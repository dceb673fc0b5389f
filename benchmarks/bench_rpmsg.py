"""What does an RPMsg message cost, by batch and size, and beside a buffer of a raw ring?"""

import os
import statistics
import time
from multiprocessing.connection import Connection
from typing import Any

import pytest

from benchmarks.loops import Measure
from virtring.cli.bench_pair import run_pair
from virtring.cli.child import Child
from virtring.cli.cores import two_cores
from virtring.cli.measure import WINDOWS, Settings
from virtring.rpmsg import Messages, RpmsgLink, create_link

#: Of the comparison with a raw ring.
BATCH, SIZE = 32, 64
SECONDS = 0.5
TURNS = 5


@pytest.mark.parametrize("size", [64, 496])
@pytest.mark.parametrize("batch", [1, 32, 128])
@pytest.mark.parametrize("ring", ["split", "packed"])
def test_batches(measure: Measure, ring: str, batch: int, size: int) -> None:
    bus, link = create_link(packed=ring == "packed")
    target = link.device().create_ept(addr=2000)
    ept = bus.create_ept(dst=2000)
    rows, got = Messages(batch, size), Messages(batch, bus.rx_mtu)
    rows.count = batch
    rows.len[:] = size

    def there() -> None:
        ept.send_many(rows)
        assert target.recv_batch(got) == batch

    measure(there, batch)


@pytest.mark.parametrize("ring", ["split", "packed"])
def test_single_messages(measure: Measure, ring: str) -> None:
    bus, link = create_link(packed=ring == "packed")
    target = link.device().create_ept(addr=2000)
    ept = bus.create_ept(dst=2000)
    payload = bytes(64)

    def there() -> None:
        ept.send(payload)
        target.recv()

    measure(there, 1)


def listen(connection: Connection, link: RpmsgLink) -> None:
    """The device: receives by batches; an empty message asks how many came since the last one."""
    bus = link.device()
    ept = bus.create_ept(addr=2000)
    rows = Messages(BATCH, bus.rx_mtu)
    receive, length = ept.recv_batch, rows.len.item
    connection.send("ready")
    seen = 0
    while not connection.poll(0):
        for _ in range(2048):
            count = receive(rows)
            if count:
                seen += count
                if length(count - 1) == 0:
                    connection.send((seen - 1, bytes(rows.data[-1, :SIZE])))
                    seen = 0


def one_way(ring: str, cores: tuple[int, ...]) -> list[float]:
    """ns a message from the driver's process to the device's, both polling; one a window."""
    bus, link = create_link(256, packed=ring == "packed")
    ept = bus.create_ept(dst=2000)
    rows = Messages(BATCH, SIZE)
    rows.data[:] = range(SIZE)
    rows.len[:] = SIZE
    rows.count = BATCH
    send, clock = ept.trysend_many, time.perf_counter
    took: list[float] = []
    before = os.sched_getaffinity(0)
    with Child("listener", listen, link, cpu=cores[1]) as child:
        os.sched_setaffinity(0, {cores[0]})
        try:
            child.receive()
            for _ in range(1 + WINDOWS):
                sent = 0
                start = clock()
                while clock() < start + SECONDS / WINDOWS:
                    for _ in range(64):
                        done = send(rows)
                        while done < BATCH:
                            done += send(rows, done)
                        sent += BATCH
                ept.send(b"")
                # Until the last one came, as the raw ring's.
                assert child.receive() == (sent, rows.payload(0))
                took.append((clock() - start) * 1e9 / sent)
        finally:
            os.sched_setaffinity(0, before)
    assert sum(bus.counters.dropped.values()) == 0
    return took[1:]


@pytest.mark.parametrize("ring", ["split", "packed"])
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs to poll on")
def test_beside_the_raw_ring(
    benchmark: Any, ring: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Batches of 32 messages of 64 bytes, copied in and out, by turns with buffers of a ring.

    The least of the windows says what a busy machine does not blur.
    """
    cores = two_cores()
    settings = Settings(size=SIZE, seconds=SECONDS, batch=BATCH, cores=cores)
    raw: list[float] = []
    rpmsg: list[float] = []

    def turn() -> None:
        raw.extend(run_pair(ring, settings, copied=True).ns)
        rpmsg.extend(one_way(ring, cores))

    benchmark.pedantic(turn, rounds=TURNS)
    for name, value in (("median", statistics.median), ("least", min)):
        one, other = value(raw), value(rpmsg)
        benchmark.extra_info[name] = {
            "raw_ns": round(one, 1), "rpmsg_ns": round(other, 1), "ratio": round(other / one, 2)
        }
        with capsys.disabled():
            print(
                f"\n{ring}, {name}: a raw buffer {one:.0f} ns, an RPMsg message {other:.0f} ns,"
                f" {other / one:.2f} times", end=""
            )
