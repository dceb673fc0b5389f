"""Waiting: for room, for messages, in threads and tasks; who may and who may not."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from virtring import PeerClosed, QueueBusy, QueueClosed, WaitTimeout
from virtring.channel import Channel, create

Ends = tuple[Channel, Channel]
LONG = 20.0


@pytest.fixture(params=[0, 50], ids=["sleep", "spin"])
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    one, two = create(4, 16, spin_us=request.param)
    one.attach()
    two.attach()
    with one, two:
        yield one, two


def fill(end: Channel) -> int:
    sent = 0
    while end.try_send(b"%d" % sent):
        sent += 1
    return sent


def in_thread(call: Callable[[], Any]) -> Callable[[], Any]:
    """Start it; the value joins, and gives what it gave or raises what it raised."""
    result: list[Any] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(call())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def finish() -> Any:
        thread.join(LONG)
        assert not thread.is_alive()
        if failure:
            raise failure[0]
        return result[0]

    return finish


def test_a_full_channel_refuses_and_then_goes_on(ends: Ends) -> None:
    one, two = ends
    sent = fill(one)
    assert not one.try_send(b"no")
    assert one.try_send_batch([b"no"]) == 0
    assert one.try_loan() is None
    assert one.send_array(b"no", [2], 0) == 0
    with pytest.raises(WaitTimeout, match="room"):
        one.send(b"no", 0)
    with pytest.raises(WaitTimeout, match="room"):
        one.loan(0.02)
    assert one.send_batch([b"no"] * 3, 0.02) == 0
    assert [two.recv(0) for _ in range(sent)] == [b"%d" % i for i in range(sent)]
    assert one.try_send(b"yes")
    assert two.recv(0) == b"yes"


def test_an_empty_channel_times_out(ends: Ends) -> None:
    _, two = ends
    for call in (two.recv, two.borrow):
        with pytest.raises(WaitTimeout, match="message"):
            call(timeout=0)
        with pytest.raises(TimeoutError):
            call(timeout=0.02)
    with pytest.raises(WaitTimeout):
        two.recv_batch(timeout=0.02)
    with pytest.raises(ValueError, match="timeout"):
        two.recv(-1)


def test_a_sender_waits_for_room(ends: Ends) -> None:
    one, two = ends
    sent = fill(one)
    finish = in_thread(lambda: one.send_batch([b"more"] * 50, LONG))
    time.sleep(0.05)
    got = [two.recv(LONG) for _ in range(sent + 50)]
    assert finish() == 50
    assert got[sent:] == [b"more"] * 50


def test_a_receiver_waits_for_messages(ends: Ends) -> None:
    one, two = ends
    finish = in_thread(lambda: [two.recv(LONG) for _ in range(20)])
    for i in range(20):
        time.sleep(0.002 * (i % 3))
        one.send(b"%d" % i)
    assert finish() == [b"%d" % i for i in range(20)]


def test_one_thread_sends_while_another_receives(ends: Ends) -> None:
    one, two = ends
    count = 3000

    def echo() -> None:
        for _ in range(count):
            two.send(two.recv(LONG), LONG)

    def feed() -> None:
        for i in range(count):
            one.send(b"%d" % i, LONG)

    finish_echo, finish_feed = in_thread(echo), in_thread(feed)
    assert [one.recv(LONG) for _ in range(count)] == [b"%d" % i for i in range(count)]
    finish_feed()
    finish_echo()


@pytest.mark.parametrize("side", ["receive", "send"])
def test_a_second_waiter_is_refused(ends: Ends, side: str) -> None:
    one, two = ends
    if side == "send":
        fill(one)
        finish = in_thread(lambda: one.send(b"first", LONG))
        others: list[Callable[[], Any]] = [lambda: one.try_send(b"x"), one.try_loan, one.loan]
    else:
        finish = in_thread(lambda: two.recv(LONG))
        others = [two.try_recv, two.recv, two.borrow, two.try_recv_batch]
    deadline = time.monotonic() + LONG
    refused = 0
    while refused < 5 and time.monotonic() < deadline:
        try:
            others[0]()
        except QueueBusy:
            refused += 1
        time.sleep(0.005)
    assert refused == 5
    for call in others:
        with pytest.raises(QueueBusy, match="waits"):
            call()
    # The other direction is free.
    two.send(b"back")
    assert one.recv(1) == b"back"
    if side == "send":
        assert two.recv(LONG) == b"0"
        while two.recv(LONG) != b"first":
            pass
    else:
        one.send(b"0")
    finish()


@pytest.mark.parametrize("closer", ["peer", "own"])
@pytest.mark.parametrize("side", ["receive", "send"])
def test_close_ends_a_wait(ends: Ends, side: str, closer: str) -> None:
    one, two = ends
    if side == "send":
        fill(one)
        finish = in_thread(lambda: one.send(b"x", LONG))
        own, peer = one, two
    else:
        finish = in_thread(lambda: two.recv(LONG))
        own, peer = two, one
    time.sleep(0.1)
    (own if closer == "own" else peer).close()
    with pytest.raises(QueueClosed if closer == "own" else PeerClosed):
        finish()


def test_tasks_wait(ends: Ends) -> None:
    one, two = ends

    async def main() -> list[bytes]:
        async def feed() -> None:
            for i in range(100):
                await one.asend(b"%d" % i, LONG)
            assert await one.asend_batch([b"batch"] * 30, LONG) == 30
            loan = await one.aloan(LONG)
            one.commit(loan, 0)

        async def take() -> list[bytes]:
            got = [await two.arecv(LONG) for _ in range(100)]
            while len(got) < 130:
                got += await two.arecv_batch(130 - len(got), LONG)
            with await two.aborrow(LONG) as message:
                got.append(bytes(message))
            return got

        task = asyncio.create_task(take())
        await asyncio.sleep(0.02)
        await feed()
        return await task

    want = [b"%d" % i for i in range(100)] + [b"batch"] * 30 + [b""]
    assert asyncio.run(main()) == want


def test_a_waiting_task_lets_others_run_and_can_be_cancelled(ends: Ends) -> None:
    one, two = ends

    async def main() -> None:
        task = asyncio.create_task(two.arecv(LONG))
        await asyncio.sleep(0.02)
        with pytest.raises(QueueBusy):
            two.try_recv()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        one.send(b"kept")
        assert await two.arecv(LONG) == b"kept"
        with pytest.raises(WaitTimeout):
            await two.arecv(0.02)
        fill(one)
        with pytest.raises(WaitTimeout):
            await one.asend(b"x", 0.02)
        waiting = asyncio.create_task(one.asend(b"x", LONG))
        await asyncio.sleep(0.02)
        two.close()
        with pytest.raises(PeerClosed):
            await waiting

    asyncio.run(main())


def test_a_receive_and_a_send_of_one_end_wait_together(ends: Ends) -> None:
    one, two = ends

    async def main() -> None:
        fill(one)
        sending = asyncio.create_task(one.asend(b"more", LONG))
        receiving = asyncio.create_task(one.arecv(LONG))
        await asyncio.sleep(0.05)
        two.send(b"answer")
        assert await receiving == b"answer"
        assert not sending.done()
        while await two.arecv(LONG) != b"more":
            pass
        await sending

    asyncio.run(main())
