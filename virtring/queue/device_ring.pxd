from virtring.queue.batch cimport Batch
from virtring.queue.side cimport QueueSide
from virtring.ring.common cimport device_side
from virtring.ring.packed_device cimport packed_device
from virtring.ring.split_device cimport split_device


cdef class DeviceRing(QueueSide):
    cdef split_device split             # the one in use is told by QueueSide.packed
    cdef packed_device pack
    cdef device_side* s                 # the common part of the one in use
    cdef bint weak_asked                # by the argument; a feature of the ring may say otherwise
    cdef Batch one                      # scratch for a single chain
    cdef unsigned long generation       # of the ring: chains of an older one are void

    cdef void free_state(self) noexcept
    cdef int clear_state(self) except -1
