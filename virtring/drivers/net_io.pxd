from libc.stdint cimport uint32_t, uint64_t

from virtring.memory.pool cimport Block
from virtring.queue.batch cimport Batch
from virtring.queue.driver cimport Virtqueue


cdef class NetBuffers:
    cdef readonly Virtqueue vq
    cdef readonly uint32_t header
    cdef readonly uint32_t size
    cdef readonly uint32_t count
    cdef Block block
    cdef size_t stride
    cdef Batch rows
    cdef Batch used
    cdef uint32_t[::1] free             # a stack of buffers
    cdef uint32_t n_free
    cdef void row(self, size_t i, uint32_t buffer, uint32_t length) noexcept nogil


cdef class NetSend(NetBuffers):
    pass


cdef class NetReceive(NetBuffers):
    cdef readonly bint merge
    cdef readonly uint64_t malformed
    cdef uint32_t[::1] arrived          # used buffers, the oldest first
    cdef uint32_t[::1] lengths
    cdef uint32_t n_arrived
    cdef uint32_t assemble(self, object packets, bint* full) except? 0xFFFFFFFF
