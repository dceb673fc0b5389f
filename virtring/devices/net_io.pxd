from libc.stdint cimport int64_t, uint64_t

from virtring.devices.net_packets cimport NetPackets
from virtring.queue.device cimport DeviceQueue


cdef class NetPair(NetPackets):
    cdef bint tell_rx                   # what run() found: the driver wants a signal
    cdef bint tell_tx
    cdef int run(
        self, DeviceQueue tx, DeviceQueue rx, uint64_t limit, int64_t patience, uint64_t* done
    ) noexcept nogil
    cdef int call(self, DeviceQueue queue) except -1
    cdef int complete(self, DeviceQueue tx, DeviceQueue rx) except -1
