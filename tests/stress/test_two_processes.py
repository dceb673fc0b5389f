"""Driver and device in two processes, both awake and asleep at random; every byte is compared."""

from __future__ import annotations

import itertools
import multiprocessing
import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess

import pytest

from tests.stress._child import WAIT, serve, serve_batches
from virtring import (
    Buffer,
    BufferPool,
    EventFd,
    Feature,
    GuestMemory,
    RingDevice,
    Virtqueue,
    vring_create_virtqueue,
    wait_used,
)
from virtring.queue import Batch
from virtring.queue.notify import Spin

pytestmark = pytest.mark.stress

OPTIONS = (Feature.EVENT_IDX, Feature.INDIRECT_DESC, Feature.IN_ORDER)
CASES = {
    "-".join(["packed" if packed else "split", *(str(f.name).lower() for f in chosen)]): (
        Feature.VERSION_1
        | (Feature.RING_PACKED if packed else Feature(0))
        | Feature(sum(chosen))
        # The barriers of a device that is no CPU, too, in every other case.
        | (Feature.ORDER_PLATFORM if len(chosen) % 2 else Feature(0))
    )
    for packed in (False, True)
    for n in range(len(OPTIONS) + 1)
    for chosen in itertools.combinations(OPTIONS, n)
}
SIZE = 512


class Rig:
    """A ring of 16 to 64 entries in shared memory, its eventfds, and a pool of buffers."""

    def __init__(self, features: Feature, size: int) -> None:
        self.memory = GuestMemory.create(1 << 20)
        self.kick, self.call = EventFd(), EventFd()
        vdev = RingDevice(self.memory, features)
        self.driver: Virtqueue = vring_create_virtqueue(
            0, size, 64, vdev, notify=self.kick, name="stress"
        )
        self.pool = BufferPool(self.memory, 8 * size, SIZE)
        self.spin = Spin(max_us=50)

    @contextmanager
    def served(self, target: object, count: int, burst: int) -> Iterator[BaseProcess]:
        context = multiprocessing.get_context("spawn")
        child = context.Process(
            target=target,  # type: ignore[arg-type]
            args=(self.memory, self.driver.config, self.kick, self.call, count, burst),
        )
        child.start()
        try:
            yield child
            child.join(WAIT)
            assert child.exitcode == 0
        finally:
            child.kill()
            child.join()
            child.close()

    def wait(self) -> None:
        assert wait_used(self.driver, self.call, WAIT, self.spin), "the device did not answer"


def expected(data: bytes, room: int) -> bytes:
    return (zlib.crc32(data).to_bytes(4, "little") + data[::-1])[:room]


@pytest.mark.parametrize("features", CASES.values(), ids=CASES)
def test_chains(features: Feature) -> None:
    """Chains of many shapes, with objects as tokens, while the ring is full again and again."""
    rng = random.Random(int(features))
    size = rng.choice([16, 32, 64])
    rig, count, sent, came = Rig(features, size), 1500, 0, 0
    driver, pool = rig.driver, rig.pool

    def request() -> tuple[list[Buffer], list[Buffer], bytes]:
        out = [pool.get() for _ in range(rng.randint(1, 3))]
        for part in out:
            part.len = rng.randint(1, SIZE)
            part.view[:] = rng.randbytes(part.len)
        answers = [pool.get() for _ in range(rng.randint(1, 2))]
        return out, answers, b"".join(bytes(part.view) for part in out)

    with rig.served(serve, count, burst=size):
        while came < count:
            while sent < count and driver.num_free >= 5 and rng.random() < 0.9:
                out, answers, data = request()
                driver.add_sgs(out, answers, (sent, out, answers, data))
                sent += 1
                if rng.random() < 0.3:
                    driver.kick()
            driver.kick()
            if driver.num_free < 5 or sent == count:
                rig.wait()
            while (used := driver.get_buf()) is not None:
                (number, out, answers, data), written = used
                if Feature.IN_ORDER in features:
                    assert number == came
                back = b"".join(bytes(part.view) for part in answers)
                assert back[:written] == expected(data, len(back))
                for part in [*out, *answers]:
                    pool.put(part)
                came += 1
    assert driver.num_free == size
    assert pool.free_count == 8 * size


@pytest.mark.parametrize("features", CASES.values(), ids=CASES)
def test_batches(features: Feature) -> None:
    """Batches on both sides; each row's token comes back once, with its answer."""
    rng = random.Random(int(features) + 1)
    size = rng.choice([16, 64])
    rig, count = Rig(features, size), 6000
    driver, burst = rig.driver, size // 4
    rows, used = Batch(burst, 2 * burst), Batch(size)
    addrs = [int(addr) for addr in rig.pool.addrs]
    free = list(range(size))  # pairs of buffers: 2 * i is sent, 2 * i + 1 takes the answer
    out: dict[int, tuple[int, bytes]] = {}
    sent = came = 0
    with rig.served(serve_batches, count, burst=burst):
        while came < count:
            indirect = Feature.INDIRECT_DESC in features
            most = driver.num_free if indirect else driver.num_free // 2
            number = min(rng.randint(0, burst), most, count - sent, len(free))
            rows.offsets[: number + 1] = range(0, 2 * number + 1, 2)
            for row in range(number):
                pair, data = free.pop(), rng.randbytes(rng.randint(1, SIZE))
                rig.memory.write(addrs[2 * pair], data)
                rows.addr[2 * row : 2 * row + 2] = addrs[2 * pair : 2 * pair + 2]
                rows.len[2 * row : 2 * row + 2] = (len(data), SIZE)
                rows.flags[2 * row : 2 * row + 2] = (0, 2)
                rows.token[row] = sent + row
                out[sent + row] = (pair, data)
            rows.count = number
            if number:
                assert driver.add_sgs_batch(rows) == number
                sent += number
            driver.kick()
            if sent == count or most < burst:
                rig.wait()
            for row in range(driver.get_buf_batch(used)):
                pair, data = out.pop(int(used.token[row]))
                answer = expected(data, SIZE)
                assert int(used.written[row]) == len(answer)
                assert rig.memory.read(addrs[2 * pair + 1], len(answer)) == answer
                free.append(pair)
                came += 1
    assert out == {}
    assert driver.num_free == size
