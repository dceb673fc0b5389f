"""The driver side of virtio over MMIO, version 2 (virtio 1.4, 4.2; Linux ``virtio_mmio.c``)."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Protocol

from virtring.device import SharedMemory, TransportOps, VirtioDevice, VirtioDeviceId
from virtring.device.config_ops import VqCallback
from virtring.device.transport_ops import usable_features
from virtring.errors import InvalidArgument, NotSupported
from virtring.memory import GuestMemory, Region
from virtring.queue import Virtqueue, vring_create_virtqueue
from virtring.spec.features import Feature
from virtring.spec.mmio import MMIO_MAGIC, MMIO_VERSION, MmioInterrupt, MmioReg
from virtring.spec.status import Status
from virtring.transport.irq import IrqLine
from virtring.transport.registers import accesses, wait_zero

NONE = 0xFFFF_FFFF_FFFF_FFFF


class MmioWindow(Protocol):
    """Loads and stores at offsets of a device's registers, and what lies in shared memory."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int, size: int) -> int: ...
    def write(self, offset: int, size: int, value: int) -> None: ...
    def memory_at(self, addr: int, length: int) -> tuple[Region, int] | None: ...


class VirtioMmioOps(TransportOps):
    """The operations of one window. NotSupported when no version 2 device is there.

    irq: the line the device pulls. base: its address, for the name only.
    """

    def __init__(self, window: MmioWindow, irq: IrqLine, base: int = 0) -> None:
        super().__init__()
        self.window, self.irq, self.base = window, irq, base
        self._handler: partial[None] | None = None
        magic, version = self.read(MmioReg.MAGIC_VALUE), self.read(MmioReg.VERSION)
        if magic != MMIO_MAGIC or version != MMIO_VERSION:
            raise NotSupported(f"magic {magic:#x}, version {version}: no virtio-mmio 2 device")
        kind = self.read(MmioReg.DEVICE_ID)
        if not kind:
            raise NotSupported("device id 0: nothing is plugged in")
        self.id = VirtioDeviceId(kind, self.read(MmioReg.VENDOR_ID))

    # Registers.

    def read(self, reg: MmioReg) -> int:
        return self.window.read(reg, 4)

    def write(self, reg: MmioReg, value: int) -> None:
        self.window.write(reg, 4, value)

    def _config(self, offset: int, length: int) -> int:
        room = self.window.size - MmioReg.CONFIG
        if offset < 0 or length < 0 or offset + length > room:
            raise InvalidArgument(
                f"configuration bytes {offset} to {offset + length}; the window has {room}"
            )
        return MmioReg.CONFIG + offset

    def get(self, vdev: VirtioDevice, offset: int, length: int) -> bytes:
        at = self._config(offset, length)
        return b"".join(
            self.window.read(at + place, width).to_bytes(width, "little")
            for place, width in accesses(length)
        )

    def set(self, vdev: VirtioDevice, offset: int, data: bytes) -> None:
        at = self._config(offset, len(data))
        for place, width in accesses(len(data)):
            value = int.from_bytes(data[place : place + width], "little")
            self.window.write(at + place, width, value)

    def generation(self, vdev: VirtioDevice) -> int:
        return self.read(MmioReg.CONFIG_GENERATION)

    def get_status(self, vdev: VirtioDevice) -> Status:
        return Status(self.read(MmioReg.STATUS) & 0xFF)

    def set_status(self, vdev: VirtioDevice, status: Status) -> None:
        if not status:
            raise InvalidArgument("status 0 is a reset: use reset()")
        self.write(MmioReg.STATUS, int(status))

    def reset_device(self, vdev: VirtioDevice) -> None:
        self.write(MmioReg.STATUS, 0)
        wait_zero(lambda: self.read(MmioReg.STATUS), f"{vdev!r}: reset")

    def get_features(self, vdev: VirtioDevice) -> int:
        features = 0
        for word in (0, 1):
            self.write(MmioReg.DEVICE_FEATURES_SEL, word)
            features |= self.read(MmioReg.DEVICE_FEATURES) << 32 * word
        return features

    def finalize_features(self, vdev: VirtioDevice) -> None:
        vdev.features = usable_features(vdev.features)
        if Feature.VERSION_1 not in vdev.features:
            raise NotSupported(f"{vdev!r}: version 2 of MMIO needs VERSION_1")
        for word in (1, 0):
            self.write(MmioReg.DRIVER_FEATURES_SEL, word)
            self.write(MmioReg.DRIVER_FEATURES, int(vdev.features) >> 32 * word & 0xFFFFFFFF)

    def bus_name(self, vdev: VirtioDevice) -> str:
        return f"{self.base:x}.virtio_mmio"

    def get_shm_region(self, vdev: VirtioDevice, id: int) -> SharedMemory | None:
        self.write(MmioReg.SHM_SEL, id)
        length = self.read(MmioReg.SHM_LEN_LOW) | self.read(MmioReg.SHM_LEN_HIGH) << 32
        addr = self.read(MmioReg.SHM_BASE_LOW) | self.read(MmioReg.SHM_BASE_HIGH) << 32
        if NONE in (length, addr):
            return None
        found = self.window.memory_at(addr, length)
        return None if found is None else SharedMemory(id, addr, length, *found)

    # Interrupts.

    def _interrupt(self, vdev: VirtioDevice) -> None:
        status = self.read(MmioReg.INTERRUPT_STATUS) & (MmioInterrupt.VRING | MmioInterrupt.CONFIG)
        # Acknowledged before the work is looked for: what comes meanwhile interrupts again.
        self.write(MmioReg.INTERRUPT_ACK, status)
        if status & MmioInterrupt.CONFIG:
            self.config_interrupt(vdev)
        if status & MmioInterrupt.VRING:
            for index in list(self._vqs):
                self.vq_interrupt(index)

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
        if self._handler is None:
            self._handler = partial(self._interrupt, vdev)
            self.irq.request(self._handler)
        return super().find_vqs(vdev, nvqs, callbacks, names, ctx, desc)

    def setup_vq(
        self, vdev: VirtioDevice, index: int, callback: VqCallback | None, name: str, ctx: bool
    ) -> Virtqueue:
        self.write(MmioReg.QUEUE_SEL, index)
        size = self.read(MmioReg.QUEUE_SIZE_MAX)
        if not size or self.read(MmioReg.QUEUE_READY):
            raise NotSupported(f"{vdev!r}: queue {index} ({name}) is not there or in use")
        data = Feature.NOTIFICATION_DATA in vdev.features

        def notify(vq: Virtqueue) -> bool:
            self.write(MmioReg.QUEUE_NOTIFY, vq.notification_data if data else index)
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
        self.write(MmioReg.QUEUE_SEL, vq.index)
        self.write(MmioReg.QUEUE_SIZE, vq.vring_size)
        for low, high, addr in (
            (MmioReg.QUEUE_DESC_LOW, MmioReg.QUEUE_DESC_HIGH, vq.desc_addr),
            (MmioReg.QUEUE_DRIVER_LOW, MmioReg.QUEUE_DRIVER_HIGH, vq.avail_addr),
            (MmioReg.QUEUE_DEVICE_LOW, MmioReg.QUEUE_DEVICE_HIGH, vq.used_addr),
        ):
            self.write(low, addr & 0xFFFFFFFF)
            self.write(high, addr >> 32)
        self.write(MmioReg.QUEUE_READY, 1)
        if self.read(MmioReg.QUEUE_READY) != 1:
            raise NotSupported(f"{vq.config.label}: the device refused the queue")

    def reset_vq(self, vq: Virtqueue) -> None:
        self.write(MmioReg.QUEUE_SEL, vq.index)
        self.write(MmioReg.QUEUE_RESET, 1)
        wait_zero(lambda: self.read(MmioReg.QUEUE_RESET), f"{vq.config.label}: reset")
        wait_zero(lambda: self.read(MmioReg.QUEUE_READY), f"{vq.config.label}: reset")

    def del_vqs(self, vdev: VirtioDevice) -> None:
        for index in self._vqs:
            self.write(MmioReg.QUEUE_SEL, index)
            self.write(MmioReg.QUEUE_READY, 0)
            # The device does not touch the ring any more when this reads 0.
            wait_zero(lambda: self.read(MmioReg.QUEUE_READY), f"{vdev!r}: end of a queue")
        super().del_vqs(vdev)
        if self._handler is not None:
            self.irq.free(self._handler)
            self._handler = None


def mmio_device(
    window: MmioWindow, memory: GuestMemory, irq: IrqLine, base: int = 0
) -> VirtioDevice:
    """The driver's view of one window; register it with a VirtioBus."""
    ops = VirtioMmioOps(window, irq, base)
    return VirtioDevice(ops, memory, ops.id)


def mmio_scan(
    windows: Iterable[tuple[MmioWindow, IrqLine]], memory: GuestMemory
) -> list[VirtioDevice]:
    """The devices behind these windows; what is no device of version 2 is passed over."""
    found = []
    for base, (window, irq) in enumerate(windows):
        with suppress(NotSupported):
            found.append(mmio_device(window, memory, irq, base))
    return found
