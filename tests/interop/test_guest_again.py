"""Guests that come again: after a reboot, and after their QEMU was killed while they wrote."""

from __future__ import annotations

import gc
import hashlib
import os
import random
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.interop.checks import until
from tests.interop.guest import Guest
from tests.interop.initramfs import linux7, linux61
from tests.interop.test_vfio_user_guest import function
from tests.interop.test_vfio_user_guest import served as served_vfio
from tests.interop.test_vhost_user_blk import disk
from tests.interop.test_vhost_user_guest import served as served_vhost
from virtring.device import Device
from virtring.devices.blk import Blk
from virtring.transport.unix import SocketServer

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]

SIZE = 8 << 20
Served = Callable[[Device, Path], AbstractContextManager[SocketServer]]
Devices = Callable[[Path], list[str]]


def over_vhost_user(socket: Path) -> list[str]:
    return disk(socket, ",packed=on")


both = pytest.mark.parametrize(
    ("served", "devices"),
    [(served_vhost, over_vhost_user), (served_vfio, function)],
    ids=["vhost-user", "vfio-user"],
)


@both
def test_reboot(tmp_path: Path, served: Served, devices: Devices) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(SIZE))
    module = "/modules/virtio_blk.ko"
    kernel = linux61() if devices is over_vhost_user else linux7()
    size = len(kernel.modules(["virtio_blk"])["virtio_blk"])
    script = (
        "section features cat /sys/bus/virtio/devices/virtio0/features\n"
        f"if cmp -s -n {size} {module} /dev/vda; then\n"
        "    section again true\n"
        "else\n"
        f"    dd if={module} of=/dev/vda bs=4096 conv=fsync 2>/dev/null\n"
        "    echo @@written\n"
        "    reboot -f\n"
        "    sleep 60\n"
        "fi\n"
    )
    socket = tmp_path / "socket"
    device = Blk(image)
    with (
        served(device, socket),
        Guest(
            kernel,
            script,
            workdir=tmp_path,
            modules=["virtio_blk"],
            devices=devices(socket),
            reboots=True,
        ) as guest,
    ):
        guest.wait_for("^@@written$")
        guest.section("again")
        text = guest.finish()
    device.close()
    boots = text.split("@@begin features\n")[1:]
    assert len(boots) == 2
    for bits in boots:
        assert bits[34] == "1", "packed"
        assert bits[35] == ("1" if kernel is linux7() else "0"), "in order"


def held() -> tuple[int, int]:
    """Open descriptors of ours, and mappings of memory that others share with us."""
    gc.collect()
    maps = Path("/proc/self/maps").read_text()
    return len(os.listdir("/proc/self/fd")), maps.count("/memfd:")


@both
def test_killed_while_it_writes(tmp_path: Path, served: Served, devices: Devices) -> None:
    image = tmp_path / "image"
    data = random.Random(8).randbytes(SIZE)
    image.write_bytes(data)
    socket = tmp_path / "socket"
    writing = (
        "dd if=/dev/urandom of=/tmp/data bs=1M count=8 2>/dev/null\n"
        "echo @@ready\n"
        "while true; do dd if=/tmp/data of=/dev/vda bs=16k conv=fsync 2>/dev/null; done\n"
    )
    device = Blk(image)
    with served(device, socket) as server:
        before = held()
        with Guest(
            linux61(),
            writing,
            workdir=tmp_path,
            modules=["virtio_blk"],
            devices=devices(socket),
        ) as guest:
            guest.wait_for("^@@ready$")
            until(lambda: image.read_bytes() != data, "nothing is written")
            assert held() > before
            os.kill(guest.pid, signal.SIGKILL)
            assert guest.wait() == -signal.SIGKILL
        until(lambda: held() == before, "descriptors or mappings are left")
        sessions = server.sessions
        with Guest(
            linux61(),
            "section sum sha256sum /dev/vda\n",
            workdir=tmp_path,
            modules=["virtio_blk"],
            devices=devices(socket),
        ) as guest:
            digest = guest.section("sum").split()[0]
            guest.finish()
        assert digest == hashlib.sha256(image.read_bytes()).hexdigest()
        assert server.sessions > sessions
        until(lambda: held() == before, "descriptors or mappings are left")
    device.close()
