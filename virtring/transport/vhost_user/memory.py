"""The front end's memory as the back end maps it: regions that come as descriptors, and go."""

import os
from dataclasses import dataclass

from virtring.errors import MemoryInUse, VirtioError
from virtring.memory import GuestMemory, Region
from virtring.transport.unix import ProtocolError

#: Regions we take (the answer to GET_MAX_MEM_SLOTS).
MAX_SLOTS = 128


@dataclass(frozen=True)
class Slot:
    """Where a region lies: for the guest, for the front end, in its file. Bytes."""

    guest_addr: int
    size: int
    user_addr: int
    mmap_offset: int

    def check(self) -> None:
        """ProtocolError for numbers that cannot be."""
        if self.size <= 0:
            raise ProtocolError("a memory region without a size")
        for start in (self.guest_addr, self.user_addr, self.mmap_offset):
            if start + self.size > 1 << 64:
                raise ProtocolError(f"a memory region of {self.size:#x} bytes at {start:#x}")


def same_file(fd: int, other: int) -> bool:
    """Do two descriptors mean the same memory?"""
    a, b = os.fstat(fd), os.fstat(other)
    return (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)


class FrontEndMemory:
    """A GuestMemory that follows the front end's memory messages."""

    def __init__(self) -> None:
        self.memory = GuestMemory()
        self.slots: dict[Slot, Region] = {}
        # No longer in the map, but a queue or a chain may still look at them.
        self._removed: list[Region] = []

    def add(self, slot: Slot, fd: int) -> None:
        """Map a region; ``fd`` stays the caller's. ProtocolError when that cannot be."""
        slot.check()
        if len(self.slots) >= MAX_SLOTS:
            raise ProtocolError(f"more than {MAX_SLOTS} memory regions")
        for other in self.slots:
            if slot.user_addr < other.user_addr + other.size and (
                other.user_addr < slot.user_addr + slot.size
            ):
                raise ProtocolError("memory regions overlap in the front end's addresses")
        page = os.sysconf("SC_PAGESIZE")
        lead = slot.mmap_offset % page
        try:
            if os.fstat(fd).st_size < slot.mmap_offset + slot.size:
                raise ProtocolError(
                    f"a memory region of {slot.size:#x} bytes at {slot.mmap_offset:#x} of a file"
                    f" of {os.fstat(fd).st_size:#x}"
                )
            region = Region.from_fd(fd, slot.size + lead, slot.mmap_offset - lead)
        except (OSError, OverflowError, VirtioError) as error:
            raise ProtocolError(f"a memory region cannot be mapped: {error}") from error
        try:
            self.memory.add_region(slot.guest_addr, region, offset=lead, size=slot.size)
        except VirtioError as error:
            region.close()
            raise ProtocolError(f"a memory region cannot be added: {error}") from error
        self.slots[slot] = region

    def remove(self, slot: Slot) -> None:
        """Take a region out of the map. A ring that lies in it still can; buffers cannot."""
        region = self.slots.get(slot)
        if region is None:
            raise ProtocolError(f"no memory region at {slot.guest_addr:#x}")
        self.memory.remove_region(slot.guest_addr, slot.size)
        del self.slots[slot]
        self._removed.append(region)

    def unmap_removed(self) -> None:
        """Unmap what was removed and nobody looks at any more; the rest is tried again later."""
        removed, self._removed = self._removed, []
        for region in removed:
            try:
                region.close()
            except MemoryInUse:
                self._removed.append(region)

    def find(self, guest_addr: int, size: int, user_addr: int) -> Slot:
        """The slot of that place; what REM_MEM_REG says of the file does not count."""
        for slot in self.slots:
            if (slot.guest_addr, slot.size, slot.user_addr) == (guest_addr, size, user_addr):
                return slot
        raise ProtocolError(f"no memory region of {size:#x} bytes at {guest_addr:#x}")

    def replace(self, wanted: list[tuple[Slot, int]]) -> None:
        """Make the regions ``wanted``; those that are there already stay mapped."""
        kept = {
            slot for slot, fd in wanted if slot in self.slots and same_file(fd, self.slots[slot].fd)
        }
        for slot in list(self.slots):
            if slot not in kept:
                self.remove(slot)
        for slot, fd in wanted:
            if slot not in kept:
                self.add(slot, fd)

    def clear(self) -> None:
        """Unmap everything."""
        self.replace([])
        self.unmap_removed()

    def guest_address(self, user_addr: int) -> int:
        """The guest address behind a front-end address, such as a ring's."""
        for slot in self.slots:
            if slot.user_addr <= user_addr < slot.user_addr + slot.size:
                return slot.guest_addr + user_addr - slot.user_addr
        raise ProtocolError(f"address {user_addr:#x} is in no memory region")
