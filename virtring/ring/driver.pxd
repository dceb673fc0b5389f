"""The driver side's batch loops, once for both layouts (see driver.pyx).

Everything is callable without the GIL; a third-party Cython module can drive a ring with these
alone, given the structure of a queue (``Virtqueue.split`` or ``Virtqueue.packed``).
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from virtring.memory.table cimport guest_table
from virtring.ring.common cimport batch_cols, driver_side
from virtring.ring.packed_driver cimport packed_driver
from virtring.ring.split_driver cimport split_driver
from virtring.spec.ring cimport vring_desc

ctypedef fused driver_ring:
    split_driver
    packed_driver

cdef int check_chain(
    driver_side* s, const guest_table* table, const vring_desc* sg, size_t n, size_t row
) noexcept nogil
cdef int driver_add_rows(
    driver_ring* ring, const guest_table* table, const vring_desc* sg, const uint64_t* token,
    size_t n, uint16_t flags
) noexcept nogil
cdef int driver_check_rows(
    driver_side* s, const guest_table* table, const vring_desc* sg, size_t first, size_t n,
    uint16_t flags
) noexcept nogil
cdef int driver_add_chains(
    driver_ring* ring, const batch_cols* cols, size_t start, size_t end, bint direct, size_t* added
) noexcept nogil
cdef int driver_get(
    driver_ring* ring, uint64_t* token, uint32_t* written, size_t room, size_t* taken
) noexcept nogil
cdef void driver_add_one(
    driver_ring* ring, uint64_t addr, uint32_t length, uint64_t token, uint16_t flags
) noexcept nogil
cdef int driver_get_one(
    driver_ring* ring, uint64_t* token, uint32_t* written, bint* taken
) noexcept nogil
