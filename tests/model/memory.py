"""Guest memory as the model sees it: addresses in front, plain bytes behind."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from .common import ModelError

if TYPE_CHECKING:
    from typing_extensions import Buffer


class ModelMemory:
    """One stretch of guest memory over any writable buffer; its first byte is at ``base``."""

    def __init__(self, buffer: Buffer, base: int = 0) -> None:
        self._bytes = memoryview(buffer).cast("B")
        if self._bytes.readonly:
            raise ValueError("the buffer is read-only; the model needs a writable one")
        self.base = base

    def contains(self, addr: int, n: int) -> bool:
        """Whether all ``n`` bytes from ``addr`` are inside the memory."""
        return self.base <= addr and addr + n <= self.base + len(self._bytes)

    def read(self, addr: int, n: int) -> bytes:
        """A copy of ``n`` bytes."""
        start = self._offset(addr, n)
        return bytes(self._bytes[start : start + n])

    def write(self, addr: int, data: bytes) -> None:
        """Store ``data`` from ``addr`` on."""
        start = self._offset(addr, len(data))
        self._bytes[start : start + len(data)] = data

    def u16(self, addr: int, endian: str = "<") -> int:
        """The 16-bit number at ``addr``; ``endian`` is ``"<"`` or ``">"``."""
        return self._get("H", 2, addr, endian)

    def u32(self, addr: int, endian: str = "<") -> int:
        """The 32-bit number at ``addr``."""
        return self._get("I", 4, addr, endian)

    def u64(self, addr: int, endian: str = "<") -> int:
        """The 64-bit number at ``addr``."""
        return self._get("Q", 8, addr, endian)

    def set_u16(self, addr: int, value: int, endian: str = "<") -> None:
        """Store a 16-bit number at ``addr``."""
        struct.pack_into(endian + "H", self._bytes, self._offset(addr, 2), value)

    def set_u32(self, addr: int, value: int, endian: str = "<") -> None:
        """Store a 32-bit number at ``addr``."""
        struct.pack_into(endian + "I", self._bytes, self._offset(addr, 4), value)

    def set_u64(self, addr: int, value: int, endian: str = "<") -> None:
        """Store a 64-bit number at ``addr``."""
        struct.pack_into(endian + "Q", self._bytes, self._offset(addr, 8), value)

    def _get(self, code: str, size: int, addr: int, endian: str) -> int:
        (value,) = struct.unpack_from(endian + code, self._bytes, self._offset(addr, size))
        return int(value)

    def _offset(self, addr: int, n: int) -> int:
        if not self.contains(addr, n):
            raise ModelError(f"{n} bytes at {addr:#x} are not inside the memory")
        return addr - self.base
