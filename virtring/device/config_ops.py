"""The operations a transport gives a driver (Linux ``struct virtio_config_ops``)."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from virtring.memory import Region
from virtring.queue import Virtqueue
from virtring.spec.status import Status

if TYPE_CHECKING:
    from virtring.device.virtio_device import VirtioDevice

#: Called with the queue when the device has used buffers.
VqCallback = Callable[[Virtqueue], object]


@dataclass(frozen=True)
class SharedMemory:
    """A shared memory region of a device: ``len`` bytes of ``region`` from ``offset`` on.

    ``addr`` is where the guest finds it (virtio 1.4, 2.10).
    """

    id: int
    addr: int
    len: int
    region: Region
    offset: int = 0

    def view(self) -> memoryview:
        """The bytes themselves, writable."""
        return memoryview(self.region)[self.offset : self.offset + self.len]


class VirtioConfigOps(ABC):
    """What a driver can ask of its transport, entry by entry as in Linux.

    ``reset``, ``disable_vq_and_reset`` and ``synchronize_cbs`` wait until no callback runs, so they
    are refused inside of one.
    """

    @abstractmethod
    def get(self, vdev: "VirtioDevice", offset: int, length: int) -> bytes:
        """``length`` bytes of the configuration space from ``offset`` on, in device byte order.

        InvalidArgument when they do not lie inside it.
        """

    @abstractmethod
    def set(self, vdev: "VirtioDevice", offset: int, data: bytes) -> None:
        """Write to the configuration space; InvalidArgument when outside."""

    @abstractmethod
    def generation(self, vdev: "VirtioDevice") -> int:
        """Changes whenever the configuration may have changed; read before and after ``get``."""

    @abstractmethod
    def get_status(self, vdev: "VirtioDevice") -> Status:
        """The device status field."""

    @abstractmethod
    def set_status(self, vdev: "VirtioDevice", status: Status) -> None:
        """Write the status field. Never 0: that is what ``reset`` is for (InvalidArgument)."""

    @abstractmethod
    def reset(self, vdev: "VirtioDevice") -> None:
        """Reset the device; status, features and queues begin anew.

        WrongState in a queue or configuration callback of the same device. Nobody may add buffers
        or remove the device meanwhile.
        """

    @abstractmethod
    def find_vqs(
        self,
        vdev: "VirtioDevice",
        nvqs: int,
        callbacks: Sequence[VqCallback | None],
        names: Sequence[str | None],
        ctx: Sequence[bool] | None = None,
        desc: object = None,
    ) -> list[Virtqueue | None]:
        """Set up ``nvqs`` queues and add them to ``vdev.vqs``.

        A name that is None leaves a hole: that entry is None, and the device's queues are counted
        without it, as Linux does. A callback that is None means no notifications. ``ctx`` says
        which queues take a context with a buffer. On any failure all are deleted again.
        """

    @abstractmethod
    def del_vqs(self, vdev: "VirtioDevice") -> None:
        """Free all queues of the device; what is in flight is dropped."""

    @abstractmethod
    def synchronize_cbs(self, vdev: "VirtioDevice") -> None:
        """Wait until callbacks that run now have ended: what was written before is seen by all
        later ones."""

    @abstractmethod
    def config_interrupt(self, vdev: "VirtioDevice") -> None:
        """Have ``vdev.config_changed`` called, one after another with the queues' callbacks.

        Not in Linux's table: there the interrupt handler of the transport does it.
        """

    @abstractmethod
    def get_features(self, vdev: "VirtioDevice") -> int:
        """The device's feature bits 0 to 63."""

    @abstractmethod
    def finalize_features(self, vdev: "VirtioDevice") -> None:
        """Drop from ``vdev.features`` what the transport cannot do and tell the device the rest.

        May be called more than once. WrongState when a feature set cannot be used at all.
        """

    @abstractmethod
    def bus_name(self, vdev: "VirtioDevice") -> str:
        """The device's name on its bus."""

    @abstractmethod
    def set_vq_affinity(self, vq: Virtqueue, cpu_mask: Collection[int] | None) -> None:
        """On which CPUs this queue's callback should run; None for any."""

    @abstractmethod
    def get_vq_affinity(self, vdev: "VirtioDevice", index: int) -> frozenset[int] | None:
        """The CPUs of queue ``index``, None for any."""

    @abstractmethod
    def get_shm_region(self, vdev: "VirtioDevice", id: int) -> SharedMemory | None:
        """The shared memory region of this id, if the device has one."""

    @abstractmethod
    def disable_vq_and_reset(self, vq: Virtqueue) -> None:
        """Take one queue from the device: its callbacks are off and ended on return.

        The caller sees to it that nobody touches the ring until ``enable_vq_after_reset``.
        NotSupported without RING_RESET.
        """

    @abstractmethod
    def enable_vq_after_reset(self, vq: Virtqueue) -> None:
        """Give the queue back to the device; only after ``disable_vq_and_reset`` (WrongState)."""
