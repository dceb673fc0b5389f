"""The device side of a split ring (2.7)."""

from __future__ import annotations

from .common import Chain, ModelError, Segment, need_event
from .device_base import DeviceBase
from .layout import AVAIL_F_NO_INTERRUPT, F_INDIRECT, F_NEXT, F_WRITE, USED_F_NO_NOTIFY
from .memory import ModelMemory
from .split_ring import SplitRing


class SplitDevice(DeviceBase):
    """Takes buffers and gives them back. ``start``: see :class:`SplitDriver`."""

    def __init__(
        self,
        mem: ModelMemory,
        num: int,
        desc: int,
        driver: int,
        device: int,
        *,
        event_idx: bool = False,
        indirect: bool = False,
        in_order: bool = False,
        legacy_endian: str = "<",
        start: int = 0,
    ) -> None:
        super().__init__(mem, num, event_idx, indirect, in_order)
        self._ring = SplitRing(mem, num, desc, driver, device, legacy_endian)
        # All counts go on beyond 65535; only what is stored wraps.
        self._last_avail = start
        self._used = start
        self._signalled = start
        # Ring descriptors of each chain the device holds.
        self._descriptors: dict[int, list[int]] = {}
        self._held_descriptors: set[int] = set()
        # With IN_ORDER: the descriptor the next chain must begin with; None if not known.
        self._next_head: int | None = 0
        self._notify = True
        self.enable_notify()

    def pop(self) -> Chain | None:
        """The next available buffer, or None. Raises :class:`ModelError` and stays before it."""
        pending = self._pending()
        if pending == 0:
            return None
        if pending > self.num:
            raise ModelError(f"avail.idx is {pending} ahead in a ring of {self.num}")
        head = self._ring.avail_head(self._last_avail)
        indices, segments = self._walk(head)
        chain = self._checked(head, segments)
        self._held[head] = chain
        self._descriptors[head] = indices
        self._held_descriptors.update(indices)
        self._next_head = (indices[-1] + 1) % self.num
        self._last_avail += 1
        if self._event_idx and self._notify:
            self._ring.set_avail_event(self._last_avail)
        return chain

    def need_notify(self) -> bool:
        """Whether the driver must be notified of what was pushed since the last call (2.7.7.2)."""
        old, self._signalled = self._signalled, self._used
        if not self._event_idx:
            return not self._ring.avail_flags() & AVAIL_F_NO_INTERRUPT
        unknown, self._signal_unknown = self._signal_unknown, False
        return unknown or need_event(self._ring.used_event(), self._used, old)

    def enable_notify(self) -> bool:
        """Ask for a notification of the next available buffer; True if none is there already."""
        self._notify = True
        if self._event_idx:
            self._ring.set_avail_event(self._last_avail)
        else:
            self._ring.set_used_flags(0)
        return self._pending() == 0

    def disable_notify(self) -> None:
        """Ask for no notifications: only a hint (2.7.10.2)."""
        self._notify = False
        if self._event_idx:
            # Flags stay 0 with EVENT_IDX. The entry just passed comes up last of all.
            self._ring.set_avail_event(self._last_avail - 1)
        else:
            self._ring.set_used_flags(USED_F_NO_NOTIFY)

    def position(self) -> int:
        """The 16-bit available index up to which all was used. The device must hold nothing."""
        self._check_none_held()
        return self._last_avail % 65536

    def restore(self, position: int) -> None:
        """Go on where another device stopped with :meth:`position`."""
        self._check_none_held()
        self._last_avail = self._used = self._signalled = position
        self._next_head = None
        self._signal_unknown = True

    def _pending(self) -> int:
        return (self._ring.avail_idx() - self._last_avail) % 65536

    def _walk(self, head: int) -> tuple[list[int], list[Segment]]:
        """Follow a chain through the ring's table: descriptor indices and elements."""
        if self._in_order and self._next_head not in (None, head):
            raise ModelError(f"head {head} is not next in ring order, {self._next_head} is")
        indices: list[int] = []
        segments: list[Segment] = []
        index = head
        while True:
            if index >= self.num:
                raise ModelError(f"descriptor {index} in a table of {self.num}")
            if len(indices) == self.num:
                raise ModelError("the chain loops")
            if index in self._held_descriptors:
                raise ModelError(f"descriptor {index} belongs to a chain the device holds")
            desc = self._ring.descriptor(self._ring.desc, index)
            indices.append(index)
            if desc.flags & F_INDIRECT:
                if desc.flags & F_NEXT:  # 2.7.5.3.1
                    raise ModelError("INDIRECT together with NEXT")
                # 2.7.5.3.2: WRITE means nothing here; direct descriptors may come before.
                return indices, segments + self._walk_table(desc.addr, desc.len)
            segments.append((desc.addr, desc.len, bool(desc.flags & F_WRITE)))
            if not desc.flags & F_NEXT:
                return indices, segments
            if self._in_order and desc.next != (index + 1) % self.num:  # 2.7.5.2
                raise ModelError(f"next of descriptor {index} is {desc.next}, with IN_ORDER")
            index = desc.next

    def _walk_table(self, addr: int, length: int) -> list[Segment]:
        """Follow the chain inside an indirect table, from its entry 0."""
        entries = self._table_entries(addr, length)
        segments: list[Segment] = []
        index = 0
        while True:
            if index >= entries:
                raise ModelError(f"entry {index} in an indirect table of {entries}")
            if len(segments) == entries:
                raise ModelError("the chain in the indirect table loops")
            desc = self._ring.descriptor(addr, index)
            if desc.flags & F_INDIRECT:  # 2.7.5.3.1
                raise ModelError("INDIRECT inside an indirect table")
            segments.append((desc.addr, desc.len, bool(desc.flags & F_WRITE)))
            if not desc.flags & F_NEXT:
                return segments
            if self._in_order and desc.next != index + 1:  # 2.7.5.3.1
                raise ModelError(f"next of table entry {index} is {desc.next}, with IN_ORDER")
            index = desc.next

    def _write_used(self, idents: list[int], written: int) -> None:
        """2.7.8, 2.7.9: one element, at the place of the batch's first buffer."""
        self._ring.set_used_element(self._used, idents[-1], written)
        self._used += len(idents)

    def _publish_used(self) -> None:
        self._ring.set_used_idx(self._used)

    def _forget(self, ident: int) -> None:
        self._held_descriptors.difference_update(self._descriptors.pop(ident))
