"""What is peculiar to net devices over vhost-user, where back ends have habits of their own."""

from virtring.spec.net import NetFeature
from virtring.transport.vhost_user.message import Protocol
from virtring.transport.vhost_user.requests import FrontEnd

#: Of the front end alone, where the back end only moves packets: the configuration space and the
#: control queue. Such a back end (DPDK's vhost) offers some of them all the same.
OF_FRONT_END = (
    NetFeature.MTU
    | NetFeature.MAC
    | NetFeature.STATUS
    | NetFeature.CTRL_VQ
    | NetFeature.CTRL_RX
    | NetFeature.CTRL_VLAN
    | NetFeature.CTRL_RX_EXTRA
    | NetFeature.GUEST_ANNOUNCE
    | NetFeature.MQ
    | NetFeature.CTRL_MAC_ADDR
    | NetFeature.CTRL_GUEST_OFFLOADS
    | NetFeature.HASH_REPORT
    | NetFeature.RSS
    | NetFeature.SPEED_DUPLEX
)


def net_features(front: FrontEnd) -> int:
    """What a driver can use of a back end: without CONFIG it has nothing but pairs of queues."""
    if front.has(Protocol.CONFIG):
        return front.features
    return front.features & ~int(OF_FRONT_END)


def net_queues(count: int) -> int:
    """The most queues of a back end that says it has ``count``.

    The protocol counts queues, but DPDK's vhost counts pairs, and QEMU compares with them.
    """
    return 2 * count + 1
