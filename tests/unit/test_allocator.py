"""The address allocator, by examples and against a model that marks every byte."""

import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtring.errors import InvalidArgument, MemoryInUse, OutOfMemory
from virtring.memory import RangeAllocator

START, SIZE = 0x100, 0x200
SECOND = START + SIZE  # right behind the first range
SECOND_SIZE = 0x80


def two_ranges() -> RangeAllocator:
    allocator = RangeAllocator()
    allocator.add_range(SECOND, SECOND_SIZE)
    allocator.add_range(START, SIZE)
    return allocator


def test_first_fit_takes_the_lowest_gap() -> None:
    allocator = two_ranges()
    blocks = [allocator.alloc(0x80) for _ in range(4)]
    assert blocks == [0x100, 0x180, 0x200, 0x280]
    allocator.free(blocks[0])
    allocator.free(blocks[2])
    assert allocator.alloc(0x10) == 0x100
    assert allocator.alloc(0x80) == 0x200
    assert allocator.alloc(0x70) == 0x110


def test_neighbouring_ranges_stay_apart() -> None:
    allocator = two_ranges()
    with pytest.raises(OutOfMemory, match="640 bytes are free"):
        allocator.alloc(SIZE + 1)
    assert allocator.alloc(SIZE) == START
    assert allocator.alloc(SECOND_SIZE) == SECOND
    with pytest.raises(OutOfMemory):
        allocator.alloc(1, 1)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (0, 2, 1), (1, 0, 2)])
def test_gaps_are_joined_in_any_order(order: tuple[int, ...]) -> None:
    allocator = RangeAllocator()
    allocator.add_range(0, 48)
    blocks = [allocator.alloc(16) for _ in range(3)]
    for index in order:
        assert allocator.free(blocks[index]) == 16
    assert allocator.alloc(48) == 0


def test_wrong_arguments() -> None:
    allocator = two_ranges()
    for size, align in [(0, 1), (-1, 1), (1, 0), (1, 3), (1, -4), ("1", 1), (1, 1.0)]:
        with pytest.raises(InvalidArgument):
            allocator.alloc(size, align)  # type: ignore[arg-type]
    addr = allocator.alloc(32)
    wrong: object
    for wrong in (addr + 16, addr - 1, None, [], 0):
        with pytest.raises(InvalidArgument, match="no block"):
            allocator.free(wrong)  # type: ignore[arg-type]
    allocator.free(addr)
    with pytest.raises(InvalidArgument, match="freed before"):
        allocator.free(addr)
    for start, size in [(START, 1), (START - 1, 2), (SECOND - 1, 1), (0, 0), (-1, 1)]:
        with pytest.raises(InvalidArgument):
            allocator.add_range(start, size)
    assert allocator.available == SIZE + SECOND_SIZE


def test_remove_range() -> None:
    allocator = two_ranges()
    addr = allocator.alloc(SIZE)
    with pytest.raises(MemoryInUse):
        allocator.remove_range(START)
    with pytest.raises(InvalidArgument):
        allocator.remove_range(START + 1)
    allocator.remove_range(SECOND)
    allocator.free(addr)
    allocator.remove_range(START)
    assert (allocator.available, allocator.allocated) == (0, 0)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("alloc"), st.integers(1, 200), st.integers(0, 7)),
        st.tuples(st.just("free"), st.integers(0, 50), st.just(0)),
    ),
    max_size=60,
)


@given(STEPS)
def test_against_a_byte_map(steps: list[tuple[str, int, int]]) -> None:
    allocator = two_ranges()
    ranges = [(START, START + SIZE), (SECOND, SECOND + SECOND_SIZE)]
    taken: set[int] = set()
    live: list[tuple[int, int]] = []

    def lowest(size: int, align: int) -> int | None:
        for start, end in ranges:
            for addr in range(start, end - size + 1):
                if addr % align == 0 and taken.isdisjoint(range(addr, addr + size)):
                    return addr
        return None

    for action, number, power in steps:
        if action == "alloc":
            expected = lowest(number, 1 << power)
            if expected is None:
                with pytest.raises(OutOfMemory):
                    allocator.alloc(number, 1 << power)
                continue
            assert allocator.alloc(number, 1 << power) == expected
            live.append((expected, number))
            taken.update(range(expected, expected + number))
        elif live:
            addr, size = live.pop(number % len(live))
            assert allocator.free(addr) == size
            taken.difference_update(range(addr, addr + size))
        assert allocator.allocated == len(taken)
        assert allocator.available == SIZE + SECOND_SIZE - len(taken)
    for addr, _ in live:
        allocator.free(addr)
    assert [allocator.alloc(SIZE), allocator.alloc(SECOND_SIZE)] == [START, SECOND]


def test_threads_never_get_the_same_block() -> None:
    allocator = RangeAllocator()
    allocator.add_range(0, 1 << 16)
    taken: dict[int, int] = {}
    errors: list[BaseException] = []

    def use(number: int) -> None:
        try:
            for turn in range(3000):
                addr = allocator.alloc(64 + 16 * (turn % 7))
                assert taken.setdefault(addr, number) == number
                del taken[addr]
                allocator.free(addr)
        except BaseException as error:
            errors.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=use, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not errors
    assert allocator.available == 1 << 16
