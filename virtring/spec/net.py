"""The network device (virtio 1.4, 5.1).

Not here: statistics, flow filters and IPsec of 5.1.6.
"""

from enum import IntEnum, IntFlag

import numpy as np


class NetFeature(IntFlag):
    """VIRTIO_NET_F_* (5.1.3). Bits of 64 and up do not fit into 64-bit feature words."""

    #: 0: the device completes checksums.
    CSUM = 1 << 0
    #: 1: the driver takes packets with partial checksums.
    GUEST_CSUM = 1 << 1
    CTRL_GUEST_OFFLOADS = 1 << 2
    #: 3: ``mtu`` is valid.
    MTU = 1 << 3
    #: 5: ``mac`` is valid.
    MAC = 1 << 5
    #: 6, legacy only.
    GSO = 1 << 6
    GUEST_TSO4 = 1 << 7
    GUEST_TSO6 = 1 << 8
    GUEST_ECN = 1 << 9
    GUEST_UFO = 1 << 10
    HOST_TSO4 = 1 << 11
    HOST_TSO6 = 1 << 12
    HOST_ECN = 1 << 13
    HOST_UFO = 1 << 14
    #: 15: a received packet may fill several buffers.
    MRG_RXBUF = 1 << 15
    #: 16: ``status`` is valid.
    STATUS = 1 << 16
    #: 17: there is a control queue.
    CTRL_VQ = 1 << 17
    CTRL_RX = 1 << 18
    CTRL_VLAN = 1 << 19
    CTRL_RX_EXTRA = 1 << 20
    GUEST_ANNOUNCE = 1 << 21
    #: 22: several pairs of queues.
    MQ = 1 << 22
    CTRL_MAC_ADDR = 1 << 23
    #: 41 and 42, legacy only.
    GUEST_RSC4 = 1 << 41
    GUEST_RSC6 = 1 << 42
    DEVICE_STATS = 1 << 50
    HASH_TUNNEL = 1 << 51
    VQ_NOTF_COAL = 1 << 52
    NOTF_COAL = 1 << 53
    GUEST_USO4 = 1 << 54
    GUEST_USO6 = 1 << 55
    HOST_USO = 1 << 56
    #: 57: each received packet comes with a hash (NET_HDR_V1_HASH).
    HASH_REPORT = 1 << 57
    GUEST_HDRLEN = 1 << 59
    RSS = 1 << 60
    RSC_EXT = 1 << 61
    STANDBY = 1 << 62
    #: 63: ``speed`` and ``duplex`` are valid.
    SPEED_DUPLEX = 1 << 63
    RSS_CONTEXT = 1 << 64
    GUEST_UDP_TUNNEL_GSO = 1 << 65
    GUEST_UDP_TUNNEL_GSO_CSUM = 1 << 66
    HOST_UDP_TUNNEL_GSO = 1 << 67
    HOST_UDP_TUNNEL_GSO_CSUM = 1 << 68
    OUT_NET_HEADER = 1 << 69
    IPSEC = 1 << 70


#: ``struct virtio_net_config``, packed: 28 bytes (5.1.4).
NET_CONFIG = np.dtype(
    [
        ("mac", "u1", (6,)),
        ("status", "<u2"),
        ("max_virtqueue_pairs", "<u2"),
        ("mtu", "<u2"),
        ("speed", "<u4"),
        ("duplex", "u1"),
        ("rss_max_key_size", "u1"),
        ("rss_max_indirection_table_length", "<u2"),
        ("supported_hash_types", "<u4"),
        ("supported_tunnel_types", "<u4"),
    ]
)


class NetStatus(IntFlag):
    """``status`` of the configuration: VIRTIO_NET_S_* (5.1.4)."""

    LINK_UP = 1
    ANNOUNCE = 2


#: ``struct virtio_net_hdr`` of a device with VERSION_1 or MRG_RXBUF, 12 bytes (5.1.6).
#: Linux: ``struct virtio_net_hdr_v1``. A legacy device without MRG_RXBUF leaves out the last
#: field: 10 bytes.
NET_HDR_V1 = np.dtype(
    [
        ("flags", "u1"),
        ("gso_type", "u1"),
        ("hdr_len", "<u2"),
        ("gso_size", "<u2"),
        ("csum_start", "<u2"),
        ("csum_offset", "<u2"),
        ("num_buffers", "<u2"),
    ]
)

#: The header with HASH_REPORT, 20 bytes (5.1.6). Linux: ``struct virtio_net_hdr_v1_hash``.
NET_HDR_V1_HASH = np.dtype(
    [("hdr", NET_HDR_V1), ("hash_value", "<u4"), ("hash_report", "<u2"), ("padding", "<u2")]
)


class NetHdrFlag(IntFlag):
    """``flags`` of the header: VIRTIO_NET_HDR_F_* (5.1.6)."""

    NEEDS_CSUM = 1
    DATA_VALID = 2
    RSC_INFO = 4
    UDP_TUNNEL_CSUM = 8
    SECURITY = 16
    SECURITY_ERR = 32
    SECURITY_SA_SOFT_EXPIRY_WARN = 64


class NetGso(IntEnum):
    """``gso_type`` of the header: VIRTIO_NET_HDR_GSO_* (5.1.6). The last three are or-ed in."""

    NONE = 0
    TCPV4 = 1
    UDP = 3
    TCPV6 = 4
    UDP_L4 = 5
    UDP_TUNNEL_IPV4 = 0x20
    UDP_TUNNEL_IPV6 = 0x40
    ECN = 0x80


class NetHashType(IntFlag):
    """``supported_hash_types``: VIRTIO_NET_HASH_TYPE_* (5.1.6.4)."""

    IPv4 = 1 << 0
    TCPv4 = 1 << 1
    UDPv4 = 1 << 2
    IPv6 = 1 << 3
    TCPv6 = 1 << 4
    UDPv6 = 1 << 5
    IP_EX = 1 << 6
    TCP_EX = 1 << 7
    UDP_EX = 1 << 8


#: Head of ``struct virtio_net_ctrl``, 2 bytes; the command's data and an ack byte follow (5.1.6.5).
#: Linux: ``struct virtio_net_ctrl_hdr``.
NET_CTRL_HDR = np.dtype([("class", "u1"), ("command", "u1")])


class NetAck(IntEnum):
    """The ack byte of a control command: VIRTIO_NET_OK and _ERR (5.1.6.5)."""

    OK = 0
    ERR = 1


class NetCtrl(IntEnum):
    """``class`` of a control command: VIRTIO_NET_CTRL_* (5.1.6.5)."""

    RX = 0
    MAC = 1
    VLAN = 2
    ANNOUNCE = 3
    MQ = 4
    GUEST_OFFLOADS = 5
    NOTF_COAL = 6
    HASH_TUNNEL = 7
    STATS = 8
    RSS_CTX = 9


class NetCtrlRx(IntEnum):
    """``command`` of NetCtrl.RX: VIRTIO_NET_CTRL_RX_* (5.1.6.5)."""

    PROMISC = 0
    ALLMULTI = 1
    ALLUNI = 2
    NOMULTI = 3
    NOUNI = 4
    NOBCAST = 5


class NetCtrlMac(IntEnum):
    """``command`` of NetCtrl.MAC: VIRTIO_NET_CTRL_MAC_* (5.1.6.5)."""

    TABLE_SET = 0
    ADDR_SET = 1


class NetCtrlVlan(IntEnum):
    """``command`` of NetCtrl.VLAN: VIRTIO_NET_CTRL_VLAN_* (5.1.6.5)."""

    ADD = 0
    DEL = 1


class NetCtrlAnnounce(IntEnum):
    """``command`` of NetCtrl.ANNOUNCE: VIRTIO_NET_CTRL_ANNOUNCE_* (5.1.6.5)."""

    ACK = 0


class NetCtrlMq(IntEnum):
    """``command`` of NetCtrl.MQ: VIRTIO_NET_CTRL_MQ_* (5.1.6.5)."""

    VQ_PAIRS_SET = 0
    RSS_CONFIG = 1
    HASH_CONFIG = 2


#: Fewest and most pairs of queues that VQ_PAIRS_SET takes (5.1.6.5).
NET_CTRL_MQ_VQ_PAIRS_MIN = 1
NET_CTRL_MQ_VQ_PAIRS_MAX = 0x8000


class NetCtrlGuestOffloads(IntEnum):
    """``command`` of NetCtrl.GUEST_OFFLOADS (5.1.6.5)."""

    SET = 0


class NetCtrlNotfCoal(IntEnum):
    """``command`` of NetCtrl.NOTF_COAL: VIRTIO_NET_CTRL_NOTF_COAL_* (5.1.6.5)."""

    TX_SET = 0
    RX_SET = 1
    VQ_SET = 2
    VQ_GET = 3
