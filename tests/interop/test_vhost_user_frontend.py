"""Our drivers use devices of other implementations: QEMU's storage daemon and virtiofsd."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from tests.interop.daemons import filesystem_daemon, storage_daemon
from tests.transport.vhost_user import (
    FLUSH,
    IN,
    OUT,
    Requests,
    bound,
    driver_class,
    front,
    ops,
)
from virtring.memory import GuestMemory
from virtring.spec.blk import BLK_CONFIG
from virtring.transport.vhost_user import Protocol, vhost_user_device
from virtring.transport.vhost_user.requests import WANTED

pytestmark = [pytest.mark.interop, pytest.mark.timeout(120)]

SIZE = 4 << 20


@pytest.mark.parametrize(
    "wanted",
    [WANTED, WANTED & ~Protocol.CONFIGURE_MEM_SLOTS, WANTED & ~Protocol.REPLY_ACK],
    ids=["all", "table", "noack"],
)
def test_storage_daemon(tmp_path: Path, wanted: Protocol) -> None:
    data = random.Random(3).randbytes(SIZE)
    image = tmp_path / "image"
    image.write_bytes(data)
    memory = GuestMemory.create(16 << 20)
    socket = tmp_path / "socket"
    with storage_daemon(socket, f"driver=file,filename={image}", queues=2):
        vdev = front(socket, memory, wanted=wanted)
        assert ops(vdev).front.queues == 2
        driver = bound(vdev, driver_class(2))
        assert vdev.cread(BLK_CONFIG, "capacity") == SIZE // 512
        for index in range(2):
            requests = Requests(driver, memory, index)
            for _ in range(30):
                tokens = {requests.submit(IN, 16 * i, size=8192): i for i in range(30)}
                requests.vq.kick()
                while tokens:
                    token, status, read = requests.finish()
                    place = tokens.pop(token) * 8192
                    assert status == 0
                    assert read == data[place : place + 8192]
        assert requests.run(OUT, 1000, b"\x11" * 4096)[0] == 0
        assert requests.run(FLUSH, 0)[0] == 0
        driver.remove()
        # A second driver of the same connection.
        vdev.driver = None
        requests = Requests(bound(vdev, driver_class(1)), memory)
        assert requests.run(IN, 1000, size=4096) == (0, b"\x11" * 4096)
        requests.driver.remove()
        ops(vdev).close()
    assert image.read_bytes() == data[:512000] + b"\x11" * 4096 + data[516096:]


def test_null_disk_polled(tmp_path: Path) -> None:
    memory = GuestMemory.create(16 << 20)
    socket = tmp_path / "socket"
    with storage_daemon(socket, "driver=null-co,size=536870912,read-zeroes=on"):
        vdev = front(socket, memory, interrupts=False)
        requests = Requests(bound(vdev, driver_class(1, callbacks=False)), memory)
        for _ in range(50):
            for i in range(40):
                requests.submit(IN, 8 * i, size=4096)
            requests.vq.kick()
            for _ in range(40):
                assert requests.finish()[1:] == (0, bytes(4096))
        requests.driver.remove()
        ops(vdev).close()


#: fuse_in_header: len, opcode, unique, nodeid, uid, gid, pid, padding (or extensions).
IN_HEADER = struct.Struct("<IIQQIIII")
#: fuse_out_header: len, error, unique.
OUT_HEADER = struct.Struct("<IiQ")
LOOKUP, OPEN, READ, INIT = 1, 14, 15, 26


class Fuse:
    """FUSE requests over the first request queue of a file system device."""

    def __init__(self, requests: Requests) -> None:
        self.requests = requests
        self.unique = 1

    def call(self, opcode: int, node: int, body: bytes, room: int) -> bytes:
        memory, vq = self.requests.memory, self.requests.vq
        self.unique += 2
        head = IN_HEADER.pack(40 + len(body), opcode, self.unique, node, 0, 0, 0, 0)
        asked = memory.alloc(len(head) + len(body))
        answer = memory.alloc(16 + room)
        memory.write(asked, head + body)
        vq.virtqueue_add(
            [(asked, 40 + len(body))], [(answer, 16 + room)], self.unique, premapped=True
        )
        vq.kick()
        token, length = self.requests.driver.take(vq)
        assert token == self.unique
        got = memory.read(answer, length)
        size, error, unique = OUT_HEADER.unpack_from(got)
        assert (size, error, unique) == (length, 0, self.unique)
        memory.free(asked)
        memory.free(answer)
        return got[OUT_HEADER.size :]


def test_virtiofsd(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    data = random.Random(4).randbytes(100_000)
    (folder / "file").write_bytes(data)
    memory = GuestMemory.create(4 << 20)
    socket = tmp_path / "socket"
    with filesystem_daemon(socket, folder):
        vdev = vhost_user_device(socket, memory, 26)
        # Queue 0 is for what has priority.
        fuse = Fuse(Requests(bound(vdev, driver_class(2)), memory, 1))
        init = fuse.call(INIT, 0, struct.pack("<IIII", 7, 31, 1 << 16, 0) + bytes(48), 64)
        assert struct.unpack_from("<II", init) >= (7, 27)
        entry = fuse.call(LOOKUP, 1, b"file\0", 128)
        (node,) = struct.unpack_from("<Q", entry)
        (handle,) = struct.unpack_from("<Q", fuse.call(OPEN, node, struct.pack("<II", 0, 0), 16))
        for offset in range(0, len(data), 16384):
            body = struct.pack("<QQIIQII", handle, offset, 16384, 0, 0, 0, 0)
            assert fuse.call(READ, node, body, 16384) == data[offset : offset + 16384]
        fuse.requests.driver.remove()
        ops(vdev).close()
