cimport cython
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
    cdef int checked_window(
        self, Py_ssize_t start, object count, size_t* first, size_t* end
    ) except -1
    cdef int check_offsets(self, size_t first, size_t end) except -1

    @cython.final
    cdef inline int window(
        self, Py_ssize_t start, object count, size_t* first, size_t* end
    ) except -1:
        """Rows ``start`` to ``start + count``, by default up to ``count`` of the batch."""
        if count is None and 0 <= start and <size_t>start <= self.rows:
            first[0] = start
            end[0] = self.rows
            return 0
        return self.checked_window(start, count, first, end)
