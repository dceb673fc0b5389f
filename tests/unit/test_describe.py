"""describe(): known rings give known data, garbage is noted, and nothing is disturbed."""

import json
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virtring import (
    BadUsedRing,
    Batch,
    DeviceQueue,
    Feature,
    GuestMemory,
    InvalidArgument,
    IotlbMemory,
    QueueBroken,
    QueueClosed,
    RingDescription,
    RingDevice,
    Virtqueue,
    create_pair,
    describe,
    vring_create_virtqueue,
)
from virtring.queue.config import avail_bytes, desc_bytes, used_bytes

LAYOUTS = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
PLAIN = Feature.VERSION_1 | Feature.INDIRECT_DESC
BASE = 0x20000
NEARLY = [0, 1, 2, 3, 4, 5, 7, 16, 0x80, 0x81, 0x8080, 0x8082]


def ends(packed: bool, features: Feature = PLAIN, num: int = 8) -> tuple[Virtqueue, DeviceQueue]:
    memory = GuestMemory.create(1 << 18)
    return create_pair(num, packed=packed, features=features, memory=memory, name="vq")


def ring(vq: Virtqueue) -> bytes:
    """All of the ring's memory."""
    config = vq.config
    return b"".join(
        vq.memory.read(addr, size)
        for addr, size in (
            (config.desc, desc_bytes(config.size)),
            (config.avail, avail_bytes(config.size, config.packed)),
            (config.used, used_bytes(config.size, config.packed)),
        )
    )


def three_buffers(vq: Virtqueue) -> None:
    """A single one, a direct chain of 2 and an indirect chain of 3."""
    vq.add_outbuf_premapped([(BASE, 10)], 100)
    vq.virtqueue_add([(BASE + 16, 20)], [(BASE + 64, 30)], "two", rpmsg=True, premapped=True)
    vq.virtqueue_add([(BASE, 1), (BASE, 2)], [(BASE, 3)], 300, premapped=True)


def undisturbed(vq: Virtqueue, dq: DeviceQueue | None = None) -> list[RingDescription]:
    """Descriptions of the sides, made twice, with the ring compared before and after."""
    before = ring(vq)
    sides: list[Virtqueue | DeviceQueue] = [vq] if dq is None else [vq, dq]
    first = [describe(side) for side in sides]
    assert [describe(side) for side in sides] == first
    assert ring(vq) == before
    for one in first:
        assert json.loads(json.dumps(one.as_dict())) == one.as_dict()
        assert str(one)
    return first


def brief(one: RingDescription) -> list[tuple[Any, ...]]:
    """What matters of the descriptors."""
    return [
        (row.index, row.id if one.layout == "packed" else row.head, row.state, row.addr, row.len)
        for row in one.descriptors
    ]


def test_a_split_ring_from_both_sides() -> None:
    vq, dq = ends(False)
    three_buffers(vq)
    chains = [dq.next_chain(), dq.next_chain()]
    assert chains[1] is not None
    dq.return_(chains[1], 7)
    driver, device = undisturbed(vq, dq)
    table = int.from_bytes(vq.memory.read(vq.config.desc + 3 * 16, 8), "little")
    expected = {
        "role": "driver",
        "layout": "split",
        "name": "vq",
        "index": 0,
        "size": 8,
        "features": ["INDIRECT_DESC", "VERSION_1"],
        "broken": False,
        "error": "",
        "positions": {
            "avail_idx": 3, "last_used_idx": 0, "ring_avail_idx": 3, "ring_used_idx": 1
        },
        "num_free": 4,
        "in_flight": 3,
        "ready": 1,
        "events": {"avail_flags": 1, "used_flags": 0},
        "interrupt": {"after": None, "text": "no: avail.flags has NO_INTERRUPT"},
        "kick": {"after": 0, "text": "yes, every kick()"},
        "buffers": [
            {"id": 0, "state": "in flight", "descriptors": 1, "writable": 0, "token": 100},
            {"id": 1, "state": "used", "descriptors": 2, "writable": 30, "token": "'two'"},
            {"id": 3, "state": "in flight", "descriptors": 1, "writable": 3, "token": 300},
        ],
        "used": [{"position": 0, "id": 1, "written": 7, "notes": []}],
        "descriptors": [
            row(0, 0, BASE, 10, 0, [], None, "in flight"),
            row(1, 1, BASE + 16, 20, 1, ["NEXT"], 2, "used"),
            row(2, 1, BASE + 64, 30, 2, ["WRITE"], None, "used"),
            {
                **row(3, 3, table, 48, 4, ["INDIRECT"], None, "in flight"),
                "table": [
                    row(0, None, BASE, 1, 1, ["NEXT"], 1, "table"),
                    row(1, None, BASE, 2, 1, ["NEXT"], 2, "table"),
                    row(2, None, BASE, 3, 2, ["WRITE"], None, "table"),
                ],
            },
        ],
        "problems": [],
        "omitted": 0,
    }  # fmt: skip
    assert driver.as_dict() == expected
    assert device.positions == {
        "last_avail_idx": 2, "used_idx": 1, "ring_avail_idx": 3, "ring_used_idx": 1
    }  # fmt: skip
    assert (device.role, device.num_free, device.in_flight, device.ready) == ("device", None, 1, 1)
    assert [(row.id, row.state, row.descriptors) for row in device.buffers] == [(0, "held", 1)]
    assert [entry[:3] for entry in brief(device)] == [(0, 0, "held"), (3, 3, "available")]
    assert [inner.len for inner in device.descriptors[1].table] == [1, 2, 3]
    assert device.interrupt.after is None
    assert device.kick.after == 1
    assert device.problems == []


def row(
    index: int,
    head: int | None,
    addr: int,
    length: int,
    flags: int,
    names: list[str],
    link: int | None,
    state: str,
) -> dict[str, Any]:
    return {
        "index": index, "head": head, "id": None, "addr": addr, "len": length, "flags": flags,
        "names": names, "next": link, "state": state, "table": [], "notes": [],
    }  # fmt: skip


def test_a_packed_ring_from_both_sides() -> None:
    vq, dq = ends(True)
    three_buffers(vq)
    chains = [dq.next_chain(), dq.next_chain()]
    assert chains[1] is not None
    dq.return_(chains[1], 7)
    driver, device = undisturbed(vq, dq)
    assert driver.positions == {
        "next_avail_idx": 4, "avail_wrap": 1, "last_used_idx": 0, "used_wrap": 1
    }  # fmt: skip
    assert driver.events == {
        "driver_flags": 1, "driver_off": 0, "driver_wrap": 0,
        "device_flags": 0, "device_off": 0, "device_wrap": 0,
    }  # fmt: skip
    assert (driver.num_free, driver.in_flight, driver.ready) == (4, 3, 1)
    assert [(b.id, b.state, b.descriptors, b.writable, b.token) for b in driver.buffers] == [
        (0, "in flight", 1, 0, 100), (1, "used", 2, 30, "'two'"), (2, "in flight", 1, 3, 300)
    ]  # fmt: skip
    assert [(u.position, u.id, u.written) for u in driver.used] == [(0, 1, 7)]
    # The device wrote over the place of buffer 0, which it still holds; two places further on the
    # ring goes on with what the driver wrote.
    table = driver.descriptors[-1].addr
    assert brief(driver) == [
        (0, 1, "used", BASE, 7),
        (2, 1, "in flight", BASE + 64, 30),
        (3, 2, "in flight", table, 48),
    ]
    assert driver.descriptors[0].names == ["WRITE", "AVAIL", "USED"]
    assert driver.descriptors[1].notes == ["used already"]
    assert [inner.names for inner in driver.descriptors[2].table] == [[], [], ["WRITE"]]
    assert (device.in_flight, device.ready) == (1, 1)
    assert [(b.id, b.state) for b in device.buffers] == [(0, "held")]
    assert brief(device) == [
        (2, 1, "held", BASE + 64, 30),
        (3, 2, "available", table, 48),
    ]
    assert device.descriptors[0].notes == ["returned already"]
    assert (driver.problems, device.problems) == ([], [])
    assert driver.interrupt.text == "no: driver event flags say DISABLE"
    assert driver.kick.text == "yes, every kick()"


@LAYOUTS
def test_an_empty_ring(packed: bool) -> None:
    for one in undisturbed(*ends(packed)):
        assert (one.in_flight, one.ready, one.buffers, one.used, one.descriptors) == (
            0, 0, [], [], []
        )  # fmt: skip
        assert one.problems == []


@LAYOUTS
def test_groups_of_in_order_buffers(packed: bool) -> None:
    vq, dq = ends(packed, PLAIN | Feature.IN_ORDER)
    for number in range(5):
        vq.add_inbuf_premapped([(BASE, 10 + number)], 100 + number)
    chains = [dq.next_chain() for _ in range(4)]
    for number in (3, 2, 1):
        chain = chains[number]
        assert chain is not None
        dq.return_(chain, 10 + number)
    states = [(b.id, b.state) for b in describe(dq).buffers]
    assert states == [(0, "held"), (1, "done"), (2, "done"), (3, "done")]
    assert describe(vq).ready == 0
    assert chains[0] is not None
    dq.return_(chains[0], 10)
    driver, device = undisturbed(vq, dq)
    assert driver.ready == 4
    assert [(u.id, u.written) for u in driver.used] == [(0, None), (1, None), (2, None), (3, 13)]
    assert (device.buffers, device.ready) == ([], 1)
    # In the middle of the group.
    assert vq.get_buf() == (100, 10)
    assert vq.get_buf() == (101, 11)
    (driver,) = undisturbed(vq)
    assert [(u.id, u.written) for u in driver.used] == [(2, None), (3, 13)]
    assert [(b.id, b.state) for b in driver.buffers] == [
        (2, "used"), (3, "used"), (4, "in flight")
    ]  # fmt: skip
    assert driver.problems == []


@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
@LAYOUTS
def test_the_wishes_are_what_the_engine_decides(packed: bool, event_idx: bool) -> None:
    """A random walk: before every decision, compare it with what was described."""
    features = PLAIN | (Feature.EVENT_IDX if event_idx else Feature(0))
    vq, dq = ends(packed, features, 4)
    dice = random.Random(packed * 2 + event_idx)
    decisions = {True: 0, False: 0}
    held: list[Any] = []
    available = used = 0
    for _ in range(800):
        match dice.randrange(8):
            case 0 | 1 if vq.num_free:
                vq.add_outbuf_premapped([(BASE, 8)] * dice.randint(1, 3), object())
                available += 1
            case 2 | 3 if dq.more_available:
                held.append(dq.next_chain())
                available -= 1
            case 4 | 5 if held:
                dq.return_(held.pop(dice.randrange(len(held))))
                used += 1
            case 6:
                while vq.get_buf() is not None:
                    used -= 1
                assert used == 0
            case 7:
                dice.choice(
                    [vq.enable_cb, vq.disable_cb, vq.enable_cb_delayed,
                     dq.enable_notify, dq.disable_notify]
                )()  # fmt: skip
        driver, device = describe(vq), describe(dq)
        assert driver.problems == device.problems == []
        assert (driver.ready, device.ready) == (used, available)
        assert driver.in_flight == len(driver.buffers) == vq.in_flight
        assert device.in_flight == len(device.buffers) == len(held)
        # With plain flags a decision does not depend on whether anything was added.
        if dice.random() < 0.3 and not driver.kick.text.startswith("yes, every"):
            wanted = vq.kick_prepare()
            assert wanted == (driver.kick.after == 0)
            decisions[wanted] += 1
        if dice.random() < 0.3 and not device.interrupt.text.startswith("yes, every"):
            wanted = dq.need_notify()
            assert wanted == (device.interrupt.after == 0)
            decisions[wanted] += 1
    assert decisions[False] > 30
    assert decisions[True] > 30 or not event_idx


@LAYOUTS
def test_wishes_by_flags(packed: bool) -> None:
    vq, dq = ends(packed)
    vq.enable_cb()
    dq.disable_notify()
    three_buffers(vq)
    driver, device = undisturbed(vq, dq)
    assert (driver.interrupt.after, driver.kick.after) == (1, None)
    chain = dq.next_chain()
    assert chain is not None
    dq.return_(chain)
    assert describe(dq).interrupt.after == 0
    assert dq.need_notify()
    assert describe(dq).interrupt.after == 1
    assert driver.interrupt == device.interrupt
    assert vq.kick_prepare() is False


@LAYOUTS
def test_wishes_ahead(packed: bool) -> None:
    vq, dq = ends(packed, PLAIN | Feature.EVENT_IDX)
    for number in range(8):
        vq.add_outbuf_premapped([(BASE, 8)], number)
    assert vq.enable_cb_delayed()
    what = "descriptor" if packed else "buffer"
    assert describe(dq).interrupt.after == 7
    assert describe(vq).interrupt.text.startswith(f"yes, after 7 more used {what}s")
    for _ in range(6):
        chain = dq.next_chain()
        assert chain is not None
        dq.return_(chain)
        assert dq.need_notify() is False
    assert describe(vq).interrupt.after == describe(dq).interrupt.after == 1
    chain = dq.next_chain()
    assert chain is not None
    dq.return_(chain)
    assert describe(dq).interrupt.after == 0
    assert dq.need_notify() is True
    assert describe(dq).interrupt.after is None


# -- what is wrong ------------------------------------------------------------------------------


def put(vq: Virtqueue, area: str, offset: int, value: int, size: int = 2) -> None:
    vq.memory.write(getattr(vq.config, area) + offset, value.to_bytes(size, "little"))


def test_what_a_wrong_device_wrote_into_a_split_ring() -> None:
    vq, _ = ends(False)
    three_buffers(vq)
    put(vq, "used", 2, 4)
    (one,) = undisturbed(vq)
    assert one.problems == ["used.idx went from 0 to 4, but only 3 buffers are in flight"]
    assert (one.ready, one.used) == (0, [])
    put(vq, "used", 2, 2)
    put(vq, "used", 4, 1, 4)
    put(vq, "used", 12, 99, 4)
    (one,) = undisturbed(vq)
    assert (one.ready, one.problems) == (1, ["used entry at 1: no buffer in flight has id 99"])
    assert one.used[1].notes == ["no buffer in flight has id 99"]
    put(vq, "desc", 16 + 14, 1)
    put(vq, "desc", 8, 0, 4)
    put(vq, "avail", 2, 77)
    (one,) = undisturbed(vq)
    assert one.descriptors[0].notes == ["length 0"]
    assert one.descriptors[1].notes == ["loops"]
    assert one.problems[0] == "avail.idx in the ring is 77, but this side wrote 3"
    assert one.problems[2] == "the chain at 1 has 1 descriptors in the ring; it was made of 2"


def test_an_index_that_goes_back() -> None:
    vq, dq = ends(False)
    three_buffers(vq)
    for _ in range(3):
        chain = dq.next_chain()
        assert chain is not None
        dq.return_(chain)
    assert vq.get_buf() is not None
    put(vq, "used", 2, 2)
    assert undisturbed(vq)[0].problems == ["used.idx went back from 3 to 2"]
    vq, dq = ends(False)
    three_buffers(vq)
    assert dq.next_chain() is not None
    put(vq, "avail", 2, 2)
    assert undisturbed(vq, dq)[1].problems == ["avail.idx went back from 3 to 2"]


def test_what_a_wrong_driver_wrote_into_a_split_ring() -> None:
    vq, dq = ends(False)
    three_buffers(vq)
    assert dq.next_chain() is not None
    put(vq, "avail", 4 + 2, 0)
    put(vq, "avail", 4 + 4, 8)
    put(vq, "used", 2, 5)
    device = undisturbed(vq, dq)[1]
    assert device.problems == [
        "used.idx in the ring is 5, but this side wrote 0",
        "available entry 1 names head 0, which is out already",
        "available entry 2 names head 8",
    ]
    put(vq, "avail", 4 + 2, 1)
    put(vq, "avail", 4 + 4, 3)
    put(vq, "desc", 16 + 14, 200)
    put(vq, "desc", 3 * 16, 1 << 62, 8)
    device = undisturbed(vq, dq)[1]
    assert device.descriptors[1].notes == ["next is outside the ring"]
    assert device.descriptors[2].notes == ["table not in the memory"]
    put(vq, "avail", 2, 50000)
    device = undisturbed(vq, dq)[1]
    assert device.problems[0] == "avail.idx went from 1 to 50000, more than the ring's 8 entries"


def test_what_is_wrong_in_an_indirect_table() -> None:
    vq, dq = ends(False)
    three_buffers(vq)
    table = describe(vq).descriptors[-1].addr
    vq.memory.write(table + 12, (4).to_bytes(2, "little"))
    inner = undisturbed(vq, dq)[1].descriptors[-1].table
    assert [row.notes for row in inner] == [["INDIRECT inside a table"]]
    for link, note in ((0, "loops"), (3, "next is outside the table")):
        vq.memory.write(table + 12, (1).to_bytes(2, "little") + link.to_bytes(2, "little"))
        inner = undisturbed(vq, dq)[1].descriptors[-1].table
        assert [row.notes for row in inner] == [[note]]
    put(vq, "desc", 3 * 16 + 8, 47, 4)
    put(vq, "desc", 3 * 16 + 12, 5)
    notes = undisturbed(vq, dq)[1].descriptors[-1].notes
    assert notes == ["INDIRECT together with NEXT", "47 bytes are no table for this ring"]
    other = DeviceQueue(vq.memory, vq.config.__class__(
        8, vq.config.desc, vq.config.avail, vq.config.used
    ))  # fmt: skip
    assert "INDIRECT was not negotiated" in describe(other).descriptors[-1].notes


def test_what_a_wrong_device_wrote_into_a_packed_ring() -> None:
    vq, _ = ends(True)
    three_buffers(vq)
    put(vq, "desc", 12, 9 | 0x8080 << 16, 4)
    (one,) = undisturbed(vq)
    assert (one.ready, one.problems) == (0, ["used entry at 0: no buffer in flight has id 9"])
    put(vq, "desc", 12, 0x8000 << 16, 4)
    (one,) = undisturbed(vq)
    assert one.problems == []
    assert one.descriptors[0].notes == ["neither available nor used"]
    put(vq, "used", 0, 2 << 16 | 8, 4)
    assert (
        undisturbed(vq)[0].kick.text == "no: device event offset 8 is beyond the ring's 8 entries"
    )
    put(vq, "used", 0, 3 << 16, 4)
    assert undisturbed(vq)[0].kick.text == "yes, every kick() (device event flags 3 are reserved)"
    assert vq.kick_prepare() is True


def test_what_a_wrong_driver_wrote_into_a_packed_ring() -> None:
    vq, dq = ends(True)
    three_buffers(vq)
    assert dq.next_chain() is not None
    # The second descriptor of the chain of 2 is not available.
    put(vq, "desc", 2 * 16 + 14, 0x8082)
    device = undisturbed(vq, dq)[1]
    assert (device.ready, device.problems) == (0, ["the chain at 1 is cut off here"])
    put(vq, "desc", 2 * 16 + 12, 0 | 0x82 << 16, 4)
    device = undisturbed(vq, dq)[1]
    assert (device.ready, device.problems) == (
        2, ["an available buffer has id 0, which is out already"]
    )  # fmt: skip
    for place in range(1, 8):
        put(vq, "desc", place * 16 + 14, 0x81)
    device = undisturbed(vq, dq)[1]
    assert device.problems == ["the chain at 1 is longer than the ring"]
    assert len(device.descriptors) == 8


def test_more_in_a_packed_ring_than_fits() -> None:
    vq, dq = ends(True, num=2)
    for number in range(2):
        vq.add_outbuf_premapped([(BASE, 8)], number)
        assert dq.next_chain() is not None
    assert undisturbed(vq, dq)[1].problems == []
    put(vq, "desc", 14, 0x8000)
    assert undisturbed(vq, dq)[1].problems == ["more than the ring's 2 entries are in flight"]


@settings(max_examples=300, deadline=None)
@given(st.booleans(), st.sampled_from([1, 4, 8]), st.booleans(), st.integers(0, 1 << 32))
def test_garbage_anywhere(packed: bool, num: int, in_order: bool, seed: int) -> None:
    """Whatever stands in the ring, both sides can be described and nothing changes."""
    dice = random.Random(seed)
    features = PLAIN | Feature.EVENT_IDX | (Feature.IN_ORDER if in_order else Feature(0))
    vq, dq = ends(packed, features, num)
    for number in range(dice.randint(0, num)):
        vq.add_outbuf_premapped([(BASE, 8)], number)
    while dq.more_available and dice.random() < 0.5:
        chain = dq.next_chain()
        if chain is not None and dice.random() < 0.5:
            dq.return_(chain)
    config = vq.config
    areas = {
        "desc": desc_bytes(num), "avail": avail_bytes(num, packed), "used": used_bytes(num, packed)
    }  # fmt: skip
    for area in dice.sample(sorted(areas), dice.randint(1, 3)):
        # Mostly words of few values, so that flags, ids and indices often look nearly right.
        words = [
            dice.choice(NEARLY) if dice.random() < 0.9 else dice.randrange(1 << 16)
            for _ in range(areas[area] // 2)
        ]
        vq.memory.write(getattr(config, area), np.array(words, "<u2"))
    driver, device = undisturbed(vq, dq)
    assert len(driver.descriptors) <= num
    assert len(device.descriptors) <= num * num
    # If the engine saw something to take, the description does too.
    assert (driver.ready > 0 or bool(driver.problems)) >= vq.more_used
    assert (device.ready > 0 or bool(device.problems)) >= dq.more_available


@LAYOUTS
def test_a_broken_queue(packed: bool) -> None:
    vq, dq = ends(packed)
    for _ in range(2):
        vq.add_outbuf_premapped([(BASE, 8)], object())
    for _ in range(2):
        chain = dq.next_chain()
        assert chain is not None
        dq.return_(chain)
    if packed:
        put(vq, "desc", 16 + 12, 5)
    else:
        put(vq, "used", 4 + 8, 5, 4)
    assert vq.get_buf() is not None
    with pytest.raises(BadUsedRing):
        vq.get_buf()
    (one,) = undisturbed(vq)
    assert one.broken
    assert str(one).splitlines()[0].endswith("BROKEN")
    assert one.used[0].notes == ["no buffer in flight has id 5"]
    with pytest.raises(QueueBroken):
        vq.add_outbuf_premapped([(BASE, 8)], 1)


@LAYOUTS
def test_an_error_that_waits_is_told_and_keeps_waiting(packed: bool) -> None:
    vq, dq = ends(packed)
    for number in range(2):
        vq.add_outbuf_premapped([(BASE, 8)], number + 1)
    for _ in range(2):
        chain = dq.next_chain()
        assert chain is not None
        dq.return_(chain)
    if packed:
        put(vq, "desc", 16 + 12, 5)
    else:
        put(vq, "used", 4 + 8, 5, 4)
    assert vq.get_buf_batch(Batch(4)) == 1
    (one,) = undisturbed(vq)
    assert one.broken
    assert "names id 5" in one.error
    assert one.error in str(one)
    with pytest.raises(BadUsedRing, match="names id 5"):
        vq.get_buf()


@LAYOUTS
def test_closed_and_wrong_arguments(packed: bool) -> None:
    vq, dq = ends(packed)
    memory = vq.memory
    wrong: list[Any] = [-1, 2.5, None]
    vq.close()
    dq.close()
    for side in (vq, dq):
        with pytest.raises(QueueClosed):
            describe(side)
    with pytest.raises(InvalidArgument, match="configure"):
        describe(DeviceQueue(memory))
    with pytest.raises(InvalidArgument, match="describe"):
        describe(wrong[1])
    for limit in wrong:
        with pytest.raises(InvalidArgument, match="limit"):
            describe(vq, limit=limit)


# -- the rest -----------------------------------------------------------------------------------


@LAYOUTS
def test_at_most_so_many_descriptors(packed: bool) -> None:
    vq, _ = ends(packed)
    three_buffers(vq)
    one = describe(vq, limit=2)
    assert len(one.descriptors) == 2
    assert one.omitted > 0
    assert f"... and {one.omitted} more" in str(one)
    assert describe(vq, limit=0).descriptors == []
    assert describe(vq).omitted == 0


@LAYOUTS
def test_no_translation_is_asked_for(packed: bool) -> None:
    backing = GuestMemory.create(1 << 20)
    start = backing.regions[0].guest_addr
    asked: list[int] = []

    def miss(addr: int, size: int, perm: str) -> None:
        asked.append(addr)

    memory = IotlbMemory(backing, miss)
    vq = vring_create_virtqueue(
        0, 8, 64, RingDevice(backing, PLAIN | (Feature.RING_PACKED if packed else Feature(0)))
    )
    # The ring only, not what the buffers are.
    memory.map(start, 4096, start)
    dq = DeviceQueue(memory, vq.config)
    vq.add_outbuf_premapped([(BASE, 8)], 1)
    vq.virtqueue_add([(BASE, 8), (BASE, 8)], [], 2, premapped=True)
    vq.memory.write(vq.config.desc + 16, (0x90000).to_bytes(8, "little"))
    one = describe(dq)
    assert asked == []
    assert [row.notes for row in one.descriptors] == [
        ["not in the memory"], ["table not in the memory"]
    ]  # fmt: skip


def test_a_big_endian_legacy_ring() -> None:
    memory = GuestMemory.create(1 << 20)
    vdev = RingDevice(memory, Feature.INDIRECT_DESC | Feature.EVENT_IDX, big_endian=True)
    vq = vring_create_virtqueue(0, 8, 4096, vdev, name="old")
    dq = DeviceQueue(memory, vq.config)
    three_buffers(vq)
    chain = dq.next_chain()
    assert chain is not None
    dq.return_(chain, 0)
    driver, device = undisturbed(vq, dq)
    assert [(u.id, u.written) for u in driver.used] == [(0, 0)]
    assert [row.len for row in device.descriptors] == [20, 30, 48]
    assert [row.len for row in device.descriptors[-1].table] == [1, 2, 3]
    assert (driver.problems, device.problems) == ([], [])
    assert device.positions["ring_avail_idx"] == 3


class Odd:
    def __repr__(self) -> str:
        raise RuntimeError("no")


@LAYOUTS
def test_a_token_whose_repr_fails(packed: bool) -> None:
    vq, _ = ends(packed)
    vq.add_outbuf_premapped([(BASE, 8)], Odd())
    vq.add_outbuf_premapped([(BASE, 8)], "x" * 500)
    tokens = [b.token for b in describe(vq).buffers]
    assert "Odd object at" in str(tokens[0])
    assert len(str(tokens[1])) == 60


def test_the_table_is_aligned() -> None:
    vq, dq = ends(False)
    three_buffers(vq)
    chain = dq.next_chain()
    assert chain is not None
    dq.return_(chain, 0)
    text = str(describe(vq))
    lines = text.splitlines()
    assert lines[0] == "vq 0: split ring of 8, driver side, running"
    heads = [i for i, line in enumerate(lines) if line in ("in flight", "used", "descriptors")]
    assert [lines[i] for i in heads] == ["in flight", "used", "descriptors"]
    title = lines[heads[2] + 1]
    rows = lines[heads[2] + 2 :]
    assert title.split() == ["index", "head", "state", "addr", "len", "next", "flags"]
    column = title.index("addr")
    assert len(rows) == 7
    for line in rows:
        assert line[column:].startswith("0x")
        assert line[column - 2 : column] == "  "
    assert not any(line.endswith(" ") for line in lines)
