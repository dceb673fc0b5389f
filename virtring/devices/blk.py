"""The block device (virtio 1.4, 5.2): a file or block device as a disk."""

import fcntl
import os
import stat
import struct
from pathlib import Path

import numpy as np

from virtring.device import RING_OFFER, Device
from virtring.device.burst import BurstWorker
from virtring.devices.blk_io import BlkIo
from virtring.errors import InvalidArgument
from virtring.queue import Batch, DeviceQueue
from virtring.spec.blk import BLK_CONFIG, BLK_SECTOR_SIZE, BlkFeature
from virtring.spec.features import Feature
from virtring.spec.ids import DeviceID

#: Bytes of data after which requests are completed while others of the burst still wait.
BUDGET = 256 << 10
#: A ring that a driver may choose all the same, such as QEMU's default. A request of more
#: segments than its ring has entries breaks the ring (2.7.5.3.1), and Linux asks no more than this.
LEAST_RING = 128
#: Most segments and sectors of one DISCARD or WRITE_ZEROES request.
MAX_SEGMENTS = 16
MAX_SECTORS = 1 << 22
#: ioctl that tells the bytes of a block device (Linux BLKGETSIZE64).
BLKGETSIZE64 = 0x80081272

#: Where ``writeback`` is in the configuration.
WRITEBACK = 32

OFFER = (
    BlkFeature.SEG_MAX
    | BlkFeature.BLK_SIZE
    | BlkFeature.FLUSH
    | BlkFeature.CONFIG_WCE
    | BlkFeature.DISCARD
    | BlkFeature.WRITE_ZEROES
)


def size_of(fd: int) -> int:
    """Bytes of a regular file or block device; InvalidArgument for anything else."""
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode):
        return status.st_size
    if stat.S_ISBLK(status.st_mode):
        return int(struct.unpack("Q", fcntl.ioctl(fd, BLKGETSIZE64, bytes(8)))[0])
    raise InvalidArgument("a disk is a regular file or a block device")


class Blk(Device):
    """A disk of whole 512-byte sectors on ``path``, read and written where the guest's buffers are.

    read_only: offer RO and open for reading only. serial: up to 20 bytes, by default the name of
    the file. num_queues: 1 or more (MQ). block_size: what the guest should read and write at once.

    Data goes between the file and the guest's memory without a copy of ours. Writes are in the
    file's cache when they complete and on the disk after FLUSH; a driver that knows no FLUSH, or
    has turned the write-back cache off, has them on the disk at once.

    Raises InvalidArgument when the file cannot be opened or used.
    """

    device_id = DeviceID.BLOCK

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        read_only: bool = False,
        serial: bytes | None = None,
        num_queues: int = 1,
        queue_size: int = 256,
        block_size: int = 512,
        ring_features: int = RING_OFFER,
    ) -> None:
        if not 1 <= num_queues <= 64:
            raise InvalidArgument(f"{num_queues} queues; it takes 1 to 64")
        if block_size % BLK_SECTOR_SIZE or block_size <= 0:
            raise InvalidArgument(f"block_size {block_size} is not a multiple of 512")
        name = os.fspath(path)
        try:
            self.fd = os.open(name, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
        except OSError as error:
            raise InvalidArgument(f"{name} cannot be opened: {error.strerror}") from error
        try:
            capacity = size_of(self.fd) // BLK_SECTOR_SIZE
            self.io = BlkIo(
                self.fd,
                capacity,
                read_only=read_only,
                serial=Path(name).name.encode()[:20] if serial is None else serial,
                max_segments=MAX_SEGMENTS,
                max_sectors=MAX_SECTORS,
            )
        except BaseException:
            os.close(self.fd)
            raise
        config = np.zeros((), BLK_CONFIG)
        config["capacity"] = capacity
        config["seg_max"] = max(1, min(queue_size, LEAST_RING) - 2)
        config["blk_size"] = block_size
        config["writeback"] = 1
        config["num_queues"] = num_queues
        config["max_discard_sectors"] = config["max_write_zeroes_sectors"] = MAX_SECTORS
        config["max_discard_seg"] = config["max_write_zeroes_seg"] = MAX_SEGMENTS
        config["discard_sector_alignment"] = 1
        config["write_zeroes_may_unmap"] = 1
        features = OFFER
        if read_only:
            features = BlkFeature.SEG_MAX | BlkFeature.BLK_SIZE | BlkFeature.FLUSH | BlkFeature.RO
        if num_queues > 1:
            features |= BlkFeature.MQ
        super().__init__(
            features=features,
            ring_features=ring_features,
            queues=[f"req.{i}" for i in range(num_queues)],
            queue_size=queue_size,
            config=config,
        )
        self._batch = Batch(queue_size, 2 * queue_size)

    def close(self) -> None:
        """Close the file. Again is fine."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def resize(self) -> None:
        """The file has another size now: look, and tell the driver (5.2.6.2)."""
        capacity = size_of(self.fd) // BLK_SECTOR_SIZE
        self.io.capacity = capacity
        self.update_config(0, struct.pack("<Q", capacity))

    def validate_features(self, features: Feature) -> bool:
        # Without FLUSH nobody could ask for the data to reach the disk (5.2.5.2).
        self.core.config[WRITEBACK] = bool(int(features) & BlkFeature.FLUSH)
        return True

    def queue_started(self, index: int, queue: DeviceQueue) -> None:
        self._choose(queue.features)
        if queue.size > self._batch.capacity:
            # The driver chose a longer ring than was offered, where a transport lets it.
            self._batch = Batch(queue.size, 2 * queue.size)

    def _choose(self, features: Feature) -> None:
        bits = int(features)
        self.io.discard = bool(bits & BlkFeature.DISCARD)
        self.io.write_zeroes = bool(bits & BlkFeature.WRITE_ZEROES)
        wanted = self.core.config[WRITEBACK] if bits & BlkFeature.CONFIG_WCE else 1
        self.io.write_through = not wanted or not bits & BlkFeature.FLUSH

    def config_written(self, offset: int, data: bytes) -> None:
        switchable = int(self.features) & BlkFeature.CONFIG_WCE
        if switchable and offset == WRITEBACK and len(data) == 1 and data[0] <= 1:
            self.core.config[offset] = data[0]
            self._choose(self.features)
        else:
            self.core.refuse(f"write of {len(data)} bytes of configuration at {offset}")

    def reset(self) -> None:
        self.core.config[WRITEBACK] = 1

    def burst_worker(self, index: int) -> BurstWorker:
        return self.io

    def handle_queue(self, index: int, queue: DeviceQueue) -> None:
        batch, io = self._batch, self.io
        for count in self.bursts(queue, batch):
            done = 0
            while done < count:
                malformed = io.malformed
                part = io.run(self.memory, batch, done, BUDGET)
                queue.push(batch, done, part)
                queue.signal()
                done += part
                if io.malformed != malformed:
                    self.needs_reset("a request without room for its header and status")
