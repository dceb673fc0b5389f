"""An RPMsg link between two processes: shared memory, two rings, four eventfds."""

from __future__ import annotations

import json
import socket
import struct
from dataclasses import dataclass
from typing import Any, Self

from virtring.errors import InvalidArgument, PeerDied
from virtring.memory.guest import GuestMemory
from virtring.memory.region import Region
from virtring.queue.config import QueueConfig, check_size
from virtring.queue.create import RingDevice, vring_create_virtqueue
from virtring.queue.device import DeviceQueue
from virtring.queue.notify import EventFd, Spin
from virtring.rpmsg.ends import DeviceBus, DriverBus
from virtring.rpmsg.wire import BUF_SIZE, MAX_NUM_BUFS, SEND_TIMEOUT, RpmsgFeature, check_buf_size
from virtring.spec.features import Feature

#: Ring features of a link unless told otherwise.
RING = Feature.VERSION_1 | Feature.EVENT_IDX
#: Guest address of a link's memory.
BASE = 0x10000
#: The longest description that is taken from a socket.
MAX_TEXT = 4096
#: Magic, bytes of the description that follows.
HEAD = struct.Struct("<8sI")
MAGIC = b"VRrpmsg\0"
EVENTS = 4


@dataclass(frozen=True)
class RpmsgLink:
    """What the device's process needs; :func:`create_link` makes it together with the driver's bus.

    Goes there as an argument of a ``multiprocessing.Process``, forked or spawned, or over a Unix
    socket with :meth:`send`. rx, tx: the rings, as the device sees them. The events: kicks come,
    calls go. Sizes are bytes of a buffer, header included.
    """

    memory: GuestMemory
    rx: QueueConfig
    tx: QueueConfig
    rx_kick: EventFd
    rx_call: EventFd
    tx_kick: EventFd
    tx_call: EventFd
    features: int = RpmsgFeature.NS
    rx_buf_size: int = BUF_SIZE
    tx_buf_size: int = BUF_SIZE

    def device(
        self, *, timeout: float | None = SEND_TIMEOUT, spin: Spin | None = None
    ) -> DeviceBus:
        """The device's end, in the process that this object is in. Options as DeviceBus's."""
        return DeviceBus(
            DeviceQueue(self.memory, self.rx, call=self.rx_call),
            DeviceQueue(self.memory, self.tx, call=self.tx_call),
            self.memory,
            self.features,
            rx_buf_size=self.rx_buf_size,
            tx_buf_size=self.tx_buf_size,
            rx_event=self.rx_kick,
            tx_event=self.tx_kick,
            timeout=timeout,
            spin=spin,
        )

    def send(self, sock: socket.socket) -> None:
        """Send it over a blocking AF_UNIX socket, for :meth:`receive` on the other end."""
        text = json.dumps(
            {
                "base": BASE,
                "rx": _ring(self.rx),
                "tx": _ring(self.tx),
                "features": int(self.features),
                "rx_buf_size": self.rx_buf_size,
                "tx_buf_size": self.tx_buf_size,
            }
        ).encode()
        sock.sendall(HEAD.pack(MAGIC, len(text)) + text)
        self.memory.regions[0].region.send(sock)
        for event in (self.rx_kick, self.rx_call, self.tx_kick, self.tx_call):
            event.send(sock)

    @classmethod
    def receive(cls, sock: socket.socket) -> Self:
        """What the other end sends with :meth:`send`; nothing of it is trusted.

        Raises PeerDied when the socket ends, InvalidArgument for anything that cannot be.
        """
        magic, length = HEAD.unpack(_exactly(sock, HEAD.size))
        if magic != MAGIC or length > MAX_TEXT:
            raise InvalidArgument("the message does not begin with a link's header")
        raw = _exactly(sock, length)
        region = Region.receive(sock)
        events: list[EventFd] = []
        try:
            fields = json.loads(raw)
            memory = GuestMemory()
            memory.add_region(_int(fields["base"]), region)
            events.extend(EventFd.receive(sock) for _ in range(EVENTS))
            return cls(
                memory,
                _config(fields["rx"]),
                _config(fields["tx"]),
                events[0],
                events[1],
                events[2],
                events[3],
                features=_int(fields["features"]),
                rx_buf_size=check_buf_size(fields["rx_buf_size"], "rx_buf_size"),
                tx_buf_size=check_buf_size(fields["tx_buf_size"], "tx_buf_size"),
            )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            for event in events:
                event.close()
            if isinstance(error, InvalidArgument):
                raise
            raise InvalidArgument(f"the description of the link is wrong: {error!r}") from None


def create_link(
    num: int = 256,
    *,
    packed: bool = False,
    rx_buf_size: int = BUF_SIZE,
    tx_buf_size: int = BUF_SIZE,
    num_bufs: int | None = None,
    ring_features: int = RING,
    features: int = RpmsgFeature.NS,
    timeout: float | None = SEND_TIMEOUT,
    spin: Spin | None = None,
) -> tuple[DriverBus, RpmsgLink]:
    """The driver's bus over new memory with two rings of ``num`` entries, and the device's ticket.

    The options are those of :class:`DriverBus`; ``ring_features`` are the bits of the rings,
    ``packed`` adds RING_PACKED. Raises InvalidArgument for numbers that cannot be.
    """
    bits = Feature(ring_features) | (Feature.RING_PACKED if packed else Feature(0))
    check_size(num, packed)
    check_buf_size(rx_buf_size, "rx_buf_size")
    check_buf_size(tx_buf_size, "tx_buf_size")
    half = min(num, MAX_NUM_BUFS // 2) if num_bufs is None else num_bufs // 2
    # A buffer begins on a line of 64 bytes; a legacy ring has its parts on pages.
    stride = sum(-(-size // 64) * 64 for size in (rx_buf_size, tx_buf_size))
    total = max(half, 1) * stride + 2 * 32 * num + (1 << 16)
    memory = GuestMemory.create(-(-total // 4096) * 4096, base=BASE)
    vdev = RingDevice(memory, bits)
    align = 64 if Feature.VERSION_1 in bits else 4096
    kicks, calls = (EventFd(), EventFd()), (EventFd(), EventFd())
    rvq, svq = (
        vring_create_virtqueue(
            index, num, align, vdev, notify=kicks[index], name=f"rpmsg {name}"
        )
        for index, name in enumerate(("input", "output"))
    )
    bus = DriverBus(
        rvq, svq, memory, features, rx_buf_size=rx_buf_size, tx_buf_size=tx_buf_size,
        num_bufs=num_bufs, rx_event=calls[0], tx_event=calls[1], timeout=timeout, spin=spin,
    )
    # The device receives what the driver sends.
    link = RpmsgLink(
        memory, svq.config, rvq.config, kicks[1], calls[1], kicks[0], calls[0], int(features),
        tx_buf_size, rx_buf_size,
    )
    return bus, link


def _ring(config: QueueConfig) -> list[int]:
    return [
        config.size, config.desc, config.avail, config.used, int(config.features), config.index,
    ]


def _config(fields: Any) -> QueueConfig:
    size, desc, avail, used, features, index = map(_int, fields)
    return QueueConfig(size, desc, avail, used, Feature(features), index, "rpmsg")


def _int(value: Any) -> int:
    if not isinstance(value, int) or not 0 <= value < 1 << 64:
        raise InvalidArgument(f"{value!r} in the description of the link: it takes 64 bits")
    return value


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise PeerDied("the socket was closed before a link came")
        data += more
    return data
