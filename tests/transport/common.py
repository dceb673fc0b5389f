"""A device and a driver with queues, configuration and shared memory, for every transport."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from virtring.device import (
    RING_OFFER,
    Device,
    VirtioBus,
    VirtioDevice,
    VirtioDeviceId,
    VirtioDriver,
)
from virtring.memory import BufferPool, GuestMemory, Region
from virtring.queue import DeviceQueue, Virtqueue
from virtring.spec.features import Feature
from virtring.spec.ids import DeviceID
from virtring.transport.connect import connect

CONFIG = np.dtype([("mac", "u1", (6,)), ("status", "<u2"), ("mtu", "<u4"), ("capacity", "<u8")])
SPLIT = RING_OFFER & ~Feature.RING_PACKED
PACKED = RING_OFFER
LAYOUTS = {"split": SPLIT, "packed": PACKED}
SHM_ADDR = 0x7_0000_0000


def config_record(**values: Any) -> bytes:
    record = np.zeros(1, CONFIG)
    record["mac"] = range(1, 7)
    record["mtu"] = 1500
    record["capacity"] = 0x1122_3344_5566_7788
    for name, value in values.items():
        record[name] = value
    return record.tobytes()


class Echo(Device):
    """Three queues that give back what they are given; its configuration takes writes."""

    device_id = DeviceID.SOUND
    queue_names = ("first", "second", "third")

    def __init__(self, ring_features: int = RING_OFFER, *, shm: bool = False, **given: Any) -> None:
        super().__init__(
            features=1 << 3, ring_features=ring_features, config=config_record(), **given
        )
        self.served = 0
        if shm:
            self.region = Region.anonymous(1 << 16)
            self.add_shared_memory(5, self.region, addr=SHM_ADDR, offset=4096, size=0x5000)
            self.add_shared_memory(9, self.region, addr=SHM_ADDR + 0x10000, size=4096)

    def handle_queue(self, index: int, queue: DeviceQueue) -> None:
        for chain in self.chains(queue):
            self.served += 1
            chain.return_(chain.write(chain.read()[: chain.writable_bytes]))

    def config_written(self, offset: int, data: bytes) -> None:
        self.core.config[offset : offset + len(data)] = data


class EchoDriver(VirtioDriver):
    """Sets up queues named in ``names``; :meth:`echo` sends bytes through one of them."""

    id_table = (VirtioDeviceId(DeviceID.SOUND),)
    feature_table = (1 << 3,)
    names: tuple[str | None, ...] = ("first", None, "second")

    def __init__(self, vdev: VirtioDevice) -> None:
        super().__init__(vdev)
        self.changes = 0
        self.answers: list[tuple[int, bytes]] = []

    def probe(self) -> None:
        self.pool = BufferPool(self.vdev.memory, 8, 256)
        callbacks = [self._used if name else None for name in self.names]
        self.vqs = self.vdev.find_vqs(callbacks, self.names)

    def _used(self, vq: Virtqueue) -> None:
        while (got := vq.get_buf()) is not None:
            (out, into), length = got
            self.answers.append((vq.index, bytes(into.view[:length])))
            self.pool.put(out)
            self.pool.put(into)

    def echo(self, vq: Virtqueue, data: bytes) -> bytes:
        """What came back; fails unless the callback has run."""
        out, into = self.pool.get(), self.pool.get()
        out.view[: len(data)] = data
        out.len = len(data)
        vq.add_sgs([out], [into], (out, into))
        vq.kick()
        index, answer = self.answers.pop()
        assert index == vq.index
        assert not self.answers
        return answer

    def config_changed(self) -> None:
        self.changes += 1


def bound(
    device: Device, kind: str, driver: type[VirtioDriver] = EchoDriver, size: int = 1 << 20
) -> tuple[VirtioDevice, Any, VirtioBus]:
    """The device behind a transport, its bound driver, and their bus."""
    bus = VirtioBus()
    bus.register_driver(driver)
    vdev = connect(device, kind, GuestMemory.create(size))
    bus.register_device(vdev)
    return vdev, vdev.driver, bus


@dataclass
class Rig:
    """A device behind a transport and its bound driver."""

    device: Echo
    vdev: VirtioDevice
    driver: EchoDriver
    bus: VirtioBus

    @property
    def ops(self) -> Any:
        return self.vdev.config
