"""The base of every device: queues, configuration and notifications over any transport."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import Any, ClassVar

import numpy as np

from virtring.device.burst import BurstWorker
from virtring.device.config_ops import SharedMemory
from virtring.device.device_config import VirtioDeviceConfig
from virtring.device.queue_config import QUEUE_SIZE, VirtioQueueConfig
from virtring.device.transport_ops import usable_features
from virtring.errors import InvalidArgument, QueueBroken, WrongState
from virtring.memory import GuestMemory, Region
from virtring.queue import Batch, Chain, DeviceQueue, QueueConfig
from virtring.spec.features import Feature
from virtring.spec.ids import DeviceID

#: What a device offers beside its own features unless told otherwise.
RING_OFFER = (
    Feature.VERSION_1
    | Feature.INDIRECT_DESC
    | Feature.EVENT_IDX
    | Feature.RING_PACKED
    | Feature.IN_ORDER
    | Feature.RING_RESET
)


class Device:
    """The device half. A subclass names its id and queues and overrides :meth:`handle_queue`.

    features: the device type's bits on offer; ring_features: the device-independent ones.
    queues: names of the queues; queue_size: the most ring entries of each. config: the initial
    configuration space, bytes or one record of a numpy dtype (little-endian). InvalidArgument for
    bits that nothing here implements, such as SR_IOV (virtio 1.4, 2.2.2).

    ``self.features`` are the negotiated bits, ``self.queues`` the :class:`DeviceQueue` objects
    (None while the driver has not handed one over), ``self.memory`` the guest's memory.
    The transport calls ``handle_queue`` for one kick at a time, never two at once.
    """

    device_id: ClassVar[DeviceID]
    queue_names: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        *,
        features: int = 0,
        ring_features: int = RING_OFFER,
        queues: Sequence[str] | None = None,
        queue_size: int = QUEUE_SIZE,
        config: "bytes | np.ndarray[Any, Any] | np.void" = b"",
    ) -> None:
        offer = Feature(int(features) | int(ring_features))
        extra = int(offer) & ~int(usable_features(offer))
        if extra:
            raise InvalidArgument(f"features {extra:#x} are none that a device here can offer")
        self.names = tuple(self.queue_names if queues is None else queues)
        self.core = VirtioDeviceConfig(
            self.device_id,
            int(offer),
            bytes(config) if isinstance(config, bytes | bytearray) else config.tobytes(),
            [queue_size] * len(self.names),
            config_queue=self._config_queue,
            notify_queue=self.run_queue,
            config_device=self.config_written,
            ready_device=self._ready_device,
            validate_features=self.validate_features,
            reset_queue=self.stop_queue,
            reset_device=self._reset_device,
            suspend_device=self.suspended,
        )
        self.features = Feature(0)
        self.queues: list[DeviceQueue | None] = [None] * len(self.names)
        self._memory: GuestMemory | None = None
        #: Makes the device's queues, by DeviceQueue's arguments: a transport may have its own kind.
        self.make_queue: Callable[..., DeviceQueue] = DeviceQueue

    # What a device overrides.

    def handle_queue(self, index: int, queue: DeviceQueue) -> None:
        """The driver made buffers available in queue ``index``; take what there is.

        Errors of the driver's (QueueBroken and below) may go through: the device then needs a
        reset.
        """
        raise NotImplementedError

    def ready(self, features: Feature) -> None:
        """The driver is ready (DRIVER_OK); ``features`` is what was agreed on."""

    def reset(self) -> None:
        """Forget everything of the driver; queues are taken away after this returns.

        A device whose threads touch the guest memory waits for them here; ``handle_queue`` is not
        called any more.
        """

    def polled(self, index: int) -> bool:
        """Is a buffer in queue ``index`` something to do? A transport that polls asks.

        False for queues that the device looks at when it needs a buffer.
        """
        return True

    def config_written(self, offset: int, data: bytes) -> None:
        """The driver wrote to the configuration space. Nothing is stored unless this does so."""

    def validate_features(self, features: Feature) -> bool:
        """Do the driver's features go together?"""
        return True

    def queue_started(self, index: int, queue: DeviceQueue) -> None:
        """The driver handed over queue ``index``."""

    def queue_stopped(self, index: int, queue: DeviceQueue) -> None:
        """Queue ``index`` is being taken away; let go of its chains."""

    def burst_worker(self, index: int) -> BurstWorker | None:
        """What does the work of queue ``index`` in C, for a transport that has a thread for each
        queue; None, as here, when only ``handle_queue`` does. ``handle_queue`` must do the same.
        """
        return None

    def suspended(self, suspend: bool) -> None:
        """The driver suspends the device (True) or lets it go on (False).

        On True finish and return what is in hand and signal it: ``handle_queue`` is not called
        from now on.
        """

    # What a device uses.

    @property
    def memory(self) -> GuestMemory:
        """The guest's memory; WrongState before a transport has the device."""
        if self._memory is None:
            raise WrongState(f"{type(self).__name__} is not attached to a transport")
        return self._memory

    def chains(self, queue: DeviceQueue) -> Iterator[Chain]:
        """Every chain that is available, notifications off meanwhile and on again at the end."""
        while not queue.is_closed:
            queue.disable_notify()
            while (chain := queue.next_chain()) is not None:
                yield chain
            if queue.enable_notify():
                return

    def bursts(self, queue: DeviceQueue, batch: Batch) -> Iterator[int]:
        """Fill ``batch`` with what is available, again and again: the number of rows each time."""
        while not queue.is_closed:
            queue.disable_notify()
            while count := queue.pop(batch):
                yield count
            if queue.enable_notify():
                return

    def defer(self, key: Hashable, job: Callable[[], object]) -> None:
        """Run ``job`` when no other work of this device runs: how threads hand back results.

        A queue belongs to one thread at a time; jobs and ``handle_queue`` never run side by side.
        ``key`` stands for at most one waiting job.
        """

        def alone() -> None:
            with self.core.mutex:
                job()

        self.core.work.post(key, alone)

    def has(self, feature: int) -> bool:
        """Was this bit negotiated?"""
        return bool(int(self.features) & int(feature))

    def update_config(self, offset: int, data: bytes) -> None:
        """Change the configuration space; the driver is notified."""
        self.core.update_config(offset, data)

    def add_shared_memory(
        self, id: int, region: Region, *, addr: int = 0, offset: int = 0, size: int | None = None
    ) -> SharedMemory:
        """Offer ``region`` as shared memory ``id`` (virtio 1.4, 2.10).

        ``addr`` is where the guest finds it, where a transport does not place it itself.
        """
        if id in self.core.shared_memory:
            raise InvalidArgument(f"shared memory {id} exists already")
        length = region.size - offset if size is None else size
        if offset < 0 or length <= 0 or offset + length > region.size:
            raise InvalidArgument(f"bytes {offset} to {offset + length} of {region.size}")
        shared = SharedMemory(id, addr, length, region, offset)
        self.core.shared_memory[id] = shared
        return shared

    def locked(self) -> AbstractContextManager[None]:
        """``with self.locked():`` no queue is looked at, in no thread. ``handle_queue`` has it."""
        return self.core.locked()

    def wake(self, index: int) -> None:
        """Have :meth:`handle_queue` called for queue ``index``, as if the driver had kicked.

        For what a device finishes later, from any thread: keep the result, wake the queue, return
        the chain in ``handle_queue``. Nothing happens while the driver does not use the queue.
        Raises what the driver's callbacks raise, if it is this thread that runs them.
        """
        self.core.wake(index)

    def needs_reset(self, reason: str) -> None:
        """The device cannot go on until the driver resets it."""
        self.core.needs_reset(reason)

    # What a transport uses.

    def attach(
        self,
        memory: GuestMemory,
        interrupt_queue: Callable[[int], object],
        interrupt_config: Callable[[], object],
    ) -> None:
        """Put the device behind a transport. WrongState if it is behind another already."""
        if self._memory is not None:
            raise WrongState(f"{type(self).__name__} is attached to a transport already")
        self._memory = memory
        self.core.connect(interrupt_queue, interrupt_config)

    def detach(self) -> None:
        """Take the device from its transport: reset, no memory. Again is fine."""
        if self._memory is not None:
            self.core.reset()
            self.core.connect(lambda _: None, lambda: None)
            self._memory = None

    def start_queue(self, index: int, config: QueueConfig, position: int | None = None) -> None:
        """Begin with a queue, where :meth:`stop_queue` had left off if ``position`` is given.

        Raises InvalidArgument or AddressError when the ring cannot be there.
        """
        if not 0 <= index < len(self.queues):
            raise InvalidArgument(f"queue {index}; the device has {len(self.queues)}")
        self.stop_queue(index)
        queue = self.make_queue(
            self.memory,
            config,
            weak_barriers=Feature.ORDER_PLATFORM not in config.features,
            call=lambda _: self.core.interrupt_queue(index),
        )
        try:
            if position is not None:
                queue.restore(position)
        except BaseException:
            queue.close()
            raise
        self.features = config.features
        self.queues[index] = queue
        self.queue_started(index, queue)

    def stop_queue(self, index: int) -> int:
        """Take a queue away; the position it has reached, 0 if it was not started."""
        queue = self.queues[index]
        if queue is None:
            return 0
        self.queue_stopped(index, queue)
        self.queues[index] = None
        position = queue.position
        queue.close()
        return position

    def memory_changed(self) -> None:
        """Regions were added or taken away: let go of what is not there any more, now."""
        for queue in self.queues:
            if queue is not None:
                with suppress(QueueBroken):
                    # Any look at a ring begins with the map as it is.
                    queue.more_available  # noqa: B018

    def kick(self, index: int) -> None:
        """Let the device look at queue ``index`` soon, whatever the registers say of it."""
        self.defer(("queue", index), partial(self.run_queue, index))

    def run_queue(self, index: int) -> None:
        """Let the device look at queue ``index`` and tell the driver what it used."""
        queue = self.queues[index]
        if queue is None:
            return
        try:
            self._handle(index, queue)
        except QueueBroken as error:
            self.needs_reset(str(error))

    def _handle(self, index: int, queue: DeviceQueue) -> None:
        try:
            self.handle_queue(index, queue)
        except QueueBroken:
            raise
        except BaseException:
            # Left in the middle: the driver must hear of what was used, and kick again.
            if not queue.is_closed:
                queue.enable_notify()
                queue.signal()
            raise
        if not queue.is_closed:
            queue.signal()

    def _config_queue(self, index: int, queue: VirtioQueueConfig) -> None:
        features = self.core.driver_features
        if not (queue.desc and queue.avail and queue.used):
            raise InvalidArgument("its addresses are not set")
        config = QueueConfig(
            queue.size, queue.desc, queue.avail, queue.used, features, index, self.names[index]
        )
        self.start_queue(index, config)

    def _ready_device(self, features: Feature) -> None:
        self.features = features
        self.ready(features)

    def _reset_device(self) -> None:
        self.reset()
        for index in range(len(self.queues)):
            self.stop_queue(index)
        self.features = Feature(0)
