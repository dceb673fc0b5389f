from libc.stdint cimport uint32_t, uint64_t

from virtring.spec.ring cimport vring_desc


cdef class DirtyPages:
    cdef unsigned char[::1] bits
    cdef readonly uint64_t size         # bytes

    cdef void mark(self, uint64_t addr, uint64_t length) noexcept nogil


# One writable part of a chain that the device has; a list by next, 0 ends it.
ctypedef struct part:
    uint64_t addr
    uint32_t len
    uint32_t next


cdef class DirtyLog:
    cdef public DirtyPages pages        # where to mark; None: not asked for yet
    cdef public bint buffers            # mark what devices write into buffers
    cdef bint used_set
    cdef uint64_t used_addr             # mark used ring writes here, if used_set
    cdef part* parts
    cdef uint32_t room
    cdef uint32_t free
    cdef uint32_t[::1] first            # [65536] by buffer id

    cdef int popped(self, uint32_t id, const vring_desc* desc, size_t n) except -1 nogil
    cdef int popped_part(self, uint32_t id, uint64_t addr, uint32_t length) except -1 nogil
    cdef void pushed(self, const uint32_t* id, size_t n) noexcept nogil
    cdef void area(self, uint64_t offset, uint64_t length) noexcept nogil
