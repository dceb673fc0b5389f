from libc.stdint cimport uint32_t, uint64_t

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
    cdef int complete(self, DeviceQueue tx, DeviceQueue rx) except -1
    cdef bint payload(
        self, size_t row, iovec* iov, int* n, uint64_t* size
    ) noexcept nogil
    cdef uint64_t room(self, size_t row, uint32_t* first) noexcept nogil
    cdef int deliver(self, const iovec* iov, int n, uint64_t size) noexcept nogil
    cdef bint fill_one(self, const iovec* iov, int n, uint64_t size) noexcept nogil
    cdef int fill(self, size_t rows, const iovec* iov, int n, uint64_t size) noexcept nogil
