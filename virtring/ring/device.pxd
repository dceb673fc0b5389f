"""The device side's batch loops, once for both layouts (see device.pyx)."""

from libc.stdint cimport uint32_t

from virtring.memory.table cimport guest_table
from virtring.ring.common cimport batch_cols
from virtring.ring.packed_device cimport packed_device
from virtring.ring.split_device cimport split_device

ctypedef fused device_ring:
    split_device
    packed_device

cdef int device_pop(
    device_ring* ring, const guest_table* table, batch_cols* cols, size_t room, size_t* popped
) noexcept nogil
cdef int device_push(
    device_ring* ring, const uint32_t* id, const uint32_t* written, size_t n, size_t* published
) noexcept nogil
