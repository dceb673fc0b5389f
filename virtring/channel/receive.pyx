"""Receiving one by one: the device side of the ring that the other end sends on."""

import weakref

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t, uint32_t

from virtring.channel.end cimport fence_others, now_ns
from virtring.memory.barriers cimport cpu_relax
from virtring.queue.batch cimport Batch
from virtring.queue.device cimport DeviceQueue
from virtring.ring.packed_device cimport packed_look, packed_word_available

from virtring.channel.layout import BASE
from virtring.channel.peer import Waker
from virtring.errors import (
    BadChain, InvalidArgument, PeerClosed, PeerDied, QueueBroken, QueueBusy, WaitTimeout,
)
from virtring.queue.eventfd import check_timeout
from virtring.queue.notify import Spin, async_wait_available, wait_available

cdef enum:
    # Looks at the ring between two looks at the clock.
    POLLS = 16
    # How long to poll at most without a look at signals (Ctrl-C) and at the channel's state.
    SLICE_NS = 1_000_000


@cython.no_gc_clear
@cython.final
@cython.freelist(16)
cdef class Borrow:
    """A received message where it lies in the shared memory; from :meth:`Channel.borrow`.

    It exports the buffer protocol, read-only (format ``"B"``): ``numpy.frombuffer(message, dtype)``
    and ``memoryview(message)`` are zero-copy. ``size`` is its length in bytes. The sender can still
    change it: copy what has to be checked. Its slot goes back with :meth:`Channel.release`, at the
    end of a ``with`` block, or with the last view of it.
    """

    def __init__(self):
        raise InvalidArgument("a Borrow is made by Channel.borrow")

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(buffer, self, <void*>self.host, self.size, 1, flags)

    def __len__(self):
        return self.size

    def __bytes__(self):
        return PyBytes_FromStringAndSize(self.host, self.size)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if self.channel is not None:
            self.channel.release(self)

    def __dealloc__(self):
        if self.channel is not None and self.channel.state == 0:
            self.channel.give_dropped(self.id)

    def __repr__(self):
        return f"<Borrow {self.size} bytes{', released' if self.channel is None else ''}>"


@cython.final
cdef class LastLook:
    """What a receiver does between asking to be woken and going to sleep.

    A sender that knows that its peer does this sends without a memory barrier of its own, which
    would wait for the other core each time. The barrier is made here instead, in both processes:
    either the sender's look at our wish comes after it, or its message is here before it.
    """
    cdef object end                     # a weak reference: the end owns who calls us

    def __init__(self, end):
        self.end = weakref.ref(end)

    def __call__(self) -> bool:
        cdef ChannelReceive end = self.end()
        if end is None or end.state:
            return False
        fence_others()
        return end.look()


cdef class ChannelReceive(ChannelEnd):
    """The part of :class:`Channel` that receives."""

    cdef int attach_queues(self, object vdev) except -1:
        cdef int other = 1 - self.side
        waker = Waker.from_fd(self.events[2 * other].fileno())
        waker.watch(self.peer, LastLook(self))
        self.recv_waker = waker
        self.recv_spin = Spin(self.spin_limit)
        self.recv_us = self.recv_spin.us
        self.dq = DeviceQueue(
            self.memory, self.layout.ring(other), call=self.events[2 * other + 1]
        )
        self.give_at = self.layout.give_back
        self.first_addr = BASE
        self.popped = Batch(32)
        self.given = Batch(self.layout.num)
        self.kicked = True
        return 0

    cdef int drop_queues(self) except -1:
        self.dq.close()
        # A waiter in another thread wakes, sees that, and closes it.
        if self.receiving:
            self.recv_waker.signal()
        else:
            self.recv_waker.close()
        return 0

    # -- one message ---------------------------------------------------------------------------

    cdef bint look(self) noexcept nogil:
        """Whether the ring has something, in one look."""
        return packed_word_available(&self.dq.pack, packed_look(&self.dq.pack))

    cdef int refill(self) except -1:
        """Take what there is from the ring, up to a batch; 0 when there is nothing."""
        cdef size_t n = 0
        if not self.look():
            return 0
        try:
            self.dq.enter_ring()
            n = self.dq.pop_rows(self.popped, self.popped.cols.capacity)
        except QueueBroken as error:
            self.break_channel(error)
        self.pos = 0
        self.end = n
        if n and self.kicked:
            # Not before the first message: until then the sender may still be clearing the ring.
            self.dq.disable_notify()
            self.kicked = False
        return n != 0

    cdef int enter_recv(self) except -1:
        if self.state:
            self.enter_slowly()
        if self.receiving:
            raise QueueBusy("another thread or task waits in a receive on this end")
        return 0

    cdef int ready_recv(self) except -1:
        """1 when there is a message; raises when there is none and will be none."""
        if self.pos != self.end or self.refill():
            return 1
        try:
            self.look_at_peer()
        except (PeerClosed, PeerDied):
            # It may have sent something between the two looks.
            if self.refill():
                return 1
            raise
        return 0

    cdef int refuse_message(self) except -1:
        """The next message cannot be right."""
        cdef size_t row = self.pos
        cdef size_t first = self.popped.cols.offsets[row]
        self.break_channel(BadChain(
            f"the other end sent a message of {<int64_t>self.popped.cols.desc[first].len - 1} bytes"
            f" in {self.popped.cols.offsets[row + 1] - first} pieces; a message is one readable"
            f" piece of at most {self.slot_size} bytes"
        ))

    cdef int give_back(self) except -1:
        """Return the slots of the messages that were received."""
        self.dq.enter_push()
        self.dq.push_rows(self.given.cols.id, self.given.cols.written, self.n_given, 0)
        self.n_given = 0
        self.dq.signal()
        return 0

    cdef void give_dropped(self, uint32_t id) noexcept:
        """:meth:`done` for a message that nobody refers to any more, who could hear of an error."""
        try:
            self.done(id)
        except Exception:
            pass

    cdef bytes take(self):
        cdef uint32_t size = 0
        cdef const char* host = self.message(&size)
        cdef bytes data = PyBytes_FromStringAndSize(host, size)
        self.pos += 1
        self.done(self.popped.cols.id[self.pos - 1])
        return data

    def try_recv(self):
        """The next message as bytes, or None when there is none.

        Raises PeerClosed or PeerDied when there is none and it is known that none will come;
        BadChain, once, when the other end wrote nonsense, and QueueBroken from then on; QueueBusy
        when another thread waits for a message.
        """
        if self.state or self.receiving:
            self.enter_recv()
        if self.pos == self.end and not self.ready_recv():
            return None
        return self.take()

    def recv(self, timeout=None) -> bytes:
        """The next message; waits up to ``timeout`` seconds for it, None for ever.

        Raises WaitTimeout when the time ran out, otherwise as :meth:`try_recv`; the death of the
        other process is noticed at once.
        """
        if self.state or self.receiving:
            self.enter_recv()
        if self.pos == self.end and not self.ready_recv():
            self.wait_recv(timeout)
        return self.take()

    async def arecv(self, timeout=None):
        """:meth:`recv` for an asyncio task."""
        await self._wait_recv_async(timeout)
        return self.take()

    # -- without a copy ------------------------------------------------------------------------

    cdef Borrow lend(self):
        cdef uint32_t size = 0
        cdef const char* host = self.message(&size)
        cdef Borrow borrow = Borrow.__new__(Borrow)
        borrow.channel = self
        borrow.table = self.table
        borrow.host = host
        borrow.size = size
        borrow.id = self.popped.cols.id[self.pos]
        self.pos += 1
        return borrow

    def try_borrow(self):
        """The next message as a :class:`Borrow`, in place, or None. Raises as :meth:`try_recv`."""
        if self.state or self.receiving:
            self.enter_recv()
        if self.pos == self.end and not self.ready_recv():
            return None
        return self.lend()

    def borrow(self, timeout=None) -> Borrow:
        """:meth:`recv` without a copy: the message in place, until :meth:`release`.

        Its slot is not free meanwhile: who keeps ``slots`` messages borrowed stops the sender.
        """
        if self.state or self.receiving:
            self.enter_recv()
        if self.pos == self.end and not self.ready_recv():
            self.wait_recv(timeout)
        return self.lend()

    async def aborrow(self, timeout=None):
        """:meth:`borrow` for an asyncio task."""
        await self._wait_recv_async(timeout)
        return self.lend()

    def release(self, Borrow message not None) -> None:
        """Give the slot of a borrowed message back; the sender will write to it again.

        Raises InvalidArgument for a message that was released before or belongs to another channel.
        """
        if message.channel is not self:
            raise InvalidArgument(f"{message!r} is not a message that this end has borrowed")
        if self.state:
            self.enter_slowly()
        message.channel = None
        self.done(message.id)

    # -- waiting -------------------------------------------------------------------------------

    cdef bint spin_recv(self, int64_t until) noexcept nogil:
        """Poll until there is something or ``until`` has come."""
        cdef int _i
        while True:
            for _i in range(POLLS):
                if self.look():
                    return True
                cpu_relax()
            if now_ns() >= until:
                return False

    cdef int wait_recv(self, object timeout) except -1:
        """Wait until there is a message in ``popped``."""
        cdef int64_t start = now_ns()
        cdef int64_t until, now
        cdef double us
        cdef bint found
        if timeout is not None:
            timeout = check_timeout(timeout)
        # A message that comes at once does not cost giving up the GIL.
        if self.spin_recv(0) and self.refill():
            return 0
        self.receiving = True
        try:
            us = self.recv_us
            if timeout is not None:
                us = min(us, timeout * 1e6)
            now = start
            until = start + <int64_t>(us * 1000)
            found = False
            while not found and now < until and self.state == 0:
                with nogil:
                    # The mapping is kept by the table, whatever another thread closes meanwhile.
                    found = self.spin_recv(min(until, now + SLICE_NS))
                    now = now_ns()
                PyErr_CheckSignals()
            if not found:
                left = None
                if timeout is not None:
                    left = max(0.0, timeout - <double>(now - start) * 1e-9)
                if not wait_available(self.dq, self.recv_waker, left):
                    raise WaitTimeout(f"no message came in {timeout} seconds")
            if not found or us < self.recv_spin.max_us:
                self.recv_spin.waited(<double>(now_ns() - start) * 1e-3, slept=not found)
                self.recv_us = self.recv_spin.us
        except (PeerClosed, PeerDied) as error:
            self.dead = isinstance(error, PeerDied)
            # It may have sent something before.
            if not self.look():
                raise
        finally:
            self.recv_waited()
        self.refill()
        return 0

    async def _wait_recv_async(self, timeout):
        timeout = check_timeout(timeout)
        if self.state or self.receiving:
            self.enter_recv()
        if self.ready_recv():
            return
        self.receiving = True
        try:
            if not await async_wait_available(self.dq, self.recv_waker, timeout):
                raise WaitTimeout(f"no message came in {timeout} seconds")
        except (PeerClosed, PeerDied) as error:
            self.dead = isinstance(error, PeerDied)
            if not self.look():
                raise
        finally:
            self.recv_waited()
        self.refill()

    cdef int recv_waited(self) except -1:
        """Nobody waits any more; when another thread closed the end meanwhile, say so."""
        self.receiving = False
        if self.state:
            self.recv_waker.close()
            self.enter_slowly()
        return 0
