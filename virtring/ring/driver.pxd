"""The driver side's batch loops, once for both layouts (see driver.pyx), and single buffers.

Everything is callable without the GIL; a third-party Cython module can drive a ring with these
alone, given the structure of a queue (``Virtqueue.split`` or ``Virtqueue.packed``).
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from virtring.memory.table cimport guest_table
from virtring.ring.common cimport VR_OK, batch_cols, driver_side
from virtring.ring.packed_driver cimport (
    packed_driver, packed_get_word, packed_get_word_in_order, packed_publish, packed_put_one,
    packed_rearm, packed_used_word, packed_word_used,
)
from virtring.ring.split_driver cimport (
    split_driver, split_driver_look, split_driver_ready, split_get_one, split_get_one_in_order,
    split_publish, split_put_one, split_rearm,
)
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


cdef inline void driver_add_one(
    driver_ring* ring, uint64_t addr, uint32_t length, uint64_t token, uint16_t flags
) noexcept nogil:
    """Add and publish one buffer that the caller has checked; num_free is not 0."""
    if driver_ring is split_driver:
        split_put_one(ring, addr, length, flags, token, ring.s.swap)
    else:
        packed_put_one(ring, addr, length, flags, token, ring.s.swap)
    ring.s.num_free -= 1
    ring.s.in_flight += 1
    ring.s.num_added += 1
    if driver_ring is split_driver:
        split_publish(ring, ring.s.swap)
    else:
        packed_publish(ring, ring.s.swap)


cdef inline int driver_get_next(
    driver_ring* ring, uint64_t* token, uint32_t* written, bint* taken
) noexcept nogil:
    """Take the next used buffer, whatever it is; its id is left in ``last_id``."""
    cdef uint64_t word = 0
    cdef int code
    taken[0] = False
    if driver_ring is split_driver:
        if split_driver_ready(ring) == 0:
            return VR_OK
        if ring.s.in_order:
            code = split_get_one_in_order(ring, token, written, ring.s.swap)
        else:
            code = split_get_one(ring, token, written, ring.s.swap)
    else:
        if not ring.s.group:
            word = packed_used_word(ring)
            if not packed_word_used(ring, word):
                return VR_OK
        if ring.s.in_order:
            code = packed_get_word_in_order(ring, word, token, written)
        else:
            code = packed_get_word(ring, word, token, written)
    if code == VR_OK:
        taken[0] = True
    return code


cdef inline int driver_get_one(
    driver_ring* ring, uint64_t* token, uint32_t* written, bint* taken
) noexcept nogil:
    """driver_get for a single buffer; its id is left in ``last_id``."""
    cdef int code
    taken[0] = False
    if driver_ring is split_driver:
        if split_driver_ready(ring) == 0:
            code = split_driver_look(ring, ring.s.swap)
            if code != VR_OK:
                return code
    code = driver_get_next(ring, token, written, taken)
    if taken[0]:
        ring.s.in_flight -= 1
        if driver_ring is split_driver:
            split_rearm(ring)
        else:
            packed_rearm(ring)
    return code
