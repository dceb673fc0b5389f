"""What the channel tests run in other processes; importable, so that a spawned child finds it."""

import sys
import time
import zlib

from virtring.channel import Channel, connect


def echo(end: Channel) -> None:
    """Send back what comes, until the other end closes."""
    try:
        while True:
            end.send(end.recv(20), 20)
    except EOFError:
        end.close()


def wait_for_ever(end: Channel) -> None:
    """Say that we are here, take nothing, and wait to be killed."""
    end.send(b"here")
    time.sleep(60)


def send_and_leave(end: Channel, count: int) -> None:
    """Send, and end without closing."""
    end.send_batch([b"%d" % i for i in range(count)], 20)


def send_checked(end: Channel, count: int) -> None:
    """``count`` messages of many lengths, by every way of sending, then their checksum."""
    total = 0
    for i in range(count):
        data = bytes([i & 255]) * (i * 7 % (end.max_size + 1))
        total = zlib.crc32(data, total)
        way = i % 3
        if way == 0:
            end.send(data, 20)
        elif way == 1:
            assert end.send_batch([data], 20) == 1
        else:
            loan = end.loan(20)
            memoryview(loan)[: len(data)] = data
            end.commit(loan, len(data))
    end.send(total.to_bytes(4, "little"), 20)
    end.close()


if __name__ == "__main__":
    # An unrelated process: path of the socket, what to do.
    with connect(sys.argv[1], 20) as ours:
        if sys.argv[2] == "echo":
            echo(ours)
        elif sys.argv[2] == "wait":
            wait_for_ever(ours)
