"""Moves packets between a network device's queues and what is behind it, a burst at a time.

All of it without the GIL and without an object per packet; only taking chains from a queue and
giving them back are calls on the queue.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from virtring.device.cursor cimport (
    cursor_at, cursor_init, cursor_next, iovec, scatter, vectors,
)
from virtring.device.packets cimport Packets
from virtring.devices.net_chains cimport NetChains
from virtring.devices.net_filter cimport LOOK, NetFilter
from virtring.memory.barriers cimport cpu_relax, store64_any
from virtring.memory.guest cimport GuestMemory
from virtring.memory.snapshot cimport MemoryTable
from virtring.memory.table cimport PERM_READ, PERM_WRITE
from virtring.queue.device cimport DeviceQueue
from virtring.ring.common cimport VR_OK, host_of_hot, in_memory
from virtring.spec.ring cimport VRING_DESC_F_WRITE, vring_desc

from virtring.errors import InvalidArgument

cdef enum:
    MAX_HEADER = 12
    # Where num_buffers is in the header (5.1.6).
    NUM_BUFFERS = 10
    MIN_FRAME = 14
    # The longest that fits the standard's receive buffers (5.1.6.3), without their header.
    MAX_FRAME = 65589
    # Pieces of one packet; Linux sends 19 at most.
    PIECES = 64
    DELIVERED = 1
    DROPPED = 0
    STARVED = -1
    # Why a run of bursts ended: nothing to do, the driver wants to hear of it, something else.
    IDLE = 0
    TELL = 1
    OTHER = 2
    # Looks at an empty queue between two at the clock.
    LOOKS = 16


cdef int64_t now_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t>t.tv_sec * 1_000_000_000 + t.tv_nsec


cdef class NetPair(NetChains):
    """One receive and one transmit queue of a device.

    queue_size: the most entries of each. filter: what decides which packets the driver gets.
    ``header``: bytes of the header, 12, or 10 for a legacy driver without MRG_RXBUF. ``merge``:
    was MRG_RXBUF negotiated?

    Counters: ``transmitted`` and ``transmitted_bytes``, of packets that came from the driver,
    ``received`` and ``received_bytes``, of those that went to it, ``dropped`` for want of a buffer
    that is large enough, ``filtered``, and ``malformed`` chains of the driver's: too short, too
    long or in too many pieces.
    """

    def __init__(self, queue_size, NetFilter filter not None):
        super().__init__(queue_size)
        self.filter = filter
        self.header = MAX_HEADER

    # -- one packet ----------------------------------------------------------------------------

    cdef bint payload(self, size_t row, iovec* iov, int* n, uint64_t* size) noexcept nogil:
        """The pieces of a transmit chain's packet, behind its header; False: it has none."""
        cdef const vring_desc* first = self.tx.cols.desc + self.tx.cols.offsets[row]
        cdef const vring_desc* end = self.tx.cols.desc + self.tx.cols.offsets[row + 1]
        cdef const vring_desc* d = first
        cdef uint64_t total = 0
        cdef uint64_t got = 0
        cdef size_t part
        cdef size_t skip = self.header
        self.tx.cols.written[row] = 0
        if (
            end - d == 1 and not d.flags & VRING_DESC_F_WRITE
            and d.len >= self.header + MIN_FRAME and d.len <= self.header + MAX_FRAME
            and in_memory(&self.reader.hot, self.reader.table, d.addr, d.len, PERM_READ)
        ):
            iov[0].iov_base = host_of_hot(&self.reader.hot, d.addr) + self.header
            iov[0].iov_len = d.len - self.header
            n[0] = 1
            size[0] = d.len - self.header
            self.transmitted += 1
            self.transmitted_bytes += size[0]
            return True
        while d < end and not d.flags & VRING_DESC_F_WRITE:
            total += d.len
            d += 1
        if total >= self.header + MIN_FRAME and total <= self.header + MAX_FRAME:
            cursor_at(&self.reader, first, d)
            while skip:
                if cursor_next(&self.reader, skip, &part) == NULL:
                    break
                skip -= part
            size[0] = total - self.header
            if not skip:
                n[0] = vectors(&self.reader, iov, PIECES, size[0], &got)
                if n[0] > 0 and got == size[0]:
                    self.transmitted += 1
                    self.transmitted_bytes += got
                    return True
        self.malformed += 1
        return False

    cdef uint64_t room(self, size_t row, uint32_t* first) noexcept nogil:
        """Writable bytes of a receive chain; ``first`` is set to where they begin."""
        cdef uint32_t i = self.rx.cols.offsets[row]
        cdef uint32_t end = self.rx.cols.offsets[row + 1]
        cdef uint64_t n = 0
        while i < end and not self.rx.cols.desc[i].flags & VRING_DESC_F_WRITE:
            i += 1
        first[0] = i
        while i < end:
            n += self.rx.cols.desc[i].len
            i += 1
        return n

    cdef int deliver(self, const iovec* iov, int n, uint64_t size) noexcept nogil:
        """Put one packet into receive chains; STARVED: it needs more of them."""
        cdef uint8_t[LOOK] look
        cdef uint64_t need = self.header + size
        cdef uint64_t have
        cdef uint32_t first
        cdef size_t rows = 0
        cdef size_t part, seen = 0
        cdef int i
        if not self.filter.promisc:
            for i in range(n):
                part = min(iov[i].iov_len, LOOK - seen)
                memcpy(look + seen, iov[i].iov_base, part)
                seen += part
                if seen == LOOK:
                    break
            if not self.filter.accepts(look, seen):
                self.filtered += 1
                return DROPPED
        while True:
            if self.rx_next + rows == self.rx.rows:
                return STARVED
            if rows == 0 and self.fill_one(iov, n, size):
                return DELIVERED
            have = self.room(self.rx_next + rows, &first)
            if rows == 0 and have < self.header:
                # Not even for the header: no packet will ever fit.
                self.malformed += 1
                self.rx.cols.written[self.rx_next] = 0
                self.rx_next += 1
                continue
            rows += 1
            if have >= need:
                break
            if not self.merge:
                self.dropped += 1
                return DROPPED
            need -= have
        return self.fill(rows, iov, n, size)

    cdef bint fill_one(self, const iovec* iov, int n, uint64_t size) noexcept nogil:
        """The common case, a chain of one descriptor that takes all of the packet: was it one?"""
        cdef uint32_t i = self.rx.cols.offsets[self.rx_next]
        cdef const vring_desc* d = self.rx.cols.desc + i
        cdef char* host
        cdef int k
        if (
            self.rx.cols.offsets[self.rx_next + 1] - i != 1
            or not d.flags & VRING_DESC_F_WRITE or d.len < self.header + size
            or not in_memory(&self.writer.hot, self.writer.table, d.addr, d.len, PERM_WRITE)
        ):
            return False
        host = host_of_hot(&self.writer.hot, d.addr)
        store64_any(host, 0)
        memset(host + 8, 0, 2)
        if self.header == MAX_HEADER:
            memcpy(host + NUM_BUFFERS, b"\1\0", 2)
        host += self.header
        for k in range(n):
            memcpy(host, iov[k].iov_base, iov[k].iov_len)
            host += iov[k].iov_len
        self.rx.cols.written[self.rx_next] = <uint32_t>(self.header + size)
        self.rx_next += 1
        self.received += 1
        self.received_bytes += size
        return True

    cdef int fill(self, size_t rows, const iovec* iov, int n, uint64_t size) noexcept nogil:
        cdef uint8_t[MAX_HEADER] header
        cdef uint16_t count = <uint16_t>rows
        cdef uint64_t have, left
        cdef uint32_t first
        cdef size_t row, part
        cdef size_t offset = 0
        cdef int at = 0
        cdef bint failed = False
        cdef const vring_desc* desc = self.rx.cols.desc
        memset(header, 0, MAX_HEADER)
        memcpy(header + NUM_BUFFERS, &count, 2)
        left = self.header + size
        for row in range(self.rx_next, self.rx_next + rows):
            have = self.room(row, &first)
            cursor_at(&self.writer, desc + first, desc + self.rx.cols.offsets[row + 1])
            have = min(have, left)
            left -= have
            self.rx.cols.written[row] = <uint32_t>have
            if row == self.rx_next:
                failed |= scatter(&self.writer, <char*>header, self.header) != 0
                have -= self.header
            while have and not failed:
                part = <size_t>min(have, <uint64_t>(iov[at].iov_len - offset))
                failed |= scatter(
                    &self.writer, <char*>iov[at].iov_base + offset, part
                ) != 0
                have -= part
                offset += part
                if offset == iov[at].iov_len:
                    at += 1
                    offset = 0
        if failed:
            # Memory that went away since the chain was taken.
            for row in range(self.rx_next, self.rx_next + rows):
                self.rx.cols.written[row] = 0
            self.dropped += 1
        else:
            self.received += 1
            self.received_bytes += size
        self.rx_next += rows
        return DROPPED if failed else DELIVERED

    # -- bursts --------------------------------------------------------------------------------

    def put(
        self, GuestMemory memory not None, DeviceQueue queue not None, Packets packets not None,
        start=0
    ) -> int:
        """Give packets, from ``start`` on, to the driver; how many it got.

        Those that find no buffer are dropped and counted. Call ``queue.signal()`` afterwards.
        Raises InvalidArgument for packets whose columns are wrong or that are no frames of 14 to
        65589 bytes, BadChain.
        """
        cdef MemoryTable snapshot = memory.snapshot
        cdef size_t i, end = packets.rows
        cdef uint64_t before = self.received
        cdef iovec iov
        cdef int result
        packets.check(start, &i)
        for j in range(i, end):
            if not MIN_FRAME <= packets.length[j] <= MAX_FRAME:
                raise InvalidArgument(
                    f"packet {j} has {packets.length[j]} bytes; it takes {MIN_FRAME} to {MAX_FRAME}"
                )
        cursor_init(&self.writer, &snapshot.table, PERM_WRITE)
        while i < end:
            result = DELIVERED
            with nogil:
                while i < end:
                    iov.iov_base = packets.base + packets.offset[i]
                    iov.iov_len = packets.length[i]
                    result = self.deliver(&iov, 1, iov.iov_len)
                    if result == STARVED:
                        break
                    i += 1
            if result == STARVED and self.refill(queue, end - i) == 0:
                if self.rx_next == self.rx.rows:
                    self.dropped += end - i
                    break
                # Too long for what is left, but a shorter one may fit.
                self.dropped += 1
                i += 1
        self.publish(queue)
        return self.received - before

    def take(
        self, GuestMemory memory not None, DeviceQueue queue not None, Packets packets not None
    ) -> int:
        """Take packets from the driver until there is no more, or no room for a longest one.

        They are appended to ``packets``; how many there were. Their chains are given back. Call
        ``queue.signal()`` afterwards. Raises BadChain.
        """
        cdef MemoryTable snapshot = memory.snapshot
        cdef size_t before = packets.rows
        cdef iovec[PIECES] iov
        cdef uint64_t size
        cdef char* to
        cdef int n, k
        cursor_init(&self.reader, &snapshot.table, PERM_READ)
        while True:
            if self.tx_next == self.tx.rows:
                n = min(packets.capacity - packets.rows, self.tx.cols.capacity)
                if n == 0 or packets.reserve(MAX_FRAME) == NULL or not queue.pop(self.tx, n):
                    break
            with nogil:
                while self.tx_next < self.tx.rows:
                    to = packets.reserve(MAX_FRAME)
                    if to == NULL:
                        break
                    if self.payload(self.tx_next, iov, &n, &size):
                        for k in range(n):
                            memcpy(to, iov[k].iov_base, iov[k].iov_len)
                            to += iov[k].iov_len
                        packets.commit(<size_t>size)
                    self.tx_next += 1
            self.keep_rest(queue)
            if self.tx.rows:
                break
        return packets.rows - before

    def echo(
        self, GuestMemory memory not None, DeviceQueue tx not None, DeviceQueue rx not None, most,
        double poll=0.0
    ) -> int:
        """Send packets of the driver's back to it, from its buffers to its buffers; how many.

        Ends when there is no more for ``poll`` microseconds, when there are no receive buffers (the
        packet stays in hand until the next call), or after ``most`` packets or a few more. Calls
        ``signal`` of both queues. Raises BadChain.
        """
        cdef MemoryTable snapshot = memory.snapshot
        cdef uint64_t limit = most
        cdef uint64_t done = 0
        cdef int64_t patience = <int64_t>(poll * 1000)
        # A queue that keeps accounts has methods of its own.
        cdef bint plain = type(tx) is DeviceQueue and type(rx) is DeviceQueue
        cdef size_t before
        cdef int why
        cursor_init(&self.reader, &snapshot.table, PERM_READ)
        cursor_init(&self.writer, &snapshot.table, PERM_WRITE)
        while True:
            if plain:
                tx.enter_ring()
                rx.enter_ring()
                tx.busy = rx.busy = True
                with nogil:
                    why = self.run(tx, rx, limit, patience, &done)
                tx.busy = rx.busy = False
                if self.tell_rx:
                    self.tell_rx = False
                    self.call(rx)
                if self.tell_tx:
                    self.tell_tx = False
                    self.call(tx)
                if why == IDLE:
                    return done
                if why == TELL:
                    continue
            if self.tx_next == self.tx.rows:
                self.complete(tx, rx)
                if done >= limit or not tx.pop(self.tx, min(limit, self.tx.cols.capacity)):
                    return done
            before = self.tx_next
            with nogil:
                why = self.forward()
            done += self.tx_next - before
            if why != STARVED or self.refill(rx, self.tx.rows - self.tx_next):
                continue
            if self.rx_next == self.rx.rows:
                self.complete(tx, rx)
                return done
            # It needs more buffers than the driver has for it: it might wait for ever.
            self.drop()
            done += 1

    cdef int run(
        self, DeviceQueue tx, DeviceQueue rx, uint64_t limit, int64_t patience, uint64_t* done
    ) noexcept nogil:
        """Burst after burst between two plain queues; why it ended, OTHER for all that is rare."""
        cdef int64_t deadline = 0
        cdef size_t n = 0
        cdef size_t before
        cdef int looks = 0
        cdef bint shown = False         # rx has used buffers that the driver was not told of
        while True:
            if self.tx_next == self.tx.rows:
                if self.rx_filled < self.rx_next:
                    if rx.push_plain(
                        self.rx.cols.id + self.rx_filled, self.rx.cols.written + self.rx_filled,
                        self.rx_next - self.rx_filled, &n
                    ) != VR_OK:
                        return OTHER
                    self.rx_filled = self.rx_next
                    shown = True
                if shown:
                    self.tell_rx = rx.need_notify_plain()
                    shown = False
                if self.tx_next:
                    if tx.push_plain(
                        self.tx.cols.id, self.tx.cols.written, self.tx_next, &n
                    ) != VR_OK:
                        return OTHER
                    self.tx_next = self.tx.rows = 0
                    self.tell_tx = tx.need_notify_plain()
                if self.tell_rx or self.tell_tx:
                    return TELL
                if done[0] >= limit:
                    return IDLE
                if tx.pop_plain(self.tx, self.tx.cols.capacity, &n) != VR_OK and n == 0:
                    return OTHER
                if n == 0:
                    if patience == 0:
                        return IDLE
                    looks += 1
                    if looks == LOOKS:
                        looks = 0
                        if deadline == 0:
                            deadline = now_ns() + patience
                        elif now_ns() >= deadline:
                            return IDLE
                    cpu_relax()
                    continue
                self.tx.rows = n
                deadline = looks = 0
            before = self.tx_next
            if self.forward() == STARVED:
                if self.rx_next < self.rx.rows or self.rx_filled < self.rx_next and (
                    rx.push_plain(
                        self.rx.cols.id + self.rx_filled, self.rx.cols.written + self.rx_filled,
                        self.rx_next - self.rx_filled, &n
                    ) != VR_OK
                ):
                    done[0] += self.tx_next - before
                    return OTHER
                shown = shown or self.rx_next != 0
                self.rx_next = self.rx_filled = self.rx.rows = 0
                n = min(self.tx.rows - self.tx_next, self.rx.cols.capacity)
                if rx.pop_plain(self.rx, n, &self.rx.rows) != VR_OK or self.rx.rows == 0:
                    done[0] += self.tx_next - before
                    self.tell_rx = rx.need_notify_plain()
                    return OTHER
            done[0] += self.tx_next - before

    cdef int forward(self) noexcept nogil:
        """Echo the packets in hand; STARVED: the next one has no receive buffer."""
        cdef iovec[PIECES] iov
        cdef uint64_t size
        cdef int n
        while self.tx_next < self.tx.rows:
            if (
                self.payload(self.tx_next, iov, &n, &size)
                and self.deliver(iov, n, size) == STARVED
            ):
                # It will be looked at again, and counted then.
                self.transmitted -= 1
                self.transmitted_bytes -= size
                return STARVED
            self.tx_next += 1
        return DELIVERED

    cdef void drop(self) noexcept nogil:
        """The next packet goes nowhere."""
        cdef iovec[PIECES] iov
        cdef uint64_t size
        cdef int n
        self.dropped += self.payload(self.tx_next, iov, &n, &size)
        self.tx_next += 1

    cdef int call(self, DeviceQueue queue) except -1:
        if queue.call_cb is not None:
            queue.call_cb(queue)
        return 0

    cdef int complete(self, DeviceQueue tx, DeviceQueue rx) except -1:
        """Give all that is done to the driver, and tell it."""
        self.publish(rx)
        rx.signal()
        if self.tx_next:
            self.keep_rest(tx)
            tx.signal()
        return 0
