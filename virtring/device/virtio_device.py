"""A device as its driver sees it (Linux ``struct virtio_device`` and what goes with it)."""

from collections.abc import Sequence
from dataclasses import dataclass
from threading import RLock
from typing import TYPE_CHECKING, Any

import numpy as np

from virtring.device.config_ops import SharedMemory, VirtioConfigOps, VqCallback
from virtring.errors import FeaturesRejected, InvalidArgument, NotSupported, WrongState
from virtring.memory import GuestMemory
from virtring.queue import Virtqueue, virtio_break_device
from virtring.spec.features import Feature
from virtring.spec.ids import DeviceID
from virtring.spec.status import Status

if TYPE_CHECKING:
    from virtring.device.driver import VirtioDriver

#: In an id table: any device, any vendor (Linux VIRTIO_DEV_ANY_ID).
ANY_ID = 0xFFFFFFFF


@dataclass(frozen=True)
class VirtioDeviceId:
    """Which devices a driver is for (Linux ``struct virtio_device_id``)."""

    device: int
    vendor: int = ANY_ID

    def matches(self, id: "VirtioDeviceId") -> bool:
        """Is ``id`` one of these? (Linux ``virtio_id_match``)"""
        return self.device in (id.device, ANY_ID) and self.vendor in (id.vendor, ANY_ID)

    def __str__(self) -> str:
        try:
            return DeviceID(self.device).name.lower()
        except ValueError:
            return f"device {self.device}"


class VirtioDevice:
    """One device, its transport's operations in ``config`` and its queues in ``vqs``.

    index: number on its bus. failed: a restore went wrong. config_enabled: changes of the
    configuration reach the driver; config_change_pending: one came while they did not.
    config_lock guards these two, vqs_list_lock the list. features: what was negotiated. priv: the
    driver's own. vringh_config: for a driver that is the device side of a ring too, else None.
    """

    def __init__(self, config: VirtioConfigOps, memory: GuestMemory, id: VirtioDeviceId) -> None:
        self.index = -1
        self.failed = False
        self.config_enabled = False
        self.config_driver_disabled = False
        self.config_change_pending = False
        self.config_lock = RLock()
        self.vqs_list_lock = RLock()
        self.id = id
        self.config = config
        self.memory = memory
        self.vringh_config: Any = None
        self.vqs: list[Virtqueue] = []
        self.features = Feature(0)
        self.priv: Any = None
        self.driver: VirtioDriver | None = None

    def __repr__(self) -> str:
        return f"<virtio{self.index} {self.id} on {self.config.bus_name(self)}>"

    # Features and status.

    def has_feature(self, bit: int) -> bool:
        """Was this feature (a mask of one bit) negotiated? (Linux ``virtio_has_feature``)

        InvalidArgument for a bit that the bound driver never offered to use.
        """
        if self.driver is not None and not int(bit) & self.driver.all_features():
            raise InvalidArgument(
                f"feature {int(bit):#x} is not in {type(self.driver).__name__}.feature_table"
            )
        return bool(int(self.features) & int(bit))

    def add_status(self, status: Status) -> None:
        """Set bits of the status field (Linux ``virtio_add_status``)."""
        self.config.set_status(self, self.config.get_status(self) | status)

    def features_ok(self) -> None:
        """Finish the negotiation (Linux ``virtio_features_ok``).

        FeaturesRejected when the device does not take what was chosen.
        """
        if Feature.VERSION_1 not in self.features:
            return
        self.add_status(Status.FEATURES_OK)
        if Status.FEATURES_OK not in self.config.get_status(self):
            raise FeaturesRejected(f"{self.id}: features {int(self.features):#x} were refused")

    def ready(self) -> None:
        """DRIVER_OK: the device may use buffers from now on (Linux ``virtio_device_ready``).

        WrongState if it is set already.
        """
        status = self.config.get_status(self)
        if Status.DRIVER_OK in status:
            raise WrongState(f"{self.id}: DRIVER_OK is set already")
        self.config.set_status(self, status | Status.DRIVER_OK)

    def reset(self) -> None:
        """Reset the device (Linux ``virtio_reset_device``); WrongState in one of its callbacks."""
        self.config.reset(self)

    def suspend(self) -> None:
        """Suspend the device (virtio 1.4, 3.4); NotSupported without the feature.

        Until :meth:`resume` the caller keeps its driver from adding buffers and from kicks.
        WrongState if it does not come to rest.
        """
        if Feature.SUSPEND not in self.features:
            raise NotSupported(f"{self.id}: SUSPEND was not negotiated")
        self.add_status(Status.SUSPEND)
        status = self.config.get_status(self)
        if Status.SUSPEND not in status or Status.DRIVER_OK in status:
            raise WrongState(f"{self.id}: the device did not suspend, its status is {status!r}")

    def resume(self) -> None:
        """Let a suspended device run again; WrongState if it does not."""
        self.add_status(Status.DRIVER_OK)
        status = self.config.get_status(self)
        if Status.SUSPEND in status or Status.DRIVER_OK not in status:
            raise WrongState(f"{self.id}: the device did not resume, its status is {status!r}")

    def break_(self) -> None:
        """Mark every queue broken: the device is gone (Linux ``virtio_break_device``)."""
        with self.vqs_list_lock:
            virtio_break_device(list(self.vqs))

    # Queues.

    def find_vqs(
        self,
        callbacks: Sequence[VqCallback | None],
        names: Sequence[str | None],
        ctx: Sequence[bool] | None = None,
    ) -> list[Virtqueue | None]:
        """Set up the queues (Linux ``virtio_find_vqs_ctx``); see VirtioConfigOps.find_vqs."""
        return self.config.find_vqs(self, len(names), callbacks, names, ctx)

    def find_single_vq(self, callback: VqCallback | None, name: str) -> Virtqueue:
        """Set up the only queue (Linux ``virtio_find_single_vq``)."""
        vq = self.find_vqs([callback], [name])[0]
        assert vq is not None
        return vq

    # Configuration space.

    def cread(self, dtype: "np.dtype[Any]", field: str | None = None) -> Any:
        """The configuration (or one field) as a record of a little-endian numpy dtype.

        Scalar by scalar, each by its own width, and again until the generation stands still, so
        that no half of a change is seen (Linux ``virtio_cread``; virtio 1.4, 2.5.1 and 4.1.3.1).
        """
        offset, part = 0, dtype
        if field is not None:
            if dtype.fields is None or field not in dtype.fields:
                raise InvalidArgument(f"no field {field!r} in the configuration of {self.id}")
            part, offset = dtype.fields[field][:2]
        while True:
            before = self.config.generation(self)
            data = bytearray(part.itemsize)
            for at, size in scalars(part):
                data[at : at + size] = self.config.get(self, offset + at, size)
            if self.config.generation(self) == before:
                value = np.frombuffer(data, part.base, count=max(1, int(np.prod(part.shape))))
                return value.copy() if part.shape else value[0]

    def cwrite(self, dtype: "np.dtype[Any]", field: str, value: Any) -> None:
        """Write one field of the configuration, scalar by scalar (Linux ``virtio_cwrite``).

        WrongState while the device is suspended (virtio 1.4, 3.4.1).
        """
        if dtype.fields is None or field not in dtype.fields:
            raise InvalidArgument(f"no field {field!r} in the configuration of {self.id}")
        part, offset = dtype.fields[field][:2]
        try:
            data = np.broadcast_to(np.asarray(value, part.base), part.shape).tobytes()
        except (OverflowError, TypeError, ValueError) as error:
            raise InvalidArgument(f"{field} of {self.id} takes no {value!r}: {error}") from None
        if Feature.SUSPEND in self.features and Status.SUSPEND in self.config.get_status(self):
            raise WrongState(f"{self.id} is suspended: its configuration is not written")
        for at, size in scalars(part):
            self.config.set(self, offset + at, data[at : at + size])

    def get_shm_region(self, id: int) -> SharedMemory | None:
        """A shared memory region (Linux ``virtio_get_shm_region``)."""
        return self.config.get_shm_region(self, id)

    def config_changed(self) -> None:
        """The transport's: the configuration changed (Linux ``virtio_config_changed``)."""
        with self.config_lock:
            deliver = self.config_enabled and not self.config_driver_disabled
            self.config_change_pending = not deliver
            driver = self.driver
        if deliver and driver is not None:
            driver.config_changed()

    def config_disable(self) -> None:
        """Changes wait from now on (Linux ``virtio_config_core_disable``)."""
        with self.config_lock:
            self.config_enabled = False

    def config_enable(self) -> None:
        """Changes go to the driver; what waited is delivered once."""
        with self.config_lock:
            self.config_enabled = True
            pending = self.config_change_pending
        if pending:
            self.config.config_interrupt(self)

    def config_driver_disable(self) -> None:
        """The driver itself wants no changes for now (Linux ``virtio_config_driver_disable``)."""
        with self.config_lock:
            self.config_driver_disabled = True

    def config_driver_enable(self) -> None:
        """And wants them again; what waited is delivered once."""
        with self.config_lock:
            self.config_driver_disabled = False
            pending = self.config_change_pending
        if pending:
            self.config.config_interrupt(self)


def scalars(dtype: "np.dtype[Any]", offset: int = 0) -> list[tuple[int, int]]:
    """Offset and size of every scalar in a record, in order; padding is left out."""
    if dtype.subdtype is not None:
        base = dtype.base
        count = dtype.itemsize // base.itemsize
        return [found for i in range(count) for found in scalars(base, offset + i * base.itemsize)]
    if dtype.fields is None:
        return [(offset, dtype.itemsize)]
    parts = (dtype.fields[name][:2] for name in dtype.names or ())
    return [found for part, at in parts for found in scalars(part, offset + at)]
