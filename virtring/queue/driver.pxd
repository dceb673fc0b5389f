from libc.stdint cimport uint16_t, uint32_t

from virtring.queue.batch cimport Batch
from virtring.queue.driver_ring cimport DriverRing


cdef class Virtqueue(DriverRing):
    cdef readonly object vdev
    cdef public object priv
    cdef readonly object callback
    cdef readonly object notify_cb
    cdef readonly uint32_t num_max

    cdef int add_one(self, object sg, uint16_t flags, object data, object ctx) except -1
    cdef int add_chain(
        self, object out_sgs, object in_sgs, object data, object ctx, bint rpmsg, bint premapped
    ) except -1
    cdef int refuse_full(self, uint32_t need, bint out) except -1
    cdef int count_added(self) except -1
    cdef object add_rows(self, Batch batch, object start, object count, uint16_t flags)
    cdef int add_checked(self, Batch batch, size_t first, size_t n, uint16_t flags) noexcept nogil
    cdef int get_plain(self, Batch batch, size_t room, size_t* taken) noexcept nogil
    cdef bint wants_kick(self) noexcept
    cdef bint do_notify(self) except -1
