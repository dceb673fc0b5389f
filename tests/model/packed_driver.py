"""The driver side of a packed ring (2.8)."""

from __future__ import annotations

from collections import deque

from .common import ModelError
from .driver_base import DriverBase, Plan
from .layout import EVENT_DESC, EVENT_DISABLE, EVENT_ENABLE, F_NEXT, F_WRITE
from .memory import ModelMemory
from .packed_ring import PackedDescriptor, PackedRing


class PackedDriver(DriverBase):
    """Makes buffers available and gets them back. Zeroes the ring when it is created."""

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
    ) -> None:
        super().__init__(num, event_idx, indirect, in_order)
        self._ring = PackedRing(mem, num, desc, driver, device, legacy_endian)
        self._ring.clear()
        # Counts of descriptor slots; see packed_ring.
        self._avail = 0
        self._next_used = 0
        self._kicked = 0
        self._free_ids = deque(range(num))
        # First slot of each placed buffer that is not yet visible, with its flags.
        self._unpublished: list[tuple[int, int]] = []
        self._event_flags = EVENT_ENABLE

    def kick_prepare(self) -> bool:
        """Whether the device must be notified of what was added since the last call (2.8.21.2)."""
        old, self._kicked = self._kicked, self._avail
        return self._ring.wants_event(self._ring.device_event, old, self._avail, self._event_idx)

    def enable_cb(self) -> bool:
        """Ask for a notification of the next used buffer; True if none is used already."""
        self._enable_at(self._next_used)
        return not self._batch and not self._next_is_used()

    def enable_cb_delayed(self) -> bool:
        """Ask for a notification when three quarters of the slots in flight are used.

        False if a buffer is used already, as Linux's virtqueue_enable_cb_delayed.
        """
        self._enable_at(self._next_used + (self._avail - self._next_used) * 3 // 4)
        return not self._batch and not self._next_is_used()

    def disable_cb(self) -> None:
        """Ask for no notifications: only a hint (2.8.10)."""
        self._event_flags = EVENT_DISABLE
        self._ring.set_event(self._ring.driver_event, EVENT_DISABLE)

    def _enable_at(self, count: int) -> None:
        """Offset and wrap counter first: the flags make them valid (2.8.10)."""
        if self._event_idx:
            self._ring.set_event_slot(self._ring.driver_event, count)
        self._event_flags = EVENT_DESC if self._event_idx else EVENT_ENABLE
        self._ring.set_event(self._ring.driver_event, self._event_flags)

    def _place(self, plan: Plan) -> int:
        """2.8.21.1: everything but the flags of the buffer's first descriptor."""
        if plan.table:
            address = plan.ring[-1][0]
            for k, (addr, length, flags) in enumerate(plan.table):
                # 2.8.19: no flag but WRITE. 2.8.7: the id is reserved.
                self._ring.set_table_entry(address, k, PackedDescriptor(addr, length, 0, flags))
        ident = self._free_ids.popleft()
        for k, (addr, length, flags) in enumerate(plan.ring):
            count = self._avail + k
            self._ring.set_addr(count, addr)
            self._ring.set_len(count, length)
            self._ring.set_id(count, ident)
            flags |= self._ring.avail_bits(count)
            if k + 1 < len(plan.ring):
                flags |= F_NEXT
            if k == 0:
                self._unpublished.append((count, flags))
            else:
                self._ring.set_flags(count, flags)
        self._avail += len(plan.ring)
        return ident

    def _publish(self, idents: list[int]) -> None:
        """Last buffer first, so that the device sees either none of them or all (2.8.16)."""
        for count, flags in reversed(self._unpublished):
            self._ring.set_flags(count, flags)
        self._unpublished.clear()

    def _next_is_used(self) -> bool:
        """2.8.22: a slot must have been made available before it can be used."""
        if self._next_used == self._avail:
            return False
        return self._ring.is_used(self._next_used, self._ring.descriptor(self._next_used).flags)

    def _peek_used(self) -> tuple[int, int] | None:
        if not self._next_is_used():
            return None
        used = self._ring.descriptor(self._next_used)
        # 2.8.4: the length of a used descriptor without WRITE is reserved.
        return used.id, used.len if used.flags & F_WRITE else 0

    def _skip_used(self, idents: list[int]) -> None:
        """2.8.6, 2.8.8: skip all descriptors of all buffers of the batch."""
        count = sum(self._in_flight[ident].descriptors for ident in idents)
        if self._next_used + count > self._avail:
            raise ModelError(f"{count} descriptors are used, more than are in flight")
        self._next_used += count

    def _release(self, ident: int) -> None:
        self._free_ids.append(ident)

    def _update_event(self) -> None:
        if self._event_flags == EVENT_DESC:
            self._ring.set_event_slot(self._ring.driver_event, self._next_used)
