"""Numbered packets whose every byte is known: sent, and checked when they come back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from virtring.device.packets import Packets
from virtring.devices.net_backend import NetBackend

#: Packets after which their lengths repeat; their bytes do not.
LAP = 64
#: Destination, source, and the type that is for experiments (IEEE 802).
ETHERNET = bytes.fromhex("000102030405 020000000001 88b5")
NUMBER = len(ETHERNET)


class Stream:
    """`total` packets of 60 to 1514 bytes, a whole number of laps, in one direction.

    Each has its number behind its Ethernet header, then bytes that depend on the lap.
    """

    def __init__(self, total: int, seed: int = 0) -> None:
        assert total % LAP == 0
        self.total = total
        self.sent = self.checked = 0
        rng = np.random.default_rng(seed)
        self.lengths = rng.integers(60, 200, LAP).astype(np.uint32)
        self.lengths[:: LAP // 4] = 1514
        ends = np.cumsum(self.lengths, dtype=np.uint32)
        self.starts = np.concatenate([[np.uint32(0)], ends])
        self._pattern = rng.integers(0, 256, int(ends[-1]), dtype=np.uint8)
        begins = self.starts[:-1, np.newaxis]
        self._headers = begins + np.arange(NUMBER)
        self._numbers = begins + NUMBER + np.arange(8)
        self._out = Packets(LAP, self._pattern.size)
        self._expected = np.zeros_like(self._pattern)
        self._ready = {id(self._expected): -1, id(self._out.data): -1}

    def _fill(self, data: np.ndarray, lap: int) -> None:
        if self._ready[id(data)] == lap:
            return
        np.bitwise_xor(self._pattern, lap * 37 & 0xFF, out=data)
        data[self._headers] = np.frombuffer(ETHERNET, np.uint8)
        numbers = np.arange(lap * LAP, (lap + 1) * LAP, dtype="<u8")
        data[self._numbers] = numbers.view(np.uint8).reshape(LAP, 8)
        self._ready[id(data)] = lap

    def send(self, give: Callable[[Packets], int], window: int) -> None:
        """Send by `give`, which says how many it took, until `window` packets are on their way."""
        out = self._out
        while self.sent < self.total:
            lap, at = divmod(self.sent, LAP)
            count = LAP - at
            if self.sent + count - self.checked > window:
                return
            self._fill(out.data, lap)
            out.offsets[:count] = self.starts[at:LAP]
            out.lengths[:count] = self.lengths[at:]
            out.count = count
            taken = give(out)
            self.sent += taken
            if taken < count:
                return

    def check(self, packets: Packets) -> None:
        """Are these the next ones, byte by byte?"""
        row, count = 0, len(packets)
        while row < count:
            lap, at = divmod(self.checked, LAP)
            self._fill(self._expected, lap)
            n = min(count - row, LAP - at)
            where = f"packets {self.checked} to {self.checked + n - 1}"
            assert self.checked + n <= self.sent, f"{where}: {self.sent} were sent"
            lengths = packets.lengths[row : row + n]
            assert np.array_equal(lengths, self.lengths[at : at + n]), f"{where}: lengths"
            first, size = int(packets.offsets[row]), int(lengths.sum())
            assert packets.offsets[row + n - 1] + lengths[-1] == first + size, "no gaps"
            wanted = self._expected[self.starts[at] : self.starts[at + n]]
            assert np.array_equal(packets.data[first : first + size], wanted), where
            self.checked += n
            row += n

    @property
    def done(self) -> bool:
        return self.checked == self.total


class Checker(NetBackend):
    """Behind a net device: sends a stream to each pair and checks what the driver sends back."""

    def __init__(self, total: int, window: int, pairs: int = 1) -> None:
        self.streams = [Stream(total, seed) for seed in range(pairs)]
        self.window = window
        self._error: AssertionError | None = None
        self._end = threading.Event()

    def transmit(self, pair: int, packets: Packets) -> None:
        if self._error is not None:
            return
        try:
            self.streams[pair].check(packets)
        except AssertionError as error:
            self._error = error
        self._feed(pair)
        if self._error is not None or all(stream.done for stream in self.streams):
            self._end.set()

    def _feed(self, pair: int) -> None:
        assert self.net is not None
        self.streams[pair].send(partial(self.net.receive, pair=pair), self.window)

    def run(self, timeout: float) -> None:
        """Until all packets have come back; raises what was wrong with one of them."""
        assert self.net is not None
        limit = time.monotonic() + timeout
        while not self._end.wait(0.05):
            with self.net.locked():
                # To begin with, and when there was no buffer for one.
                for pair in range(len(self.streams)):
                    self._feed(pair)
            counts = [stream.checked for stream in self.streams]
            assert time.monotonic() < limit, f"{counts} came back in {timeout:g} s"
        if self._error is not None:
            raise self._error
