"""One client of a vfio-user server: its memory, its interrupts, and the function it sees."""

import errno
import functools
import json
import logging
import select
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from virtring.device import Device
from virtring.errors import QueueClosed, VirtioError
from virtring.memory import GuestMemory
from virtring.queue import DeviceQueue, EventFd, QueueConfig
from virtring.spec.status import Status
from virtring.transport.pci_device import CONFIG_SIZE
from virtring.transport.unix import MESSAGE_TIME, ProtocolError, close_fds
from virtring.transport.vfio_user.dma import Dma
from virtring.transport.vfio_user.irqs import IrqIndex, Irqs
from virtring.transport.vfio_user.memory import MAX_REGIONS, ClientMemory
from virtring.transport.vfio_user.message import (
    DEVICE_INFO,
    ERROR,
    MAX_FDS,
    MAX_TRANSFER,
    REGION_INFO,
    REGION_IO,
    VERSION,
    WRITE_ENTRY,
    WRITE_MULTI,
    Command,
    Connection,
    Message,
    Refused,
)
from virtring.transport.vfio_user.remote_queue import RemoteQueue
from virtring.transport.vfio_user.words import CONFIG_REGION, in_words, number_in_words
from virtring.transport.virtio_pci import VirtioPci
from virtring.transport.words import features_in_words

log = logging.getLogger(__name__)

#: Regions: the BARs, the expansion ROM, the configuration space, VGA.
REGIONS = 9
#: VFIO_DEVICE_FLAGS_RESET and _PCI; VFIO_REGION_INFO_FLAG_READ and _WRITE.
DEVICE_FLAGS, READ_WRITE = 3, 3
#: What we say of ourselves, as far as the client knows of it.
CAPABILITIES: dict[str, int] = {
    "max_msg_fds": MAX_FDS,
    "max_data_xfer_size": MAX_TRANSFER,
    "max_dma_maps": MAX_REGIONS,
    "write_multiple": True,
}


class Stopped(VirtioError):
    """The server is to stop while it waits for its client."""


class Session:
    """Answers the client's commands, one after another, in the thread that made it.

    A client may hold a lock that its answers to our commands need until we have answered its own
    command. So the device looks at its queues when a command is answered, not before; and while
    such a look waits for an answer, commands are answered as ever.

    ``stopping``: when it is signalled, waiting for an answer ends with Stopped. ``vectors``: as for
    VirtioPci.
    """

    def __init__(
        self,
        device: Device,
        connection: Connection,
        stopping: EventFd,
        vectors: int | None = None,
    ) -> None:
        self.connection = connection
        self.stopping = stopping
        memory = GuestMemory()
        self.pci = VirtioPci(device, memory, vectors=vectors)
        self.core = device.core
        #: Signalled when another thread has given the device something to do.
        self.work = EventFd()
        self.core.work.claim(self.work.signal)
        if self.pci.msix is not None:
            # The client keeps the table: it unmasks by giving an eventfd.
            self.pci.msix.external = True
        self.irqs = Irqs(self.pci)
        self.dma = Dma(memory, self.call)
        device.make_queue = self._make_queue
        self.memory = ClientMemory(memory, self.pci, self.dma)
        self.greeted = False
        self.handlers: dict[int, Callable[[Message], bytes]] = {
            Command.VERSION: self._version,
            Command.DMA_MAP: self.memory.map,
            Command.DMA_UNMAP: self.memory.unmap,
            Command.DEVICE_GET_INFO: self._device_info,
            Command.DEVICE_GET_REGION_INFO: self._region_info,
            Command.DEVICE_GET_IRQ_INFO: self.irqs.info,
            Command.DEVICE_SET_IRQS: self._set_irqs,
            Command.REGION_READ: self._region_read,
            Command.REGION_WRITE: self._region_write,
            Command.REGION_WRITE_MULTI: self._region_write_multi,
            Command.DEVICE_RESET: self._reset,
        }
        self._poll = select.poll()
        self._poll.register(self.connection, select.POLLIN)
        self._poll.register(self.stopping, select.POLLIN)
        #: Commands of ours: the number of the last one, those that wait for an answer, answers that
        #: came while an inner one waits, and why there can be no more.
        self._last_id = 0
        self._asked: dict[int, Command] = {}
        self._answers: dict[int, Message] = {}
        self._over: VirtioError | None = None

    def close(self) -> None:
        """The client is gone: the device is reset and its memory given back."""
        self._over = self._over or Stopped("the client is gone")
        self.pci.close()
        self.core.work.claim(None)
        self.pci.device.make_queue = DeviceQueue
        self.irqs.close()
        self.memory.close()
        self.connection.close()
        self.work.close()

    def _make_queue(self, memory: GuestMemory, config: QueueConfig, **given: Any) -> DeviceQueue:
        queue = RemoteQueue(memory, **given)
        queue.dma = self.dma
        queue.configure(config)
        log.info(
            "queue %d (%s): %s, %d entries",
            config.index,
            config.name,
            "packed" if config.packed else "split",
            config.size,
        )
        return queue

    def _work(self) -> AbstractContextManager[None]:
        return self.core.work.later()

    def run_work(self) -> None:
        """Do what other threads have given the device to do."""
        self.work.clear()
        self._unless_closed(self.core.work.run)

    @staticmethod
    def _unless_closed(job: Callable[[], object]) -> None:
        try:
            job()
        except QueueClosed as error:
            # The driver took a queue away while a transfer of it was under way.
            log.debug("%s", error)

    # Messages.

    def handle(self) -> bool:
        """Take one command; False when the client has closed. ProtocolError ends the session."""
        message = self.connection.recv()
        if message is None:
            return False
        if message.is_reply:
            close_fds(message.fds)
            raise ProtocolError(f"{message}: an answer to nothing")
        self._unless_closed(lambda: self._take(message))
        return True

    def _take(self, message: Message) -> None:
        try:
            with self._work():
                self._answer(message)
        finally:
            close_fds(message.fds)

    def _answer(self, message: Message) -> None:
        if log.isEnabledFor(logging.DEBUG):
            log.debug("<- %s", in_words(message, self.pci))
        if self.greeted == (message.command == Command.VERSION):
            raise ProtocolError(f"{message}: VERSION comes once, and first")
        handler = self.handlers.get(message.command)
        try:
            if handler is None:
                raise Refused(errno.ENOTSUP, "not supported")
            payload = handler(message)
        except Refused as refusal:
            log.info("%s refused: %s", message, refusal)
            self.connection.refuse(message, refusal.errno)
            return
        if message.command == Command.REGION_READ and log.isEnabledFor(logging.DEBUG):
            log.debug("-> %s", number_in_words(payload[REGION_IO.size :]))
        self.connection.reply(message, payload)

    def call(self, command: Command, payload: bytes) -> bytes:
        """Send a command and wait for its answer, whose payload is returned.

        Refused when the client answers with an error. Meanwhile the client's commands are
        answered, which may need calls themselves: the client has several to answer then.
        ProtocolError when it answers something else, or not in time; after that, and after Stopped,
        every further call raises it again at once.
        """
        if self._over is not None:
            raise self._over
        self._last_id = number = (self._last_id + 1) & 0xFFFF
        self._asked[number] = command
        try:
            self.connection.command(number, command, payload)
            if log.isEnabledFor(logging.DEBUG):
                log.debug("-> %s", in_words(Message(0, command, 0, 0, payload), self.pci))
            while (answer := self._answers.pop(number, None)) is None:
                message = self._next()
                if message.is_reply:
                    self._keep(message)
                else:
                    self._unless_closed(functools.partial(self._take, message))
                if self._over is not None:
                    raise self._over
        except (VirtioError, ConnectionError) as error:
            self._over = error if isinstance(error, VirtioError) else ProtocolError(str(error))
            raise
        if answer.flags & ERROR:
            raise Refused(answer.error, f"the client answers with error {answer.error}")
        return answer.payload

    def _keep(self, message: Message) -> None:
        """An answer, for the call that waits for it."""
        close_fds(message.fds)
        log.debug("<- answer: %s", message)
        if self._asked.pop(message.id, None) != message.command:
            raise ProtocolError(f"{message}: an answer to nothing")
        self._answers[message.id] = message

    def _next(self) -> Message:
        ready = {fd for fd, _ in self._poll.poll(MESSAGE_TIME * 1000)}
        if self.stopping.fileno() in ready:
            raise Stopped("stopped while the client owes an answer")
        if not ready:
            raise ProtocolError("the client owes an answer")
        message = self.connection.recv()
        if message is None:
            raise ProtocolError("the client has closed and owes an answer")
        return message

    def _version(self, message: Message) -> bytes:
        major, minor = message.take(VERSION)
        if major != 0:
            raise ProtocolError(f"version {major}.{minor}, not 0")
        text = message.payload[VERSION.size :].rstrip(b"\0")
        try:
            offer = json.loads(text) if text else {}
            known = offer.get("capabilities", {}) if isinstance(offer, dict) else None
        except (ValueError, RecursionError):
            known = None
        if not isinstance(known, dict):
            raise ProtocolError("the version's data is no JSON object with capabilities")
        limit = known.get("max_data_xfer_size", MAX_TRANSFER)
        if not isinstance(limit, int) or limit < 1:
            raise ProtocolError(f"max_data_xfer_size {limit!r}")
        self.dma.limit = min(limit, MAX_TRANSFER)
        log.info("client speaks version %d.%d: %.200s", major, minor, known)
        self.greeted = True
        ours = {name: value for name, value in CAPABILITIES.items() if name in known}
        answer = json.dumps({"capabilities": ours}).encode() + b"\0"
        return VERSION.pack(0, min(minor, 1)) + answer

    # The function.

    def _device_info(self, message: Message) -> bytes:
        message.query(DEVICE_INFO)
        return DEVICE_INFO.pack(DEVICE_INFO.size, DEVICE_FLAGS, REGIONS, len(IrqIndex))

    def _size(self, region: int) -> int:
        if region == CONFIG_REGION:
            return CONFIG_SIZE
        bar = self.pci.bars.get(region)
        return bar.size if bar is not None else 0

    def _region_info(self, message: Message) -> bytes:
        index = message.query(REGION_INFO)[2]
        if index >= REGIONS:
            raise Refused(errno.EINVAL, f"region {index}")
        size = self._size(index)
        return REGION_INFO.pack(REGION_INFO.size, READ_WRITE if size else 0, index, 0, size, 0)

    def _set_irqs(self, message: Message) -> bytes:
        self.irqs.set(message)
        return b""

    @staticmethod
    def _widest(region: int) -> int:
        # A processor reaches configuration space by double words at most.
        return 4 if region == CONFIG_REGION else 8

    def _check_span(self, offset: int, region: int, count: int) -> None:
        size = self._size(region)
        if count > MAX_TRANSFER or offset > size or count > size - offset:
            raise Refused(errno.EINVAL, f"{count} bytes at {offset:#x} of region {region}")

    def _region_read(self, message: Message) -> bytes:
        offset, region, count = message.take(REGION_IO)
        self._check_span(offset, region, count)
        data = bytearray()
        for at, width in accesses(offset, count, self._widest(region)):
            if region == CONFIG_REGION:
                value = self.pci.read_config(at, width)
            else:
                value = self.pci.read_bar(region, at, width)
            data += value.to_bytes(width, "little")
        return REGION_IO.pack(offset, region, count) + data

    def _region_write(self, message: Message) -> bytes:
        offset, region, count = message.take(REGION_IO)
        self._check_span(offset, region, count)
        data = message.payload[REGION_IO.size :]
        if len(data) != count:
            raise Refused(errno.EINVAL, f"{len(data)} bytes, not {count}")
        self._write(offset, region, data)
        return REGION_IO.pack(offset, region, count)

    def _region_write_multi(self, message: Message) -> bytes:
        (writes,) = message.take(WRITE_MULTI)
        entries = message.payload[WRITE_MULTI.size :]
        if len(entries) != writes * WRITE_ENTRY.size:
            raise Refused(errno.EINVAL, f"{len(entries)} bytes for {writes} writes")
        for offset, region, count, data in WRITE_ENTRY.iter_unpack(entries):
            self._check_span(offset, region, count)
            if count > len(data):
                raise Refused(errno.EINVAL, f"{count} bytes in one of several writes")
            self._write(offset, region, data[:count])
        return WRITE_MULTI.pack(writes)

    def _write(self, offset: int, region: int, data: bytes) -> None:
        before = self.core.status
        for at, width in accesses(offset, len(data), self._widest(region)):
            value = int.from_bytes(data[at - offset : at - offset + width], "little")
            if region == CONFIG_REGION:
                self.pci.write_config(at, width, value)
            else:
                self.pci.write_bar(region, at, width, value)
        if Status.FEATURES_OK in self.core.status & ~before:
            bits = int(self.core.driver_features)
            words = features_in_words(bits, self.core.device_id)
            log.info("%s: the driver took %s", self.pci.name, words)

    def _reset(self, message: Message) -> bytes:
        self.pci.reset()
        if self.pci.msix is not None:
            self.pci.msix.external = True
        return b""


def accesses(offset: int, count: int, widest: int) -> list[tuple[int, int]]:
    """(offset, width) of the aligned accesses of a transfer, ``widest`` bytes at most."""
    parts = []
    end = offset + count
    while offset < end:
        width = widest
        while offset % width or offset + width > end:
            width //= 2
        parts.append((offset, width))
        offset += width
    return parts
