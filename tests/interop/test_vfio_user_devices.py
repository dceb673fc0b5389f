"""Linux guests with several PCI functions of ours at once: balloon, console and network.

One guest does all the checks, so that it boots once for each kernel and kind of interrupt.
"""

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
from tests.interop.test_vfio_user_guest import function, served

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]

MAC = bytes.fromhex("525400abcdef")


@pytest.mark.parametrize(
    ("version", "pins"),
    [("6.1", False), ("7", False), ("7", True)],
    ids=["6.1-msix", "7-msix", "7-intx"],
)
def test_several_devices(tmp_path: Path, version: str, pins: bool) -> None:
    checks: list[Check] = [BalloonCheck(), ConsoleCheck(), NetCheck(MAC)]
    with ExitStack() as stack:
        devices: list[str] = []
        for number, check in enumerate(checks):
            path = tmp_path / f"socket{number}"
            stack.enter_context(served(check.device, path))
            devices += function(path)
        guest = stack.enter_context(
            Guest(
                linux61() if version == "6.1" else linux7(),
                FEATURES + "".join(check.script for check in checks),
                workdir=tmp_path,
                modules=[name for check in checks for name in check.modules],
                devices=devices,
                append="pci=nomsi" if pins else "",
            )
        )
        check_rings(guest, checks, version)
        interrupts = guest.section("interrupts")
        assert ("virtio0-inflate" in interrupts) == (not pins)
        for check in checks:
            check.run(guest)
        if pins:
            assert "IO-APIC" in interrupts
            assert "MSI" not in interrupts.replace("PMSI", "")
        guest.finish()
