"""One buffer as the device sees it: a chain of descriptors, readable first, then writable."""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from virtring.memory.table cimport PERM_READ, PERM_WRITE, guest_lookup, guest_range
from virtring.queue.device_ring cimport DeviceRing
from virtring.queue.side cimport QueueSide
from virtring.spec.ring cimport VRING_DESC_F_WRITE, vring_desc

from typing import NamedTuple

from virtring.errors import InvalidArgument


class Descriptor(NamedTuple):
    """One checked descriptor. (Fuchsia VirtioDescriptor)

    addr: guest address. len: bytes. writable: whether the device may write it. has_next: whether
    another one follows. data: zero-copy memoryview of the bytes, read-only unless writable.
    """

    addr: int
    len: int
    writable: bool
    has_next: bool
    data: memoryview


@cython.freelist(64)
cdef class Chain:
    """A popped chain; made by :meth:`DeviceQueue.next_chain`. (Fuchsia VirtioChain)

    Iterating gives a :class:`Descriptor` each. ``id`` is the buffer's id in the ring,
    ``readable_bytes`` and ``writable_bytes`` its sizes, ``wrote`` the bytes written so far by
    :meth:`write`, ``returned`` whether it was given back. After that, and after a reset of the
    queue, its buffers belong to the driver again: looking at them raises InvalidArgument.

    What a descriptor points to is memory of the driver, which may change it at any time: read it
    once, then check and use the copy.
    """

    def __len__(self):
        return self.n

    def __repr__(self):
        return (
            f"Chain(id={self.id}, descriptors={self.n}, readable={self.readable_bytes},"
            f" writable={self.writable_bytes}{', returned' if self.returned else ''})"
        )

    cdef int check_out(self) except -1:
        """The driver may reuse the buffers of a chain that was returned, or lost by a reset."""
        if (
            self.returned
            or self.queue is None
            or (<DeviceRing>self.queue).generation != self.generation
        ):
            raise InvalidArgument(f"{self!r}: its buffers belong to the driver again")
        return 0

    def __getitem__(self, index):
        cdef Py_ssize_t i = index
        if i < 0:
            i += self.n
        if not 0 <= i < self.n:
            raise IndexError(f"descriptor {index} of a chain of {self.n}")
        self.check_out()
        writable = i >= self.n_out
        return Descriptor(
            self.addr[i], self.len[i], writable, i + 1 < self.n,
            self.queue.memory.view(self.addr[i], self.len[i], writable=writable),
        )

    def __iter__(self):
        for i in range(self.n):
            yield self[i]

    def next_descriptor(self):
        """The next :class:`Descriptor`, or None after the last. (VirtioChain::NextDescriptor)"""
        if self.step == self.n:
            return None
        self.step += 1
        return self[self.step - 1]

    @property
    def readable(self) -> list:
        """Zero-copy, read-only memoryviews of the parts the driver filled."""
        return [self[i].data for i in range(self.n_out)]

    @property
    def writable(self) -> list:
        """Zero-copy memoryviews of the parts the device may fill."""
        return [self[i].data for i in range(self.n_out, self.n)]

    cdef uint64_t copy(
        self, uint32_t first, uint32_t end, uint64_t skip, char* data, uint64_t length, bint write
    ) except? 0:
        """Copy up to ``length`` bytes between data and descriptors first to end, from skip on."""
        cdef const guest_range* r
        cdef char* host
        cdef uint64_t done = 0
        cdef uint64_t n
        cdef uint32_t i
        for i in range(first, end):
            if skip >= self.len[i]:
                skip -= self.len[i]
                continue
            if done == length:
                break
            # Found when the chain was popped, in the table that we still hold.
            r = guest_lookup(
                &self.table.table, self.addr[i], self.len[i], PERM_WRITE if write else PERM_READ
            )
            if r == NULL:
                raise InvalidArgument(f"{self!r}: descriptor {i} is not mapped any more")
            host = r.host + (self.addr[i] - r.base) + skip
            n = min(self.len[i] - skip, length - done)
            if write:
                memcpy(host, data + done, n)
            else:
                memcpy(data + done, host, n)
            done += n
            skip = 0
        return done

    def read(self, size=-1, offset=0) -> bytes:
        """Copy of ``size`` readable bytes (all when -1) from ``offset`` on; fewer at the end."""
        cdef uint64_t start = offset
        cdef uint64_t length
        self.check_out()
        if start >= self.readable_bytes:
            return b""
        length = self.readable_bytes - start
        if size >= 0 and size < length:
            length = size
        out = PyBytes_FromStringAndSize(NULL, length)
        self.copy(0, self.n_out, start, PyBytes_AS_STRING(out), length, False)
        return out

    def readinto(self, out, offset=0) -> int:
        """Copy readable bytes from ``offset`` on into a writable buffer; how many there were."""
        cdef Py_buffer view
        self.check_out()
        PyObject_GetBuffer(out, &view, PyBUF_WRITABLE)
        try:
            return self.copy(0, self.n_out, offset, <char*>view.buf, view.len, False)
        finally:
            PyBuffer_Release(&view)

    def write(self, data, offset=None) -> int:
        """Copy ``data`` into the writable parts, from ``offset`` on (by default where the last
        write ended); ``wrote`` becomes the end of what was written.

        Raises InvalidArgument, having written nothing, when it does not fit.
        """
        cdef Py_buffer view
        cdef uint64_t start = self.wrote
        cdef uint64_t end
        self.check_out()
        if offset is not None:
            start = offset
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            if start > self.writable_bytes or <uint64_t>view.len > self.writable_bytes - start:
                raise InvalidArgument(
                    f"{self!r}: {view.len} bytes at offset {start} do not fit into"
                    f" {self.writable_bytes}"
                )
            self.copy(self.n_out, self.n, start, <char*>view.buf, view.len, True)
            end = start + view.len
            if end > self.wrote:
                self.wrote = <uint32_t>min(end, <uint64_t>0xFFFFFFFF)
            return view.len
        finally:
            PyBuffer_Release(&view)

    def return_(self, written=None) -> None:
        """Give the chain back to the driver; see :meth:`DeviceQueue.return_`."""
        self.queue.return_(self, written)


cdef Chain make_chain(
    QueueSide queue, const vring_desc* descs, uint32_t n, uint32_t id, unsigned long generation
):
    """A chain of n checked descriptors, copied; readable ones come first."""
    cdef Chain chain = Chain.__new__(Chain)
    cdef uint32_t i
    cdef char* many
    chain.addr = chain.few_addr
    chain.len = chain.few_len
    if n > INLINE_DESCS:
        chain.many = PyBytes_FromStringAndSize(NULL, n * (sizeof(uint64_t) + sizeof(uint32_t)))
        many = PyBytes_AS_STRING(chain.many)
        chain.addr = <uint64_t*>many
        chain.len = <uint32_t*>(many + n * sizeof(uint64_t))
    chain.queue = queue
    chain.table = queue.table
    chain.generation = generation
    chain.id = id
    chain.n = n
    for i in range(n):
        chain.addr[i] = descs[i].addr
        chain.len[i] = descs[i].len
        if descs[i].flags & VRING_DESC_F_WRITE:
            chain.writable_bytes += descs[i].len
        else:
            chain.readable_bytes += descs[i].len
            chain.n_out += 1
    return chain
