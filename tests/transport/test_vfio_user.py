"""The vfio-user server, message by message: what it answers, refuses, and survives."""

from __future__ import annotations

import errno
import json
import os
import struct
from pathlib import Path

import pytest

from tests.transport.vfio_client import (
    CONFIG,
    DMA_MAP,
    DMA_READ,
    DMA_UNMAP,
    DMA_WRITE,
    ERR,
    GET_INFO,
    GET_IRQ_INFO,
    GET_REGION_INFO,
    GET_REGION_IO_FDS,
    INTX,
    MSI,
    MSIX,
    REGION_READ,
    REGION_WRITE,
    REQ,
    RESET,
    SET_IRQS,
    VERSION,
    WRITE_MULTI,
    Client,
    greeted,
    refused,
    serving,
)
from virtring.errors import PeerDied
from virtring.memory import Region
from virtring.spec.pci import CommonReg, PciReg
from virtring.transport.vfio_user import VfioUserServer

PAGE = 4096


server = pytest.fixture(serving)
client = pytest.fixture(greeted)


# Version.


def test_version(server: VfioUserServer) -> None:
    with Client(server.path) as client:
        answer = client.hello({"max_msg_fds": 3, "max_dma_maps": 7, "pgsizes": 4096}, minor=9)
    assert struct.unpack_from("<HH", answer) == (0, 1)
    assert answer.endswith(b"\0")
    # What the client does not know of is not offered to it.
    assert json.loads(answer[4:-1])["capabilities"].keys() == {"max_msg_fds", "max_dma_maps"}


def test_version_without_capabilities(server: VfioUserServer) -> None:
    with Client(server.path) as client:
        answer = client.request(VERSION, struct.pack("<HH", 0, 0))
        assert answer[:4] == struct.pack("<HH", 0, 0)
        assert json.loads(answer[4:-1]) == {"capabilities": {}}
        assert client.region_size(0) == PAGE


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\0\0\1",
        struct.pack("<HH", 1, 0),
        b"\0\0\1\0{",
        b"\0\0\1\0\xff\xfe",
        b"\0\0\1\0[]",
        b"\0\0\1\0" + b"[" * 100_000,
        b'\0\0\1\0{"capabilities": 5}',
        b'\0\0\1\0{"capabilities": {"max_data_xfer_size": 0}}',
        b'\0\0\1\0{"capabilities": {"max_data_xfer_size": "9"}}',
    ],
)
def test_versions_that_end_the_session(server: VfioUserServer, payload: bytes) -> None:
    with Client(server.path) as client, pytest.raises(PeerDied):
        client.request(VERSION, payload)


def test_version_comes_first_and_once(server: VfioUserServer) -> None:
    with Client(server.path) as client, pytest.raises(PeerDied):
        client.request(RESET)
    with Client(server.path) as client:
        client.hello()
        with pytest.raises(PeerDied):
            client.hello()


# What the device is.


def test_infos(client: Client) -> None:
    assert client.request(GET_INFO, struct.pack("<IIII", 16, 0, 0, 0)) == struct.pack(
        "<IIII", 16, 3, 9, 5
    )
    sizes = [client.region_size(index) for index in range(9)]
    assert sizes == [PAGE, PAGE, PAGE, 0, 0, 0, 0, PAGE, 0]
    flags = {INTX: 1 | 2 | 4, MSI: 1 | 8, MSIX: 1 | 8, ERR: 1 | 8, REQ: 1 | 8}
    counts = {INTX: 1, MSI: 0, MSIX: 4, ERR: 1, REQ: 0}
    for index in range(5):
        assert client.irq_info(index) == (flags[index], counts[index])
    with refused(errno.EINVAL):
        client.irq_info(5)
    with refused(errno.EINVAL):
        client.region_size(9)


@pytest.mark.parametrize(
    ("command", "payload"),
    [
        (GET_INFO, struct.pack("<IIII", 15, 0, 0, 0)),
        (GET_REGION_INFO, struct.pack("<IIIIQQ", 31, 0, 0, 0, 0, 0)),
        (GET_IRQ_INFO, struct.pack("<IIII", 0, 0, 0, 0)),
        (DMA_UNMAP, struct.pack("<IIQQ", 23, 0, 0, 0)),
    ],
)
def test_no_room_for_the_answer(client: Client, command: int, payload: bytes) -> None:
    with refused(errno.EINVAL):
        client.request(command, payload)


@pytest.mark.parametrize("command", [0, GET_REGION_IO_FDS, DMA_READ, DMA_WRITE, 14, 16, 65535])
def test_commands_that_are_not_there(client: Client, command: int) -> None:
    with refused(errno.ENOTSUP):
        client.request(command, bytes(64))
    client.post(command, bytes(64))
    assert client.region_size(CONFIG) == PAGE


# Regions.


def test_posted_writes_are_never_answered(client: Client) -> None:
    for value in range(1, 50):
        client.post_write(CONFIG, PciReg.INTERRUPT_LINE, bytes([value]))
        # Also wrong ones; an answer to number 0xffff would have nobody who waits for it.
        client.post_write(9, 0, b"12")
        client.post(SET_IRQS, bytes(20))
        assert client.read(CONFIG, PciReg.INTERRUPT_LINE, 1) == bytes([value])
    assert not client.lost.is_set()


@pytest.mark.parametrize(
    ("offset", "region", "count"),
    [
        (PAGE, 0, 1),
        (PAGE - 3, 0, 4),
        (0, 0, PAGE + 1),
        (0, 3, 1),
        (0, 8, 1),
        (0, 9, 1),
        (0, 0xFFFFFFFF, 1),
        ((1 << 64) - 1, 0, 2),
        (0, 0, 0xFFFFFFFF),
        (1 << 63, CONFIG, 4),
    ],
)
def test_accesses_outside(client: Client, offset: int, region: int, count: int) -> None:
    head = struct.pack("<QII", offset, region, count)
    with refused(errno.EINVAL):
        client.request(REGION_READ, head)
    with refused(errno.EINVAL):
        client.request(REGION_WRITE, head + bytes(min(count, PAGE)))


def test_an_access_may_have_any_size(client: Client) -> None:
    whole = client.read(CONFIG, 0, PAGE)
    assert len(whole) == PAGE
    assert b"".join(client.read(CONFIG, at, 7) for at in range(0, 70, 7)) == whole[:70]
    assert client.read(0, PAGE, 0) == b""
    assert len(client.read(0, 0, PAGE)) == PAGE


def test_a_write_has_its_data(client: Client) -> None:
    head = struct.pack("<QII", 0, 0, 4)
    for data in (b"", b"123", b"12345"):
        with refused(errno.EINVAL):
            client.request(REGION_WRITE, head + data)


def test_many_writes_in_one(client: Client) -> None:
    entries = [
        struct.pack("<QII8s", PciReg.INTERRUPT_LINE, CONFIG, 1, b"\x17"),
        struct.pack("<QII8s", PciReg.CACHE_LINE_SIZE, CONFIG, 1, b"\x23"),
    ]
    payload = struct.pack("<Q", 2) + b"".join(entries)
    assert client.request(WRITE_MULTI, payload) == struct.pack("<Q", 2)
    assert client.read(CONFIG, PciReg.INTERRUPT_LINE, 1) == b"\x17"
    assert client.read(CONFIG, PciReg.CACHE_LINE_SIZE, 1) == b"\x23"
    for wrong in (
        struct.pack("<Q", 3) + b"".join(entries),
        struct.pack("<Q", 1 << 63),
        struct.pack("<QQII8s", 1, 0, CONFIG, 9, b""),
        struct.pack("<QQII8s", 1, 0, 9, 8, b""),
    ):
        with refused(errno.EINVAL):
            client.request(WRITE_MULTI, wrong)


def test_reset(client: Client) -> None:
    client.write(CONFIG, PciReg.COMMAND, b"\x06\0")
    client.write(0, CommonReg.DEVICE_STATUS, b"\x01")
    client.write(0, CommonReg.DEVICE_STATUS, b"\x03")
    assert client.read(0, CommonReg.DEVICE_STATUS, 1) == b"\x03"
    assert client.request(RESET) == b""
    assert client.read(0, CommonReg.DEVICE_STATUS, 1) == b"\0"
    assert client.read(CONFIG, PciReg.COMMAND, 2) == b"\0\0"


# Memory.


def test_maps(client: Client) -> None:
    with Region.memfd(16 * PAGE) as region:
        client.map(0, 4 * PAGE, region.fd)
        client.map(4 * PAGE, 4 * PAGE, region.fd, 4 * PAGE)
        client.map(1 << 40, PAGE)
        client.map((1 << 64) - PAGE, PAGE, region.fd)
        for addr, size in ((0, PAGE), (3 * PAGE, 2 * PAGE), (7 * PAGE, 64 * PAGE), (1 << 40, 1)):
            with refused(errno.EEXIST):
                client.map(addr, size, region.fd)
            with refused(errno.EEXIST):
                client.map(addr, size)
        for addr, size in ((0, PAGE), (PAGE, 3 * PAGE), (1 << 41, PAGE), (0, 8 * PAGE), (0, 0)):
            with refused(errno.ENOENT):
                client.unmap(addr, size)
        client.unmap(0, 4 * PAGE)
        client.map(0, PAGE, region.fd, flags=1)
        client.map(PAGE, PAGE, region.fd, flags=2)


def test_maps_that_cannot_be(client: Client, tmp_path: Path) -> None:
    pipe = os.pipe()
    folder = os.open(tmp_path, os.O_RDONLY)
    with Region.memfd(4 * PAGE) as region:
        for addr, size, fd, offset, flags in (
            (0, 0, region.fd, 0, 3),
            ((1 << 64) - PAGE, 2 * PAGE, region.fd, 0, 3),
            ((1 << 64) - 1, (1 << 64) - 1, None, 0, 3),
            (0, 8 * PAGE, region.fd, 0, 3),
            (0, PAGE, region.fd, 4 * PAGE, 3),
            (0, PAGE, region.fd, (1 << 64) - PAGE, 3),
            (0, PAGE, region.fd, 17, 3),
            (0, PAGE, pipe[0], 0, 3),
            (0, PAGE, folder, 0, 3),
            (0, PAGE, region.fd, 0, 4),
        ):
            with refused(errno.EINVAL):
                client.map(addr, size, fd, offset, flags)
        with refused(errno.EINVAL):
            client.request(
                DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, 0, PAGE), [region.fd, region.fd]
            )
        # None of them has left anything in the way.
        client.map(0, 4 * PAGE, region.fd)
    for fd in (*pipe, folder):
        os.close(fd)


def test_too_many_maps(client: Client) -> None:
    with Region.memfd(PAGE) as region:
        made = 0
        with refused(errno.ENOSPC):
            for made in range(1000):
                client.map(2 * PAGE * made, PAGE, region.fd)
        assert made == 512
        client.unmap(0, PAGE)
        client.map(0, PAGE, region.fd)
