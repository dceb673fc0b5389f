"""``virtring serve pci`` as its user sees it: six functions in one Linux guest, then SIGTERM."""

from __future__ import annotations

import hashlib
import random
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.interop.builds import RPMSG, RPMSG_SAMPLE
from tests.interop.checks import FEATURES, MIB, PAGE, negotiated, until
from tests.interop.guest import Guest
from tests.interop.initramfs import linux61
from tests.interop.test_vfio_user_guest import function
from tests.unit import _cli

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]

SAMPLE = "rpmsg-client-sample"

# First it idles: Linux 6.1 takes the announcement in its interrupt, and must find no lock taken.
SCRIPT = f"""
until ls /sys/bus/rpmsg/devices | grep -q sample; do sleep 1; done
{FEATURES}
section sum sha256sum /dev/vda
section random sh -c 'dd if=/dev/hwrng bs=512 count=8 2>/dev/null | wc -c'

ifconfig eth0 10.9.8.2 up
until grep -q up /sys/class/net/eth0/operstate; do sleep 0.1; done
arp -s 10.9.8.1 $(cat /sys/class/net/eth0/address)
ping -c 3 -W 1 10.9.8.1 || true
section echoed cat /sys/class/net/eth0/statistics/rx_packets

stty -F /dev/hvc0 raw -echo
exec 4<>/dev/hvc0
echo "@@terminal"
section typed sh -c 'head -n 1 <&4; echo "from the guest" >&4'
exec 4>&-

insmod /sample.ko
section messages sh -c 'until dmesg | grep -q "goodbye"; do sleep 0.2; done'
read line
"""


def test_functions_for_a_guest(tmp_path: Path) -> None:
    data = random.Random(9).randbytes(4 * MIB)
    image, path, wire = (tmp_path / name for name in ("image", "pci", "wire"))
    image.write_bytes(data)
    specs = [f"blk:{image}", "rng", "net", f"console:{wire}", "balloon:48M", f"rpmsg:{SAMPLE}"]
    kernel = linux61(rpmsg=True)
    drivers = ["virtio_blk", "virtio_rng", "virtio_net", "virtio_console", "virtio_balloon"]
    said = tmp_path / "said"
    with said.open("w") as log:
        served = subprocess.Popen(
            [*_cli.COMMAND, "serve", "pci", *specs, "--socket", str(path), "-v"],
            stderr=log, env=_cli.environment(),
        )
    try:
        until(lambda: said.read_text().count("for QEMU: ") == len(specs), "it does not serve")
        # What it says is what QEMU takes.
        lines = [line for line in said.read_text().splitlines() if line.startswith("for QEMU: ")]
        paths = [Path(f"{path}.{number}") for number in range(len(specs))]
        devices = [word for file in paths for word in function(file)]
        assert lines == [f"for QEMU: -device '{word}'" for word in devices[1::2]]
        with Guest(
            kernel,
            SCRIPT,
            workdir=tmp_path / "guest",
            modules=[*drivers, *RPMSG],
            files={"sample.ko": kernel.modules([RPMSG_SAMPLE])[RPMSG_SAMPLE]},
            devices=devices,
        ) as guest:
            found = negotiated(guest)
            assert set(found) == {1, 2, 3, 4, 5, 7}
            assert all(bits[34] == "1" for bits in found.values()), "packed"
            assert guest.section("sum").split()[0] == hashlib.sha256(data).hexdigest()
            assert guest.section("random").strip() == "4096"
            assert int(guest.section("echoed")) >= 3
            guest.wait_for("^@@terminal$")
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.settimeout(60)
                sock.connect(str(wire))
                sock.sendall(b"from the host\n")
                assert guest.section("typed") == "from the host\n"
                came = b""
                while b"from the guest" not in came:
                    came += sock.recv(100)
            guest.section("messages")
            full = f"balloon: {48 * MIB // PAGE} of {48 * MIB // PAGE} pages; "
            until(lambda: full in said.read_text(), "the balloon does not fill")
            served.send_signal(signal.SIGTERM)
            assert served.wait(30) == 0
    finally:
        served.kill()
        served.wait()
    text = said.read_text()
    assert f"{SAMPLE}: 100 messages, 1200 bytes echoed\n" in text
    assert "balloon: statistics: " in text
    for number, spec in enumerate(specs):
        name = spec.partition(":")[0]
        # The last one: the firmware has a driver of its own for the disk.
        took = text.rpartition(f"{name}.{number}: {name}: the driver took ")[2]
        assert "RING_PACKED" in took.partition("\n")[0], name
    assert not [file for file in tmp_path.rglob("*") if file.is_socket()]
    assert "Traceback" not in text
