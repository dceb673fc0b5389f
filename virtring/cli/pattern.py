"""The data a benchmark moves: buffers that say which one they are, and checks of them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from virtring.cli.failure import Failed
from virtring.memory import GuestMemory
from virtring.queue import Batch

Bytes = NDArray[np.uint8]

#: Rows are made in pieces of about this many bytes, to bound the temporary arrays.
PIECE = 1 << 18


def pattern(count: int, size: int, seed: int) -> Bytes:
    """uint8[count, size]; every byte depends on its row, its column and ``seed``."""
    out = np.empty((count, size), np.uint8)
    columns = np.arange(size, dtype=np.uint32) * np.uint32(2246822519)
    start = np.uint32((seed * 374761393 + 668265263) & 0xFFFFFFFF)
    rows = np.arange(count, dtype=np.uint32) * np.uint32(2654435761) + start
    step = max(1, PIECE // size)
    for first in range(0, count, step):
        words = rows[first : first + step, None] + columns[None, :]
        words ^= words >> np.uint32(15)
        words *= np.uint32(3266489917)
        out[first : first + step] = words >> np.uint32(24)
    return out


@dataclass(frozen=True)
class Place:
    """Where the buffers lie: ``count`` of ``size`` bytes, ``stride`` bytes apart from ``addr`` on.

    Picklable, so that both processes can make the :class:`Payload` over it.
    """

    addr: int
    count: int
    stride: int
    size: int


class Payload:
    """The buffers of a run as one side sees them, and what has to be in them.

    ``array`` is uint8[count, size] over the guest memory itself.
    """

    def __init__(self, memory: GuestMemory, place: Place) -> None:
        self.place = place
        whole = np.frombuffer(memory.view(place.addr, place.count * place.stride), np.uint8)
        self.array: Bytes = whole.reshape(place.count, place.stride)[:, : place.size]
        self.addrs = np.uint64(place.addr) + np.uint64(place.stride) * np.arange(
            place.count, dtype=np.uint64
        )

    def wanted(self, seed: int) -> Bytes:
        """What the buffers hold in round ``seed``."""
        return pattern(self.place.count, self.place.size, seed)

    def fill(self, seed: int) -> None:
        """Write the pattern of round ``seed`` into every buffer."""
        self.array[:] = self.wanted(seed)

    def rows_of(self, batch: Batch) -> NDArray[np.int64]:
        """Which buffers a popped batch names; Failed when an address or length is not of one."""
        count = batch.count
        offset = batch.addr[:count] - np.uint64(self.place.addr)
        rows: NDArray[np.int64] = (offset // np.uint64(self.place.stride)).astype(np.int64)
        wrong = (offset % np.uint64(self.place.stride) != 0) | (rows >= self.place.count)
        wrong |= batch.len[:count] != self.place.size
        if wrong.any():
            at = int(np.argmax(wrong))
            raise Failed(
                f"row {at} of a popped batch is {batch.len[at]} bytes at {int(batch.addr[at]):#x},"
                " which is none of the buffers that were added"
            )
        return rows

    def check(self, rows: NDArray[np.int64], seed: int, what: str) -> int:
        """Buffers ``rows`` hold the pattern of round ``seed``, else Failed; how many they are."""
        same_rows(self.array, self.wanted(seed), rows, what)
        return len(rows)


def same_rows(seen: Bytes, wanted: Bytes, rows: NDArray[np.int64], what: str) -> None:
    """Failed when one of ``rows`` differs; the text says which and where."""
    if np.array_equal(seen[rows], wanted[rows]):
        return
    for row in rows:
        if not np.array_equal(seen[row], wanted[row]):
            at = int(np.argmax(seen[row] != wanted[row]))
            raise Failed(
                f"{what}: buffer {row} differs at byte {at}:"
                f" {seen[row][at]} instead of {wanted[row][at]}"
            )


def check_tokens(tokens: NDArray[np.uint64], count: int, what: str) -> None:
    """Failed unless ``tokens`` are 0 to count - 1, each exactly once."""
    seen = np.bincount(tokens[tokens < count].astype(np.int64), minlength=count)
    if len(tokens) != count or (seen != 1).any():
        at = int(np.argmax(seen != 1))
        raise Failed(
            f"{what}: {len(tokens)} tokens came back for {count} buffers; token {at} came"
            f" {int(seen[at])} times"
        )
