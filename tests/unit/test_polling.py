"""Polling of the other side's words, and how long to poll."""

import signal

import pytest

from tests.unit._ends import LAYOUTS, add, later, make_ends, use
from virtring import (
    InvalidArgument,
    QueueBroken,
    QueueClosed,
    Spin,
    spin_any_available,
    spin_available,
    spin_used,
)


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


def test_polling_several_queues() -> None:
    """Of both layouts, until any one of them has something."""
    ends = [make_ends(packed) for packed in (False, True, False)]
    queues = [dq for _, dq, _, _ in ends]
    assert spin_any_available(queues, 200) is False
    for vq, dq, _, _ in ends:
        timer = later(0.02, lambda vq=vq: add(vq))
        assert spin_any_available(queues, 20e6) is True
        timer.join()
        assert [queue.more_available for queue in queues] == [queue is dq for queue in queues]
        use(dq)
    with pytest.raises(InvalidArgument, match="no queue"):
        spin_any_available([], 0)
    with pytest.raises(InvalidArgument, match="microseconds"):
        spin_any_available(queues, -1.0)
    with pytest.raises(TypeError):
        spin_any_available([ends[0][0]], 0)  # type: ignore[list-item]
    queues[1].close()
    with pytest.raises(QueueClosed):
        spin_any_available(queues, 20e6)


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
