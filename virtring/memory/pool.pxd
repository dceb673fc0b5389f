from libc.stdint cimport uint32_t, uint64_t

from virtring.memory.guest cimport GuestMemory, MemoryTable


cdef class Block:
    """One allocation of guest memory; freed with the last thing that points into it."""
    cdef readonly uint64_t addr
    cdef readonly size_t size
    cdef char* host
    cdef GuestMemory memory
    cdef MemoryTable snapshot           # keeps the mapping


cdef class Buffer:
    cdef readonly uint64_t addr         # guest address
    cdef char* host
    cdef readonly uint32_t size         # bytes
    cdef uint32_t used                  # what Python sees as len: bytes in use, <= size
    cdef readonly uint32_t index        # in its pool
    cdef bint out                       # handed out by get()
    cdef Block block


cdef class BufferPool:
    cdef readonly GuestMemory memory
    cdef readonly uint32_t size
    cdef readonly size_t stride
    cdef readonly object addrs
    cdef readonly object array
    cdef Block block
    cdef list buffers
    cdef list ready
    cpdef Buffer get(self)
    cpdef put(self, Buffer buf)
