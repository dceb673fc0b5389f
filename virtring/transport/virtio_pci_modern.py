"""The driver side of virtio over PCI (virtio 1.4, 4.1; Linux ``virtio_pci_modern.c``)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from virtring.device import SharedMemory, TransportOps, VirtioDevice, VirtioDeviceId
from virtring.device.config_ops import VqCallback
from virtring.device.transport_ops import usable_features
from virtring.errors import InvalidArgument, NotSupported
from virtring.memory import GuestMemory
from virtring.queue import Virtqueue, vring_create_virtqueue
from virtring.spec.features import Feature
from virtring.spec.pci import (
    MSI_NO_VECTOR,
    PCI_DEVICE_ID_BASE,
    PCI_DEVICE_ID_LAST,
    PCI_VENDOR_ID,
    CfgType,
    CommonReg,
    IsrStatus,
    PciCapID,
    PciReg,
)
from virtring.spec.status import Status
from virtring.transport.pci_function import (
    Handler,
    PciFunction,
    PciHost,
    bus_functions,
    capabilities,
)
from virtring.transport.registers import accesses, wait_zero

#: First PCI id of a transitional device; its kind is its subsystem id (4.1.2.1).
TRANSITIONAL_BASE = 0x1000


class NoVector(NotSupported):
    """The device has no MSI-X vector for an event; another plan may do with fewer."""


@dataclass(frozen=True)
class Structure:
    """Where a virtio capability points: bytes of a BAR. at: the capability's own offset."""

    bar: int
    offset: int
    length: int
    at: int = 0
    id: int = 0


def virtio_structures(function: PciFunction) -> list[tuple[int, Structure]]:
    """Type and place of every virtio capability that can be used (4.1.4)."""
    found = []
    for id, at in capabilities(function):
        if id != PciCapID.VNDR:
            continue
        kind = function.read_config(at + 3, 1)
        bar, number = function.read_config(at + 4, 1), function.read_config(at + 5, 1)
        offset, length = function.read_config(at + 8, 4), function.read_config(at + 12, 4)
        if kind == CfgType.SHARED_MEMORY:
            offset |= function.read_config(at + 16, 4) << 32
            length |= function.read_config(at + 20, 4) << 32
        # Reserved BARs and what reaches out of its BAR are passed over.
        if kind == CfgType.PCI or (bar < 6 and offset + length <= function.bar_size(bar)):
            found.append((kind, Structure(bar, offset, length, at, number)))
    return found


class VirtioPciModern(TransportOps):
    """The operations of one PCI function.

    irq: ``"msix"`` tries a vector for each queue, then two for all, then the pin; ``"intx"`` is
    the pin alone. NotSupported when it is no modern virtio device.
    """

    def __init__(self, function: PciFunction, irq: str = "msix") -> None:
        super().__init__()
        if irq not in ("msix", "intx"):
            raise InvalidArgument(f"irq {irq!r}; it takes 'msix' or 'intx'")
        self.function = function
        self.irq = irq
        vendor = function.read_config(PciReg.VENDOR_ID, 2)
        device = function.read_config(PciReg.DEVICE_ID, 2)
        if vendor != PCI_VENDOR_ID or not TRANSITIONAL_BASE <= device <= PCI_DEVICE_ID_LAST:
            raise NotSupported(f"{function.name} is {vendor:04x}:{device:04x}, not a virtio device")
        kind = (
            device - PCI_DEVICE_ID_BASE
            if device > PCI_DEVICE_ID_BASE
            else function.read_config(PciReg.SUBSYSTEM_ID, 2)
        )
        self.id = VirtioDeviceId(kind, function.read_config(PciReg.SUBSYSTEM_VENDOR_ID, 2))
        function.enable()
        self.structures = virtio_structures(function)
        self.common = self._need(CfgType.COMMON, CommonReg.QUEUE_NOTIF_CONFIG_DATA)
        self.isr = self._need(CfgType.ISR, 1)
        self.notify_cap = self._need(CfgType.NOTIFY, 2)
        self.multiplier = function.read_config(self.notify_cap.at + 16, 4)
        self.device_cfg = next((s for k, s in self.structures if k == CfgType.DEVICE), None)
        self._vectors: dict[int, int] = {}

    def _need(self, kind: CfgType, least: int) -> Structure:
        for found, place in self.structures:
            if found == kind and place.length >= least:
                return place
        raise NotSupported(f"{self.function.name} has no {kind.name} structure")

    @property
    def gone(self) -> bool:
        """Was the function pulled out of its slot? (Linux ``pci_device_is_present``)"""
        return self.function.read_config(PciReg.VENDOR_ID, 2) == 0xFFFF

    # Registers.

    def read(self, reg: CommonReg, size: int) -> int:
        """A field of the common configuration."""
        return self.function.read_bar(self.common.bar, self.common.offset + reg, size)

    def write(self, reg: CommonReg, size: int, value: int) -> None:
        self.function.write_bar(self.common.bar, self.common.offset + reg, size, value)

    def write_address(self, reg: CommonReg, value: int) -> None:
        """A 64-bit field, by halves."""
        at = self.common.offset + reg
        self.function.write_bar(self.common.bar, at, 4, value & 0xFFFFFFFF)
        self.function.write_bar(self.common.bar, at + 4, 4, value >> 32)

    def _config(self, offset: int, length: int) -> tuple[int, int]:
        cfg = self.device_cfg
        if cfg is None or offset < 0 or length < 0 or offset + length > cfg.length:
            size = 0 if cfg is None else cfg.length
            raise InvalidArgument(
                f"configuration bytes {offset} to {offset + length}; there are {size}"
            )
        return cfg.bar, cfg.offset + offset

    def get(self, vdev: VirtioDevice, offset: int, length: int) -> bytes:
        bar, at = self._config(offset, length)
        return b"".join(
            self.function.read_bar(bar, at + place, width).to_bytes(width, "little")
            for place, width in accesses(length)
        )

    def set(self, vdev: VirtioDevice, offset: int, data: bytes) -> None:
        bar, at = self._config(offset, len(data))
        for place, width in accesses(len(data)):
            value = int.from_bytes(data[place : place + width], "little")
            self.function.write_bar(bar, at + place, width, value)

    def generation(self, vdev: VirtioDevice) -> int:
        return self.read(CommonReg.CONFIG_GENERATION, 1)

    def get_status(self, vdev: VirtioDevice) -> Status:
        # A function that was pulled out has no status.
        status = self.read(CommonReg.DEVICE_STATUS, 1)
        return Status(0 if status == 0xFF and self.gone else status)

    def set_status(self, vdev: VirtioDevice, status: Status) -> None:
        if not status:
            raise InvalidArgument("status 0 is a reset: use reset()")
        self.write(CommonReg.DEVICE_STATUS, 1, int(status))

    def reset_device(self, vdev: VirtioDevice) -> None:
        self.write(CommonReg.DEVICE_STATUS, 1, 0)
        wait_zero(lambda: int(self.get_status(vdev)), f"{vdev!r}: reset")

    def get_features(self, vdev: VirtioDevice) -> int:
        features = 0
        for word in (0, 1):
            self.write(CommonReg.DEVICE_FEATURE_SELECT, 4, word)
            features |= self.read(CommonReg.DEVICE_FEATURE, 4) << 32 * word
        return features

    def finalize_features(self, vdev: VirtioDevice) -> None:
        vdev.features = usable_features(vdev.features)
        for word in (0, 1):
            self.write(CommonReg.DRIVER_FEATURE_SELECT, 4, word)
            self.write(CommonReg.DRIVER_FEATURE, 4, int(vdev.features) >> 32 * word & 0xFFFFFFFF)

    def bus_name(self, vdev: VirtioDevice) -> str:
        return self.function.name

    def get_shm_region(self, vdev: VirtioDevice, id: int) -> SharedMemory | None:
        for kind, place in self.structures:
            if kind == CfgType.SHARED_MEMORY and place.id == id:
                found = self.function.bar_memory(place.bar, place.offset, place.length)
                if found is not None:
                    addr, region, offset = found
                    return SharedMemory(id, addr, place.length, region, offset)
        return None

    # Queues.

    def find_vqs(
        self,
        vdev: VirtioDevice,
        nvqs: int,
        callbacks: Sequence[VqCallback | None],
        names: Sequence[str | None],
        ctx: Sequence[bool] | None = None,
        desc: object = None,
    ) -> list[Virtqueue | None]:
        self.check_vqs(vdev, nvqs, callbacks, names, ctx)
        wanted = [
            callback is not None
            for callback, name in zip(callbacks, names, strict=True)
            if name is not None
        ]
        plans = self._plans(vdev, wanted) if self.irq == "msix" else []
        for handlers, vectors in plans:
            try:
                self._enable_msix(handlers)
                self._vectors = vectors
                return super().find_vqs(vdev, nvqs, callbacks, names, ctx, desc)
            except NoVector:
                self.function.free_irqs()
        self._vectors = {}
        self.function.enable_intx(partial(self._pin, vdev))
        return super().find_vqs(vdev, nvqs, callbacks, names, ctx, desc)

    def _plans(
        self, vdev: VirtioDevice, wanted: Sequence[bool]
    ) -> list[tuple[list[Handler], dict[int, int]]]:
        """Handlers by vector, and vectors by queue: one for each queue, or one for all."""
        calls = [index for index, want in enumerate(wanted) if want]
        config: Handler = partial(self.config_interrupt, vdev)
        each = [partial(self.vq_interrupt, index) for index in calls]
        shared = partial(self._vq_interrupts, calls)
        return [
            ([config, *each], {index: vector for vector, index in enumerate(calls, 1)}),
            ([config, shared], dict.fromkeys(calls, 1)),
        ]

    def _enable_msix(self, handlers: Sequence[Handler]) -> None:
        try:
            self.function.enable_msix(handlers)
        except NotSupported as error:
            raise NoVector(str(error)) from None
        self.write(CommonReg.CONFIG_MSIX_VECTOR, 2, 0)
        if self.read(CommonReg.CONFIG_MSIX_VECTOR, 2) != 0:
            raise NoVector(f"{self.function.name} has no vector for its configuration")

    def _set_vector(self, index: int) -> None:
        # Read back: the device may have none left for the event (4.1.5.1.2).
        vector = self._vectors.get(index, MSI_NO_VECTOR)
        self.write(CommonReg.QUEUE_MSIX_VECTOR, 2, vector)
        if self.read(CommonReg.QUEUE_MSIX_VECTOR, 2) != vector:
            raise NoVector(f"{self.function.name} has no vector for queue {index}")

    def _vq_interrupts(self, indices: Sequence[int]) -> None:
        for index in indices:
            self.vq_interrupt(index)

    def _pin(self, vdev: VirtioDevice) -> None:
        # Reading the status takes the interrupt down.
        isr = self.function.read_bar(self.isr.bar, self.isr.offset, 1)
        if isr & IsrStatus.CONFIG:
            self.config_interrupt(vdev)
        if isr & IsrStatus.QUEUE:
            self._vq_interrupts(list(self._vqs))

    def setup_vq(
        self, vdev: VirtioDevice, index: int, callback: VqCallback | None, name: str, ctx: bool
    ) -> Virtqueue:
        if index >= self.read(CommonReg.NUM_QUEUES, 2):
            raise NotSupported(f"{vdev!r} has no queue {index} ({name})")
        self.write(CommonReg.QUEUE_SELECT, 2, index)
        size = self.read(CommonReg.QUEUE_SIZE, 2)
        if not size or self.read(CommonReg.QUEUE_ENABLE, 2):
            raise NotSupported(f"{vdev!r}: queue {index} ({name}) is not there or in use")
        width = 4 if Feature.NOTIFICATION_DATA in vdev.features else 2
        offset = self.read(CommonReg.QUEUE_NOTIFY_OFF, 2) * self.multiplier
        if offset + width > self.notify_cap.length:
            raise NotSupported(f"{vdev!r}: queue {index} notifies outside its structure")
        self._set_vector(index)
        bar, at = self.notify_cap.bar, self.notify_cap.offset + offset
        write_bar = self.function.write_bar

        def notify(vq: Virtqueue) -> bool:
            write_bar(bar, at, width, vq.notification_data if width == 4 else index)
            return True

        return vring_create_virtqueue(
            index,
            size,
            64,
            vdev,
            may_reduce_num=True,
            context=ctx,
            notify=notify,
            callback=callback,
            name=name,
        )

    def enable_vq(self, vq: Virtqueue) -> None:
        self.write(CommonReg.QUEUE_SELECT, 2, vq.index)
        self.write(CommonReg.QUEUE_SIZE, 2, vq.vring_size)
        self.write_address(CommonReg.QUEUE_DESC, vq.desc_addr)
        self.write_address(CommonReg.QUEUE_DRIVER, vq.avail_addr)
        self.write_address(CommonReg.QUEUE_DEVICE, vq.used_addr)
        # Again: a queue reset may have taken it away.
        self._set_vector(vq.index)
        self.write(CommonReg.QUEUE_ENABLE, 2, 1)
        if self.read(CommonReg.QUEUE_ENABLE, 2) != 1:
            raise NotSupported(f"{vq.config.label}: the device refused the queue")

    def reset_vq(self, vq: Virtqueue) -> None:
        self.write(CommonReg.QUEUE_SELECT, 2, vq.index)
        self.write(CommonReg.QUEUE_RESET, 2, 1)
        wait_zero(lambda: self.read(CommonReg.QUEUE_RESET, 2), f"{vq.config.label}: reset")
        wait_zero(lambda: self.read(CommonReg.QUEUE_ENABLE, 2), f"{vq.config.label}: reset")

    def del_vqs(self, vdev: VirtioDevice) -> None:
        for index in self._vectors if self._vqs else ():
            self.write(CommonReg.QUEUE_SELECT, 2, index)
            self.write(CommonReg.QUEUE_MSIX_VECTOR, 2, MSI_NO_VECTOR)
        super().del_vqs(vdev)
        self._vectors = {}
        self.function.free_irqs()


def pci_device(function: PciFunction, memory: GuestMemory, irq: str = "msix") -> VirtioDevice:
    """The driver's view of one function; register it with a VirtioBus."""
    ops = VirtioPciModern(function, irq)
    return VirtioDevice(ops, memory, ops.id)


def pci_scan(host: PciHost, memory: GuestMemory, irq: str = "msix") -> list[VirtioDevice]:
    """Every virtio device on the bus. ``memory`` is the guest's, where queues are allocated."""
    found = []
    for function in bus_functions(host):
        device = function.read_config(PciReg.DEVICE_ID, 2)
        if function.vendor == PCI_VENDOR_ID and TRANSITIONAL_BASE <= device <= PCI_DEVICE_ID_LAST:
            found.append(pci_device(function, memory, irq))
    return found
