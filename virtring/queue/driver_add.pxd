cimport cython
from libc.stdint cimport uint16_t, uint32_t

from virtring.queue.batch cimport Batch
from virtring.queue.driver_ring cimport DriverRing
from virtring.ring.packed_driver cimport packed_kick_prepare
from virtring.ring.split_driver cimport split_kick_prepare

cdef enum:
    # Below this many rows, giving the GIL away costs more than the rows take.
    NOGIL_ROWS = 512


cdef class DriverAdd(DriverRing):
    cdef readonly object notify_cb

    cdef int add_one(self, object sg, uint16_t flags, object data, object ctx) except -1
    cdef int add_chain(
        self, object out_sgs, object in_sgs, object data, object ctx, bint rpmsg, bint premapped
    ) except -1
    cdef int refuse_full(self, uint32_t need, bint out) except -1
    cdef object add_rows(self, Batch batch, Py_ssize_t start, object count, uint16_t flags)

    @cython.final
    cdef int add_checked(self, Batch batch, size_t first, size_t n, uint16_t flags) noexcept nogil
    cdef bint do_notify(self) except -1

    @cython.final
    cdef inline bint wants_kick(self) noexcept:
        if self.packed:
            return packed_kick_prepare(&self.pack)
        return split_kick_prepare(&self.split)
