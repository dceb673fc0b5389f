"""A disk whose queues have a thread each: side by side, stopped in mid-request, odd descriptors."""

from __future__ import annotations

import os
import random
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.transport.raw_front import ALL, RawFront, RawRing, settled
from tests.transport.vhost_user import (
    FLUSH,
    IN,
    OUT,
    Requests,
    bound,
    driver_class,
    front,
    open_fds,
    ops,
    served,
)
from virtring.devices.blk import Blk
from virtring.memory import GuestMemory, Region
from virtring.spec.features import Feature
from virtring.transport.vhost_user import Protocol, Request
from virtring.transport.vhost_user.message import U64

BLOCK = 4096
BLOCKS = 256
QUEUES = 4
PACKED = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(random.Random(1).randbytes(BLOCK * BLOCKS))
    return path


@pytest.fixture
def disk(image: Path) -> Iterator[Blk]:
    device = Blk(image, num_queues=QUEUES)
    yield device
    device.close()


def workers() -> list[str]:
    return sorted(t.name for t in threading.enumerate() if t.name.startswith("virtring req."))


def soon(condition: object) -> bool:
    assert callable(condition)
    for _ in range(2000):
        if condition():
            return True
        time.sleep(0.01)
    return False


def use(requests: Requests, index: int, expected: bytearray, errors: list[BaseException]) -> None:
    """Write and read back blocks that are no other queue's."""
    rng = random.Random(index)
    own = range(index, BLOCKS, QUEUES)
    try:
        for _ in range(25):
            batch = rng.sample(own, 12)
            for block in batch:
                data = rng.randbytes(BLOCK)
                expected[block * BLOCK : (block + 1) * BLOCK] = data
                requests.submit(OUT, block * 8, data)
            requests.vq.kick()
            for _ in batch:
                assert requests.finish()[1] == 0
            tokens = {requests.submit(IN, block * 8, size=BLOCK): block for block in batch}
            requests.vq.kick()
            for _ in batch:
                token, status, data = requests.finish()
                block = tokens.pop(token)
                assert status == 0
                assert data == expected[block * BLOCK : (block + 1) * BLOCK]
    except BaseException as error:
        errors.append(error)


@pytest.mark.parametrize("poll", [False, True], ids=["kicks", "poll"])
@pytest.mark.parametrize("ring", ["split", "packed"])
def test_side_by_side(tmp_path: Path, disk: Blk, image: Path, ring: str, poll: bool) -> None:
    """Four queues in use at once, while memory comes and goes and the configuration is read."""
    path = tmp_path / "socket"
    expected = bytearray(image.read_bytes())
    errors: list[BaseException] = []
    memory = GuestMemory.create(16 << 20)
    with served(disk, path, poll=poll):
        vdev = front(path, memory)
        driver = bound(vdev, driver_class(QUEUES, ring))
        assert soon(lambda: workers() == [f"virtring req.{i}" for i in range(QUEUES)])
        users = [
            threading.Thread(target=use, args=(Requests(driver, memory, i), i, expected, errors))
            for i in range(QUEUES)
        ]
        for user in users:
            user.start()
        turn = 0
        extra = Region.memfd(1 << 16)
        while any(user.is_alive() for user in users):
            turn += 1
            memory.add_region(turn << 32, extra)
            ops(vdev).share_memory()
            vdev.config.get(vdev, 0, 8)
            memory.remove_region(turn << 32, extra.size)
            ops(vdev).share_memory()
        for user in users:
            user.join()
        assert not errors, errors
        assert Requests(driver, memory).run(FLUSH, 0)[0] == 0
        driver.remove()
        assert soon(lambda: not workers())
        ops(vdev).close()
    assert image.read_bytes() == expected


@pytest.mark.parametrize("ring", ["split", "packed"])
def test_reset_of_a_queue_in_the_middle(tmp_path: Path, disk: Blk, image: Path, ring: str) -> None:
    """What was used before the stop is taken, the rest comes back; another queue goes on."""
    path = tmp_path / "socket"
    memory = GuestMemory.create(16 << 20)
    with served(disk, path):
        vdev = front(path, memory)
        driver = bound(vdev, driver_class(2, ring))
        requests = Requests(driver, memory)
        other = Requests(driver, memory, 1)
        data = image.read_bytes()
        done: list[object] = []
        for turn in range(20):
            tokens = {requests.submit(IN, 8 * i, size=BLOCK): i for i in range(30)}
            requests.vq.kick()
            waiting = other.submit(IN, 8 * turn, size=BLOCK)
            other.vq.kick()
            done.clear()
            requests.vq.reset(recycle=lambda _, token: done.append(token))
            assert len(set(done)) == len(done) <= len(tokens)
            for token in tokens:
                memory.free(token[0])
            got, status, read = other.finish()
            assert (got, status) == (waiting, 0)
            assert read == data[BLOCK * turn : BLOCK * (turn + 1)]
            assert requests.run(IN, 8 * turn, size=BLOCK) == (0, read)
        driver.remove()
        ops(vdev).close()


class RawDisk(RawRing):
    """A ring with block reads."""

    def read(self, block: int) -> tuple[int, int]:
        addr = self.memory.alloc(16 + BLOCK + 1)
        self.memory.write(addr, struct.pack("<IIQ", IN, 0, block * 8) + b"\xee" * (BLOCK + 1))
        self.vq.virtqueue_add(
            [(addr, 16)], [(addr + 16, BLOCK + 1)], (addr, block), premapped=True
        )
        return addr, block

    def check(self, data: bytes, timeout: float = 20) -> None:
        """The next used buffer is a read that went well."""
        deadline = time.monotonic() + timeout
        while (got := self.vq.get_buf()) is None:
            assert time.monotonic() < deadline, "nothing was used"
            time.sleep(0.001)
        (addr, block), length = got
        assert length == BLOCK + 1
        read = self.memory.read(addr + 16, BLOCK + 1)
        assert read == data[block * BLOCK : (block + 1) * BLOCK] + b"\0"
        self.memory.free(addr)


def raw_disk(path: Path, packed: bool, **options: int) -> RawDisk:
    front = RawFront(path, ALL & ~int(Protocol.LOG_SHMFD | Protocol.INFLIGHT_SHMFD))
    made = RawDisk(front, GuestMemory.create(4 << 20), packed=packed, **options)
    made.negotiate()
    made.set_memory()
    return made


@PACKED
def test_every_completion_is_told_in_the_end(
    tmp_path: Path, disk: Blk, image: Path, packed: bool
) -> None:
    """Of several that come while the first is held there is one notification; never none."""
    path, data = tmp_path / "socket", image.read_bytes()
    with served(disk, path):
        ring = raw_disk(path, packed, num=128)
        with ring.front:
            ring.start()
            for turn in range(60):
                count = 1 + turn % 40
                for i in range(count):
                    ring.read((turn + i) % BLOCKS)
                    # One at a time, as a guest does that has others in flight.
                    ring.vq.kick()
                left = count
                while left:
                    # As long as something is out, sleeping on the call must be safe.
                    assert ring.vq.more_used or ring.called()
                    while ring.vq.more_used:
                        ring.check(data)
                        left -= 1


def test_fewer_notifications_with_many_in_flight(
    tmp_path: Path, disk: Blk, image: Path
) -> None:
    path, data = tmp_path / "socket", image.read_bytes()
    with served(disk, path):
        ring = raw_disk(path, False, num=64)
        with ring.front:
            ring.start()
            # No notification is taken for an answer here, so the device sees a driver that always
            # has more to ask.
            for turn in range(3000):
                ring.read(turn % BLOCKS)
                ring.vq.kick()
                assert any(ring.vq.more_used for _ in range(10_000_000))
                ring.check(data)
            told = int.from_bytes(os.read(ring.call.fileno(), 8), "little")
            assert 0 < told < 3000


@PACKED
def test_request_that_is_none(tmp_path: Path, disk: Blk, image: Path, packed: bool) -> None:
    """The ring's thread ends, the front end is told, the next one is served."""
    path, data = tmp_path / "socket", image.read_bytes()
    with served(disk, path):
        for _ in range(2):
            ring = raw_disk(path, packed)
            with ring.front:
                ring.start()
                ring.read(3)
                ring.vq.kick()
                ring.check(data)
                addr = ring.memory.alloc(16)
                ring.vq.virtqueue_add([(addr, 16)], [], "bad", premapped=True)
                ring.vq.kick()
                assert ring.err.wait(20)
                assert soon(lambda: not workers())
                assert ring.front.alive()
                status = ring.front.ask(Request.GET_STATUS)
                assert status is not None
                assert U64.unpack(status)[0] & 64


@PACKED
def test_ring_of_nonsense(tmp_path: Path, disk: Blk, packed: bool) -> None:
    path = tmp_path / "socket"
    with served(disk, path):
        ring = raw_disk(path, packed)
        with ring.front:
            ring.start()
            ring.read(3)
            # Its address is nowhere.
            at = ring.config.desc
            ring.memory.write(at, struct.pack("<Q", 1 << 60))
            ring.vq.kick()
            assert ring.err.wait(20)
            assert soon(lambda: not workers())
            assert ring.front.alive()


def test_long_chain_in_a_long_ring(tmp_path: Path, disk: Blk, image: Path) -> None:
    """A driver may choose more entries than the device has by itself, and fill them."""
    path = tmp_path / "socket"
    count = 600
    with served(disk, path):
        ring = raw_disk(path, False, num=1024, extra=int(Feature.INDIRECT_DESC))
        with ring.front:
            # The first look at a ring, before its thread starts, is another way through.
            for started in (False, True):
                if started:
                    ring.read(0)
                    ring.vq.kick()
                    ring.check(image.read_bytes())
                addr = ring.memory.alloc(16 + 512 * count + 1)
                ring.memory.write(addr, struct.pack("<IIQ", IN, 0, 0))
                pieces = [(addr + 16 + 512 * i, 512) for i in range(count)]
                ring.vq.virtqueue_add(
                    [(addr, 16)], [*pieces, (addr + 16 + 512 * count, 1)], "long", premapped=True
                )
                if not started:
                    ring.start()
                ring.vq.kick()
                assert soon(lambda: ring.vq.more_used)
                assert ring.vq.get_buf() == ("long", 512 * count + 1)
                assert ring.memory.read(addr + 16, 512 * count) == image.read_bytes()[: 512 * count]


def test_segments_fit_into_a_usual_ring(disk: Blk) -> None:
    """QEMU's rings have 128 entries, and Linux makes chains as long as seg_max lets it."""
    assert int.from_bytes(disk.core.config[12:16], "little") + 2 <= 128


@PACKED
def test_descriptors_that_are_pipes(
    tmp_path: Path, disk: Blk, image: Path, packed: bool
) -> None:
    """A kick that ends, a call that nobody reads, and a kick that cannot be waited for."""
    path, data = tmp_path / "socket", image.read_bytes()
    before = open_fds()
    with served(disk, path):
        ring = raw_disk(path, packed)
        with ring.front:
            ring.start()
            reader, writer = os.pipe()
            os.close(reader)
            ring.front.tell(Request.SET_VRING_CALL, U64.pack(0), [writer])
            os.close(writer)
            for block in range(5):
                ring.read(block)
                ring.vq.kick()
                ring.check(data)
            reader, writer = os.pipe()
            ring.front.tell(Request.SET_VRING_KICK, U64.pack(0), [reader])
            os.close(reader)
            ring.read(7)
            os.write(writer, b"kick")
            ring.check(data)
            os.close(writer)
            assert soon(lambda: not workers())
            assert ring.front.alive()
            with open(image, "rb") as file:
                ring.front.tell(Request.SET_VRING_KICK, U64.pack(0), [file.fileno()])
            assert ring.front.closed()
    del ring
    assert settled(before)


@PACKED
def test_no_kick_descriptor(tmp_path: Path, disk: Blk, image: Path, packed: bool) -> None:
    """Such a ring is polled, whatever the server was told."""
    path, data = tmp_path / "socket", image.read_bytes()
    with served(disk, path):
        ring = raw_disk(path, packed)
        with ring.front:
            ring.setup()
            ring.set_fd(Request.SET_VRING_KICK, None)
            ring.state(Request.SET_VRING_ENABLE, 1)
            for block in range(20):
                ring.read(block)
                ring.check(data)
