"""Work: order, one job a key, errors, threads, interruptions."""

from __future__ import annotations

import threading
from threading import Event, Thread

import pytest

from virtring.device import Work
from virtring.errors import WrongState


def test_jobs_run_in_the_order_in_which_they_were_posted() -> None:
    work, done = Work(), list[str]()

    def first() -> None:
        work.post("b", lambda: done.append("b"))
        work.post("c", lambda: done.append("c"))
        # Not at once: nothing recurs.
        done.append("a")

    work.post("a", first)
    assert done == ["a", "b", "c"]


def test_a_key_stands_for_one_waiting_job() -> None:
    work, done = Work(), list[int]()

    def first() -> None:
        for number in range(5):
            work.post("x", lambda number=number: done.append(number))  # type: ignore[misc]

    work.post("first", first)
    assert done == [4]


def test_a_job_that_runs_can_be_posted_again() -> None:
    work, done = Work(), list[int]()

    def again() -> None:
        done.append(len(done))
        if len(done) < 10_000:
            work.post("x", again)

    work.post("x", again)
    assert done == list(range(10_000))


def test_an_error_does_not_keep_the_others_from_running() -> None:
    work, done = Work(), list[str]()

    def first() -> None:
        work.post("bad", lambda: 1 // 0)
        work.post("worse", lambda: {}["key"])
        work.post("good", lambda: done.append("good"))

    with pytest.raises(ZeroDivisionError):
        work.post("first", first)
    assert done == ["good"]
    work.post("next", lambda: done.append("next"))
    assert done == ["good", "next"]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interruption_loses_nothing(interruption: type[BaseException]) -> None:
    work, done = Work(), list[str]()

    def interrupted() -> None:
        if "once" not in done:
            done.append("once")
            work.post("waits", lambda: done.append("waits"))
            raise interruption
        done.append("again")

    with pytest.raises(interruption):
        work.post("job", interrupted)
    assert (done, work.inside) == (["once"], False)
    work.post("next", lambda: done.append("next"))
    assert sorted(done) == ["again", "next", "once", "waits"]


def test_cancelled_jobs_do_not_run() -> None:
    work, done = Work(), list[str]()

    def first() -> None:
        for key in ("a", "b", "c", "d"):
            work.post(key, lambda key=key: done.append(key))  # type: ignore[misc]
        work.cancel("a", "c", "none")

    work.post("first", first)
    assert done == ["b", "d"]

    def second() -> None:
        work.post("e", lambda: done.append("e"))
        work.cancel()

    work.post("second", second)
    assert done == ["b", "d"]


class Busy:
    """A job that runs in another thread until ``go`` is set."""

    def __init__(self, work: Work) -> None:
        self.started, self.go = Event(), Event()
        self.thread = Thread(target=lambda: work.post("busy", self.run))
        self.thread.start()
        self.started.wait(10)

    def run(self) -> None:
        self.started.set()
        self.go.wait(10)

    def end(self) -> None:
        self.go.set()
        self.thread.join(10)


def test_another_thread_takes_over_what_is_posted() -> None:
    work = Work()
    where: list[int] = []
    busy = Busy(work)
    work.post("mine", lambda: where.append(threading.get_ident()))
    assert where == []
    assert not work.inside
    ident = busy.thread.ident
    busy.end()
    assert where == [ident]


def test_synchronize_waits_for_the_job_that_runs() -> None:
    work = Work()
    work.synchronize()
    busy = Busy(work)
    order: list[str] = []

    def wait() -> None:
        work.synchronize()
        order.append("synchronized")

    waiter = Thread(target=wait)
    waiter.start()
    waiter.join(0.05)
    assert waiter.is_alive()
    order.append("ends")
    busy.end()
    waiter.join(10)
    assert order == ["ends", "synchronized"]


def test_synchronize_does_not_wait_for_jobs_without_end() -> None:
    """Others that come after the one that runs are none of its business."""
    work = Work()
    stop = Event()

    def again() -> None:
        if not stop.is_set():
            work.post("again", again)

    thread = Thread(target=lambda: work.post("again", again))
    thread.start()
    for _ in range(20):
        work.synchronize()
    assert thread.is_alive()
    stop.set()
    thread.join(10)


def test_a_job_cannot_wait_for_itself() -> None:
    work = Work()
    with pytest.raises(WrongState, match="callback"):
        work.post("x", work.synchronize)


def test_later() -> None:
    work, done = Work(), list[str]()
    with work.later():
        work.post("a", lambda: done.append("a"))
        with work.later():
            work.post("b", lambda: done.append("b"))
        assert done == []
    assert done == ["a", "b"]
    # Inside a job they wait anyway.
    work.post("c", lambda: _nested(work, done))
    assert done == ["a", "b", "c", "d"]


def _nested(work: Work, done: list[str]) -> None:
    with work.later():
        work.post("d", lambda: done.append("d"))
    done.append("c")


def test_later_is_no_business_of_other_threads() -> None:
    work, done = Work(), list[str]()
    with work.later():
        work.post("mine", lambda: done.append("mine"))
        other = Thread(target=lambda: work.post("other", lambda: done.append("other")))
        other.start()
        other.join(10)
        # It ran what waited, too: nobody has to wait for us.
        assert done == ["mine", "other"]


def test_later_when_something_goes_wrong() -> None:
    work, done = Work(), list[str]()

    def fail() -> None:
        with work.later():
            work.post("a", lambda: done.append("a"))
            raise OSError

    with pytest.raises(OSError):  # noqa: PT011
        fail()
    assert done == ["a"]


def test_many_threads_lose_no_job() -> None:
    work, done = Work(), list[int]()

    def posts(base: int) -> None:
        for number in range(base, base + 500):
            work.post(number, lambda number=number: done.append(number))  # type: ignore[misc]

    threads = [Thread(target=posts, args=(1000 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    work.post("last", lambda: None)
    assert sorted(done) == [1000 * i + number for i in range(4) for number in range(500)]
