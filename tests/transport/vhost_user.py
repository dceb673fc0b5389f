"""What the vhost-user tests share: a served device, a driver of plain block requests."""

from __future__ import annotations

import gc
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from virtring import DeviceQueue, Virtqueue
from virtring.device import ANY_ID, Device, VirtioBus, VirtioDevice, VirtioDeviceId, VirtioDriver
from virtring.memory import GuestMemory
from virtring.spec.features import Feature
from virtring.spec.ids import DeviceID
from virtring.transport.vhost_user import VhostUserOps, VhostUserServer, vhost_user_device

IN, OUT, FLUSH, GET_ID = 0, 1, 4, 8
SECTOR = 512


def open_fds() -> int:
    gc.collect()  # what earlier tests left would go at any time
    return len(os.listdir("/proc/self/fd"))


@contextmanager
def served(
    device: Device, path: Path, *, poll: bool = False, stops: bool = False
) -> Iterator[VhostUserServer]:
    """The device behind a socket, in a thread that must be alive at the end or ``stops`` before."""
    server = VhostUserServer(device, str(path), poll=poll)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
        assert stops or thread.is_alive(), "the server has ended"
    finally:
        server.stop()
        thread.join(30)
        assert not thread.is_alive()
        server.close()


class Echo(Device):
    """Copies what it reads into the same buffer's writable part. ``kept`` when told to hold on."""

    device_id = DeviceID.RNG
    queue_names = ("first", "second")

    def __init__(self, config: bytes = b"", features: int = 0, queue_size: int = 128) -> None:
        super().__init__(config=config, features=features, queue_size=queue_size)
        self.seen: list[bytes] = []
        self.hold = False

    def handle_queue(self, index: int, queue: DeviceQueue) -> None:
        if self.hold:
            return
        for chain in self.chains(queue):
            data = chain.read()
            self.seen.append(data)
            chain.write(data[: chain.writable_bytes])
            chain.return_()


class AnyDriver(VirtioDriver):
    """Sets up ``count`` queues and hands them to the test."""

    name = "any"
    id_table = (VirtioDeviceId(ANY_ID),)
    count = 1
    callbacks = True

    def probe(self) -> None:
        self.done = threading.Condition()
        self.changes = 0
        callback = self.used if self.callbacks else None
        found = self.vdev.find_vqs([callback] * self.count, [f"q{i}" for i in range(self.count)])
        self.vqs = [vq for vq in found if vq is not None]

    def used(self, vq: Virtqueue) -> None:
        with self.done:
            self.done.notify_all()

    def config_changed(self) -> None:
        with self.done:
            self.changes += 1
            self.done.notify_all()

    def take(self, vq: Virtqueue, timeout: float = 20) -> tuple[object, int]:
        """The next used buffer: its token and length."""
        got: list[tuple[object, int]] = []

        def look() -> bool:
            # The callback may have run before: the ring is what counts.
            while True:
                if (buf := vq.get_buf()) is not None:
                    got.append(buf)
                    return True
                if not self.callbacks or vq.enable_cb():
                    return False

        with self.done:
            if self.callbacks:
                assert self.done.wait_for(look, timeout), "nothing was used"
            else:
                while not look():
                    self.done.wait(0.0005)
        return got[0]


def driver_class(count: int = 1, ring: str = "split", *, callbacks: bool = True, extra: int = 0,
                 in_order: bool = False) -> type[AnyDriver]:
    """A driver that wants split or packed rings; ``extra`` are the device type's features."""
    features = Feature.VERSION_1 | Feature.EVENT_IDX | Feature.INDIRECT_DESC | Feature.RING_RESET
    if ring == "packed":
        features |= Feature.RING_PACKED
    if in_order:
        features |= Feature.IN_ORDER
    wants = count, callbacks

    class Chosen(AnyDriver):
        ring_features = features
        feature_table = (extra,) if extra else ()
        count, callbacks = wants

    return Chosen


def bound(vdev: VirtioDevice, driver: type[AnyDriver]) -> AnyDriver:
    """The driver on a bus of its own with the device."""
    bus = VirtioBus()
    bus.register_driver(driver)
    bus.register_device(vdev)
    assert isinstance(vdev.driver, AnyDriver)
    return vdev.driver


class Requests:
    """Block requests on one queue; each has a page of its own for header, data and status."""

    def __init__(self, driver: AnyDriver, memory: GuestMemory, index: int = 0) -> None:
        self.driver = driver
        self.memory = memory
        self.vq = driver.vqs[index]

    def submit(self, type: int, sector: int, data: bytes = b"", size: int = 0) -> tuple[int, int]:
        """Add a request without a kick; gives its token (address and data bytes)."""
        length = len(data) or size
        addr = self.memory.alloc(16 + length + 1)
        self.memory.write(addr, struct.pack("<IIQ", type, 0, sector) + data)
        status = (addr + 16 + length, 1)
        self.memory.write(status[0], b"\xff")
        token = (addr, length)
        body = [(addr + 16, length)] if length else []
        if type == OUT:
            self.vq.virtqueue_add([(addr, 16), *body], [status], token, premapped=True)
        else:
            self.vq.virtqueue_add([(addr, 16)], [*body, status], token, premapped=True)
        return token

    def finish(self) -> tuple[tuple[int, int], int, bytes]:
        """The next request that is done: token, status, data."""
        token, _ = self.driver.take(self.vq)
        assert isinstance(token, tuple)
        addr, length = token
        data = self.memory.read(addr + 16, length) if length else b""
        status = self.memory.read(addr + 16 + length, 1)[0]
        self.memory.free(addr)
        return token, status, data

    def run(self, type: int, sector: int, data: bytes = b"", size: int = 0) -> tuple[int, bytes]:
        token = self.submit(type, sector, data, size)
        self.vq.kick()
        got, status, read = self.finish()
        assert got == token
        return status, read


def ops(vdev: VirtioDevice) -> VhostUserOps:
    assert isinstance(vdev.config, VhostUserOps)
    return vdev.config


def front(path: Path, memory: GuestMemory, **options: Any) -> VirtioDevice:
    return vhost_user_device(path, memory, int(DeviceID.BLOCK), **options)
