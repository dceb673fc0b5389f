"""A guest memory, a bus and a transport: where a device meets its driver."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from virtring.device import Device, VirtioBus, VirtioDevice, VirtioDriver
from virtring.errors import VirtioError
from virtring.memory import GuestMemory
from virtring.spec.features import Feature
from virtring.transport import connect

AnyDriver = TypeVar("AnyDriver", bound=VirtioDriver)


class Machine:
    """ring_features: what devices are to offer. pool: the thread that devices run in, if any."""

    def __init__(
        self,
        kind: str,
        ring_features: Feature,
        pool: ThreadPoolExecutor | None,
        size: int = 4 << 20,
    ) -> None:
        self.kind = kind
        self.ring_features = ring_features
        self.pool = pool
        self.memory = GuestMemory.create(size)
        self.bus = VirtioBus()
        self.vdev: VirtioDevice
        self.device: Device

    def plug(self, device: Device, driver: type[AnyDriver]) -> AnyDriver:
        """Put a device behind the transport and bind the driver."""
        if driver not in self.bus.drivers:
            self.bus.register_driver(driver)
        if self.pool is not None:
            self._run_later(device, self.pool)
        self.device = device
        self.vdev = connect(device, self.kind, self.memory)
        self.bus.register_device(self.vdev)
        bound = self.vdev.driver
        assert isinstance(bound, driver)
        return bound

    @staticmethod
    def _run_later(device: Device, pool: ThreadPoolExecutor) -> None:
        now = device.core.wake

        def wake(index: int) -> None:
            pool.submit(now, index)

        device.core.__dict__["wake"] = wake

    def unplug(self) -> None:
        """All drivers go, the thread ends, and the guest memory is as it was."""
        for vdev in list(self.bus.devices):
            self.bus.unregister_device(vdev)
        if self.pool is not None:
            self.pool.shutdown()
        assert self.memory.allocated == 0

    @property
    def held(self) -> int:
        """Bytes of the guest memory that take up memory of the system."""
        return os.fstat(self.memory.regions[0].region.fd).st_blocks * 512

    def touch(self) -> None:
        """Have every page of the guest memory there, full of ones."""
        entry = self.memory.regions[0]
        self.memory.view(entry.guest_addr, entry.size)[:] = b"\x01" * entry.size


def until(true: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait for what another thread does."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise VirtioError(f"not so after {seconds} s")
        time.sleep(0.001)
