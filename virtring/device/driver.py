"""The base of every driver (Linux ``struct virtio_driver``)."""

from typing import ClassVar

from virtring.device.virtio_device import VirtioDevice, VirtioDeviceId
from virtring.queue.config import transport_features
from virtring.spec.features import RING_FEATURES, Feature


class VirtioDriver:
    """The driver half. A subclass has an id table and a feature table and overrides :meth:`probe`.

    One object stands for one bound device: the bus makes it with the device and calls ``probe``.

    name: for messages. id_table: the devices it is for. feature_table: the device type's features
    it can use, each a mask of one bit. ring_features: device-independent features it lets be used.
    """

    name: ClassVar[str] = ""
    id_table: ClassVar[tuple[VirtioDeviceId, ...]] = ()
    feature_table: ClassVar[tuple[int, ...]] = ()
    ring_features: ClassVar[Feature] = RING_FEATURES | Feature.SUSPEND

    def __init__(self, vdev: VirtioDevice) -> None:
        self.vdev = vdev

    @classmethod
    def matches(cls, id: VirtioDeviceId) -> bool:
        """Is this the driver of a device with that id?"""
        return any(entry.matches(id) for entry in cls.id_table)

    @classmethod
    def driver_features(cls) -> int:
        """The device type's bits that the driver can use."""
        bits = 0
        for bit in cls.feature_table:
            bits |= int(bit)
        return bits

    @classmethod
    def all_features(cls) -> int:
        """Every bit that can come to be negotiated with this driver."""
        return cls.driver_features() | int(cls.ring_features)

    @classmethod
    def choose(cls, offered: int) -> Feature:
        """What to negotiate of what the device offers."""
        ring = int(transport_features(Feature(offered))) | (offered & int(Feature.SUSPEND))
        device_bits = cls.driver_features() & offered
        return Feature(device_bits | (ring & int(cls.ring_features)))

    def validate(self) -> None:
        """Before the features are final: read the configuration, drop bits of ``vdev.features``."""

    def probe(self) -> None:
        """Set up queues and begin; ``vdev.ready()`` is called after this unless it was here.

        What it raises leaves the device FAILED and unbound.
        """
        raise NotImplementedError

    def scan(self) -> None:
        """After DRIVER_OK."""

    def remove(self) -> None:
        """The device goes: reset it, let go of the buffers, delete the queues."""
        self.vdev.reset()
        self.vdev.config.del_vqs(self.vdev)

    def config_changed(self) -> None:
        """The device changed its configuration space."""

    def freeze(self) -> None:
        """Come to rest before the machine sleeps: by default, as for removal."""
        self.remove()

    def restore(self) -> None:
        """Begin again after sleep; the features are negotiated anew already."""
        self.probe()
