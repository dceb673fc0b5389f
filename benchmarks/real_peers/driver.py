"""Our block driver beside libblkio's, each against qemu-storage-daemon's disk of zeros."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.real_peers.row import Row
from tests.interop.daemons import storage_daemon
from tests.interop.peers import require
from tests.interop.process import Process
from virtring.device import VirtioBus
from virtring.drivers.blk import BlkDriver
from virtring.drivers.blk_io import BlkBatch, BlkQueue
from virtring.memory import GuestMemory
from virtring.queue import EventFd
from virtring.spec.blk import BlkType
from virtring.spec.ids import DeviceID
from virtring.transport.vhost_user import VhostUserOps, vhost_user_device

NULL = "driver=null-co,size=536870912,read-zeroes=on"
DEPTH = 64
#: Requests that are submitted at once; the device has the others to go on with.
CHUNK = 8
#: So large that every chain goes into the ring itself, which the daemon is fastest with.
RING = 256
BLOCK = 4096
#: Random places, drawn beforehand and used in turn.
PLACES = 1 << 16
SECONDS = 2


def theirs(socket: Path, poll: bool) -> float:
    """libblkio's reads a second, in thousands."""
    arguments = [
        *("--readwrite=randread", f"--blocksize={BLOCK}", f"--iodepth={DEPTH}"),
        *(f"--runtime={SECONDS}", *(["--poll"] if poll else [])),
        *("virtio-blk-vhost-user", f"path={socket}"),
    ]
    with Process(require("blkio-bench"), arguments) as bench:
        return float(json.loads(bench.finish())["aggregate"]["kiops"])


def read_for(
    queue: BlkQueue, memory: GuestMemory, seconds: float, call: EventFd | None
) -> float:
    """Thousands of reads a second; with ``call`` it sleeps until told."""
    data = memory.alloc(DEPTH * BLOCK, BLOCK)
    rows = BlkBatch(DEPTH)
    rows.type[:] = BlkType.IN
    rows.len[:] = BLOCK
    rows.addr[:] = data + BLOCK * np.arange(DEPTH, dtype=np.uint64)
    where = 8 * np.random.default_rng(1).integers(0, queue.capacity // 8, PLACES, np.uint64)
    rows.sector[:] = where[:DEPTH]
    start = time.perf_counter()
    end = start + seconds
    done = free = place = 0
    queue.submit(rows, 0, DEPTH)
    queue.kick()
    while time.perf_counter() < end:
        n = queue.reap(rows, None, free)
        if n:
            done += n
            free += n
            if free >= CHUNK:
                place = place + free if place + 2 * free <= PLACES else 0
                rows.sector[:free] = where[place : place + free]
                queue.submit(rows, 0, free)
                queue.kick()
                free = 0
        elif call is not None:
            # Told when most are done: the device has the others to go on with meanwhile.
            if queue.vq.enable_cb_delayed():
                call.wait(1)
            queue.vq.disable_cb()
    elapsed = time.perf_counter() - start
    while queue.in_flight:
        queue.reap(rows)
    memory.free(data)
    return done / elapsed / 1000


def ours(socket: Path, poll: bool) -> float:
    """The same by our driver."""
    memory = GuestMemory.create(16 << 20)
    vdev = vhost_user_device(socket, memory, int(DeviceID.BLOCK), interrupts=False, queue_size=RING)
    assert isinstance(vdev.config, VhostUserOps)
    bus = VirtioBus()
    bus.register_driver(BlkDriver)
    bus.register_device(vdev)
    driver = vdev.driver
    assert isinstance(driver, BlkDriver)
    try:
        with driver.polled(depth=DEPTH) as queue:
            call = None if poll else vdev.config.call_event(queue.vq.index)
            return read_for(queue, memory, SECONDS, call)
    finally:
        driver.remove()
        vdev.config.close()


def run(rounds: int) -> list[Row]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        socket = Path(folder) / "socket"
        for poll in (False, True):
            pairs = []
            for _ in range(rounds):
                with storage_daemon(socket, NULL):
                    mine = ours(socket, poll)
                with storage_daemon(socket, NULL):
                    pairs.append((mine, theirs(socket, poll)))
            how = "both poll" if poll else "notifications"
            rows.append(
                Row(
                    f"driver, random reads of 4 KiB, depth {DEPTH}, {how} (libblkio)",
                    tuple(pair[0] for pair in pairs),
                    tuple(pair[1] for pair in pairs),
                    "1000/s",
                    1.0 if poll else 0.7,
                )
            )
    return rows
