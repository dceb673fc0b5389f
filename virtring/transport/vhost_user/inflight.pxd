from libc.stdint cimport uint16_t, uint32_t, uint64_t


cdef class Inflight:
    cdef readonly bint packed
    cdef readonly uint32_t num
    cdef unsigned char[::1] area        # keeps the memory
    cdef char* head                     # QueueRegionSplit or QueueRegionPacked
    cdef char* desc                     # its entries
    cdef uint64_t counter
    # Of what is in the area, all that we rely on while running is kept here too: it is shared.
    cdef uint16_t last_batch_head
    cdef uint16_t used_idx
    cdef bint used_wrap
    cdef uint16_t old_used_idx
    cdef bint old_used_wrap
    cdef uint16_t free_head
    cdef uint16_t old_free_head
    cdef uint16_t[::1] next             # [num] packed: the free list
    cdef uint16_t[::1] last             # [num] packed: by first entry, the last one
    cdef uint16_t[::1] entry            # [65536] packed: by buffer id, its first entry

    cdef list begin_split(self, uint16_t used_idx)
    cdef list begin_packed(self, const char* ring, uint32_t size, uint32_t used)
    cdef void popped_split(self, const uint32_t* id, size_t n) noexcept nogil
    cdef void popped_packed(
        self, const uint32_t* id, size_t n, const uint64_t* held, const char* ring, uint32_t size,
        uint32_t pos
    ) noexcept nogil
    cdef void pushing(
        self, const uint32_t* id, size_t n, const uint64_t* held, uint32_t size
    ) noexcept nogil
    cdef void cancel(self) noexcept nogil
    cdef void pushed(self, const uint32_t* id, size_t n, uint16_t used_idx) noexcept nogil
    cdef void put_used(self) noexcept nogil
    cdef void put_free(self) noexcept nogil
