from libc.stdint cimport int64_t, uint32_t, uint64_t

from virtring.channel.receive_many cimport ReceiveMany
from virtring.memory.snapshot cimport MemoryTable
from virtring.queue.batch cimport Batch
from virtring.queue.driver cimport Virtqueue


cdef class Loan:
    cdef ChannelSend channel                # None once committed
    cdef MemoryTable table              # keeps the mapping
    cdef char* host
    cdef readonly uint32_t size
    cdef uint32_t slot


cdef class ChannelSend(ReceiveMany):
    cdef Virtqueue vq
    cdef Batch got                      # slots that came back
    cdef object free_array
    cdef uint32_t[::1] free             # the slots that nobody has, as a stack
    cdef size_t n_free
    cdef char* slots                    # the first slot, in this process
    cdef uint64_t slots_addr            # and as a guest address
    cdef size_t stride
    cdef bint light                     # no barrier is needed before the look at a wish
    cdef bint sending                   # somebody waits
    cdef object send_waker
    cdef object send_spin
    cdef double send_us                 # how long the next wait polls

    cdef int enter_send(self) except -1
    cdef bint back(self) noexcept nogil
    cdef bint spin_send(self, int64_t until) noexcept nogil
    cdef int harvest(self) except -1
    cdef int room(self) except -1
    cdef int kick(self) except -1
    cdef int publish(self, uint32_t slot, size_t size) except -1
    cdef bint put(self, object data) except -1
    cdef int refuse_size(self, size_t size) except -1
    cdef int get_buffer(self, object data, Py_buffer* view) except -1
    cdef Loan take_slot(self)
    cdef int wait_send(self, object timeout) except -1
    cdef int send_waited(self) except -1
