from libc.stdint cimport uint8_t, uint32_t, uint64_t
from posix.types cimport off_t

from virtring.device.burst cimport BurstWorker
from virtring.device.cursor cimport cursor, iovec
from virtring.memory.table cimport guest_table
from virtring.ring.common cimport batch_cols
from virtring.spec.ring cimport vring_desc


cdef class BlkIo(BurstWorker):
    cdef readonly int fd
    cdef public uint64_t capacity
    cdef readonly bint read_only
    cdef readonly uint64_t malformed
    cdef public bint write_through
    cdef public bint discard
    cdef public bint write_zeroes
    cdef uint64_t max_segments
    cdef uint64_t max_sectors
    cdef char serial[20]
    cdef size_t rows(
        self, const guest_table* table, batch_cols* cols, size_t first, size_t end, uint64_t limit,
        uint64_t* total, bint* bad
    ) noexcept nogil
    cdef uint32_t request(
        self, const guest_table* table, const vring_desc* first, const vring_desc* end,
        uint64_t* moved, bint* bad
    ) noexcept nogil
    cdef bint inside(self, uint64_t sector, uint64_t sectors) noexcept nogil
    cdef uint8_t move(
        self, cursor* c, uint64_t sector, uint64_t size, bint write
    ) noexcept nogil
    cdef int transfer(
        self, iovec* iov, int n, off_t place, uint64_t size, bint write
    ) noexcept nogil
    cdef uint8_t clear(self, cursor* out, uint64_t size, uint32_t type) noexcept nogil
    cdef int clear_range(
        self, off_t place, off_t size, uint32_t type, uint32_t flags
    ) noexcept nogil
