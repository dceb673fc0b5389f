"""A vfio-user client as a machine is one, and a PCI function of it for our own drivers."""

from __future__ import annotations

import gc
import json
import os
import queue
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import pytest

from tests.transport.common import Echo
from virtring.device import Device, VirtioBus, VirtioDevice, VirtioDriver
from virtring.errors import AddressError, PeerDied
from virtring.memory import GuestMemory, Region
from virtring.queue import EventFd
from virtring.spec.pci import MsixControl, MsixReg, PciCapID, PciCommand, PciReg
from virtring.transport.pci_function import Handler, capabilities
from virtring.transport.vfio_user import VfioUserServer
from virtring.transport.virtio_pci_modern import pci_device

HEADER = struct.Struct("<HHIII")
VERSION, DMA_MAP, DMA_UNMAP, GET_INFO, GET_REGION_INFO, GET_REGION_IO_FDS, GET_IRQ_INFO = range(
    1, 8
)
SET_IRQS, REGION_READ, REGION_WRITE, DMA_READ, DMA_WRITE, RESET = range(8, 14)
WRITE_MULTI = 15
REPLY, NO_REPLY, ERROR = 1, 16, 32
#: SET_IRQS: kinds of data and actions; interrupt indices.
NONE, BOOL, EVENTFD, MASK, UNMASK, TRIGGER = (1 << bit for bit in range(6))
INTX, MSI, MSIX, ERR, REQ = range(5)
CONFIG = 7

AnyDriver = TypeVar("AnyDriver", bound=VirtioDriver)
OFFER = {"max_msg_fds": 8, "max_data_xfer_size": 1 << 20, "write_multiple": True}


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


@contextmanager
def served(device: Device, path: Path) -> Iterator[VfioUserServer]:
    """The device behind a socket, in a thread that must be alive at the end."""
    server = VfioUserServer(device, str(path))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
        assert thread.is_alive(), "the server has ended"
    finally:
        server.stop()
        thread.join(30)
        assert not thread.is_alive()
        server.close()


def refused(error: int) -> pytest.RaisesExc[OSError]:
    """The server answers with this errno."""
    return pytest.raises(OSError, match=rf"^\[Errno {error}\]")


def serving(tmp_path: Path) -> Iterator[VfioUserServer]:
    """A server that serves a client at the end, too, and leaves no descriptor open."""
    gc.collect()
    before = open_fds()
    with served(Echo(), tmp_path / "socket") as server:
        yield server
        with Client(server.path) as client:
            client.hello()
            assert client.read(CONFIG, 0, 2) == b"\xf4\x1a"
    gc.collect()
    assert open_fds() <= before


def greeted(server: VfioUserServer) -> Iterator[Client]:
    """A client of it, behind VERSION."""
    with Client(server.path) as client:
        client.hello()
        yield client


class Client:
    """One connection. ``memory`` is what DMA_READ and DMA_WRITE of the server reach.

    As in a machine, one big lock is held while a command waits for its answer, and the server's
    commands are carried out under it, in a thread of their own. ``max_transfer``: bytes that one of
    them may move, as told to the server.
    """

    def __init__(
        self, path: str | Path, memory: GuestMemory | None = None, *, max_transfer: int = 1 << 20
    ) -> None:
        self.memory = memory
        self.max_transfer = max_transfer
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(str(path))
        self.big_lock = threading.Lock()
        self.transfers: list[tuple[int, int, int]] = []
        #: Changes what is done about a command of the server; None for an error.
        self.serve: Callable[[int, int, bytes], bytes | None] = self.transfer
        self._send_lock = threading.Lock()
        self._next_id = 0
        self._answers: dict[int, queue.Queue[tuple[int, int, bytes]]] = {}
        self._commands: queue.Queue[tuple[int, int, bytes] | None] = queue.Queue()
        self.lost = threading.Event()
        self._threads = [threading.Thread(target=run) for run in (self._read, self._main_loop)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()
        self.sock.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Messages.

    def raw(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Bytes as they are."""
        with self._send_lock:
            sent = socket.send_fds(self.sock, [data], list(fds)) if fds else 0
            if sent < len(data):
                self.sock.sendall(data[sent:])

    def post(self, command: int, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """A command that wants no answer."""
        self.raw(HEADER.pack(0xFFFF, command, 16 + len(payload), NO_REPLY, 0) + payload, fds)

    def request(self, command: int, payload: bytes = b"", fds: Sequence[int] = ()) -> bytes:
        """The payload of the answer. OSError with its errno; PeerDied when the server is gone."""
        with self.big_lock:
            self._next_id = (self._next_id + 1) % 0xFFFF
            number = self._next_id
            answer = self._answers[number] = queue.Queue()
            try:
                self.raw(HEADER.pack(number, command, 16 + len(payload), 0, 0) + payload, fds)
            except OSError:
                raise PeerDied("the server has closed") from None
            while True:
                try:
                    got, flags, data = answer.get(timeout=0.1)
                    break
                except queue.Empty:
                    if self.lost.is_set() and answer.empty():
                        raise PeerDied("the server has closed") from None
        assert got == command
        if flags & ERROR:
            assert not data
            raise OSError(flags >> 32, "refused")
        return data

    def _exactly(self, size: int) -> bytes | None:
        data = b""
        while len(data) < size:
            try:
                part = self.sock.recv(size - len(data))
            except OSError:
                return None
            if not part:
                return None
            data += part
        return data

    def _read(self) -> None:
        while (head := self._exactly(16)) is not None:
            number, command, size, flags, error = HEADER.unpack(head)
            payload = self._exactly(size - 16)
            if payload is None:
                break
            if flags & REPLY:
                self._answers.pop(number).put((command, flags | error << 32, payload))
            else:
                self._commands.put((number, command, payload))
        self.lost.set()
        self._commands.put(None)

    def _main_loop(self) -> None:
        while (found := self._commands.get()) is not None:
            number, command, payload = found
            with self.big_lock, suppress(OSError):
                answer = self.serve(number, command, payload)
                flags, error = (REPLY, 0) if answer is not None else (REPLY | ERROR, 14)
                answer = answer or b""
                self.raw(HEADER.pack(number, command, 16 + len(answer), flags, error) + answer)

    def transfer(self, number: int, command: int, payload: bytes) -> bytes | None:
        """Carry out DMA_READ and DMA_WRITE on the memory."""
        addr, count = struct.unpack_from("<QQ", payload)
        self.transfers.append((command, addr, count))
        assert count <= self.max_transfer
        assert self.memory is not None
        try:
            if command == DMA_READ:
                return payload[:16] + self.memory.read(addr, count)
            assert command == DMA_WRITE
            assert len(payload) == 16 + count
            self.memory.write(addr, payload[16:])
            return payload[:16]
        except AddressError:
            return None

    # Commands.

    def hello(self, capabilities: dict[str, object] | None = None, minor: int = 1) -> bytes:
        offer = {**OFFER, "max_data_xfer_size": self.max_transfer}
        text = json.dumps({"capabilities": offer if capabilities is None else capabilities})
        return self.request(VERSION, struct.pack("<HH", 0, minor) + text.encode() + b"\0")

    def map(
        self, addr: int, size: int, fd: int | None = None, offset: int = 0, flags: int = 3
    ) -> None:
        payload = struct.pack("<IIQQQ", 32, flags, offset, addr, size)
        self.request(DMA_MAP, payload, [] if fd is None else [fd])

    def unmap(self, addr: int, size: int) -> None:
        payload = struct.pack("<IIQQ", 24, 0, addr, size)
        assert self.request(DMA_UNMAP, payload) == payload

    def map_memory(self, *, shared: bool = True) -> None:
        assert self.memory is not None
        for entry in self.memory.regions:
            self.map(entry.guest_addr, entry.size, entry.region.fd if shared else None)

    def unmap_memory(self) -> None:
        assert self.memory is not None
        for entry in self.memory.regions:
            self.unmap(entry.guest_addr, entry.size)

    def read(self, region: int, offset: int, count: int) -> bytes:
        head = struct.pack("<QII", offset, region, count)
        answer = self.request(REGION_READ, head)
        assert answer[:16] == head
        assert len(answer) == 16 + count
        return answer[16:]

    def write(self, region: int, offset: int, data: bytes) -> None:
        head = struct.pack("<QII", offset, region, len(data))
        assert self.request(REGION_WRITE, head + data) == head

    def post_write(self, region: int, offset: int, data: bytes) -> None:
        self.post(REGION_WRITE, struct.pack("<QII", offset, region, len(data)) + data)

    def region_size(self, index: int) -> int:
        answer = self.request(GET_REGION_INFO, struct.pack("<IIIIQQ", 32, 0, index, 0, 0, 0))
        return int(struct.unpack("<IIIIQQ", answer)[4])

    def irq_info(self, index: int) -> tuple[int, int]:
        """Flags and count."""
        answer = self.request(GET_IRQ_INFO, struct.pack("<IIII", 16, 0, index, 0))
        _, flags, _, count = struct.unpack("<IIII", answer)
        return flags, count

    def set_irqs(
        self,
        flags: int,
        index: int,
        start: int = 0,
        count: int = 0,
        data: bytes = b"",
        fds: Sequence[int] = (),
    ) -> None:
        head = struct.pack("<IIIII", 20 + len(data), flags, index, start, count)
        assert self.request(SET_IRQS, head + data, fds) == b""


class UserFunction:
    """The function behind a client, for a driver. Writes are posted, as a machine does it."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.name = "vfio-user"
        self._watch: threading.Thread | None = None
        self._end = EventFd()

    def read_config(self, offset: int, size: int) -> int:
        return int.from_bytes(self.client.read(CONFIG, offset, size), "little")

    def write_config(self, offset: int, size: int, value: int) -> None:
        self.client.post_write(CONFIG, offset, value.to_bytes(size, "little"))

    def read_bar(self, bar: int, offset: int, size: int) -> int:
        return int.from_bytes(self.client.read(bar, offset, size), "little")

    def write_bar(self, bar: int, offset: int, size: int, value: int) -> None:
        self.client.post_write(bar, offset, value.to_bytes(size, "little"))

    def bar_size(self, bar: int) -> int:
        return self.client.region_size(bar)

    def bar_memory(self, bar: int, offset: int, length: int) -> tuple[int, Region, int] | None:
        return None

    def enable(self) -> None:
        self._command(PciCommand.MEMORY | PciCommand.MASTER, PciCommand(0))

    def _command(self, on: PciCommand, off: PciCommand) -> None:
        command = self.read_config(PciReg.COMMAND, 2)
        self.write_config(PciReg.COMMAND, 2, command & ~int(off) | int(on))

    def _msix_control(self) -> int:
        return MsixReg.CONTROL + next(at for id, at in capabilities(self) if id == PciCapID.MSIX)

    def enable_msix(self, handlers: Sequence[Handler]) -> None:
        events = [EventFd() for _ in handlers]
        fds = [event.fileno() for event in events]
        self.client.set_irqs(EVENTFD | TRIGGER, MSIX, 0, len(fds), fds=fds)
        self.write_config(self._msix_control(), 2, int(MsixControl.ENABLE))
        self._start(list(zip(events, handlers, strict=True)))

    def enable_intx(self, handler: Handler) -> None:
        event = EventFd()
        self.client.set_irqs(EVENTFD | TRIGGER, INTX, 0, 1, fds=[event.fileno()])
        self._command(PciCommand(0), PciCommand.INTX_DISABLE)

        def handle() -> None:
            handler()
            self.client.set_irqs(NONE | UNMASK, INTX, 0, 1)

        self._start([(event, handle)])

    def _start(self, pairs: list[tuple[EventFd, Handler]]) -> None:
        self._watch = threading.Thread(target=self._run, args=(pairs,))
        self._watch.start()

    def _run(self, pairs: list[tuple[EventFd, Handler]]) -> None:
        poll = select.poll()
        for event in [self._end, *(event for event, _ in pairs)]:
            poll.register(event, select.POLLIN)
        try:
            while True:
                ready = {fd for fd, _ in poll.poll()}
                if self._end.fileno() in ready:
                    return
                for event, handler in pairs:
                    if event.fileno() in ready:
                        event.clear()
                        handler()
        except PeerDied:
            return
        finally:
            for event, _ in pairs:
                event.close()

    def free_irqs(self) -> None:
        if self._watch is not None:
            self._end.signal()
            self._watch.join(30)
            assert not self._watch.is_alive()
            self._watch = None
            self._end.clear()
            with suppress(PeerDied):
                for index in (INTX, MSIX):
                    self.client.set_irqs(NONE | TRIGGER, index)
                self.write_config(self._msix_control(), 2, 0)

    def close(self) -> None:
        self.free_irqs()
        self._end.close()


class Machine:
    """A client with memory, shared or not, and a bus with the function behind it.

    ``plug`` binds a driver.
    """

    def __init__(
        self,
        path: Path,
        irq: str = "msix",
        *,
        shared: bool = True,
        size: int = 8 << 20,
        max_transfer: int = 1 << 20,
    ) -> None:
        self.memory = GuestMemory.create(size)
        self.client = Client(path, self.memory, max_transfer=max_transfer)
        self.client.hello()
        self.shared = shared
        self.client.map_memory(shared=shared)
        self.function = UserFunction(self.client)
        self.vdev: VirtioDevice = pci_device(self.function, self.memory, irq)
        self.bus = VirtioBus()

    def plug(self, driver: type[AnyDriver]) -> AnyDriver:
        self.bus.register_driver(driver)
        self.bus.register_device(self.vdev)
        assert isinstance(self.vdev.driver, driver)
        return self.vdev.driver

    def remap(self) -> None:
        """Take the memory away and give it back."""
        self.client.unmap_memory()
        self.client.map_memory(shared=self.shared)

    def close(self) -> None:
        """The driver goes, then the client."""
        if self.vdev in self.bus.devices:
            self.bus.unregister_device(self.vdev)
        self.die()

    def die(self) -> None:
        """The client goes as it is; its memory goes with the last queue that uses it."""
        self.client.close()
        self.function.close()

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.die()
