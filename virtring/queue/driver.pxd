cimport cython
from libc.stdint cimport uint32_t

from virtring.queue.batch cimport Batch
from virtring.queue.driver_add cimport DriverAdd


cdef class Virtqueue(DriverAdd):
    cdef readonly object vdev
    cdef public object priv
    cdef readonly object callback
    cdef readonly uint32_t num_max
    cdef readonly uint32_t vring_align

    @cython.final
    cdef int get_plain(self, Batch batch, size_t room, size_t* taken) noexcept nogil
