cimport cython
from libc.stdint cimport uint32_t, uint64_t

from virtring.device.cursor cimport cursor, iovec
from virtring.devices.net_chains cimport NetChains
from virtring.devices.net_filter cimport NetFilter

cdef enum:
    MIN_FRAME = 14
    # The longest that fits the standard's receive buffers (5.1.6.3), without their header.
    MAX_FRAME = 65589
    # Pieces of one packet; Linux sends 19 at most.
    PIECES = 64
    DELIVERED = 1
    DROPPED = 0
    STARVED = -1


cdef class NetPackets(NetChains):
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

    @cython.final
    cdef bint payload(self, size_t row, iovec* iov, int* n, uint64_t* size) noexcept nogil

    @cython.final
    cdef uint64_t room(self, size_t row, uint32_t* first) noexcept nogil

    @cython.final
    cdef int deliver(self, const iovec* iov, int n, uint64_t size) noexcept nogil

    @cython.final
    cdef bint fill_one(self, const iovec* iov, int n, uint64_t size) noexcept nogil

    @cython.final
    cdef int fill(self, size_t rows, const iovec* iov, int n, uint64_t size) noexcept nogil

    @cython.final
    cdef int forward(self) noexcept nogil

    @cython.final
    cdef void drop(self) noexcept nogil
