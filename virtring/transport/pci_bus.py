"""One PCI bus of a machine: ECAM window, BAR windows, slots and interrupts (Fuchsia's ``PciBus``).

:meth:`PciBus.read` and :meth:`PciBus.write` are what a CPU's load or store at a physical address
becomes; whoever runs a guest calls them from its memory traps.
"""

import struct
from threading import RLock

from virtring.errors import InvalidArgument, OutOfMemory, WrongState
from virtring.memory import Region
from virtring.spec.pci import PciCommand, PciReg
from virtring.transport.irq import InterruptController, IrqLine
from virtring.transport.pci_device import Bar, PciDevice
from virtring.transport.registers import all_ones

SLOTS = 32
FUNCTIONS = 8
#: Bytes of the ECAM window of one bus.
ECAM_SIZE = 1 << 20
#: The configuration address and data ports of PCs.
CONFIG_ADDRESS, CONFIG_DATA = 0xCF8, 0xCFC
#: Bit of the header type: the device has more functions.
MULTIFUNCTION = 0x80


class Window:
    """Addresses for BARs: ``size`` bytes from ``base`` on, given out in naturally aligned parts."""

    def __init__(self, base: int, size: int) -> None:
        self.base, self.size = base, size
        self._taken: dict[int, int] = {}

    def alloc(self, size: int) -> int:
        """The lowest free address for ``size`` bytes, a power of two. OutOfMemory if none is."""
        addr = -(-self.base // size) * size
        for start, taken in sorted(self._taken.items()):
            if start + taken <= addr:
                continue
            if addr + size <= start:
                break
            addr = -(-(start + taken) // size) * size
        if addr + size > self.base + self.size:
            raise OutOfMemory(f"no {size} bytes left in the window at {self.base:#x}")
        self._taken[addr] = size
        return addr

    def free(self, addr: int) -> None:
        self._taken.pop(addr, None)


class PciBus:
    """Bus 0 of one segment, without bridges.

    ecam: base of the configuration window (1 MiB). mmio, mmio64: base and size of the windows for
    32-bit and 64-bit BARs. irq: number of INTA's line; B, C and D follow.
    """

    def __init__(
        self,
        *,
        ecam: int = 0x3000_0000,
        mmio: tuple[int, int] = (0x4000_0000, 0x4000_0000),
        mmio64: tuple[int, int] = (0x80_0000_0000, 0x80_0000_0000),
        irq: int = 32,
        controller: InterruptController | None = None,
    ) -> None:
        if ecam % ECAM_SIZE:
            raise InvalidArgument(f"ECAM at {ecam:#x}: it takes a multiple of {ECAM_SIZE:#x}")
        if not 0 <= irq <= 0xFF - 4:
            raise InvalidArgument(
                f"irq {irq}: a function's register has room for 0 to 251 and the three behind it"
            )
        self.ecam = ecam
        self.mmio, self.mmio64 = Window(*mmio), Window(*mmio64)
        self.irq = irq
        self.controller = InterruptController() if controller is None else controller
        self.devices: dict[tuple[int, int], PciDevice] = {}
        self.config_address = 0
        self._assigned: dict[PciDevice, dict[int, int]] = {}
        self._pins: dict[PciDevice, Pin] = {}
        self._traps: list[tuple[int, int, PciDevice, int]] = []
        self._lock = RLock()

    # Slots.

    def add(self, device: PciDevice, slot: int | None = None, function: int = 0) -> tuple[int, int]:
        """Plug a function in, at the first free slot if none is given; slot and function.

        Its BARs get addresses, as firmware gives them; its decoders stay off.
        """
        with self._lock:
            if device in self.devices.values():
                raise WrongState(f"{device.name} is on the bus already")
            if slot is None:
                taken = {used for used, _ in self.devices}
                slot = next((free for free in range(SLOTS) if free not in taken), SLOTS)
            if not 0 <= slot < SLOTS or not 0 <= function < FUNCTIONS:
                raise InvalidArgument(f"slot {slot} function {function}; it takes 0-31 and 0-7")
            if (slot, function) in self.devices:
                raise InvalidArgument(f"slot {slot} function {function} is taken")
            self._assigned[device] = self._allocate(device)
            self.assign_addresses(device)
            self.devices[slot, function] = device
            self._mark_functions(slot)
            line = self.intx_line(slot, device.config[PciReg.INTERRUPT_PIN])
            if line is not None:
                device.config[PciReg.INTERRUPT_LINE] = line & 0xFF
                pin = Pin(device, self.controller.line(line))
                self._pins[device] = pin
                device.intx = pin.changed
            device.send_msix = lambda vector: self._message(device, vector)
            device.traps = lambda: self._trap(device)
            device.setup_bar_traps()
            return slot, function

    def remove(self, device: PciDevice) -> None:
        """Unplug: its addresses read all ones from now on."""
        with self._lock:
            place = next((at for at, found in self.devices.items() if found is device), None)
            if place is None:
                raise InvalidArgument(f"{device.name} is not on the bus")
            del self.devices[place]
            self._mark_functions(place[0])
            self._traps = [trap for trap in self._traps if trap[2] is not device]
            self._free(device, self._assigned.pop(device))
            device.intx = device.traps = lambda: None
            device.send_msix = lambda vector: None
            pin = self._pins.pop(device, None)
            if pin is not None:
                pin.line.sources.remove(pin)

    def assign_addresses(self, device: PciDevice) -> None:
        """Set the BARs to the addresses the bus gave them: what a reset or a guest undid."""
        for index, addr in self._assigned[device].items():
            device.set_bar_addr(index, addr)

    def _allocate(self, device: PciDevice) -> dict[int, int]:
        given: dict[int, int] = {}
        try:
            for bar in device.bars.values():
                given[bar.index] = self._window(bar).alloc(bar.size)
        except OutOfMemory:
            self._free(device, given)
            raise
        return given

    def _free(self, device: PciDevice, given: dict[int, int]) -> None:
        for index, addr in given.items():
            self._window(device.bars[index]).free(addr)

    def _window(self, bar: Bar) -> Window:
        return self.mmio64 if bar.is_64 else self.mmio

    def _mark_functions(self, slot: int) -> None:
        many = any(at == slot and function for at, function in self.devices)
        first = self.devices.get((slot, 0))
        if first is not None:
            first.config[PciReg.HEADER_TYPE] = MULTIFUNCTION if many else 0

    # Interrupts.

    def intx_line(self, slot: int, pin: int) -> int | None:
        """The line of a slot's pin (1 to 4), turned by the slot's number; None without a pin."""
        return self.irq + (slot + pin - 1) % 4 if 1 <= pin <= 4 else None

    def _message(self, device: PciDevice, vector: int) -> None:
        if device.msix is not None:
            self.controller.send_msi(*device.msix.message(vector))

    # Addresses.

    def _trap(self, device: PciDevice) -> None:
        with self._lock:
            kept = [trap for trap in self._traps if trap[2] is not device]
            if PciCommand.MEMORY in device.command:
                for bar in device.bars.values():
                    kept.append((device.bar_addr(bar.index), bar.size, device, bar.index))
            # A new list: readers go on with the one they have.
            self._traps = kept

    def find_trap(self, addr: int, size: int) -> tuple[PciDevice, int, int] | None:
        """Device, BAR and offset that answer at this address."""
        for start, length, device, bar in self._traps:
            if start <= addr and addr + size <= start + length:
                return device, bar, addr - start
        return None

    def read(self, addr: int, size: int) -> int:
        """Load 1, 2, 4 or 8 bytes; all ones where nobody answers."""
        found = self.find_trap(addr, size)
        if found is not None:
            device, bar, offset = found
            return device.read_bar(bar, offset, size)
        if self.ecam <= addr < self.ecam + ECAM_SIZE:
            return self.read_config(addr - self.ecam, size)
        return all_ones(size)

    def write(self, addr: int, size: int, value: int) -> None:
        """Store 1, 2, 4 or 8 bytes; lost where nobody answers."""
        found = self.find_trap(addr, size)
        if found is not None:
            device, bar, offset = found
            device.write_bar(bar, offset, size, value)
        elif self.ecam <= addr < self.ecam + ECAM_SIZE:
            self.write_config(addr - self.ecam, size, value)

    def memory_at(self, addr: int, length: int) -> tuple[Region, int] | None:
        """The region and offset behind addresses that are plain memory of a BAR."""
        found = self.find_trap(addr, length)
        if found is None:
            return None
        device, bar, offset = found
        for area in device.bars[bar].areas:
            at = offset - area.offset
            if at >= 0 and at + length <= area.len:
                return area.region, area.region_offset + at
        return None

    # Configuration space.

    def _function(self, offset: int) -> PciDevice | None:
        # ECAM: bus in bits 20 to 27, device 15 to 19, function 12 to 14, register 0 to 11.
        if offset >> 20:
            return None
        return self.devices.get((offset >> 15 & 31, offset >> 12 & 7))

    def read_config(self, offset: int, size: int) -> int:
        """Read at an offset of the ECAM window; all ones where no function is."""
        device = self._function(offset)
        return all_ones(size) if device is None else device.read_config(offset & 0xFFF, size)

    def write_config(self, offset: int, size: int, value: int) -> None:
        """Write at an offset of the ECAM window."""
        device = self._function(offset)
        if device is not None:
            device.write_config(offset & 0xFFF, size, value)

    def read_io(self, port: int, size: int) -> int:
        """The ports of PCs: 0xcf8 selects bus, device, function and register, 0xcfc is the data."""
        if port == CONFIG_ADDRESS and size == 4:
            return self.config_address
        offset = self._ecam_offset(port)
        return all_ones(size) if offset is None else self.read_config(offset, size)

    def write_io(self, port: int, size: int, value: int) -> None:
        """See :meth:`read_io`."""
        if port == CONFIG_ADDRESS and size == 4:
            self.config_address = value & 0x80FF_FFFC
            return
        offset = self._ecam_offset(port)
        if offset is not None:
            self.write_config(offset, size, value)

    def _ecam_offset(self, port: int) -> int | None:
        address = self.config_address
        if not CONFIG_DATA <= port < CONFIG_DATA + 4 or not address >> 31:
            return None
        # Here the function is in bits 8 to 10, the register in 0 to 7.
        return (address & 0xFF_FF00) << 4 | address & 0xFC | port - CONFIG_DATA

    # What firmware tells the guest.

    def device_tree_node(
        self, interrupt_parent: str = "&gic", parent_address_cells: int = 0
    ) -> str:
        """The bus as a ``pci-host-ecam-generic`` node, source text; lines are level-high SPIs.

        interrupt_parent: reference to the controller, three interrupt cells; parent_address_cells:
        its ``#address-cells``.
        """
        cells = "0x0 " * parent_address_cells
        rows = [
            f"<{slot << 11:#x} 0x0 0x0 {pin:#x} {interrupt_parent} "
            f"{cells}0x0 {self.intx_line(slot, pin):#x} 0x4>"
            for slot in range(4)
            for pin in range(1, 5)
        ]
        ranges = [
            f"<{space:#x} {halves(base)} {halves(base)} {halves(size)}>"
            for space, base, size in (
                (0x0200_0000, self.mmio.base, self.mmio.size),
                (0x4300_0000, self.mmio64.base, self.mmio64.size),
            )
        ]
        joint = ",\n\t\t"
        return (
            f"pcie@{self.ecam:x} {{\n"
            '\tcompatible = "pci-host-ecam-generic";\n'
            '\tdevice_type = "pci";\n'
            "\t#address-cells = <3>;\n"
            "\t#size-cells = <2>;\n"
            "\t#interrupt-cells = <1>;\n"
            "\tbus-range = <0x0 0x0>;\n"
            f"\treg = <{halves(self.ecam)} {halves(ECAM_SIZE)}>;\n"
            f"\tranges = {joint.join(ranges)};\n"
            "\tinterrupt-map-mask = <0x1800 0x0 0x0 0x7>;\n"
            f"\tinterrupt-map = {joint.join(rows)};\n"
            "\tdma-coherent;\n"
            "};\n"
        )

    def mcfg_entry(self) -> bytes:
        """The allocation structure of ACPI's MCFG table, 16 bytes: base, segment, first, last bus.

        (PCI Firmware Specification 3.x, 4.1.2)
        """
        return struct.pack("<QHBBI", self.ecam, 0, 0, 0, 0)


class Pin:
    """The INTx pin of a device, wired to a line."""

    def __init__(self, device: PciDevice, line: IrqLine) -> None:
        self.device, self.line = device, line
        line.sources.append(self)

    def __call__(self) -> bool:
        return self.device.intx_level

    def changed(self) -> None:
        if self.device.intx_level:
            self.line.raised()


def halves(value: int) -> str:
    """A 64-bit number as two device-tree cells."""
    return f"{value >> 32:#x} {value & 0xFFFFFFFF:#x}"
