"""What every part of the model speaks of: elements, chains, errors and the event rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: A buffer element as the driver names it: address and length in bytes.
Element = tuple[int, int]
#: A buffer element as the device sees it: address, length in bytes, device-writable.
Segment = tuple[int, int, bool]


class ModelError(Exception):
    """The other side wrote something that the standard forbids. The model's state is unchanged."""


class Full(Exception):
    """Fewer descriptors are free than the buffers need. Nothing was added."""


@dataclass(frozen=True)
class Chain:
    """A buffer that the device took: its id and its elements, readable ones first.

    ``id`` is the head descriptor (split, 2.7.8) or the Buffer ID (packed, 2.8.6).
    """

    id: int
    segments: tuple[Segment, ...]

    @property
    def writable(self) -> int:
        """How many bytes the device may write."""
        return sum(length for _, length, writable in self.segments if writable)


@dataclass(frozen=True)
class Request:
    """A buffer that the driver wants to make available.

    With ``indirect_table`` (an address with room for 16 bytes an element) the elements go into an
    indirect table; on a split ring the first ``direct_first`` of them stay outside, in front of
    the descriptor that refers to the table (2.7.5.3.2).
    """

    out: Sequence[Element]
    in_: Sequence[Element]
    token: object
    indirect_table: int | None = None
    direct_first: int = 0

    @property
    def segments(self) -> list[Segment]:
        """All elements in order: device-readable before device-writable (2.7.4.2)."""
        readable = [(addr, length, False) for addr, length in self.out]
        writable = [(addr, length, True) for addr, length in self.in_]
        return readable + writable


def need_event(event: int, new: int, old: int) -> bool:
    """Whether an index that went from ``old`` to ``new`` wrote the entry ``event`` (2.7.7.2).

    ``event`` is the 16-bit number the other side stored. ``old`` and ``new`` count on beyond
    65535, so that a step of a whole turn or more is told from no step.
    """
    distance_to_event = (event - old) % 65536
    return distance_to_event < new - old
