"""The message header in C: built in place, fetched once, checked before use."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from virtring.memory.barriers cimport load64_any, store64_any, swap16, swap32

cdef enum:
    HDR_SIZE = 16
    # Why a message was dropped; the names are in port.pyx.
    DROP_SHORT = 0
    DROP_LENGTH = 1
    DROP_ADDRESS = 2
    DROP_REASONS = 3
    ANY = 0xFFFFFFFF

ctypedef struct message_hdr:
    uint32_t src
    uint32_t dst
    uint32_t len            # payload bytes
    uint16_t flags


cdef inline void put_header(
    char* at, uint32_t src, uint32_t dst, uint32_t length, bint swap
) noexcept nogil:
    """Write a header with flags 0 and reserved 0."""
    if swap:
        src = swap32(src)
        dst = swap32(dst)
        length = swap16(<uint16_t>length)
    store64_any(at, <uint64_t>src | (<uint64_t>dst << 32))
    store64_any(at + 8, <uint64_t>length << 32)


cdef inline int get_header(
    const char* at, uint64_t used, uint32_t mtu, bint swap, message_hdr* hdr
) noexcept nogil:
    """Fetch the header of a message of ``used`` bytes; -1, or why it is dropped.

    The peer may still write there: after this only the copy counts.
    """
    cdef uint64_t first
    cdef uint64_t second
    if used < HDR_SIZE:
        return DROP_SHORT
    if used - HDR_SIZE > mtu:
        # More than a buffer holds, whatever the header says.
        return DROP_LENGTH
    first = load64_any(at)
    second = load64_any(at + 8)
    hdr.src = <uint32_t>first
    hdr.dst = <uint32_t>(first >> 32)
    hdr.len = <uint16_t>(second >> 32)
    hdr.flags = <uint16_t>(second >> 48)
    if swap:
        hdr.src = swap32(hdr.src)
        hdr.dst = swap32(hdr.dst)
        hdr.len = swap16(<uint16_t>hdr.len)
        hdr.flags = swap16(hdr.flags)
    if hdr.len > used - HDR_SIZE:
        return DROP_LENGTH
    return -1
