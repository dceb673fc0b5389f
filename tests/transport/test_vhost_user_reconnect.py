"""A back end that is killed in mid-request: the next one finishes everything, once."""

from __future__ import annotations

import random
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.transport.backend_process import back_end
from tests.transport.vhost_user import IN, OUT, Requests, bound, driver_class, front, ops
from virtring.errors import NotSupported, PeerDied, WrongState
from virtring.memory import GuestMemory
from virtring.transport.vhost_user import Protocol
from virtring.transport.vhost_user.requests import WANTED

BLOCK = 4096
BLOCKS = 256
RINGS = [("split", False), ("split", True), ("packed", False), ("packed", True)]


@pytest.mark.parametrize(("ring", "in_order"), RINGS)
def test_disk_killed_in_the_middle_of_writes(tmp_path: Path, ring: str, in_order: bool) -> None:
    image, path = tmp_path / "image", tmp_path / "socket"
    image.write_bytes(bytes(BLOCK * BLOCKS))
    expected = bytearray(BLOCK * BLOCKS)
    rng = random.Random(5)
    memory = GuestMemory.create(16 << 20)
    lost = threading.Event()
    submitted = finished = 0
    with ExitStack() as stack:
        current = stack.enter_context(back_end("blk", path, image))
        vdev = front(path, memory, gone=lost.set)
        requests = Requests(bound(vdev, driver_class(1, ring, in_order=in_order)), memory)
        for turn in range(2):
            waiting: dict[tuple[int, int], int] = {}
            following = tmp_path / f"next{turn}"
            successor = stack.enter_context(back_end("blk", following, image))
            enough = finished + rng.randrange(100, 200)
            while not lost.is_set() or waiting:
                # No two requests for one block at a time: their order is nobody's business.
                while len(waiting) < 30 and not lost.is_set():
                    block = rng.choice(list(set(range(BLOCKS)) - set(waiting.values())))
                    data = rng.randbytes(BLOCK)
                    waiting[requests.submit(OUT, block * 8, data)] = block
                    expected[block * BLOCK : (block + 1) * BLOCK] = data
                    submitted += 1
                requests.vq.kick()
                if finished >= enough:
                    current.kill()
                if ops(vdev).lost:
                    ops(vdev).path = str(following)
                    ops(vdev).reconnect()
                while waiting and requests.vq.more_used:
                    token, status, _ = requests.finish()
                    waiting.pop(token)
                    assert status == 0
                    finished += 1
            lost.clear()
            assert requests.vq.in_flight == 0
            assert image.read_bytes() == expected
            assert requests.run(IN, 80, size=BLOCK) == (0, bytes(expected[10 * BLOCK : 11 * BLOCK]))
            current = successor
        ops(vdev).close()
    assert submitted == finished > 100


@pytest.mark.parametrize(("ring", "in_order"), RINGS)
def test_buffers_that_are_kept(tmp_path: Path, ring: str, in_order: bool) -> None:
    """What the first one keeps is used by the second one, oldest first, also around the ring."""
    memory = GuestMemory.create(4 << 20)
    lost = threading.Event()
    path = tmp_path / "socket"
    place = memory.alloc(64 * 64)

    def add(first: int) -> int:
        at = place + 64 * len(waiting)
        memory.write(at, bytes([first, len(waiting)]))
        # Chains of several descriptors, so that packed rings have lists.
        vq.virtqueue_add([(at, 1), (at + 1, 1)], [(at + 8, 1), (at + 9, 7)], at, premapped=True)
        waiting.append(at)
        return at

    with back_end("keeper", path):
        vdev = front(path, memory, queue_size=64, gone=lost.set)
        driver = bound(vdev, driver_class(1, ring, in_order=in_order))
        vq = driver.vqs[0]
        for _ in range(40):
            waiting: list[int] = []
            for _ in range(5):
                add(2)
            vq.kick()
            assert [driver.take(vq)[0] for _ in waiting] == waiting
        waiting = []
        kept = []
        for number in range(9):
            at = add(1 if number % 3 else 2)
            if number % 3 or in_order:
                kept.append(at)
        vq.kick()
        if in_order:
            # Only what came before the first one that is kept.
            kept.remove(waiting[0])
            assert driver.take(vq)[0] == waiting[0]
        else:
            assert [driver.take(vq)[0] for _ in range(3)] == waiting[::3]
            add(2)
            vq.kick()
            assert driver.take(vq)[0] == waiting[-1]
        with pytest.raises(WrongState):
            ops(vdev).reconnect()
    assert lost.wait(20)
    while not ops(vdev).lost:
        time.sleep(0.001)
    with pytest.raises(PeerDied):
        ops(vdev).reconnect()
    # Also what is added while nobody is there, or while the second one works.
    kept += [add(2), add(2)]
    vq.kick()
    lost.clear()
    with back_end("echo", path):
        ops(vdev).reconnect()
        assert [driver.take(vq)[0] for _ in kept] == kept
        for at in kept:
            assert memory.read(at + 8, 2) == memory.read(at, 2)
        for _ in range(40):
            waiting = []
            for _ in range(5):
                add(1)
            vq.kick()
            assert [driver.take(vq)[0] for _ in waiting] == waiting
        assert vq.in_flight == 0
        driver.remove()
        ops(vdev).close()


def test_without_tracking_there_is_no_way_back(tmp_path: Path) -> None:
    memory = GuestMemory.create(1 << 20)
    path = tmp_path / "socket"
    gone = threading.Event()
    with back_end("echo", path):
        vdev = front(path, memory, wanted=WANTED & ~Protocol.INFLIGHT_SHMFD, gone=gone.set)
        bound(vdev, driver_class(1))
    assert gone.wait(20)
    with back_end("echo", path), pytest.raises(NotSupported, match="track"):
        ops(vdev).reconnect()
    ops(vdev).close()
