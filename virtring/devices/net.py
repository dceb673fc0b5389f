"""The network device (virtio 1.4, 5.1), without checksums and other offloads."""

import os
import struct

import numpy as np

from virtring.device import RING_OFFER, Device
from virtring.device.packets import Packets
from virtring.devices.net_backend import Echo, NetBackend
from virtring.devices.net_control import NetControl
from virtring.devices.net_filter import NetFilter
from virtring.devices.net_io import NetPair
from virtring.errors import InvalidArgument, QueueBroken
from virtring.queue import DeviceQueue, spin_available
from virtring.spec.features import Feature
from virtring.spec.ids import DeviceID
from virtring.spec.net import NET_CONFIG, NetFeature, NetStatus

#: Where ``status`` is in the configuration.
STATUS = 6
#: Packets handed to a back end at once, and the bytes there are for them.
BURST = 256
BURST_BYTES = 512 << 10
#: Packets of one queue before the other queues have a turn.
TURN = 4096

OFFER = (
    NetFeature.MAC
    | NetFeature.STATUS
    | NetFeature.MRG_RXBUF
    | NetFeature.CTRL_VQ
    | NetFeature.CTRL_RX
    | NetFeature.CTRL_RX_EXTRA
    | NetFeature.CTRL_VLAN
    | NetFeature.CTRL_MAC_ADDR
    | NetFeature.GUEST_ANNOUNCE
)
NEED_CONTROL = (
    NetFeature.CTRL_RX
    | NetFeature.CTRL_RX_EXTRA
    | NetFeature.CTRL_VLAN
    | NetFeature.CTRL_MAC_ADDR
    | NetFeature.GUEST_ANNOUNCE
    | NetFeature.MQ
)


class Net(Device):
    """A network interface with ``backend`` at the other end of its wire.

    mac: 6 bytes, by default a random local address. mtu: 68 to 65535 bytes; offered (MTU) if given.
    pairs: of queues, 1 to 64; above 1 MQ is offered. mergeable: offer MRG_RXBUF. poll: microseconds
    for which the device goes on looking at a queue that has become empty before it asks for a kick;
    this saves kicks and takes a CPU.

    ``pairs[i]`` counts what went through (:class:`~virtring.devices.net_io.NetPair`), ``filter``
    holds what the driver wants to receive.
    """

    device_id = DeviceID.NET

    def __init__(
        self,
        backend: NetBackend,
        *,
        mac: bytes | None = None,
        mtu: int | None = None,
        pairs: int = 1,
        mergeable: bool = True,
        poll: float = 0.0,
        queue_size: int = 256,
        ring_features: int = RING_OFFER,
    ) -> None:
        if mac is None:
            mac = b"\x52\x54\x00" + os.urandom(3)
        if not 1 <= pairs <= 64:
            raise InvalidArgument(f"{pairs} pairs of queues; it takes 1 to 64")
        if mtu is not None and not 68 <= mtu <= 65535:
            raise InvalidArgument(f"mtu {mtu}; it takes 68 to 65535")
        if not 0 <= poll <= 1e6:
            raise InvalidArgument(f"poll {poll} microseconds; it takes 0 to 1000000")
        self.mac = bytes(mac)
        self.filter = NetFilter(self.mac)
        self.pairs = [NetPair(queue_size, self.filter) for _ in range(pairs)]
        self.active_pairs = 1
        self.poll = poll
        config = np.zeros((), NET_CONFIG)
        config["mac"] = list(mac)
        config["status"] = NetStatus.LINK_UP
        config["max_virtqueue_pairs"] = pairs
        features = OFFER
        if not mergeable:
            features &= ~NetFeature.MRG_RXBUF
        if pairs > 1:
            features |= NetFeature.MQ
        if mtu is not None:
            features |= NetFeature.MTU
            config["mtu"] = mtu
        names = [f"{way}q{i + 1}" for i in range(pairs) for way in ("receive", "transmit")]
        super().__init__(
            features=features,
            ring_features=ring_features,
            queues=[*names, "control"],
            queue_size=queue_size,
            config=config.tobytes()[:12],
        )
        self.control = NetControl(self)
        self._packets = Packets(BURST, BURST_BYTES)
        self.backend = backend
        backend.attach(self)

    # For the host, from any thread.

    def receive(self, packets: Packets, pair: int = 0) -> int:
        """Frames from the wire, for the driver; how many it got.

        Those that the filter lets through and that find no buffer are dropped and counted. All are
        dropped while the driver is not ready, the link is down, or the pair is not in use. Raises
        InvalidArgument for what are no frames of 14 to 65589 bytes, and for a pair that the device
        does not have.
        """
        if not 0 <= pair < len(self.pairs):
            raise InvalidArgument(f"pair {pair}; the device has {len(self.pairs)}")
        with self.locked():
            queue = self.queues[2 * pair]
            if queue is None or not self.core.running or not self.link_up or self._idle(pair):
                return 0
            try:
                count = self.pairs[pair].put(self.memory, queue, packets)
                queue.signal()
            except QueueBroken as error:
                self.needs_reset(str(error))
                return 0
            return count

    def _idle(self, pair: int) -> bool:
        # Without a control queue of ours the transport enables the pairs it wants.
        control = self.queues[self.control_index]
        return control is not None and pair >= self.active_pairs

    @property
    def link_up(self) -> bool:
        """Is the wire plugged in? Setting it tells the driver (STATUS)."""
        return bool(self._status & NetStatus.LINK_UP)

    @link_up.setter
    def link_up(self, value: bool) -> None:
        with self.locked():
            self._set_status(
                self._status | NetStatus.LINK_UP if value else self._status & ~NetStatus.LINK_UP
            )

    def announce(self) -> None:
        """Ask the driver to tell the network where it is (5.1.6.5.4), if it knows how to."""
        with self.locked():
            if self.has(NetFeature.GUEST_ANNOUNCE):
                self._set_status(self._status | NetStatus.ANNOUNCE)

    @property
    def _status(self) -> NetStatus:
        return NetStatus(struct.unpack_from("<H", self.core.config, STATUS)[0])

    def _set_status(self, status: NetStatus) -> None:
        self.update_config(STATUS, struct.pack("<H", status))

    def announced(self) -> bool:
        """The driver has done what :meth:`announce` asked for."""
        struct.pack_into("<H", self.core.config, STATUS, self._status & ~NetStatus.ANNOUNCE)
        return True

    # What the driver does.

    def validate_features(self, features: Feature) -> bool:
        bits = int(features)
        return bool(bits & NetFeature.CTRL_VQ) or not bits & NEED_CONTROL

    @property
    def control_index(self) -> int:
        """Number of the control queue: behind all pairs with MQ, else behind the first (5.1.2)."""
        return 2 * (len(self.pairs) if self.has(NetFeature.MQ) else 1)

    def queue_started(self, index: int, queue: DeviceQueue) -> None:
        if index == self.control_index or index // 2 >= len(self.pairs):
            return
        bits = int(queue.features)
        pair = self.pairs[index // 2]
        pair.merge = bool(bits & NetFeature.MRG_RXBUF)
        pair.header = 12 if pair.merge or bits & Feature.VERSION_1 else 10
        self.filter.vlans_on = bool(bits & NetFeature.CTRL_VLAN)
        if index % 2 == 0:
            # Receive buffers are looked for when there is a packet.
            queue.disable_notify()

    def queue_stopped(self, index: int, queue: DeviceQueue) -> None:
        if index == self.control_index or index // 2 >= len(self.pairs):
            return
        pair = self.pairs[index // 2]
        if index % 2:
            pair.return_tx(queue)
        else:
            pair.return_rx(queue)

    def reset(self) -> None:
        self.filter.reset()
        self.filter.set_mac(self.mac)
        self.core.config[:6] = self.mac
        self.active_pairs = 1
        self.announced()

    def polled(self, index: int) -> bool:
        if index == self.control_index or index // 2 >= len(self.pairs):
            return True
        return index % 2 == 1 or self.pairs[index // 2].waiting

    def handle_queue(self, index: int, queue: DeviceQueue) -> None:
        if not self.core.running:
            return
        if index == self.control_index:
            self.control.serve(queue)
        elif index // 2 < len(self.pairs) and isinstance(self.backend, Echo) and self.link_up:
            self._echo(index // 2)
        elif index % 2:
            self._transmit(index // 2, queue)

    def _transmit(self, number: int, queue: DeviceQueue) -> None:
        pair, packets = self.pairs[number], self._packets
        done = 0
        while done < TURN:
            queue.disable_notify()
            packets.clear()
            count = pair.take(self.memory, queue, packets)
            queue.signal()
            if count:
                done += count
                if self.link_up:
                    self.backend.transmit(number, packets)
            elif not self._more(queue):
                return
        self.kick(2 * number + 1)

    def _echo(self, number: int) -> None:
        pair = self.pairs[number]
        rx, tx = self.queues[2 * number], self.queues[2 * number + 1]
        if rx is None or tx is None:
            return
        done = 0
        rx.disable_notify()
        while done < TURN:
            tx.disable_notify()
            done += pair.echo(self.memory, tx, rx, TURN - done, self.poll)
            if pair.waiting:
                # The kick of the next receive buffer goes on with it.
                if rx.enable_notify():
                    return
                rx.disable_notify()
            elif done < TURN and tx.enable_notify():
                return
        self.kick(2 * number + 1)

    def _more(self, queue: DeviceQueue) -> bool:
        """An empty queue: is there something after all, or shall the driver kick?"""
        if self.poll and spin_available(queue, self.poll):
            return True
        return not queue.enable_notify()

    def close(self) -> None:
        """Close the back end. Again is fine."""
        self.backend.close()
