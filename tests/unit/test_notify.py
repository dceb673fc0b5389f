"""Waits for the other side of a ring."""

import asyncio
import contextlib
import multiprocessing
import threading
import time
from typing import Any

import pytest

from tests.unit import _notify_children as children
from tests.unit._ends import LAYOUTS, add, later, make_ends, use
from virtring import (
    DeviceQueue,
    EventFd,
    Feature,
    InvalidArgument,
    QueueBroken,
    QueueClosed,
    Spin,
    async_wait_available,
    async_wait_used,
    create_pair,
    wait_available,
    wait_used,
)
from virtring.queue.state import callbacks_on, notify_on

EVENTS = pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])


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
