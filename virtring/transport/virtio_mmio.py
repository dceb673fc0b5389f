"""A virtio device as a window of memory-mapped registers, version 2 (virtio 1.4, 4.2).

The back end's half. Nothing raises for what the guest does: a wrong read gives zero, a wrong write
goes nowhere.
"""

from threading import Lock

from virtring.device import Device
from virtring.errors import VirtioError
from virtring.memory import GuestMemory, Region
from virtring.spec.features import Feature
from virtring.spec.mmio import MMIO_MAGIC, MMIO_VERSION, MmioInterrupt, MmioReg
from virtring.spec.pci import PCI_VENDOR_ID
from virtring.transport.irq import IrqLine

#: Write-only halves of addresses: register -> area, high half.
ADDRESS_WORDS = {
    MmioReg.QUEUE_DESC_LOW: ("desc", False),
    MmioReg.QUEUE_DESC_HIGH: ("desc", True),
    MmioReg.QUEUE_DRIVER_LOW: ("avail", False),
    MmioReg.QUEUE_DRIVER_HIGH: ("avail", True),
    MmioReg.QUEUE_DEVICE_LOW: ("used", False),
    MmioReg.QUEUE_DEVICE_HIGH: ("used", True),
}
REGISTERS = frozenset(int(reg) for reg in MmioReg if reg != MmioReg.CONFIG)


class VirtioMmio:
    """``device`` behind ``size`` bytes of registers; it is attached to ``memory``.

    irq: the level-triggered line it pulls, its own if none is given. Shared memory is where
    :meth:`Device.add_shared_memory` was told it is (``addr``).
    """

    def __init__(self, device: Device, memory: GuestMemory, irq: IrqLine | None = None) -> None:
        self.device, self.core = device, device.core
        self.size = max(0x200, MmioReg.CONFIG + self.core.config_size)
        self.irq = IrqLine() if irq is None else irq
        self.interrupt_status = MmioInterrupt(0)
        self._lock = Lock()
        self._clear()
        device.attach(
            memory,
            lambda index: self._interrupt(MmioInterrupt.VRING),
            lambda: self._interrupt(MmioInterrupt.CONFIG),
        )
        self.irq.sources.append(self._level)

    def _clear(self) -> None:
        self.device_features_sel = self.driver_features_sel = 0
        self.queue_sel = self.shm_sel = 0
        self.interrupt_status = MmioInterrupt(0)

    def close(self) -> None:
        """Take the device out of here and the line down."""
        self.device.detach()
        self.irq.sources.remove(self._level)

    # Interrupts.

    def _level(self) -> bool:
        return bool(self.interrupt_status)

    def _interrupt(self, bits: MmioInterrupt) -> None:
        with self._lock:
            self.interrupt_status |= bits
        self.irq.raised()

    # What the guest does.

    def read(self, offset: int, size: int) -> int:
        """Load 1, 2, 4 or 8 bytes at an offset of the window; 0 where there is nothing to read."""
        value: int | None = None
        if offset >= MmioReg.CONFIG:
            value = self._read_config(offset - MmioReg.CONFIG, size)
        elif size == 4 and offset in REGISTERS:
            value = self._read(MmioReg(offset))
        if value is None:
            self.core.refuse(f"read of {size} bytes at {offset:#x}")
            return 0
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        """Store 1, 2, 4 or 8 bytes; lost where nothing can be written."""
        if size in (1, 2, 4, 8) and offset >= MmioReg.CONFIG:
            data = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
            try:
                self.core.write_config(offset - MmioReg.CONFIG, data)
            except VirtioError as error:
                self.core.refuse(str(error))
        elif (
            size != 4
            or offset not in REGISTERS
            or not self._write(MmioReg(offset), value & 0xFFFFFFFF)
        ):
            self.core.refuse(f"write of {size} bytes at {offset:#x}")

    def memory_at(self, addr: int, length: int) -> tuple[Region, int] | None:
        """The region and offset behind guest addresses of shared memory."""
        for shared in self.core.shared_memory.values():
            at = addr - shared.addr
            if at >= 0 and at + length <= shared.len:
                return shared.region, shared.offset + at
        return None

    def _read_config(self, offset: int, size: int) -> int | None:
        if size not in (1, 2, 4, 8) or offset + size > self.core.config_size:
            return None
        return int.from_bytes(self.core.read_config(offset, size), "little")

    def _read(self, reg: MmioReg) -> int | None:
        core = self.core
        match reg:
            case MmioReg.MAGIC_VALUE:
                return MMIO_MAGIC
            case MmioReg.VERSION:
                return MMIO_VERSION
            case MmioReg.DEVICE_ID:
                return core.device_id
            case MmioReg.VENDOR_ID:
                return PCI_VENDOR_ID
            case MmioReg.DEVICE_FEATURES:
                return core.feature_word(self.device_features_sel)
            case MmioReg.INTERRUPT_STATUS:
                return int(self.interrupt_status)
            case MmioReg.STATUS:
                return int(core.status)
            case MmioReg.CONFIG_GENERATION:
                return core.generation
            case MmioReg.QUEUE_SIZE_MAX | MmioReg.QUEUE_READY | MmioReg.QUEUE_RESET:
                return self._read_queue(reg)
            case MmioReg.SHM_LEN_LOW | MmioReg.SHM_LEN_HIGH:
                return self._read_shm(reg == MmioReg.SHM_LEN_HIGH, base=False)
            case MmioReg.SHM_BASE_LOW | MmioReg.SHM_BASE_HIGH:
                return self._read_shm(reg == MmioReg.SHM_BASE_HIGH, base=True)
        return None

    def _read_queue(self, reg: MmioReg) -> int:
        queue = self.core.queue(self.queue_sel)
        if queue is None:
            return 0
        match reg:
            case MmioReg.QUEUE_SIZE_MAX:
                return self.core.queue_size(self.queue_sel, most=True)
            case MmioReg.QUEUE_READY:
                return int(queue.enabled)
        return int(queue.resetting)

    def _read_shm(self, high: bool, base: bool) -> int:
        shared = self.core.shared_memory.get(self.shm_sel)
        if shared is None:
            return 0xFFFFFFFF
        return (shared.addr if base else shared.len) >> (32 if high else 0) & 0xFFFFFFFF

    def _write(self, reg: MmioReg, value: int) -> bool:
        core, queue = self.core, self.queue_sel
        match reg:
            case MmioReg.DEVICE_FEATURES_SEL:
                self.device_features_sel = value
            case MmioReg.DRIVER_FEATURES_SEL:
                self.driver_features_sel = value
            case MmioReg.DRIVER_FEATURES:
                core.set_feature_word(self.driver_features_sel, value)
            case MmioReg.QUEUE_SEL:
                self.queue_sel = value
            case MmioReg.SHM_SEL:
                self.shm_sel = value
            case MmioReg.QUEUE_SIZE:
                core.set_queue_size(queue, value)
            case MmioReg.QUEUE_READY:
                self._ready(value)
            case MmioReg.QUEUE_RESET:
                if value != 1:
                    return False
                core.restart_queue(queue)
            case MmioReg.QUEUE_NOTIFY:
                self._notify(value)
            case MmioReg.INTERRUPT_ACK:
                with self._lock:
                    self.interrupt_status &= ~MmioInterrupt(value & 3)
                if self.interrupt_status:
                    self.irq.raised()
            case MmioReg.STATUS:
                self._set_status(value)
            case _:
                if reg not in ADDRESS_WORDS:
                    return False
                core.set_queue_word(queue, *ADDRESS_WORDS[reg], value)
        return True

    def _ready(self, value: int) -> None:
        if value == 1:
            self.core.enable_queue(self.queue_sel)
        elif value == 0:
            self.core.disable_queue(self.queue_sel)
        else:
            self.core.refuse(f"QueueReady {value}; it takes 0 or 1")

    def _notify(self, value: int) -> None:
        data = Feature.NOTIFICATION_DATA in self.core.driver_features
        # With the feature the upper half says how far the ring is filled; a hint we do not need.
        self.core.notify(value & 0xFFFF if data else value)

    def _set_status(self, value: int) -> None:
        self.core.set_status(value)
        if value == 0:
            with self._lock:
                self._clear()
