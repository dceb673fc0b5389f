"""The device side of a packed ring (2.8)."""

from __future__ import annotations

from .common import Chain, ModelError, Segment
from .device_base import DeviceBase
from .layout import EVENT_DESC, EVENT_DISABLE, EVENT_ENABLE, F_INDIRECT, F_NEXT, F_WRITE
from .memory import ModelMemory
from .packed_ring import PackedRing


class PackedDevice(DeviceBase):
    """Takes buffers and gives them back."""

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
        super().__init__(mem, num, event_idx, indirect, in_order)
        self._ring = PackedRing(mem, num, desc, driver, device, legacy_endian)
        # Counts of descriptor slots; see packed_ring.
        self._next_avail = 0
        self._next_used = 0
        self._signalled = 0
        # How many slots each buffer takes that the device holds.
        self._slots: dict[int, int] = {}
        self._event_flags = EVENT_ENABLE

    def pop(self) -> Chain | None:
        """The next available buffer, or None. Raises :class:`ModelError` and stays before it."""
        if not self._next_is_avail():
            return None
        ident, slots, segments = self._walk()
        if ident >= self.num:  # 2.8.22
            raise ModelError(f"buffer id {ident} in a ring of {self.num}")
        chain = self._checked(ident, segments)
        self._held[ident] = chain
        self._slots[ident] = slots
        self._next_avail += slots
        if self._event_flags == EVENT_DESC:
            self._ring.set_event_slot(self._ring.device_event, self._next_avail)
        return chain

    def need_notify(self) -> bool:
        """Whether the driver must be notified of what was pushed since the last call (2.8.10)."""
        old, self._signalled = self._signalled, self._next_used
        if self._signal_unknown:
            # Any slot of either lap may be one that the driver was not told of.
            old = self._next_used - 2 * self.num
            self._signal_unknown = False
        return self._ring.wants_event(
            self._ring.driver_event, old, self._next_used, self._event_idx
        )

    def enable_notify(self) -> bool:
        """Ask for a notification of the next available buffer; True if none is there already."""
        if self._event_idx:
            self._ring.set_event_slot(self._ring.device_event, self._next_avail)
        self._event_flags = EVENT_DESC if self._event_idx else EVENT_ENABLE
        self._ring.set_event(self._ring.device_event, self._event_flags)
        return not self._next_is_avail()

    def disable_notify(self) -> None:
        """Ask for no notifications: only a hint (2.8.10)."""
        self._event_flags = EVENT_DISABLE
        self._ring.set_event(self._ring.device_event, EVENT_DISABLE)

    def position(self) -> int:
        """Index and wrap counter (bit 15) of the next available slot, and above it (bits 16 to 31)
        the same of the next used one. The device must hold nothing."""
        self._check_none_held()
        index, wrap = self._ring.slot(self._next_avail)
        half = index | wrap << 15
        return half | half << 16

    def restore(self, position: int) -> None:
        """Go on where another device stopped with :meth:`position`."""
        self._check_none_held()
        avail, used = position & 0xFFFF, position >> 16
        if avail != used or avail & 0x7FFF >= self.num:
            raise ValueError(f"{position:#x} is not a position with nothing in flight")
        count = (avail & 0x7FFF) + (0 if avail >> 15 else self.num)
        self._next_avail = self._next_used = self._signalled = count
        self._signal_unknown = True

    def _next_is_avail(self) -> bool:
        flags = self._ring.descriptor(self._next_avail).flags
        return self._ring.is_avail(self._next_avail, flags)

    def _walk(self) -> tuple[int, int, list[Segment]]:
        """The next list of descriptors: Buffer ID, number of slots, elements (2.8.5, 2.8.6)."""
        segments: list[Segment] = []
        count = self._next_avail
        while True:
            if count - self._next_used >= self.num:
                raise ModelError("more descriptors are available than the ring has")
            desc = self._ring.descriptor(count)
            if not self._ring.is_avail(count, desc.flags):
                raise ModelError("a list goes on in a descriptor that is not available")
            count += 1
            if desc.flags & F_INDIRECT:
                if desc.flags & F_NEXT or segments:  # 2.8.5, 2.8.19
                    raise ModelError("INDIRECT in a list linked by NEXT")
                return desc.id, 1, self._walk_table(desc.addr, desc.len)
            segments.append((desc.addr, desc.len, bool(desc.flags & F_WRITE)))
            if not desc.flags & F_NEXT:
                # 2.8.6: the Buffer ID that counts is the one in the last descriptor.
                return desc.id, count - self._next_avail, segments

    def _walk_table(self, addr: int, length: int) -> list[Segment]:
        """2.8.7: all descriptors of the table, one after another; no flag counts but WRITE."""
        entries = [
            self._ring.table_entry(addr, k) for k in range(self._table_entries(addr, length))
        ]
        return [(desc.addr, desc.len, bool(desc.flags & F_WRITE)) for desc in entries]

    def _write_used(self, idents: list[int], written: int) -> None:
        """2.8.6, 2.8.8: over the first slot of the batch; then skip all its slots. Flags last."""
        self._ring.set_id(self._next_used, idents[-1])
        self._ring.set_len(self._next_used, written)
        write = F_WRITE if written else 0  # 2.8.3
        self._ring.set_flags(self._next_used, self._ring.used_bits(self._next_used) | write)
        self._next_used += sum(self._slots[ident] for ident in idents)

    def _publish_used(self) -> None:
        """Nothing: the flags of each used descriptor did it."""

    def _forget(self, ident: int) -> None:
        del self._slots[ident]
