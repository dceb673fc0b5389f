from libc.stdint cimport int64_t, uint32_t, uint64_t

from virtring.channel.end cimport ChannelEnd
from virtring.memory.snapshot cimport MemoryTable
from virtring.queue.batch cimport Batch
from virtring.queue.device cimport DeviceQueue


cdef class Borrow:
    cdef ChannelReceive channel         # None once released
    cdef MemoryTable table              # keeps the mapping
    cdef const char* host
    cdef readonly uint32_t size
    cdef uint32_t id


cdef class ChannelReceive(ChannelEnd):
    cdef DeviceQueue dq
    cdef Batch popped                   # messages taken from the ring and not yet received
    cdef Batch given                    # messages received, whose slots go back together
    cdef size_t pos, end
    cdef size_t n_given, give_at
    cdef bint kicked                    # kicks are still on, as they are in a new ring
    cdef bint receiving                 # somebody waits
    cdef object recv_waker
    cdef object recv_spin
    cdef double recv_us                 # how long the next wait polls

    cdef bint look(self) noexcept nogil
    cdef bint spin_recv(self, int64_t until) noexcept nogil
    cdef int refill(self) except -1
    cdef int enter_recv(self) except -1
    cdef int ready_recv(self) except -1
    cdef const char* message(self, uint32_t* length) except NULL
    cdef int done(self, uint32_t id) except -1
    cdef void give_dropped(self, uint32_t id) noexcept
    cdef bytes take(self)
    cdef Borrow lend(self)
    cdef int wait_recv(self, object timeout) except -1
    cdef int recv_waited(self) except -1
