"""A virtio device as a PCI function: the back end's registers (virtio 1.4, 4.1; Fuchsia's
``VirtioPci``).

BAR 0: common configuration, ISR, device configuration. BAR 1: notifications. BAR 2: MSI-X.
BAR 4: shared memory, 64 bits wide and prefetchable.
"""

import struct
from threading import Lock

from virtring.device import Device
from virtring.errors import InvalidArgument, VirtioError
from virtring.memory import GuestMemory
from virtring.spec.features import Feature
from virtring.spec.ids import DeviceID
from virtring.spec.pci import (
    MSI_NO_VECTOR,
    PCI_CFG_CAP,
    PCI_DEVICE_ID_BASE,
    PCI_VENDOR_ID,
    CfgType,
    IsrStatus,
    PciCapID,
)
from virtring.transport.pci_common import COMMON_SIZE, CommonConfig
from virtring.transport.pci_device import PAGE, BarArea, PciCapability, PciDevice

REGISTERS_BAR, NOTIFY_BAR, MSIX_BAR, SHM_BAR = 0, 1, 2, 4
ISR_OFFSET = COMMON_SIZE
#: Device configuration; room for more registers is left before it.
DEVICE_OFFSET = 0x100
NOTIFICATION_DATA = int(Feature.NOTIFICATION_DATA)

#: Base class, subclass and interface of PCI by kind of device; everything else is 0xff0000.
CLASS_CODES: dict[int, int] = {
    DeviceID.NET: 0x020000,
    DeviceID.BLOCK: 0x010000,
    DeviceID.CONSOLE: 0x078000,
    DeviceID.SCSI: 0x010000,
    DeviceID.GPU: 0x038000,
    DeviceID.INPUT: 0x098000,
    DeviceID.VSOCK: 0x028000,
    DeviceID.CRYPTO: 0x108000,
    DeviceID.SOUND: 0x040100,
    DeviceID.FS: 0x018000,
    DeviceID.PMEM: 0x050000,
}


class VirtioPci(PciDevice):
    """``device`` behind PCI registers; plug it into a PciBus. It is attached to ``memory``.

    vectors: MSI-X messages, by default one a queue and one for configuration changes; 0 for no
    MSI-X. notify_multiplier: bytes between the queues' notification registers; with 0 they share
    one. Shared memory regions of the device must be there already.
    """

    def __init__(
        self,
        device: Device,
        memory: GuestMemory,
        *,
        vectors: int | None = None,
        notify_multiplier: int = 4,
        name: str = "",
    ) -> None:
        core = device.core
        if notify_multiplier not in (0, *(4**power for power in range(1, 9))):
            raise InvalidArgument(f"notify_multiplier {notify_multiplier}: 0, or 4, 16, ... 65536")
        # The core refuses for us, so it must be there before the base is.
        self.device, self.core = device, core
        pci_id = PCI_DEVICE_ID_BASE + core.device_id
        super().__init__(
            PCI_VENDOR_ID,
            pci_id,
            CLASS_CODES.get(core.device_id, 0xFF0000),
            revision=1,
            subsystem_vendor=PCI_VENDOR_ID,
            subsystem=pci_id,
            name=name or type(device).__name__.lower(),
        )
        self.notify_multiplier = notify_multiplier
        self.isr = IsrStatus(0)
        self._isr_lock = Lock()
        self._seen = core.generation
        self.config_generation = 0
        self._setup_caps(core.num_queues + 1 if vectors is None else vectors)
        self.common = CommonConfig(self)
        device.attach(memory, self._interrupt_queue, self._interrupt_config)

    def _setup_caps(self, vectors: int) -> None:
        core = self.core
        notify_size = max(4, core.num_queues * self.notify_multiplier)
        self.add_bar(REGISTERS_BAR, DEVICE_OFFSET + core.config_size)
        self.add_bar(NOTIFY_BAR, notify_size)
        caps = []
        if vectors:
            caps.append(self.add_msix(min(vectors, 2048), MSIX_BAR))
        #: BAR, offset and length of every virtio structure.
        self.structures: list[tuple[int, int, int]] = []
        caps += [
            self._cap(CfgType.COMMON, REGISTERS_BAR, 0, COMMON_SIZE),
            self._cap(
                CfgType.NOTIFY,
                NOTIFY_BAR,
                0,
                notify_size,
                extra=self.notify_multiplier.to_bytes(4, "little"),
            ),
            self._cap(CfgType.ISR, REGISTERS_BAR, ISR_OFFSET, 1),
        ]
        if core.config_size:
            caps.append(self._cap(CfgType.DEVICE, REGISTERS_BAR, DEVICE_OFFSET, core.config_size))
        # Here the driver may write bar, offset, length and the data.
        caps.append(
            PciCapability(
                PciCapID.VNDR,
                struct.pack("<BBBBHII4x", PCI_CFG_CAP.itemsize, CfgType.PCI, 0, 0, 0, 0, 0),
                struct.pack("<BBBBHIII", 0, 0, 0xFF, 0, 0, *[0xFFFFFFFF] * 3),
            )
        )
        end = 0
        areas = []
        for id, shared in sorted(core.shared_memory.items()):
            areas.append(BarArea(end, shared.len, shared.region, shared.offset))
            high = struct.pack("<II", end >> 32, shared.len >> 32)
            caps.append(
                self._cap(CfgType.SHARED_MEMORY, SHM_BAR, end, shared.len, id=id, extra=high)
            )
            end += -(-shared.len // PAGE) * PAGE
        if areas:
            self.add_bar(SHM_BAR, end, is_64=True, prefetch=True).areas = areas
        self.set_capabilities(caps)
        self._window = next(
            at
            for at, cap in self.capabilities.items()
            if cap.id == PciCapID.VNDR and cap.data[1] == CfgType.PCI
        )

    def _cap(
        self, kind: CfgType, bar: int, offset: int, length: int, *, id: int = 0, extra: bytes = b""
    ) -> PciCapability:
        if not 0 <= id <= 0xFF:
            raise InvalidArgument(f"shared memory {id}: PCI has ids 0 to 255")
        self.structures.append((bar, offset, length))
        low = (offset & 0xFFFFFFFF, length & 0xFFFFFFFF)
        data = struct.pack("<BBBBHII", 16 + len(extra), kind, bar, id, 0, *low) + extra
        return PciCapability(PciCapID.VNDR, data)

    def refuse(self, reason: str) -> None:
        self.refused += 1
        self.core.refuse(reason)

    def close(self) -> None:
        """Take the device out of here; take the function from its bus first."""
        self.device.detach()

    def reset(self) -> None:
        """As after power on or a function-level reset."""
        self.core.set_status(0)
        self._reset_virtio()
        super().reset()

    def _reset_virtio(self) -> None:
        self.common.reset()
        with self._isr_lock:
            self.isr = IsrStatus(0)
        if self.msix is not None:
            self.msix.clear_pending()
        self.interrupt()

    def set_status(self, value: int) -> None:
        """The driver writes the status; 0 resets the virtio part, not the PCI one."""
        self.core.set_status(value)
        if value == 0:
            self._reset_virtio()

    # Interrupts.

    @property
    def interrupt_pending(self) -> bool:
        return bool(self.isr)

    def add_isr_flags(self, flags: IsrStatus) -> None:
        """Set bits of the ISR status (Fuchsia's name)."""
        with self._isr_lock:
            self.isr |= flags

    def _interrupt_queue(self, index: int) -> None:
        if self.msix is not None and self.msix.enabled:
            self.msix.signal(self.core.queue_configs[index].vector)
        else:
            self.add_isr_flags(IsrStatus.QUEUE)
            self.interrupt()

    def _interrupt_config(self) -> None:
        self.add_isr_flags(IsrStatus.CONFIG)
        if self.msix is not None and self.msix.enabled:
            self.msix.signal(self.common.config_vector)
        else:
            self.interrupt()

    def vector(self, wanted: int) -> int:
        """The vector that an event gets: the one wanted, or NO_VECTOR if there is none such."""
        return wanted if self.msix is not None and wanted < self.msix.vectors else MSI_NO_VECTOR

    # Registers.

    def read_register(self, bar: int, offset: int, size: int) -> int | None:
        if bar == NOTIFY_BAR:
            # The driver only writes here; reading is harmless.
            return 0
        if bar != REGISTERS_BAR:
            return None
        if offset < COMMON_SIZE:
            return self.common.read(offset, size)
        if offset == ISR_OFFSET and size == 1:
            return self._read_isr()
        if offset >= DEVICE_OFFSET:
            return self._read_device(offset - DEVICE_OFFSET, size)
        return None

    def write_register(self, bar: int, offset: int, size: int, value: int) -> bool:
        if bar == NOTIFY_BAR:
            return self._notify(offset, size, value)
        if bar != REGISTERS_BAR:
            return False
        if offset < COMMON_SIZE:
            return self.common.write(offset, size, value)
        if offset >= DEVICE_OFFSET:
            try:
                self.core.write_config(offset - DEVICE_OFFSET, value.to_bytes(size, "little"))
            except VirtioError as error:
                self.refuse(str(error))
            return True
        return False

    def _read_isr(self) -> int:
        with self._isr_lock:
            value, self.isr = self.isr, IsrStatus(0)
        if value:
            self.interrupt()
        return int(value)

    def _read_device(self, offset: int, size: int) -> int | None:
        core = self.core
        if offset + size > core.config_size:
            return None
        with core.mutex:
            # Counted when the driver reads what changed: 8 bits cannot wrap unseen then.
            if core.generation != self._seen:
                self._seen = core.generation
                self.config_generation = (self.config_generation + 1) & 0xFF
            return int.from_bytes(core.read_config(offset, size), "little")

    def _notify(self, offset: int, size: int, value: int) -> bool:
        core = self.core
        data = int(core.driver_features) & NOTIFICATION_DATA
        if size != (4 if data else 2):
            return False
        index = value & 0xFFFF
        if self.notify_multiplier:
            # The place names the queue; the value has to agree.
            queue, rest = divmod(offset, self.notify_multiplier)
            if rest or queue != index:
                return False
        elif offset:
            return False
        if not self.master:
            self.refuse(f"notification of queue {index} while the device is no bus master")
        else:
            core.notify(index)
        return True

    # The window on the BARs in configuration space (4.1.4.9).

    def _window_target(self) -> tuple[int, int, int] | None:
        at = self._window
        bar = self.config[at + 4]
        offset, length = struct.unpack_from("<II", self.config, at + 8)
        inside = any(
            bar == home and start <= offset and offset + length <= start + size
            for home, start, size in self.structures
        )
        if length not in (1, 2, 4) or offset % length or not inside:
            return None
        return bar, offset, length

    def read_config(self, offset: int, size: int) -> int:
        data = self._window + 16
        if data <= offset < data + 4 and size in (1, 2, 4):
            target = self._window_target()
            if target is not None:
                value = self.read_bar(*target)
                self.config[data : data + target[2]] = value.to_bytes(target[2], "little")
        return super().read_config(offset, size)

    def config_written(self, touched: range) -> None:
        data = self._window + 16
        if touched.start >= data and touched.stop <= data + 4:
            target = self._window_target()
            if target is None:
                self.refuse("configuration access outside the virtio structures")
                return
            value = int.from_bytes(self.config[data : data + target[2]], "little")
            self.write_bar(*target, value)
        elif self.master and touched.start < 6 and touched.stop > 4:
            # Kicks that came while the device could not reach memory are made up for.
            for index in range(self.core.num_queues):
                self.core.wake(index)
