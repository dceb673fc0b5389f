"""A device and a driver with nothing but what the device model asks of them."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from virtring.device import (
    RING_OFFER,
    Device,
    VirtioBus,
    VirtioDevice,
    VirtioDeviceId,
    VirtioDriver,
)
from virtring.memory import GuestMemory
from virtring.queue import DeviceQueue, Virtqueue
from virtring.spec.features import Feature
from virtring.spec.ids import DeviceID
from virtring.transport import loopback

CONFIG = np.dtype([("speed", "<u4"), ("mac", "u1", (6,)), ("mode", "<u2")])
ONE, TWO, THREE = 1 << 0, 1 << 1, 1 << 2


class Parrot(Device):
    """Gives back what it is given; writes down what it is called for."""

    device_id = DeviceID.SOUND
    queue_names = ("left", "right", "up")

    def __init__(self, **given: Any) -> None:
        given.setdefault("features", ONE | TWO)
        given.setdefault("ring_features", RING_OFFER | Feature.SUSPEND)
        given.setdefault("config", np.zeros((), CONFIG))
        self.calls: list[Any] = []
        super().__init__(**given)

    def handle_queue(self, index: int, queue: DeviceQueue) -> None:
        for chain in self.chains(queue):
            chain.return_(chain.write(chain.read()))

    def ready(self, features: Feature) -> None:
        self.calls.append("ready")

    def reset(self) -> None:
        self.calls.append("reset")

    def suspended(self, suspend: bool) -> None:
        self.calls.append("suspend" if suspend else "resume")

    def config_written(self, offset: int, data: bytes) -> None:
        self.calls.append((offset, data))
        self.core.config[offset : offset + len(data)] = data


class Tamer(VirtioDriver):
    """Sets up the queues named and sends bytes through them."""

    id_table: ClassVar[tuple[VirtioDeviceId, ...]] = (VirtioDeviceId(DeviceID.SOUND),)
    feature_table: ClassVar[tuple[int, ...]] = (ONE, TWO)
    names: ClassVar[tuple[str | None, ...]] = ("left", "right")

    def __init__(self, vdev: VirtioDevice) -> None:
        super().__init__(vdev)
        self.changes = 0
        self.used: list[tuple[int, Any]] = []

    def probe(self) -> None:
        self.vqs = self.vdev.find_vqs([self.done] * len(self.names), self.names)

    def done(self, vq: Virtqueue) -> None:
        while (got := vq.get_buf()) is not None:
            self.used.append((vq.index, got[0]))

    def config_changed(self) -> None:
        self.changes += 1

    def send(self, index: int = 0, text: bytes = b"hello") -> bytes:
        """Through a queue and back."""
        memory = self.vdev.memory
        addr = memory.alloc(2 * len(text))
        vq = self.vdev.vqs[index]
        there, back = (addr, len(text)), (addr + len(text), len(text))
        memory.write(addr, text)
        vq.virtqueue_add([there], [back], addr, premapped=True)
        vq.kick()
        data = memory.read(*back)
        memory.free(addr)
        return data


class Bench:
    """A bus with one device behind the loopback."""

    def __init__(self, device: Device | None = None, *drivers: type[VirtioDriver]) -> None:
        self.memory = GuestMemory.create(1 << 20, kind="anonymous")
        self.bus = VirtioBus()
        for driver in drivers:
            self.bus.register_driver(driver)
        self.device = Parrot() if device is None else device
        self.core = self.device.core
        self.vdev = loopback(self.device, self.memory)
        self.ops = self.vdev.config

    def register(self) -> Bench:
        self.bus.register_device(self.vdev)
        return self

    @property
    def calls(self) -> list[Any]:
        """What a parrot was called for since the driver came; registering resets it once."""
        assert isinstance(self.device, Parrot)
        return self.device.calls[1:]

    @property
    def driver(self) -> Tamer:
        assert isinstance(self.vdev.driver, Tamer)
        return self.vdev.driver


def running(device: Device | None = None, driver: type[Tamer] = Tamer) -> Bench:
    """A bench whose device has its driver."""
    return Bench(device, driver).register()
