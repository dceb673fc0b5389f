"""Linux guests bind their stock drivers to our PCI functions, through QEMU's vfio-user-pci."""

from __future__ import annotations

import hashlib
import json
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.interop.guest import Guest
from tests.interop.initramfs import linux7, linux61
from virtring.device import Device
from virtring.devices.blk import Blk
from virtring.devices.rng import Rng
from virtring.transport.vfio_user import VfioUserServer

pytestmark = [pytest.mark.interop, pytest.mark.timeout(600)]


@contextmanager
def served(device: Device, path: Path) -> Iterator[VfioUserServer]:
    """The function behind a socket, in a thread."""
    server = VfioUserServer(device, str(path))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(30)
        assert not thread.is_alive()
        server.close()


def function(socket: Path) -> list[str]:
    device = {"driver": "vfio-user-pci", "socket": {"type": "unix", "path": str(socket)}}
    return ["-device", json.dumps(device)]


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "by-message"])
@pytest.mark.parametrize("version", ["6.1", "7"])
def test_rng(tmp_path: Path, version: str, shared: bool) -> None:
    socket = tmp_path / "socket"
    script = (
        "section features cat /sys/bus/virtio/devices/virtio0/features\n"
        "section name cat /sys/class/misc/hw_random/rng_current\n"
        "section read sh -c 'dd if=/dev/hwrng bs=4096 count=64 2>/dev/null"
        " | tr -d \"\\245\" | wc -c'\n"
        "section interrupts cat /proc/interrupts\n"
    )
    with (
        served(Rng(lambda size: b"\xa5" * size), socket),
        Guest(
            linux61() if version == "6.1" else linux7(),
            script,
            workdir=tmp_path,
            modules=["virtio_rng"],
            devices=function(socket),
            shared=shared,
        ) as guest,
    ):
        features = guest.section("features")
        assert features[34] == "1", "packed"
        assert features[35] == ("1" if version == "7" else "0"), "in order"
        assert guest.section("name").startswith("virtio_rng")
        assert guest.section("read").strip() == "0"
        assert "virtio0-input" in guest.section("interrupts"), "MSI-X"
        guest.finish()


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "by-message"])
@pytest.mark.parametrize("version", ["6.1", "7"])
def test_disk(tmp_path: Path, version: str, shared: bool) -> None:
    data = random.Random(3).randbytes(16 << 20)
    image = tmp_path / "image"
    image.write_bytes(data)
    socket = tmp_path / "socket"
    device = Blk(image)
    with (
        served(device, socket),
        Guest(
            linux61() if version == "6.1" else linux7(),
            "section sum sha256sum /dev/vda\n"
            "section write dd if=/modules/virtio_blk.ko of=/dev/vda seek=1 bs=4096 conv=fsync\n",
            workdir=tmp_path,
            modules=["virtio_blk"],
            devices=function(socket),
            shared=shared,
        ) as guest,
    ):
        assert guest.section("sum").split()[0] == hashlib.sha256(data).hexdigest()
        guest.finish()
    device.close()
    kernel = linux61() if version == "6.1" else linux7()
    module = kernel.modules(["virtio_blk"])["virtio_blk"]
    assert image.read_bytes() == data[:4096] + module + data[4096 + len(module) :]
