"""Guest addresses: which region stands where, with which rights, and what in it is allocated."""

import weakref

from cpython.buffer cimport (
    PyBUF_FULL_RO,
    PyBUF_SIMPLE,
    PyBuffer_IsContiguous,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memmove
from posix.unistd cimport getpid

from virtring.memory.region cimport Region
from virtring.memory.snapshot cimport MemoryTable, checked_entry
from virtring.memory.table cimport PERM_READ, PERM_WRITE, guest_lookup, guest_range

from virtring.errors import AddressError, InvalidArgument, MemoryInUse, NotSupported, QueueClosed
from virtring.memory.allocator import RangeAllocator
from virtring.memory.spans import PERM_NAMES, MemoryRegion, checked_span, perm_bits

cdef object DEFAULT_BASE = 0x10000


cdef int _span(object addr, object length, uint64_t* start, uint64_t* size) except -1:
    """What checked_span does; plain ints that are right take a short way."""
    if type(addr) is int and type(length) is int:
        try:
            start[0] = addr
            size[0] = length
        except OverflowError:
            size[0] = 0
        if size[0] and size[0] - 1 <= ~start[0]:
            return 0
    first, count = checked_span(addr, length)
    start[0] = first
    size[0] = count
    return 0


cdef class GuestMemory:
    """A map from guest addresses to regions, and an allocator over it.

    A range is looked up whole: it must lie in one entry of the map, with the rights asked for.
    Changes make a new :class:`MemoryTable`; who still uses the old one keeps its regions mapped.

    Only the object that built the map allocates: a copy made by pickling or by a fork has no way
    to know which blocks are taken, and its :meth:`alloc` raises NotSupported.
    """

    def __cinit__(self, *args, **kwargs):
        self.snapshot = MemoryTable()
        self.allocator = RangeAllocator()
        self.creator = getpid()

    def __init__(self):
        pass

    @classmethod
    def create(cls, size, *, base=DEFAULT_BASE, kind="memfd", hugepages=False) -> GuestMemory:
        """A memory of one new region of ``size`` bytes at guest address ``base``.

        ``kind`` is ``"memfd"`` (other processes can map it) or ``"anonymous"`` (a fork shares it).
        ``base`` is not 0 by default, so that address 0 is never valid. The region is unmapped when
        the memory is closed and the last view of it is gone.

        Raises what :meth:`Region.memfd` and :meth:`add_region` raise.
        """
        if kind == "memfd":
            region = Region.memfd(size, hugepages=hugepages)
        elif kind != "anonymous":
            raise InvalidArgument(f"kind is {kind!r}; it takes 'memfd' or 'anonymous'")
        elif hugepages:
            raise InvalidArgument("hugepages need kind='memfd'")
        else:
            region = Region.anonymous(size)
        memory = GuestMemory()
        memory.add_region(base, region)
        return memory

    # -- the map -------------------------------------------------------------------------------

    def add_region(self, guest_addr, region, *, offset=0, size=None, perm="rw") -> None:
        """Put ``size`` bytes at ``offset`` of ``region`` at ``guest_addr``.

        ``size=None`` means up to the region's end. ``perm`` is what the device side may do there;
        the allocator uses ``"rw"`` entries only. For aligned atomic access let ``guest_addr`` and
        the host address agree modulo the page size.

        Raises AddressError when the range is empty, reaches beyond 2**64 or the region, overlaps
        another entry or asks for rights the mapping has not; InvalidArgument for a wrong ``perm``
        or region; QueueClosed when the memory or region is closed.
        """
        self._check_open()
        if not isinstance(region, Region):
            raise InvalidArgument(f"{region!r} is not a Region")
        if size is None:
            size = region.size - checked_span(offset, 1)[0]
        entry = checked_entry(MemoryRegion(guest_addr, size, region, offset, perm))
        self.replace((*self.snapshot.entries, entry))
        if self.allocator is not None and perm == "rw":
            self.allocator.add_range(entry.guest_addr, entry.size)

    def remove_region(self, guest_addr, size=None) -> Region:
        """Take out the entry that begins at ``guest_addr``; the region, which stays mapped.

        Raises AddressError when no entry begins there (or has another size than ``size``),
        MemoryInUse while a block in it is allocated.
        """
        self._check_open()
        for entry in self.snapshot.entries:
            if entry.guest_addr == guest_addr and size in (None, entry.size):
                break
        else:
            raise AddressError(f"no region of size {size or 'any'} begins at {guest_addr!r}")
        if self.allocator is not None and entry.perm == "rw":
            self.allocator.remove_range(entry.guest_addr)
        self.replace([row for row in self.snapshot.entries if row is not entry])
        return entry.region

    @property
    def regions(self) -> list[MemoryRegion]:
        """The map's entries, sorted by guest address."""
        return list(self.snapshot.entries)

    # -- access --------------------------------------------------------------------------------

    def view(self, addr, length, *, writable=True) -> memoryview:
        """Zero-copy memoryview (format ``"B"``) of ``length`` bytes at ``addr``.

        It is read-only when the entry's rights lack ``"w"`` or ``writable`` is false. The region
        cannot be closed while it lives. Raises AddressError when the range is not in one entry.
        """
        cdef Region region
        cdef MemoryTable table
        cdef guest_range* r
        cdef Py_ssize_t i
        cdef uint64_t start, size
        cdef bint can_write
        _span(addr, length, &start, &size)
        i = self.locate(start, size, 0)
        table = self.snapshot
        r = &table.table.ranges[i]
        region = table.regions[i]
        can_write = bool(writable) and (r.perm & PERM_WRITE) != 0
        return region.part(r.host + (start - r.base), size, can_write)

    def translate(self, addr, length, perm="r") -> tuple:
        """(region, offset in it) of ``length`` bytes at ``addr``.

        Raises AddressError when the range is not in one entry with the rights ``perm``.
        """
        cdef guest_range* r
        cdef Region region
        cdef Py_ssize_t i
        cdef uint64_t start, size
        _span(addr, length, &start, &size)
        i = self.locate(start, size, perm_bits(perm))
        r = &self.snapshot.table.ranges[i]
        region = self.snapshot.regions[i]
        return region, (r.host - region.base) + <Py_ssize_t>(start - r.base)

    def address_of(self, buffer) -> tuple:
        """(guest address, length in bytes) of any contiguous buffer that lies inside the map.

        Memoryview slices and numpy arrays over a view of this memory, for example. Raises
        AddressError when it does not lie in one entry, is empty or not contiguous;
        InvalidArgument when it is no buffer.
        """
        cdef Py_buffer view
        cdef uint64_t addr
        cdef Py_ssize_t length
        try:
            PyObject_GetBuffer(buffer, &view, PyBUF_FULL_RO)
        except TypeError:
            raise InvalidArgument(f"{type(buffer).__name__} has no buffer protocol") from None
        try:
            if not PyBuffer_IsContiguous(&view, b"A"):
                raise AddressError("the buffer is not contiguous; pass its pieces one by one")
            length = view.len
            if length == 0:
                raise AddressError("the buffer is empty; it takes at least 1 byte")
            addr = self.addr_of_host(<const char*>view.buf, length)
        finally:
            PyBuffer_Release(&view)
        return addr, length

    def read(self, addr, length) -> bytes:
        """A copy of ``length`` bytes at ``addr``. Raises AddressError (rights: ``"r"``)."""
        cdef uint64_t start, size
        _span(addr, length, &start, &size)
        return PyBytes_FromStringAndSize(self.host_of(start, size, PERM_READ), size)

    def write(self, addr, data) -> None:
        """Copy the contiguous buffer ``data`` to ``addr``. Raises AddressError (right: ``"w"``)."""
        cdef Py_buffer view
        cdef uint64_t start, size
        try:
            PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        except (TypeError, BufferError, ValueError) as error:
            raise InvalidArgument(f"data is no contiguous buffer: {error}") from None
        try:
            _span(addr, view.len, &start, &size)
            memmove(self.host_of(start, size, PERM_WRITE), view.buf, view.len)
        finally:
            PyBuffer_Release(&view)

    def discard(self, addr, length) -> int:
        """Give the whole host pages in ``length`` bytes at ``addr`` back to the system.

        They read as zeros afterwards. Gives the number of bytes given back. Raises AddressError
        when the range is not in one entry with the right ``"w"``, and what
        :meth:`Region.discard` raises.
        """
        region, offset = self.translate(addr, length, "w")
        return region.discard(offset, length)

    def resolve(self, addr, length, perm="r") -> bool:
        """Ask for a translation that is missing; whether the whole range is mapped now.

        Guest addresses have nobody to ask, so here it is False;
        :class:`~virtring.memory.iotlb.IotlbMemory` asks its miss handler.
        """
        cdef uint64_t start, size
        _span(addr, length, &start, &size)
        return self.resolve_miss(start, size, perm_bits(perm)) != 0

    # -- allocation ----------------------------------------------------------------------------

    def alloc(self, size, align=16) -> int:
        """Guest address of ``size`` free bytes in one ``"rw"`` entry, a multiple of ``align``.

        Raises OutOfMemory when no gap is large enough, InvalidArgument for a wrong size or
        alignment, NotSupported in a process that did not build the map.
        """
        return self._allocator().alloc(size, align)

    def free(self, addr) -> None:
        """Give back what :meth:`alloc` returned. Raises InvalidArgument if it is not allocated."""
        self._allocator().free(addr)

    @property
    def allocated(self) -> int:
        """Bytes that are allocated. Raises NotSupported like :meth:`alloc`."""
        return self._allocator().allocated

    @property
    def available(self) -> int:
        """Bytes that are free, in however many pieces. Raises NotSupported like :meth:`alloc`."""
        return self._allocator().available

    cdef object _allocator(self):
        self._check_open()
        if self.allocator is None or self.creator != getpid():
            raise NotSupported(
                f"only process {self.creator}, which built this memory map, allocates from it;"
                " a copy does not know which blocks are taken"
            )
        return self.allocator

    # -- its life ------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of every region; each is unmapped with its last view. Again is fine.

        Raises MemoryInUse while a queue runs over the memory.
        """
        if self.closed:
            return
        if self.holds:
            raise MemoryInUse(f"{self.holds} queues run over the memory; close them first")
        self.replace(())
        self.closed = True

    def __enter__(self):
        self._check_open()
        return self

    def __exit__(self, kind, error, trace):
        # An exception on its way is not to be masked by queues that it left open.
        if kind is None or not self.holds:
            self.close()

    def __reduce__(self):
        self._check_open()
        return _unpickle, (self.creator, self.snapshot.entries)

    def __repr__(self):
        spans = ", ".join(
            [f"{row.guest_addr:#x}+{row.size:#x} {row.perm}" for row in self.snapshot.entries]
        )
        return f"<{type(self).__name__} {'closed' if self.closed else spans or 'empty'}>"

    # -- for the layers above ------------------------------------------------------------------

    cdef Py_ssize_t locate(self, uint64_t addr, uint64_t length, uint32_t perm) except -1:
        cdef const guest_range* r
        self._check_open()
        r = guest_lookup(&self.snapshot.table, addr, length, perm) if length else NULL
        if r == NULL and length and self.resolve_miss(addr, length, perm):
            r = guest_lookup(&self.snapshot.table, addr, length, perm)
        if r == NULL:
            rights = PERM_NAMES.get(perm, "any")
            raise AddressError(
                f"{length} bytes at {addr:#x} are not inside one region with rights {rights!r}"
            )
        return r - self.snapshot.table.ranges

    cdef char* host_of(self, uint64_t addr, uint64_t length, uint32_t perm) except NULL:
        cdef Py_ssize_t i = self.locate(addr, length, perm)
        cdef guest_range* r = &self.snapshot.table.ranges[i]
        return r.host + (addr - r.base)

    cdef uint64_t addr_of_host(self, const char* host, uint64_t length) except? 0xFFFFFFFFFFFFFFFF:
        cdef Py_ssize_t i = self.snapshot.find_host(host, length) if length else -1
        cdef guest_range* r
        if i < 0:
            self._check_open()
            raise AddressError(
                f"a buffer of {length} bytes does not lie inside one region of this memory;"
                " take it from view() or from a BufferPool over it"
            )
        r = &self.snapshot.table.ranges[i]
        return r.base + <uint64_t>(host - r.host)

    cdef int resolve_miss(self, uint64_t addr, uint64_t length, uint32_t perm) except -1:
        return 0

    cdef int follow(self, object follower) except -1:
        if self.followers is None:
            self.followers = weakref.WeakSet()
        self.followers.add(follower)
        return 0

    cdef int replace(self, object entries) except -1:
        self.snapshot = MemoryTable(entries)
        if self.followers is not None:
            for follower in list(self.followers):
                follower.backing_changed()
        return 0

    cdef int hold(self) except -1:
        self._check_open()
        self.holds += 1
        return 0

    cdef void release(self) noexcept:
        self.holds -= 1

    cdef int _check_open(self) except -1:
        if self.closed:
            raise QueueClosed("the guest memory is closed")
        return 0


def _unpickle(creator, entries):
    cdef GuestMemory memory = GuestMemory()
    memory.replace(entries)
    memory.allocator = None
    memory.creator = creator
    return memory
