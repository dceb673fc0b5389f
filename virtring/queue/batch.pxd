from libc.stdint cimport uint32_t, uint64_t

from virtring.ring.common cimport batch_cols
from virtring.spec.ring cimport vring_desc


cdef class Batch:
    cdef readonly object desc
    cdef readonly object addr
    cdef readonly object len
    cdef readonly object flags
    cdef readonly object offsets
    cdef readonly object token
    cdef readonly object id
    cdef readonly object written
    cdef readonly dict objects
    cdef size_t rows
    cdef batch_cols cols
    cdef vring_desc[::1] _desc
    cdef uint32_t[::1] _offsets
    cdef uint64_t[::1] _token
    cdef uint32_t[::1] _id
    cdef uint32_t[::1] _written
    cdef int window(self, object start, object count, size_t* first, size_t* end) except -1
    cdef int check_offsets(self, size_t first, size_t end) except -1
