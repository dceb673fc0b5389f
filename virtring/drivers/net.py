"""The driver of the network device (virtio 1.4, 5.1; Linux ``virtio_net.c``), without offloads."""

import struct
import time
from collections.abc import Callable, Sequence
from functools import partial
from threading import Event, Lock

from virtring.device import VirtioDevice, VirtioDeviceId, VirtioDriver
from virtring.device.packets import Packets
from virtring.drivers.net_control import NetControlQueue, mac_tables
from virtring.drivers.net_io import NetReceive, NetSend
from virtring.errors import InvalidArgument, NoSpace, NotSupported, WaitTimeout, WrongState
from virtring.queue import Virtqueue
from virtring.spec.ids import DeviceID
from virtring.spec.net import (
    NET_CONFIG,
    NetCtrl,
    NetCtrlAnnounce,
    NetCtrlMac,
    NetCtrlMq,
    NetCtrlRx,
    NetCtrlVlan,
    NetFeature,
    NetStatus,
)

HEADER = 12
#: What goes around an IP packet: two addresses, a tag, a type.
ETHERNET = 18
#: Bytes of packet in a buffer that others can be merged with; the whole fits into 2 KiB.
MERGED = 2048 - HEADER
MTU = 1500


class NetDriver(VirtioDriver):
    """A network interface: frames from Ethernet header to the end of the payload.

    :meth:`send` and :meth:`receive` take and give one, :meth:`send_batch` and
    :meth:`receive_batch` a burst of :class:`~virtring.device.packets.Packets`. mac, mtu: what the
    device says; mtu is 1500 if it says nothing. pairs: of queues; ``active_pairs`` are in use.

    Sending and receiving may each be done by one thread a pair at a time.
    """

    name = "virtio_net"
    id_table = (VirtioDeviceId(DeviceID.NET),)
    feature_table = (
        NetFeature.MAC,
        NetFeature.MTU,
        NetFeature.STATUS,
        NetFeature.MRG_RXBUF,
        NetFeature.CTRL_VQ,
        NetFeature.CTRL_RX,
        NetFeature.CTRL_RX_EXTRA,
        NetFeature.CTRL_VLAN,
        NetFeature.CTRL_MAC_ADDR,
        NetFeature.GUEST_ANNOUNCE,
        NetFeature.MQ,
    )

    def __init__(self, vdev: VirtioDevice) -> None:
        super().__init__(vdev)
        #: Called with the number of the pair when packets have come, in the transport's thread.
        self.on_receive: Callable[[int], object] | None = None
        #: Called when the device asks to announce where we are, before that is acknowledged.
        self.on_announce: Callable[[], object] | None = None
        self._lock = Lock()
        self._removed = True

    def validate(self) -> None:
        # Without a control queue nothing that needs one is any use (5.1.3.1).
        if not self.vdev.has_feature(NetFeature.CTRL_VQ):
            needs = NetFeature.CTRL_RX | NetFeature.CTRL_RX_EXTRA | NetFeature.CTRL_VLAN
            needs |= NetFeature.CTRL_MAC_ADDR | NetFeature.GUEST_ANNOUNCE | NetFeature.MQ
            features = int(self.vdev.features) & ~int(needs)
            self.vdev.features = type(self.vdev.features)(features)

    def probe(self) -> None:
        vdev, has = self.vdev, self.vdev.has_feature
        self.mac = bytes(vdev.cread(NET_CONFIG, "mac")) if has(NetFeature.MAC) else None
        self.mtu = int(vdev.cread(NET_CONFIG, "mtu")) if has(NetFeature.MTU) else MTU
        self.pairs = 1
        if has(NetFeature.MQ):
            self.pairs = int(vdev.cread(NET_CONFIG, "max_virtqueue_pairs"))
            if not 1 <= self.pairs <= 0x8000:
                raise InvalidArgument(f"the device has {self.pairs} pairs of queues")
        names = [f"{way}.{i}" for i in range(self.pairs) for way in ("input", "output")]
        callbacks: list[Callable[[Virtqueue], object] | None] = []
        for i in range(self.pairs):
            callbacks += [partial(self._input, i), None]
        if has(NetFeature.CTRL_VQ):
            names.append("control")
            callbacks.append(self._control_used)
        vqs = [vq for vq in vdev.find_vqs(callbacks, names) if vq is not None]
        self.control = NetControlQueue(vqs[-1]) if has(NetFeature.CTRL_VQ) else None
        merge = has(NetFeature.MRG_RXBUF)
        longest = self.mtu + ETHERNET
        self.rx = [
            NetReceive(vq, vq.vring_size, HEADER, MERGED if merge else longest, merge=merge)
            for vq in vqs[: 2 * self.pairs : 2]
        ]
        self.tx = [
            NetSend(vq, vq.vring_size, HEADER, longest) for vq in vqs[1 : 2 * self.pairs : 2]
        ]
        self.active_pairs = 1
        self._arrived = [Event() for _ in self.rx]
        self._one = Packets(1, longest)
        self._waiting = Packets(64, max(64 * 2048, 2 * (1 << 16)))
        self._next = 0
        self._removed = False
        self.rx[0].fill()

    def scan(self) -> None:
        self.rx[0].vq.kick()

    def remove(self) -> None:
        self._removed = True
        super().remove()
        if self.control is not None:
            self.control.fail(WrongState("the network device was removed"))
        # Their buffers are free again.
        self.rx, self.tx = [], []
        for event in self._arrived:
            event.set()

    def _use(self, pair: int) -> None:
        if self._removed:
            raise WrongState("the network device was removed")
        if not 0 <= pair < self.active_pairs:
            raise InvalidArgument(f"pair {pair}; {self.active_pairs} are in use")

    # Packets.

    def send(self, frame: bytes, pair: int = 0) -> None:
        """Send one frame of 14 to ``mtu + 18`` bytes (InvalidArgument); NoSpace when full."""
        with self._lock:
            if len(frame) > self._one.data.size:
                raise InvalidArgument(f"{len(frame)} bytes; it takes 14 to {self._one.data.size}")
            self._one.clear()
            self._one.append(frame)
            if not self.send_batch(self._one, pair=pair):
                raise NoSpace("the transmit queue is full")

    def send_batch(self, packets: Packets, start: int = 0, pair: int = 0) -> int:
        """Send frames from ``start`` on, and kick; for how many there was room.

        Raises InvalidArgument for one of another length than :meth:`send` takes: none was sent.
        """
        self._use(pair)
        count = self.tx[pair].send(packets, start)
        if count:
            self.tx[pair].vq.kick()
        return count

    def receive(self, timeout: float | None = 5.0) -> bytes:
        """The next frame of pair 0. WaitTimeout after ``timeout`` seconds, None for never."""
        if self._next == len(self._waiting):
            self._wait(timeout)
        frame = self._waiting[self._next].tobytes()
        self._next += 1
        return frame

    def _wait(self, timeout: float | None) -> None:
        end = None if timeout is None else time.monotonic() + timeout
        event = self._arrived[0]
        while True:
            event.clear()
            self._waiting.clear()
            self._next = 0
            if self.receive_batch(self._waiting):
                return
            if not self.rx[0].vq.enable_cb():
                continue
            left = None if end is None else end - time.monotonic()
            if (left is not None and left <= 0) or not event.wait(left):
                raise WaitTimeout(f"no packet in {timeout} s")

    def receive_batch(self, packets: Packets, pair: int = 0) -> int:
        """Append what has come to ``packets``, as far as it fits, without waiting; how many.

        NoSpace for a packet that does not even fit into empty ``packets``.
        """
        self._use(pair)
        return self.rx[pair].receive(packets)

    def _input(self, pair: int, vq: Virtqueue) -> None:
        self._arrived[pair].set()
        if self.on_receive is not None:
            self.on_receive(pair)

    # The link.

    @property
    def link_up(self) -> bool:
        """Is the wire plugged in? True when the device cannot tell."""
        if not self.vdev.has_feature(NetFeature.STATUS):
            return True
        return bool(int(self.vdev.cread(NET_CONFIG, "status")) & NetStatus.LINK_UP)

    def config_changed(self) -> None:
        """Link up or down, or a wish to announce ourselves; the latter is acknowledged."""
        if not self.vdev.has_feature(NetFeature.GUEST_ANNOUNCE) or self.control is None:
            return
        if int(self.vdev.cread(NET_CONFIG, "status")) & NetStatus.ANNOUNCE:
            if self.on_announce is not None:
                self.on_announce()
            # Not waited for: the answer comes by the thread that we are in.
            self.control.start(NetCtrl.ANNOUNCE, NetCtrlAnnounce.ACK)

    # Commands. All raise WrongState when the device refuses, WaitTimeout when it does not answer.

    def _command(self, feature: NetFeature, group: NetCtrl, command: int, data: bytes) -> None:
        if self._removed:
            raise WrongState("the network device was removed")
        if self.control is None or not self.vdev.has_feature(feature):
            raise NotSupported(f"the device has no {feature.name}")
        self.control.send(group, command, data)

    def _control_used(self, vq: Virtqueue) -> None:
        if self.control is not None:
            self.control.used(vq)

    def set_receive_mode(self, mode: NetCtrlRx, on: bool) -> None:
        """Switch one of the receive modes, such as NetCtrlRx.PROMISC (5.1.6.5.1)."""
        extra = mode not in (NetCtrlRx.PROMISC, NetCtrlRx.ALLMULTI)
        feature = NetFeature.CTRL_RX_EXTRA if extra else NetFeature.CTRL_RX
        self._command(feature, NetCtrl.RX, mode, bytes([on]))

    def set_mac_table(self, unicast: Sequence[bytes], multicast: Sequence[bytes]) -> None:
        """Which addresses to receive beside our own, 6 bytes each (5.1.6.5.2)."""
        data = mac_tables(unicast, multicast)
        self._command(NetFeature.CTRL_RX, NetCtrl.MAC, NetCtrlMac.TABLE_SET, data)

    def set_mac(self, mac: bytes) -> None:
        """Our own address, 6 bytes."""
        if len(mac) != 6:
            raise InvalidArgument(f"a MAC address of {len(mac)} bytes; it has 6")
        self._command(NetFeature.CTRL_MAC_ADDR, NetCtrl.MAC, NetCtrlMac.ADDR_SET, mac)
        self.mac = bytes(mac)

    def add_vlan(self, vlan: int) -> None:
        """Receive packets with this VLAN tag (5.1.6.5.3)."""
        self._vlan(NetCtrlVlan.ADD, vlan)

    def delete_vlan(self, vlan: int) -> None:
        """Do not receive them any more."""
        self._vlan(NetCtrlVlan.DEL, vlan)

    def _vlan(self, command: NetCtrlVlan, vlan: int) -> None:
        if not 0 <= vlan < 4096:
            raise InvalidArgument(f"VLAN {vlan}; it takes 0 to 4095")
        data = struct.pack("<H", vlan)
        self._command(NetFeature.CTRL_VLAN, NetCtrl.VLAN, command, data)

    def set_pairs(self, pairs: int) -> None:
        """Use so many pairs of queues from now on (5.1.6.5.5)."""
        if not 1 <= pairs <= self.pairs:
            raise InvalidArgument(f"{pairs} pairs; it takes 1 to {self.pairs}")
        for receive in self.rx[:pairs]:
            if receive.fill():
                receive.vq.kick()
        data = struct.pack("<H", pairs)
        self._command(NetFeature.MQ, NetCtrl.MQ, NetCtrlMq.VQ_PAIRS_SET, data)
        self.active_pairs = pairs
