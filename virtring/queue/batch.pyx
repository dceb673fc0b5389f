"""Batches: many buffers in numpy columns, bound to the engine once."""

import numpy as np

from virtring.errors import InvalidArgument
from virtring.spec.dtypes import VRING_DESC


cdef class Batch:
    """Columns for up to ``capacity`` buffers with up to ``descriptors`` descriptors in all.

    A row is one buffer. Rows ``0`` to ``count - 1`` are in use. One descriptor:

    - ``addr``: uint64[descriptors], guest address
    - ``len``: uint32[descriptors], bytes
    - ``flags``: uint16[descriptors], 2 (``VRING_DESC_F_WRITE``) when the device may write

    These three are strided views of ``desc``, whose rows are laid out as the ring's own.

    One buffer:

    - ``offsets``: uint32[capacity + 1]; row i has descriptors ``offsets[i]`` to
      ``offsets[i + 1] - 1``. A new batch has one descriptor a row.
    - ``token``: uint64[capacity]; the driver's choice, comes back when the buffer was used
    - ``id``: uint32[capacity]; set by :meth:`DeviceQueue.pop`, wanted by ``push``
    - ``written``: uint32[capacity], bytes the device wrote; set by ``get_buf_batch``, wanted by
      ``push``

    The arrays are made once and stay where they are: fill them in place (``batch.addr[:n] = ...``).
    ``objects`` holds, by row, the tokens of used buffers that were added one by one with an object
    as token; such a row has the buffer's id in ``token``.

    Raises InvalidArgument when a number is less than 1 or more than 2**31.
    """

    def __cinit__(self, capacity, descriptors=None):
        if descriptors is None:
            descriptors = capacity
        for what, n in (("capacity", capacity), ("descriptors", descriptors)):
            if not isinstance(n, int) or not 1 <= n <= 1 << 31:
                raise InvalidArgument(f"{what} {n!r}: it takes 1 to 2**31")
        self._desc = self.desc = np.zeros(descriptors, VRING_DESC)
        self.addr = self.desc["addr"]
        self.len = self.desc["len"]
        self.flags = self.desc["flags"]
        self.offsets = np.minimum(np.arange(capacity + 1), descriptors).astype(np.uint32)
        self._offsets = self.offsets
        self._token = self.token = np.zeros(capacity, np.uint64)
        self._id = self.id = np.zeros(capacity, np.uint32)
        self._written = self.written = np.zeros(capacity, np.uint32)
        self.objects = {}
        self.cols.desc = &self._desc[0]
        self.cols.offsets = &self._offsets[0]
        self.cols.token = &self._token[0]
        self.cols.id = &self._id[0]
        self.cols.written = &self._written[0]
        self.cols.capacity = capacity
        self.cols.max_desc = descriptors

    @property
    def capacity(self) -> int:
        """Most rows it can hold."""
        return self.cols.capacity

    @property
    def descriptors(self) -> int:
        """Most descriptors it can hold."""
        return self.cols.max_desc

    @property
    def count(self) -> int:
        """Rows in use; set by ``pop`` and ``get_buf_batch``, and by you before adding."""
        return self.rows

    @count.setter
    def count(self, value):
        if not isinstance(value, (int, np.integer)) or not 0 <= value <= self.cols.capacity:
            raise InvalidArgument(f"count {value!r}: it takes 0 to {self.cols.capacity}")
        self.rows = value

    def __len__(self):
        return self.rows

    def __repr__(self):
        return (
            f"Batch(count={self.rows}, capacity={self.cols.capacity},"
            f" descriptors={self.cols.max_desc})"
        )

    cdef int checked_window(
        self, Py_ssize_t start, object count, size_t* first, size_t* end
    ) except -1:
        cdef Py_ssize_t low = start
        cdef Py_ssize_t high
        if low < 0 or <size_t>low > self.cols.capacity:
            raise InvalidArgument(f"start {start}: it takes 0 to {self.cols.capacity}")
        if count is None:
            high = self.rows
            if high < low:
                raise InvalidArgument(f"start {start} is behind the batch's {self.rows} rows")
        else:
            high = count
            if high < 0 or <size_t>high > self.cols.capacity - <size_t>low:
                raise InvalidArgument(
                    f"start {start} and count {count} reach beyond {self.cols.capacity} rows"
                )
            high += low
        first[0] = low
        end[0] = high
        return 0

    cdef int check_offsets(self, size_t first, size_t end) except -1:
        """Offsets of these rows are ordered and inside the descriptor columns."""
        cdef size_t i
        for i in range(first, end):
            if self.cols.offsets[i + 1] < self.cols.offsets[i]:
                raise InvalidArgument(
                    f"offsets[{i + 1}] is {self.cols.offsets[i + 1]}, less than offsets[{i}],"
                    f" {self.cols.offsets[i]}"
                )
        if first < end and self.cols.offsets[end] > self.cols.max_desc:
            raise InvalidArgument(
                f"offsets[{end}] is {self.cols.offsets[end]}; the batch has {self.cols.max_desc}"
                " descriptors"
            )
        return 0
