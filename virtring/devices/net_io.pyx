"""Moves packets between a network device's queues and what is behind it, a burst at a time.

All of it without the GIL and without an object per packet; only taking chains from a queue and
giving them back are calls on the queue.
"""

from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from virtring.device.cursor cimport cursor_init, iovec
from virtring.device.packets cimport Packets
from virtring.devices.net_packets cimport (
    DELIVERED, MAX_FRAME, MIN_FRAME, PIECES, STARVED, NetPackets,
)
from virtring.memory.barriers cimport cpu_relax
from virtring.memory.guest cimport GuestMemory
from virtring.memory.snapshot cimport MemoryTable
from virtring.memory.table cimport PERM_READ, PERM_WRITE
from virtring.queue.device cimport DeviceQueue
from virtring.ring.common cimport VR_OK

from virtring.errors import InvalidArgument

cdef enum:
    # Why a run of bursts ended: nothing to do, the driver wants to hear of it, something else.
    IDLE = 0
    TELL = 1
    OTHER = 2
    # Looks at an empty queue between two at the clock.
    LOOKS = 16
    # Microseconds: as long as the GIL is away, nobody can stop the device.
    MAX_POLL = 1_000_000


cdef int64_t now_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t>t.tv_sec * 1_000_000_000 + t.tv_nsec


cdef class NetPair(NetPackets):
    """One receive and one transmit queue of a device.

    queue_size: the most entries of each. filter: what decides which packets the driver gets.
    ``header``: bytes of the header, 12, or 10 for a legacy driver without MRG_RXBUF. ``merge``:
    was MRG_RXBUF negotiated?

    Counters: ``transmitted`` and ``transmitted_bytes``, of packets that came from the driver,
    ``received`` and ``received_bytes``, of those that went to it, ``dropped`` for want of a buffer
    that is large enough, ``filtered``, and ``malformed`` chains of the driver's: too short, too
    long or in too many pieces.
    """

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
        ``signal`` of both queues. Raises BadChain, and InvalidArgument for a ``poll`` that is not 0
        to a second.
        """
        cdef MemoryTable snapshot = memory.snapshot
        cdef uint64_t limit = most
        cdef uint64_t done = 0
        cdef int64_t patience = <int64_t>(poll * 1000)
        # A queue that keeps accounts has methods of its own.
        cdef bint plain = type(tx) is DeviceQueue and type(rx) is DeviceQueue
        cdef size_t before
        cdef int why
        if not 0 <= poll <= MAX_POLL:
            raise InvalidArgument(f"poll {poll} microseconds; it takes 0 to {MAX_POLL}")
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
