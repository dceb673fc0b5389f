"""A PCI function and its bus: configuration space, BARs, capabilities, windows, pins."""

import shutil
import subprocess
from pathlib import Path

import pytest

from virtring.errors import InvalidArgument, OutOfMemory, WrongState
from virtring.memory import Region
from virtring.spec.pci import PciReg
from virtring.transport import PciBus, PciDevice
from virtring.transport.pci_bus import Window
from virtring.transport.pci_device import BarArea, PciCapability
from virtring.transport.pci_function import BusFunction, bus_functions, capabilities

MEMORY, MASTER, INTX_DISABLE = 2, 4, 0x400


class Plain(PciDevice):
    """BAR 0 of 64 KiB registers that remember bytes, a 64-bit BAR 2, MSI-X in BAR 4."""

    def __init__(self, name: str = "plain") -> None:
        super().__init__(0x1234, 0x5678, 0x020300, revision=9, subsystem=7, name=name)
        self.bytes = bytearray(1 << 16)
        self.add_bar(0, 1 << 16)
        self.add_bar(2, (1 << 32) + 1, is_64=True, prefetch=True)
        self.set_capabilities(
            [
                PciCapability(9, b"\x05abc", b"\x00\xff\x0f\x00"),
                self.add_msix(3, 4),
                PciCapability(9, b"\x04xy"),
            ]
        )
        self.pending = False

    @property
    def interrupt_pending(self) -> bool:
        return self.pending

    def read_register(self, bar: int, offset: int, size: int) -> int | None:
        if bar:
            return None
        return int.from_bytes(self.bytes[offset : offset + size], "little")

    def write_register(self, bar: int, offset: int, size: int, value: int) -> bool:
        if bar:
            return False
        self.bytes[offset : offset + size] = value.to_bytes(size, "little")
        return True


@pytest.fixture
def device() -> Plain:
    return Plain()


def test_the_header(device: Plain) -> None:
    assert device.read_config(0, 4) == 0x5678_1234
    assert device.read_config(8, 4) == 0x0203_0009
    assert device.read_config(PciReg.SUBSYSTEM_ID, 2) == 7
    assert device.read_config(PciReg.STATUS, 2) == 0x10
    assert device.read_config(PciReg.INTERRUPT_PIN, 1) == 1
    assert device.read_config_word(0) == 0x5678_1234
    with pytest.raises(InvalidArgument, match="multiple of 4"):
        device.read_config_word(2)


def test_only_what_is_writable_is_written(device: Plain) -> None:
    before = bytes(device.config)
    for offset in range(0, 0x100, 4):
        if not 0x10 <= offset < 0x28:
            device.write_config(offset, 4, 0xFFFF_FFFF)
    changed = {at for at in range(4096) if device.config[at] != before[at]}
    # Command, cache line size, interrupt line, the capability's own mask, MSI-X control.
    assert changed == {4, 5, 0xC, 0x3C, 0x43, 0x44, 0x4B}
    assert device.read_config(4, 2) == MEMORY | MASTER | INTX_DISABLE
    assert device.read_capability(0x40) == bytes([9, 0x48, 5, 0xFF, 0x62 & 0xF0 | 0xF, ord("c")])


@pytest.mark.parametrize(
    ("offset", "size"), [(1, 2), (2, 4), (4096, 1), (4094, 4), (-4, 4), (0, 8), (0, 3), (0, 0)]
)
def test_wrong_accesses_to_configuration_do_nothing(device: Plain, offset: int, size: int) -> None:
    before = bytes(device.config)
    assert device.read_config(offset, size) == (1 << 8 * size) - 1
    device.write_config(offset, size, 0)
    assert bytes(device.config) == before
    assert device.refused == 2


def test_bars_are_sized_by_writing_ones(device: Plain) -> None:
    for index, expected in ((0, 0xFFFF_0000), (1, 0), (2, 0xC), (3, 0xFFFF_FFFE), (5, 0)):
        device.write_config(0x10 + 4 * index, 4, 0xFFFF_FFFF)
        assert device.read_config(0x10 + 4 * index, 4) == expected
    assert device.bars[2].size == 1 << 33
    device.set_bar_addr(2, 0x0000_0086_1234_5678)
    assert device.bar_addr(2) == 0x86_0000_0000
    device.write_config(0x12, 2, 0x1234)
    assert device.bar_addr(0) == 0x1234_0000


def test_bars_that_cannot_be(device: Plain) -> None:
    for index, wide in ((0, False), (3, False), (1, True), (5, True), (6, False), (-1, False)):
        with pytest.raises(InvalidArgument, match="BAR"):
            device.add_bar(index, 4096, is_64=wide)
    with pytest.raises(InvalidArgument, match="bytes"):
        device.add_bar(5, (1 << 31) + 1)
    assert device.add_bar(5, 1).size == 4096


def test_capabilities_are_chained(device: Plain) -> None:
    assert device.find_capability(9) == 0x40
    assert device.find_capability(9, 0x40) == 0x54
    assert device.find_capability(17) == 0x48
    assert device.find_capability(9, 0x54) == device.find_capability(5) == 0
    assert list(capabilities(device)) == [(9, 0x40), (17, 0x48), (9, 0x54)]
    assert device.read_capability(0x54) == b"\x09\x00\x04xy"
    with pytest.raises(InvalidArgument, match="no capability"):
        device.read_capability(0x44)
    with pytest.raises(InvalidArgument, match="there are 192"):
        device.set_capabilities([PciCapability(9, bytes(30))] * 7)
    assert list(capabilities(device)) == [(9, 0x40), (17, 0x48), (9, 0x54)]
    device.set_capabilities([])
    assert list(capabilities(device)) == []
    assert device.read_config(PciReg.STATUS, 2) == 0


def test_a_chain_that_loops_ends(device: Plain) -> None:
    device.config[0x55] = 0x40
    assert [at for _, at in capabilities(device)] == [0x40, 0x48, 0x54]


def test_memory_in_a_bar(device: Plain) -> None:
    region = Region.anonymous(8192)
    device.bars[2].areas = [BarArea(4096, 4096, region, 4096)]
    device.write_bar(2, 4096, 8, 0x0102_0304_0506_0708)
    assert bytes(memoryview(region)[4096:4104]) == bytes(range(8, 0, -1))
    assert device.read_bar(2, 4097, 1) == 7
    assert device.read_bar(2, 8190, 4) == 0xFFFF_FFFF
    device.write_bar(2, 0, 4, 1)
    assert device.refused == 2
    region.close()
    assert device.read_bar(2, 4096, 4) == 0xFFFF_FFFF


def test_a_reset_puts_everything_back(device: Plain) -> None:
    fresh = bytes(device.config)
    for offset in range(0, 0x100, 4):
        device.write_config(offset, 4, 0xFFFF_FFFF)
    device.write_bar(4, 0, 4, 0xFEE0_0000)
    device.reset()
    assert bytes(device.config) == fresh
    assert device.read_bar(4, 0, 4) == 0
    assert not device.msix.enabled


# The bus.


@pytest.fixture
def bus(device: Plain) -> PciBus:
    bus = PciBus()
    assert bus.add(device, 3) == (3, 0)
    return bus


@pytest.mark.parametrize("given", [{"irq": 252}, {"irq": -1}, {"ecam": 0x1000}])
def test_a_bus_that_cannot_be(given: dict[str, int]) -> None:
    with pytest.raises(InvalidArgument):
        PciBus(**given)


def test_ecam_and_ports_lead_to_the_same_registers(bus: PciBus, device: Plain) -> None:
    place = bus.ecam + (3 << 15)
    assert bus.read(place, 4) == 0x5678_1234
    assert bus.read(place + (1 << 12), 4) == 0xFFFF_FFFF
    assert bus.read(bus.ecam + (1 << 20) - 4, 4) == 0xFFFF_FFFF
    assert bus.read(bus.ecam + (1 << 20), 4) == 0xFFFF_FFFF
    bus.write_io(0xCF8, 4, 0x8000_0000 | 3 << 11 | 8)
    assert bus.read_io(0xCF8, 4) == 0x8000_1808
    assert bus.read_io(0xCFC, 4) == 0x0203_0009
    assert bus.read_io(0xCFE, 2) == 0x0203
    bus.write_io(0xCF8, 4, 0x8000_0000 | 3 << 11 | 0x3C)
    bus.write_io(0xCFC, 1, 0x55)
    assert bus.read(place + 0x3C, 1) == 0x55
    bus.write_io(0xCF8, 4, 3 << 11)
    assert bus.read_io(0xCFC, 4) == 0xFFFF_FFFF
    bus.write_io(0xCF8, 4, 0x8001_0000)
    assert bus.read_io(0xCFC, 4) == 0xFFFF_FFFF


def test_a_bar_answers_only_while_memory_is_decoded(bus: PciBus, device: Plain) -> None:
    addr = device.bar_addr(0)
    assert bus.mmio.base <= addr < bus.mmio.base + bus.mmio.size
    assert addr % device.bars[0].size == 0
    assert device.bar_addr(2) >= bus.mmio64.base
    bus.write(addr + 8, 4, 0x1111)
    assert bus.read(addr + 8, 4) == 0xFFFF_FFFF
    bus.write(bus.ecam + (3 << 15) + 4, 2, MEMORY)
    bus.write(addr + 8, 4, 0x2222)
    assert bus.read(addr + 8, 4) == 0x2222
    assert device.bytes[8:10] == b"\x22\x22"
    # Over the end: nobody's.
    assert bus.read(addr + (1 << 16) - 2, 4) == 0xFFFF_FFFF
    device.set_bar_addr(0, addr + (1 << 16))
    assert bus.read(addr + 8, 4) == 0xFFFF_FFFF
    assert bus.read(addr + (1 << 16) + 8, 4) == 0x2222
    bus.assign_addresses(device)
    assert bus.read(addr + 8, 4) == 0x2222


def test_slots_and_functions(bus: PciBus, device: Plain) -> None:
    second, third = Plain("second"), Plain("third")
    with pytest.raises(WrongState):
        bus.add(device)
    with pytest.raises(InvalidArgument, match="taken"):
        bus.add(second, 3)
    with pytest.raises(InvalidArgument):
        bus.add(second, 32)
    assert bus.add(second, 3, 5) == (3, 5)
    assert bus.add(third) == (0, 0)
    assert [f.name for f in bus_functions(bus)] == ["0000:00:00.0", "0000:00:03.0", "0000:00:03.5"]
    bus.remove(second)
    assert [f.name for f in bus_functions(bus)] == ["0000:00:00.0", "0000:00:03.0"]
    with pytest.raises(InvalidArgument):
        bus.remove(second)


def test_a_removed_device_gives_its_addresses_back(bus: PciBus, device: Plain) -> None:
    device.write_config(4, 2, MEMORY)
    addr = device.bar_addr(0)
    device.set_bar_addr(0, 0x9999_0000)
    bus.remove(device)
    assert bus.find_trap(0x9999_0000, 4) is None
    again = Plain("again")
    bus.add(again)
    assert again.bar_addr(0) == addr


def test_windows_are_full_at_some_point() -> None:
    window = Window(0x1800, 0x2800)
    assert [window.alloc(size) for size in (0x1000, 0x800, 0x800)] == [0x2000, 0x1800, 0x3000]
    with pytest.raises(OutOfMemory):
        window.alloc(0x1000)
    window.free(0x2000)
    assert window.alloc(0x1000) == 0x2000
    bus = PciBus(mmio=(0x4000_0000, 0x10000))
    with pytest.raises(OutOfMemory):
        bus.add(Plain())
    assert bus.devices == {}
    assert bus.mmio.alloc(0x10000) == 0x4000_0000


def test_a_driver_finds_size_and_place_of_bars(bus: PciBus, device: Plain) -> None:
    function = BusFunction(bus, 3)
    function.enable()
    assert [function.bar_size(bar) for bar in range(6)] == [1 << 16, 0, 1 << 33, 0, 4096, 0]
    function.write_bar(0, 4, 4, 0xABCD)
    assert device.read_bar(0, 4, 4) == 0xABCD
    with pytest.raises(InvalidArgument, match="BAR 0"):
        function.read_bar(0, 1 << 16, 4)
    with pytest.raises(InvalidArgument, match="BAR 1"):
        function.write_bar(1, 0, 4, 0)
    assert function.bar_memory(0, 0, 4096) is None


def test_the_lines_turn_with_the_slot_and_are_shared(bus: PciBus, device: Plain) -> None:
    other = Plain("other")
    bus.add(other, 7)
    assert device.config[PciReg.INTERRUPT_LINE] == other.config[PciReg.INTERRUPT_LINE] == 35
    assert [bus.intx_line(slot, 1) for slot in range(5)] == [32, 33, 34, 35, 32]
    assert bus.intx_line(1, 4) == 32
    assert bus.intx_line(1, 0) is None
    seen: list[bool] = []
    line = bus.controller.line(35)
    line.request(lambda: seen.append(device.intx_level))
    other.pending = True
    other.interrupt()
    assert seen == [False]
    device.pending = True
    device.interrupt()
    assert seen == [False, True]
    for quiet in (device, other):
        quiet.write_config(4, 2, INTX_DISABLE)
    assert not line.level
    other.interrupt()
    assert len(seen) == 2
    # MSI-X takes the pin away too; turned off again, it is back.
    device.write_config(4, 2, 0)
    assert len(seen) == 3
    assert device.read_config(PciReg.STATUS, 2) & 8
    device.write_config(device.find_capability(17) + 2, 2, 0x8000)
    assert not line.level
    assert not device.read_config(PciReg.STATUS, 2) & 8
    device.write_config(device.find_capability(17) + 2, 2, 0)
    assert len(seen) == 4


def test_what_firmware_says(bus: PciBus, tmp_path: Path) -> None:
    assert bus.mcfg_entry() == bytes([0, 0, 0, 0x30, *[0] * 12])
    node = bus.device_tree_node("&intc", 1)
    assert "pcie@30000000 {" in node
    assert "reg = <0x0 0x30000000 0x0 0x100000>;" in node
    assert "<0x2000000 0x0 0x40000000 0x0 0x40000000 0x0 0x40000000>" in node
    assert "<0x1800 0x0 0x0 0x2 &intc 0x0 0x0 0x20 0x4>" in node
    assert node.count("&intc") == 16
    if (dtc := shutil.which("dtc")) is None:
        return
    tree = (
        "/dts-v1/; / { #address-cells = <2>; #size-cells = <2>; intc: intc@0 {"
        " reg = <0 0 0 1>; interrupt-controller; #interrupt-cells = <3>;"
        " #address-cells = <1>; #size-cells = <0>; }; " + node + "};"
    )
    source = tmp_path / "tree.dts"
    source.write_text(tree)
    done = subprocess.run([dtc, "-o", str(tmp_path / "tree"), str(source)], capture_output=True)
    assert done.returncode == 0, done.stderr
