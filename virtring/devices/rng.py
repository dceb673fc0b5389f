"""The entropy device (virtio 1.4, 5.4): fills every buffer with random bytes."""

import os
from collections.abc import Callable

from virtring.device import RING_OFFER, Device
from virtring.queue import DeviceQueue
from virtring.spec.ids import DeviceID


class Rng(Device):
    """One queue of writable buffers, filled from ``source(n) -> n or fewer bytes``.

    source: os.urandom by default. Of a longer buffer at most ``limit`` bytes are filled.
    """

    device_id = DeviceID.RNG
    queue_names = ("input",)

    def __init__(
        self,
        source: Callable[[int], bytes] = os.urandom,
        *,
        limit: int = 1 << 16,
        ring_features: int = RING_OFFER,
        queue_size: int = 64,
    ) -> None:
        super().__init__(ring_features=ring_features, queue_size=queue_size)
        self.source = source
        self.limit = limit

    def handle_queue(self, index: int, queue: DeviceQueue) -> None:
        for chain in self.chains(queue):
            data = self.source(min(chain.writable_bytes, self.limit))
            chain.return_(chain.write(data))
