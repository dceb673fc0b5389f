"""The chains of a network device that it has taken from its queues and not given back yet."""

from libc.stdint cimport uint32_t

from virtring.queue.batch cimport Batch
from virtring.queue.device cimport DeviceQueue


cdef class NetChains:
    """What :class:`~virtring.devices.net_io.NetPair` has in hand of its two queues.

    queue_size: the most entries of each. ``dropped`` counts packets that went nowhere.
    """

    def __init__(self, queue_size):
        # A chain can have as many descriptors as the ring has entries.
        self.rx = Batch(2 * queue_size, 4 * queue_size)
        self.spare = Batch(queue_size, 2 * queue_size)
        self.tx = Batch(queue_size, 2 * queue_size)

    cdef size_t refill(self, DeviceQueue queue, size_t want) except? 0xFFFFFFFF:
        """Take up to ``want`` more receive chains; how many came."""
        cdef Batch rx = self.rx
        cdef Batch spare = self.spare
        cdef size_t left = rx.rows - self.rx_next
        cdef size_t n, i
        cdef uint32_t first, shift
        self.publish(queue)
        want = min(want, spare.cols.capacity)
        if left == 0:
            self.rx_next = self.rx_filled = 0
            return queue.pop(rx, want)
        # Seldom: a packet needs more chains than are in hand. They move to the front.
        first = rx.cols.offsets[self.rx_next]
        for i in range(left):
            rx.cols.id[i] = rx.cols.id[self.rx_next + i]
            rx.cols.offsets[i] = rx.cols.offsets[self.rx_next + i] - first
        shift = rx.cols.offsets[rx.rows] - first
        for i in range(shift):
            rx.cols.desc[i] = rx.cols.desc[first + i]
        rx.cols.offsets[left] = shift
        rx.rows = left
        self.rx_next = self.rx_filled = 0
        want = min(want, rx.cols.capacity - left)
        if want == 0 or shift + spare.cols.max_desc > rx.cols.max_desc:
            return 0
        n = queue.pop(spare, want)
        for i in range(n):
            rx.cols.id[left + i] = spare.cols.id[i]
            rx.cols.offsets[left + i + 1] = shift + spare.cols.offsets[i + 1]
        for i in range(spare.cols.offsets[n]):
            rx.cols.desc[shift + i] = spare.cols.desc[i]
        rx.rows = left + n
        return n

    cdef int publish(self, DeviceQueue queue) except -1:
        """Give the filled receive chains to the driver."""
        if self.rx_filled < self.rx_next:
            queue.push(self.rx, self.rx_filled, self.rx_next - self.rx_filled)
            self.rx_filled = self.rx_next
        return 0

    def return_rx(self, DeviceQueue queue not None) -> None:
        """Give back, empty, the receive chains in hand: a driver takes them as failed packets."""
        cdef size_t i
        for i in range(self.rx_next, self.rx.rows):
            self.rx.cols.written[i] = 0
        self.rx_next = self.rx.rows
        self.publish(queue)
        self.rx.rows = self.rx_next = self.rx_filled = 0

    def return_tx(self, DeviceQueue queue not None) -> None:
        """Give back the transmit chains in hand; their packets are dropped."""
        cdef size_t left = self.tx.rows - self.tx_next
        if left:
            self.dropped += left
            queue.push(self.tx, self.tx_next, left)
        self.tx.rows = self.tx_next = 0

    cdef int keep_rest(self, DeviceQueue queue) except -1:
        """Give back the transmit chains that are done; the others move to the front."""
        cdef Batch tx = self.tx
        cdef size_t left = tx.rows - self.tx_next
        cdef uint32_t first = tx.cols.offsets[self.tx_next]
        cdef size_t i
        if self.tx_next:
            queue.push(tx, 0, self.tx_next)
        for i in range(tx.cols.offsets[tx.rows] - first):
            tx.cols.desc[i] = tx.cols.desc[first + i]
        for i in range(left):
            tx.cols.id[i] = tx.cols.id[self.tx_next + i]
            tx.cols.offsets[i + 1] = tx.cols.offsets[self.tx_next + i + 1] - first
        tx.cols.offsets[0] = 0
        tx.rows = left
        self.tx_next = 0
        return 0

    @property
    def waiting(self) -> bool:
        """Is there a packet in hand that waits for receive buffers?"""
        return self.tx_next < self.tx.rows
