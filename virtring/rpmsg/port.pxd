from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from virtring.rpmsg.messages cimport Messages
from virtring.rpmsg.wire cimport (
    ANY, DROP_REASONS, HDR_SIZE, get_header, message_hdr, put_header,
)


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
    # Of the bus, for the endpoints: what they ask first has to be cheap.
    cdef public bint closed
    cdef public bint busy               # messages are being handed out
    cdef readonly Messages inbox        # messages to be handed out
    cdef Messages direct                # scratch: messages for the endpoint that asks

    cdef int set_sizes(self, object tx_buf_size, object rx_buf_size, object big_endian) except -1
    cdef int raise_later(self) except -1
    cdef int send_message(self, uint32_t src, uint32_t dst, object data) except -1
    cdef Py_ssize_t send_window(
        self, Messages m, Py_ssize_t first, Py_ssize_t end, uint32_t src, uint32_t dst
    ) except -1
    cdef Py_ssize_t recv_window(
        self, Messages m, Messages other, uint32_t addr, Py_ssize_t limit
    ) except -1
    cdef int tell(self) except -1
    cdef int check_rows(
        self, Messages m, Py_ssize_t first, Py_ssize_t end, uint32_t src, uint32_t dst
    ) except -1
    cdef int refuse_row(self, Messages m, Py_ssize_t row) except -1
    cdef int check_one(self, uint32_t src, uint32_t dst, Py_ssize_t length) except -1

    cdef inline uint32_t put(
        self, char* at, Messages m, Py_ssize_t row, uint32_t src, uint32_t dst
    ) noexcept:
        """Write a row that check_rows() has accepted; bytes it takes, with the header."""
        # Fetched once: somebody may be writing the columns in another thread.
        cdef uint32_t length = m._len[row]
        if length > self.tx_mtu or length > <size_t>m.size:
            length = 0
        put_header(
            at, m._src[row] if src == ANY else src, m._dst[row] if dst == ANY else dst, length,
            self.swap,
        )
        memcpy(at + HDR_SIZE, m.payload_at(row), length)
        return length + HDR_SIZE

    cdef inline void store(
        self, const char* at, uint64_t used, uint32_t addr, Messages m, Messages other
    ) noexcept:
        """Copy a message out: to ``m`` if it is for ``addr`` (ANY: for all), else to ``other``.

        Both have room. A message that cannot be right is dropped and counted.
        """
        cdef message_hdr hdr
        cdef Py_ssize_t row
        cdef Messages to
        cdef int reason = get_header(at, used, self.rx_mtu, self.swap, &hdr)
        if reason >= 0:
            self.drops[reason] += 1
            return
        to = m if addr == ANY or hdr.dst == addr else other
        row = to.rows
        to.rows = row + 1
        to._src[row] = hdr.src
        to._dst[row] = hdr.dst
        to._len[row] = hdr.len
        to._flags[row] = hdr.flags
        memcpy(to.payload_at(row), at + HDR_SIZE, hdr.len)
        self.rx_bytes += hdr.len
        self.rx_messages += 1

    cdef int check_size(self, Messages m) except -1
