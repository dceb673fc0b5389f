from libc.stdint cimport uint32_t

from virtring.channel.send cimport ChannelSend
from virtring.queue.batch cimport Batch


cdef class Channel(ChannelSend):
    cdef Batch rows                     # messages about to be sent

    cdef int publish_rows(self, size_t n) except -1
    cdef tuple checked(self, object messages)
    cdef void set_row(self, size_t row, size_t slot, size_t size) noexcept
    cdef size_t put_list(self, tuple messages, size_t start) except? 0
    cdef size_t put_array(
        self, Py_buffer* data, const uint32_t* lengths, size_t each, size_t total, size_t start,
        size_t* at
    ) except? 0
