"""Linux's RPMsg driver and its clients talk to our device."""

from __future__ import annotations

import hashlib
import struct
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.interop.builds import RPMSG, RPMSG_SAMPLE
from tests.interop.guest import Guest
from tests.interop.initramfs import linux61
from tests.interop.test_vfio_user_guest import function
from tests.interop.test_vfio_user_guest import served as served_vfio
from tests.interop.test_vhost_user_guest import any_device
from tests.interop.test_vhost_user_guest import served as served_vhost
from virtring.rpmsg import (
    Channel,
    DeviceBus,
    Endpoint,
    Messages,
    RpmsgDevice,
    RpmsgDriver,
)

pytestmark = [pytest.mark.interop, pytest.mark.timeout(900)]

SAMPLE = "rpmsg-client-sample"
#: Linux's rpmsg_char makes a device node of a channel of this name.
RAW = "rpmsg-raw"
#: Where the guest's own channel sends to, and what address it has.
HERE, THERE = 0x40, 0x700
LARGEST = 496
FLOOD, BACK = 20_000, 2_000

# Over PCI, Linux creates an announced channel and calls its clients in the interrupt, where it must
# not sleep: the guest idles meanwhile, so that no lock is taken, and device nodes are made from a
# shell.
SCRIPT = f"""\
idle() {{
    echo "@@idle $1"
    read line
}}
section features cat /sys/bus/virtio/devices/virtio0/features
idle sample
section nodes ls /dev/rpmsg_ctrl0

section raw rpmsg_channel create {RAW} {THERE + 1} {HERE + 1}
exec 3<>/dev/rpmsg0
dd if=/modules/virtio_rpmsg_bus.ko of=/largest bs={LARGEST} count=1 2>/dev/null
dd if=/modules/virtio_rpmsg_bus.ko of=/longer bs={LARGEST + 1} count=1 2>/dev/null
section largest sh -c 'cat /largest >&3; dd bs=4096 count=1 <&3 2>/dev/null | cmp - /largest'
section longer sh -c '! cat /longer >&3'
section flood sh -c 'dd if=/dev/zero bs=64 count={FLOOD} >&3'
section back sh -c 'echo back >&3; dd bs={LARGEST} count={BACK} <&3 2>/dev/null | sha256sum'
exec 3>&-
section unraw rpmsg_channel release {RAW} {THERE + 1} {HERE + 1}

section create rpmsg_channel create {SAMPLE} {THERE} {HERE}
idle theirs
section release rpmsg_channel release {SAMPLE} {THERE} {HERE}
idle release

rmmod virtio_rpmsg_bus
section unbound ls /sys/bus/rpmsg/devices
insmod /modules/virtio_rpmsg_bus.ko
idle again
section log dmesg
"""


class Host:
    """What the device does; counts by channel or address."""

    def __init__(self) -> None:
        self.sample = 0
        self.fixed = 0
        self.zeros = 0
        self.largest = b""
        self.came: list[tuple[str, int]] = []
        self.gone: list[tuple[str, int]] = []
        self.sessions = 0
        host = self

        class Device(RpmsgDevice):
            def started(self, bus: DeviceBus) -> None:
                host.sessions += 1
                bus.create_ept(host.on_fixed, addr=HERE)
                bus.create_ept(host.on_raw, addr=HERE + 1)

        self.device = Device(
            drivers=(RpmsgDriver((SAMPLE, RAW), probe=self.appeared, remove=self.left),)
        )

    @property
    def bus(self) -> DeviceBus:
        assert self.device.bus is not None
        return self.device.bus

    def announce(self) -> Channel:
        return self.bus.create_channel(
            SAMPLE, announce=True, driver=RpmsgDriver(SAMPLE, self.on_sample)
        )

    def on_sample(self, ept: Endpoint, data: bytes, src: int) -> None:
        assert data == b"hello world!"
        self.sample += 1
        ept.send(data)

    def on_fixed(self, ept: Endpoint, data: bytes, src: int) -> None:
        assert (data, src) == (b"hello world!", THERE)
        self.fixed += 1
        # The first one comes while the guest holds the lock that it takes for its next one.
        if self.fixed > 1:
            ept.sendto(data, src)

    def appeared(self, channel: Channel) -> None:
        self.came.append((channel.name, channel.dst))

    def left(self, channel: Channel) -> None:
        self.gone.append((channel.name, channel.dst))

    def on_raw(self, ept: Endpoint, data: bytes, src: int) -> None:
        if data == bytes(64):
            self.zeros += 1
        elif data == b"back\n":
            rows = Messages(50)
            for first in range(0, BACK, 50):
                rows.count = 0
                for number in range(first, first + 50):
                    rows.append(numbered(number), dst=src)
                assert ept.sendto_many(rows) == 50
        else:
            self.largest = data
            ept.sendto(data, src)


def numbered(number: int) -> bytes:
    return struct.pack("<Q", number) + bytes(range(LARGEST - 8 - 240)) + bytes(240)


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


def program(where: Path) -> Path:
    """A static program for the guest."""
    source = Path(__file__).with_name("rpmsg_channel.c")
    subprocess.run(["cc", "-O2", "-static", "-o", str(where), str(source)], check=True)
    return where


Served = Callable[[RpmsgDevice, Path], AbstractContextManager[object]]


def over_vhost_user(socket: Path) -> list[str]:
    return any_device(socket, 7, 2, size=256)


@pytest.mark.parametrize(
    ("served", "devices"),
    [(served_vhost, over_vhost_user), (served_vfio, function)],
    ids=["vhost-user", "vfio-user"],
)
def test_linux_drives_our_device(
    tmp_path: Path, served: Served, devices: Callable[[Path], list[str]]
) -> None:
    host = Host()
    socket = tmp_path / "socket"
    kernel = linux61(rpmsg=True)
    with (
        served(host.device, socket),
        Guest(
            kernel,
            SCRIPT,
            workdir=tmp_path / "guest",
            modules=[*RPMSG, RPMSG_SAMPLE],
            files={"bin/rpmsg_channel": program(tmp_path / "rpmsg_channel")},
            devices=devices(socket),
        ) as guest,
    ):
        features = guest.section("features")
        assert features[0] == "1", "name service"
        assert features[34] == "1", "packed"
        guest.wait_for("^@@idle sample$")
        bus = host.bus
        channel = host.announce()
        until(lambda: host.sample == 100)
        guest.send("go on")
        guest.section("nodes")

        guest.section("raw")
        guest.section("largest")
        module = kernel.modules(["virtio_rpmsg_bus"])["virtio_rpmsg_bus"]
        assert host.largest == module[:LARGEST]
        guest.section("longer")
        guest.section("flood", 300)
        wanted = hashlib.sha256(b"".join(map(numbered, range(BACK)))).hexdigest()
        assert guest.section("back").split()[0] == wanted
        # They came before the question for the way back.
        assert host.zeros == FLOOD
        guest.section("unraw")

        guest.section("create")
        guest.wait_for("^@@idle theirs$")
        until(lambda: host.fixed == 1)
        bus.send_offchannel(HERE, THERE, b"hello world!")
        until(lambda: host.fixed == 100)
        assert host.came == [(RAW, THERE + 1), (SAMPLE, THERE)]
        guest.send("go on")
        guest.section("release")
        guest.wait_for("^@@idle release$")
        until(lambda: host.gone == host.came)
        channel.destroy()
        guest.send("go on")

        assert guest.section("unbound") == ""
        guest.wait_for("^@@idle again$")
        host.announce()
        until(lambda: host.sample == 200)
        bus = host.bus
        dropped = bus.counters.dropped
        guest.send("go on")
        log = guest.section("log")
        guest.finish()
    assert host.sessions == 2
    assert f"creating channel {SAMPLE} addr 0x400" in log
    assert f"destroying channel {SAMPLE} addr 0x400" in log
    assert log.count("incoming msg 100 (src: 0x400)") == 2
    assert log.count(f"incoming msg 100 (src: {HERE:#x})") == 1
    assert f"message is too big ({LARGEST + 1})" in log
    assert "BUG" not in log
    assert sum(dropped.values()) == 0, dropped
