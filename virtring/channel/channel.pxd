from libc.stdint cimport int64_t, uint32_t, uint64_t

from virtring.channel.receive cimport ChannelReceive
from virtring.memory.snapshot cimport MemoryTable
from virtring.queue.batch cimport Batch
from virtring.queue.driver cimport Virtqueue


cdef class Loan:
    cdef Channel channel                # None once committed
    cdef MemoryTable table              # keeps the mapping
    cdef char* host
    cdef readonly uint32_t size
    cdef uint32_t slot


cdef class Channel(ChannelReceive):
    cdef Virtqueue vq
    cdef Batch got                      # slots that came back
    cdef Batch rows                     # messages about to be sent
    cdef object free_array
    cdef uint32_t[::1] free             # the slots that nobody has, as a stack
    cdef size_t n_free
    cdef char* slots                    # the first slot, in this process
    cdef uint64_t slots_addr            # and as a guest address
    cdef size_t stride
    cdef bint sending                   # somebody waits
    cdef object send_waker
    cdef object send_spin
    cdef double send_us                 # how long the next wait polls

    cdef int enter_send(self) except -1
    cdef bint back(self) noexcept nogil
    cdef bint spin_send(self, int64_t until) noexcept nogil
    cdef int harvest(self) except -1
    cdef int room(self) except -1
    cdef int publish(self, uint32_t slot, size_t size) except -1
    cdef int publish_rows(self, size_t n) except -1
    cdef bint put(self, object data) except -1
    cdef int refuse_size(self, size_t size) except -1
    cdef int get_buffer(self, object data, Py_buffer* view) except -1
    cdef tuple checked(self, object messages)
    cdef void set_row(self, size_t row, size_t slot, size_t size) noexcept
    cdef size_t put_list(self, tuple messages, size_t start) except? 0
    cdef size_t put_array(
        self, const unsigned char** data, const uint32_t* lengths, size_t total
    ) except? 0
    cdef Loan take_slot(self)
    cdef int wait_send(self, object timeout) except -1
    cdef int send_waited(self) except -1
