"""RPMsg over virtio, as Linux's ``virtio_rpmsg_bus`` speaks it; both roles."""

from virtring.rpmsg.buffers import RxBuffer, TxBuffer
from virtring.rpmsg.bus import RpmsgBus
from virtring.rpmsg.channel import Channel, RpmsgDriver
from virtring.rpmsg.endpoint import Endpoint
from virtring.rpmsg.ends import DeviceBus, DriverBus
from virtring.rpmsg.link import RpmsgLink, create_link
from virtring.rpmsg.messages import Messages
from virtring.rpmsg.transport import Counters
from virtring.rpmsg.virtio_device import RpmsgDevice
from virtring.rpmsg.virtio_driver import VirtioRpmsg
from virtring.rpmsg.wire import (
    ADDR_ANY,
    BUF_SIZE,
    HEADER_SIZE,
    NS_ADDR,
    RESERVED_ADDRESSES,
    NsFlag,
    NsMessage,
    RpmsgFeature,
)

__all__ = [
    "ADDR_ANY",
    "BUF_SIZE",
    "HEADER_SIZE",
    "NS_ADDR",
    "RESERVED_ADDRESSES",
    "Channel",
    "Counters",
    "DeviceBus",
    "DriverBus",
    "Endpoint",
    "Messages",
    "NsFlag",
    "NsMessage",
    "RpmsgBus",
    "RpmsgDevice",
    "RpmsgDriver",
    "RpmsgFeature",
    "RpmsgLink",
    "RxBuffer",
    "TxBuffer",
    "VirtioRpmsg",
    "create_link",
]
