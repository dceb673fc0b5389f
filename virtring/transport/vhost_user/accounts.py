"""The two accounts that a back end keeps for its front end, in memory that both map."""

import os
from collections.abc import Callable

from virtring.errors import VirtioError
from virtring.memory import GuestMemory, Region
from virtring.queue import DeviceQueue, QueueConfig
from virtring.transport.unix import ProtocolError
from virtring.transport.vhost_user.dirty_log import DirtyLog, DirtyPages
from virtring.transport.vhost_user.inflight import Inflight, inflight_bytes
from virtring.transport.vhost_user.message import InflightArea
from virtring.transport.vhost_user.vring import Vring
from virtring.transport.vhost_user.watched import WatchedQueue


def map_shared(fd: int, size: int, offset: int, what: str) -> memoryview:
    """``size`` bytes of a file from ``offset`` on; ProtocolError when it does not have them.

    The mapping lives as long as views of it do.
    """
    page = os.sysconf("SC_PAGESIZE")
    lead = offset % page
    try:
        have = os.fstat(fd).st_size
        if size <= 0 or offset + size > have:
            raise ProtocolError(f"{what}: {size} bytes at {offset} of a file of {have}")
        return memoryview(Region.from_fd(fd, size + lead, offset - lead))[lead:]
    except (OSError, OverflowError, VirtioError) as error:
        raise ProtocolError(f"{what} cannot be mapped: {error}") from error


class Accounts:
    """In-flight tracking and the dirty log of one session.

    logging: was the dirty log negotiated? Then queues remember what they write from the start.
    """

    def __init__(self) -> None:
        self.logging = False
        self.log_buffers = False
        self._pages: DirtyPages | None = None
        self._inflight: memoryview | None = None
        self._size = 0
        self._queues = 0

    def clear(self) -> None:
        """Let go of the shared memory."""
        self._pages = self._inflight = None
        self.log_buffers = False

    # In-flight tracking.

    def new_inflight(self, queues: int, size: int) -> InflightArea:
        """Memory for so many rings of up to ``size`` entries; the descriptor is the caller's."""
        if not queues or not 1 <= size <= 32768:
            raise ProtocolError(f"in-flight tracking of {queues} rings of {size} entries")
        length = queues * inflight_bytes(size)
        fd = os.memfd_create("virtring-inflight", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, length)
        except BaseException:
            os.close(fd)
            raise
        return InflightArea(fd, length, 0, queues, size)

    def set_inflight(self, area: InflightArea) -> None:
        """Use memory that :meth:`new_inflight` made, perhaps in a process that is gone."""
        if not 1 <= area.size <= 32768 or area.length < area.queues * inflight_bytes(area.size):
            raise ProtocolError(
                f"in-flight tracking of {area.queues} rings of {area.size} entries in"
                f" {area.length} bytes"
            )
        self._inflight = map_shared(area.fd, area.length, area.offset, "in-flight tracking")
        self._size, self._queues = area.size, area.queues

    def forget_inflight(self) -> None:
        """The device was reset: nothing is in flight, and rings begin anew."""
        self._inflight = None

    def _part(self, vring: Vring, packed: bool) -> Inflight | None:
        if self._inflight is None or vring.index >= self._queues:
            return None
        stride = inflight_bytes(self._size)
        part = self._inflight[vring.index * stride : (vring.index + 1) * stride]
        if vring.stopped is not None and vring.stopped != vring.base:
            # Not where it was stopped: another ring, as after a queue reset.
            part[:] = bytes(stride)
        return Inflight(part, self._size, packed)

    # The dirty log.

    def set_log(self, fd: int, size: int, offset: int) -> None:
        """Where pages are marked; from now on, if logging is on."""
        self._pages = DirtyPages(map_shared(fd, size, offset, "the dirty log"))

    def update(self, queue: DeviceQueue | None, log: int | None) -> None:
        """Tell a queue what to mark; ``log`` is where its used ring's writes count, if at all."""
        if isinstance(queue, WatchedQueue) and queue.log is not None:
            self._set(queue.log, log)

    def _set(self, log: DirtyLog, used: int | None) -> None:
        log.pages = self._pages
        log.buffers = self.log_buffers
        log.used = used

    # Queues.

    def maker(self, vring: Vring) -> Callable[..., DeviceQueue] | None:
        """What makes the ring's queue and puts it into its place; None when a plain one will do."""
        if self._inflight is None and not self.logging:
            return None

        def make(memory: GuestMemory, config: QueueConfig, **options: object) -> DeviceQueue:
            queue = WatchedQueue(memory, config, **options)  # type: ignore[arg-type]
            log = DirtyLog() if self.logging else None
            if log is not None:
                self._set(log, vring.log)
            try:
                queue.begin(self._part(vring, config.packed), log, vring.base)
            except BaseException:
                queue.close()
                raise
            return queue

        return make
