from libc.stdint cimport uint8_t, uint32_t


cdef class Packets:
    cdef readonly object data
    cdef readonly object offsets
    cdef readonly object lengths
    cdef readonly size_t capacity
    cdef size_t rows
    cdef size_t used                    # bytes of data that append() has filled
    cdef size_t size
    cdef char* base
    cdef uint32_t* offset
    cdef uint32_t* length
    cdef uint8_t[::1] _data
    cdef uint32_t[::1] _offsets
    cdef uint32_t[::1] _lengths
    cdef int check(self, object start, size_t* first) except -1

    cdef inline char* reserve(self, size_t n) noexcept nogil:
        """Room for a packet of up to n bytes, or NULL; :meth:`commit` makes it the next row."""
        if self.rows == self.capacity or n > self.size - self.used:
            return NULL
        return self.base + self.used

    cdef inline void commit(self, size_t n) noexcept nogil:
        self.offset[self.rows] = <uint32_t>self.used
        self.length[self.rows] = <uint32_t>n
        self.rows += 1
        self.used += n
