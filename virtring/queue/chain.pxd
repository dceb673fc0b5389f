from libc.stdint cimport uint16_t, uint32_t, uint64_t

from virtring.memory.guest cimport MemoryTable
from virtring.queue.side cimport QueueSide
from virtring.spec.ring cimport vring_desc

cdef enum:
    INLINE_DESCS = 4


cdef class Chain:
    cdef readonly QueueSide queue
    cdef MemoryTable table              # keeps what the descriptors point to mapped
    cdef readonly uint32_t id
    cdef uint32_t n
    cdef uint32_t n_out                 # readable descriptors; the others follow them
    cdef uint32_t step                  # for next_descriptor
    cdef uint64_t* addr
    cdef uint32_t* len
    cdef object many                    # where addr and len are when there are too many for these:
    cdef uint64_t few_addr[INLINE_DESCS]
    cdef uint32_t few_len[INLINE_DESCS]
    cdef readonly uint64_t readable_bytes
    cdef readonly uint64_t writable_bytes
    cdef readonly uint32_t wrote
    cdef readonly bint returned
    cdef unsigned long generation
    cdef int check_out(self) except -1
    cdef uint64_t copy(self, uint32_t first, uint32_t end, uint64_t skip, char* data,
                       uint64_t length, bint write) except? 0


cdef Chain make_chain(
    QueueSide queue, const vring_desc* descs, uint32_t n, uint32_t id, unsigned long generation
)
