cimport cython
from libc.stdint cimport uint16_t, uint32_t, uint64_t, uintptr_t

from virtring.queue.batch cimport Batch
from virtring.queue.side cimport QueueSide
from virtring.queue.tokens cimport token_add, token_remove, token_set
from virtring.ring.common cimport VR_OK, driver_side
from virtring.ring.driver cimport driver_get_one
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
    cdef int refuse_token(self, object data, bint twice) except -1
    cdef int give_table(self) except -1
    cdef object detach_one(self)

    @cython.final
    cdef inline int check_token(self, object data, object ctx) except -1:
        if data is None or (ctx is not None and not self.context):
            self.refuse_token(data, False)
        return 0

    @cython.final
    cdef inline int remember(self, uint32_t id, object data, object ctx) except -1:
        """Keep the token of the buffer about to get ``id``; raises when it is in flight already."""
        if not token_add(&self.in_use, <uintptr_t><void*>data):
            self.refuse_token(data, True)
        self.tokens[id] = data
        if ctx is not None:
            self.contexts[id] = ctx
        self.n_objects += 1
        return 0

    @cython.final
    cdef inline object recall(self, uint32_t id):
        """The object token of a buffer that came back, or None where it was a number."""
        cdef object data = self.tokens[id]
        if data is not None:
            self.tokens[id] = None
            if self.contexts is not None:
                self.last_context, self.contexts[id] = self.contexts[id], None
            token_remove(&self.in_use, <uintptr_t><void*>data)
            self.n_objects -= 1
        return data

    @cython.final
    cdef inline int get_one(self, uint64_t* token, uint32_t* written) except -1:
        """Take one used buffer; 0 when there is none. Breaks the queue on a bad entry."""
        cdef bint taken = False
        cdef int code
        if self.packed:
            code = driver_get_one(&self.pack, token, written, &taken)
        else:
            code = driver_get_one(&self.split, token, written, &taken)
        if code != VR_OK:
            self.break_now(code, False)
        return taken
