"""Sending many messages in a call; and the whole end of a channel."""

import time

import numpy as np

from cpython.buffer cimport PyBUF_ND, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint32_t
from libc.string cimport memcpy

from virtring.channel.receive_many cimport get_array
from virtring.queue.batch cimport Batch
from virtring.ring.common cimport VR_OK
from virtring.ring.driver cimport driver_add_rows

from virtring.errors import InvalidArgument, WaitTimeout
from virtring.queue.eventfd import check_timeout

cdef enum:
    # Messages published at once: enough that one more costs nothing, few enough that the receiver
    # begins while the next ones are copied.
    CHUNK = 64

# numpy's own object, which every array of that type has.
cdef object UINT32 = np.dtype(np.uint32)


cdef class Channel(ChannelSend):
    """One end of a message channel between two processes, over two virtqueues in shared memory.

    Messages are bytes, from none to ``max_size``, and arrive whole and in order, both ways at the
    same time. Made in pairs by :func:`create`, or by :func:`listen` and :func:`connect`. From
    ``Region`` and ``EventFd`` objects, however they were obtained: ``Channel(region, layout, side,
    events)``, where ``side`` is 0 or 1, and ``events`` are four: messages for end 1, room for end
    0, messages for end 0, room for end 1. ``sock`` is a connected Unix socket whose end shows the
    peer's; ``spin_us`` how long at most to poll before sleeping (see :class:`~virtring.Spin`).

    A new end can go to another process: as an argument of a ``multiprocessing.Process`` (spawn) or
    simply be used by the child (fork). Whoever uses it first has it.

    One thread at a time sends, one receives; they may be two. Whoever calls while another waits
    gets QueueBusy. All methods may raise QueueClosed, QueueBroken (the peer wrote nonsense), and
    those that send PeerClosed or PeerDied.
    """

    cdef int attach_queues(self, object vdev) except -1:
        ChannelSend.attach_queues(self, vdev)
        self.rows = Batch(CHUNK)
        return 0

    cdef int publish_rows(self, size_t n) except -1:
        """Send the first n rows."""
        cdef int code
        self.vq.enter()
        code = driver_add_rows(
            &self.vq.pack, &self.vq.table.table, self.rows.cols.desc, self.rows.cols.token, n, 0
        )
        if code != VR_OK:
            self.vq.raise_fault(code)
        self.kick()
        return 0

    cdef tuple checked(self, object messages):
        """A list of messages, each of which can be sent; nothing is sent of a list with a bad one.
        """
        cdef Py_buffer view
        cdef tuple items
        if isinstance(messages, (bytes, bytearray, memoryview, str, np.ndarray)):
            raise InvalidArgument(
                f"a {type(messages).__name__} is one message, not a list of them; an array of"
                " messages goes with send_array()"
            )
        try:
            items = tuple(messages)
        except TypeError:
            raise InvalidArgument(
                f"messages is a {type(messages).__name__}; it takes a list of buffers"
            ) from None
        for item in items:
            if type(item) is bytes:
                if <size_t>PyBytes_GET_SIZE(item) > self.slot_size:
                    self.refuse_size(PyBytes_GET_SIZE(item))
            else:
                self.get_buffer(item, &view)
                PyBuffer_Release(&view)
        return items

    cdef inline void set_row(self, size_t row, size_t slot, size_t size) noexcept:
        self.rows.cols.desc[row].addr = self.slots_addr + slot * self.stride
        self.rows.cols.desc[row].len = <uint32_t>(size + 1)
        self.rows.cols.token[row] = slot

    cdef size_t put_list(self, tuple messages, size_t start) except? 0:
        """Send from message ``start`` on as far as there is room; how many were sent."""
        cdef Py_buffer view
        cdef size_t total = len(messages)
        cdef size_t i = start
        cdef size_t k, n, slot, size
        while i < total and self.room():
            n = min(self.n_free, total - i, <size_t>CHUNK)
            # Exporting a buffer can run anything; nobody else is to take the slots meanwhile.
            self.sending = True
            try:
                for k in range(n):
                    item = messages[i + k]
                    slot = self.free[self.n_free - 1 - k]
                    if type(item) is bytes:
                        size = PyBytes_GET_SIZE(item)
                        memcpy(self.slots + slot * self.stride, PyBytes_AS_STRING(item), size)
                    else:
                        self.get_buffer(item, &view)
                        size = view.len
                        memcpy(self.slots + slot * self.stride, view.buf, size)
                        PyBuffer_Release(&view)
                    self.set_row(k, slot, size)
            finally:
                self.sending = False
            self.n_free -= n
            self.publish_rows(n)
            i += n
        return i - start

    cdef size_t put_array(
        self, Py_buffer* data, const uint32_t* lengths, size_t each, size_t total, size_t start,
        size_t* at
    ) except? 0:
        """Send messages that lie one behind the other as far as there is room.

        From message ``start`` on, which begins at ``at``; moves that on. Without ``lengths`` each
        has ``each`` bytes. Lengths are the caller's memory, who may change them while we work.
        """
        cdef const char* source = <const char*>data.buf
        cdef size_t i = start
        cdef size_t k, n, slot
        cdef size_t size = each
        while i < total and self.room():
            n = min(self.n_free, total - i, <size_t>CHUNK)
            for k in range(n):
                if lengths != NULL:
                    size = lengths[i + k]
                if size > self.slot_size or size > <size_t>data.len - at[0]:
                    raise InvalidArgument(f"lengths[{i + k}] was changed to {size} meanwhile")
                slot = self.free[self.n_free - 1 - k]
                memcpy(self.slots + slot * self.stride, source + at[0], size)
                self.set_row(k, slot, size)
                at[0] += size
            self.n_free -= n
            self.publish_rows(n)
            i += n
        return i - start

    def try_send_batch(self, messages) -> int:
        """Send the messages of a list, in order, as far as there is room; how many were sent.

        All are checked first: InvalidArgument for one that cannot be sent, and none is. Otherwise
        raises as :meth:`try_send`.
        """
        cdef tuple items
        if self.state or self.sending:
            self.enter_send()
        items = self.checked(messages)
        return self.put_list(items, 0)

    def send_batch(self, messages, timeout=None) -> int:
        """As :meth:`try_send_batch`, but waits up to ``timeout`` seconds in all for room.

        Returns how many were sent: all of them, unless the time ran out. When the other end closes
        or dies meanwhile, PeerClosed or PeerDied; nobody knows then which arrived.
        """
        cdef tuple items
        cdef size_t sent
        if self.state or self.sending:
            self.enter_send()
        items = self.checked(messages)
        sent = self.put_list(items, 0)
        if sent < <size_t>len(items):
            deadline = _deadline(timeout)
            while sent < <size_t>len(items):
                try:
                    self.wait_send(_left(deadline))
                except WaitTimeout:
                    break
                sent += self.put_list(items, sent)
        return sent

    async def asend_batch(self, messages, timeout=None):
        """:meth:`send_batch` for an asyncio task."""
        cdef tuple items
        cdef size_t sent
        if self.state or self.sending:
            self.enter_send()
        items = self.checked(messages)
        deadline = _deadline(timeout)
        sent = self.put_list(items, 0)
        while sent < <size_t>len(items):
            try:
                await self._wait_send_async(_left(deadline))
            except WaitTimeout:
                break
            sent += self.put_list(items, sent)
        return sent

    def send_array(self, data, lengths=None, timeout=None) -> int:
        """Send many messages that lie one behind the other in one contiguous buffer.

        ``lengths`` are their sizes in bytes, an array of uint32 (or any integers) that add up to
        the size of ``data``. Without it ``data`` is an array of two or more dimensions, and
        ``data[i]`` is message i. Waits and returns as :meth:`send_batch`; ``timeout=0`` sends what
        there is room for.
        """
        cdef Py_buffer view
        cdef Py_buffer sizes
        cdef const uint32_t* first = NULL
        cdef size_t sent
        cdef size_t each = 0
        cdef size_t total = 0
        cdef size_t at = 0
        if self.state or self.sending:
            self.enter_send()
        try:
            PyObject_GetBuffer(data, &view, PyBUF_ND)
        except (TypeError, ValueError, BufferError) as error:
            raise InvalidArgument(f"data takes a contiguous buffer: {error}") from None
        try:
            if lengths is not None:
                get_lengths(lengths, &sizes, view.len, self.slot_size)
                total = sizes.shape[0]
                first = <const uint32_t*>sizes.buf
            elif view.ndim < 2:
                raise InvalidArgument(
                    "data has one dimension; without lengths it takes two or more, a message a row"
                )
            else:
                total = view.shape[0]
                each = view.len // max(total, <size_t>1)
                if each > self.slot_size:
                    self.refuse_size(each)
            sent = self.put_array(&view, first, each, total, 0, &at)
            if sent < total:
                deadline = _deadline(timeout)
                while sent < total:
                    try:
                        self.wait_send(_left(deadline))
                    except WaitTimeout:
                        break
                    sent += self.put_array(&view, first, each, total, sent, &at)
            return sent
        finally:
            if first != NULL:
                PyBuffer_Release(&sizes)
            PyBuffer_Release(&view)


cdef object _deadline(object timeout):
    timeout = check_timeout(timeout)
    return None if timeout is None else time.monotonic() + timeout


cdef object _left(object deadline):
    return None if deadline is None else max(0.0, deadline - time.monotonic())


cdef int get_lengths(object lengths, Py_buffer* view, size_t size, size_t most) except -1:
    """Lengths that are right at this moment, as uint32; InvalidArgument if they are not."""
    cdef const uint32_t* sizes
    cdef size_t total = 0
    cdef size_t longest = 0
    cdef Py_ssize_t i
    if not (type(lengths) is np.ndarray and lengths.dtype is UINT32):
        array = np.asarray(lengths)
        if array.size == 0:
            array = array.astype(np.uint32)
        if array.dtype.kind not in "ui":
            raise InvalidArgument(f"lengths takes integers, not {array.dtype}")
        if array.size and (array.min() < 0 or array.max() > most):
            raise InvalidArgument(
                f"lengths from {array.min()} to {array.max()}; this channel takes 0 to {most}"
                " (slot_size)"
            )
        lengths = array.astype(np.uint32)
    get_array(lengths, view, 4, False, "lengths")
    sizes = <const uint32_t*>view.buf
    for i in range(view.shape[0]):
        total += sizes[i]
        longest = max(longest, <size_t>sizes[i])
    if longest > most or total != size:
        PyBuffer_Release(view)
        raise InvalidArgument(
            f"lengths add up to {total} bytes and the longest is {longest}; data has {size}, and"
            f" this channel takes 0 to {most} (slot_size)"
        )
    return 0
