"""Links within one process, and raw queues at one of their ends."""

import struct
from typing import Any

from virtring import Chain, DeviceQueue, Feature, GuestMemory, RingDevice, Virtqueue
from virtring.queue.create import vring_create_virtqueue
from virtring.rpmsg import DeviceBus, DriverBus, RpmsgLink, create_link
from virtring.rpmsg.driver_port import DriverPort

KINDS = ("split", "packed")
HEADER = struct.Struct("<IIIHH")


def message(src: int, dst: int, data: bytes, length: int | None = None, flags: int = 0) -> bytes:
    """A message as it lies in a buffer; ``length`` is what the header claims."""
    return HEADER.pack(src, dst, 0, len(data) if length is None else length, flags) + data


def both(kind: str, num: int = 8, **options: Any) -> tuple[DriverBus, DeviceBus]:
    """A driver and a device on one link."""
    options.setdefault("timeout", 5.0)
    bus, link = create_link(num, packed=kind == "packed", **options)
    return bus, link.device(timeout=options["timeout"])


def driver_and_raw(kind: str, num: int = 8, **options: Any) -> tuple[DriverBus, "RawDevice"]:
    """A driver whose device is played by the test."""
    bus, link = create_link(num, packed=kind == "packed", **options)
    return bus, RawDevice(link)


class RawDevice:
    """Queue 0 (``inputs``) and queue 1 (``outputs``) of a driver, by hand."""

    def __init__(self, link: RpmsgLink) -> None:
        self.link = link
        self.outputs = DeviceQueue(link.memory, link.rx, call=link.rx_call)
        self.inputs = DeviceQueue(link.memory, link.tx, call=link.tx_call)

    def write(self, data: bytes, written: int | None = None) -> None:
        """Put ``data`` into the driver's next receive buffer."""
        chain = self.inputs.next_chain()
        assert chain is not None
        chain.write(data)
        chain.return_(len(data) if written is None else written)
        self.inputs.signal()

    def sent(self) -> list[Chain]:
        """What the driver has sent, still held."""
        chains = []
        while (chain := self.outputs.next_chain()) is not None:
            chains.append(chain)
        return chains


class RawDriver:
    """Two queues whose buffers are added by the test, and a device's bus on them."""

    def __init__(self, kind: str, num: int = 8, **options: Any) -> None:
        ring = Feature.VERSION_1 | (Feature.RING_PACKED if kind == "packed" else Feature(0))
        self.memory = GuestMemory.create(1 << 20, kind="anonymous")
        vdev = RingDevice(self.memory, ring | Feature.INDIRECT_DESC)
        self.rvq: Virtqueue = vring_create_virtqueue(0, num, 64, vdev, name="input")
        self.svq: Virtqueue = vring_create_virtqueue(1, num, 64, vdev, name="output")
        self.bus = DeviceBus(
            DeviceQueue(self.memory, self.svq.config),
            DeviceQueue(self.memory, self.rvq.config),
            self.memory,
            **options,
        )

    def buf(self, data: bytes) -> memoryview:
        """Guest memory with these contents."""
        view = self.memory.view(self.memory.alloc(len(data)), len(data))
        view[:] = data
        return view

    def send(self, *pieces: bytes) -> None:
        """A message, in so many descriptors."""
        self.svq.add_sgs([self.buf(piece) for piece in pieces], [], object())

    def post(self, *sizes: int) -> list[memoryview]:
        """A receive buffer of so many descriptors; the token is the list of them."""
        views = [self.buf(bytes(size)) for size in sizes]
        self.rvq.add_sgs([], views, views)
        return views

    def received(self) -> bytes | None:
        """What the device wrote into the next used receive buffer."""
        used = self.rvq.get_buf()
        if used is None:
            return None
        views, written = used
        return b"".join(bytes(view) for view in views)[:written]


def tx_total(port: DriverPort) -> int:
    """Transmit buffers, wherever they are; never more, never less."""
    assert port.tx_in_flight == port.svq.in_flight
    return port.tx_free + port.tx_held + port.svq.in_flight


def rx_total(port: DriverPort) -> int:
    assert port.rx_posted == port.rvq.in_flight
    return port.rx_unposted + port.rx_held + port.rvq.in_flight
