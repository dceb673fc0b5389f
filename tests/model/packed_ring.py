"""The fields of a packed ring in memory (2.8.13, 2.8.14), for both sides.

A *count* here numbers descriptor slots from the start of time and never wraps. The slot's index
is the count modulo the queue size. The wrap counter starts at 1 and flips each lap (2.8.1).
"""

from __future__ import annotations

from dataclasses import dataclass

from .layout import DESC_SIZE, EVENT_DESC, EVENT_DISABLE, F_AVAIL, F_USED, check_packed_size
from .memory import ModelMemory


@dataclass(frozen=True)
class PackedDescriptor:
    """``pvirtq_desc`` (2.8.13)."""

    addr: int
    len: int
    id: int
    flags: int


class PackedRing:
    """Reads and writes one structure at a time, and translates counts to slots."""

    def __init__(
        self, mem: ModelMemory, num: int, desc: int, driver: int, device: int, endian: str
    ) -> None:
        check_packed_size(num)
        for name, addr, align in (("desc", desc, 16), ("driver", driver, 4), ("device", device, 4)):
            if addr % align:  # 2.8.10.1
                raise ValueError(f"the {name} area is at {addr:#x}, not a multiple of {align}")
        self._mem = mem
        self.num = num
        self._desc = desc
        self.driver_event = driver
        self.device_event = device
        self._endian = endian

    def clear(self) -> None:
        """Zero all three areas: the descriptor ring is zero-initialized (2.8.13)."""
        self._mem.write(self._desc, bytes(16 * self.num))
        self._mem.write(self.driver_event, bytes(4))
        self._mem.write(self.device_event, bytes(4))

    def slot(self, count: int) -> tuple[int, int]:
        """Index and wrap counter of slot number ``count``."""
        lap, index = divmod(count, self.num)
        return index, 1 if lap % 2 == 0 else 0

    def descriptor(self, count: int) -> PackedDescriptor:
        """The descriptor in slot number ``count``."""
        index, _ = self.slot(count)
        return self.table_entry(self._desc, index)

    def table_entry(self, table: int, index: int) -> PackedDescriptor:
        """Entry ``index`` of the descriptors at address ``table``."""
        at = table + DESC_SIZE * index
        return PackedDescriptor(
            self._mem.u64(at, self._endian),
            self._mem.u32(at + 8, self._endian),
            self._mem.u16(at + 12, self._endian),
            self._mem.u16(at + 14, self._endian),
        )

    def set_table_entry(self, table: int, index: int, value: PackedDescriptor) -> None:
        """Write entry ``index`` of an indirect table at address ``table``."""
        at = table + DESC_SIZE * index
        self._mem.set_u64(at, value.addr, self._endian)
        self._mem.set_u32(at + 8, value.len, self._endian)
        self._mem.set_u16(at + 12, value.id, self._endian)
        self._mem.set_u16(at + 14, value.flags, self._endian)

    def set_addr(self, count: int, addr: int) -> None:
        self._mem.set_u64(self._slot_addr(count), addr, self._endian)

    def set_len(self, count: int, length: int) -> None:
        self._mem.set_u32(self._slot_addr(count) + 8, length, self._endian)

    def set_id(self, count: int, ident: int) -> None:
        self._mem.set_u16(self._slot_addr(count) + 12, ident, self._endian)

    def set_flags(self, count: int, flags: int) -> None:
        self._mem.set_u16(self._slot_addr(count) + 14, flags, self._endian)

    def avail_bits(self, count: int) -> int:
        """AVAIL and USED as they mark slot ``count`` available: AVAIL = wrap, USED = inverse."""
        _, wrap = self.slot(count)
        return F_AVAIL if wrap else F_USED

    def used_bits(self, count: int) -> int:
        """AVAIL and USED as they mark slot ``count`` used: both equal to the wrap counter."""
        _, wrap = self.slot(count)
        return F_AVAIL | F_USED if wrap else 0

    def is_avail(self, count: int, flags: int) -> bool:
        """Whether ``flags``, read from slot ``count``, say that it is available in this lap."""
        return flags & (F_AVAIL | F_USED) == self.avail_bits(count)

    def is_used(self, count: int, flags: int) -> bool:
        """Whether ``flags``, read from slot ``count``, say that it is used in this lap."""
        return flags & (F_AVAIL | F_USED) == self.used_bits(count)

    def set_event(self, area: int, flags: int) -> None:
        """Write the event flags of an event suppression structure; reserved bits are 0."""
        self._mem.set_u16(area + 2, flags, self._endian)

    def set_event_slot(self, area: int, count: int) -> None:
        """Write offset and wrap counter of slot ``count`` into an event suppression structure."""
        index, wrap = self.slot(count)
        self._mem.set_u16(area, index | wrap << 15, self._endian)

    def wants_event(self, area: int, old: int, new: int, event_idx: bool) -> bool:
        """Whether the owner of the structure at ``area`` wants to hear of slots old .. new - 1.

        2.8.10: always, never, or when the descriptor of this offset and wrap counter is written.
        Offset and wrap counter repeat every second lap, so more than two laps add nothing.
        """
        flags = self._mem.u16(area + 2, self._endian) & 3
        if flags == EVENT_DISABLE:
            return False
        if flags != EVENT_DESC or not event_idx:
            return True
        off_wrap = self._mem.u16(area, self._endian)
        event = (off_wrap & 0x7FFF, off_wrap >> 15)
        return any(self.slot(c) == event for c in range(old, min(new, old + 2 * self.num)))

    def _slot_addr(self, count: int) -> int:
        index, _ = self.slot(count)
        return self._desc + DESC_SIZE * index
