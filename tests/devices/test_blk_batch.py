"""Many block requests in flight by batches: :class:`BlkQueue` of the block driver."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.devices.binding import RINGS, SECTORS, bound
from virtring.devices.blk import Blk
from virtring.drivers.blk import BlkDriver
from virtring.drivers.blk_io import BlkBatch
from virtring.errors import AddressError, InvalidArgument, WrongState
from virtring.memory import BufferPool
from virtring.spec.blk import BlkType
from virtring.spec.features import Feature


@pytest.fixture
def driver(kind: str, image: Path) -> Iterator[BlkDriver]:
    device = Blk(image, num_queues=2)
    with bound(device, BlkDriver, kind) as driver:
        yield driver
    device.close()


def pool_batch(driver: BlkDriver, count: int, size: int) -> tuple[BufferPool, BlkBatch]:
    pool = BufferPool(driver.vdev.memory, count, size)
    batch = BlkBatch(count)
    batch.addr[:] = pool.addrs
    batch.len[:] = size
    batch.token[:] = np.arange(count)
    return pool, batch


def copy_image(driver: BlkDriver, data: bytes, type: BlkType, *, depth: int = 128) -> bytes:
    """Write or read all of the disk in 4 KiB requests, always ``depth`` of them in flight."""
    size = 4096
    total = len(data) // size
    source = np.frombuffer(data, np.uint8).reshape(total, size)
    got = np.zeros_like(source)
    pool, batch = pool_batch(driver, depth, size)
    done = BlkBatch(depth)
    place = np.zeros(depth, np.int64)
    free = list(range(depth))
    order = list(range(total))
    random.Random(3).shuffle(order)
    finished = 0
    most = 0
    with driver.polled(1) as queue:
        while finished < total:
            rows = min(len(free), len(order))
            for row in range(rows):
                slot, where = free.pop(), order.pop()
                place[slot] = where
                batch.type[row], batch.sector[row] = type, where * (size // 512)
                batch.addr[row], batch.token[row] = pool.addrs[slot], slot
                if type == BlkType.OUT:
                    pool.array[slot, :size] = source[where]
            assert queue.submit(batch, 0, rows) == rows
            most = max(most, queue.in_flight)
            queue.kick()
            count = queue.reap(done)
            assert not done.status[:count].any()
            for slot in done.token[:count].tolist():
                if type == BlkType.IN:
                    got[place[slot]] = pool.array[slot, :size]
                free.append(slot)
            finished += count
    assert most == depth
    return got.tobytes()


@pytest.fixture(scope="module")
def filesystem(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An ext4 file system with some files in it."""
    maker = shutil.which("mke2fs", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
    if maker is None:
        pytest.skip("mke2fs is not installed (apt-get install e2fsprogs)")
    folder = tmp_path_factory.mktemp("filesystem")
    (folder / "files").mkdir()
    for number in range(20):
        data = random.Random(number).randbytes(number * 10_000)
        (folder / "files" / f"{number}").write_bytes(data)
    words = [maker, "-q", "-t", "ext4", "-d", folder / "files", folder / "image", "8M"]
    subprocess.run(words, check=True)
    return (folder / "image").read_bytes()


def test_image(tmp_path: Path, ring: Feature, kind: str, filesystem: bytes) -> None:
    """A file system, written and read back in a random order with 128 requests in flight."""
    data = filesystem
    path = tmp_path / "image"
    path.touch()
    os.truncate(path, len(data))
    device = Blk(path, num_queues=2, queue_size=512, ring_features=ring)
    with bound(device, BlkDriver, kind) as driver:
        copy_image(driver, data, BlkType.OUT)
        driver.flush()
        assert path.read_bytes() == data
        assert copy_image(driver, data, BlkType.IN) == data
    device.close()


def test_batch_is_checked_before_anything_is_sent(driver: BlkDriver, image: Path) -> None:
    before = image.read_bytes()
    pool, batch = pool_batch(driver, 4, 512)
    with driver.polled() as queue:
        batch.type[:] = BlkType.OUT
        for column, value, error in (
            ("len", 100, InvalidArgument),
            ("len", 0, InvalidArgument),
            ("sector", SECTORS, InvalidArgument),
            ("sector", 2**64 - 1, InvalidArgument),
            ("addr", 2**63, AddressError),
        ):
            good = int(getattr(batch, column)[3])
            getattr(batch, column)[3] = value
            with pytest.raises(error):
                queue.submit(batch, 0, 4)
            getattr(batch, column)[3] = good
        assert queue.in_flight == 0
        for start, count in ((0, 5), (5, 0), (-1, 1), (1, 4)):
            with pytest.raises(InvalidArgument):
                queue.submit(batch, start, count)
        for room, start in ((5, 0), (-1, 0), (3, 2), (None, 5), (None, -1)):
            with pytest.raises(InvalidArgument):
                queue.reap(batch, room, start)
        queue.kick()
        assert queue.reap(batch) == 0
    assert image.read_bytes() == before
    del pool


def test_completion_brings_its_request_back(driver: BlkDriver) -> None:
    """Whole, into the rows asked for; as it stands it may be sent again."""
    _, batch = pool_batch(driver, 4, 512)
    columns = ("type", "sector", "addr", "len", "token")
    batch.type[:] = BlkType.IN
    batch.sector[:] = [5, 3, 1, 7]
    batch.token[:] = [10, 2**64 - 1, 12, 13]
    sent = {tuple(int(getattr(batch, name)[row]) for name in columns) for row in range(4)}
    done = BlkBatch(6)
    with driver.polled() as queue:
        assert queue.submit(batch, 0, 4) == 4
        for _ in range(3):
            queue.kick()
            done.status[:] = 77
            assert queue.reap(done, 1, 2) == 1
            assert (done.count, done.status.tolist()) == (3, [77, 77, 0, 77, 77, 77])
            assert queue.reap(done, start=3) == 3
            assert (done.count, done.status.tolist()) == (6, [77, 77, 0, 0, 0, 0])
            rows = range(2, 6)
            came = {tuple(int(getattr(done, name)[row]) for name in columns) for row in rows}
            assert came == sent
            assert queue.submit(done, 2) == 4
        queue.kick()
        assert queue.reap(done) == 4


def test_full_queue(image: Path) -> None:
    """What does not fit stays with the caller, and goes later."""
    device = Blk(image, queue_size=8, ring_features=RINGS["split"])
    with bound(device, BlkDriver) as driver:
        pool, batch = pool_batch(driver, 8, 512)
        with driver.polled() as queue:
            # Three descriptors each, without INDIRECT_DESC: two fit into eight.
            assert queue.submit(batch, 0, 8) == 2
            assert queue.submit(batch, 2, 6) == 0
            queue.kick()
            done = BlkBatch(8)
            assert queue.reap(done) == 2
            assert sorted(done.token[:2].tolist()) == [0, 1]
            assert queue.submit(batch, 2, 6) == 2
            queue.kick()
            assert queue.reap(done, 1) == 1
            assert queue.reap(done) == 1
        del pool
    device.close()


def test_few_requests_go_into_the_ring_itself(driver: BlkDriver) -> None:
    """Many need indirect tables, where these were negotiated."""
    _, batch = pool_batch(driver, 24, 4096)
    batch.type[:], batch.sector[:] = BlkType.IN, 0
    done = BlkBatch(24)
    with driver.polled(depth=20) as queue:
        size = queue.vq.vring_size
        for _ in range(3):
            assert queue.submit(batch, 0, 24) == 20
            assert (queue.in_flight, queue.vq.num_free) == (20, size - 60)
            assert queue.submit(batch, 0, 4) == 0
            queue.kick()
            while queue.in_flight:
                queue.reap(done)
    with driver.polled() as queue:
        assert queue.limit == queue.depth == size
        assert queue.submit(batch, 0, 24) == 24
        tables = driver.vdev.has_feature(Feature.INDIRECT_DESC)
        assert queue.vq.num_free == size - (24 if tables else 72)
        queue.kick()
        while queue.in_flight:
            queue.reap(done)
    for wrong in (0, size + 1, -1, 1.5):
        with pytest.raises(InvalidArgument, match="limit"), driver.polled(depth=wrong):  # type: ignore[arg-type]
            pass
    with driver.polled():
        pass


def test_polled_queue_is_taken(driver: BlkDriver) -> None:
    pool, batch = pool_batch(driver, 1, 512)
    with driver.polled(0) as queue, driver.polled(1) as other:
        with pytest.raises(WrongState):
            driver.read(0, 1)
        with pytest.raises(WrongState), driver.polled(0):
            pass
        assert other is not queue
    assert len(driver.read(0, 1)) == 512
    with pytest.raises(WrongState, match="reaped"), driver.polled(0) as queue:
        queue.submit(batch, 0, 1)
    with pytest.raises(WrongState), driver.polled(0):
        pass
    # The other queue still serves.
    assert len(driver.read(0, 1)) == 512
    with pytest.raises(InvalidArgument), driver.polled(2):
        pass
    del pool
