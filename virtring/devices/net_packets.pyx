"""One packet of a network device: out of a transmit chain, into receive chains. In C throughout."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from virtring.device.cursor cimport cursor_at, cursor_next, iovec, scatter, vectors
from virtring.devices.net_chains cimport NetChains
from virtring.devices.net_filter cimport LOOK, NetFilter
from virtring.memory.barriers cimport store64_any
from virtring.memory.table cimport PERM_READ, PERM_WRITE
from virtring.ring.common cimport host_of_hot, in_memory
from virtring.spec.ring cimport VRING_DESC_F_WRITE, vring_desc

cdef extern from *:
    """
    static inline void prefetch_to_write(const void *p)
    {
    #if defined(__x86_64__)
        __asm__ volatile("prefetchw (%0)" : : "r"(p));
    #else
        __builtin_prefetch(p, 1, 3);
    #endif
    }
    """
    void prefetch_to_write(const void* p) noexcept nogil

cdef enum:
    MAX_HEADER = 12
    # Where num_buffers is in the header (5.1.6).
    NUM_BUFFERS = 10
    # Receive buffers whose headers, last used by the driver's CPU, are fetched ahead.
    AHEAD = 6


cdef class NetPackets(NetChains):
    """What :class:`~virtring.devices.net_io.NetPair` does with one packet.

    queue_size: the most entries of each queue. filter: what decides which packets the driver gets.
    ``header``: bytes of the header, 12, or 10 for a legacy driver without MRG_RXBUF. ``merge``:
    was MRG_RXBUF negotiated?
    """

    def __init__(self, queue_size, NetFilter filter not None):
        super().__init__(queue_size)
        self.filter = filter
        self.header = MAX_HEADER

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
        cdef uint64_t place
        cdef int k
        if i + AHEAD < self.rx.cols.offsets[self.rx.rows]:
            place = d[AHEAD].addr - self.writer.hot.base
            if place < self.writer.hot.size:
                prefetch_to_write(self.writer.hot.host + place)
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
