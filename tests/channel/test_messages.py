"""What can be sent, how it arrives, and what is refused; both ends in one process."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from virtring import InvalidArgument, OutOfMemory, PeerClosed, QueueClosed
from virtring.channel import Borrow, Channel, Loan, create

Ends = tuple[Channel, Channel]


@pytest.fixture
def ends() -> Iterator[Ends]:
    one, two = create(8, 100)
    with one, two:
        yield one, two


def test_a_message_arrives_whole_and_once(ends: Ends) -> None:
    one, two = ends
    one.send(b"hello")
    assert two.try_recv() == b"hello"
    assert two.try_recv() is None


def test_both_ways_are_apart(ends: Ends) -> None:
    one, two = ends
    one.send(b"to two")
    two.send(b"to one")
    assert one.recv(1) == b"to one"
    assert two.recv(1) == b"to two"


def test_an_empty_message_is_a_message(ends: Ends) -> None:
    one, two = ends
    one.send(b"")
    one.send_batch([b"", b"x", bytearray()])
    one.commit(one.loan(), 0)
    assert [two.recv(1) for _ in range(5)] == [b"", b"", b"x", b"", b""]
    assert two.try_recv() is None


def test_the_longest_message(ends: Ends) -> None:
    one, two = ends
    longest = bytes(range(100))
    assert one.max_size == 100
    one.send(longest)
    assert two.recv(1) == longest


@pytest.mark.parametrize(
    "data",
    [
        bytearray(b"bytes"),
        memoryview(b"bytes"),
        np.frombuffer(b"bytes", np.uint8),
        memoryview(b"*b*y*t*e*s")[1::2].tobytes(),
    ],
    ids=lambda data: type(data).__name__,
)
def test_any_contiguous_buffer_is_a_message(ends: Ends, data: Any) -> None:
    one, two = ends
    assert one.try_send(data)
    one.send_batch([data, data])
    assert two.recv_batch() == [b"bytes"] * 3


def test_elements_of_any_type_are_bytes(ends: Ends) -> None:
    one, two = ends
    values = np.arange(6, dtype=np.float64).reshape(2, 3)
    one.send(values)
    assert np.frombuffer(two.recv(1), np.float64).tolist() == list(range(6))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("text", "not this str"),
        (5, "not this int"),
        (None, "not this NoneType"),
        (np.zeros((4, 4))[:, ::2], "contiguous"),
        (memoryview(b"abcd")[::2], "contiguous"),
        (bytes(101), "101 bytes; this channel takes at most 100"),
        (bytearray(101), "101 bytes; this channel takes at most 100"),
    ],
)
def test_what_is_no_message_is_refused_and_nothing_is_sent(
    ends: Ends, data: Any, words: str
) -> None:
    one, two = ends
    with pytest.raises(InvalidArgument, match=words):
        one.send(data)
    with pytest.raises(InvalidArgument, match=words):
        one.try_send(data)
    # In a batch too, wherever it stands.
    with pytest.raises(InvalidArgument, match=words):
        one.send_batch([b"good", b"good", data])
    assert two.try_recv() is None
    # All slots are still there.
    assert one.try_send_batch([b"x"] * 8) == 8


@pytest.mark.parametrize("messages", [b"one", "one", np.zeros((2, 3), np.uint8), 7])
def test_one_message_is_no_batch(ends: Ends, messages: Any) -> None:
    with pytest.raises(InvalidArgument, match="list"):
        ends[0].send_batch(messages)


def test_batches_keep_order_and_lengths(ends: Ends) -> None:
    one, two = ends
    messages = [b"x" * n for n in (3, 0, 100, 1)]
    assert one.send_batch(iter(messages)) == 4
    assert two.recv_batch(limit=3) == messages[:3]
    assert two.try_recv_batch() == messages[3:]
    assert two.try_recv_batch() == []
    assert one.send_batch([]) == 0


@pytest.mark.parametrize("limit", [0, -1, "2", 1.5])
def test_a_wrong_limit(ends: Ends, limit: Any) -> None:
    with pytest.raises(InvalidArgument, match="limit"):
        ends[1].recv_batch(limit)


def test_arrays_of_messages(ends: Ends) -> None:
    one, two = ends
    rows = np.arange(60, dtype=np.uint8).reshape(3, 20)
    assert one.send_array(rows) == 3
    assert one.send_array(b"aabcccc", [2, 1, 0, 4]) == 4
    out, lengths = np.zeros(100, np.uint8), np.zeros(10, np.uint32)
    assert two.recv_array(out, lengths, 1) == 7
    assert lengths.tolist() == [20, 20, 20, 2, 1, 0, 4, 0, 0, 0]
    assert out[:60].tolist() == list(range(60))
    assert bytes(out[60:67]) == b"aabcccc"
    assert two.try_recv_array(out, lengths) == 0


def test_arrays_stop_where_either_is_full(ends: Ends) -> None:
    one, two = ends
    one.send_batch([b"aaaa", b"bbbb", b"cc", b"d"])
    out, lengths = bytearray(9), np.zeros(10, np.uint32)
    assert two.recv_array(out, lengths) == 2
    assert bytes(out) == b"aaaabbbb\0"
    assert two.recv_array(out, lengths[:1]) == 1
    with pytest.raises(InvalidArgument, match="1 bytes; out has room for 0"):
        two.recv_array(bytearray(0), lengths)
    assert two.recv(1) == b"d"  # refused, not lost


@pytest.mark.parametrize(
    ("data", "lengths", "words"),
    [
        (b"abc", None, "one dimension"),
        (b"abc", [1, 1], "add up to 2 bytes.*data has 3"),
        (b"abc", [4, -1], "0 to 100"),
        (b"a" * 101, [101], "0 to 100"),
        (b"abc", [1.5, 1.5], "integers"),
        (b"abc", [[3]], "2 dimensions"),
        (np.zeros((2, 101), np.uint8), None, "at most 100"),
        (np.zeros((4, 6), np.uint8)[:, ::2], None, "contiguous"),
        (3, [3], "contiguous"),
    ],
)
def test_wrong_arrays_to_send(ends: Ends, data: Any, lengths: Any, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        ends[0].send_array(data, lengths)
    assert ends[1].try_recv() is None


@pytest.mark.parametrize(
    ("out", "lengths"),
    [
        (b"readonly", np.zeros(4, np.uint32)),
        (np.zeros(8, np.int16), np.zeros(4, np.uint32)),
        (np.zeros((2, 8), np.uint8), np.zeros(4, np.uint32)),
        (bytearray(8), np.zeros(4, np.int64)),
        (bytearray(8), [0] * 4),
        (bytearray(8), np.zeros(0, np.uint32)),
    ],
)
def test_wrong_arrays_to_fill(ends: Ends, out: Any, lengths: Any) -> None:
    one, two = ends
    one.send(b"stay")
    with pytest.raises(InvalidArgument):
        two.recv_array(out, lengths)
    assert two.recv(1) == b"stay"


def test_loan_and_borrow_share_the_memory(ends: Ends) -> None:
    one, two = ends
    loan = one.loan()
    assert (len(loan), loan.size) == (100, 100)
    filled = np.frombuffer(memoryview(loan), np.uint16)
    filled[:] = range(50)
    one.commit(loan, 40)
    with two.borrow(1) as message:
        seen = np.frombuffer(memoryview(message), np.uint16)
        assert (len(message), seen.tolist()) == (40, list(range(20)))
        assert not seen.flags.writeable
        filled[0] = 7  # it is the same memory, which nobody should count on
        assert seen[0] == 7
        assert bytes(message) == seen.tobytes()


def test_loans_go_in_the_order_of_commit_and_come_back_when_dropped(ends: Ends) -> None:
    one, two = ends
    loans = [one.loan() for _ in range(3)]
    for mark, loan in enumerate(loans):
        memoryview(loan)[0] = mark
    for place in (2, 0):
        one.commit(loans[place], 1)
    del loans, loan
    assert two.recv_batch() == [b"\x02", b"\x00"]
    for _ in range(40):
        assert one.try_loan() is not None  # each dropped again
    out = [one.try_loan() for _ in range(9)]
    assert None not in out


def test_slots_that_are_borrowed_are_not_free(ends: Ends) -> None:
    one, two = ends
    sent = 0
    while one.try_send(b"x"):
        sent += 1
    assert sent >= one.slots == 8
    held = [two.borrow(1) for _ in range(sent)]
    assert not one.try_send(b"y")
    assert two.try_borrow() is None
    # In any order, by release, by with, or by dropping them.
    two.release(held.pop(3))
    with held.pop(0):
        pass
    del held[:]
    assert one.try_send_batch([b"z"] * 8) == 8


def test_a_view_outlives_release_and_close(ends: Ends) -> None:
    one, two = ends
    one.send(b"still here")
    view = memoryview(two.borrow(1))
    left = memoryview(one.loan())
    one.close()
    two.close()
    assert bytes(view) == b"still here"
    left[:5] = b"fine."


def test_loans_and_borrows_belong_to_their_end_once(ends: Ends) -> None:
    one, two = ends
    loan = one.loan()
    with pytest.raises(InvalidArgument, match="not a loan of this end"):
        two.commit(loan)
    with pytest.raises(InvalidArgument, match="0 to 100"):
        one.commit(loan, 101)
    with pytest.raises(InvalidArgument, match="0 to 100"):
        one.commit(loan, -1)
    one.commit(loan, 3)
    with pytest.raises(InvalidArgument, match="not a loan of this end"):
        one.commit(loan, 3)
    message = two.borrow(1)
    with pytest.raises(InvalidArgument, match="not a message that this end"):
        one.release(message)
    two.release(message)
    with pytest.raises(InvalidArgument, match="not a message that this end"):
        two.release(message)
    for kind in (Loan, Borrow):
        with pytest.raises(InvalidArgument, match="made by Channel"):
            kind()


def test_close_lets_the_other_end_finish(ends: Ends) -> None:
    one, two = ends
    one.send_batch([b"last", b"words"])
    one.close()
    one.close()
    assert one.closed
    assert two.recv(1) == b"last"
    assert two.try_recv() == b"words"
    assert not two.peer_alive
    for call in (two.try_recv, two.recv, two.borrow, two.recv_batch, two.try_recv_batch):
        with pytest.raises(PeerClosed):
            call()
    with pytest.raises(EOFError):  # what Python's own channels raise
        two.recv(0)
    for send in (two.send, two.try_send):
        with pytest.raises(PeerClosed):
            send(b"anybody?")
    with pytest.raises(PeerClosed):
        two.loan()


def test_a_closed_end_says_so(ends: Ends) -> None:
    one, _ = ends
    loan = one.loan()
    one.close()
    for call in (one.recv, one.try_recv, one.borrow, one.loan, one.attach, one.hand_over):
        with pytest.raises(QueueClosed):
            call()
    with pytest.raises(QueueClosed):
        one.send(b"x")
    with pytest.raises(QueueClosed):
        one.commit(loan)


@pytest.mark.parametrize(
    ("slots", "slot_size"),
    [(0, 1), (1, 0), (-1, 1), (1 << 16, 1), (1, 1 << 32), ("8", 1), (8, 1.0)],
)
def test_sizes_that_cannot_be(slots: Any, slot_size: Any) -> None:
    with pytest.raises(InvalidArgument, match="it takes"):
        create(slots, slot_size)


def test_more_memory_than_there_can_be() -> None:
    with pytest.raises((OutOfMemory, InvalidArgument)):
        create(32704, (1 << 32) - 2)


@pytest.mark.parametrize("slots", [1, 2, 3, 7, 33])
def test_as_many_as_promised_fit_at_any_time(slots: int) -> None:
    """Slots that are on their way back come on top of the promised ones."""
    one, two = create(slots, 8)
    with one, two:
        for received in range(3 * slots):
            sent = one.try_send_batch([b"x"] * slots)
            assert sent == slots
            for _ in range(sent):
                assert two.try_recv() == b"x"
            if received % 2:
                assert one.try_send(b"y")
                assert two.try_recv() == b"y"


def test_dropped_without_close_closes() -> None:
    one, two = create(4, 8)
    one.send(b"x")
    two.attach()
    del one
    assert two.recv(1) == b"x"
    with pytest.raises(PeerClosed):
        two.recv(1)
    two.close()
