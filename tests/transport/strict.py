"""Functions and windows that let a driver do what virtio 1.4 allows, and fail on anything else."""

from collections.abc import Callable

from tests.transport.common import CONFIG
from virtring.device.virtio_device import scalars
from virtring.memory import Region
from virtring.spec.mmio import MmioReg
from virtring.spec.pci import COMMON_CFG, MSI_NO_VECTOR, CommonReg, PciReg
from virtring.transport import VirtioMmio
from virtring.transport.pci_function import BusFunction
from virtring.transport.registers import accesses
from virtring.transport.virtio_pci import DEVICE_OFFSET, ISR_OFFSET

#: Offset and width of every access that reads or writes the configuration field by field.
FIELDS = {(at + part, width) for at, size in scalars(CONFIG) for part, width in accesses(size)}


class QueueRules:
    """The order in which a queue's registers may be used (4.1.4.3.2, 4.2.2.2)."""

    NEEDED = frozenset({"size", "desc", "driver", "device"})

    def __init__(self, packed: Callable[[], bool]) -> None:
        self.packed = packed
        self.most: dict[int, int] = {}
        self.forget()

    def forget(self) -> None:
        self.set: dict[int, set[str]] = {}
        self.enabled: set[int] = set()
        self.waiting: str | None = None

    def used(self, register: str, write: bool) -> None:
        """Only the register that was asked to become 0 is read until it is."""
        if self.waiting is not None:
            assert (register, write) == (self.waiting, False), f"{register} before {self.waiting}=0"

    def read(self, register: str, value: int) -> None:
        if register == self.waiting and value == 0:
            self.waiting = None

    def write(self, index: int, what: str, value: int) -> None:
        assert index not in self.enabled, f"{what} of an enabled queue"
        if what == "size":
            assert 1 <= value <= self.most[index]
            assert self.packed() or value & (value - 1) == 0
        self.set.setdefault(index, set()).add(what)

    def enable(self, index: int) -> None:
        assert self.set.get(index, set()) >= self.NEEDED, "enabled before everything is set"
        self.enabled.add(index)

    def stop(self, index: int, waiting: str) -> None:
        self.enabled.discard(index)
        self.set.pop(index, None)
        self.waiting = waiting


class StrictFunction(BusFunction):
    """A PCI function with the layout of ours."""

    rules: QueueRules
    vectors = 0
    data = False
    log: list[tuple[str, int]]

    def start(self, packed: Callable[[], bool], data: Callable[[], bool], vectors: int) -> None:
        self.rules = QueueRules(packed)
        self.notification_data = data
        self.vectors = vectors
        self.selected = -1
        self.unread: CommonReg | None = None
        self.feature_words: set[CommonReg] = set()
        self.isr_reads = 0

    def write_config(self, offset: int, size: int, value: int) -> None:
        bars = range(PciReg.BAR0, PciReg.BAR5 + 4)
        control = self.msix_control()
        assert offset == PciReg.COMMAND or offset in bars or offset == control
        super().write_config(offset, size, value)

    def msix_control(self) -> int:
        at = self.read_config(PciReg.CAPABILITY_LIST, 1)
        while at and self.read_config(at, 1) != 17:
            at = self.read_config(at + 1, 1)
        return at + 2 if at else -1

    def read_bar(self, bar: int, offset: int, size: int) -> int:
        value = super().read_bar(bar, offset, size)
        if bar != 0:
            raise AssertionError(f"read of BAR {bar}")
        if offset >= DEVICE_OFFSET:
            assert (offset - DEVICE_OFFSET, size) in FIELDS
        elif offset == ISR_OFFSET:
            assert size == 1
            self.isr_reads += 1
        else:
            reg = self.common(offset, size, write=False)
            self.rules.read(reg.name, value)
            if reg == CommonReg.QUEUE_SIZE:
                self.rules.most.setdefault(self.selected, value)
            if self.unread is not None:
                assert reg == self.unread, "a vector is read back at once"
                self.unread = None
            if reg == CommonReg.DEVICE_FEATURE:
                assert CommonReg.DEVICE_FEATURE_SELECT in self.feature_words
        return value

    def common(self, offset: int, size: int, write: bool) -> CommonReg:
        """The register of an access, which has its width."""
        for name in COMMON_CFG.names or ():
            dtype, start = (COMMON_CFG.fields or {})[name][:2]
            wide = dtype.itemsize == 8 and size == 4 and offset in (start, start + 4)
            if wide or (offset, size) == (start, dtype.itemsize):
                reg = CommonReg[name.upper()]
                self.rules.used(reg.name, write)
                return reg
        raise AssertionError(f"{size} bytes at {offset}")

    def write_bar(self, bar: int, offset: int, size: int, value: int) -> None:
        if bar == 1:
            assert size == (4 if self.notification_data() else 2)
            assert value & 0xFFFF == offset // 4
        elif bar == 2:
            assert size == 4
            assert offset + size <= 16 * self.vectors
        elif offset >= DEVICE_OFFSET:
            assert (offset - DEVICE_OFFSET, size) in FIELDS
        else:
            assert bar == 0
            assert self.unread is None
            self.written(self.common(offset, size, write=True), value)
        super().write_bar(bar, offset, size, value)

    def written(self, reg: CommonReg, value: int) -> None:
        queue = self.selected
        match reg:
            case CommonReg.DEVICE_FEATURE_SELECT | CommonReg.DRIVER_FEATURE_SELECT:
                self.feature_words.add(reg)
            case CommonReg.DRIVER_FEATURE:
                assert CommonReg.DRIVER_FEATURE_SELECT in self.feature_words
            case CommonReg.DEVICE_STATUS:
                if value == 0:
                    self.rules.forget()
                    self.rules.waiting = reg.name
            case CommonReg.QUEUE_SELECT:
                self.selected = value
            case CommonReg.CONFIG_MSIX_VECTOR | CommonReg.QUEUE_MSIX_VECTOR:
                assert value < self.vectors or value == MSI_NO_VECTOR
                self.unread = reg if value != MSI_NO_VECTOR else None
            case CommonReg.QUEUE_SIZE:
                self.rules.write(queue, "size", value)
            case CommonReg.QUEUE_DESC | CommonReg.QUEUE_DRIVER | CommonReg.QUEUE_DEVICE:
                self.rules.write(queue, reg.name[6:].lower(), value)
            case CommonReg.QUEUE_ENABLE:
                assert value == 1
                self.rules.enable(queue)
            case CommonReg.QUEUE_RESET:
                assert value == 1
                self.rules.stop(queue, reg.name)
            case _:
                raise AssertionError(f"{reg.name} is not for writing")


READ_ONLY = {
    MmioReg.MAGIC_VALUE,
    MmioReg.VERSION,
    MmioReg.DEVICE_ID,
    MmioReg.VENDOR_ID,
    MmioReg.DEVICE_FEATURES,
    MmioReg.QUEUE_SIZE_MAX,
    MmioReg.INTERRUPT_STATUS,
    MmioReg.SHM_LEN_LOW,
    MmioReg.SHM_LEN_HIGH,
    MmioReg.SHM_BASE_LOW,
    MmioReg.SHM_BASE_HIGH,
    MmioReg.CONFIG_GENERATION,
}
READ_WRITE = {MmioReg.QUEUE_READY, MmioReg.STATUS, MmioReg.QUEUE_RESET}
ADDRESSES = {"QUEUE_DESC", "QUEUE_DRIVER", "QUEUE_DEVICE"}


class StrictWindow:
    """A window of memory-mapped registers. ``unknown``: bits shown beside those of an interrupt."""

    def __init__(self, window: VirtioMmio, packed: Callable[[], bool]) -> None:
        self.window = window
        self.size = window.size
        self.rules = QueueRules(packed)
        self.unknown = 0
        self.log: list[tuple[MmioReg, int | None]] = []
        self.selected = -1
        self.handled = 0

    def memory_at(self, addr: int, length: int) -> tuple[Region, int] | None:
        return self.window.memory_at(addr, length)

    def read(self, offset: int, size: int) -> int:
        value = self.window.read(offset, size)
        if offset >= MmioReg.CONFIG:
            assert (offset - MmioReg.CONFIG, size) in FIELDS
            return value
        reg = self.register(offset, size, write=False)
        assert reg in READ_ONLY | READ_WRITE, f"{reg.name} is not for reading"
        self.log.append((reg, None))
        self.rules.read(reg.name, value)
        if reg == MmioReg.QUEUE_SIZE_MAX:
            self.rules.most[self.selected] = value
        elif reg == MmioReg.DEVICE_FEATURES:
            assert MmioReg.DEVICE_FEATURES_SEL in [seen for seen, _ in self.log]
        elif reg == MmioReg.INTERRUPT_STATUS:
            self.handled = value
            return value | self.unknown
        return value

    def register(self, offset: int, size: int, write: bool) -> MmioReg:
        assert size == 4
        reg = MmioReg(offset)
        self.rules.used(reg.name, write)
        return reg

    def write(self, offset: int, size: int, value: int) -> None:
        if offset >= MmioReg.CONFIG:
            assert (offset - MmioReg.CONFIG, size) in FIELDS
        else:
            reg = self.register(offset, size, write=True)
            assert reg not in READ_ONLY, f"{reg.name} is not for writing"
            self.log.append((reg, value))
            self.written(reg, value)
        self.window.write(offset, size, value)

    def written(self, reg: MmioReg, value: int) -> None:
        queue = self.selected
        if reg.name.rpartition("_")[0] in ADDRESSES:
            self.rules.write(queue, reg.name.split("_")[1].lower(), value)
        match reg:
            case MmioReg.DRIVER_FEATURES:
                assert MmioReg.DRIVER_FEATURES_SEL in [seen for seen, _ in self.log]
            case MmioReg.STATUS:
                if value == 0:
                    self.rules.forget()
                    self.rules.waiting = reg.name
            case MmioReg.QUEUE_SEL:
                self.selected = value
            case MmioReg.QUEUE_SIZE:
                self.rules.write(queue, "size", value)
            case MmioReg.QUEUE_READY:
                if value:
                    self.rules.enable(queue)
                else:
                    self.rules.stop(queue, reg.name)
            case MmioReg.QUEUE_RESET:
                assert value == 1
                self.rules.stop(queue, reg.name)
            case MmioReg.INTERRUPT_ACK:
                assert value == self.handled
