"""A Linux guest writes to our disk while its back end is killed and started again."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.interop.guest import Guest
from tests.interop.initramfs import linux61
from tests.transport.backend_process import back_end

pytestmark = [pytest.mark.interop, pytest.mark.timeout(600)]

SIZE = 16 << 20


@pytest.mark.parametrize("ring", ["split", "packed"])
def test_disk_killed_under_a_guest(tmp_path: Path, ring: str) -> None:
    kernel = linux61()
    image = tmp_path / "image"
    image.write_bytes(bytes(SIZE))
    socket = tmp_path / "socket"
    # Every 4 KiB of the disk is written in turn, again and again; the guest notices what is lost.
    script = (
        "dd if=/dev/urandom of=/tmp/data bs=1M count=16 2>/dev/null\n"
        "echo @@ready\n"
        "for turn in 1 2 3 4 5 6; do\n"
        "  dd if=/tmp/data of=/dev/vda bs=16k conv=fsync 2>/dev/null\n"
        "  echo @@turn $turn\n"
        "done\n"
        "section same cmp /tmp/data /dev/vda\n"
        "section sum sha256sum /tmp/data /dev/vda\n"
        "section errors sh -c 'dmesg | grep -c \"I/O error\" || true'\n"
    )
    packed = ",packed=on" if ring == "packed" else ""
    devices = [
        *("-chardev", f"socket,id=c0,path={socket},reconnect-ms=200"),
        *("-device", f"vhost-user-blk-pci,chardev=c0,num-queues=1{packed}"),
    ]
    with back_end("blk", socket, image) as first, Guest(
        kernel, script, workdir=tmp_path, modules=["virtio_blk"], devices=devices
    ) as guest:
        guest.wait_for("^@@ready$")
        guest.wait_for("^@@turn 1$")
        first.kill()
        first.wait()
        with back_end("blk", socket, image) as second:
            guest.wait_for("^@@turn 3$")
            second.kill()
            second.wait()
            with back_end("blk", socket, image):
                guest.wait_for("^@@turn 6$")
                guest.section("same")
                here, there = guest.section("sum").split()[0::2]
                assert here == there
                assert guest.section("errors").strip() == "0"
                guest.finish()
    # The guest may have read its own cache: what counts is what arrived.
    assert hashlib.sha256(image.read_bytes()).hexdigest() == here
