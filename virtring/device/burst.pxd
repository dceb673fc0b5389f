from libc.stdint cimport uint32_t

from virtring.memory.table cimport guest_table
from virtring.queue.batch cimport Batch
from virtring.queue.device cimport DeviceQueue
from virtring.ring.common cimport batch_cols


cdef class BurstWorker:
    cdef readonly str complaint

    # Carry out rows from first to end, in their order; how many were done, at least one. Sets
    # ``written`` of each, and bad when one of them cannot be a request: that one is the last.
    cdef size_t work(
        self, const guest_table* table, batch_cols* cols, size_t first, size_t end, bint* bad
    ) noexcept nogil


cdef class QueueLoop:
    cdef readonly DeviceQueue queue
    cdef BurstWorker worker
    cdef Batch batch
    cdef int wake
    cdef bint poll
    cdef uint32_t stopping

    # What a kind of queue that keeps accounts does more.
    cdef int pop(self, size_t* n) except -1 nogil
    cdef int push(self, size_t first, size_t n) except -1 nogil
    cdef void asked(self) noexcept nogil

    cdef int turn(self, int kick, int call, int* code) except -1 nogil
    cdef int burst(self, int call, bint* any, int* code) except -1 nogil
    cdef bint need_notify(self) noexcept nogil
    cdef void disable_notify(self) noexcept nogil
    cdef bint enable_notify(self) noexcept nogil
    cdef bint available(self) noexcept nogil
