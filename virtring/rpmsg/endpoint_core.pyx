"""What endpoints do for every message, without a detour: the hot half of :class:`Endpoint`."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t

from virtring.rpmsg.messages cimport Messages
from virtring.rpmsg.wire cimport ANY

from collections import deque
from functools import partial

from virtring.errors import InvalidArgument, QueueClosed, WaitTimeout
from virtring.queue.eventfd import check_timeout
from virtring.rpmsg.wire import check_address

cdef object NO_WAIT = 0


cdef class EndpointCore:
    """Base of :class:`Endpoint`, which tells what the methods do.

    Locks are taken here; who has to wait does so in the bus.
    """

    def __init__(self, bus, addr, dst, callback, batch_callback, backlog, channel):
        self.bus = bus
        self.port = bus.port
        self.tx_lock = bus.tx_lock
        self.rx_lock = bus.rx_lock
        self.addr = addr
        self.to = dst
        self.callback = callback
        self.batch_callback = batch_callback
        self.backlog = backlog
        self.channel = channel
        self.waiting = deque()

    @property
    def dst(self) -> int:
        """Where :meth:`send` sends; ANY while that is not known. InvalidArgument for no address."""
        return self.to

    @dst.setter
    def dst(self, value):
        self.to = check_address(value, "dst")

    cdef int check(self) except -1:
        if self.destroyed:
            raise QueueClosed(f"the endpoint {self.addr:#x} was destroyed")
        if self.port.closed:
            raise QueueClosed("the bus was closed")
        return 0

    # -- sending -------------------------------------------------------------------------------

    cdef int send_data(self, uint32_t dst, object data, bint wait) except -1:
        cdef int sent = 0
        self.check()
        # Spelt out: "with" makes two objects.
        self.tx_lock.acquire()
        try:
            sent = self.port.send_message(self.addr, dst, data)
        finally:
            self.tx_lock.release()
        if not sent:
            if wait:
                self.bus.send_offchannel(self.addr, dst, data)
            else:
                self.bus.refuse(1)
        return 0

    def send(self, data) -> None:
        """Send to :attr:`dst`. (Linux ``rpmsg_send``)"""
        self.send_data(self.to, data, True)

    def sendto(self, data, dst) -> None:
        """Send to an address. (Linux ``rpmsg_sendto``)"""
        self.send_data(check_address(dst, "dst"), data, True)

    def trysend(self, data) -> None:
        """:meth:`send` without waiting. (Linux ``rpmsg_trysend``)"""
        self.send_data(self.to, data, False)

    def trysendto(self, data, dst) -> None:
        """:meth:`sendto` without waiting. (Linux ``rpmsg_trysendto``)"""
        self.send_data(check_address(dst, "dst"), data, False)

    cdef Py_ssize_t send_rows(
        self, Messages m, object start, object count, uint32_t dst, bint wait
    ) except -1:
        cdef Py_ssize_t first = 0
        cdef Py_ssize_t end = 0
        cdef Py_ssize_t sent = 0
        self.check()
        m.window(start, count, &first, &end)
        self.tx_lock.acquire()
        try:
            sent = self.port.send_window(m, first, end, self.addr, dst)
        finally:
            self.tx_lock.release()
        if sent == end - first:
            return sent
        if wait:
            return self.bus.send_rest(m, first, end - first, sent, self.addr, dst)
        self.bus.count_refused(end - first - sent)
        return sent

    cdef uint32_t known(self) except? 0:
        if self.to == ANY:
            raise InvalidArgument("the endpoint's dst is not known; use the ..._to forms")
        return self.to

    def send_many(self, Messages messages not None, start=0, count=None) -> int:
        """Send rows to :attr:`dst`; fewer than asked only when the time ran out behind some."""
        return self.send_rows(messages, start, count, self.known(), True)

    def sendto_many(self, Messages messages not None, start=0, count=None) -> int:
        """:meth:`send_many`, each row to its ``dst`` column."""
        return self.send_rows(messages, start, count, ANY, True)

    def trysend_many(self, Messages messages not None, start=0, count=None) -> int:
        """:meth:`send_many` without waiting; how many there were buffers for."""
        return self.send_rows(messages, start, count, self.known(), False)

    def trysendto_many(self, Messages messages not None, start=0, count=None) -> int:
        """:meth:`sendto_many` without waiting; how many there were buffers for."""
        return self.send_rows(messages, start, count, ANY, False)

    # -- receiving -----------------------------------------------------------------------------

    cdef int check_own(self) except -1:
        if self.callback is not None or self.batch_callback is not None:
            raise InvalidArgument("the endpoint's messages go to its callback")
        return 0

    cdef int hear(self, uint32_t src) except -1:
        if self.to == ANY and self.channel is not None and self.channel.announce:
            self.to = self.channel.dst = src
        return 0

    def learn(self, src) -> None:
        """An announced endpoint talks to whoever talks to it first."""
        self.hear(src)

    cdef bint straight(self) except -1:
        """Whether what is in the ring may come here at once: nothing older is on its way.

        Under the lock.
        """
        if self.destroyed:
            # Since it was checked; the address may be another's.
            return False
        if self.port.closed or self.port.busy or self.port.inbox.rows:
            return self.bus.clear_for(self.addr)
        return not self.waiting

    cdef object take(self):
        """The oldest waiting message, after the ring was looked at; None if there is none."""
        cdef Messages got = self.port.direct
        cdef Py_ssize_t i
        cdef Py_ssize_t n = 0
        self.check()
        if not self.waiting:
            self.rx_lock.acquire()
            try:
                if self.straight():
                    got.rows = 0
                    if self.port.recv_window(got, self.port.inbox, self.addr, self.backlog):
                        n = got.rows
                        for i in range(n):
                            self.waiting.append((
                                PyBytes_FromStringAndSize(got.payload_at(i), got._len[i]),
                                got._src[i],
                                got._flags[i],
                            ))
                        if n:
                            self.hear(got._src[0])
                        # Who is told may call back, and use these rows.
                        self.port.tell()
                        if self.port.inbox.rows:
                            self.bus.hand_out()
            finally:
                self.rx_lock.release()
            if n > 1:
                # Some may be another receiver's.
                self.bus.rx.wake()
        try:
            return self.waiting.popleft()
        except IndexError:
            return None

    def take_one(self):
        """``(payload, src, flags)`` of the next message, or None; does not wait."""
        return self.take()

    def recv(self, timeout=None):
        """The next message as ``(payload, src)``; WaitTimeout after ``timeout`` seconds.

        None waits for ever. Messages of other endpoints are processed meanwhile.
        """
        self.check_own()
        if timeout is not None:
            timeout = check_timeout(timeout)
        found = self.take()
        if found is None:
            found = self.bus.wait_rx(self.take_one, timeout)
            if found is None:
                raise WaitTimeout(f"no message came within {timeout} s")
        return found[0], found[1]

    cdef Py_ssize_t take_rows(self, Messages m) except -1:
        cdef Py_ssize_t row
        self.check()
        if not self.waiting:
            self.rx_lock.acquire()
            try:
                if self.straight():
                    if self.port.recv_window(m, self.port.inbox, self.addr, m.capacity):
                        self.port.tell()
                        if self.port.inbox.rows:
                            self.bus.hand_out()
            finally:
                self.rx_lock.release()
        while m.rows < m.capacity and self.waiting:
            payload, src, flags = self.waiting.popleft()
            row = m.append(payload, src, self.addr)
            m._flags[row] = flags
        if m.rows and self.to == ANY:
            self.hear(m._src[0])
        return m.rows

    def fill(self, Messages messages not None) -> int:
        """Rows for what waits here, then straight from the ring; how many are in use."""
        return self.take_rows(messages)

    def recv_batch(self, Messages messages not None, timeout=NO_WAIT) -> int:
        """Receive into ``messages`` from row 0, as many as are there; how many there were.

        ``timeout`` seconds are waited for the first one; 0, the default, only looks. The rows need
        :attr:`RpmsgBus.rx_mtu` bytes. Messages of other endpoints are processed meanwhile.
        """
        cdef Py_ssize_t found
        self.check_own()
        if timeout is not NO_WAIT:
            timeout = check_timeout(timeout)
        messages.rows = 0
        found = self.take_rows(messages)
        if found or timeout == 0:
            return found
        return self.bus.wait_rx(partial(self.fill, messages), timeout)
