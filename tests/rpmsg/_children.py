"""The device's half of the tests with two processes; importable for spawned children."""

import socket

import numpy as np

from virtring.rpmsg import Messages, RpmsgDriver, RpmsgLink


def echo(link: RpmsgLink, count: int, batch: int) -> None:
    """Announce "echo", and send ``count`` messages back, in batches as they come."""
    bus = link.device(timeout=60)
    channel = bus.create_channel("echo", announce=True, driver=RpmsgDriver("echo"))
    assert channel.ept is not None
    rows = Messages(batch, bus.rx_mtu)
    done = 0
    while done < count:
        n = channel.ept.recv_batch(rows, 60)
        assert n, "no message came for a minute"
        rows.dst[:n] = rows.src[:n]
        assert channel.ept.sendto_many(rows) == n
        done += n
    channel.destroy()


def echo_singly(sock: socket.socket) -> None:
    """The same with a link from a socket, one message at a time, until b"stop"."""
    bus = RpmsgLink.receive(sock).device(timeout=60)
    ept = bus.create_ept(addr=100)
    while True:
        data, src = ept.recv(60)
        ept.sendto(data[::-1], src)
        if data == b"stop":
            return


def flood(link: RpmsgLink, count: int) -> None:
    """``count`` numbered messages from a side that never listens."""
    bus = link.device(timeout=60)
    ept = bus.create_ept(addr=7, dst=2000)
    rows = Messages(64, bus.mtu)
    rows.len[:] = 8
    for first in range(0, count, 64):
        n = min(64, count - first)
        rows.count = n
        rows.data[:n, :8] = np.arange(first, first + n, dtype="<u8").view(np.uint8).reshape(n, 8)
        assert ept.send_many(rows) == n
