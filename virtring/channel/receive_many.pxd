from virtring.channel.receive cimport ChannelReceive


cdef class ReceiveMany(ChannelReceive):
    cdef list take_batch(self, size_t limit)
    cdef size_t fill(self, object out, object lengths) except? 0
