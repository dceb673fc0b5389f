"""A peer that writes what it likes: the channel breaks with an exception, nothing else breaks."""

import multiprocessing
import random
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from virtring import BadChain, GuestMemory, InvalidArgument, QueueBroken, VirtioError
from virtring.channel import Channel, Layout, create
from virtring.channel.layout import BASE
from virtring.memory.region import Region

AVAIL, USED, WRITE, NEXT, INDIRECT = 0x80, 0x8000, 2, 1, 4


class Hostile:
    """End 1 of a channel, by hand: raw access to the memory it shares with end 0."""

    def __init__(self, slots: int = 8, slot_size: int = 64) -> None:
        self.victim, other = create(slots, slot_size)
        self.victim.attach()
        self.region, self.layout, _, self.events = other.hand_over()
        self.memory = GuestMemory()
        self.memory.add_region(BASE, self.region)

    def descriptor(self, side: int, index: int, addr: int, size: int, id: int, flags: int) -> None:
        at = self.layout.ring(side).desc + 16 * index
        self.memory.write(at, struct.pack("<QIHH", addr, size, id, flags))


@pytest.fixture
def hostile() -> Iterator[Hostile]:
    one = Hostile()
    yield one
    one.victim.close()


def fill(victim: Channel, timeout: float | None = None) -> None:
    """Send until there is no room."""
    while victim.try_send(b"y"):
        pass
    if timeout is not None:
        victim.send(b"z", timeout)


def broken(victim: Channel, error: type[VirtioError], words: str) -> None:
    with pytest.raises(error, match=words):
        victim.recv(0)
    with pytest.raises(QueueBroken, match="broken"):
        victim.recv(0)
    with pytest.raises(QueueBroken, match="broken"):
        victim.send(b"x")


def test_a_well_formed_message_is_received(hostile: Hostile) -> None:
    slot = hostile.layout.first_slot(1)
    hostile.memory.write(slot, b"fine")
    hostile.descriptor(1, 0, slot, 5, 0, AVAIL)
    assert hostile.victim.recv(0) == b"fine"


@pytest.mark.parametrize(
    ("addr", "size", "flags", "words"),
    [
        (0, 66, AVAIL, "65 bytes in 1 pieces"),
        (0, 10, AVAIL | WRITE, "readable"),
        (0, 0, AVAIL, "length 0"),
        (1 << 40, 10, AVAIL, "not inside the memory"),
        ((1 << 64) - 65536, 10, AVAIL, "not inside the memory"),
        (0, 10, AVAIL | NEXT, "cut off"),
        (0, 16, AVAIL | INDIRECT, "INDIRECT"),
    ],
)
def test_a_bad_message_breaks_the_channel(
    hostile: Hostile, addr: int, size: int, flags: int, words: str
) -> None:
    where = (hostile.layout.first_slot(1) + addr) & (1 << 64) - 1
    hostile.descriptor(1, 0, where, size, 0, flags)
    broken(hostile.victim, BadChain, words)


def test_messages_in_front_of_a_bad_one_are_received(hostile: Hostile) -> None:
    slot = hostile.layout.first_slot(1)
    hostile.memory.write(slot, b"good")
    hostile.descriptor(1, 1, slot, 5, 1, AVAIL)
    hostile.descriptor(1, 2, slot, 1000, 2, AVAIL)
    hostile.descriptor(1, 0, slot, 5, 0, AVAIL)
    assert hostile.victim.recv_batch() == [b"good", b"good"]
    with pytest.raises(QueueBroken):
        hostile.victim.recv_batch()


@pytest.mark.parametrize("id", [9, 10, 65535])
def test_a_slot_that_is_none_comes_back(hostile: Hostile, id: int) -> None:
    victim = hostile.victim
    victim.send(b"x")  # id 0
    hostile.descriptor(0, 0, 0, 0, id, AVAIL | USED)
    with pytest.raises(QueueBroken):
        fill(victim)
    with pytest.raises(QueueBroken):
        victim.recv(0)


def test_a_slot_comes_back_twice(hostile: Hostile) -> None:
    victim = hostile.victim
    victim.send_batch([b"x", b"y"])
    for index in (0, 1):
        hostile.descriptor(0, index, 0, 0, 0, AVAIL | USED)
    with pytest.raises(QueueBroken):
        fill(victim)


@pytest.mark.parametrize("word", [1, 1 << 32, (1 << 64) - 1, 1 | (0x7FFFFFFF << 32), 1 | (1 << 32)])
def test_a_false_control_word(hostile: Hostile, word: int) -> None:
    """Whatever it says of its process, it can only cut itself off."""
    hostile.memory.write(hostile.layout.control(1), struct.pack("<Q", word))
    with pytest.raises((VirtioError, TimeoutError)):
        hostile.victim.recv(0.02)
    with pytest.raises((VirtioError, TimeoutError)):
        fill(hostile.victim, 0.02)


def _random_call(victim: Channel, held: list[Any], rng: random.Random) -> Any:
    way = rng.randrange(7)
    if way == 0:
        return victim.try_send(b"x" * rng.randrange(65))
    if way == 1:
        return victim.try_send_batch([b"y", b"z"])
    if way == 2:
        return held.append(victim.try_borrow())
    if way == 3:
        return held.append(victim.try_loan())
    return (victim.try_recv, victim.try_recv_batch, lambda: victim.recv(0))[way - 4]()


def _run_garbage(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(150):
        hostile = Hostile(4, 64)
        victim, layout = hostile.victim, hostile.layout
        held: list[Any] = []
        for _ in range(30):
            side = rng.randrange(2)
            ring = layout.ring(side)
            kind = rng.randrange(3)
            if kind == 0:
                addr = rng.choice([layout.first_slot(side), BASE, rng.getrandbits(64)])
                size = rng.choice([1, 5, 64, 65, 66, 0, rng.getrandbits(32)])
                flags = rng.choice([AVAIL, USED, AVAIL | USED, 0, rng.getrandbits(16)])
                hostile.descriptor(
                    side, rng.randrange(ring.size), addr, size, rng.randrange(6), flags
                )
            elif kind == 1:
                at = rng.choice([ring.avail, ring.used, layout.control(1)])
                hostile.memory.write(at, rng.randbytes(4))
            else:
                start = rng.randrange(layout.size - 64)
                hostile.memory.write(BASE + start, rng.randbytes(rng.randrange(1, 64)))
            try:
                data = _random_call(victim, held, rng)
                assert not isinstance(data, bytes) or len(data) <= 64
            except VirtioError:
                pass
        for item in held:
            if item is not None:
                assert len(bytes(memoryview(item))) <= 64
        victim.close()


@pytest.mark.parametrize("seed", range(3))
def test_garbage_everywhere_crashes_nothing(seed: int) -> None:
    process = multiprocessing.get_context("fork").Process(target=_run_garbage, args=(seed,))
    process.start()
    process.join(60)
    code = process.exitcode
    process.kill()
    process.join()
    assert code == 0


def test_arguments_of_an_end_by_hand() -> None:
    layout = Layout(4, 64)
    region = Region.memfd(layout.size)
    events = create(1, 1)[0].hand_over()[3]
    for args, words in (
        ((b"memory", layout, 0, events), "Region"),
        ((region, (4, 64), 0, events), "Layout"),
        ((region, layout, 2, events), "0 or 1"),
        ((region, layout, 0, events[:3]), "four"),
        ((region, Layout(4, 6400), 0, events), "a region of"),
    ):
        with pytest.raises(InvalidArgument, match=words):
            Channel(*args)
