"""The buffers of the ring machine: what it sends, and what it knows of each."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from .ends import Element, Segment

#: Each element has a block of its own; lengths stay below it, so that overruns show.
BLOCK = 32

lengths = st.integers(1, BLOCK - 1)
shapes = st.tuples(st.lists(lengths, max_size=4), st.lists(lengths, max_size=4)).filter(any)


@dataclass
class Sent:
    """What the machine knows of a buffer."""

    token: int
    out: list[Element]
    in_: list[Element]
    written: int = -1
    ident: int = -1

    @property
    def segments(self) -> list[Segment]:
        return [(a, n, False) for a, n in self.out] + [(a, n, True) for a, n in self.in_]

    @property
    def writable(self) -> int:
        return sum(length for _, length in self.in_)


def pattern(token: int, n: int, salt: int) -> bytes:
    """Bytes that differ between buffers, directions and positions, and never are BLANK."""
    return bytes((token * 37 + salt * 101 + k * 7) % 200 for k in range(n))
