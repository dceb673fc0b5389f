"""MSI-X: table, pending bits and masks of one PCI function (PCI 3.0, 6.8.2)."""

from collections.abc import Callable
from threading import RLock

from virtring.errors import InvalidArgument
from virtring.spec.pci import MSIX_VECTOR_MASKED, MsixControl

ENTRY = 16
MAX_VECTORS = 2048


class Msix:
    """``vectors`` messages. What is raised while it cannot be sent is kept pending.

    send(vector): sends the message; never called with a lock held. external: somebody else keeps
    the table and its masks (the other end of vfio-user does), the entries here do not count.
    """

    def __init__(self, vectors: int, send: Callable[[int], object]) -> None:
        if not 1 <= vectors <= MAX_VECTORS:
            raise InvalidArgument(f"{vectors} MSI-X vectors; it takes 1 to {MAX_VECTORS}")
        self.vectors = vectors
        self.send = send
        self.external = False
        self.enabled = False
        self.function_masked = False
        #: May the function write messages to memory (PciCommand.MASTER)?
        self.master = False
        self.table = bytearray(ENTRY * vectors)
        self._pending = 0
        self._lock = RLock()
        self.reset()

    @property
    def table_bytes(self) -> int:
        return ENTRY * self.vectors

    @property
    def pba_bytes(self) -> int:
        return (self.vectors + 63) // 64 * 8

    def reset(self) -> None:
        """Disabled, every vector masked, nothing pending."""
        with self._lock:
            self.enabled = self.function_masked = self.master = False
            entry = bytes(12) + MSIX_VECTOR_MASKED.to_bytes(4, "little")
            self.table[:] = entry * self.vectors
            self._pending = 0

    def clear_pending(self) -> None:
        """Forget what is pending: the device was reset."""
        with self._lock:
            self._pending = 0

    def masked(self, vector: int) -> bool:
        """Can this vector's message not be sent now?"""
        if not self.enabled or not self.master or self.function_masked:
            return True
        return not self.external and bool(self.table[ENTRY * vector + 12] & MSIX_VECTOR_MASKED)

    def message(self, vector: int) -> tuple[int, int]:
        """Address and data of a table entry."""
        entry = self.table[ENTRY * vector : ENTRY * (vector + 1)]
        return int.from_bytes(entry[:8], "little"), int.from_bytes(entry[8:12], "little")

    def signal(self, vector: int) -> None:
        """Send this vector's message as soon as it may be sent."""
        if not 0 <= vector < self.vectors or not self.enabled:
            return
        with self._lock:
            if self.masked(vector):
                self._pending |= 1 << vector
                return
        self.send(vector)

    def flush(self) -> None:
        """Masks may have gone: send what is pending."""
        with self._lock:
            ready = [
                vector
                for vector in range(self._pending.bit_length())
                if self._pending >> vector & 1 and not self.masked(vector)
            ]
            for vector in ready:
                self._pending &= ~(1 << vector)
        for vector in ready:
            self.send(vector)

    def set_control(self, value: int, master: bool) -> None:
        """The driver wrote the control word, or the command register."""
        with self._lock:
            self.enabled = bool(value & MsixControl.ENABLE)
            self.function_masked = bool(value & MsixControl.FUNCTION_MASK)
            self.master = master
            if not self.enabled:
                self._pending = 0
        self.flush()

    def read_table(self, offset: int, size: int) -> int | None:
        """None unless it is a whole, aligned double or quad word of the table."""
        if size not in (4, 8) or offset % size or offset + size > len(self.table):
            return None
        return int.from_bytes(self.table[offset : offset + size], "little")

    def write_table(self, offset: int, size: int, value: int) -> bool:
        """Whether it was a whole, aligned double or quad word of the table."""
        if size not in (4, 8) or offset % size or offset + size > len(self.table):
            return False
        with self._lock:
            self.table[offset : offset + size] = value.to_bytes(size, "little")
            if (offset + size) % ENTRY == 0:
                # Of the control word only the mask bit exists; the address is one of double words.
                end = offset + size
                self.table[end - 4 : end] = bytes([self.table[end - 4] & 1, 0, 0, 0])
            elif offset % ENTRY == 0:
                self.table[offset] &= ~3
        self.flush()
        return True

    def read_pba(self, offset: int, size: int) -> int | None:
        """Pending bits; None unless whole and aligned."""
        if size not in (4, 8) or offset % size or offset + size > self.pba_bytes:
            return None
        return self._pending >> 8 * offset & (1 << 8 * size) - 1
