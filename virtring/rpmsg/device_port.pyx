"""The device's end: it works in the driver's buffers, and trusts nothing about them."""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from virtring.memory.guest cimport GuestMemory
from virtring.memory.snapshot cimport MemoryTable
from virtring.memory.table cimport PERM_READ, PERM_WRITE, guest_range
from virtring.queue.batch cimport Batch
from virtring.ring.common cimport host_of_hot, in_memory
from virtring.rpmsg.messages cimport Messages
from virtring.rpmsg.port cimport Port
from virtring.rpmsg.wire cimport ANY, DROP_ADDRESS, DROP_LENGTH, HDR_SIZE, put_header
from virtring.spec.ring cimport VRING_DESC_F_WRITE, vring_desc

from virtring.errors import OutOfMemory

cdef enum:
    # Chains that are popped at once.
    BURST = 256


@cython.final
cdef class DevicePort(Port):
    """Two :class:`DeviceQueue` objects: ``rvq`` that messages come from (the driver's tx queue) and
    ``svq`` whose buffers are written (the driver's rx queue).

    Not locked; see :class:`virtring.rpmsg.bus.RpmsgBus`.
    """
    cdef readonly object rvq
    cdef readonly object svq
    cdef readonly list spare            # chains that were taken and not sent
    cdef Batch popped_rx
    cdef Batch popped_tx
    cdef char* scratch                  # a message that comes or goes in pieces
    cdef guest_range hot
    cdef MemoryTable table              # that hot belongs to

    def __init__(self, rvq, svq, rx_buf_size, tx_buf_size, big_endian):
        self.set_sizes(tx_buf_size, rx_buf_size, big_endian)
        self.rvq = rvq
        self.svq = svq
        self.spare = []
        # A single chain may have as many descriptors as its ring.
        self.popped_rx = Batch(BURST, BURST + rvq.size)
        self.popped_tx = Batch(BURST, BURST + svq.size)
        self.scratch = <char*>malloc(HDR_SIZE + 0x10000)
        if self.scratch == NULL:
            raise OutOfMemory("no memory for a message")

    def __dealloc__(self):
        free(self.scratch)

    cdef void bind(self, GuestMemory memory) noexcept:
        """Addresses are looked up in the memory as it is now, until unbind().

        Not for longer: what is removed from the memory meanwhile is to be unmapped.
        """
        self.table = memory.snapshot
        self.hot.size = 0

    cdef void unbind(self) noexcept:
        self.table = None

    cdef inline char* host(self, const vring_desc* part, uint32_t perm) noexcept:
        """Where a descriptor's memory is mapped; NULL when it was removed since it was popped."""
        if not in_memory(&self.hot, &self.table.table, part.addr, part.len, perm):
            return NULL
        return host_of_hot(&self.hot, part.addr)

    # -- sending -------------------------------------------------------------------------------

    cdef bint usable(self, size_t row) noexcept:
        """Whether a popped chain can take any message; the driver's own buffers can."""
        cdef const vring_desc* part
        cdef uint64_t room = 0
        cdef size_t i
        cdef Batch b = self.popped_tx
        for i in range(b.cols.offsets[row], b.cols.offsets[row + 1]):
            part = &b.cols.desc[i]
            if not part.flags & VRING_DESC_F_WRITE:
                return False
            if self.host(part, PERM_WRITE) == NULL:
                return False
            room += part.len
        return room >= self.tx_mtu + HDR_SIZE

    cdef char* target(self, size_t row) noexcept:
        """Where the message for a usable chain is built: in place, or aside."""
        cdef Batch b = self.popped_tx
        cdef uint32_t i = b.cols.offsets[row]
        if b.cols.offsets[row + 1] - i == 1:
            return self.host(&b.cols.desc[i], PERM_WRITE)
        return self.scratch

    cdef void finish(self, size_t row, uint32_t used) noexcept:
        """The message stands at target(): scatter it if it was built aside."""
        cdef Batch b = self.popped_tx
        cdef uint32_t i = b.cols.offsets[row]
        cdef uint32_t done = 0
        cdef uint32_t n
        b.cols.written[row] = used
        if b.cols.offsets[row + 1] - i == 1:
            return
        while done < used:
            n = min(used - done, b.cols.desc[i].len)
            memcpy(self.host(&b.cols.desc[i], PERM_WRITE), self.scratch + done, n)
            done += n
            i += 1

    cdef int send_message(self, uint32_t src, uint32_t dst, object data) except -1:
        cdef Py_buffer view
        cdef char* at
        cdef bint sent = False
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            self.check_one(src, dst, view.len)
            if self.spare:
                return self.send_spare(src, dst, view.len, data)
            while not sent and self.svq.pop(self.popped_tx, 1):
                self.bind(self.svq.memory)
                if self.usable(0):
                    at = self.target(0)
                    put_header(at, src, dst, <uint32_t>view.len, self.swap)
                    memcpy(at + HDR_SIZE, view.buf, view.len)
                    self.finish(0, <uint32_t>view.len + HDR_SIZE)
                    self.tx_messages += 1
                    self.tx_bytes += <uint64_t>view.len
                    sent = True
                else:
                    self.bad_buffers += 1
                    self.popped_tx.cols.written[0] = 0
                self.unbind()
                self.svq.push(self.popped_tx)
        finally:
            PyBuffer_Release(&view)
        if sent:
            self.svq.signal()
        return sent

    cdef bint send_spare(self, uint32_t src, uint32_t dst, uint32_t length, data) except -1:
        """Send a message in a chain that was taken before."""
        chain = self.spare.pop()
        header = bytearray(HDR_SIZE)
        self.build_header(header, src, dst, length)
        try:
            chain.write(header, 0)
            chain.write(data, HDR_SIZE)
            chain.return_(length + HDR_SIZE)
        except BaseException:
            self.spare.append(chain)
            raise
        self.count_sent(length)
        self.svq.signal()
        return True

    cdef Py_ssize_t send_window(
        self, Messages m, Py_ssize_t first, Py_ssize_t end, uint32_t src, uint32_t dst
    ) except -1:
        cdef Py_ssize_t row
        cdef Py_ssize_t n
        cdef Py_ssize_t i
        cdef uint32_t used
        cdef Batch popped = self.popped_tx
        self.check_rows(m, first, end, src, dst)
        row = first
        while row < end and self.spare:
            self.send_spare(
                m._src[row] if src == ANY else src,
                m._dst[row] if dst == ANY else dst,
                m._len[row], m.data[row, : m._len[row]],
            )
            row += 1
        while row < end:
            try:
                n = self.svq.pop(popped, min(end - row, BURST))
            except Exception:
                if row == first:
                    raise
                break
            if n == 0:
                break
            self.bind(self.svq.memory)
            for i in range(n):
                if not self.usable(i):
                    self.bad_buffers += 1
                    popped.cols.written[i] = 0
                    continue
                used = self.put(self.target(i), m, row, src, dst)
                self.finish(i, used)
                self.tx_bytes += used - HDR_SIZE
                self.tx_messages += 1
                row += 1
            self.unbind()
            self.svq.push(popped)
        if row > first:
            self.svq.signal()
        return row - first

    def take_tx(self):
        """A chain to write a message into, now the caller's; None when there is none."""
        cdef uint32_t size = self.tx_mtu + HDR_SIZE
        if self.spare:
            return self.spare.pop()
        while (chain := self.svq.next_chain()) is not None:
            if chain.readable_bytes == 0 and chain.writable_bytes >= size:
                return chain
            self.bad_buffers += 1
            chain.return_(0)
        return None

    # -- receiving -----------------------------------------------------------------------------

    cdef Py_ssize_t recv_window(
        self, Messages m, Messages other, uint32_t addr, Py_ssize_t limit
    ) except -1:
        cdef Py_ssize_t n
        cdef Py_ssize_t i
        cdef Batch popped = self.popped_rx
        self.raise_later()
        self.check_size(m)
        # Each message could go to either of the two.
        limit = min(limit, m.capacity - m.rows, other.capacity - other.rows)
        if limit <= 0:
            return 0
        n = self.rvq.pop(popped, min(limit, BURST))
        if n == 0:
            return 0
        self.bind(self.rvq.memory)
        for i in range(n):
            self.take(i, addr, m, other)
            popped.cols.written[i] = 0
        self.unbind()
        try:
            self.rvq.push(popped)
        except Exception as error:
            self.later = error
        return n

    cdef int tell(self) except -1:
        try:
            self.rvq.signal()
        except Exception as error:
            self.later = error
        return 0

    cdef void take(self, size_t row, uint32_t want, Messages m, Messages other) noexcept:
        """Copy a popped message out, which may lie in several pieces."""
        cdef Batch b = self.popped_rx
        cdef uint32_t i = b.cols.offsets[row]
        cdef uint32_t end = b.cols.offsets[row + 1]
        cdef uint64_t most = self.rx_mtu + HDR_SIZE
        cdef uint64_t used = 0
        cdef const char* at = self.scratch
        cdef const char* part
        for i in range(i, end):
            if b.cols.desc[i].flags & VRING_DESC_F_WRITE:
                break
            part = self.host(&b.cols.desc[i], PERM_READ)
            if part == NULL:
                self.drops[DROP_ADDRESS] += 1
                return
            # As Linux, a message longer than a buffer is dropped whatever its header says.
            if b.cols.desc[i].len > most - used:
                self.drops[DROP_LENGTH] += 1
                return
            if end - b.cols.offsets[row] == 1:
                at = part
            else:
                memcpy(self.scratch + used, part, b.cols.desc[i].len)
            used += b.cols.desc[i].len
        self.store(at, used, want, m, other)
