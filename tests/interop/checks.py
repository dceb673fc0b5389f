"""What a Linux guest does with each device of ours, and what must have come of it on our side.

A check has the device, the modules that the guest needs, the guest's part as a script, and
``run(guest)``, which follows that script; so one guest does several after each other.
"""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Callable
from typing import Protocol

from tests.interop.guest import Guest
from tests.interop.net_host import GUEST, HERE, NetHost
from virtring.device import Device
from virtring.devices.balloon import Balloon
from virtring.devices.console import Console
from virtring.devices.console_port import Port
from virtring.devices.net import Net
from virtring.errors import AddressError
from virtring.memory import GuestMemory
from virtring.spec.balloon import BalloonFeature, BalloonStat

PAGE = 4096
MIB = 1 << 20

FEATURES = r"""
features() {
    for device in /sys/bus/virtio/devices/*; do
        echo $(cat $device/device) $(cat $device/features)
    done
}
section features features
section interrupts cat /proc/interrupts
"""


class Check(Protocol):
    """One device in the guest."""

    modules: list[str]
    script: str

    @property
    def device(self) -> Device: ...

    def run(self, guest: Guest) -> None: ...


def until(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Wait for it to come to pass."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def negotiated(guest: Guest) -> dict[int, str]:
    """Bits as 0 and 1 by device id, of a script that begins with FEATURES."""
    rows = (line.split() for line in guest.section("features").splitlines())
    return {int(id, 16): bits for id, bits in rows}


def check_rings(guest: Guest, checks: list[Check], version: str) -> None:
    """Every device is there, with packed rings, and in order where the kernel knows it."""
    found = negotiated(guest)
    assert set(found) == {int(check.device.device_id) for check in checks}
    for id, bits in found.items():
        assert bits[32] == "1", f"device {id}: VERSION_1"
        assert bits[34] == "1", f"device {id}: packed"
        assert bits[35] == ("1" if version == "7" else "0"), f"device {id}: in order"


class BalloonCheck:
    """The guest fills its memory, gives much of it away, and has it back."""

    modules: list[str] = ["virtio_balloon"]  # noqa: RUF012
    target = 64 * MIB // PAGE
    script = """
dd if=/dev/zero of=/tmp/fill bs=1M count=90 2>/dev/null
echo "@@filled"
read line
section free rm /tmp/fill
read line
section refill dd if=/dev/zero of=/tmp/fill bs=1M count=90
rm /tmp/fill
"""

    def __init__(self) -> None:
        self.stats: list[dict[int, int]] = []
        self.device = Balloon(on_stats=lambda stats: self.stats.append(dict(stats)))

    def run(self, guest: Guest) -> None:
        device = self.device
        guest.wait_for("^@@filled$")
        assert device.has(BalloonFeature.STATS_VQ)
        before = occupied(device.memory)
        guest.send("go on")
        guest.section("free")
        device.set_target(self.target)
        until(lambda: device.actual == self.target, "the balloon does not fill")
        assert len(device.pages) == self.target
        assert device.ignored == 0
        with device.locked():
            held = [pfn for pfn in device.pages if holds_data(device.memory, pfn * PAGE)]
        assert held == []
        assert before - occupied(device.memory) >= self.target * PAGE // 2
        # Some of what is asked for may be what the last answer was on its way for.
        came = len(self.stats)
        device.request_stats()
        until(lambda: len(self.stats) > came, "no statistics come")
        assert 100 * MIB < self.stats[-1][BalloonStat.MEMTOT] < 256 * MIB
        assert self.stats[-1][BalloonStat.MEMFREE] < self.stats[-1][BalloonStat.MEMTOT]
        device.set_target(0)
        until(lambda: device.actual == 0, "the balloon does not empty")
        assert device.pages == set()
        guest.send("go on")
        guest.section("refill")


def files(memory: GuestMemory) -> dict[int, int]:
    """A descriptor for each file that the guest's memory is in, by inode."""
    return {os.fstat(row.region.fd).st_ino: row.region.fd for row in memory.regions}


def occupied(memory: GuestMemory) -> int:
    """Bytes of the system's that the guest's memory takes."""
    return sum(os.fstat(fd).st_blocks * 512 for fd in files(memory).values())


def holds_data(memory: GuestMemory, addr: int) -> bool:
    """Does the page take memory of the system? A page of no memory does."""
    try:
        region, offset = memory.translate(addr, PAGE)
    except AddressError:
        return True
    place = region.offset + offset
    try:
        return os.lseek(region.fd, place, os.SEEK_DATA) < place + PAGE
    except OSError:
        # Nothing but a hole up to the end.
        return False


class ConsoleCheck:
    """Bytes both ways through the terminal hvc0 and through a port of its own."""

    modules: list[str] = ["virtio_console"]  # noqa: RUF012
    size = 200_000
    script = f"""
section port sh -c 'cat /sys/class/virtio-ports/vport*/name'
stty -F /dev/hvc0 raw -echo
exec 4<>/dev/hvc0
echo "@@terminal"
section hvc sh -c 'echo "from the guest" >&4; head -n 1 <&4'
exec 4>&-
node=$(grep -l wire /sys/class/virtio-ports/vport*/name)
node=/dev/$(basename $(dirname $node))
exec 5<>$node
echo "@@wire"
section wire sh -c 'head -c {size} <&5 | tee /tmp/wire | sha256sum; cat /tmp/wire >&5'
exec 5>&-
"""

    def __init__(self) -> None:
        self.typed = bytearray()
        self.came = bytearray()
        self.terminal = Port("terminal", output=self._typed, console=True)
        self.wire = Port("wire", output=self._came)
        self.device = Console([self.terminal, self.wire], size=(80, 25))

    def _typed(self, data: bytes) -> None:
        self.typed += data

    def _came(self, data: bytes) -> None:
        self.came += data

    def run(self, guest: Guest) -> None:
        assert guest.section("port").split() == ["terminal", "wire"]
        guest.wait_for("^@@terminal$")
        self.terminal.send(b"from the host\n")
        assert guest.section("hvc") == "from the host\n"
        until(lambda: b"from the guest" in self.typed, "nothing is typed")
        guest.wait_for("^@@wire$")
        data = random.Random(5).randbytes(self.size)
        self.wire.send(data)
        assert guest.section("wire").split()[0] == hashlib.sha256(data).hexdigest()
        until(lambda: len(self.came) >= self.size, "not all comes back")
        assert self.came == data
        until(lambda: not self.wire.guest_open, "the guest's end stays open")


class NetCheck:
    """The guest pings the host, and gets and puts a file."""

    modules: list[str] = ["virtio_net"]  # noqa: RUF012
    script = f"""
ifconfig eth0 {GUEST} netmask 255.255.255.0 up
until grep -q up /sys/class/net/eth0/operstate; do sleep 0.1; done
section mac cat /sys/class/net/eth0/address
section ping ping -c 3 -s 1400 {HERE}
section get sh -c 'tftp -g -r there -l /tmp/there -b 1428 {HERE} && sha256sum /tmp/there'
section put tftp -p -l /tmp/there -r back -b 1428 {HERE}
"""

    def __init__(self, mac: bytes | None = None) -> None:
        self.mac = mac
        self.data = random.Random(6).randbytes(500_000)
        self.host = NetHost({"there": self.data})
        self.device = Net(self.host, mac=mac)

    def run(self, guest: Guest) -> None:
        address = bytes.fromhex(guest.section("mac").strip().replace(":", ""))
        if self.mac is not None:
            assert address == self.mac
        assert "3 packets transmitted, 3 packets received, 0% packet loss" in guest.section("ping")
        assert self.host.pings == 3
        assert guest.section("get").split()[0] == hashlib.sha256(self.data).hexdigest()
        guest.section("put")
        assert self.host.files["back"] == self.data
        pair = self.device.pairs[0]
        assert pair.malformed == 0
        assert min(pair.transmitted_bytes, pair.received_bytes) > len(self.data)
