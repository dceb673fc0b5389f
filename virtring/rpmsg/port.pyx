"""What both ends of the transport share: headers, checks, counts. No ring in here."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

import operator
import sys

from virtring.rpmsg.wire cimport ANY, HDR_SIZE, get_header, message_hdr, put_header

from virtring.errors import InvalidArgument, MessageTooLong
from virtring.rpmsg.wire import HEADER_SIZE, check_buf_size

#: By DROP_*.
cdef tuple REASONS = ("short", "length", "address")


cdef class Port:
    """Base of both ends. Numbers: ``tx_mtu`` and ``rx_mtu`` are payload bytes."""

    cdef int set_sizes(self, object tx_buf_size, object rx_buf_size, object big_endian) except -1:
        self.tx_mtu = check_buf_size(tx_buf_size, "tx_buf_size") - HEADER_SIZE
        self.rx_mtu = check_buf_size(rx_buf_size, "rx_buf_size") - HEADER_SIZE
        self.big_endian = big_endian
        self.swap = self.big_endian != (sys.byteorder == "big")
        return 0

    cdef int raise_later(self) except -1:
        """Raise what was found behind messages that were handed out, once."""
        error = self.later
        if error is not None:
            self.later = None
            raise error
        return 0

    # -- sending -------------------------------------------------------------------------------

    cdef int check_one(self, uint32_t src, uint32_t dst, Py_ssize_t length) except -1:
        if src == ANY or dst == ANY:
            raise InvalidArgument(
                f"from {src:#x} to {dst:#x}: broadcasting is not allowed, and an address has to be"
                " known"
            )
        if length > <Py_ssize_t>self.tx_mtu:
            raise MessageTooLong(f"{length} bytes; a message takes up to {self.tx_mtu}")
        return 0

    cdef int check_rows(
        self, Messages m, Py_ssize_t first, Py_ssize_t end, uint32_t src, uint32_t dst
    ) except -1:
        """Every row can be sent, or nothing is. ANY for src or dst means the column."""
        cdef Py_ssize_t row
        cdef uint32_t most = <uint32_t>m.size
        if most > self.tx_mtu:
            most = self.tx_mtu
        for row in range(first, end):
            if m._len[row] > most:
                self.refuse_row(m, row)
        if src == ANY or dst == ANY:
            for row in range(first, end):
                if (src == ANY and m._src[row] == ANY) or (dst == ANY and m._dst[row] == ANY):
                    raise InvalidArgument(
                        f"row {row}: broadcasting is not allowed, and an address has to be known"
                    )
        return 0

    cdef int refuse_row(self, Messages m, Py_ssize_t row) except -1:
        if m._len[row] > <size_t>m.size:
            raise InvalidArgument(
                f"row {row} has len {m._len[row]}; a row of these messages takes {m.size}"
            )
        raise MessageTooLong(
            f"row {row} has {m._len[row]} bytes; a message takes up to {self.tx_mtu}"
        )

    cdef uint32_t put(
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

    def check(self, src, dst, length) -> None:
        """Whether such a message can be sent.

        Raises InvalidArgument for an address that is ANY, MessageTooLong for too many bytes.
        """
        self.check_one(src, dst, length)

    def build_header(self, at, src, dst, length) -> None:
        """Write the header of a message that :meth:`check` accepts, to ``at[:16]``."""
        cdef Py_buffer view
        PyObject_GetBuffer(at, &view, PyBUF_WRITABLE)
        try:
            if view.len < HDR_SIZE:
                raise InvalidArgument(f"{view.len} bytes have no room for a header")
            put_header(<char*>view.buf, src, dst, length, self.swap)
        finally:
            PyBuffer_Release(&view)

    def count_sent(self, length) -> None:
        """A message was sent by the caller."""
        self.tx_messages += 1
        self.tx_bytes += <uint64_t>length

    # -- receiving -----------------------------------------------------------------------------

    cdef void store(
        self, const char* at, uint64_t used, uint32_t addr, Messages m, Messages other
    ) noexcept:
        """Copy a message out: to ``m`` if it is for ``addr`` (ANY: for all), else to ``other``.

        Both have room. A message that cannot be right is dropped and counted.
        """
        cdef message_hdr hdr
        cdef Py_ssize_t row
        cdef int reason = get_header(at, used, self.rx_mtu, self.swap, &hdr)
        if reason >= 0:
            self.drops[reason] += 1
            return
        if addr == ANY or hdr.dst == addr:
            row = m.rows
            m.rows = row + 1
            m._src[row] = hdr.src
            m._dst[row] = hdr.dst
            m._len[row] = hdr.len
            m._flags[row] = hdr.flags
            memcpy(m.payload_at(row), at + HDR_SIZE, hdr.len)
        else:
            row = other.rows
            other.rows = row + 1
            other._src[row] = hdr.src
            other._dst[row] = hdr.dst
            other._len[row] = hdr.len
            other._flags[row] = hdr.flags
            memcpy(other.payload_at(row), at + HDR_SIZE, hdr.len)
        self.rx_bytes += hdr.len
        self.rx_messages += 1

    cdef int room_for(
        self, Messages m, Messages other, object room, Py_ssize_t* limit
    ) except -1:
        """How many messages may be taken: each could go to either of the two."""
        cdef Py_ssize_t most = m.capacity - m.rows
        if m.size < <Py_ssize_t>self.rx_mtu or other.size < <Py_ssize_t>self.rx_mtu:
            raise InvalidArgument(
                f"messages with rows of {min(m.size, other.size)} bytes; received ones may have"
                f" {self.rx_mtu}"
            )
        if other.capacity - other.rows < most:
            most = other.capacity - other.rows
        if room is not None and operator.index(room) < most:
            most = max(0, operator.index(room))
        limit[0] = most
        return 0

    def parse_header(self, at, used):
        """``(src, dst, len, flags)`` of a received message of ``used`` bytes at ``at``.

        None, and counted as dropped, when it cannot be right.
        """
        cdef message_hdr hdr
        cdef Py_buffer view
        cdef int reason
        cdef uint64_t there = used
        PyObject_GetBuffer(at, &view, PyBUF_SIMPLE)
        try:
            if there >= HDR_SIZE and view.len < HDR_SIZE:
                raise InvalidArgument(f"{view.len} bytes do not hold a header")
            reason = get_header(<char*>view.buf, there, self.rx_mtu, self.swap, &hdr)
        finally:
            PyBuffer_Release(&view)
        if reason >= 0:
            self.drops[reason] += 1
            return None
        return hdr.src, hdr.dst, hdr.len, hdr.flags

    def count_received(self, length) -> None:
        """A message that :meth:`parse_header` accepted goes to its endpoint."""
        self.rx_messages += 1
        self.rx_bytes += <uint64_t>length

    @property
    def dropped(self) -> dict:
        """Received messages that could not be right, by reason.

        ``short``: less than a header was there. ``length``: the header tells of more than was
        there, or than a buffer holds. ``address``: the memory it lay in is gone.
        """
        return {reason: self.drops[i] for i, reason in enumerate(REASONS)}
