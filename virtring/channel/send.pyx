"""Sending one by one: the driver side of a ring."""

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
from virtring.ring.driver cimport driver_add_one
from virtring.ring.packed_driver cimport packed_kick_decide, packed_off_wrap, packed_used_at

from virtring.channel.peer import CLOSED, FENCES, Waker
from virtring.errors import InvalidArgument, PeerDied, QueueBroken, QueueBusy, WaitTimeout
from virtring.queue.create import vring_new_virtqueue
from virtring.queue.eventfd import check_timeout
from virtring.queue.notify import Spin, async_wait_used, wait_used

cdef enum:
    # As in receive.pyx.
    POLLS = 16
    SLICE_NS = 1_000_000

cdef uint64_t PEER_CLOSED = CLOSED
cdef uint64_t PEER_FENCES = FENCES


def _no_look() -> bool:
    """Between asking to be woken and sleeping, a sender has nothing to do: wait_used looked."""
    return False


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


cdef class ChannelSend(ReceiveMany):
    """The part of :class:`Channel` that sends one by one."""

    cdef int attach_queues(self, object vdev) except -1:
        ReceiveMany.attach_queues(self, vdev)
        ring = self.layout.ring(self.side)
        waker = Waker.from_fd(self.events[2 * self.side + 1].fileno())
        waker.watch(self.peer, _no_look)
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
        self.free_array = np.arange(ring.size - 1, -1, -1, dtype=np.uint32)
        self.free = self.free_array
        self.n_free = ring.size
        return 0

    cdef int drop_queues(self) except -1:
        ReceiveMany.drop_queues(self)
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
        cdef uint64_t word = load_acquire64(self.peer_word, True)
        if self.dead or word & 0xFF == PEER_CLOSED:
            self.look_at_peer()
        self.light = self.fenced and word & PEER_FENCES
        return self.n_free != 0 or self.harvest()

    cdef int publish(self, uint32_t slot, size_t size) except -1:
        """Send what is in a slot, which is not in the stack any more."""
        self.vq.enter()
        driver_add_one(
            &self.vq.pack, self.slots_addr + slot * self.stride, <uint32_t>(size + 1), slot, 0
        )
        self.kick()
        return 0

    cdef int kick(self) except -1:
        """Wake the receiver if it wants that."""
        # A receiver that fences us before it sleeps spares us the barrier (see LastLook). The
        # add, a call into another module, keeps the compiler from looking too early.
        if packed_kick_decide(&self.vq.pack) if self.light else self.vq.wants_kick():
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
        if self.dead or load_acquire64(self.peer_word, True) & 0xFF == PEER_CLOSED:
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
