"""A back end in a process of its own, to be killed: ``DEVICE SOCKET [IMAGE]``."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.transport.vhost_user import Echo
from virtring import DeviceQueue
from virtring.device import Device
from virtring.devices.blk import Blk
from virtring.queue import Chain
from virtring.transport.vhost_user import VhostUserServer


class Keeper(Echo):
    """Returns a buffer only when its first byte is even; keeps the others for ever."""

    def handle_queue(self, index: int, queue: DeviceQueue) -> None:
        for chain in self.chains(queue):
            self.keep(chain) if chain.read(1)[0] & 1 else self.give(chain)

    def give(self, chain: Chain) -> None:
        chain.write(b"kept"[: chain.writable_bytes])
        chain.return_()

    def keep(self, chain: Chain) -> None:
        self.kept = [*getattr(self, "kept", []), chain]


def make(kind: str, image: str) -> Device:
    if kind == "blk":
        return Blk(image)
    return Keeper(queue_size=64) if kind == "keeper" else Echo(queue_size=64)


@contextmanager
def back_end(kind: str, path: Path, image: Path | str = "") -> Iterator[subprocess.Popen[bytes]]:
    """The process, once its socket is there; killed (-9) at the end if it still lives."""
    path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "tests.transport.backend_process", kind, str(path), str(image)]
    process = subprocess.Popen(command)
    try:
        while not path.is_socket():
            assert process.poll() is None, "the back end ended"
            time.sleep(0.01)
        yield process
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    VhostUserServer(make(sys.argv[1], sys.argv[3]), sys.argv[2]).run()
