"""I/O virtual addresses: mapping, splitting, joining, misses, and a model by hypothesis."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtring.errors import AddressError, InvalidArgument, NotSupported, QueueClosed
from virtring.memory import GuestMemory, IotlbMemory, Region

PAGE = 0x1000
BASE = 0x10000
TOP = 1 << 64


def no_miss(addr: int, size: int, perm: str) -> None:
    """A handler that has no translation to give."""


def backing() -> GuestMemory:
    """16 pages at BASE, page i filled with i; one more, read-only, right behind."""
    memory = GuestMemory.create(16 * PAGE, base=BASE)
    for i in range(16):
        memory.write(BASE + i * PAGE, bytes([i]) * PAGE)
    memory.add_region(BASE + 16 * PAGE, Region.anonymous(PAGE), perm="r")
    return memory


def spans(tlb: IotlbMemory) -> list[tuple[int, int, str]]:
    return [(row.guest_addr, row.size, row.perm) for row in tlb.regions]


def test_map_translates() -> None:
    memory = backing()
    tlb = IotlbMemory(memory, no_miss)
    tlb.map(0xABC000, PAGE, BASE + 3 * PAGE)
    assert tlb.read(0xABC000, PAGE) == bytes([3]) * PAGE
    tlb.write(0xABCFFF, b"x")
    assert memory.read(BASE + 4 * PAGE - 1, 1) == b"x"
    assert tlb.address_of(memory.view(BASE + 3 * PAGE + 8, 8)) == (0xABC008, 8)
    for addr, size in [(0xABCFFF, 2), (0xABBFFF, 1), (BASE, 1)]:
        with pytest.raises(AddressError):
            tlb.read(addr, size)


def test_rights_are_those_of_the_translation() -> None:
    tlb = IotlbMemory(backing(), no_miss)
    tlb.map(0, PAGE, BASE, "r")
    tlb.map(PAGE, PAGE, BASE, "w")
    with pytest.raises(AddressError):
        tlb.write(0, b"x")
    with pytest.raises(AddressError):
        tlb.read(PAGE, 1)
    assert tlb.view(0, 1).readonly
    with pytest.raises(AddressError, match="rights 'rw'"):
        tlb.map(0, PAGE, BASE + 16 * PAGE, "rw")
    tlb.map(0, PAGE, BASE + 16 * PAGE, "r")
    assert tlb.read(0, 1) == b"\0"


@pytest.mark.parametrize(
    ("iova", "size", "guest_addr"),
    [
        (0, 0, BASE),
        (TOP - 1, 2, BASE),
        (TOP, 1, BASE),
        (-1, 1, BASE),
        (0, PAGE, BASE - 1),
        (0, PAGE, TOP - 1),
        (0, 2 * PAGE, BASE + 15 * PAGE),
        (0, 1, 0),
    ],
)
def test_map_that_is_refused_changes_nothing(iova: int, size: int, guest_addr: int) -> None:
    tlb = IotlbMemory(backing(), no_miss)
    tlb.map(0, 4 * PAGE, BASE)
    with pytest.raises(AddressError):
        tlb.map(iova, size, guest_addr, "r")
    assert spans(tlb) == [(0, 4 * PAGE, "rw")]


def test_neighbours_are_joined_only_if_the_backing_is_one_piece() -> None:
    tlb = IotlbMemory(backing(), no_miss)
    tlb.map(PAGE, PAGE, BASE + PAGE)
    tlb.map(0, PAGE, BASE)
    tlb.map(2 * PAGE, PAGE, BASE + 2 * PAGE)
    assert spans(tlb) == [(0, 3 * PAGE, "rw")]
    tlb.map(3 * PAGE, PAGE, BASE + 5 * PAGE)
    tlb.map(4 * PAGE, PAGE, BASE + 6 * PAGE, "r")
    assert spans(tlb) == [(0, 3 * PAGE, "rw"), (3 * PAGE, PAGE, "rw"), (4 * PAGE, PAGE, "r")]
    tlb.unmap(0, 5 * PAGE)
    tlb.map(0, PAGE, BASE + 15 * PAGE, "r")
    tlb.map(PAGE, PAGE, BASE + 16 * PAGE, "r")
    assert len(tlb.regions) == 2
    with pytest.raises(AddressError):
        tlb.read(PAGE - 1, 2)


def test_unmap_splits() -> None:
    tlb = IotlbMemory(backing(), no_miss)
    tlb.map(0, 4 * PAGE, BASE)
    tlb.unmap(PAGE + 1, PAGE)
    assert spans(tlb) == [(0, PAGE + 1, "rw"), (2 * PAGE + 1, 2 * PAGE - 1, "rw")]
    assert tlb.read(2 * PAGE + 1, 1) == b"\2"
    assert tlb.read(3 * PAGE, 1) == b"\3"
    tlb.unmap(0, TOP)
    assert spans(tlb) == []
    tlb.unmap(0, 1)
    with pytest.raises(AddressError):
        tlb.unmap(0, 0)


def test_map_replaces() -> None:
    tlb = IotlbMemory(backing(), no_miss)
    tlb.map(0, 4 * PAGE, BASE)
    tlb.map(PAGE, PAGE, BASE + 9 * PAGE, "r")
    assert [tlb.read(i * PAGE, 1)[0] for i in range(4)] == [0, 9, 2, 3]
    assert [row[2] for row in spans(tlb)] == ["rw", "r", "rw"]


def test_miss_is_asked_page_by_page() -> None:
    asked: list[tuple[int, int, str]] = []

    def miss(addr: int, size: int, perm: str) -> None:
        asked.append((addr, size, perm))
        page = addr & ~(PAGE - 1)
        tlb.map(page, PAGE, BASE + (page - 0x70000000), perm)

    tlb = IotlbMemory(backing(), miss)
    assert tlb.read(0x70000FFF, PAGE + 2)[:2] == b"\0\1"
    assert asked == [
        (0x70000FFF, PAGE + 2, "r"),
        (0x70001000, PAGE + 1, "r"),
        (0x70002000, 1, "r"),
    ]
    asked.clear()
    assert tlb.read(0x70002000, 1) == b"\2"
    assert asked == []
    tlb.write(0x70003000, b"new")
    assert asked == [(0x70003000, 3, "w")]


def test_more_rights_are_asked_for() -> None:
    asked: list[str] = []

    def miss(addr: int, size: int, perm: str) -> None:
        asked.append(perm)
        tlb.map(0, PAGE, BASE, "rw")

    tlb = IotlbMemory(backing(), miss)
    tlb.map(0, PAGE, BASE, "r")
    assert tlb.resolve(0, PAGE, "rw")
    assert asked == ["rw"]
    assert not tlb.view(0, 1).readonly


def test_miss_that_does_not_help_is_asked_once() -> None:
    asked: list[int] = []

    def miss(addr: int, size: int, perm: str) -> None:
        asked.append(addr)
        tlb.map(0x5000, PAGE, BASE)

    tlb = IotlbMemory(backing(), miss)
    assert not tlb.resolve(0x8000, 16)
    assert asked == [0x8000]
    with pytest.raises(AddressError):
        tlb.read(0x8000, 16)
    assert asked == [0x8000, 0x8000]


def test_range_in_two_pieces_of_the_backing_is_not_mapped() -> None:
    tlb = IotlbMemory(backing(), no_miss)
    tlb.map(0, PAGE, BASE + PAGE)
    tlb.map(PAGE, PAGE, BASE)
    assert not tlb.resolve(0, PAGE + 1)
    assert tlb.resolve(0, PAGE)


def test_what_miss_raises_comes_out() -> None:
    def miss(addr: int, size: int, perm: str) -> None:
        raise LookupError(hex(addr))

    tlb = IotlbMemory(backing(), miss)
    with pytest.raises(LookupError, match="0x9000"):
        tlb.view(0x9000, 1)


def test_miss_may_close_the_memory() -> None:
    tlb = IotlbMemory(backing(), lambda addr, size, perm: tlb.close())
    with pytest.raises(QueueClosed):
        tlb.read(0, 1)


def test_removed_backing_takes_its_translations() -> None:
    memory = backing()
    tlb = IotlbMemory(memory, no_miss)
    tlb.map(0, PAGE, BASE)
    tlb.map(PAGE, PAGE, BASE + 16 * PAGE, "r")
    memory.remove_region(BASE + 16 * PAGE)
    assert spans(tlb) == [(0, PAGE, "rw")]
    memory.close()
    assert spans(tlb) == []
    with pytest.raises(QueueClosed):
        tlb.map(0, PAGE, BASE)


def test_dropped_tlb_leaves_the_backing_alone() -> None:
    memory = backing()
    tlb = IotlbMemory(memory, no_miss)
    tlb.map(0, PAGE, BASE)
    region = memory.remove_region(BASE + 16 * PAGE)
    region.close()
    del tlb
    memory.remove_region(BASE).close()


def test_what_it_does_not_do() -> None:
    memory = backing()
    tlb = IotlbMemory(memory, no_miss)
    for call in (
        lambda: tlb.alloc(1),
        lambda: tlb.free(BASE),
        lambda: tlb.available,
        lambda: tlb.add_region(0, Region.anonymous(PAGE)),
        lambda: tlb.remove_region(0),
        lambda: pickle.dumps(tlb),
    ):
        with pytest.raises(NotSupported):
            call()
    for wrong in (tlb, None):
        with pytest.raises(InvalidArgument, match="backing"):
            IotlbMemory(wrong, no_miss)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="miss"):
        IotlbMemory(memory, None)  # type: ignore[arg-type]


UNIT = 0x100
STEPS = st.lists(
    st.tuples(
        st.booleans(),
        st.integers(0, 15),
        st.integers(1, 8),
        st.integers(0, 15),
        st.sampled_from(["r", "w", "rw"]),
    ),
    max_size=30,
)


@given(STEPS)
def test_against_a_page_table(steps: list[tuple[bool, int, int, int, str]]) -> None:
    memory = GuestMemory.create(32 * UNIT, base=BASE, kind="anonymous")
    tlb = IotlbMemory(memory, no_miss)
    pages: dict[int, tuple[int, str]] = {}
    for mapping, page, count, target, perm in steps:
        if mapping:
            tlb.map(page * UNIT, count * UNIT, BASE + target * UNIT, perm)
            pages |= {page + i: (target + i, perm) for i in range(count)}
        else:
            tlb.unmap(page * UNIT, count * UNIT)
            for i in range(count):
                pages.pop(page + i, None)
    for page in range(24):
        entry = pages.get(page)
        for perm in ("r", "w"):
            if entry is None or perm not in entry[1]:
                assert not tlb.resolve(page * UNIT, UNIT, perm)
            else:
                _, offset = tlb.translate(page * UNIT, UNIT, perm)
                assert offset == entry[0] * UNIT
        after = pages.get(page + 1)
        joined = entry is not None and after == (entry[0] + 1, entry[1])
        if entry is not None and entry[1] != "w":
            assert tlb.resolve(page * UNIT, UNIT + 1, "r") == joined
