"""Eventfds: alone, in asyncio, in another process."""

import asyncio
import contextlib
import gc
import multiprocessing
import os
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.unit import _notify_children as children
from tests.unit._ends import later, make_ends
from virtring import (
    EventFd,
    InvalidArgument,
    PeerDied,
    QueueBusy,
    QueueClosed,
    wait_available,
    wait_used,
)
from virtring.queue.eventfd import MAGIC


def open_fds() -> int:
    gc.collect()  # what other tests left behind must not go away between two counts
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def event() -> Iterator[EventFd]:
    with EventFd() as one:
        yield one


# -- eventfds ----------------------------------------------------------------------------------


def test_signals_add_up_until_cleared(event: EventFd) -> None:
    assert event.clear() == 0
    event.signal()
    assert event("a queue") is True
    assert event.clear() == 2
    assert event.clear() == 0


def test_a_full_counter_neither_blocks_nor_raises(event: EventFd) -> None:
    os.eventfd_write(event.fileno(), 2**64 - 2)
    event.signal()
    assert event.clear() == 2**64 - 2


def test_wait_takes_the_signal(event: EventFd) -> None:
    assert event.wait(0) is False
    event.signal()
    assert event.wait() is True
    start = time.monotonic()
    assert event.wait(0.05) is False
    assert 0.05 <= time.monotonic() - start < 5


def test_wait_lets_other_threads_run(event: EventFd) -> None:
    timer = later(0.02, event.signal)
    assert event.wait(20) is True
    timer.join()


def test_a_signal_that_another_waiter_took_is_no_wake_up(event: EventFd) -> None:
    results: list[bool] = []
    threads = [threading.Thread(target=lambda: results.append(event.wait(0.5))) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    event.signal()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False, True]


@pytest.mark.parametrize("timeout", [-1, -0.001, float("nan"), "1", True])
def test_wrong_timeouts(event: EventFd, timeout: Any) -> None:
    with pytest.raises(InvalidArgument, match="timeout"):
        event.wait(timeout)
    with pytest.raises(InvalidArgument, match="timeout"):
        asyncio.run(event.wait_async(timeout))
    vq, dq, kick, call = make_ends(False)
    with pytest.raises(InvalidArgument, match="timeout"):
        wait_used(vq, call, timeout)
    with pytest.raises(InvalidArgument, match="timeout"):
        wait_available(dq, kick, timeout)


def test_an_endless_timeout_is_none(event: EventFd) -> None:
    timer = later(0.02, event.signal)
    assert event.wait(float("inf")) is True
    timer.join()


def test_calls_after_close(event: EventFd) -> None:
    assert not event.closed
    event.close()
    event.close()
    assert event.closed
    calls: list[Callable[[], Any]] = [
        event.signal, event.clear, event.wait, event.fileno, event.__enter__,
        lambda: asyncio.run(event.wait_async()), lambda: pickle.dumps(event),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(QueueClosed):
            call()
    assert "closed" in repr(event)


def test_close_wakes_a_waiting_thread_and_then_closes() -> None:
    before = open_fds()
    event = EventFd()
    timer = later(0.05, event.close)
    with pytest.raises(QueueClosed):
        event.wait(20)
    timer.join()
    assert open_fds() == before


def test_descriptors_are_private_and_given_back() -> None:
    before = open_fds()
    event = EventFd()
    assert not os.get_inheritable(event.fileno())
    assert not os.get_blocking(event.fileno())
    twin = EventFd.from_fd(event.fileno())
    assert twin.fileno() != event.fileno()
    assert not os.get_inheritable(twin.fileno())
    twin.signal()
    assert event.clear() == 1
    del twin
    event.close()
    assert open_fds() == before


def test_from_fd_takes_eventfds_only() -> None:
    reader, writer = os.pipe()
    before = open_fds()
    for wrong in (reader, writer, -1, 10**6, 1 << 80, "3", None):
        with pytest.raises(InvalidArgument):
            EventFd.from_fd(wrong)  # type: ignore[arg-type]
    assert open_fds() == before
    os.close(reader)
    os.close(writer)


def test_from_fd_makes_a_blocking_one_non_blocking() -> None:
    fd = os.eventfd(0, os.EFD_CLOEXEC)
    with EventFd.from_fd(fd) as event:
        assert event.clear() == 0
    os.close(fd)


# -- asyncio -----------------------------------------------------------------------------------


def test_async_wait(event: EventFd) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert await event.wait_async(0) is False
        assert await event.wait_async(0.03) is False
        event.signal()
        assert await event.wait_async(20) is True
        loop.call_later(0.02, event.signal)
        assert await event.wait_async() is True
        assert await event.wait_async(0) is False

    asyncio.run(main())


def test_async_wait_is_for_one_task(event: EventFd) -> None:
    async def main() -> None:
        first = asyncio.create_task(event.wait_async(20))
        await asyncio.sleep(0)
        with pytest.raises(QueueBusy):
            await event.wait_async(20)
        event.signal()
        assert await first is True

    asyncio.run(main())


def test_a_cancelled_async_wait_takes_no_signal(event: EventFd) -> None:
    async def main() -> None:
        task = asyncio.create_task(event.wait_async())
        await asyncio.sleep(0.01)
        event.signal()
        # Let the loop see the descriptor, but cancel before the task runs again.
        await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            assert await task is True
            event.signal()
        assert event.clear() == 1
        assert not asyncio.get_running_loop().remove_reader(event.fileno())

    asyncio.run(main())


def test_close_wakes_a_waiting_task() -> None:
    async def main() -> None:
        before = open_fds()
        event = EventFd()
        task = asyncio.create_task(event.wait_async(20))
        await asyncio.sleep(0.01)
        event.close()
        with pytest.raises(QueueClosed):
            await task
        assert open_fds() == before

    asyncio.run(main())


# -- to another process ------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_eventfds_as_arguments_of_a_process(method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    with EventFd() as there, EventFd() as back:
        child = context.Process(target=children.echo, args=(there, back, 3))
        child.start()
        for _ in range(3):
            there.signal()
            assert back.wait(20)
        child.join(20)
        assert child.exitcode == 0


def test_an_eventfd_over_a_connection(event: EventFd) -> None:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=children.receive_and_signal, args=(theirs,))
    child.start()
    ours.send(event)
    assert event.wait(20)
    assert ours.recv() == (child.pid, False, False)
    child.join(20)
    ours.close()
    theirs.close()


def test_send_and_receive(event: EventFd) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        before = open_fds()
        event.send(ours)
        event.send(ours)
        with EventFd.receive(theirs) as first, EventFd.receive(theirs) as second:
            first.signal()
            second.signal()
            assert event.clear() == 2
            assert not os.get_inheritable(first.fileno())
        assert open_fds() == before
        ours.close()
        with pytest.raises(PeerDied):
            EventFd.receive(theirs)


@pytest.mark.parametrize("what", ["text", "none", "two", "many", "pipe", "short"])
def test_receive_trusts_nothing(event: EventFd, what: str) -> None:
    ours, theirs = socket.socketpair()
    reader, writer = os.pipe()
    before = open_fds()
    fd = event.fileno()
    text, fds = {
        "text": (b"VRregion", [fd]),
        "none": (MAGIC, []),
        "two": (MAGIC, [fd, fd]),
        "many": (MAGIC, [fd] * 20),
        "pipe": (MAGIC, [reader]),
        "short": (MAGIC[:5], [fd]),
    }[what]
    with ours, theirs:
        socket.send_fds(ours, [text], fds)
        if what == "short":
            ours.shutdown(socket.SHUT_WR)
        with pytest.raises(PeerDied if what == "short" else InvalidArgument):
            EventFd.receive(theirs)
        assert open_fds() == before
    os.close(reader)
    os.close(writer)
