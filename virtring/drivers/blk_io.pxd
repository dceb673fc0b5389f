from libc.stdint cimport uint8_t, uint32_t, uint64_t

from virtring.memory.pool cimport Block
from virtring.queue.batch cimport Batch
from virtring.queue.driver cimport Virtqueue


# A request in flight, kept here: the header in its slot is memory the device can write.
ctypedef struct request:
    uint64_t token
    uint64_t sector
    uint64_t addr
    uint32_t len
    uint32_t type


cdef class BlkBatch:
    cdef readonly object type
    cdef readonly object sector
    cdef readonly object addr
    cdef readonly object len
    cdef readonly object token
    cdef readonly object status
    cdef size_t rows
    cdef readonly size_t capacity
    cdef uint32_t[::1] _type
    cdef uint64_t[::1] _sector
    cdef uint64_t[::1] _addr
    cdef uint32_t[::1] _len
    cdef uint64_t[::1] _token
    cdef uint8_t[::1] _status


cdef class BlkQueue:
    cdef readonly Virtqueue vq
    cdef readonly uint32_t depth
    cdef public uint64_t capacity
    cdef readonly uint32_t max_len
    cdef Block block                    # a slot for each request in flight
    cdef char* slots
    cdef Batch rows
    cdef Batch used
    cdef uint32_t[::1] free             # a stack of slots
    cdef request* requests              # by slot
    cdef uint32_t n_free
    cdef uint32_t most
    cdef int check(self, BlkBatch batch, size_t first, size_t n) except -1
    cdef void fill(self, BlkBatch batch, size_t first, size_t n) noexcept nogil
