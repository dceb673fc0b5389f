"""The device's half of the device model (Fuchsia's VirtioDeviceConfig), whatever the transport.

Transports decode registers or messages and call this; here are the rules: which status follows
which, when features may change, when a queue may be configured. What a driver does wrong is refused
without harm: nothing changes, nothing is raised, and ``refusals`` tells what and why.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import RLock

from virtring.device.config_ops import SharedMemory
from virtring.device.queue_config import VirtioQueueConfig
from virtring.device.work import Work
from virtring.errors import InvalidArgument, VirtioError
from virtring.queue.config import check_size
from virtring.spec.features import Feature
from virtring.spec.ids import DeviceID
from virtring.spec.status import Status

log = logging.getLogger(__name__)

#: What a driver may set in the status field.
DRIVER_BITS = (
    Status.ACKNOWLEDGE
    | Status.DRIVER
    | Status.FEATURES_OK
    | Status.DRIVER_OK
    | Status.SUSPEND
    | Status.FAILED
)
#: Refusals that are remembered.
REMEMBERED = 64


def _nothing(*_: object) -> None:
    return None


class VirtioDeviceConfig:
    """Identity, features, configuration space, queues and status of one device.

    device_id: virtio id. device_features: bits 0 to 63 on offer. config: the configuration space,
    kept and shared (a bytearray). queue_sizes: the most entries of each queue, 0 for none.
    accept_legacy: take a driver that leaves VERSION_1 out.

    The device gives the callbacks: ``config_queue(queue, VirtioQueueConfig)`` when the driver hands
    a queue over, ``notify_queue(queue)`` on a kick, ``config_device(offset, data)`` when the driver
    wrote to the configuration, ``ready_device(features)`` at DRIVER_OK, ``validate_features`` at
    FEATURES_OK (False refuses), ``reset_queue(queue)``, ``reset_device()`` and
    ``suspend_device(bool)``. The transport gives ``interrupt_queue(queue)`` and
    ``interrupt_config()`` by :meth:`connect`.
    """

    def __init__(
        self,
        device_id: DeviceID | int,
        device_features: int,
        config: bytes | bytearray,
        queue_sizes: Sequence[int],
        *,
        accept_legacy: bool = False,
        config_queue: Callable[[int, VirtioQueueConfig], object] = _nothing,
        notify_queue: Callable[[int], object] = _nothing,
        config_device: Callable[[int, bytes], object] = _nothing,
        ready_device: Callable[[Feature], object] = _nothing,
        validate_features: Callable[[Feature], bool] = lambda _: True,
        reset_queue: Callable[[int], object] = _nothing,
        reset_device: Callable[[], object] = _nothing,
        suspend_device: Callable[[bool], object] = _nothing,
    ) -> None:
        for size in queue_sizes:
            if size:
                check_size(size, packed=True)
        self.mutex = RLock()
        self.work = Work()
        self.device_id = int(device_id)
        self.device_features = Feature(device_features)
        self.config = config if isinstance(config, bytearray) else bytearray(config)
        self.queue_configs = [VirtioQueueConfig(size, size) for size in queue_sizes]
        self.accept_legacy = accept_legacy
        self.shared_memory: dict[int, SharedMemory] = {}
        self.config_queue = config_queue
        self.notify_queue = notify_queue
        self.config_device = config_device
        self.ready_device = ready_device
        self.validate_features = validate_features
        self.reset_queue = reset_queue
        self.reset_device = reset_device
        self.suspend_device = suspend_device
        self.refusals: deque[str] = deque(maxlen=REMEMBERED)
        self.refused = 0
        self.generation = 0
        self.driver_features = Feature(0)
        self.status = Status(0)
        self._interrupt_queue: Callable[[int], object] = _nothing
        self._interrupt_config: Callable[[], object] = _nothing
        self._config_changed_while_suspended = False

    @property
    def config_size(self) -> int:
        """Bytes of the configuration space."""
        return len(self.config)

    @property
    def num_queues(self) -> int:
        return len(self.queue_configs)

    @property
    def running(self) -> bool:
        """May buffers be used and notifications sent? DRIVER_OK and nothing wrong."""
        stopped = Status.FAILED | Status.NEEDS_RESET
        return Status.DRIVER_OK in self.status and not self.status & stopped

    def connect(
        self, interrupt_queue: Callable[[int], object], interrupt_config: Callable[[], object]
    ) -> None:
        """Where the transport wants notifications of used buffers and of changed configuration."""
        self._interrupt_queue = interrupt_queue
        self._interrupt_config = interrupt_config

    @contextmanager
    def _work_after(self) -> Iterator[None]:
        """Hold ``mutex``; kicks and interrupts that come up wait until it is free again.

        A driver's callback may wait for a thread that waits for ``mutex``.
        """
        with self.work.later(), self.mutex:
            yield

    def refuse(self, reason: str) -> None:
        """The driver did what it must not; remembered, logged, without effect."""
        self.refused += 1
        self.refusals.append(reason)
        log.debug("device %d: %s", self.device_id, reason)

    # Status and features.

    def set_status(self, value: int) -> None:
        """The driver writes the status field (virtio 1.4, 2.1 and 3.1); 0 resets."""
        with self._work_after():
            wanted = Status(value & int(DRIVER_BITS | Status.NEEDS_RESET))
            if value == 0:
                self.reset()
                return
            if Status.SUSPEND in self.status:
                self._resume(wanted)
                return
            if self.status & DRIVER_BITS & ~wanted:
                self.refuse(f"status {value:#x} clears bits of {int(self.status):#x}")
                return
            new = wanted & DRIVER_BITS & ~self.status
            if Status.FAILED in new:
                self.status |= Status.FAILED
                return
            if Status.FAILED in self.status or Status.NEEDS_RESET in self.status:
                if new:
                    self.refuse(f"status {value:#x} before the reset that is due")
                return
            for bit in (Status.ACKNOWLEDGE, Status.DRIVER):
                self.status |= new & bit
            if Status.FEATURES_OK in new:
                self._features_ok()
            if Status.DRIVER_OK in new:
                self._driver_ok()
            if Status.SUSPEND in new:
                self._suspend()

    def _features_ok(self) -> None:
        if Status.DRIVER not in self.status or Status.ACKNOWLEDGE not in self.status:
            self.refuse("FEATURES_OK before ACKNOWLEDGE and DRIVER")
        elif self.features_fit():
            self.status |= Status.FEATURES_OK

    def features_fit(self) -> bool:
        """Can the device work with what the driver chose? Else it is refused."""
        extra = int(self.driver_features) & ~int(self.device_features)
        if extra:
            self.refuse(f"features {extra:#x} were not offered")
        elif Feature.VERSION_1 not in self.driver_features and not self.accept_legacy:
            self.refuse("a driver without VERSION_1")
        elif (
            Feature.RING_PACKED in self.driver_features
            and Feature.VERSION_1 not in self.driver_features
        ):
            self.refuse("RING_PACKED without VERSION_1")
        elif not self.validate_features(self.driver_features):
            self.refuse(f"features {int(self.driver_features):#x} do not go together")
        else:
            return True
        return False

    @property
    def negotiated(self) -> bool:
        """Are the features final?"""
        legacy = self.accept_legacy and Feature.VERSION_1 not in self.driver_features
        return Status.FEATURES_OK in self.status or legacy

    def _driver_ok(self) -> None:
        if not self.negotiated:
            self.refuse("DRIVER_OK before FEATURES_OK")
            return
        self.status |= Status.DRIVER_OK
        self.ready_device(self.driver_features)
        # A driver may add buffers before DRIVER_OK, but its kicks are not heard until now.
        self.kick_all()

    def begin(self, features: int) -> None:
        """DRIVER_OK by a transport that does the handshake elsewhere, such as vhost-user."""
        with self.mutex:
            self.driver_features = Feature(features)
            self.status |= (
                Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK
            )
            self.ready_device(self.driver_features)

    def _suspend(self) -> None:
        if Feature.SUSPEND not in self.driver_features or Status.DRIVER_OK not in self.status:
            self.refuse("SUSPEND without the feature or before DRIVER_OK")
            return
        self.suspend_device(True)
        self.status = (self.status | Status.SUSPEND) & ~Status.DRIVER_OK

    def _resume(self, wanted: Status) -> None:
        if Status.DRIVER_OK not in wanted:
            self.refuse("a suspended device takes DRIVER_OK or a reset")
            return
        self.status = (self.status | Status.DRIVER_OK) & ~Status.SUSPEND
        self.suspend_device(False)
        self.kick_all()
        if self._config_changed_while_suspended:
            self._config_changed_while_suspended = False
            self.interrupt_config()

    def set_features(self, features: int) -> None:
        """The driver writes its 64 feature bits; refused once FEATURES_OK is set."""
        with self.mutex:
            if Status.FEATURES_OK in self.status:
                self.refuse("features written after FEATURES_OK")
            else:
                self.driver_features = Feature(features & 0xFFFF_FFFF_FFFF_FFFF)

    def feature_word(self, select: int) -> int:
        """32 bits of the offer: word 0, 1; zero beyond."""
        return (int(self.device_features) >> 32 * select) & 0xFFFFFFFF if select < 2 else 0

    def driver_feature_word(self, select: int) -> int:
        """32 bits of what the driver wrote."""
        return (int(self.driver_features) >> 32 * select) & 0xFFFFFFFF if select < 2 else 0

    def set_feature_word(self, select: int, value: int) -> None:
        """The driver writes 32 of its feature bits."""
        if select >= 2:
            if value:
                self.refuse(f"features written to word {select}")
            return
        kept = int(self.driver_features) & ~(0xFFFFFFFF << 32 * select)
        self.set_features(kept | (value & 0xFFFFFFFF) << 32 * select)

    def reset(self) -> None:
        """Everything as after power on; the device has let go of all buffers on return."""
        with self.mutex:
            self.status = Status(0)
            self.reset_device()
            self.driver_features = Feature(0)
            self._config_changed_while_suspended = False
            for queue in self.queue_configs:
                queue.reset()

    def needs_reset(self, reason: str) -> None:
        """The device cannot go on (virtio 1.4, 2.1.2); says so to a driver that is there."""
        log.warning("device %d needs a reset: %s", self.device_id, reason)
        self.refusals.append(reason)
        tell = Status.DRIVER_OK in self.status
        self.status |= Status.NEEDS_RESET
        if tell:
            self.work.post("config", self._interrupt_config)

    # Queues.

    def queue(self, index: int) -> VirtioQueueConfig | None:
        """The queue of that number, None when there is none."""
        if 0 <= index < len(self.queue_configs) and self.queue_configs[index].size_max:
            return self.queue_configs[index]
        return None

    def _settable(self, index: int, what: str) -> VirtioQueueConfig | None:
        queue = self.queue(index)
        if queue is None:
            self.refuse(f"{what} of queue {index}, which does not exist")
        elif queue.enabled:
            self.refuse(f"{what} of queue {index} written while it is enabled")
        else:
            return queue
        return None

    def queue_size(self, index: int) -> int:
        """The ring's entries as they stand, 0 without such a queue; for a split ring a power of
        two, even if the device can do with more (virtio 1.4, 4.1.4.3.1)."""
        queue = self.queue(index)
        if queue is None:
            return 0
        if Feature.RING_PACKED in self.driver_features:
            return queue.size
        return 1 << queue.size.bit_length() - 1

    def set_queue_size(self, index: int, size: int) -> None:
        """The driver chooses the ring's entries, 1 to ``size_max``."""
        with self.mutex:
            queue = self._settable(index, "size")
            if queue is None:
                return
            packed = Feature.RING_PACKED in self.driver_features
            if not 1 <= size <= queue.size_max:
                self.refuse(f"size {size} of queue {index}; it takes 1 to {queue.size_max}")
            elif not packed and size & (size - 1):
                self.refuse(f"size {size} of queue {index}; a split ring takes a power of two")
            else:
                queue.size = size

    def set_queue_area(self, index: int, area: str, value: int) -> None:
        """The driver writes one of the addresses ``desc``, ``avail``, ``used``."""
        with self.mutex:
            queue = self._settable(index, f"{area} address")
            if queue is not None:
                setattr(queue, area, value & 0xFFFF_FFFF_FFFF_FFFF)

    def set_queue_word(self, index: int, area: str, high: bool, value: int) -> None:
        """The driver writes half of an address."""
        with self.mutex:
            queue = self._settable(index, f"{area} address")
            if queue is not None:
                queue.set_word(area, high, value)

    def enable_queue(self, index: int) -> None:
        """The driver hands a configured queue over."""
        with self._work_after():
            queue = self._settable(index, "enable")
            if queue is None:
                return
            if not self.negotiated:
                self.refuse(f"queue {index} enabled before FEATURES_OK")
                return
            queue.size = self.queue_size(index)
            try:
                self.config_queue(index, queue)
            except VirtioError as error:
                self.refuse(f"queue {index} not enabled: {error}")
                return
            queue.enabled = True
        if Status.DRIVER_OK in self.status:
            self.notify(index)

    def restart_queue(self, index: int) -> None:
        """The driver resets one queue (virtio 1.4, 2.6.1); it is disabled on return."""
        with self.mutex:
            queue = self.queue(index)
            if queue is None or Feature.RING_RESET not in self.driver_features:
                self.refuse(f"reset of queue {index} without RING_RESET or without such a queue")
                return
            self.reset_queue(index)
            vector = queue.vector
            queue.reset()
            queue.vector = vector

    def disable_queue(self, index: int) -> None:
        """The driver takes a queue back by writing 0 to its enable register, where that may be."""
        with self.mutex:
            queue = self.queue(index)
            if queue is not None and queue.enabled:
                self.reset_queue(index)
                queue.enabled = False

    def notify(self, index: int) -> None:
        """The driver kicked queue ``index``; the device looks at it soon."""
        queue = self.queue(index)
        if queue is None or not queue.enabled:
            self.refuse(f"notification of queue {index}, which is not enabled")
            return
        self.work.post(("queue", index), lambda: self._look(index))

    def kick_all(self) -> None:
        """Have the device look at every queue: kicks may have gone unheard."""
        for index, queue in enumerate(self.queue_configs):
            if queue.enabled:
                self.notify(index)

    def _look(self, index: int) -> None:
        with self.mutex:
            if self.running and self.queue_configs[index].enabled:
                self.notify_queue(index)

    def interrupt_queue(self, index: int) -> None:
        """The device used buffers: tell the driver. From any thread.

        Not before DRIVER_OK, and never with ``mutex`` held: a driver's callback may wait for it.
        """
        if self.running:
            self.work.post(("interrupt", index), lambda: self._signal(index))

    def _signal(self, index: int) -> None:
        if self.running:
            self._interrupt_queue(index)

    # Configuration space.

    def read_config(self, offset: int, length: int) -> bytes:
        """What the driver reads; InvalidArgument when it does not lie inside."""
        self._check_config(offset, length)
        with self.mutex:
            return bytes(self.config[offset : offset + length])

    def write_config(self, offset: int, data: bytes) -> None:
        """What the driver writes: for the device to take or to ignore."""
        self._check_config(offset, len(data))
        with self._work_after():
            self.config_device(offset, data)

    def _check_config(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > len(self.config):
            raise InvalidArgument(
                f"configuration bytes {offset} to {offset + length}; there are {len(self.config)}"
            )

    def update_config(self, offset: int, data: bytes) -> None:
        """The device changes its configuration: generation up, driver notified."""
        self._check_config(offset, len(data))
        with self.mutex:
            self.config[offset : offset + len(data)] = data
            self.generation = (self.generation + 1) & 0xFFFFFFFF
        self.interrupt_config()

    def interrupt_config(self) -> None:
        """Tell the driver that the configuration changed; later, if it is suspended."""
        if Status.SUSPEND in self.status:
            self._config_changed_while_suspended = True
        elif Status.DRIVER_OK in self.status:
            self.work.post("config", self._interrupt_config)
