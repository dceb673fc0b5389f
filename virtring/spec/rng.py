"""The entropy device (virtio 1.4, 5.4). It has no feature bits and no configuration space."""

from enum import IntEnum


class RngQueue(IntEnum):
    """Queues of an entropy device (5.4.2)."""

    REQUESTQ = 0
