from libc.stdint cimport uint8_t, uint64_t

cdef enum:
    # Bytes of a frame that decide: two addresses, the type, a tag.
    LOOK = 18


cdef class NetFilter:
    cdef public bint promisc
    cdef public bint allmulti
    cdef public bint alluni
    cdef public bint nomulti
    cdef public bint nouni
    cdef public bint nobcast
    cdef public bint vlans_on
    cdef uint64_t mac
    cdef uint64_t[64] unicast
    cdef uint64_t[64] multicast
    cdef int n_unicast                  # -1: more than the table holds, so all are let through
    cdef int n_multicast
    cdef uint8_t[512] vlan_bits
    cdef bint accepts(self, const uint8_t* frame, size_t size) noexcept nogil
