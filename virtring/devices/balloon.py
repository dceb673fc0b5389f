"""The traditional memory balloon (virtio 1.4, 5.5): pages that the driver does without."""

import logging
import mmap
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from virtring.device import RING_OFFER, Device
from virtring.errors import AddressError, InvalidArgument, NotSupported
from virtring.queue import Chain, DeviceQueue
from virtring.spec.balloon import (
    BALLOON_CONFIG,
    BALLOON_PFN,
    BALLOON_PFN_SHIFT,
    BALLOON_STAT,
    BalloonFeature,
    BalloonQueue,
    BalloonStat,
)
from virtring.spec.ids import DeviceID

log = logging.getLogger(__name__)

PAGE = 1 << BALLOON_PFN_SHIFT
OFFER = (
    BalloonFeature.MUST_TELL_HOST
    | BalloonFeature.STATS_VQ
    | BalloonFeature.DEFLATE_ON_OOM
    | BalloonFeature.PAGE_REPORTING
)
#: Bytes taken from a chain at once; a driver can make chains as long as it likes.
PIECE = 4096
STATS = tuple(int(stat) for stat in BalloonStat)
#: Where ``actual`` is in the configuration.
ACTUAL = 4


class Balloon(Device):
    """Asks the driver for pages (:meth:`set_target`) and gives them back to the system.

    features: bits of BalloonFeature on offer. on_stats: called with the driver's statistics (tag to
    value) whenever they come, before ``handle_queue`` returns; also in :attr:`stats`. host_page:
    bytes of a page of the system, 4096 or a multiple; smaller ones of the driver are gathered.

    ``pages`` are the numbers (guest address / 4096) of what is in the balloon, ``discarded`` the
    bytes given back so far, ``ignored`` how many page numbers were of no memory.
    """

    device_id = DeviceID.BALLOON
    queue_names = ("inflate", "deflate", "stats", "reporting", "reporting")

    def __init__(
        self,
        *,
        features: int = OFFER,
        ring_features: int = RING_OFFER,
        on_stats: Callable[[Mapping[int, int]], object] | None = None,
        host_page: int = mmap.PAGESIZE,
        queue_size: int = 128,
    ) -> None:
        if host_page < PAGE or host_page & (host_page - 1):
            raise InvalidArgument(f"host_page is {host_page}; it takes a power of two from 4096")
        if int(features) & ~int(OFFER):
            raise InvalidArgument(f"features {int(features):#x}; this balloon can do {OFFER!r}")
        super().__init__(
            features=features,
            ring_features=ring_features,
            queue_size=queue_size,
            config=np.zeros((), BALLOON_CONFIG),
        )
        self.on_stats = on_stats
        self.host_page = host_page
        self.pages: set[int] = set()
        self.stats: dict[int, int] = {}
        self.discarded = 0
        self.ignored = 0
        self._stats_chain: Chain | None = None
        self._stats_asked = False

    # For whoever owns the device.

    @property
    def target(self) -> int:
        """Pages of 4096 bytes that the balloon should have."""
        return int(np.frombuffer(self.core.config, BALLOON_CONFIG)[0]["num_pages"])

    @property
    def actual(self) -> int:
        """Pages that it has, as the driver says."""
        return int(np.frombuffer(self.core.config, BALLOON_CONFIG)[0]["actual"])

    def set_target(self, pages: int) -> None:
        """Ask for a balloon of that many pages of 4096 bytes. From any thread."""
        if not 0 <= pages < 1 << 32:
            raise InvalidArgument(f"{pages} pages; it takes 0 to 2**32 - 1")
        self.update_config(0, pages.to_bytes(4, "little"))

    def request_stats(self) -> None:
        """Ask for new statistics; NotSupported when the driver gives none. From any thread."""
        if not self.has(BalloonFeature.STATS_VQ):
            raise NotSupported("STATS_VQ was not negotiated")
        self._stats_asked = True
        self.wake(BalloonQueue.STATSQ)

    # What the driver does.

    def config_written(self, offset: int, data: bytes) -> None:
        # Some transports bring the whole configuration; the rest of it is not the driver's.
        start, end = max(offset, ACTUAL), min(offset + len(data), ACTUAL + 4)
        if start < end:
            self.core.config[start:end] = data[start - offset : end - offset]

    def handle_queue(self, index: int, queue: DeviceQueue) -> None:
        # Linux closes the gap that a missing statistics queue leaves, the standard does not. As
        # long as there is no queue for hints, any other number can only mean reporting.
        if index == BalloonQueue.STATSQ and self.has(BalloonFeature.STATS_VQ):
            self._handle_stats(queue)
            return
        for chain in self.chains(queue):
            if index == BalloonQueue.INFLATEQ:
                for pfns in page_numbers(chain):
                    self._inflate(pfns)
            elif index == BalloonQueue.DEFLATEQ:
                for pfns in page_numbers(chain):
                    self.pages.difference_update(pfns.tolist())
            elif self.has(BalloonFeature.PAGE_REPORTING):
                self._reported(chain)
            chain.return_(0)

    def _inflate(self, pfns: NDArray[np.uint32]) -> None:
        pfns = np.unique(pfns)
        for run in np.split(pfns, np.flatnonzero(np.diff(pfns) != 1) + 1):
            self._take(int(run[0]), len(run))

    def _take(self, first: int, count: int) -> None:
        try:
            self.memory.translate(first * PAGE, count * PAGE, "w")
        except AddressError:
            if count == 1:
                self.ignored += 1
                return
            for pfn in range(first, first + count):
                self._take(pfn, 1)
            return
        self.pages.update(range(first, first + count))
        each = self.host_page // PAGE
        if each == 1:
            self._discard(first * PAGE, count * PAGE)
            return
        for start in range(first // each * each, first + count, each):
            if self.pages.issuperset(range(start, start + each)):
                self._discard(start * PAGE, self.host_page)

    def _reported(self, chain: Chain) -> None:
        for descriptor in chain:
            if descriptor.writable:
                self._discard(descriptor.addr, descriptor.len)

    def _discard(self, addr: int, length: int) -> None:
        try:
            self.discarded += self.memory.discard(addr, length)
        except NotSupported as error:
            # The balloon still says what the driver does without; the memory is only not free.
            log.debug("balloon: %s", error)
        except AddressError:
            # A host page that reaches over the end of the memory.
            log.debug("balloon: no whole page at %#x", addr)

    def _handle_stats(self, queue: DeviceQueue) -> None:
        # The driver has one buffer, which stays here until statistics are wanted again.
        for chain in self.chains(queue):
            if self._stats_chain is not None:
                self._stats_chain.return_(0)
            self._stats_chain = chain
            data = chain.read(PIECE)
            entries = np.frombuffer(data, BALLOON_STAT, len(data) // BALLOON_STAT.itemsize)
            self.stats = {int(tag): int(value) for tag, value in entries.tolist() if tag in STATS}
            if self.on_stats is not None:
                self.on_stats(self.stats)
        if self._stats_asked and self._stats_chain is not None:
            self._stats_asked = False
            self._stats_chain.return_(0)
            self._stats_chain = None

    def queue_stopped(self, index: int, queue: DeviceQueue) -> None:
        if index == BalloonQueue.STATSQ:
            self._stats_chain = None

    def reset(self) -> None:
        self.pages.clear()
        self.stats = {}
        self._stats_asked = False
        self.core.config[ACTUAL : ACTUAL + 4] = bytes(4)


def page_numbers(chain: Chain) -> Iterator[NDArray[np.uint32]]:
    """The page numbers in a chain, a piece at a time; a number that is cut off is left out."""
    end = chain.readable_bytes // BALLOON_PFN.itemsize * BALLOON_PFN.itemsize
    for offset in range(0, end, PIECE):
        yield np.frombuffer(chain.read(min(PIECE, end - offset), offset), BALLOON_PFN)
