"""What both sides of the packed ring need: the bits that say whose a descriptor is, and their word."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from virtring.spec.ring cimport VRING_PACKED_DESC_F_AVAIL, VRING_PACKED_DESC_F_USED

cdef enum:
    AVAIL_USED = VRING_PACKED_DESC_F_AVAIL | VRING_PACKED_DESC_F_USED


cdef inline uint64_t packed_word(uint32_t length, uint16_t id, uint16_t flags) noexcept nogil:
    """The second word of a descriptor: len, id and flags, written and read whole."""
    return <uint64_t>length | (<uint64_t>id << 32) | (<uint64_t>flags << 48)
