"""Many messages in numpy columns, bound to C once."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t
from libc.string cimport memcpy

import operator

import numpy as np

from virtring.errors import InvalidArgument
from virtring.rpmsg.wire import MAX_PAYLOAD, check_address


cdef class Messages:
    """Columns for up to ``capacity`` messages of up to ``size`` payload bytes each.

    Rows ``0`` to ``count - 1`` are in use.

    - ``src``, ``dst``: uint32[capacity], addresses
    - ``len``: uint32[capacity], payload bytes
    - ``flags``: uint16[capacity]; set by receiving, not sent
    - ``data``: uint8[capacity, size]; payload of row i is ``data[i, :len[i]]``

    The arrays are made once and stay where they are: fill them in place.

    Raises InvalidArgument for a capacity below 1 or above 2**20, or a size of 0 or above 65535.
    """

    def __cinit__(self, capacity, size=496):
        for what, n, most in (("capacity", capacity, 1 << 20), ("size", size, MAX_PAYLOAD)):
            if not isinstance(n, int) or not 1 <= n <= most:
                raise InvalidArgument(f"{what} {n!r}: it takes 1 to {most}")
        self.capacity = capacity
        self.size = size
        self._src = self.src = np.zeros(capacity, np.uint32)
        self._dst = self.dst = np.zeros(capacity, np.uint32)
        self._len = self.len = np.zeros(capacity, np.uint32)
        self._flags = self.flags = np.zeros(capacity, np.uint16)
        self._data = self.data = np.zeros((capacity, size), np.uint8)
        self.base = <char*>&self._data[0, 0]

    @property
    def count(self) -> int:
        """Rows in use; set by receiving, and by you before sending."""
        return self.rows

    @count.setter
    def count(self, value):
        if not isinstance(value, (int, np.integer)) or not 0 <= value <= self.capacity:
            raise InvalidArgument(f"count {value!r}: it takes 0 to {self.capacity}")
        self.rows = value

    def __len__(self):
        return self.rows

    def __repr__(self):
        return f"Messages(count={self.rows}, capacity={self.capacity}, size={self.size})"

    def payload(self, row) -> bytes:
        """The payload of a row in use, copied. Raises InvalidArgument for any other row."""
        cdef Py_ssize_t i = operator.index(row)
        if not 0 <= i < self.rows:
            raise InvalidArgument(f"row {row}: {self.rows} are in use")
        if self._len[i] > <size_t>self.size:
            raise InvalidArgument(f"row {row} has len {self._len[i]}; it takes 0 to {self.size}")
        return PyBytes_FromStringAndSize(self.payload_at(i), self._len[i])

    def append(self, data, src=0, dst=0) -> int:
        """Put a message into the next row; the row's number.

        Raises InvalidArgument when all rows are in use, the payload does not fit or an address is
        none.
        """
        cdef const uint8_t[::1] view = memoryview(data).cast("B")
        cdef Py_ssize_t i = self.rows
        if i == self.capacity:
            raise InvalidArgument(f"all {self.capacity} rows are in use")
        if view.shape[0] > self.size:
            raise InvalidArgument(f"a payload of {view.shape[0]} bytes; a row takes {self.size}")
        self._src[i] = check_address(src, "src")
        self._dst[i] = check_address(dst, "dst")
        self._len[i] = view.shape[0]
        self._flags[i] = 0
        if view.shape[0]:
            memcpy(self.payload_at(i), &view[0], view.shape[0])
        self.rows += 1
        return i

    cdef int window(self, object start, object count, Py_ssize_t* first, Py_ssize_t* end) except -1:
        """Rows ``start`` to ``start + count``, by default up to ``count`` of the messages."""
        cdef Py_ssize_t low = operator.index(start)
        cdef Py_ssize_t high = self.rows if count is None else low + operator.index(count)
        if not 0 <= low <= high <= self.capacity:
            raise InvalidArgument(
                f"start {start} and count {count}: {self.rows} of {self.capacity} rows are in use"
            )
        first[0] = low
        end[0] = high
        return 0
