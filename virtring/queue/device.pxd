cimport cython
from libc.stdint cimport uint32_t, uint64_t

from virtring.queue.batch cimport Batch
from virtring.queue.device_ring cimport DeviceRing


cdef class DeviceQueue(DeviceRing):
    cdef public object priv
    cdef public object call_cb

    cdef int refuse_unset(self) except -1

    @cython.final
    cdef size_t pop_rows(self, Batch batch, size_t room) except? 0

    @cython.final
    cdef size_t push_rows(
        self, const uint32_t* id, const uint32_t* written, size_t n, size_t row
    ) except? 0

    @cython.final
    cdef int pop_plain(self, Batch batch, size_t room, size_t* popped) noexcept nogil

    @cython.final
    cdef int push_plain(
        self, const uint32_t* id, const uint32_t* written, size_t n, size_t* published
    ) noexcept nogil

    @cython.final
    cdef bint need_notify_plain(self) noexcept nogil

    @cython.final
    cdef inline int enter_ring(self) except -1:
        """Before every call: as enter(), and is there a ring?"""
        if self.config is None:
            self.refuse_unset()
        return self.enter()

    @cython.final
    cdef inline int enter_push(self) except -1:
        """As enter_ring, but chains that are held may be returned on a broken queue."""
        if self.config is None or self.closed or self.busy:
            return self.enter_ring()
        return 0
