from libc.stdint cimport uint8_t, uint16_t, uint32_t


cdef class Messages:
    cdef readonly object src
    cdef readonly object dst
    cdef readonly object len
    cdef readonly object flags
    cdef readonly object data
    cdef readonly Py_ssize_t capacity
    cdef readonly Py_ssize_t size
    cdef Py_ssize_t rows
    cdef uint32_t[::1] _src
    cdef uint32_t[::1] _dst
    cdef uint32_t[::1] _len
    cdef uint16_t[::1] _flags
    cdef uint8_t[:, ::1] _data
    cdef char* base                     # of data
    cdef inline char* payload_at(self, Py_ssize_t row) noexcept:
        return self.base + row * self.size

    cdef int window(self, object start, object count, Py_ssize_t* first, Py_ssize_t* end) except -1
