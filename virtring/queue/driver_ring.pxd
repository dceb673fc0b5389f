from libc.stdint cimport uint16_t, uint32_t, uint64_t

from virtring.queue.batch cimport Batch
from virtring.queue.side cimport QueueSide
from virtring.queue.tokens cimport token_set
from virtring.ring.common cimport driver_side
from virtring.ring.packed_driver cimport packed_driver
from virtring.ring.split_driver cimport split_driver


cdef class DriverRing(QueueSide):
    cdef split_driver split             # the one in use is told by QueueSide.packed
    cdef packed_driver pack
    cdef driver_side* s                 # the common part of the one in use
    cdef readonly bint weak_barriers
    cdef readonly bint context
    cdef bint callbacks                 # on from the start
    cdef list tokens                    # by id; None where the token is a number
    cdef list contexts                  # by id; None unless made with context=True
    cdef object last_context            # of the buffer that recall() gave last
    cdef token_set in_use
    cdef uint32_t n_objects             # outstanding object tokens
    cdef uint32_t detach_from
    cdef Batch one                      # scratch for a single chain
    cdef list blocks                    # ring memory that is ours to free
    cdef dict table_blocks              # id -> its indirect table

    cdef int setup(self, object config, list blocks) except -1
    cdef int clear_state(self) except -1
    cdef void free_state(self) noexcept
    cdef int resolve(self, object sg, bint write, uint64_t* addr, uint32_t* length) except -1
    cdef int check_token(self, object data, object ctx) except -1
    cdef int remember(self, uint32_t id, object data, object ctx) except -1
    cdef object recall(self, uint32_t id)
    cdef int give_table(self) except -1
    cdef int get_one(self, uint64_t* token, uint32_t* written) except -1
    cdef object detach_one(self)
