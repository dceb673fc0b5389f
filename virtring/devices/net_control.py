"""The control queue of the network device (virtio 1.4, 5.1.6.5)."""

import struct
from typing import TYPE_CHECKING

from virtring.queue import DeviceQueue
from virtring.spec.net import (
    NET_CTRL_HDR,
    NetAck,
    NetCtrl,
    NetCtrlAnnounce,
    NetCtrlMac,
    NetCtrlMq,
    NetCtrlRx,
    NetCtrlVlan,
    NetFeature,
)

if TYPE_CHECKING:
    from virtring.devices.net import Net

#: Bytes of a command; two tables of a thousand addresses fit.
LONGEST = 1 << 14

#: The filter's switch for each command of the class RX, and the feature it needs.
SWITCHES = {
    NetCtrlRx.PROMISC: ("promisc", NetFeature.CTRL_RX),
    NetCtrlRx.ALLMULTI: ("allmulti", NetFeature.CTRL_RX),
    NetCtrlRx.ALLUNI: ("alluni", NetFeature.CTRL_RX_EXTRA),
    NetCtrlRx.NOMULTI: ("nomulti", NetFeature.CTRL_RX_EXTRA),
    NetCtrlRx.NOUNI: ("nouni", NetFeature.CTRL_RX_EXTRA),
    NetCtrlRx.NOBCAST: ("nobcast", NetFeature.CTRL_RX_EXTRA),
}


def address_tables(data: bytes) -> list[list[bytes]] | None:
    """The two tables of TABLE_SET; None when their lengths do not add up."""
    tables = []
    at = 0
    for _ in range(2):
        if len(data) < at + 4:
            return None
        (count,) = struct.unpack_from("<I", data, at)
        at += 4
        if count > (len(data) - at) // 6:
            return None
        tables.append([data[i : i + 6] for i in range(at, at + 6 * count, 6)])
        at += 6 * count
    return tables if at == len(data) else None


class NetControl:
    """Carries out the commands that the driver sends to ``net``."""

    def __init__(self, net: "Net") -> None:
        self.net = net

    def serve(self, queue: DeviceQueue) -> None:
        """Answer every command that is there."""
        for chain in self.net.chains(queue):
            if chain.writable_bytes == 0:
                chain.return_(0)
                self.net.needs_reset("a control command without room for its answer")
                return
            done = chain.readable_bytes <= LONGEST and self.command(chain.read())
            chain.write(bytes([NetAck.OK if done else NetAck.ERR]))
            chain.return_()

    def command(self, data: bytes) -> bool:
        """Class, command and their data: was it done?"""
        size = NET_CTRL_HDR.itemsize
        if len(data) < size:
            return False
        group, command, rest = data[0], data[1], data[size:]
        if group == NetCtrl.RX:
            return self._receive_mode(command, rest)
        if group == NetCtrl.MAC:
            return self._address(command, rest)
        if group == NetCtrl.VLAN:
            return self._vlan(command, rest)
        if group == NetCtrl.ANNOUNCE and command == NetCtrlAnnounce.ACK:
            return self.net.has(NetFeature.GUEST_ANNOUNCE) and self.net.announced()
        if group == NetCtrl.MQ and command == NetCtrlMq.VQ_PAIRS_SET:
            return self._pairs(rest)
        return False

    def _receive_mode(self, command: int, data: bytes) -> bool:
        if command not in SWITCHES or data not in (b"\0", b"\1"):
            return False
        name, feature = SWITCHES[NetCtrlRx(command)]
        if not self.net.has(feature):
            return False
        setattr(self.net.filter, name, data == b"\1")
        return True

    def _address(self, command: int, data: bytes) -> bool:
        net = self.net
        if command == NetCtrlMac.TABLE_SET and net.has(NetFeature.CTRL_RX):
            tables = address_tables(data)
            if tables is None:
                return False
            net.filter.set_table(*tables)
            return True
        if command == NetCtrlMac.ADDR_SET and net.has(NetFeature.CTRL_MAC_ADDR):
            # Nobody's own address is that of a group.
            if len(data) != 6 or data[0] & 1:
                return False
            net.filter.set_mac(data)
            net.core.config[0:6] = data
            return True
        return False

    def _vlan(self, command: int, data: bytes) -> bool:
        known = command in (NetCtrlVlan.ADD, NetCtrlVlan.DEL)
        if not self.net.has(NetFeature.CTRL_VLAN) or not known or len(data) != 2:
            return False
        (vlan,) = struct.unpack("<H", data)
        return self.net.filter.set_vlan(vlan, command == NetCtrlVlan.ADD)

    def _pairs(self, data: bytes) -> bool:
        if not self.net.has(NetFeature.MQ) or len(data) != 2:
            return False
        (pairs,) = struct.unpack("<H", data)
        if not 1 <= pairs <= len(self.net.pairs):
            return False
        self.net.active_pairs = pairs
        return True
