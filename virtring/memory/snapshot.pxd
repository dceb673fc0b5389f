from libc.stdint cimport uint64_t

from virtring.memory.table cimport guest_table


cdef object checked_entry(object entry)     # a MemoryRegion whose numbers all fit, or an exception


cdef class MemoryTable:
    """An immutable snapshot; whoever holds it keeps every region in it mapped."""
    cdef guest_table table
    cdef tuple regions                  # the Region of each range
    cdef readonly tuple entries         # the MemoryRegion of each range
    cdef Py_ssize_t held                # how many of regions hold() was called on
    cdef Py_ssize_t find_host(self, const char* host, uint64_t length) noexcept
