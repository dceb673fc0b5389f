"""One immutable state of a guest memory map: the checked rows and the C table over them."""

cimport cython
from libc.stdint cimport uint64_t, uintptr_t
from libc.stdlib cimport calloc, free

from virtring.memory.region cimport Region
from virtring.memory.table cimport PERM_WRITE, guest_range

from virtring.errors import AddressError, InvalidArgument, NotSupported, OutOfMemory
from virtring.memory.spans import MemoryRegion, checked_span, perm_bits


cdef object checked_entry(object entry):
    """A MemoryRegion whose numbers all fit; AddressError or InvalidArgument otherwise."""
    cdef Region region
    if not isinstance(entry, MemoryRegion):
        raise InvalidArgument(f"{entry!r} is not a MemoryRegion")
    if not isinstance(entry.region, Region):
        raise InvalidArgument(f"{entry.region!r} is not a Region")
    region = entry.region
    region._check_open()
    start, size = checked_span(entry.guest_addr, entry.size)
    offset, _ = checked_span(entry.offset, 1)
    if offset > region.size or size > region.size - offset:
        raise AddressError(
            f"{size} bytes at offset {offset:#x} are not inside the region of {region.size} bytes"
        )
    bits = perm_bits(entry.perm)
    if bits & PERM_WRITE and not region.writable:
        raise AddressError(f"perm is {entry.perm!r}, but the region is mapped read-only")
    return MemoryRegion(start, size, region, offset, entry.perm)


@cython.no_gc_clear
@cython.final
cdef class MemoryTable:
    """One state of a guest memory map. It never changes, and keeps its regions mapped.

    ``entries`` is a tuple of :class:`~virtring.memory.spans.MemoryRegion`, sorted by guest address.
    Raises AddressError when two overlap or one is not inside its region.
    """

    def __cinit__(self, entries=()):
        cdef Region region
        cdef guest_range* r
        cdef Py_ssize_t i
        rows = sorted([checked_entry(entry) for entry in entries], key=lambda row: row.guest_addr)
        self.regions = ()
        self.entries = tuple(rows)
        for i in range(1, len(rows)):
            before, after = rows[i - 1], rows[i]
            if before.guest_addr + before.size > after.guest_addr:
                raise AddressError(
                    f"{after.size} bytes at {after.guest_addr:#x} overlap the {before.size} bytes"
                    f" at {before.guest_addr:#x}"
                )
        self.table.ranges = <guest_range*>calloc(len(rows) or 1, sizeof(guest_range))
        if self.table.ranges == NULL:
            raise OutOfMemory("no memory for the table of guest ranges")
        self.regions = tuple([row.region for row in rows])
        for i in range(len(rows)):
            region = self.regions[i]
            region.hold()
            self.held += 1
            r = &self.table.ranges[i]
            r.base = rows[i].guest_addr
            r.size = rows[i].size
            r.host = region.base + <size_t>rows[i].offset
            r.perm = perm_bits(rows[i].perm)
        self.table.n = len(rows)

    def __dealloc__(self):
        cdef Py_ssize_t i
        for i in range(self.held):
            (<Region>self.regions[i]).release()
        free(self.table.ranges)

    def __len__(self):
        return self.table.n

    def __reduce__(self):
        raise NotSupported("a MemoryTable is not pickled; pickle its GuestMemory")

    cdef Py_ssize_t find_host(self, const char* host, uint64_t length) noexcept:
        """Position of the range that has the host range whole, or -1."""
        cdef uintptr_t want = <uintptr_t>host
        cdef uintptr_t start
        cdef size_t i
        for i in range(self.table.n):
            start = <uintptr_t>self.table.ranges[i].host
            if want >= start and want - start < self.table.ranges[i].size:
                if length <= self.table.ranges[i].size - (want - start):
                    return i
        return -1
