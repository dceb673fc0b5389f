"""The driver's end: it owns all buffers, posts half of them to be written and sends the others."""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

import numpy as np

from virtring.queue.batch cimport Batch
from virtring.ring.common cimport put_row
from virtring.rpmsg.messages cimport Messages
from virtring.rpmsg.port cimport Port
from virtring.rpmsg.wire cimport HDR_SIZE, put_header

from virtring.errors import InvalidArgument
from virtring.memory.pool import BufferPool

cdef enum:
    # Rows that go to the ring at once.
    BURST = 256
    # Where a buffer is.
    POOL = 0
    RING = 1
    HELD = 2


@cython.final
cdef class Half:
    """The buffers of one direction. A buffer is known by its index, which is its token."""
    cdef object pool
    cdef uint8_t[:, ::1] memory
    cdef uint64_t[::1] addr
    cdef uint8_t[::1] place
    cdef uint32_t[::1] stack            # indexes of buffers in the pool that were used before
    cdef Py_ssize_t spare               # entries of stack
    cdef Py_ssize_t fresh               # buffers from here on were never used (Linux last_sbuf)
    cdef Py_ssize_t n
    cdef Py_ssize_t held
    cdef uint32_t size
    cdef char* base                     # of memory
    cdef Py_ssize_t stride
    cdef Batch adding
    cdef Batch got

    def __cinit__(self, memory, n, size):
        self.pool = BufferPool(memory, n, size)
        self.memory = self.pool.array
        self.base = <char*>&self.memory[0, 0]
        self.stride = self.memory.strides[0]
        self.addr = np.array(self.pool.addrs)
        self.place = np.zeros(n, np.uint8)
        self.stack = np.zeros(n, np.uint32)
        self.n = n
        self.size = size
        self.adding = Batch(BURST)
        self.got = Batch(BURST)

    cdef inline char* host(self, Py_ssize_t index) noexcept:
        return self.base + index * self.stride

    cdef inline void put_back(self, uint32_t index) noexcept:
        self.place[index] = POOL
        self.stack[self.spare] = index
        self.spare += 1

    cdef inline Py_ssize_t ours(self, uint64_t token) noexcept:
        """The buffer that came back from the ring; -1 for what somebody else has added."""
        if token >= <uint64_t>self.n or self.place[token] != RING:
            return -1
        return <Py_ssize_t>token

    cdef Py_ssize_t pick(self, object vq, Py_ssize_t want) except -1:
        """Rows of ``adding`` filled with up to ``want`` (at most BURST) buffers of the pool.

        Those put back come first, then fresh ones in order, then used ones of the ring (Linux
        get_a_tx_buf). A row has address and token; its buffer counts as in the ring.
        """
        cdef Py_ssize_t k = 0
        cdef Py_ssize_t i
        cdef Py_ssize_t index
        cdef Py_ssize_t taken
        while k < want and self.spare:
            self.spare -= 1
            self.row(k, self.stack[self.spare])
            k += 1
        while k < want and self.fresh < self.n:
            self.row(k, <uint32_t>self.fresh)
            self.fresh += 1
            k += 1
        if k < want:
            try:
                taken = vq.get_buf_batch(self.got, want - k)
            except BaseException:
                self.unpick(0, k)
                raise
            for i in range(taken):
                if self.got.objects and i in self.got.objects:
                    continue
                index = self.ours(self.got.cols.token[i])
                if index >= 0:
                    self.row(k, <uint32_t>index)
                    k += 1
        return k

    cdef inline void row(self, Py_ssize_t k, uint32_t index) noexcept:
        self.place[index] = RING
        self.adding.cols.token[k] = index
        put_row(&self.adding.cols.desc[k], self.addr[index], self.size, 0)

    cdef void unpick(self, Py_ssize_t first, Py_ssize_t end) noexcept:
        """These rows did not get into the ring: their buffers are not lost."""
        cdef Py_ssize_t k
        for k in range(first, end):
            self.put_back(<uint32_t>self.adding.cols.token[k])

    cdef Py_ssize_t check_held(self, object index) except -1:
        cdef Py_ssize_t i = index
        if not 0 <= i < self.n or self.place[i] != HELD:
            raise InvalidArgument(f"buffer {index} is not held: it was sent or released before")
        return i


@cython.final
cdef class DriverPort(Port):
    """Two :class:`Virtqueue` objects and ``num_rx`` + ``num_tx`` buffers in their memory.

    Not locked; see :class:`virtring.rpmsg.bus.RpmsgBus`. (Linux ``struct virtproc_info``)
    """
    cdef readonly object rvq
    cdef readonly object svq
    cdef Half rx
    cdef Half tx

    def __init__(self, rvq, svq, rx_buf_size, tx_buf_size, num_rx, num_tx, big_endian):
        self.set_sizes(tx_buf_size, rx_buf_size, big_endian)
        self.rvq = rvq
        self.svq = svq
        self.rx = Half(rvq.memory, num_rx, rx_buf_size)
        self.tx = Half(svq.memory, num_tx, tx_buf_size)
        # The kick is the caller's: the device may not be ready for one yet.
        self.post_all()

    # -- sending -------------------------------------------------------------------------------

    cdef Py_ssize_t add_picked(self, Py_ssize_t k) except -1:
        """Add the first k rows; how many got in. The others' buffers go back to the pool."""
        cdef Py_ssize_t added
        try:
            added = self.svq.add_outbuf_batch(self.tx.adding, 0, k)
        except BaseException:
            self.tx.unpick(0, k)
            raise
        self.tx.unpick(added, k)
        return added

    cdef int send_message(self, uint32_t src, uint32_t dst, object data) except -1:
        cdef Py_buffer view
        cdef char* at
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            self.check_one(src, dst, view.len)
            if self.tx.pick(self.svq, 1) == 0:
                return 0
            at = self.tx.host(self.tx.adding.cols.token[0])
            put_header(at, src, dst, <uint32_t>view.len, self.swap)
            memcpy(at + HDR_SIZE, view.buf, view.len)
            self.tx.adding.cols.desc[0].len = <uint32_t>view.len + HDR_SIZE
            if self.add_picked(1) == 0:
                return 0
            self.tx_messages += 1
            self.tx_bytes += <uint64_t>view.len
        finally:
            PyBuffer_Release(&view)
        self.svq.kick()
        return 1

    cdef Py_ssize_t send_window(
        self, Messages m, Py_ssize_t first, Py_ssize_t end, uint32_t src, uint32_t dst
    ) except -1:
        cdef Py_ssize_t row
        cdef Py_ssize_t k
        cdef Py_ssize_t i
        cdef Py_ssize_t added
        cdef Half tx = self.tx
        self.check_rows(m, first, end, src, dst)
        row = first
        while row < end:
            try:
                k = tx.pick(self.svq, min(end - row, BURST))
                if k == 0:
                    break
                for i in range(k):
                    tx.adding.cols.desc[i].len = self.put(
                        tx.host(tx.adding.cols.token[i]), m, row + i, src, dst
                    )
                added = self.add_picked(k)
            except Exception:
                if row == first:
                    raise
                break
            for i in range(added):
                self.tx_bytes += tx.adding.cols.desc[i].len - HDR_SIZE
            self.tx_messages += <uint64_t>added
            row += added
            if added < k:
                break
        if row > first:
            self.svq.kick()
        return row - first

    def take_tx(self) -> int:
        """Index of a free buffer, now held by the caller; -1 when none is free."""
        cdef Py_ssize_t index
        if self.tx.pick(self.svq, 1) == 0:
            return -1
        index = self.tx.adding.cols.token[0]
        self.tx.place[index] = HELD
        self.tx.held += 1
        return index

    def commit_tx(self, index, used) -> bool:
        """Send ``used`` bytes of a held buffer, header included.

        When the queue refuses, by an error or with False for a full ring, it stays held.
        """
        cdef Py_ssize_t i = self.tx.check_held(index)
        cdef uint32_t length = used
        if not HDR_SIZE <= length <= self.tx.size:
            raise InvalidArgument(f"{used} bytes of a buffer of {self.tx.size}")
        self.tx.row(0, <uint32_t>i)
        self.tx.adding.cols.desc[0].len = length
        self.tx.place[i] = HELD
        if self.svq.add_outbuf_batch(self.tx.adding, 0, 1) == 0:
            return False
        self.tx.place[i] = RING
        self.tx.held -= 1
        self.tx_messages += 1
        self.tx_bytes += length - HDR_SIZE
        self.svq.kick()
        return True

    def give_tx(self, index) -> None:
        """A held buffer goes back to the pool, unsent."""
        cdef Py_ssize_t i = self.tx.check_held(index)
        self.tx.put_back(<uint32_t>i)
        self.tx.held -= 1

    def tx_view(self, index):
        """All bytes of a held buffer."""
        return memoryview(self.tx.pool[self.tx.check_held(index)])

    # -- receiving -----------------------------------------------------------------------------

    cdef Py_ssize_t recv_window(
        self, Messages m, Messages other, uint32_t addr, Py_ssize_t limit
    ) except -1:
        cdef Py_ssize_t taken
        cdef Py_ssize_t i
        cdef Py_ssize_t index
        cdef Py_ssize_t k = 0
        cdef Half rx = self.rx
        cdef dict foreign
        self.raise_later()
        self.check_size(m)
        # Each message could go to either of the two.
        limit = min(limit, m.capacity - m.rows, other.capacity - other.rows)
        if limit <= 0:
            return 0
        taken = self.rvq.get_buf_batch(rx.got, min(limit, BURST))
        if taken == 0:
            if rx.spare:
                self.post_rx()
            return 0
        foreign = rx.got.objects
        for i in range(taken):
            if foreign and i in foreign:
                continue
            index = rx.ours(rx.got.cols.token[i])
            if index >= 0:
                self.store(rx.host(index), rx.got.cols.written[i], addr, m, other)
                rx.row(k, <uint32_t>index)
                k += 1
        try:
            self.post_picked(k)
        except Exception as error:
            self.later = error
        return taken

    cdef int tell(self) except -1:
        try:
            self.rvq.kick()
        except Exception as error:
            self.later = error
        return 0

    cdef Py_ssize_t post_picked(self, Py_ssize_t k) except -1:
        """Post the first k rows; how many got in. The others' buffers wait in the pool."""
        cdef Py_ssize_t added = 0
        try:
            added = self.rvq.add_inbuf_batch(self.rx.adding, 0, k)
        finally:
            self.rx.unpick(added, k)
        return added

    def post_rx(self) -> int:
        """Post all buffers that are in the pool; how many the ring took. Then kick."""
        cdef Py_ssize_t total = self.post_all()
        if total:
            self.rvq.kick()
        return total

    cdef Py_ssize_t post_all(self) except -1:
        cdef Half rx = self.rx
        cdef Py_ssize_t k
        cdef Py_ssize_t added
        cdef Py_ssize_t total = 0
        while rx.spare or rx.fresh < rx.n:
            k = rx.pick(self.rvq, min(rx.spare + rx.n - rx.fresh, BURST))
            added = self.post_picked(k)
            total += added
            if added < k:
                break
        return total

    def take_rx(self):
        """``(index, bytes written)`` of the next used buffer, held by the caller; or None."""
        cdef Py_ssize_t index
        self.raise_later()
        while self.rvq.get_buf_batch(self.rx.got, 1):
            if self.rx.got.objects:
                continue
            index = self.rx.ours(self.rx.got.cols.token[0])
            if index >= 0:
                self.rx.place[index] = HELD
                self.rx.held += 1
                return index, self.rx.got.cols.written[0]
        return None

    def give_rx(self, index) -> None:
        """Post a held buffer again."""
        cdef Py_ssize_t i = self.rx.check_held(index)
        self.rx.put_back(<uint32_t>i)
        self.rx.held -= 1
        self.post_rx()

    def rx_view(self, index):
        """All bytes of a held buffer."""
        return memoryview(self.rx.pool[self.rx.check_held(index)])

    # -- after a reset -------------------------------------------------------------------------

    def recycle_tx(self, token) -> None:
        """A buffer that was detached from the send queue goes back to the pool."""
        self.recycle(self.tx, token)

    def recycle_rx(self, token) -> None:
        """A buffer that was detached from the receive queue; :meth:`post_rx` posts it again."""
        self.recycle(self.rx, token)

    cdef int recycle(self, Half half, object token) except -1:
        cdef Py_ssize_t index = -1
        if isinstance(token, int) and 0 <= token < half.n:
            index = half.ours(token)
        if index < 0:
            raise InvalidArgument(f"{token!r} is not a buffer of ours in the ring")
        half.put_back(<uint32_t>index)
        return 0

    # -- where the buffers are -------------------------------------------------------------------

    @property
    def last_sbuf(self) -> int:
        """Transmit buffers that were used at least once (Linux ``last_sbuf``)."""
        return self.tx.fresh

    @property
    def tx_free(self) -> int:
        """Transmit buffers in the pool."""
        return self.tx.spare + self.tx.n - self.tx.fresh

    @property
    def tx_held(self) -> int:
        """Transmit buffers that callers hold."""
        return self.tx.held

    @property
    def tx_in_flight(self) -> int:
        """Transmit buffers in the ring."""
        return self.tx.n - self.tx_free - self.tx.held

    @property
    def rx_posted(self) -> int:
        """Receive buffers in the ring."""
        return self.rx.n - self.rx_unposted - self.rx.held

    @property
    def rx_held(self) -> int:
        """Receive buffers that callers hold."""
        return self.rx.held

    @property
    def rx_unposted(self) -> int:
        """Receive buffers that the ring did not take; they are posted again when it can."""
        return self.rx.spare + self.rx.n - self.rx.fresh
