"""A burst of packets in numpy columns, as network devices and drivers take and give them."""

import numpy as np

from libc.string cimport memcpy

from virtring.errors import InvalidArgument, NoSpace

cdef enum:
    # An Ethernet frame and what a full-sized IP packet or a tag may add to it.
    TYPICAL = 2048


cdef class Packets:
    """Up to ``capacity`` packets, ``size`` bytes in all (by default 2048 for each).

    - ``data``: uint8[size], the bytes
    - ``offsets``, ``lengths``: uint32[capacity], where packet i is in ``data``

    ``count`` rows are in use. ``packets[i]`` is a numpy view of one, :meth:`append` adds one;
    columns may be filled in place as well, in any order and with gaps.

    Raises InvalidArgument unless capacity and size are 1 to 2**31.
    """

    def __init__(self, capacity=256, size=None):
        if size is None and isinstance(capacity, int):
            size = capacity * TYPICAL
        for what, n in (("capacity", capacity), ("size", size)):
            if not isinstance(n, int) or not 1 <= n <= 1 << 31:
                raise InvalidArgument(f"{what} {n!r}: it takes 1 to 2**31")
        self._data = self.data = np.zeros(size, np.uint8)
        self._offsets = self.offsets = np.zeros(capacity, np.uint32)
        self._lengths = self.lengths = np.zeros(capacity, np.uint32)
        self.capacity = capacity
        self.size = size
        self.base = <char*>&self._data[0]
        self.offset = &self._offsets[0]
        self.length = &self._lengths[0]

    @classmethod
    def of(cls, packets, /):
        """A burst of these bytes-like objects, at least one of them."""
        views = [memoryview(packet).cast("B") for packet in packets]
        burst = cls(len(views), max(1, sum([len(view) for view in views])))
        for view in views:
            burst.append(view)
        return burst

    def append(self, packet, /) -> None:
        """Copy a bytes-like object behind the last packet. Raises NoSpace when it does not fit."""
        cdef const unsigned char[::1] view = packet
        cdef size_t n = view.shape[0]
        cdef char* room = self.reserve(n)
        if room == NULL:
            raise NoSpace(
                f"{n} bytes more; {self.rows} of {self.capacity} packets and {self.used} of"
                f" {self.size} bytes are taken"
            )
        if n:
            memcpy(room, &view[0], n)
        self.commit(n)

    def clear(self) -> None:
        """No packets, all of the room."""
        self.rows = 0
        self.used = 0

    @property
    def count(self) -> int:
        """Rows in use. Set it after filling the columns: :meth:`append` goes on behind the bytes
        of these rows."""
        return self.rows

    @count.setter
    def count(self, value):
        cdef size_t end = 0
        cdef size_t i
        if not 0 <= value <= self.capacity:
            raise InvalidArgument(f"count {value}: it takes 0 to {self.capacity}")
        for i in range(<size_t>value):
            if <size_t>self.offset[i] + self.length[i] > self.size:
                raise InvalidArgument(
                    f"packet {i}: {self.length[i]} bytes at {self.offset[i]}; there are {self.size}"
                )
            end = max(end, <size_t>self.offset[i] + self.length[i])
        self.rows = value
        self.used = end

    cdef int check(self, object start, size_t* first) except -1:
        """The columns are the caller's to write, so they are looked at before each use."""
        cdef size_t i
        if not isinstance(start, int) or not 0 <= start <= self.rows:
            raise InvalidArgument(f"start {start!r}: it takes 0 to {self.rows}")
        first[0] = start
        for i in range(first[0], self.rows):
            if <size_t>self.offset[i] + self.length[i] > self.size:
                raise InvalidArgument(
                    f"packet {i}: {self.length[i]} bytes at {self.offset[i]}; there are {self.size}"
                )
        return 0

    def __len__(self):
        return self.rows

    def __iter__(self):
        for i in range(self.rows):
            yield self[i]

    def __getitem__(self, index):
        cdef Py_ssize_t i = index
        if i < 0:
            i += self.rows
        if not 0 <= i < <Py_ssize_t>self.rows:
            raise IndexError(f"packet {index} of {self.rows}")
        return self.data[self.offset[i] : <size_t>self.offset[i] + self.length[i]]

    def __repr__(self):
        return f"<Packets {self.rows} of {self.capacity}, {self.used} of {self.size} bytes>"
