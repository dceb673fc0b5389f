"""The fields of a split ring in memory (2.7.5, 2.7.6, 2.7.8), for both sides."""

from __future__ import annotations

from dataclasses import dataclass

from .layout import DESC_SIZE, check_split_size
from .memory import ModelMemory


@dataclass(frozen=True)
class SplitDescriptor:
    """``virtq_desc`` (2.7.5)."""

    addr: int
    len: int
    flags: int
    next: int


class SplitRing:
    """Reads and writes one field at a time; knows no rule of who may write what."""

    def __init__(
        self, mem: ModelMemory, num: int, desc: int, driver: int, device: int, endian: str
    ) -> None:
        check_split_size(num)
        for name, addr, align in (("desc", desc, 16), ("driver", driver, 2), ("device", device, 4)):
            if addr % align:  # 2.7.1
                raise ValueError(f"the {name} area is at {addr:#x}, not a multiple of {align}")
        self._mem = mem
        self.num = num
        self.desc = desc
        self._avail = driver
        self._used = device
        self._endian = endian

    def clear(self) -> None:
        """Zero all three areas, event fields included."""
        self._mem.write(self.desc, bytes(16 * self.num))
        self._mem.write(self._avail, bytes(6 + 2 * self.num))
        self._mem.write(self._used, bytes(6 + 8 * self.num))

    def descriptor(self, table: int, index: int) -> SplitDescriptor:
        """Entry ``index`` of the table at address ``table``: the ring's own or an indirect one."""
        at = table + DESC_SIZE * index
        return SplitDescriptor(
            self._mem.u64(at, self._endian),
            self._mem.u32(at + 8, self._endian),
            self._mem.u16(at + 12, self._endian),
            self._mem.u16(at + 14, self._endian),
        )

    def set_descriptor(self, table: int, index: int, value: SplitDescriptor) -> None:
        """Write entry ``index`` of the table at address ``table``."""
        at = table + DESC_SIZE * index
        self._mem.set_u64(at, value.addr, self._endian)
        self._mem.set_u32(at + 8, value.len, self._endian)
        self._mem.set_u16(at + 12, value.flags, self._endian)
        self._mem.set_u16(at + 14, value.next, self._endian)

    def avail_flags(self) -> int:
        return self._mem.u16(self._avail, self._endian)

    def set_avail_flags(self, value: int) -> None:
        self._mem.set_u16(self._avail, value, self._endian)

    def avail_idx(self) -> int:
        return self._mem.u16(self._avail + 2, self._endian)

    def set_avail_idx(self, value: int) -> None:
        self._mem.set_u16(self._avail + 2, value % 65536, self._endian)

    def avail_head(self, count: int) -> int:
        """The head that entry number ``count`` (counted from the start of time) holds."""
        return self._mem.u16(self._avail + 4 + 2 * (count % self.num), self._endian)

    def set_avail_head(self, count: int, head: int) -> None:
        self._mem.set_u16(self._avail + 4 + 2 * (count % self.num), head, self._endian)

    def used_event(self) -> int:
        return self._mem.u16(self._avail + 4 + 2 * self.num, self._endian)

    def set_used_event(self, value: int) -> None:
        self._mem.set_u16(self._avail + 4 + 2 * self.num, value % 65536, self._endian)

    def used_flags(self) -> int:
        return self._mem.u16(self._used, self._endian)

    def set_used_flags(self, value: int) -> None:
        self._mem.set_u16(self._used, value, self._endian)

    def used_idx(self) -> int:
        return self._mem.u16(self._used + 2, self._endian)

    def set_used_idx(self, value: int) -> None:
        self._mem.set_u16(self._used + 2, value % 65536, self._endian)

    def used_element(self, count: int) -> tuple[int, int]:
        """``id`` and ``len`` of used entry number ``count``."""
        at = self._used + 4 + 8 * (count % self.num)
        return self._mem.u32(at, self._endian), self._mem.u32(at + 4, self._endian)

    def set_used_element(self, count: int, ident: int, length: int) -> None:
        at = self._used + 4 + 8 * (count % self.num)
        self._mem.set_u32(at, ident, self._endian)
        self._mem.set_u32(at + 4, length, self._endian)

    def avail_event(self) -> int:
        return self._mem.u16(self._used + 4 + 8 * self.num, self._endian)

    def set_avail_event(self, value: int) -> None:
        self._mem.set_u16(self._used + 4 + 8 * self.num, value % 65536, self._endian)
