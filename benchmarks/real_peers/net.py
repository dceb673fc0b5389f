"""Packets a second that DPDK's virtio-user gets back from our net device and from DPDK's vhost.

Device and driver poll, each on a core of its own; half a ring of packets of 64 bytes goes round.
Both devices run from the beginning, and rest while the other one is measured.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.real_peers.row import Row
from tests.interop.cache import Program
from tests.interop.daemons import pmd_counts, pmd_device, pmd_driver, pmd_forward
from tests.interop.process import Daemon, Process
from virtring.devices.net import Net
from virtring.devices.net_backend import Echo
from virtring.transport.vhost_user import VhostUserServer

#: What virtio-user is told, beside the size.
RINGS = {
    "split": "in_order=0",
    "packed": "packed_vq=1,in_order=0",
    "split in order": "in_order=1",
    "packed in order": "packed_vq=1,in_order=1",
}
SIZE = 256
#: Of 32 packets, half a ring.
BURSTS = SIZE // 64
TARGET = 0.7
#: Measured pieces of a round, each of so many seconds, and how long it runs before.
PIECES = 5
SECONDS = 0.2
WARM_UP = 0.02


class Pair:
    """A device and its driver, between which packets go round. A context manager."""

    def __init__(self, socket: Path, options: str, *, ours: bool) -> None:
        self._stack = ExitStack()
        with self._stack:
            device = _our_device(socket) if ours else pmd_device(socket)
            self._stack.enter_context(device)
            self.driver = self._stack.enter_context(pmd_driver(socket, size=SIZE, options=options))
            pmd_forward(None if ours else device, self.driver, bursts=BURSTS)
            self._ends: tuple[Process, ...] = (device, self.driver)
            self._stack = self._stack.pop_all()
        self._send(signal.SIGSTOP)

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self._send(signal.SIGCONT)
        self._stack.close()

    def _send(self, number: signal.Signals) -> None:
        for end in self._ends:
            os.kill(end.pid, number)

    @contextmanager
    def _running(self) -> Iterator[None]:
        self._send(signal.SIGCONT)
        try:
            yield
        finally:
            self._send(signal.SIGSTOP)

    def measure(self) -> float:
        """Millions of packets a second that the driver received."""
        with self._running():
            # Packets that the driver had no room to send are gone: begin again with all of them.
            self.driver.ask("stop", "Done\\.")
            self.driver.ask(f"start tx_first {BURSTS}", "RX queue: 0")
            time.sleep(WARM_UP)
            begin, before = time.perf_counter(), pmd_counts(self.driver)[0]
            time.sleep(SECONDS)
            end, after = time.perf_counter(), pmd_counts(self.driver)[0]
        return (after - before) / (end - begin) / 1e6


def _our_device(socket: Path) -> Daemon:
    words = (sys.executable, "-m", __name__, str(socket))
    return Daemon(Program(words, Path(sys.executable)), sockets=[socket])


def run(rounds: int) -> list[Row]:
    """Split and packed, each plain and in order."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, options in RINGS.items():
            with (
                Pair(Path(folder, "ours"), options, ours=True) as ours,
                Pair(Path(folder, "theirs"), options, ours=False) as theirs,
            ):
                got = [(ours.measure(), theirs.measure()) for _ in range(PIECES * rounds)]
            row = Row(
                f"virtio-user, {name}", tuple(one for one, _ in got), tuple(two for _, two in got),
                "Mpackets/s", TARGET,
            )
            rows.append(row)
    return rows


def serve(socket: str) -> None:
    """The device that is measured, until it is ended."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    server = VhostUserServer(Net(Echo(), queue_size=SIZE, poll=50.0), socket, poll=True)
    try:
        signal.signal(signal.SIGTERM, lambda *_: server.stop())
        server.run()
    finally:
        server.close()


if __name__ == "__main__":
    serve(sys.argv[1])
