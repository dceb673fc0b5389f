"""Linux guests drive our devices through QEMU's vhost-user."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.interop.guest import Guest
from tests.interop.initramfs import Kernel, linux7, linux61
from virtring.device import Device
from virtring.devices.rng import Rng
from virtring.transport.vhost_user import VhostUserServer

pytestmark = [pytest.mark.interop, pytest.mark.timeout(600)]


@contextmanager
def served(device: Device, path: Path) -> Iterator[VhostUserServer]:
    """The device behind a socket, in a thread."""
    server = VhostUserServer(device, str(path))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(30)
        assert not thread.is_alive()
        server.close()


def any_device(
    socket: Path, id: int, queues: int, config: int = 0, size: int = 64
) -> list[str]:
    queue = f"num_vqs={queues},vq_size={size}"
    device = f"vhost-user-test-device-pci,chardev=c0,virtio-id={id},{queue}"
    return [
        *("-chardev", f"socket,id=c0,path={socket}"),
        *("-device", f"{device},config_size={config}"),
    ]


@pytest.mark.parametrize("version", ["6.1", "7"])
def test_rng(tmp_path: Path, version: str) -> None:
    kernel: Kernel = linux61() if version == "6.1" else linux7()
    socket = tmp_path / "socket"
    filled = 0

    def source(size: int) -> bytes:
        nonlocal filled
        filled += size
        return b"\xa5" * size

    script = (
        "section name cat /sys/class/misc/hw_random/rng_current\n"
        "section features cat /sys/bus/virtio/devices/virtio0/features\n"
        "section read sh -c 'dd if=/dev/hwrng bs=4096 count=64 2>/dev/null"
        " | tr -d \"\\245\" | wc -c'\n"
    )
    with (
        served(Rng(source), socket),
        Guest(
            kernel,
            script,
            workdir=tmp_path,
            modules=["virtio_rng"],
            devices=any_device(socket, 4, 1),
        ) as guest,
    ):
        assert guest.section("name").startswith("virtio_rng")
        features = guest.section("features")
        assert features[34] == "1", "packed"
        assert features[35] == ("1" if version == "7" else "0"), "in order"
        assert guest.section("read").strip() == "0"
        guest.finish()
    assert filled >= 64 * 4096
