"""The block driver and the block device, together over every transport and ring."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.devices.binding import RINGS, SECTORS, bound
from virtring.device import VirtioBus
from virtring.devices.blk import Blk
from virtring.drivers.blk import BlkDriver
from virtring.errors import (
    InvalidArgument,
    NotSupported,
    RequestFailed,
    WrongState,
)
from virtring.spec.blk import BlkStatus, BlkType


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
