"""The device's half of the device model (Fuchsia's VirtioDeviceConfig), whatever the transport.

Transports decode registers or messages and call this; here are the rules: which status follows
which, when features may change, when a queue may be configured. What a driver does wrong is refused
without harm: nothing changes, nothing is raised, and ``refusals`` tells what and why.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from virtring.device.config_ops import SharedMemory
from virtring.device.device_features import DeviceFeatures
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
#: Asked with every kick and interrupt: plain integers, the operators of an enumeration are slow.
DRIVER_OK, SUSPEND = int(Status.DRIVER_OK), int(Status.SUSPEND)
RUN_MASK = int(Status.DRIVER_OK | Status.FAILED | Status.NEEDS_RESET)


def _nothing(*_: object) -> None:
    return None


class VirtioDeviceConfig(DeviceFeatures):
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
        super().__init__(device_id, device_features, accept_legacy, validate_features)
        self.work = Work()
        self.config = config if isinstance(config, bytearray) else bytearray(config)
        self.queue_configs = [VirtioQueueConfig(size, size) for size in queue_sizes]
        self.shared_memory: dict[int, SharedMemory] = {}
        self.config_queue = config_queue
        self.notify_queue = notify_queue
        self.config_device = config_device
        self.ready_device = ready_device
        self.reset_queue = reset_queue
        self.reset_device = reset_device
        self.suspend_device = suspend_device
        self.generation = 0
        self._interrupt_queue: Callable[[int], object] = _nothing
        self._interrupt_config: Callable[[], object] = _nothing
        # No look at a queue; no notification either.
        self._paused = self._resetting = False
        self._forget()

    def _forget(self) -> None:
        # What came up while suspended: it is done, or said, on resuming.
        self._late_config: list[tuple[int, bytes]] = []
        self._late_interrupts: set[int] = set()
        self._late_change = False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The mutex; jobs that this thread posts meanwhile are run when it is free again.

        A driver's callback may wait for a thread that waits for the mutex.
        """
        with self.work.later(), self.mutex:
            yield

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
        return int(self.status) & RUN_MASK == DRIVER_OK and not self._resetting

    def connect(
        self, interrupt_queue: Callable[[int], object], interrupt_config: Callable[[], object]
    ) -> None:
        """Where the transport wants notifications of used buffers and of changed configuration."""
        self._interrupt_queue = interrupt_queue
        self._interrupt_config = interrupt_config

    # Status and features.

    def set_status(self, value: int) -> None:
        """The driver writes the status field (virtio 1.4, 2.1 and 3.1); 0 resets."""
        if value == 0:
            self.reset()
            return
        with self.locked():
            suspend = self._take_status(value)
        if suspend:
            self._suspend()

    def _take_status(self, value: int) -> bool:
        """Set and clear bits; is SUSPEND what is left to do?"""
        wanted = Status(value & int(DRIVER_BITS | Status.NEEDS_RESET))
        if Status.SUSPEND in self.status:
            self._resume(wanted)
            return False
        if self.status & DRIVER_BITS & ~wanted:
            self.refuse(f"status {value:#x} clears bits of {int(self.status):#x}")
            return False
        new = wanted & DRIVER_BITS & ~self.status
        if Status.FAILED in new:
            self.status |= Status.FAILED
            return False
        if Status.FAILED in self.status or Status.NEEDS_RESET in self.status:
            if new:
                self.refuse(f"status {value:#x} before the reset that is due")
            return False
        for bit in (Status.ACKNOWLEDGE, Status.DRIVER):
            self.status |= new & bit
        if Status.FEATURES_OK in new:
            self._features_ok()
        if Status.DRIVER_OK in new:
            self._driver_ok()
        return Status.SUSPEND in new

    def _features_ok(self) -> None:
        if Status.DRIVER not in self.status or Status.ACKNOWLEDGE not in self.status:
            self.refuse("FEATURES_OK before ACKNOWLEDGE and DRIVER")
        elif self.features_fit():
            self.status |= Status.FEATURES_OK

    def _driver_ok(self) -> None:
        if not self.negotiated:
            self.refuse("DRIVER_OK before FEATURES_OK")
            return
        self.status |= Status.DRIVER_OK
        self.ready_device(self.driver_features)
        # A driver may add buffers before DRIVER_OK, but its kicks are not heard until now.
        for index in range(self.num_queues):
            self.wake(index)

    def begin(self, features: int) -> None:
        """DRIVER_OK by a transport that does the handshake elsewhere, such as vhost-user."""
        with self.locked():
            self.driver_features = Feature(features)
            self.status |= (
                Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK
            )
            self.ready_device(self.driver_features)

    def _suspend(self) -> None:
        # In the order of the standard: take no more, finish what is in hand, tell the driver.
        with self.locked():
            if Feature.SUSPEND not in self.driver_features or not self.running:
                self.refuse("SUSPEND without the feature or before DRIVER_OK")
                return
            self._paused = True
        try:
            self.suspend_device(True)
        except BaseException as error:
            self._paused = False
            self.needs_reset(f"it could not suspend: {error!r}")
            raise
        with self.locked():
            self.status = (self.status | Status.SUSPEND) & ~Status.DRIVER_OK

    def _resume(self, wanted: Status) -> None:
        if Status.DRIVER_OK not in wanted:
            self.refuse("a suspended device takes DRIVER_OK or a reset")
            return
        try:
            self.suspend_device(False)
        except BaseException as error:
            self.needs_reset(f"it could not resume: {error!r}")
            raise
        self.status = (self.status | Status.DRIVER_OK) & ~Status.SUSPEND
        self._paused = False
        changes, interrupts = self._late_config, self._late_interrupts
        changed = self._late_change
        self._forget()
        if changed:
            self.interrupt_config()
        for offset, data in changes:
            self.update_config(offset, data)
        for index in interrupts:
            self.interrupt_queue(index)
        for index in range(self.num_queues):
            self.wake(index)

    def reset(self) -> None:
        """Everything as after power on; the device has let go of all buffers on return."""
        with self.locked():
            # Waited for a look that was going on; there will be no other.
            self._paused = self._resetting = True
        try:
            # Without the mutex: a thread that the device waits for here may need it to end.
            self.reset_device()
        finally:
            with self.locked():
                self.status = Status(0)
                self.driver_features = Feature(0)
                for queue in self.queue_configs:
                    queue.reset()
                self._forget()
                self._paused = self._resetting = False

    def needs_reset(self, reason: str) -> None:
        """The device cannot go on (virtio 1.4, 2.1.2); says so to a driver that is there."""
        log.warning("device %d needs a reset: %s", self.device_id, reason)
        with self.locked():
            self.refusals.append(reason)
            self.status |= Status.NEEDS_RESET
            self.interrupt_config()

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
        elif queue.enabled or queue.resetting or self._resetting:
            self.refuse(f"{what} of queue {index} written while it is enabled or being reset")
        else:
            return queue
        return None

    def queue_size(self, index: int, most: bool = False) -> int:
        """The ring's entries as they stand, or the most there can be; 0 without such a queue.

        For a split ring a power of two, whatever the device has (virtio 1.4, 4.1.4.3.1).
        """
        queue = self.queue(index)
        if queue is None:
            return 0
        size = queue.size_max if most else queue.size
        packed = Feature.RING_PACKED in self.driver_features
        return size if packed else 1 << size.bit_length() - 1

    def set_queue_size(self, index: int, size: int) -> None:
        """The driver chooses the ring's entries, 1 to ``size_max``; split: a power of two."""
        with self.mutex:
            queue = self._settable(index, "size")
            packed = Feature.RING_PACKED in self.driver_features
            if queue is None:
                return
            if 1 <= size <= queue.size_max and (packed or not size & size - 1):
                queue.size = size
            else:
                kind = "" if packed else ", a power of two"
                self.refuse(f"size {size} of queue {index}; it takes 1 to {queue.size_max}{kind}")

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
        with self.locked():
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
            self.wake(index)

    def restart_queue(self, index: int) -> None:
        """The driver resets one queue (virtio 1.4, 2.6.1); it is disabled on return."""
        with self.locked():
            queue = self.queue(index)
            if queue is None or Feature.RING_RESET not in self.driver_features:
                self.refuse(f"reset of queue {index} without RING_RESET or without such a queue")
                return
            queue.enabled, queue.resetting = False, True
        try:
            # As in reset(): not with the mutex held.
            self.reset_queue(index)
        finally:
            with self.locked():
                vector = queue.vector
                queue.reset()
                queue.vector = vector

    def disable_queue(self, index: int) -> None:
        """The driver takes a queue back, where a transport lets it (virtio 1.4, 4.2.2)."""
        with self.locked():
            queue = self.queue(index)
            if queue is None or not queue.enabled:
                return
            queue.enabled = False
        self.reset_queue(index)

    def notify(self, index: int) -> None:
        """The driver kicked queue ``index``; the device looks at it soon."""
        queue = self.queue(index)
        if queue is None or not queue.enabled:
            self.refuse(f"notification of queue {index}, which is not enabled")
            return
        self.wake(index)

    def wake(self, index: int) -> None:
        """Let the device look at queue ``index`` if it is in use, kicked or not. Any thread."""
        if self.running and self.queue_configs[index].enabled:
            self.work.post(("queue", index), lambda: self._look(index))

    def _look(self, index: int) -> None:
        with self.mutex:
            if self.running and not self._paused and self.queue_configs[index].enabled:
                self.notify_queue(index)

    def interrupt_queue(self, index: int) -> None:
        """The device used buffers: tell the driver. From any thread.

        Not before DRIVER_OK, and never with ``mutex`` held: a driver's callback may wait for it.
        """
        if int(self.status) & SUSPEND:
            self._late_interrupts.add(index)
        elif self.running:
            self.work.post(("interrupt", index), lambda: self._signal(index))

    def _signal(self, index: int) -> None:
        if int(self.status) & SUSPEND:
            self._late_interrupts.add(index)
        elif self.running:
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
        with self.locked():
            if Status.SUSPEND in self.status:
                self.refuse("configuration written while suspended")
            else:
                self.config_device(offset, data)

    def _check_config(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > len(self.config):
            raise InvalidArgument(
                f"configuration bytes {offset} to {offset + length}; there are {len(self.config)}"
            )

    def update_config(self, offset: int, data: bytes) -> None:
        """The device changes its configuration: generation up, driver notified.

        A suspended one must not: the change is made when it resumes.
        """
        self._check_config(offset, len(data))
        with self.locked():
            if Status.SUSPEND in self.status:
                self._late_config.append((offset, bytes(data)))
                return
            self.config[offset : offset + len(data)] = data
            self.generation = (self.generation + 1) & 0xFFFFFFFF
            self.interrupt_config()

    def interrupt_config(self) -> None:
        """Tell the driver, if there is one, that the configuration changed: now or on resuming."""
        if Status.SUSPEND in self.status:
            self._late_change = True
        elif Status.DRIVER_OK in self.status:
            self.work.post("config", self._signal_config)

    def _signal_config(self) -> None:
        # Again: the driver may have suspended or reset the device since.
        if Status.SUSPEND in self.status:
            self._late_change = True
        elif Status.DRIVER_OK in self.status:
            self._interrupt_config()
