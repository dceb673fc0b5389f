"""Sending: the driver side of a ring; and the whole end of a channel."""

import time

import numpy as np

cimport cython
from cpython.buffer cimport (
    PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from virtring.channel.end cimport now_ns
from virtring.memory.barriers cimport cpu_relax, load_acquire64
from virtring.memory.table cimport PERM_RW
from virtring.queue.batch cimport Batch
from virtring.ring.common cimport VR_OK
from virtring.ring.driver cimport driver_add_one, driver_add_rows
from virtring.ring.packed_driver cimport packed_off_wrap, packed_used_at

from virtring.channel.peer import CLOSED, Waker
from virtring.errors import InvalidArgument, PeerDied, QueueBroken, QueueBusy, WaitTimeout
from virtring.queue.create import vring_new_virtqueue
from virtring.queue.eventfd import check_timeout
from virtring.queue.notify import Spin, async_wait_used, wait_used

cdef enum:
    # As in receive.pyx.
    POLLS = 16
    SLICE_NS = 1_000_000
    # Messages published at once: enough that one more costs nothing, few enough that the receiver
    # begins while the next ones are copied.
    CHUNK = 64

cdef uint32_t PEER_CLOSED = CLOSED


@cython.no_gc_clear
@cython.final
@cython.freelist(16)
cdef class Loan:
    """A slot in the shared memory to write a message into; from :meth:`Channel.loan`.

    It exports the buffer protocol, writable (format ``"B"``), over the ``size`` bytes of the
    longest message: ``numpy.frombuffer(loan, dtype)`` and ``memoryview(loan)`` are zero-copy.
    :meth:`Channel.commit` sends it; a loan that is dropped without that is given back unsent.
    Do not write to views of it afterwards: the receiver has it then.
    """

    def __init__(self):
        raise InvalidArgument("a Loan is made by Channel.loan")

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.host, self.size, 0, flags)

    def __len__(self):
        return self.size

    def __dealloc__(self):
        if self.channel is not None and self.channel.state == 0:
            self.channel.free[self.channel.n_free] = self.slot
            self.channel.n_free += 1

    def __repr__(self):
        return f"<Loan of {self.size} bytes{', committed' if self.channel is None else ''}>"


cdef class Channel(ChannelReceive):
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
        ChannelReceive.attach_queues(self, vdev)
        ring = self.layout.ring(self.side)
        waker = Waker.from_fd(self.events[2 * self.side + 1].fileno())
        waker.watch(self.peer)
        self.send_waker = waker
        self.send_spin = Spin(self.spin_limit)
        self.send_us = self.send_spin.us
        self.vq = vring_new_virtqueue(
            self.side, ring.size, 64, vdev, True, False, ring, notify=self.events[2 * self.side],
            name="channel",
        )
        self.stride = self.layout.stride
        self.slots_addr = self.layout.first_slot(self.side)
        self.slots = self.memory.host_of(self.slots_addr, ring.size * self.stride, PERM_RW)
        self.got = Batch(ring.size)
        self.rows = Batch(CHUNK)
        self.free_array = np.arange(ring.size - 1, -1, -1, dtype=np.uint32)
        self.free = self.free_array
        self.n_free = ring.size
        return 0

    cdef int drop_queues(self) except -1:
        ChannelReceive.drop_queues(self)
        self.vq.close()
        if self.sending:
            self.send_waker.signal()
        else:
            self.send_waker.close()
        return 0

    # -- slots ---------------------------------------------------------------------------------

    cdef int enter_send(self) except -1:
        if self.state:
            self.enter_slowly()
        if self.sending:
            raise QueueBusy("another thread or task waits in a send on this end")
        return 0

    cdef int harvest(self) except -1:
        """Take back the slots that the receiver is done with; 0 when there are none."""
        cdef size_t taken = 0
        cdef size_t i
        cdef int code
        if not self.back():
            return 0
        try:
            self.vq.enter()
            code = self.vq.get_plain(self.got, self.got.cols.capacity, &taken)
            for i in range(taken):
                self.free[self.n_free + i] = <uint32_t>self.got.cols.token[i]
            self.n_free += taken
            if code != VR_OK:
                self.vq.break_now(code, False)
        except QueueBroken as error:
            self.break_channel(error)
        return taken != 0

    cdef int room(self) except -1:
        """1 when there is a free slot. Raises when the peer is known to be gone."""
        if self.dead or <uint32_t>load_acquire64(self.peer_word, True) == PEER_CLOSED:
            self.look_at_peer()
        return self.n_free != 0 or self.harvest()

    cdef int publish(self, uint32_t slot, size_t size) except -1:
        """Send what is in a slot, which is not in the stack any more."""
        self.vq.enter()
        driver_add_one(
            &self.vq.pack, self.slots_addr + slot * self.stride, <uint32_t>(size + 1), slot, 0
        )
        if self.vq.wants_kick():
            self.vq.do_notify()
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
        if self.vq.wants_kick():
            self.vq.do_notify()
        return 0

    # -- one message ---------------------------------------------------------------------------

    cdef bint put(self, object data) except -1:
        """Copy and send; False when there is no room."""
        cdef Py_buffer view
        cdef uint32_t slot
        cdef size_t size
        if type(data) is bytes:
            size = PyBytes_GET_SIZE(data)
            if size > self.slot_size:
                self.refuse_size(size)
            if not self.room():
                return False
            slot = self.free[self.n_free - 1]
            memcpy(self.slots + slot * self.stride, PyBytes_AS_STRING(data), size)
        else:
            self.get_buffer(data, &view)
            try:
                if not self.room():
                    return False
                size = view.len
                slot = self.free[self.n_free - 1]
                memcpy(self.slots + slot * self.stride, view.buf, size)
            finally:
                PyBuffer_Release(&view)
        self.n_free -= 1
        self.publish(slot, size)
        return True

    cdef int refuse_size(self, size_t size) except -1:
        raise InvalidArgument(
            f"a message of {size} bytes; this channel takes at most {self.slot_size} (slot_size)"
        )

    cdef int get_buffer(self, object data, Py_buffer* view) except -1:
        """The bytes of a message that is no ``bytes``; InvalidArgument if it cannot be one."""
        try:
            PyObject_GetBuffer(data, view, PyBUF_SIMPLE)
        except (TypeError, ValueError, BufferError) as error:
            raise InvalidArgument(
                f"a message is a contiguous buffer of bytes, not this {type(data).__name__}:"
                f" {error}"
            ) from None
        if <size_t>view.len > self.slot_size:
            size = view.len
            PyBuffer_Release(view)
            self.refuse_size(size)
        return 0

    def try_send(self, data) -> bool:
        """Send one message if there is room for it; whether there was.

        ``data`` is bytes or any contiguous buffer, from 0 to ``max_size`` bytes; it is copied.
        Raises InvalidArgument for anything else, PeerClosed or PeerDied when it is known that
        nobody will receive it, QueueBusy when another thread waits for room.
        """
        if self.state or self.sending:
            self.enter_send()
        return self.put(data)

    def send(self, data, timeout=None) -> None:
        """Send one message; waits up to ``timeout`` seconds for room, None for ever.

        Raises WaitTimeout when the time ran out, otherwise as :meth:`try_send`; the death of the
        other process is noticed at once by who waits.
        """
        if self.state or self.sending:
            self.enter_send()
        while not self.put(data):
            self.wait_send(timeout)

    async def asend(self, data, timeout=None):
        """:meth:`send` for an asyncio task."""
        if self.state or self.sending:
            self.enter_send()
        while not self.put(data):
            await self._wait_send_async(timeout)

    # -- many ----------------------------------------------------------------------------------

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
        self, const unsigned char** data, const uint32_t* lengths, size_t total
    ) except? 0:
        """Send messages that lie one behind the other as far as there is room; moves ``data``."""
        cdef size_t i = 0
        cdef size_t k, n, slot
        while i < total and self.room():
            n = min(self.n_free, total - i, <size_t>CHUNK)
            for k in range(n):
                slot = self.free[self.n_free - 1 - k]
                memcpy(self.slots + slot * self.stride, data[0], lengths[i + k])
                self.set_row(k, slot, lengths[i + k])
                data[0] += lengths[i + k]
            self.n_free -= n
            self.publish_rows(n)
            i += n
        return i

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
        cdef uint32_t[::1] sizes
        cdef size_t total, sent
        cdef const unsigned char* rest
        if self.state or self.sending:
            self.enter_send()
        try:
            PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        except (TypeError, ValueError, BufferError) as error:
            raise InvalidArgument(f"data takes a contiguous buffer: {error}") from None
        try:
            sizes = checked_lengths(data, lengths, view.len, self.slot_size)
            total = sizes.shape[0]
            if total == 0:
                return 0
            rest = <const unsigned char*>view.buf
            sent = self.put_array(&rest, &sizes[0], total)
            if sent < total:
                deadline = _deadline(timeout)
                while sent < total:
                    try:
                        self.wait_send(_left(deadline))
                    except WaitTimeout:
                        break
                    sent += self.put_array(&rest, &sizes[sent], total - sent)
            return sent
        finally:
            PyBuffer_Release(&view)

    # -- without a copy ------------------------------------------------------------------------

    cdef Loan take_slot(self):
        cdef Loan loan = Loan.__new__(Loan)
        self.n_free -= 1
        loan.slot = self.free[self.n_free]
        loan.channel = self
        loan.table = self.table
        loan.host = self.slots + loan.slot * self.stride
        loan.size = self.slot_size
        return loan

    def try_loan(self):
        """A :class:`Loan` to write a message into, or None when no slot is free."""
        if self.state or self.sending:
            self.enter_send()
        if not self.room():
            return None
        return self.take_slot()

    def loan(self, timeout=None) -> Loan:
        """A :class:`Loan`: a slot of the shared memory, to write ``max_size`` bytes or fewer.

        Waits and raises as :meth:`send`. Several may be out; they are sent in the order of their
        :meth:`commit`.
        """
        if self.state or self.sending:
            self.enter_send()
        while not self.room():
            self.wait_send(timeout)
        return self.take_slot()

    async def aloan(self, timeout=None):
        """:meth:`loan` for an asyncio task."""
        if self.state or self.sending:
            self.enter_send()
        while not self.room():
            await self._wait_send_async(timeout)
        return self.take_slot()

    def commit(self, Loan loan not None, length=None) -> None:
        """Send the first ``length`` bytes of a loan, by default all of it. Nothing is copied.

        Raises InvalidArgument for a loan that was committed before or is another channel's, or a
        length that does not fit; PeerClosed or PeerDied as :meth:`try_send`, and the loan is still
        there then.
        """
        cdef size_t size = self.slot_size
        if self.state or self.sending:
            self.enter_send()
        if loan.channel is not self:
            raise InvalidArgument(f"{loan!r} is not a loan of this end that is still out")
        if length is not None:
            if not isinstance(length, int) or not 0 <= length <= self.slot_size:
                raise InvalidArgument(f"length is {length!r}; it takes 0 to {self.slot_size}")
            size = length
        if self.dead or <uint32_t>load_acquire64(self.peer_word, True) == PEER_CLOSED:
            self.look_at_peer()
        loan.channel = None
        self.publish(loan.slot, size)

    # -- waiting -------------------------------------------------------------------------------

    cdef bint back(self) noexcept nogil:
        """Whether the receiver has given something back, in one look."""
        return packed_used_at(&self.vq.pack, packed_off_wrap(&self.vq.pack, 0))

    cdef bint spin_send(self, int64_t until) noexcept nogil:
        """Poll until there is room or ``until`` has come."""
        cdef int _i
        while True:
            for _i in range(POLLS):
                if self.back():
                    return True
                cpu_relax()
            if now_ns() >= until:
                return False

    cdef int wait_send(self, object timeout) except -1:
        """Wait until there is room; as wait_recv."""
        cdef int64_t start = now_ns()
        cdef int64_t until, now
        cdef double us
        cdef bint found
        if timeout is not None:
            timeout = check_timeout(timeout)
        if self.spin_send(0) and self.harvest():
            return 0
        self.sending = True
        try:
            us = self.send_us
            if timeout is not None:
                us = min(us, timeout * 1e6)
            now = start
            until = start + <int64_t>(us * 1000)
            found = False
            while not found and now < until and self.state == 0:
                with nogil:
                    found = self.spin_send(min(until, now + SLICE_NS))
                    now = now_ns()
                PyErr_CheckSignals()
            if not found:
                left = None
                if timeout is not None:
                    left = max(0.0, timeout - <double>(now - start) * 1e-9)
                if not wait_used(self.vq, self.send_waker, left):
                    raise WaitTimeout(f"no room for a message in {timeout} seconds")
            if not found or us < self.send_spin.max_us:
                self.send_spin.waited(<double>(now_ns() - start) * 1e-3, slept=not found)
                self.send_us = self.send_spin.us
        except PeerDied:
            self.dead = True
            raise
        finally:
            self.send_waited()
        return self.harvest()

    async def _wait_send_async(self, timeout):
        timeout = check_timeout(timeout)
        if self.state or self.sending:
            self.enter_send()
        self.sending = True
        try:
            if not await async_wait_used(self.vq, self.send_waker, timeout):
                raise WaitTimeout(f"no room for a message in {timeout} seconds")
        except PeerDied:
            self.dead = True
            raise
        finally:
            self.send_waited()
        self.harvest()

    cdef int send_waited(self) except -1:
        """Nobody waits any more; when another thread closed the end meanwhile, say so."""
        self.sending = False
        if self.state:
            self.send_waker.close()
            self.enter_slowly()
        return 0


cdef object _deadline(object timeout):
    timeout = check_timeout(timeout)
    return None if timeout is None else time.monotonic() + timeout


cdef object _left(object deadline):
    return None if deadline is None else max(0.0, deadline - time.monotonic())


cdef object checked_lengths(object data, object lengths, object size, object most):
    """The sizes of the messages in ``data`` as uint32; InvalidArgument if they cannot be."""
    if lengths is None:
        shape = memoryview(data).shape
        if len(shape) < 2:
            raise InvalidArgument(
                "data has one dimension; without lengths it takes two or more, a message a row"
            )
        each = size // shape[0] if shape[0] else 0
        if each > most:
            raise InvalidArgument(
                f"messages of {each} bytes; this channel takes at most {most} (slot_size)"
            )
        return np.full(shape[0], each, np.uint32)
    array = np.asarray(lengths)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "ui"):
        raise InvalidArgument("lengths takes one dimension of integers")
    if array.size == 0:
        array = array.astype(np.uint32)
    elif array.min() < 0 or array.max() > most:
        raise InvalidArgument(
            f"lengths from {array.min()} to {array.max()}; this channel takes 0 to {most}"
            " (slot_size)"
        )
    if int(array.sum(dtype=np.uint64)) != size:
        raise InvalidArgument(
            f"lengths add up to {int(array.sum(dtype=np.uint64))} bytes; data has {size}"
        )
    # A copy: the caller's array may change while we wait.
    return array.astype(np.uint32)
