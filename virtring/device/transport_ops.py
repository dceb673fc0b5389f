"""What the driver sides of all transports share: finding queues and delivering callbacks."""

import os
from abc import abstractmethod
from collections.abc import Collection, Sequence
from contextlib import suppress
from functools import partial

from virtring.device.config_ops import VirtioConfigOps, VqCallback
from virtring.device.virtio_device import VirtioDevice
from virtring.device.work import Work
from virtring.errors import InvalidArgument, NotSupported, WrongState
from virtring.queue import Virtqueue
from virtring.queue.config import transport_features
from virtring.spec.features import Feature


class TransportOps(VirtioConfigOps):
    """One device's operations. A transport adds registers and :meth:`setup_vq` and friends."""

    def __init__(self) -> None:
        self.callbacks = Work()
        self._vqs: dict[int, Virtqueue] = {}
        self._in_reset: set[int] = set()
        self._affinity: dict[int, frozenset[int]] = {}

    # What a transport gives.

    @abstractmethod
    def setup_vq(
        self, vdev: VirtioDevice, index: int, callback: VqCallback | None, name: str, ctx: bool
    ) -> Virtqueue:
        """Make queue ``index`` of the device; :meth:`enable_vq` hands it over later."""

    @abstractmethod
    def enable_vq(self, vq: Virtqueue) -> None:
        """Tell the device the ring's size and addresses and hand the queue over."""

    @abstractmethod
    def reset_vq(self, vq: Virtqueue) -> None:
        """Take one queue from the device (RING_RESET)."""

    @abstractmethod
    def reset_device(self, vdev: VirtioDevice) -> None:
        """Write 0 to the status and wait until it reads 0."""

    # Interrupts.

    def vq_interrupt(self, index: int) -> None:
        """The device used buffers of queue ``index``."""
        self.callbacks.post(index, partial(self._deliver, index))

    def config_interrupt(self, vdev: VirtioDevice) -> None:
        """The device changed its configuration, or needs a reset."""
        self.callbacks.post("config", vdev.config_changed)

    def _deliver(self, index: int) -> None:
        vq = self._vqs.get(index)
        if vq is None or index in self._in_reset or vq.is_closed:
            return
        cpus = self._affinity.get(index)
        if cpus is None:
            vq.vring_interrupt()
            return
        before = os.sched_getaffinity(0)
        # A CPU may have gone since it was chosen: better called elsewhere than not at all.
        with suppress(OSError):
            os.sched_setaffinity(0, cpus)
        try:
            vq.vring_interrupt()
        finally:
            os.sched_setaffinity(0, before)

    # The table.

    def reset(self, vdev: VirtioDevice) -> None:
        if self.callbacks.inside:
            raise WrongState(f"{vdev!r}: a callback of the device must not reset it")
        self.reset_device(vdev)
        # What the device signalled before is of no use any more.
        self.callbacks.cancel()
        self.synchronize_cbs(vdev)

    def check_vqs(
        self,
        vdev: VirtioDevice,
        nvqs: int,
        callbacks: Sequence[VqCallback | None],
        names: Sequence[str | None],
        ctx: Sequence[bool] | None,
    ) -> None:
        """Can :meth:`find_vqs` be called like this now? InvalidArgument or WrongState if not."""
        if not nvqs == len(callbacks) == len(names) or (ctx is not None and len(ctx) != nvqs):
            raise InvalidArgument(f"{nvqs} queues need {nvqs} callbacks, names and contexts")
        if self._vqs:
            raise WrongState(f"{vdev!r}: its queues are set up already; del_vqs first")

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
        found: list[Virtqueue | None] = []
        index = 0
        try:
            for callback, name, context in zip(
                callbacks, names, ctx or [False] * nvqs, strict=True
            ):
                if name is None:
                    found.append(None)
                    continue
                vq = self.setup_vq(vdev, index, callback, name, context)
                self._vqs[index] = vq
                with vdev.vqs_list_lock:
                    vdev.vqs.append(vq)
                found.append(vq)
                index += 1
            # Last, and all together: from here on only a reset takes them from the device.
            for vq in self._vqs.values():
                self.enable_vq(vq)
        except BaseException:
            self.del_vqs(vdev)
            raise
        return found

    def del_vqs(self, vdev: VirtioDevice) -> None:
        with vdev.vqs_list_lock:
            for vq in self._vqs.values():
                vq.close()
            vdev.vqs.clear()
        self._vqs.clear()
        self._in_reset.clear()
        self._affinity.clear()

    def synchronize_cbs(self, vdev: VirtioDevice) -> None:
        self.callbacks.synchronize()

    def set_vq_affinity(self, vq: Virtqueue, cpu_mask: Collection[int] | None) -> None:
        self._own(vq)
        if cpu_mask is None:
            self._affinity.pop(vq.index, None)
            return
        cpus = frozenset(cpu_mask)
        allowed = os.sched_getaffinity(0)
        if not cpus or not cpus <= allowed:
            raise InvalidArgument(f"CPUs {sorted(cpus)}; it takes some of {sorted(allowed)}")
        self._affinity[vq.index] = cpus

    def _own(self, vq: Virtqueue) -> None:
        if self._vqs.get(vq.index) is not vq:
            raise InvalidArgument(f"{vq.config.label} is not a queue of this device")

    def get_vq_affinity(self, vdev: VirtioDevice, index: int) -> frozenset[int] | None:
        if index not in self._vqs:
            raise InvalidArgument(f"{vdev!r} has no queue {index}")
        return self._affinity.get(index)

    def disable_vq_and_reset(self, vq: Virtqueue) -> None:
        self._own(vq)
        if Feature.RING_RESET not in vq.features:
            raise NotSupported(f"{vq.config.label}: RING_RESET was not negotiated")
        if self.callbacks.inside:
            raise WrongState(f"{vq.config.label}: not in a callback of the device")
        if vq.index in self._in_reset:
            raise WrongState(f"{vq.config.label} is being reset already")
        self._in_reset.add(vq.index)
        self.callbacks.cancel(vq.index)
        self.callbacks.synchronize()
        # Whoever touches the queue meanwhile gets QueueBroken.
        vq.break_()
        self.reset_vq(vq)

    def enable_vq_after_reset(self, vq: Virtqueue) -> None:
        self._own(vq)
        if vq.index not in self._in_reset:
            raise WrongState(f"{vq.config.label}: enable_vq_after_reset without disable_...")
        self.enable_vq(vq)
        self._in_reset.discard(vq.index)


def usable_features(features: Feature) -> Feature:
    """What of the driver's choice the engine and the transports can do."""
    return transport_features(features) | (features & Feature.SUSPEND)
