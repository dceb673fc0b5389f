"""The network device on a TAP interface: frames to and from the kernel's own network stack."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap

import pytest

from virtring.devices.net_backend import TUN, Tap
from virtring.errors import InvalidArgument

SCRIPT = textwrap.dedent(
    """
    import socket, struct, subprocess, time
    from virtring.device import VirtioBus
    from virtring.devices.net import Net
    from virtring.devices.net_backend import Tap
    from virtring.drivers.net import NetDriver
    from virtring.errors import WaitTimeout
    from virtring.memory import GuestMemory
    from virtring.transport import loopback

    tap = Tap("vr0")
    assert tap.name == "vr0"
    for line in ("link set vr0 up", "addr add 10.9.9.1/24 dev vr0"):
        subprocess.run(["ip", *line.split()], check=True)
    net = Net(tap, mac=b"\\x52\\x54\\0\\0\\0\\x09")
    vdev = loopback(net, GuestMemory.create(8 << 20))
    bus = VirtioBus()
    bus.register_driver(NetDriver)
    bus.register_device(vdev)
    driver = vdev.driver
    us, ours = driver.mac, socket.inet_aton("10.9.9.2")
    # The kernel asks who has our address; we answer, and then it sends us its datagram.
    kernel = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    kernel.bind(("10.9.9.1", 7000))
    kernel.settimeout(10)
    kernel.sendto(b"question", ("10.9.9.2", 7001))
    end = time.monotonic() + 20
    while True:
        assert time.monotonic() < end
        frame = driver.receive(10)
        kind = frame[12:14]
        if kind == b"\\x08\\x06" and frame[38:42] == ours:
            them, theirs = frame[22:28], frame[28:32]
            arp = frame[14:20] + b"\\0\\2" + us + ours + them + theirs
            driver.send(them + us + kind + arp)
        elif kind == b"\\x08\\0" and frame[23] == 17 and frame.endswith(b"question"):
            break
    # The answer: addresses and ports the other way round; no UDP checksum.
    ip = bytearray(frame[14:34])
    ip[12:16], ip[16:20] = ip[16:20], ip[12:16]
    udp = frame[36:38] + frame[34:36] + struct.pack(">HH", 14, 0) + b"answer"
    struct.pack_into(">H", ip, 2, 20 + len(udp))
    ip[10:12] = b"\\0\\0"
    total = sum(struct.unpack(">10H", ip))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    struct.pack_into(">H", ip, 10, total ^ 0xFFFF)
    driver.send(frame[6:12] + us + b"\\x08\\0" + bytes(ip) + udp)
    assert kernel.recvfrom(100) == (b"answer", ("10.9.9.2", 7001))
    assert net.pairs[0].transmitted >= 2 and net.pairs[0].received >= 2 and tap.refused == 0
    # An interface that is down takes nothing, and says so.
    subprocess.run("ip link set vr0 down".split(), check=True)
    driver.send(b"\\xff" * 60)
    assert tap.refused == 1
    bus.unregister_device(vdev)
    net.close()
    net.close()
    print("done")
    """
)


def test_kernel_talks_to_the_driver() -> None:
    if os.geteuid() != 0 or not os.path.exists(TUN):
        pytest.skip(f"takes root and {TUN}")
    unshare, ip = shutil.which("unshare"), shutil.which("ip")
    if unshare is None or ip is None:
        pytest.skip("takes the commands unshare and ip")
    ran = subprocess.run(
        [unshare, "--net", sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "done\n"


def test_interface_that_cannot_be() -> None:
    with pytest.raises(InvalidArgument, match=r"cannot be opened|no TAP interface"):
        Tap("a/name that is too long for any interface"[:16])
