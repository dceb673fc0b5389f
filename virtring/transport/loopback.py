"""A device without a bus: the driver's operations go straight to the device's core."""

from virtring.device.config_ops import SharedMemory, VqCallback
from virtring.device.device import Device
from virtring.device.transport_ops import TransportOps, usable_features
from virtring.device.virtio_device import VirtioDevice, VirtioDeviceId
from virtring.errors import InvalidArgument, NotSupported
from virtring.memory import GuestMemory
from virtring.queue import Virtqueue, vring_create_virtqueue
from virtring.spec.status import Status

#: Vendor of our devices in a virtio id: the one of the PCI ids.
VENDOR = 0x1AF4


class LoopbackOps(TransportOps):
    """The operations of one device in the same process."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device
        self.core = device.core

    def get(self, vdev: VirtioDevice, offset: int, length: int) -> bytes:
        return self.core.read_config(offset, length)

    def set(self, vdev: VirtioDevice, offset: int, data: bytes) -> None:
        self.core.write_config(offset, data)

    def generation(self, vdev: VirtioDevice) -> int:
        return self.core.generation

    def get_status(self, vdev: VirtioDevice) -> Status:
        return self.core.status

    def set_status(self, vdev: VirtioDevice, status: Status) -> None:
        if not status:
            raise InvalidArgument("status 0 is a reset: use reset()")
        self.core.set_status(int(status))

    def reset_device(self, vdev: VirtioDevice) -> None:
        self.core.set_status(0)

    def get_features(self, vdev: VirtioDevice) -> int:
        return int(self.core.device_features)

    def finalize_features(self, vdev: VirtioDevice) -> None:
        vdev.features = usable_features(vdev.features)
        self.core.set_features(int(vdev.features))

    def bus_name(self, vdev: VirtioDevice) -> str:
        return f"loopback-{type(self.device).__name__.lower()}"

    def get_shm_region(self, vdev: VirtioDevice, id: int) -> SharedMemory | None:
        return self.core.shared_memory.get(id)

    def setup_vq(
        self, vdev: VirtioDevice, index: int, callback: VqCallback | None, name: str, ctx: bool
    ) -> Virtqueue:
        size = self.core.queue_size(index, most=True)
        if not size:
            raise NotSupported(f"{vdev!r} has no queue {index} ({name})")

        def notify(vq: Virtqueue) -> bool:
            self.core.notify(index)
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
        core, index = self.core, vq.index
        core.set_queue_size(index, vq.vring_size)
        core.set_queue_area(index, "desc", vq.desc_addr)
        core.set_queue_area(index, "avail", vq.avail_addr)
        core.set_queue_area(index, "used", vq.used_addr)
        core.enable_queue(index)
        if not core.queue_configs[index].enabled:
            raise NotSupported(f"{vq.config.label}: the device refused: {core.refusals[-1]}")

    def reset_vq(self, vq: Virtqueue) -> None:
        self.core.restart_queue(vq.index)


def loopback(device: Device, memory: GuestMemory) -> VirtioDevice:
    """A driver's view of ``device`` in the same process; register it with a VirtioBus.

    ``memory`` is the guest's. WrongState if the device is behind another transport.
    """
    ops = LoopbackOps(device)
    vdev = VirtioDevice(ops, memory, VirtioDeviceId(device.core.device_id, VENDOR))
    device.attach(memory, ops.vq_interrupt, lambda: ops.config_interrupt(vdev))
    return vdev
