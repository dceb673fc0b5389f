"""Two processes: fork, spawn, strangers that meet at a path; and the death of either."""

import contextlib
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.channel import _children as children
from virtring import InvalidArgument, PeerClosed, PeerDied, QueueClosed, WaitTimeout
from virtring.channel import Channel, create, listen

METHODS = pytest.mark.parametrize("method", ["fork", "spawn"])
LONG = 30.0


@contextlib.contextmanager
def child(method: str, target: Any, *args: Any) -> Iterator[Any]:
    context: Any = multiprocessing.get_context(method)
    process = context.Process(target=target, args=args)
    process.start()
    try:
        yield process
        process.join(LONG)
        assert process.exitcode is not None
    finally:
        if process.exitcode is None:
            process.kill()
        process.join()


@METHODS
def test_echo(method: str) -> None:
    one, two = create(16, 1000)
    with child(method, children.echo, two) as process:
        for i in range(300):
            data = bytes([i & 255]) * i
            one.send(data, LONG)
            assert one.recv(LONG) == data
        one.close()
    assert process.exitcode == 0


@METHODS
def test_every_byte_of_a_long_stream_arrives(method: str) -> None:
    count = 5000
    one, two = create(32, 2000)
    total = 0
    with one, child(method, children.send_checked, two, count) as process:
        got = 0
        while got < count:
            way = got % 3
            if way == 0:
                total = zlib.crc32(one.recv(LONG), total)
                got += 1
            elif way == 1:
                for data in one.recv_batch(min(5, count - got), LONG):
                    total = zlib.crc32(data, total)
                    got += 1
            else:
                with one.borrow(LONG) as message:
                    total = zlib.crc32(message, total)
                got += 1
        assert one.recv(LONG) == total.to_bytes(4, "little")
        with pytest.raises(PeerClosed):
            one.recv(LONG)
    assert process.exitcode == 0


@METHODS
@pytest.mark.parametrize("side", ["receiver", "sender"])
def test_a_killed_peer_is_noticed_by_who_waits(method: str, side: str) -> None:
    one, two = create(4, 8)
    with one, child(method, children.wait_for_ever, two) as process:
        assert one.recv(LONG) == b"here"
        threading.Timer(0.2, process.kill).start()
        with pytest.raises(PeerDied):
            one.recv(LONG) if side == "receiver" else one.send_batch([b"x"] * 100, LONG)
        # From now on at once, whoever asks.
        for call in (one.recv, one.try_recv, one.borrow, one.recv_batch):
            with pytest.raises(PeerDied):
                call()
        with pytest.raises(PeerDied):
            one.try_send(b"x")
        assert not one.peer_alive
    assert process.exitcode == -signal.SIGKILL


def test_what_was_sent_before_the_death_is_received() -> None:
    one, two = create(64, 8)
    with one, child("spawn", children.send_and_leave, two, 50) as process:
        process.join(LONG)
        assert [one.recv(LONG) for _ in range(50)] == [b"%d" % i for i in range(50)]
        with pytest.raises((PeerDied, PeerClosed)):
            one.recv(LONG)


def test_an_end_in_use_stays_where_it_is() -> None:
    one, two = create(4, 8)
    one.send(b"x")
    with pytest.raises(InvalidArgument, match="in use"):
        pickle.dumps(one)
    with pytest.raises(InvalidArgument, match="in use"):
        one.hand_over()
    # A copy of the other one that a fork made, used there first.
    pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(BaseException):
            code = two.recv(LONG) != b"x"
        os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    with pytest.raises(InvalidArgument, match=f"used by process {pid}"):
        two.recv(0)
    one.close()


def test_a_forked_copy_of_an_end_in_use_is_void() -> None:
    one, two = create(4, 8)
    two.attach()
    one.send(b"x")
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            two.try_recv()
        except QueueClosed:
            two.close()
            one.close()
            code = 0
        os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    # The child's close said nothing to anybody.
    assert two.recv(1) == b"x"
    one.close()
    two.close()


def test_strangers_meet_at_a_path(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with listen(path, 8, 64) as listener:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.channel._children", str(path), "echo"]
        )
        try:
            with listener.accept(LONG) as end:
                end.send(b"hello")
                assert end.recv(LONG) == b"hello"
            assert process.wait(LONG) == 0
        finally:
            process.kill()
            process.wait()
    assert not path.exists()


def test_a_killed_stranger_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with listen(path, 8, 64) as listener:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.channel._children", str(path), "wait"]
        )
        try:
            with listener.accept(LONG) as end:
                assert end.recv(LONG) == b"here"
                assert end.peer_alive
                threading.Timer(0.2, process.kill).start()
                with pytest.raises(PeerDied):
                    end.recv(LONG)
        finally:
            process.kill()
            process.wait()


def test_a_peer_that_stays_is_not_taken_for_dead() -> None:
    one, two = create(4, 8)
    with one, child("fork", children.wait_for_ever, two) as process:
        assert one.recv(LONG) == b"here"
        start = time.monotonic()
        with pytest.raises(WaitTimeout):
            one.recv(0.3)
        assert time.monotonic() - start >= 0.3
        assert one.peer_alive
        process.kill()


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    def open_fds() -> int:
        return len(os.listdir("/proc/self/fd"))

    def use(ends: tuple[Channel, Channel]) -> None:
        one, two = ends
        with one, two:
            one.send(b"x")
            two.recv(1)
            with pytest.raises(WaitTimeout):
                two.recv(0.01)

    use(create(2, 8))
    before = open_fds()
    for _ in range(5):
        use(create(2, 8))
        create(2, 8)  # never used
    assert open_fds() == before
