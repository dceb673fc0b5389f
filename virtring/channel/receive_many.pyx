"""Receiving many messages in a call."""

from cpython.buffer cimport (
    PyBUF_FORMAT, PyBUF_ND, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)
from libc.stdint cimport uint32_t
from libc.string cimport memcpy

from virtring.errors import InvalidArgument, QueueBroken


cdef int get_array(object source, Py_buffer* view, int size, bint write, str what) except -1:
    """A contiguous array of one dimension of unsigned integers of ``size`` bytes, 1 or 4."""
    cdef char letter = 0
    try:
        PyObject_GetBuffer(
            source, view, PyBUF_ND | PyBUF_FORMAT | (PyBUF_WRITABLE if write else 0)
        )
    except (TypeError, ValueError, BufferError) as error:
        raise InvalidArgument(f"{what} takes a contiguous array: {error}") from None
    if view.format != NULL:
        letter = view.format[0] if view.format[1] == 0 else 0
    if (
        view.ndim != 1 or view.itemsize != size
        or (letter != b"B" if size == 1 else letter != b"I" and letter != b"L")
    ):
        kind = bytes(view.format).decode() if view.format != NULL else "B"
        text = f"{what} has {view.ndim} dimensions of {kind!r}; it takes one of uint{8 * size}"
        PyBuffer_Release(view)
        raise InvalidArgument(text)
    return 0


cdef class ReceiveMany(ChannelReceive):
    """The part of :class:`Channel` that receives batches."""

    cdef list take_batch(self, size_t limit):
        cdef list found = []
        try:
            while limit and (self.pos != self.end or self.refill()):
                found.append(self.take())
                limit -= 1
        except QueueBroken:
            # What came before the nonsense counts; the next call tells.
            if not found:
                raise
        return found

    def try_recv_batch(self, limit=None) -> list:
        """The messages that are there, up to ``limit`` (by default ``slots``), as a list of bytes.

        An empty list when there are none; otherwise raises as :meth:`try_recv`.
        """
        cdef size_t most = self._limit(limit)
        if self.state or self.receiving:
            self.enter_recv()
        if not self.ready_recv():
            return []
        return self.take_batch(most)

    def recv_batch(self, limit=None, timeout=None) -> list:
        """As :meth:`try_recv_batch`, but waits until there is one, as :meth:`recv` does."""
        cdef size_t most = self._limit(limit)
        if self.state or self.receiving:
            self.enter_recv()
        if not self.ready_recv():
            self.wait_recv(timeout)
        return self.take_batch(most)

    async def arecv_batch(self, limit=None, timeout=None):
        """:meth:`recv_batch` for an asyncio task."""
        cdef size_t most = self._limit(limit)
        await self._wait_recv_async(timeout)
        return self.take_batch(most)

    def _limit(self, limit) -> int:
        if limit is None:
            return self.layout.slots
        if not isinstance(limit, int) or limit < 1:
            raise InvalidArgument(f"limit is {limit!r}; it takes 1 or more messages")
        return min(limit, 1 << 31)

    cdef size_t fill(self, object out, object lengths) except? 0:
        """Copy what there is, one message behind the other, as far as there is room for it."""
        cdef Py_buffer data
        cdef Py_buffer sizes
        cdef size_t at = 0
        cdef size_t n = 0
        cdef uint32_t size = 0
        cdef const char* host
        get_array(out, &data, 1, True, "out")
        try:
            get_array(lengths, &sizes, 4, True, "lengths")
        except InvalidArgument:
            PyBuffer_Release(&data)
            raise
        try:
            if sizes.shape[0] == 0:
                raise InvalidArgument("lengths is empty; it takes room for one message or more")
            while n < <size_t>sizes.shape[0] and (self.pos != self.end or self.refill()):
                host = self.message(&size)
                if size > <size_t>data.len - at:
                    if n:
                        break
                    raise InvalidArgument(
                        f"the next message has {size} bytes; out has room for {data.len}"
                    )
                memcpy(<char*>data.buf + at, host, size)
                at += size
                (<uint32_t*>sizes.buf)[n] = size
                n += 1
                self.pos += 1
                self.done(self.popped.cols.id[self.pos - 1])
        except QueueBroken:
            if n == 0:
                raise
        finally:
            PyBuffer_Release(&sizes)
            PyBuffer_Release(&data)
        return n

    def try_recv_array(self, out, lengths) -> int:
        """Copy messages one behind the other into ``out``, their sizes into ``lengths``.

        ``out`` is a writable contiguous array of uint8 (one dimension), ``lengths`` one of uint32.
        Stops when either is full or nothing more is there; returns the number of messages.
        InvalidArgument when not even the first one has room in ``out``; it stays the next one.
        Otherwise raises as :meth:`try_recv`.
        """
        if self.state or self.receiving:
            self.enter_recv()
        if not self.ready_recv():
            return 0
        return self.fill(out, lengths)

    def recv_array(self, out, lengths, timeout=None) -> int:
        """As :meth:`try_recv_array`, but waits until there is one, as :meth:`recv` does."""
        if self.state or self.receiving:
            self.enter_recv()
        if not self.ready_recv():
            self.wait_recv(timeout)
        return self.fill(out, lengths)
