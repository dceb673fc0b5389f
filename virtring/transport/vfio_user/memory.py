"""The client's memory: regions that come and go, and the queues whose rings lie in them."""

import errno
import logging
from collections import deque
from contextlib import suppress

from virtring.errors import MemoryInUse, VirtioError
from virtring.memory import GuestMemory, Region
from virtring.queue import QueueConfig
from virtring.queue.config import avail_bytes, desc_bytes, used_bytes
from virtring.transport.vfio_user.dma import Dma
from virtring.transport.vfio_user.message import DMA_MAP, DMA_UNMAP, Message, Refused
from virtring.transport.vfio_user.remote_queue import RemoteQueue
from virtring.transport.virtio_pci import VirtioPci

log = logging.getLogger(__name__)

#: Addresses, and bytes that are to be written there, in this order.
Owed = deque[tuple[int, bytes]]

#: VFIO_USER_F_DMA_REGION_*.
READABLE, WRITABLE = 1, 2
#: Most regions at a time. Each takes a descriptor of ours.
MAX_REGIONS = 512


class ClientMemory:
    """What DMA_MAP and DMA_UNMAP say, done to ``memory`` and the queues of ``pci``."""

    def __init__(self, memory: GuestMemory, pci: VirtioPci, dma: Dma) -> None:
        self.memory = memory
        self.pci = pci
        self.dma = dma
        #: Regions by address: size, and the mapping, None where the device cannot reach them.
        self.regions: dict[int, tuple[int, Region | None]] = {}
        #: Queues whose ring is not mapped just now: where they had got to, what they owe.
        self.lost: dict[int, tuple[QueueConfig, int, Owed]] = {}

    def close(self) -> None:
        """Take everything away."""
        for addr in list(self.regions):
            self._forget(addr)
        self.memory.close()

    def map(self, message: Message) -> bytes:
        """DMA_MAP."""
        _, flags, offset, addr, size = message.query(DMA_MAP)
        if not size or addr + size > 1 << 64 or len(message.fds) > 1 or flags & ~3:
            raise Refused(
                errno.EINVAL,
                f"{size:#x} bytes at {addr:#x}, flags {flags:#x}, {len(message.fds)} fds",
            )
        for other, (length, _) in self.regions.items():
            if addr < other + length and other < addr + size:
                raise Refused(errno.EEXIST, f"{size:#x} bytes at {addr:#x} overlap a region")
        if len(self.regions) >= MAX_REGIONS:
            raise Refused(errno.ENOSPC, f"more than {MAX_REGIONS} regions")
        region = None
        if flags & READABLE:
            region = self._mapped(message.fds, offset, addr, size, bool(flags & WRITABLE))
        self.regions[addr] = (size, region)
        if self.lost:
            # When this is answered: a client that waits for it serves no transfers.
            self.pci.core.work.post("lost", self._find_lost)
        return b""

    def _mapped(
        self, fds: list[int], offset: int, addr: int, size: int, writable: bool
    ) -> Region | None:
        try:
            if fds:
                region = Region.from_fd(fds[0], size, offset, writable=writable)
            else:
                # Sparse: it takes the memory that is used.
                region = Region.memfd(size, "shadow")
        except (VirtioError, OSError, OverflowError) as error:
            if not fds:
                log.info("%#x bytes at %#x stay out of reach: %s", size, addr, error)
                return None
            raise Refused(errno.EINVAL, str(error)) from error
        try:
            self.memory.add_region(addr, region, perm="rw" if writable else "r")
        except VirtioError as error:
            region.close()
            raise Refused(errno.EINVAL, str(error)) from error
        if not fds:
            self.dma.add(addr, size, writable)
        return region

    def unmap(self, message: Message) -> bytes:
        """DMA_UNMAP."""
        _, flags, addr, size = message.query(DMA_UNMAP)
        if flags or addr not in self.regions or self.regions[addr][0] != size:
            error = errno.EINVAL if flags else errno.ENOENT
            raise Refused(error, f"{size:#x} bytes at {addr:#x} are not mapped so")
        self._forget(addr)
        return message.payload[: DMA_UNMAP.size]

    def _forget(self, addr: int) -> None:
        size, region = self.regions.pop(addr)
        if region is None:
            return
        device = self.pci.device
        for index, queue in enumerate(device.queues):
            # Maps are cut up anew while a machine starts: the ring may be back in a moment.
            if queue is not None and lies_in(queue.config, addr, size):
                owed = queue.owed if isinstance(queue, RemoteQueue) else deque()
                self.lost[index] = queue.config, device.stop_queue(index), owed
        self.memory.remove_region(addr, size)
        self.dma.remove(addr)
        device.memory_changed()
        with suppress(MemoryInUse):
            # A chain that is held keeps it mapped until it is returned.
            region.close()

    def _find_lost(self) -> None:
        """Go on with queues whose ring is mapped again."""
        device = self.pci.device
        for index, (config, position, owed) in list(self.lost.items()):
            if device.queues[index] is not None or not device.core.queue_configs[index].enabled:
                # Reset, or set up anew, by the driver.
                self.lost.pop(index, None)
                continue
            try:
                self._settle(owed)
                device.start_queue(index, config, position)
            except VirtioError as error:
                log.debug("queue %d stays stopped: %s", index, error)
                continue
            self.lost.pop(index, None)
            device.core.wake(index)

    def _settle(self, owed: Owed) -> None:
        """Write what a queue owes its client; AddressError when its memory is not back yet."""
        while owed:
            addr, data = owed[0]
            self.memory.translate(addr, len(data), "w")
            if self.dma.covers(addr, len(data)):
                self.dma.put(addr, data)
            else:
                self.memory.write(addr, data)
            owed.popleft()


def lies_in(config: QueueConfig, addr: int, size: int) -> bool:
    """Is any part of the ring in these ``size`` bytes at ``addr``?"""
    areas = (
        (config.desc, desc_bytes(config.size)),
        (config.avail, avail_bytes(config.size, config.packed)),
        (config.used, used_bytes(config.size, config.packed)),
    )
    return any(start < addr + size and addr < start + length for start, length in areas)
