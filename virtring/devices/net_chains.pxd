from libc.stdint cimport uint64_t

from virtring.queue.batch cimport Batch
from virtring.queue.device cimport DeviceQueue


cdef class NetChains:
    cdef readonly uint64_t dropped
    cdef Batch rx                       # receive chains; rows from rx_next on are unused
    cdef Batch spare
    cdef size_t rx_next
    cdef size_t rx_filled               # rows from here to rx_next are not pushed yet
    cdef Batch tx                       # transmit chains; rows from tx_next on are not done
    cdef size_t tx_next
    cdef size_t refill(self, DeviceQueue queue, size_t want) except? 0xFFFFFFFF
    cdef int publish(self, DeviceQueue queue) except -1
    cdef int keep_rest(self, DeviceQueue queue) except -1
