"""What a driver does alike on both layouts: planning buffers, taking them back, counting."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from .common import Element, Full, ModelError, Request
from .layout import F_INDIRECT, F_WRITE

#: Address, length and flags (WRITE or INDIRECT only) of a descriptor to be written.
Entry = tuple[int, int, int]


@dataclass(frozen=True)
class Plan:
    """The descriptors of one buffer: those in the ring, and those in its indirect table."""

    token: object
    writable: int
    ring: list[Entry]
    table: list[Entry]


@dataclass(frozen=True)
class InFlight:
    """The driver's own notes on a buffer that it has not got back; never read from the ring."""

    token: object
    writable: int
    descriptors: int


class DriverBase(ABC):
    """The layout-independent half of a driver.

    ``num_free`` counts free descriptors of the ring. ``excess`` says by how many bytes the used
    length of the buffer that :meth:`get` returned last went beyond what was writable.
    """

    def __init__(self, num: int, event_idx: bool, indirect: bool, in_order: bool) -> None:
        self.num = num
        self.num_free = num
        self.excess = 0
        self._event_idx = event_idx
        self._indirect = indirect
        self._in_order = in_order
        # In the order in which the buffers were made available.
        self._in_flight: dict[int, InFlight] = {}
        # Buffers of a used entry that was read already, with their used lengths.
        self._batch: deque[tuple[int, int]] = deque()

    def add(
        self,
        out: Sequence[Element],
        in_: Sequence[Element],
        token: object,
        indirect_table: int | None = None,
        direct_first: int = 0,
    ) -> None:
        """Make one buffer available. Raises :class:`Full`; see :class:`Request`."""
        self.add_many([Request(out, in_, token, indirect_table, direct_first)])

    def add_many(self, requests: Sequence[Request]) -> None:
        """Make all buffers available at one stroke, or raise :class:`Full` and change nothing."""
        plans = [self._plan(request) for request in requests]
        needed = sum(len(plan.ring) for plan in plans)
        if needed > self.num_free:
            raise Full(f"{needed} descriptors are needed and {self.num_free} are free")
        if not plans:
            return
        heads = [self._place(plan) for plan in plans]
        for ident, plan in zip(heads, plans, strict=True):
            self._in_flight[ident] = InFlight(plan.token, plan.writable, len(plan.ring))
        self.num_free -= needed
        self._publish(heads)

    def get(self) -> tuple[object, int] | None:
        """Take back one used buffer: its token and the bytes written, or None.

        Raises :class:`ModelError` when the used entry is wrong; the buffer stays in flight.
        """
        if not self._batch:
            used = self._peek_used()
            if used is None:
                return None
            ident, length = used
            idents = self._batch_of(ident)
            self._skip_used(idents)
            # 2.7.9, 2.8.8: skipped buffers are assumed to have been used completely.
            for skipped in idents[:-1]:
                self._batch.append((skipped, self._in_flight[skipped].writable))
            self._batch.append((ident, length))
        ident, length = self._batch.popleft()
        buffer = self._in_flight.pop(ident)
        self._release(ident)
        self.num_free += buffer.descriptors
        self.excess = max(0, length - buffer.writable)
        self._update_event()
        return buffer.token, min(length, buffer.writable)

    def detach_unused(self) -> list[object]:
        """Tokens of all buffers not got back, oldest first; only for a ring no longer in use."""
        tokens = [buffer.token for buffer in self._in_flight.values()]
        for ident in self._in_flight:
            self._release(ident)
        self.num_free = self.num
        self._in_flight.clear()
        self._batch.clear()
        return tokens

    def _plan(self, request: Request) -> Plan:
        segments = request.segments
        if not 1 <= len(segments) <= self.num:  # 2.7.5.3.1, 2.7.13.1, 2.8.17
            raise ValueError(f"a buffer has 1 to {self.num} elements, not {len(segments)}")
        if sum(length for _, length, _ in segments) > 2**32:  # 2.7.5.2
            raise ValueError("a buffer has at most 2^32 bytes")
        entries = [(addr, length, F_WRITE if write else 0) for addr, length, write in segments]
        writable = sum(length for _, length, write in segments if write)
        if request.indirect_table is None:
            return Plan(request.token, writable, entries, [])
        if not self._indirect:  # 2.7.5.3.1, 2.8.19
            raise ValueError("an indirect table needs the feature INDIRECT_DESC")
        if not 0 <= request.direct_first < len(entries):
            raise ValueError("at least one element must be left for the indirect table")
        direct, table = entries[: request.direct_first], entries[request.direct_first :]
        refer = (request.indirect_table, 16 * len(table), F_INDIRECT)
        return Plan(request.token, writable, [*direct, refer], table)

    def _batch_of(self, ident: int) -> list[int]:
        """The buffers that a used entry with this id stands for, oldest first."""
        if ident not in self._in_flight:
            raise ModelError(f"used id {ident} is not that of a buffer in flight")
        if not self._in_order:
            return [ident]
        batch: list[int] = []
        for oldest in self._in_flight:
            batch.append(oldest)
            if oldest == ident:
                break
        return batch

    @abstractmethod
    def _place(self, plan: Plan) -> int:
        """Write the descriptors, not yet visible to the device; return the buffer's id."""

    @abstractmethod
    def _publish(self, idents: list[int]) -> None:
        """Make the placed buffers visible."""

    @abstractmethod
    def _peek_used(self) -> tuple[int, int] | None:
        """Id and length of the next used entry, or None."""

    @abstractmethod
    def _skip_used(self, idents: list[int]) -> None:
        """Step over the used entry of these buffers, or raise ModelError."""

    @abstractmethod
    def _release(self, ident: int) -> None:
        """Make the descriptors of a buffer free."""

    @abstractmethod
    def _update_event(self) -> None:
        """Keep an armed event on the next used buffer."""
