"""A front end that sends whatever a test wants, and a ring that it drives by hand."""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from pathlib import Path

from tests.transport.vhost_user import open_fds
from virtring import QueueConfig, RingDevice, Virtqueue, vring_create_virtqueue
from virtring.memory import GuestMemory
from virtring.queue import EventFd
from virtring.spec.features import Feature
from virtring.transport.vhost_user import Protocol, Request
from virtring.transport.vhost_user.message import (
    F_PROTOCOL_FEATURES,
    HEADER,
    MEM_REG,
    MEM_TABLE,
    NO_FD,
    REGION,
    U64,
    VRING_ADDR,
    VRING_STATE,
)

#: Where the front end pretends to have its memory mapped.
USER = 0x7F00_0000_0000


class RawFront:
    """One connection. A context manager."""

    def __init__(self, path: Path, protocol: int | None = None) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(20)
        self.sock.connect(str(path))
        if protocol is not None:
            self.tell(Request.SET_PROTOCOL_FEATURES, U64.pack(protocol))

    def __enter__(self) -> RawFront:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def raw(self, data: bytes, fds: list[int] | None = None) -> None:
        try:
            socket.send_fds(self.sock, [data], fds or [])
        except (BrokenPipeError, ConnectionResetError):
            return

    def tell(self, request: int, payload: bytes = b"", fds: list[int] | None = None,
             flags: int = 1) -> None:
        self.raw(HEADER.pack(request, flags, len(payload)) + payload, fds)

    def reply(self) -> bytes | None:
        """The payload of the next answer; None when the other end has closed."""
        try:
            head = self.sock.recv(HEADER.size, socket.MSG_WAITALL)
            if not head:
                return None
            _, flags, size = HEADER.unpack(head)
            assert flags == 5
            return self.sock.recv(size, socket.MSG_WAITALL) if size else b""
        except ConnectionResetError:
            return None

    def ask(self, request: int, payload: bytes = b"", fds: list[int] | None = None) -> bytes | None:
        self.tell(request, payload, fds)
        return self.reply()

    def check(self, request: int, payload: bytes = b"", fds: list[int] | None = None) -> int | None:
        """With NEED_REPLY: 0 for taken, else refused; None when the other end has closed."""
        self.tell(request, payload, fds, flags=9)
        answer = self.reply()
        return None if answer is None else int(U64.unpack(answer)[0])

    def closed(self) -> bool:
        """Does the other end close (soon)?"""
        while (answer := self.reply()) is not None:
            assert answer is not None
        return True

    def alive(self) -> bool:
        return self.ask(Request.GET_FEATURES) is not None


def settled(before: int) -> bool:
    """Are there no more open descriptors than before, soon?

    Fewer are fine: a session that was over may not have been put away when they were counted.
    """
    for _ in range(500):
        if open_fds() <= before:
            return True
        time.sleep(0.01)
    return False


def slot(memory: GuestMemory, user: int = USER) -> bytes:
    """The only region of a memory as the messages say it."""
    (region,) = memory.regions
    return REGION.pack(region.guest_addr, region.size, user + region.guest_addr, region.offset)


def memory_fd(memory: GuestMemory) -> int:
    return memory.regions[0].region.fd


class RawRing:
    """One ring of a raw front end: a driver side, its eventfds, and the messages about it."""

    def __init__(self, front: RawFront, memory: GuestMemory, *, packed: bool = False,
                 index: int = 0, num: int = 16, extra: int = 0, align: int = 64) -> None:
        self.front, self.memory, self.index = front, memory, index
        features = Feature.VERSION_1 | Feature(extra)
        if packed:
            features |= Feature.RING_PACKED
        self.features = features
        self.kick, self.call, self.err = EventFd(), EventFd(), EventFd()
        self.vq: Virtqueue = vring_create_virtqueue(
            index, num, align, RingDevice(memory, features), notify=self.kick,
            callback=lambda _: None,
        )
        self.config: QueueConfig = self.vq.config
        self.packed = packed
        self.base = 0x8000_8000 if packed else 0

    def set_memory(self) -> None:
        payload = MEM_TABLE.pack(1, 0) + slot(self.memory)
        self.front.tell(Request.SET_MEM_TABLE, payload, [memory_fd(self.memory)])

    def add_memory(self) -> None:
        self.front.tell(
            Request.ADD_MEM_REG, MEM_REG.pack(0) + slot(self.memory), [memory_fd(self.memory)]
        )

    def negotiate(self, protocol: bool = True) -> None:
        bits = int(self.features) | (F_PROTOCOL_FEATURES if protocol else 0)
        self.front.tell(Request.SET_FEATURES, U64.pack(bits))

    def state(self, request: Request, value: int) -> None:
        self.front.tell(request, VRING_STATE.pack(self.index, value))

    def addresses(self, flags: int = 0, log: int = 0) -> bytes:
        c = self.config
        return VRING_ADDR.pack(
            self.index, flags, USER + c.desc, USER + c.used, USER + c.avail, log
        )

    def set_fd(self, request: Request, event: EventFd | None) -> None:
        if event is None:
            self.front.tell(request, U64.pack(self.index | NO_FD))
        else:
            self.front.tell(request, U64.pack(self.index), [event.fileno()])

    def setup(self) -> None:
        self.state(Request.SET_VRING_NUM, self.config.size)
        self.state(Request.SET_VRING_BASE, self.base)
        self.front.tell(Request.SET_VRING_ADDR, self.addresses())
        self.set_fd(Request.SET_VRING_CALL, self.call)
        self.set_fd(Request.SET_VRING_ERR, self.err)

    def start(self, *, enable: bool = True) -> None:
        self.setup()
        self.set_fd(Request.SET_VRING_KICK, self.kick)
        if enable:
            self.state(Request.SET_VRING_ENABLE, 1)

    def stop(self) -> int:
        answer = self.front.ask(Request.GET_VRING_BASE, VRING_STATE.pack(self.index, 0))
        assert answer is not None
        index, self.base = struct.unpack("<II", answer)
        assert index == self.index
        return self.base

    def add(self, data: bytes) -> int:
        """A buffer to be echoed; its address."""
        addr = self.memory.alloc(2 * len(data))
        self.memory.write(addr, data + bytes(len(data)))
        size = len(data)
        self.vq.virtqueue_add([(addr, size)], [(addr + size, size)], (addr, data), premapped=True)
        return addr

    def take(self, timeout: float = 20) -> bytes | None:
        """What the next used buffer was; None when nothing comes."""
        deadline = time.monotonic() + timeout
        while (got := self.vq.get_buf()) is None:
            if time.monotonic() > deadline:
                return None
            time.sleep(0.001)
        (addr, data), length = got
        assert length == len(data)
        assert self.memory.read(addr + len(data), len(data)) == data
        self.memory.free(addr)
        return bytes(data)

    def echo(self, data: bytes) -> None:
        self.add(data)
        self.vq.kick()
        assert self.take() == data

    def called(self, timeout: float = 20) -> bool:
        ready, _, _ = select.select([self.call], [], [], timeout)
        if ready:
            self.call.clear()
        return bool(ready)


def new_file(size: int) -> int:
    fd = os.memfd_create("test", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    return fd


ALL = int(
    Protocol.MQ
    | Protocol.REPLY_ACK
    | Protocol.CONFIG
    | Protocol.INFLIGHT_SHMFD
    | Protocol.LOG_SHMFD
    | Protocol.CONFIGURE_MEM_SLOTS
    | Protocol.RESET_DEVICE
    | Protocol.STATUS
    | Protocol.BACKEND_REQ
)
