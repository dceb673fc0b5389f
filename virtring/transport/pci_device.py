"""A PCI function as a machine sees it: configuration space, BARs, capabilities, interrupts.

The back end's half (Fuchsia's ``PciDevice``). Nothing that is read or written here raises for what
the guest does: reads outside give all ones, writes go nowhere, as on the real bus.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from virtring.errors import InvalidArgument, VirtioError
from virtring.memory import Region
from virtring.spec.pci import (
    PCI_CONFIG_SIZE,
    PCI_HEADER_SIZE,
    MsixControl,
    MsixReg,
    PciBar,
    PciCapID,
    PciCommand,
    PciReg,
    PciStatus,
)
from virtring.transport.pci_msix import Msix
from virtring.transport.registers import all_ones

log = logging.getLogger(__name__)

#: Bytes of a PCI Express configuration space.
CONFIG_SIZE = 4096
#: The least a BAR has here, so that each can be mapped by whole pages.
PAGE = 4096
BARS = 6
#: Bits of the low and high byte of the command register, as plain integers: asked all the time.
MASTER_BYTE, INTX_DISABLE_BYTE = int(PciCommand.MASTER), int(PciCommand.INTX_DISABLE) >> 8


@dataclass(frozen=True)
class BarArea:
    """Part of a BAR that is plain memory: ``len`` bytes from ``offset`` of the BAR on."""

    offset: int
    len: int
    region: Region
    region_offset: int = 0


@dataclass
class Bar:
    """A memory BAR. size: bytes, a power of two. areas: what of it is memory, not registers."""

    index: int
    size: int
    is_64: bool = False
    prefetch: bool = False
    areas: list[BarArea] = field(default_factory=list)

    @property
    def flags(self) -> int:
        kind = PciBar.MEM_TYPE_64 if self.is_64 else PciBar(0)
        return int(kind | (PciBar.MEM_PREFETCH if self.prefetch else PciBar(0)))


@dataclass(frozen=True)
class PciCapability:
    """A capability: its bytes behind id and next pointer, and which bits the driver may write.

    ``writable`` is a mask over ``data``, empty for none.
    """

    id: int
    data: bytes
    writable: bytes = b""


class PciDevice:
    """One function: type 0 header, capabilities, BARs.

    A subclass overrides :meth:`read_bar`, :meth:`write_bar` and :attr:`interrupt_pending`.
    ``intx`` is called when the level of the INTx pin may have changed, ``send_msix(vector)`` for
    a message, ``traps`` when a BAR moved or the memory decoder was switched; a bus (or whoever
    stands for it) sets them. ``refused`` counts what the driver did wrong.
    """

    def __init__(
        self,
        vendor: int,
        device: int,
        class_code: int,
        *,
        revision: int = 0,
        subsystem_vendor: int = 0,
        subsystem: int = 0,
        name: str = "",
    ) -> None:
        self.name = name or f"{vendor:04x}:{device:04x}"
        self.config = bytearray(CONFIG_SIZE)
        self.writable = bytearray(CONFIG_SIZE)
        self.bars: dict[int, Bar] = {}
        self.capabilities: dict[int, PciCapability] = {}
        self.msix: Msix | None = None
        self._msix_cap = 0
        self._msix_bar: tuple[int, int] = (-1, 0)
        self.refused = 0
        self.intx: Callable[[], object] = lambda: None
        self.send_msix: Callable[[int], object] = lambda vector: None
        self.traps: Callable[[], object] = lambda: None
        for reg, size, value in (
            (PciReg.VENDOR_ID, 2, vendor),
            (PciReg.DEVICE_ID, 2, device),
            (PciReg.REVISION_ID, 1, revision),
            (PciReg.CLASS_CODE, 3, class_code),
            (PciReg.SUBSYSTEM_VENDOR_ID, 2, subsystem_vendor),
            (PciReg.SUBSYSTEM_ID, 2, subsystem),
            (PciReg.INTERRUPT_PIN, 1, 1),
        ):
            self._put(reg, size, value)
        command = PciCommand.MEMORY | PciCommand.MASTER | PciCommand.INTX_DISABLE
        self._put(PciReg.COMMAND, 2, int(command), self.writable)
        self._put(PciReg.INTERRUPT_LINE, 1, 0xFF, self.writable)
        self._put(PciReg.CACHE_LINE_SIZE, 1, 0xFF, self.writable)

    # Building.

    def add_bar(self, index: int, size: int, *, is_64: bool = False, prefetch: bool = False) -> Bar:
        """A memory BAR of at least ``size`` bytes, rounded up to a power of two of pages."""
        used = {i for bar in self.bars.values() for i in (bar.index, bar.index + bar.is_64)}
        if not 0 <= index < BARS - is_64 or used & {index, index + is_64}:
            raise InvalidArgument(f"{self.name}: BAR {index} does not exist or is taken")
        size = max(PAGE, 1 << (size - 1).bit_length())
        if size > 1 << (63 if is_64 else 31):
            raise InvalidArgument(f"{self.name}: BAR {index} of {size} bytes")
        bar = self.bars[index] = Bar(index, size, is_64, prefetch)
        reg, width = PciReg.BAR0 + 4 * index, 8 if is_64 else 4
        self._put(reg, width, bar.flags)
        self._put(reg, width, -size & all_ones(width), self.writable)
        return bar

    def set_capabilities(self, capabilities: Sequence[PciCapability]) -> None:
        """Chain these behind the header, in this order; InvalidArgument if there is no room."""
        room = PCI_CONFIG_SIZE - PCI_HEADER_SIZE
        need = sum((len(cap.data) + 2 + 3) & ~3 for cap in capabilities)
        if need > room:
            raise InvalidArgument(f"{self.name}: capabilities of {need} bytes; there are {room}")
        for area in (self.config, self.writable):
            area[PCI_HEADER_SIZE:PCI_CONFIG_SIZE] = bytes(room)
        self.capabilities = {}
        link, at = int(PciReg.CAPABILITY_LIST), PCI_HEADER_SIZE
        self.config[link] = 0
        for cap in capabilities:
            self.config[link] = at
            self.config[at] = cap.id
            self.config[at + 2 : at + 2 + len(cap.data)] = cap.data
            self.writable[at + 2 : at + 2 + len(cap.writable)] = cap.writable
            self.capabilities[at] = cap
            link = at + 1
            at += (len(cap.data) + 2 + 3) & ~3
        status = PciStatus.CAP_LIST if capabilities else PciStatus(0)
        self._put(PciReg.STATUS, 2, int(status))
        self._msix_cap = self.find_capability(PciCapID.MSIX) if self.msix else 0

    def add_msix(self, vectors: int, bar: int) -> PciCapability:
        """Give the function MSI-X with its table at the start of a BAR of its own.

        Returns the capability, for :meth:`set_capabilities`.
        """
        msix = Msix(vectors, lambda vector: self.send_msix(vector))
        half = max(PAGE // 2, 1 << (msix.table_bytes - 1).bit_length())
        self.add_bar(bar, 2 * half)
        self.msix = msix
        self._msix_bar = (bar, half)
        control = (vectors - 1).to_bytes(2, "little")
        places = b"".join(((at | bar) & 0xFFFFFFFF).to_bytes(4, "little") for at in (0, half))
        mask = int(MsixControl.ENABLE | MsixControl.FUNCTION_MASK).to_bytes(2, "little")
        return PciCapability(PciCapID.MSIX, control + places, mask)

    def find_capability(self, id: int, start: int = 0) -> int:
        """Offset of the first capability with this id behind ``start``, 0 if there is none."""
        return next((at for at, cap in self.capabilities.items() if cap.id == id and at > start), 0)

    def read_capability(self, at: int) -> bytes:
        """The bytes of the capability at this offset as they stand, id and next included."""
        cap = self.capabilities.get(at)
        if cap is None:
            raise InvalidArgument(f"{self.name}: no capability at {at:#x}")
        return bytes(self.config[at : at + 2 + len(cap.data)])

    # What the guest does.

    def read_config(self, offset: int, size: int) -> int:
        """1, 2 or 4 aligned bytes of configuration space; all ones for anything else."""
        if size not in (1, 2, 4) or offset % size or not 0 <= offset <= CONFIG_SIZE - size:
            self.refuse(f"configuration read of {size} bytes at {offset:#x}")
            return all_ones(size)
        word = self.read_config_word(offset & ~3)
        return word >> 8 * (offset & 3) & all_ones(size)

    def read_config_word(self, offset: int) -> int:
        """The 32 bits at a multiple of 4."""
        if offset % 4 or not 0 <= offset <= CONFIG_SIZE - 4:
            raise InvalidArgument(f"configuration word at {offset:#x}: it takes a multiple of 4")
        word = int.from_bytes(self.config[offset : offset + 4], "little")
        if offset == PciReg.COMMAND and self.interrupt_pending and not self._msix_enabled:
            word |= int(PciStatus.INTERRUPT) << 16
        return word

    def write_config(self, offset: int, size: int, value: int) -> None:
        """Change the writable bits of 1, 2 or 4 aligned bytes; anything else is ignored."""
        if size not in (1, 2, 4) or offset % size or not 0 <= offset <= CONFIG_SIZE - size:
            self.refuse(f"configuration write of {size} bytes at {offset:#x}")
            return
        data = (value & all_ones(size)).to_bytes(size, "little")
        for at, new in enumerate(data, offset):
            mask = self.writable[at]
            self.config[at] = self.config[at] & ~mask | new & mask
        self._written(range(offset, offset + size))

    def read_bar(self, bar: int, offset: int, size: int) -> int:
        """1, 2, 4 or 8 bytes of a BAR; all ones for anything that is not there."""
        found = self.bars.get(bar)
        if found is None or size not in (1, 2, 4, 8) or not 0 <= offset <= found.size - size:
            self.refuse(f"read of {size} bytes at {offset:#x} of BAR {bar}")
            return all_ones(size)
        value = self.read_register(bar, offset, size)
        if value is None:
            value = self._read_msix(bar, offset, size)
        if value is None:
            value = self._read_memory(found, offset, size)
        if value is None:
            self.refuse(f"read of {size} bytes at {offset:#x} of BAR {bar}")
            return all_ones(size)
        return value & all_ones(size)

    def write_bar(self, bar: int, offset: int, size: int, value: int) -> None:
        """Write 1, 2, 4 or 8 bytes of a BAR; what is not there takes nothing."""
        found = self.bars.get(bar)
        if found is None or size not in (1, 2, 4, 8) or not 0 <= offset <= found.size - size:
            self.refuse(f"write of {size} bytes at {offset:#x} of BAR {bar}")
            return
        value &= all_ones(size)
        if not (
            self.write_register(bar, offset, size, value)
            or self._write_msix(bar, offset, size, value)
            or self._write_memory(found, offset, size, value)
        ):
            self.refuse(f"write of {size} bytes at {offset:#x} of BAR {bar}")

    # What a subclass overrides.

    @property
    def interrupt_pending(self) -> bool:
        """Does the function want its INTx pin up?"""
        return False

    def read_register(self, bar: int, offset: int, size: int) -> int | None:
        """A register's value; None where there is none of this width."""
        return None

    def write_register(self, bar: int, offset: int, size: int, value: int) -> bool:
        """Write a register; False where there is none of this width."""
        return False

    def config_written(self, touched: range) -> None:
        """These bytes of configuration space were written."""

    def refuse(self, reason: str) -> None:
        """The driver did what it must not; without effect."""
        self.refused += 1
        log.debug("%s: %s", self.name, reason)

    def reset(self) -> None:
        """As after power on: decoders off, BARs at 0, MSI-X off."""
        for at, mask in enumerate(self.writable):
            if mask:
                self.config[at] &= ~mask
        for at, cap in self.capabilities.items():
            self.config[at + 2 : at + 2 + len(cap.data)] = cap.data
        if self.msix is not None:
            self.msix.reset()
        self.setup_bar_traps()
        self.intx()

    # State.

    @property
    def master(self) -> bool:
        """May the function reach memory? (PciCommand.MASTER)"""
        return bool(self.config[4] & MASTER_BYTE)

    @property
    def command(self) -> PciCommand:
        return PciCommand(int.from_bytes(self.config[4:6], "little"))

    @property
    def _msix_enabled(self) -> bool:
        return self.msix is not None and self.msix.enabled

    @property
    def intx_level(self) -> bool:
        """Is the INTx pin up? Not with MSI-X or INTX_DISABLE."""
        if self._msix_enabled:
            return False
        return self.interrupt_pending and not self.config[5] & INTX_DISABLE_BYTE

    def interrupt(self) -> None:
        """Show the level of the INTx pin to the bus (Fuchsia's ``Interrupt``)."""
        self.intx()

    def bar_addr(self, index: int) -> int:
        """The address a BAR is set to."""
        bar = self.bars[index]
        at = PciReg.BAR0 + 4 * index
        return int.from_bytes(self.config[at : at + (8 if bar.is_64 else 4)], "little") & ~0xF

    def set_bar_addr(self, index: int, addr: int) -> None:
        """Move a BAR (firmware does this); through :meth:`write_config`, half by half."""
        at = PciReg.BAR0 + 4 * index
        self.write_config(at, 4, addr & 0xFFFFFFFF)
        if self.bars[index].is_64:
            self.write_config(at + 4, 4, addr >> 32)

    def setup_bar_traps(self) -> None:
        """Have the bus send the addresses of the BARs here (Fuchsia's ``SetupBarTraps``)."""
        self.traps()

    def _put(self, offset: int, size: int, value: int, area: bytearray | None = None) -> None:
        target = self.config if area is None else area
        target[offset : offset + size] = value.to_bytes(size, "little")

    def _written(self, touched: range) -> None:
        if touched.start < PciReg.CARDBUS_CIS and touched.stop > PciReg.BAR0:
            self.setup_bar_traps()
        command = touched.start < PciReg.STATUS and touched.stop > PciReg.COMMAND
        at = self._msix_cap + MsixReg.CONTROL
        control = at > MsixReg.CONTROL and touched.start < at + 2 and touched.stop > at
        if command:
            self.setup_bar_traps()
        if self.msix is not None and (command or control):
            value = int.from_bytes(self.config[at : at + 2], "little")
            self.msix.set_control(value, self.master)
        if command or control:
            self.intx()
        self.config_written(touched)

    def _read_msix(self, bar: int, offset: int, size: int) -> int | None:
        home, pba = self._msix_bar
        if self.msix is None or bar != home:
            return None
        if offset >= pba:
            return self.msix.read_pba(offset - pba, size)
        return self.msix.read_table(offset, size)

    def _write_msix(self, bar: int, offset: int, size: int, value: int) -> bool:
        home, pba = self._msix_bar
        if self.msix is None or bar != home or offset >= pba:
            return False
        return self.msix.write_table(offset, size, value)

    @staticmethod
    def _memory(bar: Bar, offset: int, size: int) -> tuple[memoryview, int] | None:
        for area in bar.areas:
            at = offset - area.offset
            if 0 <= at <= area.len - size:
                try:
                    return memoryview(area.region), area.region_offset + at
                except (VirtioError, BufferError, ValueError):
                    return None
        return None

    def _read_memory(self, bar: Bar, offset: int, size: int) -> int | None:
        found = self._memory(bar, offset, size)
        if found is None:
            return None
        view, at = found
        return int.from_bytes(view[at : at + size], "little")

    def _write_memory(self, bar: Bar, offset: int, size: int, value: int) -> bool:
        found = self._memory(bar, offset, size)
        if found is None or found[0].readonly:
            return False
        view, at = found
        view[at : at + size] = value.to_bytes(size, "little")
        return True
