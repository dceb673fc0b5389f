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


def disk(socket: Path, options: str = "", queues: int = 1) -> list[str]:
    return [
        *("-chardev", f"socket,id=c0,path={socket}"),
        *("-device", f"vhost-user-blk-pci,chardev=c0,num-queues={queues}{options}"),
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


@pytest.mark.parametrize("ring", ["split", "packed"])
def test_queues_side_by_side(tmp_path: Path, ring: str) -> None:
    """Four queues, a thread of ours each, used by four processors at once."""
    queues, part = 4, 4 << 20
    rng = random.Random(3)
    data = rng.randbytes(2 * queues * part)
    written = [rng.randbytes(part) for _ in range(queues)]
    image = tmp_path / "image"
    image.write_bytes(data)
    socket = tmp_path / "socket"
    numbers = " ".join(str(i) for i in range(queues))
    look = (
        "dd if=/dev/vda bs=64k skip=$(($1 * 64)) count=64 iflag=direct 2>/dev/null |"
        " sha256sum >/tmp/read.$1\n"
    )
    change = (
        "dd if=/data.$1 of=/dev/vda bs=64k seek=$((($1 + 4) * 64)) oflag=direct conv=fsync\n"
        "sh /look $(($1 + 4))\n"
    )
    script = (
        "section queues ls /sys/block/vda/mq\n"
        # A queue belongs to a processor.
        f"use() {{ for i in {numbers}; do taskset $((1 << $i)) sh $1 $i & done; wait; }}\n"
        "use /look; use /change\n"
        "for i in 0 1 2 3 4 5 6 7; do section sum.$i cat /tmp/read.$i; done\n"
        "section interrupts grep virtio0-req /proc/interrupts\n"
    )
    device = Blk(image, num_queues=queues)
    with (
        served(device, socket),
        Guest(
            linux61(),
            script,
            workdir=tmp_path,
            modules=["virtio_blk"],
            files={
                "look": look.encode(),
                "change": change.encode(),
                **{f"data.{i}": piece for i, piece in enumerate(written)},
            },
            devices=disk(socket, ",packed=on" if ring == "packed" else "", queues),
            processors=queues,
        ) as guest,
    ):
        assert guest.section("queues").split() == [str(i) for i in range(queues)]
        expected = data[: queues * part] + b"".join(written)
        for i in range(2 * queues):
            piece = expected[i * part : (i + 1) * part]
            assert guest.section(f"sum.{i}").split()[0] == hashlib.sha256(piece).hexdigest()
        lines = guest.section("interrupts").splitlines()
        used = [sum(map(int, line.split()[1 : 1 + queues])) for line in lines]
        assert len(used) == queues
        assert all(used), "a queue was not used"
        guest.finish()
    device.close()
    assert image.read_bytes() == expected
