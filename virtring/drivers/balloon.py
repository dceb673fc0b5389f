"""The driver of the traditional memory balloon (virtio 1.4, 5.5; Linux ``virtio_balloon.c``).

Nothing here waits in a callback: each answer of the device starts the next request.
"""

from collections.abc import Callable, Mapping
from threading import Condition
from typing import NamedTuple

import numpy as np

from virtring.device import VirtioDevice, VirtioDeviceId, VirtioDriver
from virtring.errors import (
    InvalidArgument,
    NotSupported,
    OutOfMemory,
    VirtioError,
    WaitTimeout,
    WrongState,
)
from virtring.memory import BufferPool
from virtring.queue import Virtqueue
from virtring.spec.balloon import (
    BALLOON_CONFIG,
    BALLOON_PFN,
    BALLOON_PFN_SHIFT,
    BALLOON_STAT,
    BalloonFeature,
    BalloonStat,
)
from virtring.spec.ids import DeviceID
from virtring.spec.status import Status

PAGE = 1 << BALLOON_PFN_SHIFT
#: Pages told of in one request (Linux VIRTIO_BALLOON_ARRAY_PFNS_MAX).
PFNS_MAX = 256
#: Statistics in one buffer, which is as long as the one for page numbers.
STATS_MAX = PFNS_MAX * BALLOON_PFN.itemsize // BALLOON_STAT.itemsize
#: Stretches of free memory in one report (Linux PAGE_REPORTING_CAPACITY), and their most bytes.
REPORT_MAX = 32
REPORT_BYTES = 1 << 30


class _Request(NamedTuple):
    """What the device is being told: pages that go into the balloon, or come out of it."""

    inflate: bool
    pages: list[int]


class BalloonDriver(VirtioDriver):
    """Takes pages of 4096 bytes from the guest memory's allocator into the balloon, and back.

    The size the device wants is followed as it changes. statistics: called for what the device is
    told about the memory's use, tag (BalloonStat) to value; the allocator's figures by default.
    ``pages`` are the guest addresses of the pages in the balloon.
    """

    name = "balloon"
    id_table = (VirtioDeviceId(DeviceID.BALLOON),)
    feature_table = (
        BalloonFeature.MUST_TELL_HOST,
        BalloonFeature.STATS_VQ,
        BalloonFeature.DEFLATE_ON_OOM,
        BalloonFeature.PAGE_REPORTING,
    )

    #: Seconds that removal waits for the device to take notice of the last pages.
    FAREWELL = 5.0

    def __init__(self, vdev: VirtioDevice) -> None:
        super().__init__(vdev)
        self.memory = vdev.memory
        self.statistics: Callable[[], Mapping[int, int]] = self.memory_statistics
        self.pages: list[int] = []
        self.target = 0
        self._asked = 0
        #: The guest memory had no more pages for the balloon.
        self.starved = False
        self._lock = Condition()
        self._request: _Request | None = None
        self._report: list[int] | None = None
        self._removed = False
        self._pool: BufferPool | None = None

    def memory_statistics(self) -> dict[int, int]:
        """What the allocator of the guest memory knows, in bytes."""
        free = self.memory.available
        total = sum(entry.size for entry in self.memory.regions)
        return {BalloonStat.MEMFREE: free, BalloonStat.MEMTOT: total, BalloonStat.AVAIL: free}

    def probe(self) -> None:
        stats = self.vdev.has_feature(BalloonFeature.STATS_VQ)
        reporting = self.vdev.has_feature(BalloonFeature.PAGE_REPORTING)
        found = self.vdev.find_vqs(
            [self._told, self._told, self._stats_wanted, None, self._reported],
            [
                "inflate",
                "deflate",
                "stats" if stats else None,
                None,
                "reporting" if reporting else None,
            ],
        )
        self._inflate, self._deflate, self._stats, _, self._reporting = found
        self._pool = BufferPool(self.memory, 2, PFNS_MAX * BALLOON_PFN.itemsize)
        self._pfns, self._stats_buffer = self._pool.get(), self._pool.get()
        self._request = self._report = None
        self._removed = self.starved = False
        if self._stats is not None:
            self._collect_stats()
            self._add_stats(self._stats)
        # The device looks at every queue when it hears this; no kick is needed.
        self.vdev.ready()
        self.config_changed()

    # The size.

    def config_changed(self) -> None:
        with self._lock:
            self.target = self._asked = int(self.vdev.cread(BALLOON_CONFIG, "num_pages"))
            self.starved = False
        self._step()

    def settle(self, timeout: float = 5.0) -> int:
        """Wait until the balloon has the size wanted or memory has run out; its pages then.

        WaitTimeout after ``timeout`` seconds.
        """
        # The device may have changed its mind while the interrupt that says so waits for another.
        if self.vdev.cread(BALLOON_CONFIG, "num_pages") != self._asked:
            self.config_changed()
        with self._lock:
            if not self._lock.wait_for(self._settled, timeout):
                raise WaitTimeout(
                    f"the balloon has {len(self.pages)} of {self.target} pages after {timeout} s"
                )
            return len(self.pages)

    def _settled(self) -> bool:
        if self._removed:
            raise WrongState("the balloon was removed")
        return self._request is None and (self.starved or len(self.pages) == self.target)

    def out_of_memory(self, pages: int = PFNS_MAX) -> int:
        """Take up to ``pages`` pages back because memory is short; how many are on their way.

        They stay out until the device changes the size again. NotSupported unless DEFLATE_ON_OOM
        was negotiated. (Linux ``virtio_balloon_oom_notify``)
        """
        if not self.vdev.has_feature(BalloonFeature.DEFLATE_ON_OOM):
            raise NotSupported("DEFLATE_ON_OOM was not negotiated")
        with self._lock:
            count = min(pages, len(self.pages))
            self.target = len(self.pages) - count
        self._step()
        return count

    def _step(self) -> None:
        """Tell the device of the next pages, unless it is still being told of others."""
        with self._lock:
            if self._request is not None or self._removed:
                return
            missing = self.target - len(self.pages)
            self.starved = self.starved and missing > 0
            vq = self._inflate if missing > 0 else self._deflate
            pages = self._next_pages(missing)
            if not pages or vq is None:
                self._lock.notify_all()
                return
            pfns = np.array(pages, np.uint64) >> np.uint64(BALLOON_PFN_SHIFT)
            self._pfns.len = len(pages) * BALLOON_PFN.itemsize
            np.frombuffer(self._pfns.view, BALLOON_PFN)[:] = pfns
            try:
                vq.add_outbuf(self._pfns)
            except VirtioError:
                self._put_back(_Request(missing > 0, pages))
                raise
            self._request = _Request(missing > 0, pages)
            kick = vq.kick_prepare()
        if kick:
            vq.notify()

    def _next_pages(self, missing: int) -> list[int]:
        if missing < 0:
            count = max(missing, -PFNS_MAX)
            pages = self.pages[count:]
            del self.pages[count:]
            return pages
        pages = []
        while len(pages) < min(missing, PFNS_MAX):
            try:
                page = self.memory.alloc(PAGE, PAGE)
            except OutOfMemory:
                self.starved = True
                break
            if page >> BALLOON_PFN_SHIFT >= 1 << 32:
                # It has no 32-bit number, and neither have those behind it.
                self.memory.free(page)
                self.starved = True
                break
            pages.append(page)
        return pages

    def _put_back(self, request: _Request) -> None:
        if not request.inflate:
            self.pages += request.pages
            return
        for page in request.pages:
            self.memory.free(page)

    def _told(self, vq: Virtqueue) -> None:
        with self._lock:
            if self._removed or vq.get_buf() is None or self._request is None:
                return
            # A page is used again only once the device knows, MUST_TELL_HOST or not.
            self._put_back(_Request(not self._request.inflate, self._request.pages))
            self._request = _Request(True, [])
            actual = len(self.pages)
        try:
            self.vdev.cwrite(BALLOON_CONFIG, "actual", actual)
        finally:
            with self._lock:
                self._request = None
                self._lock.notify_all()
        self._step()

    # Statistics.

    def _stats_wanted(self, vq: Virtqueue) -> None:
        with self._lock:
            if self._removed or vq.get_buf() is None:
                return
        try:
            self._collect_stats()
        finally:
            # If there are none, the last ones again: there is always a buffer on this queue.
            with self._lock:
                kick = not self._removed and self._add_stats(vq)
            if kick:
                vq.notify()

    def _collect_stats(self) -> None:
        values = self.statistics()
        try:
            data = np.array([(int(tag), value) for tag, value in values.items()], BALLOON_STAT)
        except (OverflowError, TypeError, ValueError) as error:
            raise InvalidArgument(f"statistics {values!r}: {error}") from None
        if not 1 <= len(data) <= STATS_MAX:
            raise InvalidArgument(f"{len(data)} statistics; it takes 1 to {STATS_MAX}")
        self._stats_buffer.len = data.nbytes
        self._stats_buffer.view[:] = data.tobytes()

    def _add_stats(self, vq: Virtqueue) -> bool:
        vq.add_outbuf(self._stats_buffer)
        return vq.kick_prepare()

    # Free pages.

    def report_free_pages(self, timeout: float = 5.0) -> int:
        """Tell the device which memory is free now, so that the system can have it; in bytes.

        Up to 32 stretches of whole pages, the longest first. They cannot be allocated until the
        device has answered; their contents are lost. NotSupported unless PAGE_REPORTING was
        negotiated, WaitTimeout after ``timeout`` seconds.
        """
        vq = self._reporting
        if vq is None:
            raise NotSupported("PAGE_REPORTING was not negotiated")
        with self._lock:
            if self._removed or self._report is not None:
                raise WrongState("the balloon was removed, or is reporting already")
            stretches = self._isolate(min(REPORT_MAX, vq.vring_size))
            if not stretches:
                return 0
            self._report = [addr for addr, _ in stretches]
            try:
                vq.add_inbuf_premapped(stretches, self._report)
            except VirtioError:
                self._free_report()
                raise
            kick = vq.kick_prepare()
        if kick:
            vq.notify()
        with self._lock:
            if not self._lock.wait_for(lambda: self._report is None, timeout):
                raise WaitTimeout(f"the device took no notice of free pages for {timeout} s")
        return sum(length for _, length in stretches)

    def _isolate(self, most: int) -> list[tuple[int, int]]:
        stretches: list[tuple[int, int]] = []
        size = REPORT_BYTES
        while size >= PAGE and len(stretches) < most:
            try:
                stretches.append((self.memory.alloc(size, PAGE), size))
            except OutOfMemory:
                size //= 2
        return stretches

    def _reported(self, vq: Virtqueue) -> None:
        with self._lock:
            if not self._removed and vq.get_buf() is not None:
                self._free_report()

    def _free_report(self) -> None:
        for addr in self._report or ():
            self.memory.free(addr)
        self._report = None
        self._lock.notify_all()

    # The end.

    def remove(self) -> None:
        """Take all pages out of the balloon, with notice if the device still listens, and go."""
        with self._lock:
            self.target = 0
        try:
            if self._listening():
                self._step()
                with self._lock:
                    self._lock.wait_for(self._empty, self.FAREWELL)
        finally:
            with self._lock:
                self._removed = True
                self._lock.notify_all()
            super().remove()
            self._release()

    def _listening(self) -> bool:
        status = self.vdev.config.get_status(self.vdev)
        deaf = Status.NEEDS_RESET | Status.FAILED | Status.SUSPEND
        broken = any(vq.is_broken for vq in self.vdev.vqs)
        return Status.DRIVER_OK in status and not status & deaf and not broken

    def _empty(self) -> bool:
        return self._request is None and not self.pages

    def _release(self) -> None:
        with self._lock:
            if self._request is not None:
                self.pages += self._request.pages
            for page in self.pages:
                self.memory.free(page)
            self.pages.clear()
            self._request = None
            self._free_report()
        if self._pool is not None:
            self._pool = None
            del self._pfns, self._stats_buffer
