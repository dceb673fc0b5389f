"""Linux guests with a network interface, a console and a balloon of ours through vhost-user."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.interop.checks import (
    FEATURES,
    BalloonCheck,
    Check,
    ConsoleCheck,
    NetCheck,
    check_rings,
)
from tests.interop.guest import Guest
from tests.interop.initramfs import linux7, linux61
from tests.interop.test_vhost_user_guest import served
from virtring.device import Device
from virtring.spec.ids import DeviceID

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]


def front_end(device: Device, socket: Path, number: int) -> list[str]:
    """QEMU's own for a network interface, the one for any device for the others."""
    name, id = f"c{number}", device.device_id
    chardev = ["-chardev", f"socket,id={name},path={socket}"]
    if id == DeviceID.NET:
        netdev = ["-netdev", f"vhost-user,id=n{number},chardev={name}"]
        rings = "packed=on,in_order=on"
        return [*chardev, *netdev, "-device", f"virtio-net-pci,netdev=n{number},romfile=,{rings}"]
    kind = f"vhost-user-test-device-pci,chardev={name},virtio-id={int(id)}"
    sizes = f"num_vqs={len(device.queues)},vq_size={device.core.queue_configs[0].size_max}"
    return [*chardev, "-device", f"{kind},{sizes},config_size={device.core.config_size}"]


@pytest.mark.parametrize("version", ["6.1", "7"])
def test_several_devices(tmp_path: Path, version: str) -> None:
    checks: list[Check] = [NetCheck(), BalloonCheck(), ConsoleCheck()]
    with ExitStack() as stack:
        devices: list[str] = []
        for number, check in enumerate(checks):
            path = tmp_path / f"socket{number}"
            stack.enter_context(served(check.device, path))
            devices += front_end(check.device, path, number)
        guest = stack.enter_context(
            Guest(
                linux61() if version == "6.1" else linux7(),
                FEATURES + "".join(check.script for check in checks),
                workdir=tmp_path,
                modules=[name for check in checks for name in check.modules],
                devices=devices,
            )
        )
        check_rings(guest, checks, version)
        for check in checks:
            check.run(guest)
        guest.finish()
