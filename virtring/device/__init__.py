"""The device model: drivers, devices, and what a transport does between them."""

from virtring.device.bus import VirtioBus
from virtring.device.config_ops import SharedMemory, VirtioConfigOps
from virtring.device.device import RING_OFFER, Device
from virtring.device.device_config import VirtioDeviceConfig
from virtring.device.driver import VirtioDriver
from virtring.device.queue_config import VirtioQueueConfig
from virtring.device.transport_ops import TransportOps, usable_features
from virtring.device.virtio_device import ANY_ID, VirtioDevice, VirtioDeviceId
from virtring.device.work import Work

__all__ = [
    "ANY_ID",
    "RING_OFFER",
    "Device",
    "SharedMemory",
    "TransportOps",
    "VirtioBus",
    "VirtioConfigOps",
    "VirtioDevice",
    "VirtioDeviceConfig",
    "VirtioDeviceId",
    "VirtioDriver",
    "VirtioQueueConfig",
    "Work",
    "usable_features",
]
