"""Meeting at a path, and handing an end over a socket of one's own."""

import os
import socket
import threading
from pathlib import Path

import pytest

from virtring import InvalidArgument, PeerClosed, PeerDied, WaitTimeout
from virtring.channel import Channel, connect, create, listen, receive_end, send_end
from virtring.channel.connect import HEADER, MAGIC


def test_each_connection_gets_a_channel_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with listen(path, 4, 32) as listener:
        theirs: list[Channel] = []
        connector = threading.Thread(
            target=lambda: theirs.extend(connect(path, 10) for _ in range(2))
        )
        connector.start()
        ours = [listener.accept(10) for _ in range(2)]
        connector.join()
    for number, end in enumerate(ours):
        end.send(b"%d" % number)
    assert [end.recv(1) for end in theirs] == [b"0", b"1"]
    assert theirs[0].max_size == 32
    assert theirs[0].slots == 4
    theirs[0].close()
    with pytest.raises(PeerClosed):
        ours[0].recv(5)
    ours[1].close()
    with pytest.raises(PeerClosed):
        theirs[1].recv(5)


def test_a_left_socket_is_replaced_and_a_living_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    left = socket.socket(socket.AF_UNIX)
    left.bind(os.fspath(path))
    left.close()
    with listen(path) as listener:
        assert listener.fileno() >= 0
        with pytest.raises(OSError, match="in use"):
            listen(path)
    path.write_text("a file")
    with pytest.raises(OSError, match="in use"):
        listen(path)
    assert path.read_text() == "a file"


def test_nobody_comes_and_nobody_is_there(tmp_path: Path) -> None:
    with pytest.raises(WaitTimeout, match="nobody listens"):
        connect(tmp_path / "nothing", 0.05)
    with listen(tmp_path / "socket") as listener, pytest.raises(WaitTimeout, match="nobody"):
        listener.accept(0.05)
    with pytest.raises(InvalidArgument, match="slots"):
        listen(tmp_path / "other", 0)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"", PeerDied),
        (HEADER.pack(MAGIC, 4, 64, 1), PeerDied),
        (HEADER.pack(b"nonsense", 4, 64, 1), InvalidArgument),
        (HEADER.pack(MAGIC, 0, 64, 1), InvalidArgument),
        (HEADER.pack(MAGIC, 4, 1 << 40, 1), InvalidArgument),
        (HEADER.pack(MAGIC, 4, 64, 1) + b"x" * 100, InvalidArgument),
    ],
)
def test_what_is_no_channel_is_refused(said: bytes, error: type[Exception]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            theirs.sendall(said)
        with pytest.raises(error):
            receive_end(ours)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_region_that_is_too_small_is_refused() -> None:
    ours, theirs = socket.socketpair()
    one, _ = create(4, 64)
    region, layout, side, events = one.hand_over()
    with ours, theirs:
        theirs.sendall(HEADER.pack(MAGIC, 1000, layout.slot_size, side))
        region.send(theirs)
        for event in events:
            event.send(theirs)
        with pytest.raises(InvalidArgument, match="a region of"):
            receive_end(ours)


def test_over_a_socket_of_ones_own() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        one, two = create(4, 64)
        send_end(two, theirs)
        assert two.closed
        end = receive_end(ours)
    with one, end:
        one.send(b"there")
        assert end.recv(1) == b"there"
        end.send(b"and back")
        assert one.recv(1) == b"and back"


def test_who_leaves_before_the_channel_is_set_up(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with listen(path, 4, 64) as listener:
        with socket.socket(socket.AF_UNIX) as visitor:
            visitor.connect(os.fspath(path))
        with pytest.raises((PeerDied, PeerClosed)):
            listener.accept(5).recv(5)
