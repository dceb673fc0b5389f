"""The vfio-user server: a PCI function of ours in the machine of another process, such as QEMU."""

import errno
import json
import logging
import selectors
import socket
from collections.abc import Callable
from contextlib import suppress

from virtring.device import Device
from virtring.errors import MemoryInUse, VirtioError
from virtring.memory import GuestMemory, Region
from virtring.queue import QueueConfig
from virtring.queue.config import avail_bytes, desc_bytes, used_bytes
from virtring.transport.pci_device import CONFIG_SIZE
from virtring.transport.unix import ProtocolError, SocketServer, close_fds
from virtring.transport.vfio_user.irqs import IrqIndex, Irqs, Refused
from virtring.transport.vfio_user.message import (
    DEVICE_INFO,
    DMA_MAP,
    DMA_UNMAP,
    MAX_FDS,
    MAX_TRANSFER,
    REGION_INFO,
    REGION_IO,
    VERSION,
    Command,
    Connection,
    Message,
)
from virtring.transport.virtio_pci import VirtioPci

log = logging.getLogger(__name__)

#: Regions: the BARs, the expansion ROM, the configuration space, VGA.
CONFIG_REGION, REGIONS = 7, 9
#: VFIO_DEVICE_FLAGS_RESET and _PCI; VFIO_REGION_INFO_FLAG_READ and _WRITE.
DEVICE_FLAGS, READ_WRITE = 3, 3
#: VFIO_USER_F_DMA_REGION_*.
DMA_READABLE, DMA_WRITABLE = 1, 2


class VfioUserServer(SocketServer):
    """``device`` as a PCI function behind a socket; :meth:`run` serves until :meth:`stop`.

    Every client finds the device anew. path: of the socket, made here and removed by close().
    """

    def __init__(self, device: Device, path: str) -> None:
        super().__init__(path)
        self.device = device

    def serve(self, sock: socket.socket) -> bool:
        session = Session(self.device, Connection(sock))
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(session.connection, selectors.EVENT_READ)
                selector.register(self.stopping, selectors.EVENT_READ)
                while True:
                    ready = {key.fileobj for key, _ in selector.select()}
                    if self.stopping in ready:
                        return False
                    if not session.handle():
                        return True
        finally:
            session.close()


class Session:
    """One client: its memory, its interrupts, and the function it sees."""

    def __init__(self, device: Device, connection: Connection) -> None:
        self.connection = connection
        self.memory = GuestMemory()
        self.pci = VirtioPci(device, self.memory)
        if self.pci.msix is not None:
            # The client keeps the table: it unmasks by giving an eventfd.
            self.pci.msix.external = True
        self.irqs = Irqs(self.pci)
        #: DMA regions by address: size, and the mapping, None where no descriptor came.
        self.regions: dict[int, tuple[int, Region | None]] = {}
        #: Queues whose ring is not mapped just now, and where they had got to.
        self.lost: dict[int, tuple[QueueConfig, int]] = {}
        self.greeted = False
        self.handlers: dict[int, Callable[[Message], bytes]] = {
            Command.VERSION: self._version,
            Command.DMA_MAP: self._dma_map,
            Command.DMA_UNMAP: self._dma_unmap,
            Command.DEVICE_GET_INFO: self._device_info,
            Command.DEVICE_GET_REGION_INFO: self._region_info,
            Command.DEVICE_GET_IRQ_INFO: self.irqs.info,
            Command.DEVICE_SET_IRQS: self._set_irqs,
            Command.REGION_READ: self._region_read,
            Command.REGION_WRITE: self._region_write,
            Command.DEVICE_RESET: self._reset,
        }

    def close(self) -> None:
        """The client is gone: the device is reset and its memory given back."""
        self.pci.close()
        self.irqs.close()
        for addr in list(self.regions):
            self._forget(addr)
        self.connection.close()
        self.memory.close()

    def handle(self) -> bool:
        """Take one message; False when the client has closed. ProtocolError ends the session."""
        message = self.connection.recv()
        if message is None:
            return False
        try:
            log.debug("%s", message)
            self._answer(message)
        finally:
            close_fds(message.fds)
        return True

    def _answer(self, message: Message) -> None:
        if message.is_reply:
            raise ProtocolError(f"{message}: an answer to nothing")
        if self.greeted == (message.command == Command.VERSION):
            raise ProtocolError(f"{message}: VERSION comes once, and first")
        handler = self.handlers.get(message.command)
        try:
            if handler is None:
                raise Refused(errno.ENOTSUP, "not supported")
            payload = handler(message)
        except Refused as refusal:
            log.info("%s: %s", message, refusal)
            self.connection.refuse(message, refusal.errno)
            return
        self.connection.reply(message, payload)

    def _version(self, message: Message) -> bytes:
        major, minor = message.take(VERSION)
        if major != 0:
            raise ProtocolError(f"version {major}.{minor}, not 0")
        text = message.payload[VERSION.size :].rstrip(b"\0")
        try:
            offer = json.loads(text) if text else {}
        except ValueError:
            raise ProtocolError("the capabilities are no JSON") from None
        log.info("client speaks version %d.%d: %s", major, minor, offer)
        self.greeted = True
        ours = {"max_msg_fds": MAX_FDS, "max_data_xfer_size": MAX_TRANSFER}
        answer = json.dumps({"capabilities": ours}).encode() + b"\0"
        return VERSION.pack(0, min(minor, 1)) + answer

    # Memory.

    def _dma_map(self, message: Message) -> bytes:
        _, flags, offset, addr, size = message.take(DMA_MAP)
        if not size or addr + size > 1 << 64 or len(message.fds) > 1:
            raise Refused(errno.EINVAL, f"{size:#x} bytes at {addr:#x}, {len(message.fds)} fds")
        for other, (length, _) in self.regions.items():
            if addr < other + length and other < addr + size:
                raise Refused(errno.EEXIST, f"{addr:#x} is mapped already")
        region = None
        if message.fds and flags & DMA_READABLE:
            writable = bool(flags & DMA_WRITABLE)
            try:
                region = Region.from_fd(message.fds[0], size, offset, writable=writable)
            except (VirtioError, OSError) as error:
                raise Refused(errno.EINVAL, str(error)) from error
            try:
                self.memory.add_region(addr, region, perm="rw" if writable else "r")
            except VirtioError as error:
                region.close()
                raise Refused(errno.EINVAL, str(error)) from error
        self.regions[addr] = (size, region)
        self._find_lost()
        return b""

    def _dma_unmap(self, message: Message) -> bytes:
        _, _, addr, size = message.take(DMA_UNMAP)
        if addr not in self.regions or self.regions[addr][0] != size:
            raise Refused(errno.ENOENT, f"{size:#x} bytes at {addr:#x} are not mapped")
        self._forget(addr)
        return message.payload[: DMA_UNMAP.size]

    def _forget(self, addr: int) -> None:
        size, region = self.regions.pop(addr)
        if region is None:
            return
        for index, queue in enumerate(self.pci.device.queues):
            # Maps are cut up anew while a machine starts: the ring may be back in a moment.
            if queue is not None and lies_in(queue.config, addr, size):
                self.lost[index] = queue.config, self.pci.device.stop_queue(index)
        self.memory.remove_region(addr, size)
        self.pci.device.memory_changed()
        with suppress(MemoryInUse):
            # A chain that is held keeps it mapped until it is returned.
            region.close()

    def _find_lost(self) -> None:
        """Go on with queues whose ring is mapped again."""
        device = self.pci.device
        for index, (config, position) in list(self.lost.items()):
            if device.queues[index] is not None or not device.core.queue_configs[index].enabled:
                # Reset, or set up anew, by the driver.
                del self.lost[index]
                continue
            try:
                device.start_queue(index, config, position)
            except VirtioError:
                continue
            del self.lost[index]
            device.core.wake(index)

    # The function.

    def _device_info(self, message: Message) -> bytes:
        message.take(DEVICE_INFO)
        return DEVICE_INFO.pack(DEVICE_INFO.size, DEVICE_FLAGS, REGIONS, len(IrqIndex))

    def _size(self, region: int) -> int:
        if region == CONFIG_REGION:
            return CONFIG_SIZE
        bar = self.pci.bars.get(region)
        return bar.size if bar is not None else 0

    def _region_info(self, message: Message) -> bytes:
        _, _, index, _, _, _ = message.take(REGION_INFO)
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

    def _span(self, message: Message) -> tuple[int, int, int]:
        offset, region, count = message.take(REGION_IO)
        size = self._size(region)
        if count > MAX_TRANSFER or offset > size or count > size - offset:
            raise Refused(errno.EINVAL, f"{count} bytes at {offset:#x} of region {region}")
        return offset, region, count

    def _region_read(self, message: Message) -> bytes:
        offset, region, count = self._span(message)
        data = bytearray()
        for at, width in accesses(offset, count, self._widest(region)):
            if region == CONFIG_REGION:
                value = self.pci.read_config(at, width)
            else:
                value = self.pci.read_bar(region, at, width)
            data += value.to_bytes(width, "little")
        return REGION_IO.pack(offset, region, count) + data

    def _region_write(self, message: Message) -> bytes:
        offset, region, count = self._span(message)
        data = message.payload[REGION_IO.size :]
        if len(data) != count:
            raise Refused(errno.EINVAL, f"{len(data)} bytes, not {count}")
        for at, width in accesses(offset, count, self._widest(region)):
            value = int.from_bytes(data[at - offset : at - offset + width], "little")
            if region == CONFIG_REGION:
                self.pci.write_config(at, width, value)
            else:
                self.pci.write_bar(region, at, width, value)
        return REGION_IO.pack(offset, region, count)

    def _reset(self, message: Message) -> bytes:
        self.pci.reset()
        if self.pci.msix is not None:
            self.pci.msix.external = True
        return b""


def lies_in(config: QueueConfig, addr: int, size: int) -> bool:
    """Is any part of the ring in these ``size`` bytes at ``addr``?"""
    areas = (
        (config.desc, desc_bytes(config.size)),
        (config.avail, avail_bytes(config.size, config.packed)),
        (config.used, used_bytes(config.size, config.packed)),
    )
    return any(start < addr + size and addr < start + length for start, length in areas)


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
