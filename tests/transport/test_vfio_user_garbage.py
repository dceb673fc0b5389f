"""Senseless messages do a vfio-user server no harm: the next client is served."""

from __future__ import annotations

import os
import socket
import struct
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transport.common import Echo
from tests.transport.vfio_client import (
    DMA_READ,
    GET_INFO,
    HEADER,
    NO_REPLY,
    REPLY,
    RESET,
    VERSION,
    Client,
    greeted,
    open_fds,
    served,
    serving,
)
from virtring.memory import Region
from virtring.queue import EventFd
from virtring.transport.vfio_user import VfioUserServer

PAGE = 4096


server = pytest.fixture(serving)
client = pytest.fixture(greeted)


def socket_path() -> Path:
    """For tests that are run many times."""
    return Path(tempfile.gettempdir()) / f"virtring-{os.getpid()}"


@pytest.mark.parametrize("size", [0, 15, (1 << 20) + 65, 0xFFFFFFFF])
def test_sizes_that_cannot_be(client: Client, size: int) -> None:
    client.raw(HEADER.pack(1, GET_INFO, size, 0, 0))
    assert client.lost.wait(10)


@pytest.mark.parametrize("flags", [REPLY, 2, 15])
def test_neither_a_command_nor_an_awaited_answer(client: Client, flags: int) -> None:
    client.raw(HEADER.pack(1, DMA_READ, 16, flags, 0))
    assert client.lost.wait(10)


def test_too_many_descriptors(client: Client) -> None:
    with EventFd() as event:
        client.raw(HEADER.pack(1, RESET, 16, 0, 0), [event.fileno()] * 17)
        assert client.lost.wait(10)


def test_descriptors_that_nobody_asked_for(client: Client) -> None:
    with EventFd() as event:
        assert client.request(RESET, fds=[event.fileno()] * 16) == b""
        client.region_size(0)
        before = open_fds()
        for command in (GET_INFO, 77):
            with pytest.raises(OSError, match="Errno"):
                client.request(command, bytes(64), [event.fileno()] * 16)
        client.region_size(0)
        assert open_fds() <= before


@pytest.mark.parametrize("length", [1, 15, 16, 20])
def test_gone_in_mid_message(server: VfioUserServer, length: int) -> None:
    with Client(server.path) as client:
        client.hello()
        client.raw((HEADER.pack(1, GET_INFO, 32, 0, 0) + bytes(16))[:length])


@given(
    messages=st.lists(
        st.tuples(
            st.integers(0, 18),
            st.sampled_from([0, NO_REPLY]),
            st.one_of(
                st.binary(max_size=64),
                st.tuples(
                    st.sampled_from([0, 1, PAGE, 32, 1 << 31, (1 << 32) - 1]),
                    st.integers(0, 63),
                    st.sampled_from([0, 1, 7, PAGE, 1 << 63, (1 << 64) - PAGE]),
                    st.sampled_from([0, 1, 7, PAGE, 1 << 63, (1 << 64) - PAGE]),
                    st.sampled_from([0, 1, 4, PAGE, 1 << 40, (1 << 64) - 1]),
                ).map(lambda numbers: struct.pack("<IIQQQ", *numbers)),
            ),
            st.integers(0, 3),
        ),
        max_size=12,
    )
)
@settings(max_examples=150, deadline=None)
def test_any_messages(messages: list[tuple[int, int, bytes, int]]) -> None:
    before = open_fds()
    data = b"".join(
        HEADER.pack(n, command, 16 + len(payload), flags, 0) + payload
        for n, (command, flags, payload, _) in enumerate(messages)
    )
    with served(Echo(), socket_path()) as server, EventFd() as event, Region.memfd(PAGE) as memory:
        fds = [memory.fd, event.fileno(), memory.fd][: sum(row[3] for row in messages)]
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(str(server.path))
            sock.sendall(HEADER.pack(0, VERSION, 20, 0, 0) + bytes(4))
            assert sock.recv(16)
            socket.send_fds(sock, [data or b"\0"], fds)
        with Client(server.path) as client:
            client.hello()
    assert open_fds() <= before


@given(data=st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_any_bytes(data: bytes) -> None:
    with served(Echo(), socket_path()) as server:
        for greet in (b"", HEADER.pack(0, VERSION, 20, 0, 0) + bytes(4)):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(server.path)
                sock.sendall(greet + data)
        with Client(server.path) as client:
            client.hello()
