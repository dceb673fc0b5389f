"""Ring bytes after explicit operations, worked out by hand from virtio 1.4, for the model.

These make the oracle trustworthy; what both sides make of a malformed ring is at the end of each
half. All numbers in the hex strings stand as they lie in memory, lowest address first.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.model import (
    Chain,
    Full,
    ModelError,
    ModelMemory,
    PackedDevice,
    PackedDriver,
    Request,
    SplitDevice,
    SplitDriver,
    need_event,
    packed_layout,
    split_layout,
)

BASE = 0x1000
# Split, 4 entries: 64 bytes of descriptors, 14 of available ring, 2 of gap, 38 of used ring.
AVAIL, USED = 0x1040, 0x1050
# Packed, 3 entries: 48 bytes of descriptors, 4 of driver event, 4 of device event.
DRIVER_EVENT, DEVICE_EVENT = 0x1030, 0x1034
TABLE = 0x1800


def hexed(text: str) -> bytes:
    return bytes.fromhex(text)


@pytest.fixture
def mem() -> ModelMemory:
    # Not zero: the driver has to initialise the ring.
    return ModelMemory(bytearray(b"\xaa" * 0x1000), BASE)


def split_driver(mem: ModelMemory, **features: bool) -> SplitDriver:
    return SplitDriver(mem, 4, BASE, AVAIL, USED, **features)  # type: ignore[arg-type]


def split_device(mem: ModelMemory, **features: bool) -> SplitDevice:
    return SplitDevice(mem, 4, BASE, AVAIL, USED, **features)  # type: ignore[arg-type]


def packed_driver(mem: ModelMemory, **features: bool) -> PackedDriver:
    return PackedDriver(mem, 3, BASE, DRIVER_EVENT, DEVICE_EVENT, **features)  # type: ignore[arg-type]


def packed_device(mem: ModelMemory, **features: bool) -> PackedDevice:
    return PackedDevice(mem, 3, BASE, DRIVER_EVENT, DEVICE_EVENT, **features)  # type: ignore[arg-type]


# ---- layout and the event rule


def test_sizes_of_the_areas() -> None:
    tight = split_layout(4)
    assert (tight.desc, tight.driver, tight.device, tight.size) == (0, 64, 80, 118)
    assert (tight.desc_size, tight.driver_size, tight.device_size) == (64, 14, 38)
    legacy = split_layout(256, align=4096)  # 4096 + 518 bytes, then the next page
    assert (legacy.driver, legacy.device, legacy.size) == (4096, 8192, 8192 + 2054)
    packed = packed_layout(5)
    assert (packed.driver, packed.device, packed.size) == (80, 84, 88)


@pytest.mark.parametrize("num", [0, 3, 6, 65536])
def test_split_sizes_are_powers_of_two(num: int) -> None:
    with pytest.raises(ValueError, match="power of 2"):
        split_layout(num)


@pytest.mark.parametrize(
    ("event", "new", "old", "expected"),
    [
        (0, 1, 0, True),  # the first entry, wanted
        (1, 1, 0, False),  # one entry short
        (0, 1, 1, False),  # nothing new
        (5, 9, 5, True),
        (8, 9, 5, True),
        (9, 9, 5, False),
        (4, 9, 5, False),
        (65535, 65537, 65534, True),  # over the wrap
        (0, 65537, 65534, True),
        (1, 65537, 65534, False),
        (3, 65536 + 5, 5, True),  # a whole turn passes every index
    ],
)
def test_need_event(event: int, new: int, old: int, expected: bool) -> None:
    assert need_event(event, new, old) is expected


# ---- split


def test_split_one_buffer_there_and_back(mem: ModelMemory) -> None:
    driver, device = split_driver(mem), split_device(mem)
    assert mem.read(BASE, 118) == bytes(64 + 14) + b"\xaa\xaa" + bytes(38)

    driver.add([(0x1100, 16)], [(0x1200, 32)], "a")
    assert mem.read(BASE, 64) == hexed(
        "0011000000000000 10000000 0100 0100"  # NEXT, next 1
        "0012000000000000 20000000 0200 0000"  # WRITE
    ) + bytes(32)
    assert mem.read(AVAIL, 14) == hexed("0000 0100 0000 0000 0000 0000 0000")
    assert driver.num_free == 2
    assert driver.kick_prepare()

    assert device.pop() == Chain(0, ((0x1100, 16, False), (0x1200, 32, True)))
    assert device.pop() is None
    assert driver.get() is None
    device.push(0, 7)
    assert mem.read(USED, 38) == hexed("0000 0100 00000000 07000000") + bytes(26)
    assert device.need_notify()

    assert driver.get() == ("a", 7)
    assert driver.get() is None
    assert driver.num_free == 4


def test_split_second_lap_of_the_rings(mem: ModelMemory) -> None:
    driver, device = split_driver(mem), split_device(mem)
    for token in range(5):
        driver.add([(0x1100, 1)], [], token)
        assert device.pop() is not None
        device.push(token % 4, 0)
        assert driver.get() == (token, 0)
    # Heads 0 1 2 3 0; the fifth entry lies over the first.
    assert mem.read(AVAIL, 14) == hexed("0000 0500 0000 0100 0200 0300 0000")
    assert mem.read(USED, 12) == hexed("0000 0500 00000000 00000000")


def test_split_big_endian_for_a_legacy_guest(mem: ModelMemory) -> None:
    driver = SplitDriver(mem, 4, BASE, AVAIL, USED, legacy_endian=">")
    device = SplitDevice(mem, 4, BASE, AVAIL, USED, legacy_endian=">")
    driver.add([(0x1100, 16)], [(0x1200, 32)], "a")
    assert mem.read(BASE, 32) == hexed(
        "0000000000001100 00000010 0001 0001" "0000000000001200 00000020 0002 0000"
    )
    assert mem.read(AVAIL, 4) == hexed("0000 0001")
    assert device.pop() is not None
    device.push(0, 7)
    assert mem.read(USED, 12) == hexed("0000 0001 00000000 00000007")
    assert driver.get() == ("a", 7)


def test_split_batch_is_published_once(mem: ModelMemory) -> None:
    driver = split_driver(mem)
    driver.add_many([Request([(0x1100, 1)], [], k) for k in range(3)])
    assert mem.read(AVAIL, 10) == hexed("0000 0300 0000 0100 0200")
    before = mem.read(BASE, 118)
    with pytest.raises(Full):
        driver.add_many([Request([(0x1100, 1)], [], k) for k in range(2)])
    assert mem.read(BASE, 118) == before
    assert driver.num_free == 1
    assert driver.detach_unused() == [0, 1, 2]
    assert driver.num_free == 4


def test_split_out_of_order_reuses_what_was_freed_first(mem: ModelMemory) -> None:
    driver, device = split_driver(mem), split_device(mem)
    driver.add([(0x1100, 1), (0x1101, 1)], [], "a")  # descriptors 0, 1
    driver.add([(0x1102, 1)], [], "b")  # descriptor 2
    device.pop()
    device.pop()
    device.push(2, 0)
    device.push(0, 0)
    assert mem.read(USED, 20) == hexed("0000 0200 02000000 00000000 00000000 00000000")
    assert [driver.get(), driver.get()] == [("b", 0), ("a", 0)]
    driver.add([(0x1103, 1)], [(0x1104, 1)], "c")  # the free ones are 3, 2, 0, 1
    assert mem.read(BASE + 48, 16) == hexed("0311000000000000 01000000 0100 0200")
    assert mem.read(BASE + 32, 16) == hexed("0411000000000000 01000000 0200 0000")


def test_split_chain_of_the_queue_size(mem: ModelMemory) -> None:
    driver, device = split_driver(mem), split_device(mem)
    driver.add([(0x1100 + k, 1) for k in range(4)], [], "a")
    assert driver.num_free == 0
    chain = device.pop()
    assert chain is not None
    assert len(chain.segments) == 4
    with pytest.raises(ValueError, match="1 to 4 elements"):
        driver.add([(0x1100, 1)] * 5, [], "b")


def test_split_in_order_next_wraps_to_0(mem: ModelMemory) -> None:
    driver, device = split_driver(mem, in_order=True), split_device(mem, in_order=True)
    for token in "ab":
        driver.add([(0x1100, 1)], [], token)
    device.pop()
    device.pop()
    device.push_batch_in_order([(0, 0), (1, 0)])
    assert [driver.get(), driver.get()] == [("a", 0), ("b", 0)]
    driver.add([(0x1102, 1), (0x1103, 1), (0x1104, 1)], [], "c")
    assert mem.read(BASE + 32, 32) == hexed(
        "0211000000000000 01000000 0100 0300"  # 2 -> 3
        "0311000000000000 01000000 0100 0000"  # 3 is the last of the table -> 0
    )
    assert mem.read(BASE, 16) == hexed("0411000000000000 01000000 0000 0000")
    assert device.pop() == Chain(2, ((0x1102, 1, False), (0x1103, 1, False), (0x1104, 1, False)))


def test_split_in_order_one_used_entry_for_a_batch(mem: ModelMemory) -> None:
    driver, device = split_driver(mem, in_order=True), split_device(mem, in_order=True)
    driver.add([], [(0x1100, 10)], "a")
    driver.add([(0x1110, 5)], [], "b")
    driver.add([], [(0x1120, 20)], "c")
    driver.add([], [(0x1130, 40)], "d")
    chains = [device.pop() for _ in range(4)]
    assert None not in chains
    device.push_batch_in_order([(0, 10), (1, 0), (2, 3)])
    # One entry at the place of the first buffer, with the id of the last; idx jumps by 3.
    assert mem.read(USED, 36) == hexed("0000 0300 02000000 03000000") + bytes(24)
    device.push(3, 1)
    assert mem.read(USED, 36) == hexed(
        "0000 0400 02000000 03000000 00000000 00000000 00000000 00000000 03000000 01000000"
    )
    # Skipped buffers count as written completely.
    assert [driver.get() for _ in range(5)] == [("a", 10), ("b", 0), ("c", 3), ("d", 1), None]


def test_split_in_order_partly_written_buffer_is_not_skipped(mem: ModelMemory) -> None:
    driver, device = split_driver(mem, in_order=True), split_device(mem, in_order=True)
    for token in "abc":
        driver.add([], [(0x1100, 10)], token)
        device.pop()
    device.push_batch_in_order([(0, 10), (1, 4), (2, 10)])
    assert mem.read(USED, 28) == hexed(
        "0000 0300 01000000 04000000 00000000 00000000 02000000 0a000000"
    )
    assert [driver.get() for _ in range(3)] == [("a", 10), ("b", 4), ("c", 10)]


def test_split_indirect_table(mem: ModelMemory) -> None:
    driver, device = split_driver(mem, indirect=True), split_device(mem, indirect=True)
    driver.add([(0x1100, 1)], [(0x1200, 2), (0x1300, 3)], "a", indirect_table=TABLE)
    assert driver.num_free == 3
    assert mem.read(BASE, 16) == hexed("0018000000000000 30000000 0400 0000")
    assert mem.read(TABLE, 48) == hexed(
        "0011000000000000 01000000 0100 0100"
        "0012000000000000 02000000 0300 0200"
        "0013000000000000 03000000 0200 0000"
    )
    mem.set_u16(BASE + 12, 4 | 2)  # the device ignores WRITE here (2.7.5.3.2)
    assert device.pop() == Chain(0, ((0x1100, 1, False), (0x1200, 2, True), (0x1300, 3, True)))
    device.push(0, 5)
    assert driver.get() == ("a", 5)
    assert driver.num_free == 4


def test_split_direct_descriptors_before_an_indirect_one(mem: ModelMemory) -> None:
    driver, device = split_driver(mem, indirect=True), split_device(mem, indirect=True)
    driver.add([(0x1100, 1), (0x1108, 8)], [(0x1200, 2)], "a", indirect_table=TABLE, direct_first=1)
    assert driver.num_free == 2
    assert mem.read(BASE, 32) == hexed(
        "0011000000000000 01000000 0100 0100"  # NEXT
        "0018000000000000 20000000 0400 0000"  # INDIRECT, two entries
    )
    assert mem.read(TABLE, 32) == hexed(
        "0811000000000000 08000000 0100 0100" "0012000000000000 02000000 0200 0000"
    )
    assert device.pop() == Chain(0, ((0x1100, 1, False), (0x1108, 8, False), (0x1200, 2, True)))


def test_split_flags_suppress_notifications(mem: ModelMemory) -> None:
    driver, device = split_driver(mem), split_device(mem)
    device.disable_notify()
    assert mem.read(USED, 2) == hexed("0100")
    driver.add([(0x1100, 1)], [], "a")
    assert not driver.kick_prepare()
    assert not device.enable_notify()  # something is there: do not sleep
    assert mem.read(USED, 2) == hexed("0000")
    device.pop()
    assert device.enable_notify()
    driver.disable_cb()
    assert mem.read(AVAIL, 2) == hexed("0100")
    device.push(0, 0)
    assert not device.need_notify()
    assert not driver.enable_cb()
    assert mem.read(AVAIL, 2) == hexed("0000")
    driver.get()
    assert driver.enable_cb()


def split_event_pair(mem: ModelMemory, start: int) -> tuple[SplitDriver, SplitDevice]:
    driver = SplitDriver(mem, 4, BASE, AVAIL, USED, event_idx=True, start=start)
    return driver, SplitDevice(mem, 4, BASE, AVAIL, USED, event_idx=True, start=start)


@pytest.mark.parametrize("start", [0, 65534, 65535])
def test_split_event_index_notifies_once_each_sleep(mem: ModelMemory, start: int) -> None:
    driver, device = split_event_pair(mem, start)
    used_event, avail_event = AVAIL + 12, USED + 36
    assert device.enable_notify()
    assert mem.u16(avail_event) == start
    driver.add([(0x1100, 1)], [], 0)
    driver.add([(0x1100, 1)], [], 1)
    assert driver.kick_prepare()  # entry `start` was written
    driver.add([(0x1100, 1)], [], 2)
    assert not driver.kick_prepare()  # the event lies behind
    for _ in range(3):
        assert device.pop() is not None
    assert device.enable_notify()
    assert mem.u16(avail_event) == (start + 3) % 65536
    assert mem.u16(AVAIL + 2) == (start + 3) % 65536
    assert driver.enable_cb()
    assert mem.u16(used_event) == start
    device.push(1, 0)
    assert device.need_notify()
    device.push(0, 0)
    assert not device.need_notify()
    assert [driver.get(), driver.get()] == [(1, 0), (0, 0)]
    assert mem.u16(used_event) == (start + 2) % 65536
    assert mem.u16(USED + 2) == (start + 2) % 65536
    driver.disable_cb()
    device.push(2, 0)
    assert not device.need_notify()
    assert mem.read(AVAIL, 2) == mem.read(USED, 2) == hexed("0000")  # flags are not for this


@pytest.mark.parametrize("start", [0, 65533, 65534, 65535])
def test_split_event_index_is_met_exactly(mem: ModelMemory, start: int) -> None:
    driver, device = split_event_pair(mem, start)
    for token in range(3):
        # The other side asks for the entry with number start + 1, wherever a step begins or ends.
        mem.set_u16(USED + 36, (start + 1) % 65536)
        driver.add([(0x1100, 1)], [], token)
        assert driver.kick_prepare() == (token == 1)
    driver.enable_cb()
    for _ in range(3):
        device.pop()
    device.push_batch_in_order([(0, 0), (1, 0), (2, 0)])
    assert device.need_notify()  # one step over the event, which is its first entry


def test_split_delayed_event_is_at_three_quarters(mem: ModelMemory) -> None:
    driver, device = split_event_pair(mem, 65534)
    for token in range(4):
        driver.add([(0x1100, 1)], [], token)
        device.pop()
    assert driver.enable_cb_delayed()
    assert mem.u16(AVAIL + 12) == 1  # 65534 + 3
    for head in range(3):
        device.push(head, 0)
        assert not device.need_notify()
    assert driver.enable_cb_delayed()  # three of four: not more than asked for
    device.push(3, 0)
    assert device.need_notify()
    assert not driver.enable_cb_delayed()


def test_split_used_length_is_clamped(mem: ModelMemory) -> None:
    driver, device = split_driver(mem), split_device(mem)
    driver.add([(0x1100, 50)], [(0x1200, 32)], "a")
    device.pop()
    device.push(0, 32)
    mem.set_u32(USED + 8, 40)
    assert driver.get() == ("a", 32)
    assert driver.excess == 8


def test_split_position_moves_to_another_device(mem: ModelMemory) -> None:
    driver, device = split_event_pair(mem, 65535)
    driver.add([(0x1100, 1)], [], "a")
    device.pop()
    with pytest.raises(ValueError, match="still with the device"):
        device.position()
    device.push(0, 0)
    assert device.position() == 0
    other = SplitDevice(mem, 4, BASE, AVAIL, USED, event_idx=True)
    other.restore(device.position())
    assert other.enable_notify()
    driver.add([(0x1101, 1)], [], "b")
    assert other.pop() == Chain(1, ((0x1101, 1, False),))
    other.push(1, 0)
    assert other.need_notify()
    assert [driver.get(), driver.get()] == [("a", 0), ("b", 0)]


def test_device_refuses_what_it_does_not_hold(mem: ModelMemory) -> None:
    driver, device = split_driver(mem, in_order=True), split_device(mem, in_order=True)
    driver.add([], [(0x1100, 4)], "a")
    driver.add([], [(0x1100, 4)], "b")
    device.pop()
    device.pop()
    before = mem.read(BASE, 118)
    with pytest.raises(ValueError, match="does not hold"):
        device.push(2, 0)
    with pytest.raises(ValueError, match="do not fit"):
        device.push(0, 5)
    with pytest.raises(ValueError, match="order"):
        device.push(1, 0)
    with pytest.raises(ValueError, match="twice"):
        device.push_batch_in_order([(0, 0), (0, 0)])
    assert mem.read(BASE, 118) == before


@pytest.mark.parametrize(
    ("ident", "idx", "message"),
    [(4, 1, "not that of"), (1, 1, "not that of"), (2**32 - 1, 1, "not that of"), (0, 3, "ahead")],
)
def test_split_driver_sees_bad_used_entries(
    mem: ModelMemory, ident: int, idx: int, message: str
) -> None:
    driver = split_driver(mem)
    driver.add([(0x1100, 1), (0x1101, 1)], [], "a")  # id 1 is inside it, but no head
    driver.add([(0x1102, 1)], [], "b")
    mem.set_u32(USED + 4, ident)
    mem.set_u16(USED + 2, idx)
    for _ in range(2):
        with pytest.raises(ModelError, match=message):
            driver.get()
    assert driver.num_free == 1
    assert driver.detach_unused() == ["a", "b"]


def test_split_driver_sees_a_batch_beyond_the_index(mem: ModelMemory) -> None:
    driver = split_driver(mem, in_order=True)
    driver.add([(0x1100, 1)], [], "a")
    driver.add([(0x1100, 1)], [], "b")
    mem.set_u32(USED + 4, 1)  # stands for two buffers
    mem.set_u16(USED + 2, 1)  # but the index went forward by one
    with pytest.raises(ModelError, match="covers 1 of a batch of 2"):
        driver.get()


#: What is done to a ring whose head 0 has descriptors 0 -> 1 (indirect: table of two), and what
#: the device says. The poke gets the memory; "d" direct, "i" indirect chain.
SPLIT_BAD: dict[str, tuple[str, Callable[[ModelMemory], None], str]] = {
    "idx jumps": ("d", lambda m: m.set_u16(AVAIL + 2, 5), "5 ahead"),
    "idx goes back": ("d", lambda m: m.set_u16(AVAIL + 2, 65535), "65535 ahead"),
    "head beyond the table": ("d", lambda m: m.set_u16(AVAIL + 4, 4), "descriptor 4"),
    "next beyond the table": ("d", lambda m: m.set_u16(BASE + 14, 4), "descriptor 4"),
    "loop": ("d", lambda m: m.set_u16(BASE + 28, 1), "loops"),
    "readable behind writable": ("d", lambda m: m.set_u16(BASE + 12, 3), "readable"),
    "address outside": ("d", lambda m: m.set_u64(BASE, 0x1FF1), "not inside"),
    "address below": ("d", lambda m: m.set_u64(BASE, 0xFFF), "not inside"),
    "address overflows": ("d", lambda m: m.set_u64(BASE, 2**64 - 8), "not inside"),
    "longer than 2^32": ("d", lambda m: m.set_u32(BASE + 8, 2**32 - 1), "2\\^32"),
    "indirect with next": ("i", lambda m: m.set_u16(BASE + 12, 5), "together"),
    "empty table": ("i", lambda m: m.set_u32(BASE + 8, 0), "multiple of 16"),
    "odd table": ("i", lambda m: m.set_u32(BASE + 8, 24), "multiple of 16"),
    "table outside": ("i", lambda m: m.set_u64(BASE, 0x1FF0), "not inside"),
    "table cut short": ("i", lambda m: m.set_u32(BASE + 8, 16), "entry 1"),
    "nested": ("i", lambda m: m.set_u16(TABLE + 28, 4), "inside an indirect"),
    "loop in table": ("i", lambda m: m.set_u16(TABLE + 28, 1), "loops"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPLIT_BAD)
def test_split_device_sees_bad_chains(mem: ModelMemory, case: str) -> None:
    kind, poke, message = SPLIT_BAD[case]
    driver, device = split_driver(mem, indirect=True), split_device(mem, indirect=True)
    table = TABLE if kind == "i" else None
    driver.add([(0x1100, 16), (0x1200, 32)], [], "a", indirect_table=table)
    poke(mem)
    for _ in range(2):
        with pytest.raises(ModelError, match=message):
            device.pop()


def test_split_device_sees_indirect_without_the_feature(mem: ModelMemory) -> None:
    driver, device = split_driver(mem, indirect=True), split_device(mem)
    driver.add([(0x1100, 16)], [], "a", indirect_table=TABLE)
    with pytest.raises(ModelError, match="without the feature"):
        device.pop()


def test_split_device_sees_descriptors_it_holds(mem: ModelMemory) -> None:
    driver, device = split_driver(mem), split_device(mem)
    driver.add([(0x1100, 1), (0x1101, 1)], [], "a")
    device.pop()
    mem.set_u16(AVAIL + 2, 2)
    for head in (0, 1):
        mem.set_u16(AVAIL + 6, head)
        with pytest.raises(ModelError, match=f"descriptor {head} belongs"):
            device.pop()


@pytest.mark.parametrize(
    ("addr", "value", "message"),
    [(AVAIL + 4, 1, "ring order"), (BASE + 14, 2, "next of descriptor 0")],
)
def test_split_device_sees_disorder(
    mem: ModelMemory, addr: int, value: int, message: str
) -> None:
    driver, device = split_driver(mem), split_device(mem, in_order=True)
    driver.add([(0x1100, 1), (0x1101, 1)], [], "a")
    mem.set_u16(addr, value)
    with pytest.raises(ModelError, match=message):
        device.pop()


# ---- packed


def test_packed_three_buffers_over_the_wrap(mem: ModelMemory) -> None:
    driver, device = packed_driver(mem), packed_device(mem)
    assert mem.read(BASE, 56) == bytes(56)
    assert device.pop() is None

    driver.add([(0x1100, 16)], [(0x1200, 32)], "a")
    assert mem.read(BASE, 48) == hexed(
        "0011000000000000 10000000 0000 8100"  # AVAIL, NEXT
        "0012000000000000 20000000 0000 8200"  # AVAIL, WRITE
    ) + bytes(16)
    assert driver.num_free == 1
    assert device.pop() == Chain(0, ((0x1100, 16, False), (0x1200, 32, True)))
    assert driver.get() is None
    device.push(0, 7)
    assert mem.read(BASE, 32) == hexed(
        "0011000000000000 07000000 0000 8280"  # USED, AVAIL, WRITE: 7 bytes were written
        "0012000000000000 20000000 0000 8200"  # untouched
    )
    assert driver.get() == ("a", 7)
    assert driver.num_free == 3

    # Slot 2 in the first lap, then slot 0 in the second, where AVAIL and USED swap their roles.
    driver.add([(0x1300, 1)], [(0x1400, 2)], "b")
    assert mem.read(BASE + 32, 16) == hexed("0013000000000000 01000000 0100 8100")
    assert mem.read(BASE, 16) == hexed("0014000000000000 02000000 0100 0280")
    assert device.pop() == Chain(1, ((0x1300, 1, False), (0x1400, 2, True)))
    assert device.pop() is None
    device.push(1, 0)
    assert mem.read(BASE + 32, 16) == hexed("0013000000000000 00000000 0100 8080")
    assert driver.get() == ("b", 0)

    driver.add([], [(0x1500, 9)], "c")  # slot 1, second lap
    assert mem.read(BASE + 16, 16) == hexed("0015000000000000 09000000 0200 0280")
    assert device.pop() == Chain(2, ((0x1500, 9, True),))
    device.push(2, 9)
    assert mem.read(BASE + 16, 16) == hexed("0015000000000000 09000000 0200 0200")
    assert driver.get() == ("c", 9)
    assert driver.get() is None


def test_packed_out_of_order(mem: ModelMemory) -> None:
    driver, device = packed_driver(mem), packed_device(mem)
    driver.add([(0x1100, 1), (0x1101, 1)], [], "a")
    driver.add([], [(0x1102, 4)], "b")
    device.pop()
    device.pop()
    device.push(1, 4)
    device.push(0, 0)
    assert mem.read(BASE, 32) == hexed(
        "0011000000000000 04000000 0100 8280"  # used descriptor of b, over a's first
        "0111000000000000 00000000 0000 8080"  # used descriptor of a, one slot on
    )
    assert [driver.get(), driver.get(), driver.get()] == [("b", 4), ("a", 0), None]


def test_packed_batch_and_a_full_ring(mem: ModelMemory) -> None:
    driver, device = packed_driver(mem), packed_device(mem)
    before = mem.read(BASE, 56)
    with pytest.raises(Full):
        driver.add_many([Request([(0x1100, 1), (0x1101, 1)], [], k) for k in range(2)])
    assert mem.read(BASE, 56) == before
    driver.add([(0x1100 + k, 1) for k in range(3)], [], "a")  # a list of the queue size
    assert [mem.u16(BASE + 14 + 16 * k) for k in range(3)] == [0x81, 0x81, 0x80]
    assert device.pop() == Chain(0, tuple((0x1100 + k, 1, False) for k in range(3)))
    assert driver.num_free == 0
    assert driver.detach_unused() == ["a"]
    assert driver.num_free == 3


def test_packed_ring_of_one(mem: ModelMemory) -> None:
    driver = PackedDriver(mem, 1, BASE, DRIVER_EVENT, DEVICE_EVENT)
    device = PackedDevice(mem, 1, BASE, DRIVER_EVENT, DEVICE_EVENT)
    for lap, (avail, used) in enumerate([(0x80, 0x8080), (0x8000, 0), (0x80, 0x8080)]):
        driver.add([(0x1100, 1)], [], lap)
        assert mem.u16(BASE + 14) == avail
        assert device.pop() == Chain(0, ((0x1100, 1, False),))
        device.push(0, 0)
        assert mem.u16(BASE + 14) == used
        assert driver.get() == (lap, 0)


def test_packed_in_order_one_used_descriptor_for_a_batch(mem: ModelMemory) -> None:
    driver, device = packed_driver(mem, in_order=True), packed_device(mem, in_order=True)
    driver.add([(0x1100, 1)], [(0x1200, 10)], "a")
    driver.add([(0x1300, 5)], [], "b")
    device.pop()
    device.pop()
    device.push_batch_in_order([(0, 10), (1, 0)])
    assert mem.read(BASE, 48) == hexed(
        "0011000000000000 00000000 0100 8080"  # the id of b in a's first slot
        "0012000000000000 0a000000 0000 8200"
        "0013000000000000 05000000 0100 8000"
    )
    assert [driver.get() for _ in range(3)] == [("a", 10), ("b", 0), None]
    # The next used descriptor comes behind all three slots: slot 0 of the second lap.
    driver.add([], [(0x1400, 8)], "c")
    device.pop()
    device.push(2, 8)
    assert mem.read(BASE, 16) == hexed("0014000000000000 08000000 0200 0200")
    assert driver.get() == ("c", 8)


def test_packed_indirect_table(mem: ModelMemory) -> None:
    driver, device = packed_driver(mem, indirect=True), packed_device(mem, indirect=True)
    driver.add([(0x1100, 1)], [(0x1200, 2), (0x1300, 3)], "a", indirect_table=TABLE)
    assert driver.num_free == 2
    assert mem.read(BASE, 16) == hexed("0018000000000000 30000000 0000 8400")
    assert mem.read(TABLE, 48) == hexed(
        "0011000000000000 01000000 0000 0000"
        "0012000000000000 02000000 0000 0200"
        "0013000000000000 03000000 0000 0200"
    )
    mem.set_u16(BASE + 14, 0x84 | 2)  # WRITE is ignored here
    mem.set_u16(TABLE + 14, 1 | 4 | 0x8080)  # every flag but WRITE is ignored in the table
    mem.set_u16(TABLE + 12, 77)  # and so is the id
    assert device.pop() == Chain(0, ((0x1100, 1, False), (0x1200, 2, True), (0x1300, 3, True)))
    device.push(0, 5)
    assert driver.get() == ("a", 5)


def test_packed_buffer_id_is_that_of_the_last_descriptor(mem: ModelMemory) -> None:
    driver, device = packed_driver(mem), packed_device(mem)
    driver.add([(0x1100, 1), (0x1101, 1)], [], "a")
    mem.set_u16(BASE + 12, 2)
    assert device.pop() == Chain(0, ((0x1100, 1, False), (0x1101, 1, False)))


def test_packed_flags_suppress_notifications(mem: ModelMemory) -> None:
    driver, device = packed_driver(mem), packed_device(mem)
    device.disable_notify()
    driver.disable_cb()
    assert mem.read(DRIVER_EVENT, 8) == hexed("0000 0100 0000 0100")
    driver.add([(0x1100, 1)], [], "a")
    assert not driver.kick_prepare()
    assert not device.enable_notify()
    device.pop()
    assert device.enable_notify()
    device.push(0, 0)
    assert not device.need_notify()
    assert not driver.enable_cb()
    assert mem.read(DRIVER_EVENT, 8) == bytes(8)
    driver.get()
    assert driver.enable_cb()
    driver.add([(0x1100, 1)], [], "b")
    assert driver.kick_prepare()


def test_packed_event_offset_and_wrap_counter(mem: ModelMemory) -> None:
    driver, device = packed_driver(mem, event_idx=True), packed_device(mem, event_idx=True)
    assert device.enable_notify()
    assert driver.enable_cb()
    assert mem.read(DRIVER_EVENT, 8) == hexed("0080 0200 0080 0200")  # slot 0, wrap 1, DESC
    driver.add([(0x1100, 1), (0x1101, 1)], [], "a")
    assert driver.kick_prepare()
    driver.add([(0x1102, 1)], [], "b")
    assert not driver.kick_prepare()
    device.pop()
    assert mem.read(DEVICE_EVENT, 4) == hexed("0280 0200")  # slot 2, wrap 1
    device.pop()
    assert device.enable_notify()
    assert mem.read(DEVICE_EVENT, 4) == hexed("0000 0200")  # slot 0, wrap 0
    device.push(1, 0)
    assert device.need_notify()
    device.push(0, 0)
    assert not device.need_notify()
    assert [driver.get(), driver.get()] == [("b", 0), ("a", 0)]
    assert mem.read(DRIVER_EVENT, 4) == hexed("0000 0200")
    driver.add([(0x1100, 1)], [], "c")  # slot 0, wrap 0: the event
    assert driver.kick_prepare()
    mem.set_u16(DEVICE_EVENT, 0x8001)  # slot 1, but of the other lap
    driver.add([(0x1100, 1)], [], "d")
    assert not driver.kick_prepare()


def test_packed_event_inside_a_list_that_is_skipped(mem: ModelMemory) -> None:
    driver, device = packed_driver(mem, event_idx=True), packed_device(mem, event_idx=True)
    driver.add([(0x1100, 1)] * 3, [], "a")
    assert driver.enable_cb_delayed()  # 3 slots in flight: the event is at slot 2
    assert mem.read(DRIVER_EVENT, 4) == hexed("0280 0200")
    device.pop()
    device.push(0, 0)  # written to slot 0, passes slots 0 to 2
    assert device.need_notify()
    assert not driver.enable_cb_delayed()


def test_packed_event_desc_means_enable_without_the_feature(mem: ModelMemory) -> None:
    driver = packed_driver(mem)
    mem.write(DEVICE_EVENT, hexed("0180 0200"))
    driver.add([(0x1100, 1)], [], "a")
    assert driver.kick_prepare()


def test_packed_used_length(mem: ModelMemory) -> None:
    driver, device = packed_driver(mem), packed_device(mem)
    for token in "ab":
        driver.add([], [(0x1200, 32)], token)
        device.pop()
    device.push(0, 32)
    device.push(1, 0)
    mem.set_u32(BASE + 8, 40)  # more than fits: clamped
    mem.set_u32(BASE + 24, 9)  # no WRITE: the length means nothing
    assert driver.get() == ("a", 32)
    assert driver.excess == 8
    assert driver.get() == ("b", 0)
    assert driver.excess == 0


def test_packed_position_moves_to_another_device(mem: ModelMemory) -> None:
    driver, device = packed_driver(mem, event_idx=True), packed_device(mem, event_idx=True)
    assert device.position() == 0x8000_8000
    driver.add([(0x1100, 1)] * 3, [], "a")
    device.pop()
    device.push(0, 0)
    assert device.position() == 0  # slot 0, wrap 0
    driver.get()
    driver.add([(0x1101, 1)], [], "b")
    other = packed_device(mem, event_idx=True)
    other.restore(device.position())
    assert other.pop() == Chain(1, ((0x1101, 1, False),))
    other.push(1, 0)
    assert driver.enable_cb() is False
    assert other.need_notify()
    assert driver.get() == ("b", 0)
    with pytest.raises(ValueError, match="nothing in flight"):
        other.restore(0x8000_0000)


@pytest.mark.parametrize("ident", [1, 3, 65535])
def test_packed_driver_sees_bad_used_ids(mem: ModelMemory, ident: int) -> None:
    driver = packed_driver(mem)
    driver.add([(0x1100, 1)], [], "a")
    mem.write(BASE + 8, hexed("00000000") + ident.to_bytes(2, "little") + hexed("8080"))
    with pytest.raises(ModelError, match="not that of a buffer in flight"):
        driver.get()
    assert driver.num_free == 2


#: As SPLIT_BAD: a list in slots 0 and 1, or an indirect descriptor in slot 0.
PACKED_BAD: dict[str, tuple[str, Callable[[ModelMemory], None], str]] = {
    "list cut off": ("d", lambda m: m.set_u16(BASE + 30, 0x81), "not available"),
    "id too large": ("d", lambda m: m.set_u16(BASE + 28, 3), "buffer id 3"),
    "readable behind writable": ("d", lambda m: m.set_u16(BASE + 14, 0x83), "readable"),
    "address outside": ("d", lambda m: m.set_u64(BASE + 16, 0x1FE1), "not inside"),
    "indirect behind direct": ("d", lambda m: m.set_u16(BASE + 30, 0x84), "linked by NEXT"),
    "indirect with next": ("i", lambda m: m.set_u16(BASE + 14, 0x85), "linked by NEXT"),
    "empty table": ("i", lambda m: m.set_u32(BASE + 8, 0), "multiple of 16"),
    "odd table": ("i", lambda m: m.set_u32(BASE + 8, 40), "multiple of 16"),
    "long table": ("i", lambda m: m.set_u32(BASE + 8, 64), "4 elements in a ring of 3"),
}


@pytest.mark.parametrize("case", PACKED_BAD)
def test_packed_device_sees_bad_lists(mem: ModelMemory, case: str) -> None:
    kind, poke, message = PACKED_BAD[case]
    driver, device = packed_driver(mem, indirect=True), packed_device(mem, indirect=True)
    table = TABLE if kind == "i" else None
    driver.add([(0x1100, 16), (0x1200, 32)], [], "a", indirect_table=table)
    poke(mem)
    for _ in range(2):
        with pytest.raises(ModelError, match=message):
            device.pop()


def test_packed_device_sees_a_list_longer_than_the_ring(mem: ModelMemory) -> None:
    driver, device = packed_driver(mem), packed_device(mem)
    driver.add([(0x1100, 1)] * 3, [], "a")
    mem.set_u16(BASE + 46, 0x81)
    with pytest.raises(ModelError, match="more descriptors"):
        device.pop()


def test_packed_device_sees_an_id_that_it_holds(mem: ModelMemory) -> None:
    driver, device = packed_driver(mem), packed_device(mem)
    driver.add([(0x1100, 1)], [], "a")
    driver.add([(0x1100, 1)], [], "b")
    mem.set_u16(BASE + 28, 0)
    device.pop()
    with pytest.raises(ModelError, match="while the device holds it"):
        device.pop()
