"""What a PCI driver needs of its function, and how one on a bus gives it.

Only loads and stores of configuration space and BARs, and handlers for interrupts: whether a bus of
this process, another process or a kernel answers them is all the same to the driver.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from virtring.errors import InvalidArgument, NotSupported
from virtring.memory import Region
from virtring.spec.pci import (
    MSIX_BIR_MASK,
    MSIX_ENTRY,
    MsixControl,
    MsixReg,
    PciBar,
    PciCapID,
    PciCommand,
    PciReg,
    PciStatus,
)

Handler = Callable[[], object]


class PciFunction(Protocol):
    """One function. Sizes are 1, 2 or 4 bytes, offsets multiples of them."""

    @property
    def name(self) -> str: ...

    def read_config(self, offset: int, size: int) -> int: ...
    def write_config(self, offset: int, size: int, value: int) -> None: ...
    def read_bar(self, bar: int, offset: int, size: int) -> int: ...
    def write_bar(self, bar: int, offset: int, size: int, value: int) -> None: ...

    def bar_size(self, bar: int) -> int:
        """Bytes of a BAR, 0 if there is none."""
        ...

    def bar_memory(self, bar: int, offset: int, length: int) -> tuple[int, Region, int] | None:
        """Guest address, region and offset in it of a part of a BAR that is memory."""
        ...

    def enable(self) -> None:
        """Let the function decode memory and reach memory itself."""
        ...

    def enable_msix(self, handlers: Sequence[Handler]) -> None:
        """Turn MSI-X on with a handler for each of the first vectors. NotSupported if too many."""
        ...

    def enable_intx(self, handler: Handler) -> None:
        """Have the handler called while the INTx pin is up. NotSupported without a pin."""
        ...

    def free_irqs(self) -> None:
        """No handler is called from now on. Again is fine."""
        ...


class Line(Protocol):
    """A shared interrupt line."""

    def request(self, handler: Handler) -> None: ...
    def free(self, handler: Handler) -> None: ...


class Controller(Protocol):
    """Where interrupts come from."""

    def line(self, number: int) -> Line: ...
    def alloc_msi(self, handler: Handler) -> tuple[int, int]: ...
    def free_msi(self, data: int) -> None: ...


class PciHost(Protocol):
    """A machine with a PCI bus: loads and stores at physical addresses, and interrupts."""

    @property
    def ecam(self) -> int: ...
    @property
    def controller(self) -> Controller: ...

    def read(self, addr: int, size: int) -> int: ...
    def write(self, addr: int, size: int, value: int) -> None: ...
    def memory_at(self, addr: int, length: int) -> tuple[Region, int] | None: ...


def capabilities(function: PciFunction) -> Iterator[tuple[int, int]]:
    """Id and offset of every capability; ends in any case, however they are chained."""
    if not function.read_config(PciReg.STATUS, 2) & PciStatus.CAP_LIST:
        return
    at = function.read_config(PciReg.CAPABILITY_LIST, 1) & ~3
    seen: set[int] = set()
    while at >= 0x40 and at not in seen:
        seen.add(at)
        yield function.read_config(at, 1), at
        at = function.read_config(at + 1, 1) & ~3


class BusFunction:
    """A function at a place of the ECAM window of a host. Finds and sizes its BARs."""

    def __init__(self, host: PciHost, slot: int, number: int = 0, bus: int = 0) -> None:
        self.host = host
        self.base = host.ecam + (bus << 20 | slot << 15 | number << 12)
        self.name = f"0000:{bus:02x}:{slot:02x}.{number}"
        self._bars: dict[int, tuple[int, int]] = {}
        self._messages: list[int] = []
        self._intx: tuple[int, Handler] | None = None

    def read_config(self, offset: int, size: int) -> int:
        return self.host.read(self.base + offset, size)

    def write_config(self, offset: int, size: int, value: int) -> None:
        self.host.write(self.base + offset, size, value)

    @property
    def vendor(self) -> int:
        return self.read_config(PciReg.VENDOR_ID, 2)

    # BARs.

    def probe_bars(self) -> None:
        """Find out sizes and addresses, decoders off meanwhile (PCI 3.0, 6.2.5.1)."""
        command = self.read_config(PciReg.COMMAND, 2)
        self.write_config(PciReg.COMMAND, 2, command & ~int(PciCommand.MEMORY | PciCommand.IO))
        self._bars.clear()
        index = 0
        while index < 6:
            low = self.read_config(PciReg.BAR0 + 4 * index, 4)
            if low & PciBar.SPACE_IO:
                index += 1
                continue
            wide = low & 0x6 == PciBar.MEM_TYPE_64 and index < 5
            words = [index, index + 1] if wide else [index]
            addr = mask = 0
            for shift, word in enumerate(words):
                at = PciReg.BAR0 + 4 * word
                old = self.read_config(at, 4)
                self.write_config(at, 4, 0xFFFFFFFF)
                mask |= self.read_config(at, 4) << 32 * shift
                self.write_config(at, 4, old)
                addr |= old << 32 * shift
            mask &= ~0xF
            if mask:
                # The lowest bit that can be set is the size.
                self._bars[index] = (addr & ~0xF, mask & -mask)
            index += len(words)
        self.write_config(PciReg.COMMAND, 2, command)

    def _address(self, bar: int, offset: int, size: int) -> int:
        addr, length = self._bars.get(bar, (0, 0))
        if not 0 <= offset <= length - size:
            raise InvalidArgument(f"{self.name}: {size} bytes at {offset:#x} of BAR {bar}")
        return addr + offset

    def read_bar(self, bar: int, offset: int, size: int) -> int:
        return self.host.read(self._address(bar, offset, size), size)

    def write_bar(self, bar: int, offset: int, size: int, value: int) -> None:
        self.host.write(self._address(bar, offset, size), size, value)

    def bar_size(self, bar: int) -> int:
        return self._bars.get(bar, (0, 0))[1]

    def bar_memory(self, bar: int, offset: int, length: int) -> tuple[int, Region, int] | None:
        addr = self._address(bar, offset, length)
        found = self.host.memory_at(addr, length)
        return None if found is None else (addr, *found)

    def enable(self) -> None:
        for id, at in capabilities(self):
            # Whoever had the function before may have left messages on.
            if id == PciCapID.MSIX:
                self.write_config(at + MsixReg.CONTROL, 2, 0)
        self.probe_bars()
        command = self.read_config(PciReg.COMMAND, 2) | PciCommand.MEMORY | PciCommand.MASTER
        self.write_config(PciReg.COMMAND, 2, command)

    # Interrupts.

    def enable_msix(self, handlers: Sequence[Handler]) -> None:
        at = next((at for id, at in capabilities(self) if id == PciCapID.MSIX), 0)
        if not at:
            raise NotSupported(f"{self.name} has no MSI-X")
        control = self.read_config(at + MsixReg.CONTROL, 2)
        count = (control & MsixControl.TABLE_SIZE) + 1
        if len(handlers) > count:
            raise NotSupported(f"{self.name} has {count} vectors, not {len(handlers)}")
        place = self.read_config(at + MsixReg.TABLE, 4)
        bar, table = place & MSIX_BIR_MASK, place & ~MSIX_BIR_MASK
        self._set_intx_disable(True)
        # On, but masked as a whole, until the table is written.
        masked = MsixControl.ENABLE | MsixControl.FUNCTION_MASK
        self.write_config(at + MsixReg.CONTROL, 2, int(masked))
        for vector, handler in enumerate(handlers):
            addr, data = self.host.controller.alloc_msi(handler)
            self._messages.append(data)
            entry = table + MSIX_ENTRY.itemsize * vector
            for shift, word in enumerate((addr & 0xFFFFFFFF, addr >> 32, data, 0)):
                self.write_bar(bar, entry + 4 * shift, 4, word)
        self.write_config(at + MsixReg.CONTROL, 2, int(MsixControl.ENABLE))

    def enable_intx(self, handler: Handler) -> None:
        if not self.read_config(PciReg.INTERRUPT_PIN, 1):
            raise NotSupported(f"{self.name} has no interrupt pin")
        line = self.read_config(PciReg.INTERRUPT_LINE, 1)
        self._intx = (line, handler)
        self._set_intx_disable(False)
        self.host.controller.line(line).request(handler)

    def _set_intx_disable(self, off: bool) -> None:
        command = self.read_config(PciReg.COMMAND, 2) & ~int(PciCommand.INTX_DISABLE)
        bit = int(PciCommand.INTX_DISABLE) if off else 0
        self.write_config(PciReg.COMMAND, 2, command | bit)

    def free_irqs(self) -> None:
        if self._messages:
            for id, at in capabilities(self):
                if id == PciCapID.MSIX:
                    self.write_config(at + MsixReg.CONTROL, 2, 0)
            for data in self._messages:
                self.host.controller.free_msi(data)
            self._messages.clear()
        if self._intx is not None:
            line, handler = self._intx
            self._intx = None
            self._set_intx_disable(True)
            self.host.controller.line(line).free(handler)


def bus_functions(host: PciHost) -> Iterator[BusFunction]:
    """Every function on bus 0, in order of slots."""
    for slot in range(32):
        first = BusFunction(host, slot)
        if first.vendor == 0xFFFF:
            continue
        yield first
        if first.read_config(PciReg.HEADER_TYPE, 1) & 0x80:
            for number in range(1, 8):
                function = BusFunction(host, slot, number)
                if function.vendor != 0xFFFF:
                    yield function
