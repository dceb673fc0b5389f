from libc.stdint cimport uint32_t, uint64_t

from virtring.rpmsg.messages cimport Messages
from virtring.rpmsg.wire cimport DROP_REASONS


cdef class Port:
    cdef readonly uint32_t tx_mtu
    cdef readonly uint32_t rx_mtu
    cdef readonly bint big_endian
    cdef bint swap
    cdef readonly uint64_t tx_messages
    cdef readonly uint64_t tx_bytes
    cdef readonly uint64_t rx_messages
    cdef readonly uint64_t rx_bytes
    cdef readonly uint64_t bad_buffers
    cdef uint64_t drops[DROP_REASONS]
    cdef object later                   # an error found behind messages that were handed out

    cdef int set_sizes(self, object tx_buf_size, object rx_buf_size, object big_endian) except -1
    cdef int raise_later(self) except -1
    cdef int check_rows(
        self, Messages m, Py_ssize_t first, Py_ssize_t end, uint32_t src, uint32_t dst
    ) except -1
    cdef int refuse_row(self, Messages m, Py_ssize_t row) except -1
    cdef int check_one(self, uint32_t src, uint32_t dst, Py_ssize_t length) except -1
    cdef uint32_t put(
        self, char* at, Messages m, Py_ssize_t row, uint32_t src, uint32_t dst
    ) noexcept
    cdef void store(
        self, const char* at, uint64_t used, uint32_t addr, Messages m, Messages other
    ) noexcept
    cdef int room_for(
        self, Messages m, Messages other, object room, Py_ssize_t* limit
    ) except -1
