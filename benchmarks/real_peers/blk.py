"""Our vhost-user disk and qemu-storage-daemon's in one Linux guest, used in turns by fio."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from benchmarks.real_peers.row import Row
from tests.interop.cache import Program
from tests.interop.daemons import storage_daemon
from tests.interop.guest import Guest
from tests.interop.initramfs import linux61
from tests.interop.peers import require
from tests.interop.process import Daemon

SIZE = 256 << 20
#: Measured pieces of a round, each of so many seconds.
PIECES = 3
SECONDS = 1
#: fio's pattern, block size, depth.
CASES = [
    ("randread", "4k", 1), ("randwrite", "4k", 1), ("randread", "4k", 32), ("randwrite", "4k", 32),
    ("read", "1m", 4), ("write", "1m", 4),
]


def our_disk(socket: Path, image: Path, *options: str) -> Daemon:
    """``virtring serve blk IMAGE --vhost-user SOCKET`` in a process of its own."""
    python = Program((sys.executable, "-m", "virtring"), Path(sys.executable))
    arguments: list[str | Path] = ["serve", "blk", image, "--vhost-user", socket, *options]
    return Daemon(python, arguments, sockets=[socket])


def disk(name: str, socket: Path) -> list[str]:
    return [
        *("-chardev", f"socket,id={name},path={socket}"),
        *("-device", f"vhost-user-blk-pci,chardev={name},num-queues=1"),
    ]


def fio(pattern: str, block: str, depth: int, device: str) -> str:
    return (
        f"fio --name=x --filename=/dev/{device} --direct=1 --thread --ioengine=libaio"
        f" --rw={pattern} --bs={block} --iodepth={depth} --time_based --runtime={SECONDS}"
        " --output-format=json"
    )


def result(text: str, pattern: str, block: str) -> float:
    """Requests a second of 4 KiB, MiB/s of 1 MiB."""
    job = json.loads(text[text.index("{") :])["jobs"][0]["write" if "write" in pattern else "read"]
    return float(job["bw"]) / 1024 if block == "1m" else float(job["iops"])


def run(rounds: int, *options: str) -> list[Row]:
    turns = PIECES * rounds
    script = "".join(
        f"section {pattern}.{block}.{depth}.{device}.{turn} {fio(pattern, block, depth, device)}\n"
        for pattern, block, depth in CASES
        for turn in range(turns)
        # The first of a pair changes, so that neither is always behind the other.
        for device in (("vda", "vdb") if turn % 2 == 0 else ("vdb", "vda"))
    )
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        sockets = [work / "ours", work / "theirs"]
        images = [work / "ours.img", work / "theirs.img"]
        for image in images:
            image.write_bytes(os.urandom(1 << 20) * (SIZE >> 20))
        with (
            our_disk(sockets[0], images[0], *options),
            storage_daemon(sockets[1], f"driver=file,filename={images[1]}"),
            Guest(
                linux61(),
                script,
                workdir=work,
                modules=["virtio_blk"],
                files={"bin/fio": require("fio")},
                memory=512,
                devices=[*disk("c0", sockets[0]), *disk("c1", sockets[1])],
            ) as guest,
        ):
            rows = []
            for pattern, block, depth in CASES:
                figures = {
                    device: tuple(
                        result(
                            guest.section(f"{pattern}.{block}.{depth}.{device}.{turn}"),
                            pattern, block,
                        )
                        for turn in range(turns)
                    )
                    for device in ("vda", "vdb")
                }
                what = f"guest's disk, fio {pattern}, {block}, depth {depth} (qemu-storage-daemon)"
                unit = "MiB/s" if block == "1m" else "requests/s"
                rows.append(Row(what, figures["vda"], figures["vdb"], unit, 1.0))
                print(rows[-1].what, f"{rows[-1].ratio:.2f}", file=sys.stderr)
            guest.finish()
    return rows
