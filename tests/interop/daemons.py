"""The stock servers and programs, started as they are needed again and again."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.interop.peers import require
from tests.interop.process import Daemon, Process


def storage_daemon(socket: Path, blockdev: str, *, queues: int = 1) -> Daemon:
    """qemu-storage-daemon as a vhost-user block device at `socket`.

    `blockdev` is its driver and options, such as ``driver=file,filename=IMAGE`` or
    ``driver=null-co,size=536870912,read-zeroes=on``.
    """
    export = f"type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues={queues}"
    return Daemon(
        require("qemu-storage-daemon"),
        [
            *("--blockdev", f"{blockdev},node-name=disk"),
            *("--export", f"{export},addr.type=unix,addr.path={socket}"),
        ],
        sockets=[socket],
    )


def filesystem_daemon(socket: Path, folder: Path) -> Daemon:
    """virtiofsd: `folder` as a vhost-user file system at `socket`."""
    arguments = ["--socket-path", socket, "--shared-dir", folder, "--sandbox", "none"]
    return Daemon(require("virtiofsd"), arguments, sockets=[socket])


def _testpmd(vdev: str, cpu: int, arguments: tuple[str, ...]) -> tuple[list[str], list[str]]:
    lcores = f"--lcores=0@{cpu},1@{cpu}"
    # Memory that is not huge pages is a memfd, too, so it can be shared.
    memory = ["--no-huge", "-m", "256", "--no-shconf"]
    eal = [lcores, *memory, "--no-pci", "--no-telemetry"]
    forward = ["--nb-cores=1", "--forward-mode=io", "--total-num-mbufs=8192", "--interactive"]
    return [*eal, "--vdev", vdev], [*forward, *arguments]


def pmd_device(socket: Path, *arguments: str) -> Daemon:
    """DPDK's vhost as a net device at `socket`, which waits for commands such as ``start``.

    `arguments` go to testpmd behind its own.
    """
    cpu = min(os.sched_getaffinity(0))
    eal, own = _testpmd(f"net_vhost0,iface={socket},queues=1", cpu, arguments)
    return Daemon(require("dpdk-testpmd"), [*eal, "--", *own], sockets=[socket])


def pmd_driver(
    socket: Path, *arguments: str, size: int = 1024, queues: int = 1, options: str = ""
) -> Process:
    """DPDK's virtio_user as the driver of the net device at `socket`; waits for commands.

    `options` are those of virtio_user, such as ``packed_vq=1,in_order=1,mrg_rxbuf=0``; `size` is
    that of the queues, of which there are `queues` pairs.
    """
    cpu = max(os.sched_getaffinity(0))
    vdev = f"virtio_user0,path={socket},queues={queues},queue_size={size},mac=00:01:02:03:04:05"
    rings = ["--no-lsc-interrupt", f"--txd={size}", f"--rxd={size}"]
    rings += [f"--txq={queues}", f"--rxq={queues}"]
    eal, own = _testpmd(",".join(filter(None, (vdev, options))), cpu, (*rings, *arguments))
    return Process(require("dpdk-testpmd"), [*eal, "--single-file-segments", "--", *own])


def pmd_counts(testpmd: Process) -> tuple[int, int]:
    """How many packets its port has received and sent."""
    # The last \s: a number may arrive in two pieces.
    wanted = r"RX-packets: (\d+)\s(?:.*\n)*?.*TX-packets: (\d+)\s"
    found = testpmd.ask("show port stats 0", wanted)
    return int(found[1]), int(found[2])


def pmd_forward(
    device: Process | None, driver: Process, *, bursts: int, timeout: float = 60
) -> None:
    """Start both ends; `bursts` times 32 packets go round from then on.

    A `device` that is no testpmd needs no start. Fails the test when they do not come back to
    `driver`.
    """
    limit = time.monotonic() + timeout
    driver.wait_for("testpmd> ")
    if device is not None:
        device.wait_for("testpmd> ")
        while device.ask("show port info 0", r"Link status: (\w+)\s")[1] != "up":
            if time.monotonic() > limit:
                device.fail("no driver has come")
            time.sleep(0.1)
        device.send("start")
    while pmd_counts(driver)[0] < 32 * bursts:
        if time.monotonic() > limit:
            driver.fail("no packets come back")
        # What comes before the device forwards is lost, so begin again.
        driver.send("stop")
        driver.send(f"start tx_first {bursts}")
        time.sleep(0.5)
