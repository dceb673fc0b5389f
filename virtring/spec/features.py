"""Feature bits that every device shares (virtio 1.4, chapter 6 "Reserved Feature Bits")."""

from enum import IntFlag


class Feature(IntFlag):
    """Device-independent feature bits, as a 64-bit mask.

    Combine with ``|``, test with ``in``: ``Feature.RING_PACKED in features``.
    """

    #: 24, legacy only: the device notifies when it runs out of available buffers.
    NOTIFY_ON_EMPTY = 1 << 24
    #: 27, legacy only: the device makes no assumption about message framing.
    ANY_LAYOUT = 1 << 27
    #: 28: descriptors may refer to a table of descriptors (2.7.5.3, 2.8.7).
    INDIRECT_DESC = 1 << 28
    #: 29: notifications by event index (2.7.7, 2.7.10, 2.8.10).
    EVENT_IDX = 1 << 29
    #: 32: not a legacy device; the ring is little-endian.
    VERSION_1 = 1 << 32
    #: 33: addresses go through a platform translation (an IOMMU).
    ACCESS_PLATFORM = 1 << 33
    #: 34: the packed ring layout (2.8).
    RING_PACKED = 1 << 34
    #: 35: the device uses buffers in the order in which they were made available.
    IN_ORDER = 1 << 35
    #: 36: memory accesses are ordered as the platform needs for real devices.
    ORDER_PLATFORM = 1 << 36
    #: 37: single-root I/O virtualisation.
    SR_IOV = 1 << 37
    #: 38: the driver passes extra data in its notifications (2.9).
    NOTIFICATION_DATA = 1 << 38
    #: 39: the device supplies the data that identifies a queue in notifications.
    NOTIF_CONFIG_DATA = 1 << 39
    #: 40: a single queue can be reset (2.6.1).
    RING_RESET = 1 << 40
    #: 41: the device has administration queues.
    ADMIN_VQ = 1 << 41
    #: 43: the driver can suspend the device.
    SUSPEND = 1 << 43


#: What both sides of this engine implement for a virtqueue.
RING_FEATURES = (
    Feature.INDIRECT_DESC
    | Feature.EVENT_IDX
    | Feature.VERSION_1
    | Feature.ACCESS_PLATFORM
    | Feature.RING_PACKED
    | Feature.IN_ORDER
    | Feature.ORDER_PLATFORM
    | Feature.NOTIFICATION_DATA
    | Feature.RING_RESET
)
