"""Eventfds, and waits for the other side of a ring."""

import asyncio
import contextlib
import gc
import multiprocessing
import os
import pickle
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.unit import _notify_children as children
from virtring import (
    DeviceQueue,
    EventFd,
    Feature,
    InvalidArgument,
    PeerDied,
    QueueBroken,
    QueueBusy,
    QueueClosed,
    Spin,
    Virtqueue,
    async_wait_available,
    async_wait_used,
    create_pair,
    spin_available,
    spin_used,
    wait_available,
    wait_used,
)
from virtring.queue.eventfd import MAGIC
from virtring.queue.state import callbacks_on, notify_on

LAYOUTS = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
EVENTS = pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])

Ends = tuple[Virtqueue, DeviceQueue, EventFd, EventFd]


def open_fds() -> int:
    gc.collect()  # what other tests left behind must not go away between two counts
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def event() -> Iterator[EventFd]:
    with EventFd() as one:
        yield one


def make_ends(packed: bool, event_idx: bool = True, num: int = 8) -> Ends:
    """A pair that starts as busy sides do: nobody wants to be told."""
    features = Feature.VERSION_1 | (Feature.EVENT_IDX if event_idx else Feature(0))
    kick, call = EventFd(), EventFd()
    vq, dq = create_pair(num, packed=packed, features=features, notify=kick, call=call)
    dq.disable_notify()
    return vq, dq, kick, call


def add(vq: Virtqueue, token: object = 7) -> None:
    vq.add_outbuf_premapped([(vq.memory.regions[0].guest_addr + 0x8000, 16)], token)


def use(dq: DeviceQueue) -> None:
    chain = dq.next_chain()
    assert chain is not None
    dq.return_(chain)


def later(seconds: float, action: Callable[[], Any]) -> threading.Timer:
    timer = threading.Timer(seconds, action)
    timer.start()
    return timer


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


# -- polling -----------------------------------------------------------------------------------


@LAYOUTS
def test_polling_sees_the_other_side(packed: bool) -> None:
    vq, dq, _, _ = make_ends(packed)
    assert spin_available(dq, 0) is False
    assert spin_used(vq, 200) is False
    add(vq)
    assert spin_available(dq, 0) is True
    timer = later(0.02, lambda: use(dq))
    assert spin_used(vq, 20e6) is True
    timer.join()
    assert vq.get_buf() is not None
    timer = later(0.02, lambda: add(vq))
    assert spin_available(dq, 20e6) is True
    timer.join()


@LAYOUTS
def test_polling_across_the_end_of_the_ring(packed: bool) -> None:
    vq, dq, _, _ = make_ends(packed, num=4)
    for _ in range(11):
        assert not spin_available(dq, 0)
        add(vq)
        assert spin_available(dq, 0)
        assert not spin_used(vq, 0)
        use(dq)
        assert spin_used(vq, 0)
        assert vq.get_buf() == (7, 0)


@LAYOUTS
def test_polling_ends_with_the_queue(packed: bool) -> None:
    vq, dq, _, _ = make_ends(packed)
    timers = [later(0.02, vq.break_), later(0.03, dq.close)]
    with pytest.raises(QueueBroken):
        spin_used(vq, 20e6)
    with pytest.raises(QueueClosed):
        spin_available(dq, 20e6)
    for timer in timers:
        timer.join()


@LAYOUTS
def test_signals_end_polling(packed: bool) -> None:
    """As Ctrl-C must."""
    vq, dq, _, _ = make_ends(packed)

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    try:
        for poll in (lambda: spin_used(vq, 20e6), lambda: spin_available(dq, 20e6)):
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            with pytest.raises(KeyboardInterrupt):
                poll()
    finally:
        signal.signal(signal.SIGALRM, old)


@pytest.mark.parametrize("us", [-1.0, float("nan"), 1e300])
def test_polling_times(us: float) -> None:
    vq, dq, _, _ = make_ends(False)
    with pytest.raises(InvalidArgument, match="microseconds"):
        spin_used(vq, us)
    with pytest.raises(InvalidArgument, match="microseconds"):
        spin_available(dq, us)


def test_spin_adapts() -> None:
    spin = Spin(40, min_us=0)
    assert spin.us == 40
    for _ in range(10):
        spin.waited(10_000, slept=True)
    assert spin.us == 0
    spin.waited(30, slept=True)
    assert spin.us == 2
    for _ in range(10):
        spin.waited(1, slept=False)
    assert spin.us == 40
    low = Spin(40, min_us=15, factor=3)
    low.waited(10_000, slept=True)
    assert low.us == 15
    assert Spin(0).us == 0
    default = Spin(40)
    for _ in range(10):
        default.waited(10_000, slept=True)
    assert default.us == 2


@pytest.mark.parametrize(
    "wrong", [{"max_us": -1}, {"max_us": 5, "min_us": 6}, {"max_us": 1e7}, {"factor": 1}]
)
def test_wrong_spins(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidArgument):
        Spin(**wrong)


# -- waits -------------------------------------------------------------------------------------


@LAYOUTS
@EVENTS
def test_what_is_there_is_told_without_sleep(packed: bool, event_idx: bool) -> None:
    vq, dq, kick, call = make_ends(packed, event_idx)
    add(vq)
    assert wait_available(dq, kick) is True
    use(dq)
    assert wait_used(vq, call) is True
    # Nobody asked to be told, so nobody was.
    vq.kick()
    dq.signal()
    assert (kick.clear(), call.clear()) == (0, 0)


@LAYOUTS
@EVENTS
def test_timeouts(packed: bool, event_idx: bool) -> None:
    vq, dq, kick, call = make_ends(packed, event_idx)
    assert wait_used(vq, call, 0) is False
    assert wait_available(dq, kick, 0) is False
    for spin in (None, Spin(100)):
        start = time.monotonic()
        assert wait_used(vq, call, 0.03, spin) is False
        assert wait_available(dq, kick, 0.03, spin) is False
        assert 0.06 <= time.monotonic() - start < 5


@LAYOUTS
def test_the_timeout_counts_from_the_start_whatever_wakes_us(packed: bool) -> None:
    vq, _, _, call = make_ends(packed)
    stop = threading.Event()

    def pester() -> None:
        while not stop.wait(0.005):
            call.signal()

    thread = threading.Thread(target=pester)
    thread.start()
    start = time.monotonic()
    assert wait_used(vq, call, 0.1) is False
    assert 0.1 <= time.monotonic() - start < 5
    stop.set()
    thread.join()


@LAYOUTS
@EVENTS
def test_a_sleeper_is_woken(packed: bool, event_idx: bool) -> None:
    vq, dq, kick, call = make_ends(packed, event_idx)

    def send() -> None:
        add(vq)
        assert vq.kick()

    def answer() -> None:
        use(dq)
        assert dq.signal()

    timer = later(0.03, send)
    assert wait_available(dq, kick, 20) is True
    timer.join()
    timer = later(0.03, answer)
    assert wait_used(vq, call, 20) is True
    timer.join()
    # And the wish is taken back: what comes next is not told.
    vq.get_buf()
    add(vq)
    vq.kick()
    use(dq)
    assert dq.signal() is False
    assert (kick.clear(), call.clear()) == (0, 0)


@LAYOUTS
@EVENTS
def test_callbacks_stay_on_if_they_were_on(packed: bool, event_idx: bool) -> None:
    vq, dq, kick, call = make_ends(packed, event_idx)
    assert (callbacks_on(vq), notify_on(dq)) == (False, False)
    for _ in range(2):
        was = callbacks_on(vq), notify_on(dq)
        wait_used(vq, call, 0.001)
        wait_available(dq, kick, 0.001)
        assert (callbacks_on(vq), notify_on(dq)) == was
        vq.enable_cb()
        dq.enable_notify()
    add(vq)
    vq.kick()
    assert kick.clear() == 1


@LAYOUTS
def test_broken_and_closed_queues_pass_through(packed: bool) -> None:
    vq, dq, kick, call = make_ends(packed)

    def end() -> None:
        vq.break_()
        call.signal()
        dq.close()
        kick.signal()

    timer = later(0.03, end)
    with pytest.raises(QueueBroken):
        wait_used(vq, call, 20)
    with pytest.raises(QueueClosed):
        wait_available(dq, kick, 20)
    timer.join()
    with pytest.raises(QueueBroken):
        wait_used(vq, call, 0)
    with pytest.raises(QueueClosed):
        wait_available(dq, kick, 0)


@LAYOUTS
def test_an_eventfd_that_is_closed_ends_the_wait(packed: bool) -> None:
    vq, _, _, call = make_ends(packed)
    timer = later(0.03, call.close)
    with pytest.raises(QueueClosed, match="eventfd"):
        wait_used(vq, call, 20)
    timer.join()
    assert not callbacks_on(vq)


def test_wrong_arguments() -> None:
    vq, dq, kick, call = make_ends(False)
    wrong: list[tuple[Any, ...]] = [
        (wait_used, dq, call), (wait_used, vq, 3), (wait_used, vq, call, None, 5),
        (wait_available, vq, kick), (wait_available, dq, None), (wait_available, dq, kick, 0, "x"),
    ]  # fmt: skip
    for function, *arguments in wrong:
        with pytest.raises(InvalidArgument):
            function(*arguments)
    with pytest.raises(InvalidArgument, match="configure"):
        wait_available(DeviceQueue(vq.memory), kick, 0)


@LAYOUTS
def test_a_group_of_in_order_buffers_is_there(packed: bool) -> None:
    """One used entry stands for several buffers; between them nothing new is in the ring."""
    call = EventFd()
    vq, dq = create_pair(8, packed=packed, features=Feature.VERSION_1 | Feature.IN_ORDER)
    for token in range(3):
        add(vq, 100 + token)
    chains = [dq.next_chain() for _ in range(3)]
    for chain in reversed(chains):
        assert chain is not None
        dq.return_(chain)
    taken = 0
    while wait_used(vq, call, 0, Spin(10)):
        assert vq.get_buf() == (100 + taken, 0)
        taken += 1
    assert taken == 3


@LAYOUTS
@EVENTS
def test_async_waits(packed: bool, event_idx: bool) -> None:
    vq, dq, kick, call = make_ends(packed, event_idx)
    count = 300

    async def device() -> None:
        done = 0
        while done < count:
            assert await async_wait_available(dq, kick, 20)
            while dq.more_available:
                use(dq)
                done += 1
            dq.signal()

    async def driver() -> None:
        sent = got = 0
        while got < count:
            while vq.num_free and sent < count:
                add(vq, sent)
                sent += 1
            vq.kick()
            assert await async_wait_used(vq, call, 20, Spin(5))
            while vq.get_buf() is not None:
                got += 1

    async def main() -> None:
        await asyncio.wait_for(asyncio.gather(device(), driver()), 30)
        assert await async_wait_used(vq, call, 0.01) is False
        assert await async_wait_available(dq, kick, 0.01) is False
        task = asyncio.create_task(async_wait_used(vq, call))
        await asyncio.sleep(0.01)
        assert callbacks_on(vq)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert not callbacks_on(vq)

    asyncio.run(main())


# -- no wake-up is lost ------------------------------------------------------------------------


@LAYOUTS
@EVENTS
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_two_processes(packed: bool, event_idx: bool, method: str) -> None:
    vq, dq, kick, call = make_ends(packed, event_idx)
    dq.close()
    context: Any = multiprocessing.get_context(method)
    count = 500 if method == "spawn" else 3000
    child = context.Process(
        target=children.serve, args=(vq.memory, vq.config, kick, call, count), daemon=True
    )
    child.start()
    slots = [vq.memory.view(vq.memory.alloc(64), 64) for _ in range(4)]
    sent = got = 0
    free = list(range(4))
    while got < count:
        while free and sent < count:
            slot = free.pop()
            slots[slot][0] = sent & 0xFF
            vq.add_sgs([slots[slot][:1]], [slots[slot][1:2]], (slot, sent))
            sent += 1
        vq.kick()
        # Far less than the child's own patience, so a lost wake-up shows on this side.
        assert wait_used(vq, call, 10), f"{got} of {count} came back"
        while (answer := vq.get_buf()) is not None:
            (slot, number), written = answer
            assert (written, slots[slot][1]) == (1, number + 1 & 0xFF)
            free.append(slot)
            got += 1
    child.join(20)
    assert child.exitcode == 0


@pytest.mark.stress
@LAYOUTS
@EVENTS
@pytest.mark.parametrize("spins", [False, True], ids=["sleep", "spin"])
def test_no_wake_up_is_lost_between_threads(packed: bool, event_idx: bool, spins: bool) -> None:
    vq, dq, kick, call = make_ends(packed, event_idx, num=2)
    end = time.monotonic() + 0.5
    sent = got = used = 0
    failed: list[str] = []
    finished = threading.Event()

    def device() -> None:
        nonlocal used
        spin = Spin(20) if spins else None
        while not finished.is_set():
            if not wait_available(dq, kick, 5, spin):
                if not finished.is_set():
                    failed.append(f"device slept after {used}")
                return
            while dq.more_available:
                use(dq)
                used += 1
            dq.signal()

    thread = threading.Thread(target=device)
    thread.start()
    spin = Spin(20) if spins else None
    while time.monotonic() < end and not failed:
        # One at a time: each needs a wake-up of its own on both sides.
        add(vq, sent)
        sent += 1
        vq.kick()
        if not wait_used(vq, call, 5, spin):
            failed.append(f"driver slept after {got}")
            break
        while vq.get_buf() is not None:
            got += 1
    finished.set()
    add(vq, sent)
    vq.kick()
    kick.signal()
    thread.join(10)
    assert failed == []
    assert got == sent
    assert got > 100
