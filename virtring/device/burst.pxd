from libc.stdint cimport int64_t, uint32_t, uint64_t

from virtring.memory.table cimport guest_table
from virtring.queue.batch cimport Batch
from virtring.queue.device cimport DeviceQueue
from virtring.ring.common cimport batch_cols


cdef class BurstWorker:
    cdef readonly str complaint

    # Carry out rows from first to end, in their order; how many were done, at least one. Sets
    # ``written`` of each and adds the bytes of data to moved. Sets bad when a row cannot be a
    # request: that one is the last.
    cdef size_t work(
        self, const guest_table* table, batch_cols* cols, size_t first, size_t end,
        uint64_t* moved, bint* bad
    ) noexcept nogil


cdef class QueueLoop:
    cdef readonly DeviceQueue queue
    cdef BurstWorker worker
    cdef Batch batch
    cdef int wake
    cdef bint poll
    cdef uint32_t stopping
    # When to tell the driver, see hold().
    cdef uint32_t untold                # rows pushed since it was told
    cdef uint64_t moved                 # bytes of data in them
    cdef uint32_t target                # rows after which it is told at once
    cdef uint32_t reached               # how often that many came since target was changed
    cdef uint32_t patience              # how often they must before more are waited for
    cdef bint trial                     # more than ever are waited for
    cdef readonly uint64_t vain         # waits in which nothing came
    cdef int64_t came                   # when the last burst came, ns
    cdef int64_t gap                    # between bursts, on average, ns

    # What a kind of queue that keeps accounts does more.
    cdef int pop(self, size_t* n) except -1 nogil
    cdef int push(self, size_t first, size_t n) except -1 nogil
    cdef void asked(self) noexcept nogil

    cdef int turn(self, int kick, int* call, int* code) except -1 nogil
    cdef int look(self, int kick, int* call, int* code) except -1 nogil
    cdef int burst(self, int* call, bint* any, int* code) except -1 nogil
    cdef void tell(self, int* call) noexcept nogil
    cdef bint hold(self) noexcept nogil
    cdef bint enough(self) noexcept nogil
    cdef bint wait(self, int kick) noexcept nogil
    cdef bint need_notify(self) noexcept nogil
    cdef void disable_notify(self) noexcept nogil
    cdef bint enable_notify(self) noexcept nogil
    cdef bint available(self) noexcept nogil
