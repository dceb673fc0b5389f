"""A device with a driver bound to it, over every transport of this process and both rings."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from tests.devices.machine import Machine
from virtring.device import RING_OFFER, Device, VirtioDeviceId
from virtring.device import VirtioDriver as Driver
from virtring.queue import Virtqueue
from virtring.spec.features import Feature
from virtring.spec.status import Status
from virtring.transport.connect import KINDS

__all__ = ["KINDS", "RINGS", "SECTORS", "Raw", "bound", "raw_driver"]

#: Of the disk that the fixture ``image`` makes.
SECTORS = 4096

#: Name -> the device-independent features that are offered.
RINGS = {
    "split": Feature.VERSION_1,
    "split-event": Feature.VERSION_1 | Feature.EVENT_IDX | Feature.INDIRECT_DESC,
    "split-in-order": Feature.VERSION_1 | Feature.IN_ORDER | Feature.EVENT_IDX,
    "packed": Feature.VERSION_1 | Feature.RING_PACKED,
    "packed-event": RING_OFFER & ~Feature.IN_ORDER,
    "packed-in-order": RING_OFFER,
}

SomeDriver = TypeVar("SomeDriver", bound=Driver)


@contextmanager
def bound(
    device: Device,
    driver: type[SomeDriver],
    kind: str = "loopback",
    *,
    later: bool = False,
    size: int = 32 << 20,
) -> Iterator[SomeDriver]:
    """The driver of ``device``, removed at the end. later: the device has a thread of its own."""
    pool = ThreadPoolExecutor(1, "device") if later else None
    machine = Machine(kind, device.core.device_features, pool, size)
    try:
        yield machine.plug(device, driver)
    finally:
        for vdev in list(machine.bus.devices):
            machine.bus.unregister_device(vdev)
        if pool is not None:
            pool.shutdown()
            del device.core.__dict__["wake"]
        device.detach()


class Raw(Driver):
    """A driver that puts on the queues whatever a test says."""

    name = "raw"
    queue_count = 1

    def probe(self) -> None:
        self.vqs: list[Virtqueue] = []
        self.owned: list[int] = []
        names = [f"q{i}" for i in range(self.queue_count)]
        for vq in self.vdev.find_vqs([None] * len(names), names):
            assert vq is not None
            self.vqs.append(vq)

    def buffer(self, data: bytes | int) -> memoryview:
        """Guest memory with these bytes, or so many of 0xEE."""
        if isinstance(data, int):
            data = b"\xee" * data
        memory = self.vdev.memory
        view = memory.view(memory.alloc(len(data)), len(data))
        view[:] = data
        self.owned.append(memory.address_of(view)[0])
        return view

    def remove(self) -> None:
        super().remove()
        for addr in self.owned:
            self.vdev.memory.free(addr)

    def send(
        self, out: list[bytes], into: list[int], index: int = 0
    ) -> tuple[int, list[memoryview]]:
        """One chain there and back: bytes the device says it wrote, and the writable buffers."""
        buffers = [self.buffer(n) for n in into]
        vq = self.vqs[index]
        vq.add_sgs([self.buffer(data) for data in out], buffers, object())
        vq.kick()
        used = vq.get_buf()
        assert used is not None, "the device did not use the chain"
        return used[1], buffers

    @property
    def needs_reset(self) -> bool:
        return Status.NEEDS_RESET in self.vdev.config.get_status(self.vdev)


def raw_driver(id: int, *features: int, queues: int = 1, rings: int = int(RING_OFFER)) -> type[Raw]:
    """A :class:`Raw` for devices of this id that takes these features."""
    body: dict[str, Any] = {
        "id_table": (VirtioDeviceId(id),),
        "feature_table": features,
        "ring_features": Feature(rings),
        "queue_count": queues,
    }
    return type("RawDriver", (Raw,), body)
