from libc.stdint cimport uint32_t, uint64_t

from virtring.memory.table cimport guest_table


cdef class MemoryTable:
    """An immutable snapshot; whoever holds it keeps every region in it mapped."""
    cdef guest_table table
    cdef tuple regions


cdef class GuestMemory:
    cdef MemoryTable snapshot           # replaced, never changed; take a reference to use it
    cdef char* host_of(self, uint64_t addr, uint64_t length, uint32_t perm) except NULL
    cdef uint64_t addr_of_host(self, const char* host, uint64_t length) except? 0xFFFFFFFFFFFFFFFF
