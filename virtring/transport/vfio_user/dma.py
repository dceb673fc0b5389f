"""Client memory that no descriptor came for: fetched and stored by DMA_READ and DMA_WRITE."""

from bisect import bisect_right, insort
from collections.abc import Callable, Iterator

from virtring.errors import AddressError, QueueBroken
from virtring.memory import GuestMemory, Region
from virtring.transport.unix import ProtocolError
from virtring.transport.vfio_user.message import DMA_IO, MAX_TRANSFER, Command, Refused


class Dma:
    """Keeps shadows of such memory and brings single ranges of them up to date, either way.

    A shadow is mapped in ``memory`` like memory that is shared; whoever reads it fetches first,
    whoever has written it stores afterwards. Ranges that lie elsewhere are left alone.
    ``call(command, payload)`` sends a command and gives the payload of its answer; the client's
    own commands are answered while it waits. ``limit``: most bytes of one transfer.
    """

    def __init__(self, memory: GuestMemory, call: Callable[[Command, bytes], bytes]) -> None:
        self.memory = memory
        self.call = call
        self.limit = MAX_TRANSFER
        self._all: list[tuple[int, int, bool]] = []
        #: Is there such memory that the device may write? Read-only memory alone holds no ring.
        self.active = False
        #: How often a region was taken away.
        self.removals = 0

    def add(self, addr: int, size: int, writable: bool) -> None:
        """``size`` bytes at ``addr`` have a shadow now."""
        insort(self._all, (addr, addr + size, writable))
        self.active = any(row[2] for row in self._all)

    def remove(self, addr: int) -> None:
        """The region that begins there is gone, and its shadow, if it had one."""
        self.removals += 1
        self._all = [row for row in self._all if row[0] != addr]
        self.active = any(row[2] for row in self._all)

    def covers(self, addr: int, size: int) -> bool:
        """Do these bytes lie in one shadow?"""
        place = bisect_right(self._all, addr, key=lambda row: row[0]) - 1
        return place >= 0 and addr + size <= self._all[place][1]

    def _pieces(self, addr: int, size: int) -> Iterator[tuple[int, int]]:
        for start in range(addr, addr + size, self.limit):
            yield start, min(self.limit, addr + size - start)

    def fetch(self, addr: int, size: int) -> None:
        """Bring the client's bytes into the shadow.

        QueueBroken when the client refuses, or nothing is mapped there.
        """
        if not size:
            return
        if not self.covers(addr, size):
            self._mapped(addr, size)
            return
        for start, length in self._pieces(addr, size):
            data = self._ask(Command.DMA_READ, start, length)
            if len(data) != length:
                raise ProtocolError(f"DMA_READ of {length} bytes brought {len(data)}")
            self._shadow(start, length)[:] = data

    def store(self, addr: int, size: int) -> None:
        """Bring the shadow's bytes to the client. QueueBroken when the client refuses."""
        if size and self.covers(addr, size):
            self.put(addr, self._shadow(addr, size))

    def put(self, addr: int, data: bytes | memoryview) -> None:
        """Bring these bytes to the client, not to the shadow. As :meth:`store`."""
        if self.covers(addr, len(data)):
            # A copy: the region may go meanwhile.
            data = bytes(data)
            for start, length in self._pieces(addr, len(data)):
                part = data[start - addr : start - addr + length]
                self._ask(Command.DMA_WRITE, start, length, part)

    def _mapped(self, addr: int, size: int) -> tuple[Region, int]:
        try:
            return self.memory.translate(addr, size)
        except AddressError as error:
            raise QueueBroken(f"taken away during a transfer: {error}") from None

    def _shadow(self, addr: int, size: int) -> memoryview:
        # Past the rights of the map: it is the device that may not write read-only memory.
        region, offset = self._mapped(addr, size)
        return memoryview(region)[offset : offset + size]

    def _ask(self, command: Command, addr: int, size: int, data: bytes = b"") -> bytes:
        try:
            answer = self.call(command, DMA_IO.pack(addr, size) + data)
        except Refused as refusal:
            raise QueueBroken(f"{command.name} of {size} bytes at {addr:#x}: {refusal}") from None
        # The count of a DMA_WRITE's answer has 4 bytes in some descriptions of the protocol.
        if len(answer) < 12 or answer[:12] != DMA_IO.pack(addr, size)[:12]:
            raise ProtocolError(f"the answer to {command.name} is about other memory")
        return answer[DMA_IO.size :]
