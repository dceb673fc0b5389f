"""Linux guests use our disk through QEMU's vhost-user-blk."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from tests.interop.guest import Guest
from tests.interop.initramfs import linux7, linux61
from tests.interop.test_vhost_user_guest import served
from virtring.devices.blk import Blk

pytestmark = [pytest.mark.interop, pytest.mark.timeout(600)]


def disk(socket: Path, options: str = "") -> list[str]:
    return [
        *("-chardev", f"socket,id=c0,path={socket}"),
        *("-device", f"vhost-user-blk-pci,chardev=c0,num-queues=1{options}"),
    ]


@pytest.mark.parametrize("version", ["6.1", "7"])
@pytest.mark.parametrize("ring", ["split", "packed"])
def test_disk(tmp_path: Path, version: str, ring: str) -> None:
    kernel = linux61() if version == "6.1" else linux7()
    data = random.Random(2).randbytes(16 << 20)
    image = tmp_path / "image"
    image.write_bytes(data)
    socket = tmp_path / "socket"
    script = (
        "section features cat /sys/bus/virtio/devices/virtio0/features\n"
        "section serial sh -c 'cat /sys/block/vda/serial; echo'\n"
        "section sum sha256sum /dev/vda\n"
        "section write dd if=/modules/virtio_blk.ko of=/dev/vda seek=1 bs=4096 conv=fsync\n"
        "section discard blkdiscard -o 8388608 -l 4194304 /dev/vda\n"
    )
    device = Blk(image, serial=b"seven")
    with (
        served(device, socket),
        Guest(
            kernel,
            script,
            workdir=tmp_path,
            modules=["virtio_blk"],
            devices=disk(socket, ",packed=on" if ring == "packed" else ""),
        ) as guest,
    ):
        features = guest.section("features")
        assert features[34] == ("1" if ring == "packed" else "0")
        assert features[32] == features[28] == features[29] == "1"
        assert guest.section("serial").strip() == "seven"
        assert guest.section("sum").split()[0] == hashlib.sha256(data).hexdigest()
        guest.finish()
    device.close()
    module = kernel.modules(["virtio_blk"])["virtio_blk"]
    expected = bytearray(data)
    expected[4096 : 4096 + len(module)] = module
    expected[8 << 20 : 12 << 20] = bytes(4 << 20)
    assert image.read_bytes() == expected
