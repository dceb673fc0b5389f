"""RPMsg over virtio, device id 7.

The virtio standard names this device without describing it: these are the structures of Linux
(drivers/rpmsg/virtio_rpmsg_bus.c, rpmsg_ns.c, include/linux/rpmsg.h and rpmsg/ns.h).
"""

from enum import IntEnum, IntFlag

import numpy as np


class RpmsgFeature(IntFlag):
    """VIRTIO_RPMSG_F_* of virtio_rpmsg_bus.c."""

    #: 0: the device announces its services by name (on RPMSG_NS_ADDR).
    NS = 1 << 0


class RpmsgQueue(IntEnum):
    """Queues in the order in which ``rpmsg_probe`` asks for them, named for the driver."""

    RX = 0
    TX = 1


#: ``struct rpmsg_hdr``, 16 bytes; ``len`` bytes of payload follow.
RPMSG_HDR = np.dtype(
    [("src", "<u4"), ("dst", "<u4"), ("reserved", "<u4"), ("len", "<u2"), ("flags", "<u2")]
)

#: Bytes of a service's name, its terminating zero included.
RPMSG_NAME_SIZE = 32

#: ``struct rpmsg_ns_msg``, 40 bytes: announces or withdraws a service.
RPMSG_NS_MSG = np.dtype([("name", f"S{RPMSG_NAME_SIZE}"), ("addr", "<u4"), ("flags", "<u4")])


class RpmsgNs(IntEnum):
    """``flags`` of a name service message (``enum rpmsg_ns_flags``)."""

    CREATE = 0
    DESTROY = 1


#: Address at which names of services are announced.
RPMSG_NS_ADDR = 53
#: Asks for any free local address.
RPMSG_ADDR_ANY = 0xFFFFFFFF
#: Local addresses below this are for fixed services; the driver gives out this one and up.
RPMSG_RESERVED_ADDRESSES = 1024
#: Most buffers the driver allocates, half of them to receive.
MAX_RPMSG_NUM_BUFS = 512
#: Bytes of each buffer, header included.
MAX_RPMSG_BUF_SIZE = 512
