"""The driver of the block device (virtio 1.4, 5.2; Linux ``virtio_blk.c``)."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from virtring.device import VirtioDevice, VirtioDeviceId, VirtioDriver
from virtring.drivers.blk_io import BlkBatch, BlkQueue
from virtring.drivers.blk_request import BlkRequest
from virtring.errors import InvalidArgument, NotSupported, WrongState
from virtring.queue import Virtqueue
from virtring.spec.blk import (
    BLK_CONFIG,
    BLK_DISCARD_WRITE_ZEROES,
    BLK_ID_BYTES,
    BLK_SECTOR_SIZE,
    BlkFeature,
    BlkType,
    BlkWriteZeroesFlag,
)
from virtring.spec.ids import DeviceID

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

#: Bytes of one request of :meth:`BlkDriver.read` and ``write``, and how many go at once.
CHUNK = 256 << 10
WINDOW = 8


@dataclass(frozen=True)
class BlkLimits:
    """What the device says of itself (5.2.4); 0 where the feature was not negotiated.

    block_size, physical_block_size, min_io, opt_io: bytes. size_max: most bytes of a segment.
    seg_max: most segments. The discard and write_zeroes numbers are sectors and segments.
    """

    block_size: int
    physical_block_size: int
    min_io: int
    opt_io: int
    size_max: int
    seg_max: int
    max_discard_sectors: int
    max_discard_seg: int
    discard_sector_alignment: int
    max_write_zeroes_sectors: int
    max_write_zeroes_seg: int
    write_zeroes_may_unmap: bool


class BlkDriver(VirtioDriver):
    """A disk of ``capacity`` sectors of 512 bytes.

    :meth:`read`, :meth:`write`, :meth:`flush` and friends wait for the device, up to ``timeout``
    seconds (WaitTimeout). :meth:`start` gives a future instead, any number at a time. For the
    highest throughput take a queue with :meth:`polled`. Raises RequestFailed when the device
    answers with an error, WrongState once the device was removed.
    """

    name = "virtio_blk"
    id_table = (VirtioDeviceId(DeviceID.BLOCK),)
    feature_table = (
        BlkFeature.SIZE_MAX,
        BlkFeature.SEG_MAX,
        BlkFeature.RO,
        BlkFeature.BLK_SIZE,
        BlkFeature.FLUSH,
        BlkFeature.TOPOLOGY,
        BlkFeature.CONFIG_WCE,
        BlkFeature.MQ,
        BlkFeature.DISCARD,
        BlkFeature.WRITE_ZEROES,
    )

    #: Most queues that are used, however many the device has.
    MAX_QUEUES = 64

    def __init__(self, vdev: VirtioDevice) -> None:
        super().__init__(vdev)
        self._lock = Lock()
        self._waiting: deque[BlkRequest] = deque()
        self._started: dict[int, BlkRequest] = {}
        self._next_token = 0
        self._next_queue = 0
        self._removed = True

    # Binding.

    def probe(self) -> None:
        vdev = self.vdev
        self.limits = self._read_limits()
        self.capacity = int(vdev.cread(BLK_CONFIG, "capacity"))
        self.read_only = vdev.has_feature(BlkFeature.RO)
        count = 1
        if vdev.has_feature(BlkFeature.MQ):
            count = max(1, min(int(vdev.cread(BLK_CONFIG, "num_queues")), self.MAX_QUEUES))
        vqs = vdev.find_vqs([self._done] * count, [f"req.{i}" for i in range(count)])
        self._longest = self.limits.size_max or 0xFFFFFFFF
        self.queues = [
            BlkQueue(vq, self.capacity, max_len=self._longest) for vq in vqs if vq is not None
        ]
        self._taken: set[int] = set()
        self._one = BlkBatch(1)
        self._used = BlkBatch(max(queue.depth for queue in self.queues))
        self._removed = False

    def remove(self) -> None:
        with self._lock:
            self._removed = True
            lost = [*self._started.values(), *self._waiting]
            self._started.clear()
            self._waiting.clear()
        try:
            super().remove()
        finally:
            self.queues = []
            for request in lost:
                request.fail(WrongState("the disk was removed"))

    def config_changed(self) -> None:
        """The disk has another size (5.2.5.1)."""
        capacity = int(self.vdev.cread(BLK_CONFIG, "capacity"))
        with self._lock:
            self.capacity = capacity
            for queue in self.queues:
                queue.capacity = capacity

    def _read_limits(self) -> BlkLimits:
        cread, has = self.vdev.cread, self.vdev.has_feature

        def number(feature: BlkFeature, field: str) -> int:
            # Without its feature a field need not be there (virtio 1.4, 2.5.1).
            return int(cread(BLK_CONFIG, field)) if has(feature) else 0

        block = number(BlkFeature.BLK_SIZE, "blk_size") or BLK_SECTOR_SIZE
        topology = cread(BLK_CONFIG, "topology") if has(BlkFeature.TOPOLOGY) else None
        return BlkLimits(
            block_size=block,
            physical_block_size=block << int(topology["physical_block_exp"]) if topology else block,
            min_io=block * int(topology["min_io_size"]) if topology else 0,
            opt_io=block * int(topology["opt_io_size"]) if topology else 0,
            size_max=number(BlkFeature.SIZE_MAX, "size_max"),
            seg_max=number(BlkFeature.SEG_MAX, "seg_max"),
            max_discard_sectors=number(BlkFeature.DISCARD, "max_discard_sectors"),
            max_discard_seg=number(BlkFeature.DISCARD, "max_discard_seg"),
            discard_sector_alignment=number(BlkFeature.DISCARD, "discard_sector_alignment"),
            max_write_zeroes_sectors=number(BlkFeature.WRITE_ZEROES, "max_write_zeroes_sectors"),
            max_write_zeroes_seg=number(BlkFeature.WRITE_ZEROES, "max_write_zeroes_seg"),
            write_zeroes_may_unmap=bool(number(BlkFeature.WRITE_ZEROES, "write_zeroes_may_unmap")),
        )

    # Requests as futures.

    def start(
        self, type: BlkType, sector: int = 0, *, size: int = 0, data: "ReadableBuffer | None" = None
    ) -> BlkRequest:
        """Start one request: ``size`` bytes to read, or ``data`` to write.

        It waits for its turn when all queues are full. OutOfMemory when guest memory has no room
        for its data, InvalidArgument for numbers that a driver must not send.
        """
        if self._removed:
            raise WrongState("the disk was removed")
        if data is not None:
            data = memoryview(data).cast("B")
            size = len(data)
        self._check(type, sector, size)
        request = BlkRequest(self.vdev.memory, type, sector, size, data)
        with self._lock:
            usable = not self._removed and len(self._taken) < len(self.queues)
            if usable:
                self._waiting.append(request)
                kicks = self._pump()
        if not usable:
            request.release()
            raise WrongState("the disk was removed, or all of its queues are taken by polled()")
        self._notify(kicks)
        return request

    def _check(self, type: BlkType, sector: int, size: int) -> None:
        if sector < 0 or size < 0 or (size == 0) != (type == BlkType.FLUSH):
            raise InvalidArgument(f"{type.name} of {size} bytes at sector {sector}")
        if size > self._longest:
            raise InvalidArgument(f"{size} bytes; one request takes {self._longest}")
        if type in (BlkType.IN, BlkType.OUT):
            end = sector + size // BLK_SECTOR_SIZE
            if size % BLK_SECTOR_SIZE or end > self.capacity:
                raise InvalidArgument(
                    f"{size} bytes from sector {sector} on: it takes whole sectors of 512 bytes, of"
                    f" which the disk has {self.capacity}"
                )

    def _pump(self) -> list[Virtqueue]:
        """Submit what waits, with the lock held; the queues to notify."""
        kicks = []
        one = self._one
        full = 0
        while self._waiting and full < len(self.queues):
            self._next_queue = (self._next_queue + 1) % len(self.queues)
            queue = self.queues[self._next_queue]
            request = self._waiting[0]
            one.type[0], one.sector[0] = request.type, request.sector
            one.addr[0], one.len[0] = request.addr, request.size
            one.token[0] = self._next_token
            if self._next_queue in self._taken or not queue.submit(one, 0, 1):
                full += 1
                continue
            full = 0
            self._started[self._next_token] = self._waiting.popleft()
            self._next_token += 1
            if queue.vq.kick_prepare():
                kicks.append(queue.vq)
        return kicks

    def _notify(self, vqs: list[Virtqueue]) -> None:
        # Not with the lock held: the answer may come before this returns.
        for vq in vqs:
            vq.notify()

    def _done(self, vq: Virtqueue) -> None:
        used = self._used
        finished: list[tuple[BlkRequest, int]] = []
        kicks: list[Virtqueue] = []
        with self._lock:
            if self._removed or vq.index in self._taken:
                return
            queue = self.queues[vq.index]
            while True:
                vq.disable_cb()
                while count := queue.reap(used):
                    for token, status in zip(used.token[:count], used.status[:count], strict=True):
                        finished.append((self._started.pop(int(token)), int(status)))
                if vq.enable_cb():
                    break
            kicks = self._pump()
        for request, status in finished:
            request.finish(status)
        self._notify(kicks)

    # Requests one waits for.

    def read(self, sector: int, count: int, timeout: float | None = 30.0) -> bytes:
        """``count`` sectors from ``sector`` on."""
        out = bytearray(max(0, count) * BLK_SECTOR_SIZE)
        self.readinto(sector, out, timeout)
        return bytes(out)

    def readinto(self, sector: int, out: "WriteableBuffer", timeout: float | None = 30.0) -> int:
        """Fill ``out``, whole sectors, from ``sector`` on; its bytes."""
        view = memoryview(out).cast("B")

        def take(offset: int, request: BlkRequest) -> None:
            data = request.wait(timeout)
            view[offset : offset + len(data)] = data

        self._range(sector, len(view))
        window: deque[tuple[int, BlkRequest]] = deque()
        for offset, size in self._pieces(len(view)):
            if len(window) == WINDOW:
                take(*window.popleft())
            at = sector + offset // BLK_SECTOR_SIZE
            window.append((offset, self.start(BlkType.IN, at, size=size)))
        while window:
            take(*window.popleft())
        return len(view)

    def write(self, sector: int, data: "ReadableBuffer", timeout: float | None = 30.0) -> int:
        """Write ``data``, whole sectors, from ``sector`` on; its bytes."""
        if self.read_only:
            raise NotSupported("the disk is read-only")
        view = memoryview(data).cast("B")
        self._range(sector, len(view))
        window: deque[BlkRequest] = deque()
        for offset, size in self._pieces(len(view)):
            if len(window) == WINDOW:
                window.popleft().wait(timeout)
            at = sector + offset // BLK_SECTOR_SIZE
            window.append(self.start(BlkType.OUT, at, data=view[offset : offset + size]))
        while window:
            window.popleft().wait(timeout)
        return len(view)

    def _range(self, sector: int, size: int) -> None:
        """All of it is checked before any of it is sent."""
        end = sector + size // BLK_SECTOR_SIZE
        if sector < 0 or size % BLK_SECTOR_SIZE or end > self.capacity:
            raise InvalidArgument(
                f"{size} bytes from sector {sector} on: it takes whole sectors of 512 bytes, of"
                f" which the disk has {self.capacity}"
            )

    def _pieces(self, size: int) -> Iterator[tuple[int, int]]:
        step = max(1, min(CHUNK, self._longest) // BLK_SECTOR_SIZE) * BLK_SECTOR_SIZE
        for offset in range(0, size, step):
            yield offset, min(step, size - offset)

    def flush(self, timeout: float | None = 30.0) -> None:
        """What was written before is on the disk when this returns.

        Without FLUSH every write was when it completed, so there is nothing to do.
        """
        if self.vdev.has_feature(BlkFeature.FLUSH):
            self.start(BlkType.FLUSH).wait(timeout)

    def get_id(self, timeout: float | None = 30.0) -> bytes:
        """The disk's serial number, up to 20 bytes."""
        return self.start(BlkType.GET_ID, size=BLK_ID_BYTES).wait(timeout).split(b"\0")[0]

    def discard(self, sector: int, count: int, timeout: float | None = 30.0) -> None:
        """The data of these sectors is not needed any more. NotSupported without DISCARD."""
        limits = self.limits
        self._clear(BlkType.DISCARD, sector, count, limits.max_discard_sectors, 0, timeout)

    def write_zeroes(
        self, sector: int, count: int, *, unmap: bool = False, timeout: float | None = 30.0
    ) -> None:
        """These sectors read as zeros from now on; with ``unmap`` the device may give up their
        space. NotSupported without WRITE_ZEROES."""
        most, flags = self.limits.max_write_zeroes_sectors, BlkWriteZeroesFlag.UNMAP if unmap else 0
        self._clear(BlkType.WRITE_ZEROES, sector, count, most, flags, timeout)

    def _clear(
        self, type: BlkType, sector: int, count: int, most: int, flags: int, timeout: float | None
    ) -> None:
        if not self.vdev.has_feature(BlkFeature[type.name]):
            raise NotSupported(f"the disk has no {type.name}")
        if self.read_only:
            raise NotSupported("the disk is read-only")
        self._range(sector, count * BLK_SECTOR_SIZE)
        segment = np.zeros(1, BLK_DISCARD_WRITE_ZEROES)
        segment["flags"] = flags
        for at in range(sector, sector + count, max(1, most)):
            segment["sector"] = at
            segment["num_sectors"] = min(max(1, most), sector + count - at)
            self.start(type, data=segment.tobytes()).wait(timeout)

    # The cache.

    @property
    def writeback(self) -> bool:
        """Does a write wait in a cache for :meth:`flush`? (5.2.5.1)

        Setting it needs CONFIG_WCE, else NotSupported.
        """
        if self.vdev.has_feature(BlkFeature.CONFIG_WCE):
            return bool(self.vdev.cread(BLK_CONFIG, "writeback"))
        return self.vdev.has_feature(BlkFeature.FLUSH)

    @writeback.setter
    def writeback(self, value: bool) -> None:
        if not self.vdev.has_feature(BlkFeature.CONFIG_WCE):
            raise NotSupported("the disk cannot switch its cache")
        self.vdev.cwrite(BLK_CONFIG, "writeback", int(value))

    # A queue of one's own.

    @contextmanager
    def polled(self, index: int = 0, depth: int | None = None) -> Iterator[BlkQueue]:
        """Queue ``index`` for batches: submit, kick and reap in your thread, no callbacks.

        depth: most requests in flight, by default as many as the ring has entries; the device has
        less to fetch with a third of it or fewer.

        The other calls use the other queues meanwhile; with none left they raise WrongState, as
        this does while requests of theirs are in flight on the queue. Reap all before the end:
        else WrongState, and the queue stays taken.
        """
        if not 0 <= index < len(self.queues):
            raise InvalidArgument(f"queue {index}; the disk has {len(self.queues)}")
        with self._lock:
            queue = self.queues[index]
            if self._removed or index in self._taken or queue.in_flight:
                raise WrongState(f"queue {index} is in use, or the disk was removed")
            queue.limit = queue.depth if depth is None else depth
            self._taken.add(index)
            queue.vq.disable_cb()
        try:
            yield queue
        finally:
            with self._lock:
                if not queue.in_flight:
                    self._taken.discard(index)
                    queue.limit = queue.depth
                    if not self._removed:
                        queue.vq.enable_cb()
        if queue.in_flight:
            raise WrongState(f"queue {index}: {queue.in_flight} requests were not reaped")
