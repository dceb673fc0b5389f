"""The device status field (virtio 1.4, 2.1)."""

from enum import IntFlag


class Status(IntFlag):
    """How far a driver has come with a device; 0 after a reset."""

    #: The driver has found the device.
    ACKNOWLEDGE = 1
    #: The driver knows how to drive it.
    DRIVER = 2
    #: The driver is ready; from here on the device uses buffers.
    DRIVER_OK = 4
    #: The driver has written the features it takes; still set on reading back: the device agrees.
    FEATURES_OK = 8
    #: The driver has suspended the device (only with Feature.SUSPEND).
    SUSPEND = 16
    #: DEVICE_NEEDS_RESET: the device met an error that only a reset cures.
    NEEDS_RESET = 64
    #: The driver has given up.
    FAILED = 128
