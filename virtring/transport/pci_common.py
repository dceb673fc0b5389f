"""The common configuration structure of a virtio PCI device (virtio 1.4, 4.1.4.3)."""

from collections.abc import Callable
from typing import ClassVar, Protocol

from virtring.device import VirtioDeviceConfig, VirtioQueueConfig
from virtring.spec.pci import COMMON_CFG, MSI_NO_VECTOR, CommonReg

COMMON_SIZE = COMMON_CFG.itemsize

#: Offset -> width. The 64-bit addresses are taken whole or by halves.
WIDTHS = {
    offset: dtype.itemsize
    for dtype, offset in (field[:2] for field in (COMMON_CFG.fields or {}).values())
}
AREAS = {
    CommonReg.QUEUE_DESC: "desc",
    CommonReg.QUEUE_DRIVER: "avail",
    CommonReg.QUEUE_DEVICE: "used",
}


class _Function(Protocol):
    """What the registers need of the function they belong to."""

    core: VirtioDeviceConfig
    config_generation: int

    def set_status(self, value: int) -> None: ...
    def vector(self, wanted: int) -> int: ...
    def refuse(self, reason: str) -> None: ...


class CommonConfig:
    """Registers by offset; each takes accesses of its own width only."""

    def __init__(self, function: _Function) -> None:
        self.function = function
        self.core = function.core
        self.reset()

    def reset(self) -> None:
        self.device_feature_select = 0
        self.driver_feature_select = 0
        self.queue_select = 0
        self.config_vector = MSI_NO_VECTOR

    def read(self, offset: int, size: int) -> int | None:
        """The value; None when there is no register of this width at this offset."""
        for base, area in AREAS.items():
            if base <= offset < base + 8 and (offset - base, size) in ((0, 4), (4, 4), (0, 8)):
                queue = self.core.queue(self.queue_select)
                value = 0 if queue is None else int(getattr(queue, area))
                return value >> 8 * (offset - base) & (1 << 8 * size) - 1
        if WIDTHS.get(offset) != size:
            return None
        return self._field(CommonReg(offset))

    def _field(self, reg: CommonReg) -> int:
        core = self.core
        match reg:
            case CommonReg.DEVICE_FEATURE_SELECT:
                return self.device_feature_select
            case CommonReg.DEVICE_FEATURE:
                return core.feature_word(self.device_feature_select)
            case CommonReg.DRIVER_FEATURE_SELECT:
                return self.driver_feature_select
            case CommonReg.DRIVER_FEATURE:
                return core.driver_feature_word(self.driver_feature_select)
            case CommonReg.CONFIG_MSIX_VECTOR:
                return self.config_vector
            case CommonReg.NUM_QUEUES:
                return core.num_queues
            case CommonReg.DEVICE_STATUS:
                return int(core.status)
            case CommonReg.CONFIG_GENERATION:
                return self.function.config_generation
            case CommonReg.QUEUE_SELECT:
                return self.queue_select
        queue = core.queue(self.queue_select)
        if queue is None:
            return MSI_NO_VECTOR if reg == CommonReg.QUEUE_MSIX_VECTOR else 0
        return self._queue_field(reg, queue)

    def _queue_field(self, reg: CommonReg, queue: VirtioQueueConfig) -> int:
        match reg:
            case CommonReg.QUEUE_SIZE:
                return self.core.queue_size(self.queue_select)
            case CommonReg.QUEUE_MSIX_VECTOR:
                return queue.vector
            case CommonReg.QUEUE_ENABLE:
                return int(queue.enabled)
            case CommonReg.QUEUE_RESET:
                return int(queue.resetting)
            case CommonReg.QUEUE_NOTIFY_OFF | CommonReg.QUEUE_NOTIF_CONFIG_DATA:
                return self.queue_select
        # There are no administration queues.
        return 0

    def write(self, offset: int, size: int, value: int) -> bool:
        """Whether there is a register of this width at this offset."""
        for base, area in AREAS.items():
            if base <= offset < base + 8 and (offset - base, size) in ((0, 4), (4, 4), (0, 8)):
                if size == 8:
                    self.core.set_queue_area(self.queue_select, area, value)
                else:
                    self.core.set_queue_word(self.queue_select, area, offset > base, value)
                return True
        if WIDTHS.get(offset) != size:
            return False
        writer = self._WRITERS.get(CommonReg(offset))
        if writer is None:
            self.function.refuse(f"{CommonReg(offset).name} is read-only for the driver")
        else:
            writer(self, value)
        return True

    def _set_device_feature_select(self, value: int) -> None:
        self.device_feature_select = value

    def _set_driver_feature_select(self, value: int) -> None:
        self.driver_feature_select = value

    def _set_driver_feature(self, value: int) -> None:
        self.core.set_feature_word(self.driver_feature_select, value)

    def _set_config_vector(self, value: int) -> None:
        self.config_vector = self.function.vector(value)

    def _set_status(self, value: int) -> None:
        self.function.set_status(value)

    def _set_queue_select(self, value: int) -> None:
        self.queue_select = value

    def _set_queue_size(self, value: int) -> None:
        self.core.set_queue_size(self.queue_select, value)

    def _set_queue_vector(self, value: int) -> None:
        queue = self.core.queue(self.queue_select)
        if queue is None:
            self.function.refuse(f"vector of queue {self.queue_select}, which does not exist")
        else:
            queue.vector = self.function.vector(value)

    def _set_queue_enable(self, value: int) -> None:
        if value == 1:
            self.core.enable_queue(self.queue_select)
        else:
            self.function.refuse(f"queue_enable {value}; the driver writes 1 only")

    def _set_queue_reset(self, value: int) -> None:
        if value == 1:
            self.core.restart_queue(self.queue_select)
        else:
            self.function.refuse(f"queue_reset {value}; the driver writes 1 only")

    _WRITERS: ClassVar[dict[CommonReg, Callable[["CommonConfig", int], None]]] = {
        CommonReg.DEVICE_FEATURE_SELECT: _set_device_feature_select,
        CommonReg.DRIVER_FEATURE_SELECT: _set_driver_feature_select,
        CommonReg.DRIVER_FEATURE: _set_driver_feature,
        CommonReg.CONFIG_MSIX_VECTOR: _set_config_vector,
        CommonReg.DEVICE_STATUS: _set_status,
        CommonReg.QUEUE_SELECT: _set_queue_select,
        CommonReg.QUEUE_SIZE: _set_queue_size,
        CommonReg.QUEUE_MSIX_VECTOR: _set_queue_vector,
        CommonReg.QUEUE_ENABLE: _set_queue_enable,
        CommonReg.QUEUE_RESET: _set_queue_reset,
    }
