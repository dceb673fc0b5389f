"""The block driver and the block device, together over every transport and ring."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.devices.binding import KINDS, RINGS, bound
from virtring.device import VirtioBus
from virtring.devices.blk import Blk
from virtring.drivers.blk import BlkDriver
from virtring.drivers.blk_io import BlkBatch
from virtring.errors import (
    AddressError,
    InvalidArgument,
    NotSupported,
    RequestFailed,
    WrongState,
)
from virtring.memory import BufferPool
from virtring.spec.blk import BlkStatus, BlkType
from virtring.spec.features import Feature

SECTORS = 4096


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=RINGS)
def ring(request: pytest.FixtureRequest) -> Feature:
    return RINGS[request.param]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(random.Random(7).randbytes(SECTORS * 512))
    return path


@pytest.fixture
def device(image: Path) -> Iterator[Blk]:
    device = Blk(image, serial=b"twelve", num_queues=2)
    yield device
    device.close()


@pytest.fixture
def driver(kind: str, device: Blk) -> Iterator[BlkDriver]:
    with bound(device, BlkDriver, kind) as driver:
        yield driver


def test_read_write(driver: BlkDriver, image: Path) -> None:
    before = image.read_bytes()
    assert driver.capacity == SECTORS
    assert driver.read(0, 8) == before[:4096]
    assert driver.read(SECTORS - 1, 1) == before[-512:]
    assert driver.read(5, 0) == b""
    # Several requests' worth.
    assert driver.read(1, 2000) == before[512 : 2001 * 512]
    data = random.Random(1).randbytes(1500 * 512)
    assert driver.write(17, data) == len(data)
    driver.flush()
    assert image.read_bytes() == before[: 17 * 512] + data + before[(17 + 1500) * 512 :]
    out = bytearray(1024)
    assert driver.readinto(16, out) == 1024
    assert out == before[16 * 512 : 17 * 512] + data[:512]
    assert driver.get_id() == b"twelve"


def test_what_the_device_says(driver: BlkDriver) -> None:
    limits = driver.limits
    assert limits.block_size == limits.physical_block_size == 512
    assert limits.seg_max == 126
    assert limits.max_discard_seg == limits.max_write_zeroes_seg == 16
    assert limits.write_zeroes_may_unmap
    assert limits.size_max == limits.min_io == 0
    assert len(driver.queues) == 2


def test_wrong_arguments(driver: BlkDriver) -> None:
    for sector, data in ((-1, 512), (SECTORS, 512), (SECTORS - 1, 1024), (0, 511)):
        with pytest.raises(InvalidArgument, match="sectors"):
            driver.write(sector, bytes(data))
        with pytest.raises(InvalidArgument):
            driver.start(BlkType.IN, sector, size=data)
    with pytest.raises(InvalidArgument, match="FLUSH"):
        driver.start(BlkType.FLUSH, size=512)
    with pytest.raises(InvalidArgument):
        driver.start(BlkType.IN, 0)
    with pytest.raises(InvalidArgument):
        driver.discard(SECTORS, 1)


def test_discard_and_zeroes(driver: BlkDriver, image: Path) -> None:
    before = bytearray(image.read_bytes())
    driver.write_zeroes(3, 5)
    before[3 * 512 : 8 * 512] = bytes(5 * 512)
    driver.write_zeroes(100, 64, unmap=True)
    before[100 * 512 : 164 * 512] = bytes(64 * 512)
    assert image.read_bytes() == before
    driver.discard(1000, 256)
    # Whatever the discarded sectors hold now, the others are as they were.
    after = image.read_bytes()
    assert after[: 1000 * 512] == before[: 1000 * 512]
    assert after[1256 * 512 :] == before[1256 * 512 :]


@pytest.mark.parametrize("later", [False, True], ids=["straight", "later"])
def test_many_futures(device: Blk, kind: str, image: Path, later: bool) -> None:
    before = image.read_bytes()
    with bound(device, BlkDriver, kind, later=later) as driver:
        # More than both queues take: some wait for their turn.
        requests = [driver.start(BlkType.IN, i, size=512) for i in range(1024)]
        for i, request in enumerate(requests):
            assert request.wait(10) == before[512 * i : 512 * i + 512]
        del requests, request


def test_removal_frees_the_memory(device: Blk, kind: str) -> None:
    with bound(device, BlkDriver, kind) as driver:
        memory = driver.vdev.memory
        assert len(driver.read(0, 4)) == 2048
        assert memory.allocated
    assert memory.allocated == 0


def test_await(driver: BlkDriver, image: Path) -> None:
    before = image.read_bytes()

    async def several() -> list[bytes]:
        await driver.start(BlkType.OUT, 9, data=b"x" * 512)
        return await asyncio.gather(*[driver.start(BlkType.IN, i, size=512) for i in (8, 9, 10)])

    assert asyncio.run(several()) == [before[8 * 512 : 9 * 512], b"x" * 512, before[5120:5632]]


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
        with pytest.raises(InvalidArgument):
            queue.reap(batch, 5)
        queue.kick()
        assert queue.reap(batch) == 0
    assert image.read_bytes() == before
    del pool


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


def test_read_only(kind: str, image: Path) -> None:
    image.chmod(0o444)
    before = image.read_bytes()
    device = Blk(image, read_only=True)
    with bound(device, BlkDriver, kind) as driver:
        assert driver.read_only
        assert driver.read(0, 1) == before[:512]
        for call in (
            lambda: driver.write(0, bytes(512)),
            lambda: driver.discard(0, 1),
            lambda: driver.write_zeroes(0, 1),
        ):
            with pytest.raises(NotSupported):
                call()
        driver.flush()
        with pytest.raises(RequestFailed, match="OUT at sector 0 ended with IOERR") as caught:
            driver.start(BlkType.OUT, 0, data=bytes(512)).wait(5)
        assert caught.value.status == BlkStatus.IOERR
    device.close()
    assert image.read_bytes() == before


def test_resize(driver: BlkDriver, device: Blk, image: Path) -> None:
    os.truncate(image, SECTORS * 1024)
    with pytest.raises(InvalidArgument):
        driver.read(SECTORS, 1)
    device.resize()
    assert driver.capacity == 2 * SECTORS
    assert driver.read(SECTORS, 2) == bytes(1024)
    with driver.polled() as queue:
        assert queue.capacity == 2 * SECTORS
    os.truncate(image, 512)
    # The file shrank behind our back: an error of the medium, no crash.
    with pytest.raises(RequestFailed, match="IOERR"):
        driver.read(SECTORS, 2)
    device.resize()
    assert driver.capacity == 1


def test_removal_fails_what_waits(image: Path) -> None:
    device = Blk(image)
    with bound(device, BlkDriver) as driver:
        # A broken queue answers nothing any more.
        queue = device.queues[0]
        assert queue is not None
        device.needs_reset("a test")
        request = driver.start(BlkType.IN, 0, size=512)
        assert not request.done()
    with pytest.raises(WrongState, match="removed"):
        request.wait(0)
    with pytest.raises(WrongState, match="removed"):
        driver.read(0, 1)
    device.close()


def test_freeze_and_restore(driver: BlkDriver, image: Path) -> None:
    before = image.read_bytes()
    assert driver.read(0, 1) == before[:512]
    driver.freeze()
    with pytest.raises(WrongState):
        driver.read(0, 1)
    bus = VirtioBus()
    bus.restore(driver.vdev)
    assert driver.read(0, 1) == before[:512]


OPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 63), st.integers(1, 12), st.integers(0, 255)),
        st.tuples(st.just("zero"), st.integers(0, 63), st.integers(1, 12), st.booleans()),
        st.tuples(st.just("read"), st.integers(0, 63), st.integers(1, 12), st.none()),
        st.tuples(st.just("flush"), st.none(), st.none(), st.none()),
    ),
    max_size=20,
)


@settings(max_examples=40, deadline=None)
@given(ops=OPS, name=st.sampled_from(sorted(RINGS)))
def test_like_a_bytearray(
    tmp_path_factory: pytest.TempPathFactory, ops: list[Any], name: str
) -> None:
    path = tmp_path_factory.mktemp("disk") / "disk"
    model = bytearray(random.Random(5).randbytes(64 * 512))
    path.write_bytes(model)
    device = Blk(path, queue_size=16, ring_features=RINGS[name])
    with bound(device, BlkDriver, size=1 << 20) as driver:
        for op, sector, count, value in ops:
            if op == "flush":
                driver.flush()
                continue
            count = min(count, 64 - sector)
            span = slice(sector * 512, (sector + count) * 512)
            if op == "write":
                model[span] = bytes([value]) * (count * 512)
                driver.write(sector, model[span])
            elif op == "zero":
                model[span] = bytes(count * 512)
                driver.write_zeroes(sector, count, unmap=value)
            else:
                assert driver.read(sector, count) == model[span]
        assert driver.read(0, 64) == model
    device.close()
    assert path.read_bytes() == model
