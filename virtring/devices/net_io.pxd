from libc.stdint cimport int64_t, uint32_t, uint64_t

from virtring.device.cursor cimport cursor, iovec
from virtring.devices.net_chains cimport NetChains
from virtring.devices.net_filter cimport NetFilter
from virtring.memory.table cimport guest_table
from virtring.queue.device cimport DeviceQueue


cdef class NetPair(NetChains):
    cdef readonly NetFilter filter
    cdef public uint32_t header
    cdef public bint merge
    cdef readonly uint64_t transmitted
    cdef readonly uint64_t transmitted_bytes
    cdef readonly uint64_t received
    cdef readonly uint64_t received_bytes
    cdef readonly uint64_t filtered
    cdef readonly uint64_t malformed
    cdef cursor reader
    cdef cursor writer
    cdef bint tell_rx                   # what run() found: the driver wants a signal
    cdef bint tell_tx
    cdef int run(
        self, DeviceQueue tx, DeviceQueue rx, uint64_t limit, int64_t patience, uint64_t* done
    ) noexcept nogil
    cdef int forward(self) noexcept nogil
    cdef void drop(self) noexcept nogil
    cdef int call(self, DeviceQueue queue) except -1
    cdef int complete(self, DeviceQueue tx, DeviceQueue rx) except -1
    cdef bint payload(
        self, size_t row, iovec* iov, int* n, uint64_t* size
    ) noexcept nogil
    cdef uint64_t room(self, size_t row, uint32_t* first) noexcept nogil
    cdef int deliver(self, const iovec* iov, int n, uint64_t size) noexcept nogil
    cdef bint fill_one(self, const iovec* iov, int n, uint64_t size) noexcept nogil
    cdef int fill(self, size_t rows, const iovec* iov, int n, uint64_t size) noexcept nogil
