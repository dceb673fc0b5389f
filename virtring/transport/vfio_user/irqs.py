"""Interrupts of a vfio-user device: eventfds that the client gives and takes back."""

import errno
from collections.abc import Sequence
from enum import IntEnum, IntFlag

from virtring.errors import InvalidArgument
from virtring.queue import EventFd
from virtring.transport.pci_device import PciDevice
from virtring.transport.vfio_user.message import IRQ_INFO, IRQ_SET, Message, Refused


class IrqIndex(IntEnum):
    """VFIO_PCI_*_IRQ_INDEX."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERR = 3
    REQ = 4


class IrqFlag(IntFlag):
    """VFIO_IRQ_INFO_*."""

    EVENTFD = 1
    MASKABLE = 2
    AUTOMASKED = 4
    NORESIZE = 8


class IrqSet(IntFlag):
    """VFIO_IRQ_SET_*."""

    DATA_NONE = 1
    DATA_BOOL = 2
    DATA_EVENTFD = 4
    MASK = 8
    UNMASK = 16
    TRIGGER = 32


DATA = IrqSet.DATA_NONE | IrqSet.DATA_BOOL | IrqSet.DATA_EVENTFD
ACTIONS = IrqSet.MASK | IrqSet.UNMASK | IrqSet.TRIGGER


class Irqs:
    """INTx and MSI-X of one function.

    INTx is level-triggered here and automasked there: once signalled it is silent until the client
    unmasks it, and is signalled again then if the level is still high.
    """

    def __init__(self, pci: PciDevice) -> None:
        self.pci = pci
        self.events: dict[tuple[int, int], EventFd] = {}
        self.masked: set[tuple[int, int]] = set()
        pci.intx = self._intx
        pci.send_msix = self._msix

    def close(self) -> None:
        """Take all eventfds back."""
        self.pci.intx = lambda: None
        self.pci.send_msix = lambda vector: None
        for event in self.events.values():
            event.close()
        self.events.clear()
        self.masked.clear()

    def count(self, index: int) -> int:
        """Interrupts of that kind."""
        # ERR is never signalled: we have no errors to recover from, but clients miss it.
        if index in (IrqIndex.INTX, IrqIndex.ERR):
            return 1
        if index == IrqIndex.MSIX and self.pci.msix is not None:
            return self.pci.msix.vectors
        return 0

    def info(self, message: Message) -> bytes:
        """The answer to DEVICE_GET_IRQ_INFO."""
        _, _, index, _ = message.query(IRQ_INFO)
        if index >= len(IrqIndex):
            raise Refused(errno.EINVAL, f"interrupt index {index}")
        flags = IrqFlag.EVENTFD
        if index == IrqIndex.INTX:
            flags |= IrqFlag.MASKABLE | IrqFlag.AUTOMASKED
        else:
            flags |= IrqFlag.NORESIZE
        return IRQ_INFO.pack(IRQ_INFO.size, int(flags), index, self.count(index))

    def set(self, message: Message) -> None:
        """DEVICE_SET_IRQS."""
        argsz, bits, index, start, count = message.query(IRQ_SET)
        flags = IrqSet(bits & int(DATA | ACTIONS))
        if bits != flags or (flags & DATA).bit_count() != 1 or (flags & ACTIONS).bit_count() != 1:
            raise Refused(errno.EINVAL, f"flags {bits:#x}: it takes one kind of data, one action")
        if index >= len(IrqIndex) or start + count > self.count(index):
            raise Refused(errno.EINVAL, f"interrupts {start} to {start + count} of index {index}")
        wanted: Sequence[int] = range(start, start + count)
        if IrqSet.DATA_EVENTFD in flags:
            self._take_fds(flags, index, wanted, message)
            return
        if IrqSet.DATA_BOOL in flags:
            chosen = message.payload[IRQ_SET.size : min(argsz, IRQ_SET.size + count)]
            if len(chosen) != count:
                raise Refused(errno.EINVAL, f"{len(chosen)} booleans for {count} interrupts")
            wanted = [number for number, on in zip(wanted, chosen, strict=True) if on]
        elif not count:
            wanted = range(self.count(index))
            if IrqSet.TRIGGER in flags:
                self._assign(index, wanted, [])
                return
        self._act(flags, index, wanted)

    def _take_fds(self, flags: IrqSet, index: int, wanted: Sequence[int], message: Message) -> None:
        if IrqSet.TRIGGER not in flags:
            raise Refused(errno.EINVAL, "an eventfd to tell of masking: not supported")
        if len(message.fds) not in (0, len(wanted)):
            raise Refused(errno.EINVAL, f"{len(message.fds)} fds for {len(wanted)} interrupts")
        events: list[EventFd] = []
        try:
            for fd in message.fds:
                events.append(EventFd.from_fd(fd))
        except InvalidArgument as error:
            for event in events:
                event.close()
            raise Refused(errno.EINVAL, str(error)) from None
        self._assign(index, wanted, events)

    def _assign(self, index: int, wanted: Sequence[int], events: list[EventFd]) -> None:
        for position, number in enumerate(wanted):
            old = self.events.pop((index, number), None)
            if old is not None:
                old.close()
            self.masked.discard((index, number))
            if events:
                self.events[index, number] = events[position]
        if index == IrqIndex.INTX:
            self._intx()
        elif self.pci.msix is not None:
            self.pci.msix.flush()

    def _act(self, flags: IrqSet, index: int, wanted: Sequence[int]) -> None:
        for number in wanted:
            key = (index, number)
            if IrqSet.MASK in flags:
                self.masked.add(key)
            elif IrqSet.UNMASK in flags:
                self.masked.discard(key)
            elif IrqSet.TRIGGER in flags and key in self.events:
                self.events[key].signal()
        if IrqSet.UNMASK in flags and index == IrqIndex.INTX:
            self._intx()

    def _intx(self) -> None:
        key = (IrqIndex.INTX, 0)
        event = self.events.get(key)
        if event is not None and key not in self.masked and self.pci.intx_level:
            self.masked.add(key)
            event.signal()

    def _msix(self, vector: int) -> None:
        event = self.events.get((IrqIndex.MSIX, vector))
        if event is not None:
            event.signal()
