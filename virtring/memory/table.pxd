"""The sorted table of guest ranges that turns an address and a length into a checked pointer.

Plain C, so that the ring engine can use it without Python. A table never changes while anybody
holds it: :class:`virtring.memory.guest.GuestMemory` makes a new one for each change.
"""

from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    PERM_READ = 1
    PERM_WRITE = 2
    PERM_RW = 3

ctypedef struct guest_range:
    uint64_t base       # first guest address
    uint64_t size       # bytes, never 0; base + size does not overflow
    char* host          # where base is mapped in this process
    uint32_t perm       # PERM_READ | PERM_WRITE, as the device side may access it

ctypedef struct guest_table:
    guest_range* ranges     # sorted by base, not overlapping
    size_t n


cdef inline const guest_range* guest_lookup(
    const guest_table* table, uint64_t addr, uint64_t length, uint32_t perm
) noexcept nogil:
    """The range that holds all of [addr, addr + length) with the rights asked for, or NULL.

    Written so that no sum of peer-given numbers is ever formed: nothing can overflow.
    """
    cdef size_t low = 0
    cdef size_t high = table.n
    cdef size_t mid
    cdef const guest_range* r
    while low < high:
        mid = (low + high) >> 1
        if table.ranges[mid].base <= addr:
            low = mid + 1
        else:
            high = mid
    if low == 0:
        return NULL
    r = &table.ranges[low - 1]
    if addr - r.base >= r.size or length > r.size - (addr - r.base):
        return NULL
    if (r.perm & perm) != perm:
        return NULL
    return r
