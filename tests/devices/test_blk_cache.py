"""The cache of a block device: when writes have to be on the disk."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from tests.devices.binding import SECTORS, bound
from virtring.devices.blk import Blk
from virtring.drivers.blk import BlkDriver
from virtring.errors import NotSupported, RequestFailed
from virtring.spec.blk import BLK_CONFIG, BlkFeature, BlkType
from virtring.spec.features import Feature


class Uncached(BlkDriver):
    """Does not know FLUSH."""

    def validate(self) -> None:
        self.vdev.features = Feature(int(self.vdev.features) & ~int(BlkFeature.FLUSH))


class Simple(BlkDriver):
    """Knows no feature of disks."""

    def validate(self) -> None:
        self.vdev.features = Feature(int(self.vdev.features) & ~self.driver_features())


def dirty_pages(path: Path) -> int | None:
    """Pages of the file that are in the cache only (Linux cachestat, 6.5); None: cannot be told."""
    libc = ctypes.CDLL(None)
    whole = (ctypes.c_uint64 * 2)(0, path.stat().st_size)
    found = (ctypes.c_uint64 * 5)()
    fd = os.open(path, os.O_RDONLY)
    try:
        return int(found[1]) if libc.syscall(451, fd, whole, found, 0) == 0 else None
    finally:
        os.close(fd)


def test_what_is_on_the_disk(image: Path) -> None:
    """After a flush, and after each write without the cache, no dirty page is left."""
    with open(image, "rb") as file:
        os.fsync(file.fileno())
    if dirty_pages(image) != 0:
        pytest.skip("this kernel or file system does not tell which pages are dirty")
    device = Blk(image)
    with bound(device, BlkDriver) as driver:
        driver.write(0, bytes(4096))
        assert dirty_pages(image)
        driver.flush()
        assert dirty_pages(image) == 0
        driver.writeback = False
        driver.write(8, bytes(4096))
        assert dirty_pages(image) == 0
        driver.write_zeroes(16, 1)
        assert dirty_pages(image) == 0
    with bound(device, Uncached) as driver:
        driver.write(0, bytes(4096))
        assert dirty_pages(image) == 0
    device.close()


def test_cache(image: Path) -> None:
    """Which writes go through to the disk: those nobody could flush, and with writeback off."""
    device = Blk(image)
    with bound(device, BlkDriver) as driver:
        assert driver.writeback
        assert not device.io.write_through
        driver.writeback = False
        assert device.io.write_through
        assert not driver.writeback
        assert driver.vdev.cread(BLK_CONFIG, "writeback") == 0
        driver.write(0, bytes(512))
        driver.writeback = True
        assert not device.io.write_through
        # Only 0 and 1, and only this byte.
        driver.vdev.config.set(driver.vdev, 32, b"\x02")
        driver.vdev.config.set(driver.vdev, 0, b"\x02")
        assert driver.writeback
        assert driver.vdev.cread(BLK_CONFIG, "capacity") == SECTORS
        driver.writeback = False
    assert device.core.config[32] == 1, "as before, after the reset"
    with bound(device, Uncached) as driver:
        # 5.2.5.2: CONFIG_WCE without FLUSH begins with writeback 0.
        assert not driver.writeback
        assert device.io.write_through
        driver.flush()
    with bound(device, Simple) as driver:
        assert not driver.writeback
        assert device.io.write_through
        with pytest.raises(NotSupported):
            driver.writeback = True
        driver.vdev.config.set(driver.vdev, 32, b"\x01")
        assert device.io.write_through
        with pytest.raises(NotSupported):
            driver.discard(0, 1)
        with pytest.raises(RequestFailed, match="UNSUPP"):
            driver.start(BlkType.DISCARD, data=bytes(16)).wait(5)
    device.close()
