"""Sends and receives packets from buffers of its own, a burst at a time, without the GIL."""

import numpy as np

from libc.stdint cimport uint32_t
from libc.string cimport memcpy, memset

from virtring.device.packets cimport Packets
from virtring.memory.barriers cimport load16
from virtring.memory.guest cimport GuestMemory
from virtring.memory.pool cimport Block
from virtring.queue.batch cimport Batch
from virtring.queue.driver cimport Virtqueue

from virtring.errors import InvalidArgument, NoSpace

cdef enum:
    # Where num_buffers is in the header (5.1.6).
    NUM_BUFFERS = 10
    MIN_FRAME = 14
    ALIGN = 64


cdef class NetBuffers:
    """``count`` buffers for a header of ``header`` bytes and ``size`` bytes of packet, each.

    vq: the queue they go to, with nothing else on it. Belongs to one thread at a time. Raises what
    :meth:`GuestMemory.alloc` raises.
    """

    def __init__(self, Virtqueue vq not None, count, header, size):
        cdef GuestMemory memory = vq.memory
        if not 1 <= count <= 32768 or not 10 <= header <= 64 or not MIN_FRAME <= size <= 1 << 20:
            raise InvalidArgument(f"{count} buffers of {header} and {size} bytes")
        self.vq = vq
        self.count = count
        self.header = header
        self.size = size
        self.stride = (self.header + self.size + ALIGN - 1) // ALIGN * ALIGN
        self.block = Block(memory, self.stride * self.count, ALIGN)
        memset(self.block.host, 0, self.stride * self.count)
        self.rows = Batch(count)
        self.used = Batch(count)
        self.free = np.arange(count, dtype=np.uint32)[::-1].copy()
        self.n_free = self.count

    @property
    def in_flight(self) -> int:
        """Buffers that the device has."""
        return self.vq.in_flight

    cdef void row(self, size_t i, uint32_t buffer, uint32_t length) noexcept nogil:
        self.rows.cols.desc[i].addr = self.block.addr + self.stride * buffer
        self.rows.cols.desc[i].len = length
        self.rows.cols.token[i] = buffer


cdef class NetSend(NetBuffers):
    """The buffers of a transmit queue."""

    def send(self, Packets packets not None, start=0) -> int:
        """Copy packets, from ``start`` on, and make them available; for how many there was room.

        Takes back what the device has sent before. Call ``vq.kick()`` afterwards. Raises
        InvalidArgument for a packet that is shorter than 14 bytes or longer than ``size``: none
        was sent then.
        """
        cdef size_t first, i, n, added
        cdef uint32_t buffer
        packets.check(start, &first)
        for i in range(first, packets.rows):
            if not MIN_FRAME <= packets.length[i] <= self.size:
                raise InvalidArgument(
                    f"packet {i} has {packets.length[i]} bytes; it takes {MIN_FRAME} to {self.size}"
                )
        self.reap()
        n = min(packets.rows - first, <size_t>min(self.n_free, <uint32_t>self.vq.s.num_free))
        if n == 0:
            return 0
        with nogil:
            for i in range(n):
                buffer = self.free[self.n_free - 1 - i]
                # The header before it is all zeros: no checksum, no segments (5.1.6.2).
                memcpy(
                    self.block.host + self.stride * buffer + self.header,
                    packets.base + packets.offset[first + i], packets.length[first + i],
                )
                self.row(i, buffer, self.header + packets.length[first + i])
        added = self.vq.add_outbuf_batch(self.rows, 0, n)
        self.n_free -= <uint32_t>added
        return added

    def reap(self) -> int:
        """Take back what the device has sent; how many packets."""
        cdef size_t n = self.vq.get_buf_batch(self.used)
        cdef size_t i
        for i in range(n):
            self.free[self.n_free] = <uint32_t>self.used.cols.token[i]
            self.n_free += 1
        return n


cdef class NetReceive(NetBuffers):
    """The buffers of a receive queue. ``merge``: was MRG_RXBUF negotiated?

    ``malformed`` counts buffers that came back with something that cannot be right.
    """

    def __init__(self, vq, count, header, size, *, merge=False):
        super().__init__(vq, count, header, size)
        self.merge = merge
        self.arrived = np.zeros(count, np.uint32)
        self.lengths = np.zeros(count, np.uint32)

    def fill(self) -> int:
        """Give the device all buffers it does not have; how many. Call ``vq.kick()`` afterwards."""
        cdef size_t n = min(self.n_free, <uint32_t>self.vq.s.num_free)
        cdef size_t i, added
        for i in range(n):
            self.row(i, self.free[self.n_free - 1 - i], self.header + self.size)
        added = self.vq.add_inbuf_batch(self.rows, 0, n) if n else 0
        self.n_free -= <uint32_t>added
        return added

    def receive(self, Packets packets not None) -> int:
        """Append the packets that are there to ``packets``, as far as they fit; how many.

        The buffers go back to the device at once. Raises NoSpace when the next packet would not
        fit into empty ``packets`` of that size, BadUsedRing.
        """
        cdef uint32_t before = self.n_arrived
        cdef uint32_t got
        cdef size_t n, i
        cdef bint full = False
        n = self.vq.get_buf_batch(self.used)
        for i in range(n):
            self.arrived[before + i] = <uint32_t>self.used.cols.token[i]
            self.lengths[before + i] = self.used.cols.written[i]
        self.n_arrived = before + <uint32_t>n
        got = self.assemble(packets, &full)
        if self.n_free and self.fill():
            self.vq.kick()
        if full and got == 0 and packets.rows == 0:
            raise NoSpace(f"the next packet is longer than the {packets.size} bytes of the burst")
        return got

    cdef uint32_t assemble(self, object into, bint* full) except? 0xFFFFFFFF:
        """Whole packets out of what has arrived; their buffers become free."""
        cdef Packets packets = into
        cdef uint32_t head = 0
        cdef uint32_t got = 0
        cdef uint32_t i, k, num
        cdef size_t total, part
        cdef char* host
        cdef char* to
        with nogil:
            while head < self.n_arrived:
                host = self.block.host + self.stride * self.arrived[head]
                num = load16(host + NUM_BUFFERS) if self.merge else 1
                if self.lengths[head] < self.header + MIN_FRAME and num <= 1 or (
                    self.lengths[head] < self.header or num == 0 or num > self.count
                ):
                    self.malformed += 1
                    self.free[self.n_free] = self.arrived[head]
                    self.n_free += 1
                    head += 1
                    continue
                if num > self.n_arrived - head:
                    break
                total = 0
                for i in range(head, head + num):
                    total += self.lengths[i]
                total -= self.header
                to = packets.reserve(total)
                if to == NULL:
                    full[0] = True
                    break
                for i in range(head, head + num):
                    host = self.block.host + self.stride * self.arrived[i]
                    part = self.lengths[i]
                    if i == head:
                        host += self.header
                        part -= self.header
                    memcpy(to, host, part)
                    to += part
                    self.free[self.n_free] = self.arrived[i]
                    self.n_free += 1
                packets.commit(total)
                got += 1
                head += num
            for k in range(self.n_arrived - head):
                self.arrived[k] = self.arrived[head + k]
                self.lengths[k] = self.lengths[head + k]
            self.n_arrived -= head
        return got
