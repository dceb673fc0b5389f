from virtring.channel.receive cimport ChannelReceive


cdef int get_array(object source, Py_buffer* view, int size, bint write, str what) except -1


cdef class ReceiveMany(ChannelReceive):
    cdef list take_batch(self, size_t limit)
    cdef size_t fill(self, object out, object lengths) except? 0
