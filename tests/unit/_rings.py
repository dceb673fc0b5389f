"""A queue with both its ends, and its bytes as whoever shares the memory can write them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from virtring import (
    DeviceQueue,
    Feature,
    GuestMemory,
    RingDevice,
    Virtqueue,
    vring_create_virtqueue,
)
from virtring.spec.dtypes import (
    VRING_DESC,
    VRING_PACKED_DESC,
    VRING_PACKED_DESC_EVENT,
    vring_avail,
    vring_used,
)

NONE = Feature(0)
KINDS = ("split", "packed")
BASE = 0x10000
SIZE = 1 << 20

NEXT, WRITE, INDIRECT = 1, 2, 4
AVAIL, USED = 1 << 7, 1 << 15


class Raw:
    """Numpy views of a ring. Split: desc, avail, used; packed: desc, driver, device."""

    def __init__(self, memory: GuestMemory, config: Any) -> None:
        num = config.size

        def view(addr: int, dtype: np.dtype[np.void], n: int = 1) -> NDArray[np.void]:
            return np.frombuffer(memory.view(addr, dtype.itemsize * n), dtype)

        if config.packed:
            self.desc = view(config.desc, VRING_PACKED_DESC, num)
            self.driver: Any = view(config.avail, VRING_PACKED_DESC_EVENT)[0]
            self.device: Any = view(config.used, VRING_PACKED_DESC_EVENT)[0]
        else:
            swap = ">" if config.big_endian else "<"
            self.desc = view(config.desc, VRING_DESC.newbyteorder(swap), num)
            self.avail: Any = view(config.avail, vring_avail(num).newbyteorder(swap))[0]
            self.used: Any = view(config.used, vring_used(num).newbyteorder(swap))[0]


class Ring:
    """One queue over a memory of its own. ``kicks`` and ``calls`` count what was sent."""

    def __init__(
        self,
        kind: str,
        num: int = 8,
        features: Feature = NONE,
        *,
        callback: Any = None,
        transport: Any = None,
        memory: GuestMemory | None = None,
        big_endian: bool = False,
        align: int = 64,
        **options: Any,
    ) -> None:
        self.kind = kind
        self.num = num
        self.memory = memory or GuestMemory.create(SIZE, base=BASE, kind="anonymous")
        if not big_endian:
            features |= Feature.VERSION_1
        if kind == "packed":
            features |= Feature.RING_PACKED
        self.kicks = 0
        self.calls = 0
        vdev = RingDevice(self.memory, features, transport, big_endian=big_endian)
        options.setdefault("notify", self.kicked)
        self.vq: Virtqueue = vring_create_virtqueue(
            0, num, align, vdev, callback=callback, name=kind, **options
        )
        self.dq = DeviceQueue(self.memory, self.vq.config, call=self.called)
        self.raw = Raw(self.memory, self.vq.config)
        self.features = features

    @property
    def packed(self) -> bool:
        return self.kind == "packed"

    def kicked(self, vq: Virtqueue) -> None:
        self.kicks += 1

    def called(self, dq: DeviceQueue) -> None:
        self.calls += 1

    def buf(self, size: int = 16) -> memoryview:
        """A piece of the guest memory that nobody else has."""
        return self.memory.view(self.memory.alloc(size), size)

    def addr(self, buffer: memoryview) -> int:
        return self.memory.address_of(buffer)[0]

    def serve(self, written: int = 0, most: int = 1 << 30) -> int:
        """The device takes what is there and gives it back; how many chains there were."""
        n = 0
        while n < most and (chain := self.dq.next_chain()) is not None:
            chain.return_(min(written, chain.writable_bytes))
            n += 1
        return n

    def tokens(self) -> list[Any]:
        """Everything that detach_unused_buf() gives."""
        out = []
        while (token := self.vq.detach_unused_buf()) is not None:
            out.append(token)
        return out
