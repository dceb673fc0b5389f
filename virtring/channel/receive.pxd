cimport cython
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
    cdef uint64_t first_addr            # guest address of the memory's first byte
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
    cdef int refuse_message(self) except -1
    cdef int give_back(self) except -1
    cdef void give_dropped(self, uint32_t id) noexcept
    cdef bytes take(self)
    cdef Borrow lend(self)
    cdef int wait_recv(self, object timeout) except -1
    cdef int recv_waited(self) except -1

    @cython.final
    cdef inline const char* message(self, uint32_t* length) except NULL:
        """The next message, checked; it stays the next until ``pos`` moves."""
        cdef size_t row = self.pos
        cdef size_t first = self.popped.cols.offsets[row]
        cdef uint64_t addr = self.popped.cols.desc[first].addr
        # The queue has checked that it is not empty and lies in the memory, which is one region.
        cdef uint32_t size = self.popped.cols.desc[first].len - 1
        if (
            self.popped.cols.offsets[row + 1] - first != 1 or size > self.slot_size
            or self.popped.cols.desc[first].flags
        ):
            self.refuse_message()
        length[0] = size
        return self.base + (addr - self.first_addr)

    @cython.final
    cdef inline int done(self, uint32_t id) except -1:
        """The message with that id was received: its slot goes back, with others."""
        self.given.cols.id[self.n_given] = id
        self.n_given += 1
        if self.n_given >= self.give_at:
            self.give_back()
        return 0
