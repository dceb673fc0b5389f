"""I/O virtual addresses in front of a guest memory (ACCESS_PLATFORM, virtio 1.4, 6)."""

from libc.stdint cimport uint32_t, uint64_t

from virtring.memory.guest cimport GuestMemory
from virtring.memory.table cimport guest_lookup

from virtring.errors import AddressError, InvalidArgument, NotSupported
from virtring.memory.spans import PERM_NAMES, MemoryRegion, checked_span, perm_bits


cdef class IotlbMemory(GuestMemory):
    """A cache of translations from I/O virtual ranges to ranges of a ``backing`` guest memory.

    A lookup that finds nothing calls ``miss(addr, size, perm)``, whose business is to call
    :meth:`map` (at least for ``addr``); what it returns is ignored, what it raises comes out of
    the access. Neighbouring translations that are neighbours in the backing too count as one
    range, so a buffer may cross page borders. When the backing loses a region, its translations go.

    ``view()`` and ``read()`` ask for ``"r"``; before a writable view call ``resolve(.., "rw")``.

    The map changes by :meth:`map` and :meth:`unmap` only; there is nothing to allocate from.
    Raises InvalidArgument when ``backing`` is no plain GuestMemory or ``miss`` cannot be called.
    """

    cdef readonly GuestMemory backing
    cdef readonly object miss
    cdef list maps              # (iova, size, guest_addr, perm bits), sorted, disjoint, merged

    def __init__(self, backing, miss):
        if not isinstance(backing, GuestMemory) or isinstance(backing, IotlbMemory):
            raise InvalidArgument(f"backing is {backing!r}; it takes a GuestMemory")
        if not callable(miss):
            raise InvalidArgument(f"miss is {miss!r}; it takes a callable (addr, size, perm)")
        self.backing = backing
        self.miss = miss
        self.maps = []
        self.allocator = None
        (<GuestMemory>backing)._check_open()
        (<GuestMemory>backing).follow(self)

    def map(self, iova, size, guest_addr, perm="rw") -> None:
        """Translate ``size`` bytes at ``iova`` to ``guest_addr`` of the backing, with ``perm``.

        Takes the place of translations that were there. Raises AddressError when a range is empty
        or reaches beyond 2**64, or when the backing has it not in one region with these rights;
        InvalidArgument for a wrong ``perm``.
        """
        self._check_open()
        start, length = checked_span(iova, size)
        target, _ = checked_span(guest_addr, size)
        bits = perm_bits(perm)
        if self._entry(start, length, target, bits) is None:
            raise AddressError(
                f"the backing has no {length} bytes at {target:#x} in one region with rights"
                f" {perm!r}"
            )
        self._install([*_without(self.maps, start, length), (start, length, target, bits)])

    def unmap(self, iova, size) -> None:
        """Forget every translation inside the range; what sticks out on either side stays.

        Raises AddressError when the range is empty or reaches beyond 2**64.
        """
        self._check_open()
        start, length = checked_span(iova, size)
        self._install(_without(self.maps, start, length))

    def backing_changed(self) -> None:
        """Drop the translations whose backing is gone (the backing calls this)."""
        if not self.closed:
            self._install([row for row in self.maps if self._entry(*row) is not None])

    def add_region(self, guest_addr, region, *, offset=0, size=None, perm="rw") -> None:
        """Raises NotSupported: the map of an IotlbMemory changes by :meth:`map`."""
        raise NotSupported("an IotlbMemory takes translations: call map(), or change its backing")

    def remove_region(self, guest_addr, size=None):
        """Raises NotSupported: the map of an IotlbMemory changes by :meth:`unmap`."""
        raise NotSupported("an IotlbMemory takes translations: call unmap(), or change its backing")

    def __reduce__(self):
        raise NotSupported("an IotlbMemory is not pickled: its miss handler belongs to one process")

    cdef object _allocator(self):
        raise NotSupported("an IotlbMemory has nothing to allocate; allocate from its backing")

    cdef int resolve_miss(self, uint64_t addr, uint64_t length, uint32_t perm) except -1:
        """Ask for the first hole of the range until there is none, or asking does not help."""
        cdef uint64_t here
        hole = self._first_hole(addr, length, perm)
        while hole is not None:
            here = hole
            self.miss(hole, length - (here - addr), PERM_NAMES.get(perm, "r"))
            self._check_open()
            hole = self._first_hole(addr, length, perm)
            if hole is not None and hole <= here:
                return 0
        return guest_lookup(&self.snapshot.table, addr, length, perm) != NULL

    def _first_hole(self, start, size, bits):
        """First address of the range that has no translation with these rights, or None."""
        for iova, length, _, allowed in self.maps:
            if iova <= start < iova + length and (allowed & bits) == bits:
                size -= iova + length - start
                start = iova + length
                if size <= 0:
                    return None
        return start

    def _entry(self, iova, size, guest_addr, bits):
        """The row as a MemoryRegion, or None when the backing has it not."""
        try:
            region, offset = self.backing.translate(guest_addr, size, PERM_NAMES[bits])
        except AddressError:
            return None
        return MemoryRegion(iova, size, region, offset, PERM_NAMES[bits])

    def _install(self, rows):
        maps = _merged(sorted(rows), self)
        self.replace([self._entry(*row) for row in maps])
        self.maps = maps


def _without(rows, start, size):
    """The rows with [start, start + size) cut out."""
    end = start + size
    left = []
    for iova, length, target, bits in rows:
        stop = iova + length
        if stop <= start or end <= iova:
            left.append((iova, length, target, bits))
            continue
        if iova < start:
            left.append((iova, start - iova, target, bits))
        if end < stop:
            left.append((end, stop - end, target + (end - iova), bits))
    return left


def _merged(rows, owner):
    """Sorted rows, with neighbours joined that are neighbours in one region of the backing too."""
    joined = []
    last = None
    for row in rows:
        if last is not None:
            iova, length, target, bits = last
            both = (iova, length + row[1], target, bits)
            if (
                (iova + length, target + length, bits) == (row[0], row[2], row[3])
                and owner._entry(*both) is not None
            ):
                last = both
                continue
            joined.append(last)
        last = row
    if last is not None:
        joined.append(last)
    return joined
