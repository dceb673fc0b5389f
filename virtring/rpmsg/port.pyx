"""What both ends of the transport share: headers, checks, counts. No ring in here."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint32_t, uint64_t

import operator
import sys

from virtring.rpmsg.messages cimport Messages
from virtring.rpmsg.wire cimport ANY, HDR_SIZE, get_header, message_hdr, put_header

from virtring.errors import InvalidArgument, MessageTooLong
from virtring.rpmsg.wire import HEADER_SIZE, check_buf_size

cdef enum:
    # Bytes of the messages that are taken from the ring at once.
    INBOX_BYTES = 1 << 20

#: By DROP_*.
cdef tuple REASONS = ("short", "length", "address")


cdef class Port:
    """Base of both ends. Numbers: ``tx_mtu`` and ``rx_mtu`` are payload bytes."""

    cdef int set_sizes(self, object tx_buf_size, object rx_buf_size, object big_endian) except -1:
        self.tx_mtu = check_buf_size(tx_buf_size, "tx_buf_size") - HEADER_SIZE
        self.rx_mtu = check_buf_size(rx_buf_size, "rx_buf_size") - HEADER_SIZE
        self.big_endian = big_endian
        self.swap = self.big_endian != (sys.byteorder == "big")
        rows = max(8, min(256, INBOX_BYTES // self.rx_mtu))
        self.inbox = Messages(rows, self.rx_mtu)
        self.direct = Messages(min(rows, 64), self.rx_mtu)
        return 0

    cdef int raise_later(self) except -1:
        """Raise what was found behind messages that were handed out, once."""
        error = self.later
        if error is not None:
            self.later = None
            raise error
        return 0

    # -- sending -------------------------------------------------------------------------------

    def send_one(self, src, dst, data) -> bool:
        """Send one message; False when no buffer is free.

        Raises as :meth:`check`, and what the queue raises; nothing is lost then.
        """
        return self.send_message(src, dst, data) != 0

    def send_rows(self, Messages m not None, start, count, src, dst) -> int:
        """Send rows; how many there were buffers for. ANY as src or dst means the column.

        All rows are checked first, as by :meth:`check`. An error of the queue behind rows that
        were sent waits for the next call.
        """
        cdef Py_ssize_t first = 0
        cdef Py_ssize_t end = 0
        m.window(start, count, &first, &end)
        return self.send_window(m, first, end, src, dst)

    cdef int send_message(self, uint32_t src, uint32_t dst, object data) except -1:
        raise NotImplementedError

    cdef Py_ssize_t send_window(
        self, Messages m, Py_ssize_t first, Py_ssize_t end, uint32_t src, uint32_t dst
    ) except -1:
        raise NotImplementedError

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

    def recv_rows(self, Messages m not None, Messages other not None, addr, room) -> int:
        """Take up to ``room`` messages, by default any, and give the other side the buffers back.

        How many buffers came. Messages for ``addr`` (ANY: for all) are appended to ``m``, others
        to ``other``; as many as both have rows. An error behind messages that came waits for the
        next call.
        """
        cdef Py_ssize_t limit = m.capacity
        cdef Py_ssize_t taken
        if room is not None:
            limit = max(0, operator.index(room))
        self.check_size(other)
        taken = self.recv_window(m, other, addr, limit)
        self.tell()
        return taken

    cdef Py_ssize_t recv_window(
        self, Messages m, Messages other, uint32_t addr, Py_ssize_t limit
    ) except -1:
        """What :meth:`recv_rows` does, but for tell()."""
        raise NotImplementedError

    cdef int tell(self) except -1:
        """Notify the other side of buffers that it got back, after the messages are safe.

        It may call back into the bus. An error waits for the next call.
        """
        raise NotImplementedError

    cdef int check_size(self, Messages m) except -1:
        if m.size < <Py_ssize_t>self.rx_mtu:
            raise InvalidArgument(
                f"messages with rows of {m.size} bytes; received ones may have {self.rx_mtu}"
            )
        return 0

    def keep_error(self, error) -> None:
        """Raise ``error`` with the next call that receives: what came before it goes first."""
        self.later = error

    def check_later(self) -> None:
        """Raise what was kept."""
        self.raise_later()

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
