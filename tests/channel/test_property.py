"""Any sequence of calls gives what a list would give."""

from collections import deque

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from virtring.channel import Borrow, Loan, create

SIZE = 24
MESSAGES = st.binary(max_size=SIZE)


class ChannelMachine(RuleBasedStateMachine):
    """One direction of a channel beside a deque; every way to send and to receive."""

    loans = Bundle("loans")
    borrows = Bundle("borrows")

    @initialize(slots=st.integers(1, 12))
    def start(self, slots: int) -> None:
        self.one, self.two = create(slots, SIZE)
        self.slots = slots
        self.sent: deque[bytes] = deque()
        self.out = 0  # loans and borrows that hold a slot

    def free(self) -> int:
        return self.slots - len(self.sent) - self.out

    @rule(data=MESSAGES)
    def send(self, data: bytes) -> None:
        sent = self.one.try_send(data)
        if sent:
            self.sent.append(data)
        else:
            assert self.free() <= 0

    @rule(messages=st.lists(MESSAGES, max_size=20))
    def send_batch(self, messages: list[bytes]) -> None:
        free = self.free()
        sent = self.one.try_send_batch(messages)
        assert sent >= min(len(messages), free)
        self.sent += messages[:sent]

    @rule(messages=st.lists(MESSAGES, max_size=20))
    def send_array(self, messages: list[bytes]) -> None:
        free = self.free()
        sent = self.one.send_array(b"".join(messages), [len(m) for m in messages], 0)
        assert sent >= min(len(messages), free)
        self.sent += messages[:sent]

    @rule(target=loans, data=MESSAGES)
    def loan(self, data: bytes) -> tuple[Loan, bytes] | None:
        loan = self.one.try_loan()
        if loan is None:
            assert self.free() <= 0
            return None
        self.out += 1
        memoryview(loan)[: len(data)] = data
        return loan, data

    @rule(taken=consumes(loans))
    def commit(self, taken: tuple[Loan, bytes] | None) -> None:
        if taken is not None:
            self.one.commit(taken[0], len(taken[1]))
            self.out -= 1
            self.sent.append(taken[1])

    @rule()
    def recv(self) -> None:
        data = self.two.try_recv()
        assert data == (self.sent.popleft() if self.sent else None)

    @rule(limit=st.integers(1, 20))
    def recv_batch(self, limit: int) -> None:
        want = min(limit, len(self.sent))
        assert self.two.try_recv_batch(limit) == [self.sent.popleft() for _ in range(want)]

    @rule(room=st.integers(SIZE, 200), limit=st.integers(1, 20))
    def recv_array(self, room: int, limit: int) -> None:
        out, lengths = bytearray(room), np.zeros(limit, np.uint32)
        count = self.two.try_recv_array(out, lengths)
        want = [self.sent.popleft() for _ in range(count)]
        assert lengths[:count].tolist() == [len(data) for data in want]
        assert bytes(out[: sum(map(len, want))]) == b"".join(want)
        if count < limit and self.sent:
            assert sum(map(len, want)) + len(self.sent[0]) > room

    @rule(target=borrows)
    def borrow(self) -> tuple[Borrow, bytes] | None:
        message = self.two.try_borrow()
        if message is None:
            assert not self.sent
            return None
        self.out += 1
        return message, self.sent.popleft()

    @rule(taken=consumes(borrows))
    def release(self, taken: tuple[Borrow, bytes] | None) -> None:
        if taken is not None:
            assert bytes(taken[0]) == taken[1]
            self.two.release(taken[0])
            self.out -= 1

    @invariant()
    def nothing_comes_back(self) -> None:
        assert self.one.try_recv() is None

    def teardown(self) -> None:
        if hasattr(self, "one"):
            self.one.close()
            self.two.close()


TestChannel = ChannelMachine.TestCase
TestChannel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
