"""What the device sides do with a chain of either layout: admit descriptors, follow a table.

Every number here was written by the driver and is checked before it is used.
"""

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

from virtring.memory.barriers cimport load64_any, swap16, swap32, swap64
from virtring.memory.table cimport PERM_READ, PERM_WRITE, guest_table
from virtring.ring.common cimport (
    VR_BATCH_ROOM, VR_CHAIN_ADDRESS, VR_CHAIN_ORDER, VR_CHAIN_TOO_LONG, VR_CHAIN_ZERO_LENGTH,
    VR_INDIRECT_LENGTH, VR_INDIRECT_NESTED, VR_INDIRECT_NEXT, VR_INDIRECT_NOT_NEGOTIATED,
    VR_NEXT_RANGE, VR_OK, batch_cols, device_side, fail, host_of_hot, in_memory, put_row,
)
from virtring.spec.ring cimport VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE

# A chain while it is walked. Descriptors go to the batch's columns from row ``first`` on.
ctypedef struct chain_walk:
    size_t first
    uint32_t n              # descriptors so far
    uint64_t in_len         # bytes the device may write
    int64_t pos             # ring position, for messages


cdef inline int admit_desc(
    device_side* s, const guest_table* table, batch_cols* cols, chain_walk* w,
    uint64_t addr, uint32_t length, uint16_t flags
) noexcept nogil:
    """Check one descriptor and append it to the columns."""
    cdef uint16_t write = flags & VRING_DESC_F_WRITE
    cdef uint32_t perm = PERM_WRITE if write else PERM_READ
    cdef size_t row = w.first + w.n
    if w.n == s.num:
        return fail(&s.fault, VR_CHAIN_TOO_LONG, w.pos, w.n, s.num)
    if row >= cols.max_desc:
        return fail(&s.fault, VR_BATCH_ROOM, w.pos, w.n + 1, cols.max_desc)
    if length == 0:
        return fail(&s.fault, VR_CHAIN_ZERO_LENGTH, w.pos, addr, 0)
    if write:
        w.in_len += length
    elif w.in_len:
        return fail(&s.fault, VR_CHAIN_ORDER, w.pos, w.n, 0)
    if not in_memory(&s.hot, table, addr, length, perm):
        s.fault.perm = perm
        return fail(&s.fault, VR_CHAIN_ADDRESS, w.pos, <int64_t>addr, length)
    put_row(cols.desc + row, addr, length, write)
    w.n += 1
    return VR_OK


cdef inline int walk_indirect(
    device_side* s, const guest_table* table, batch_cols* cols, chain_walk* w,
    uint64_t addr, uint32_t length, uint16_t flags, bint packed, bint swap
) noexcept nogil:
    """Append what an indirect table holds. The WRITE flag of the descriptor that names the table is
    ignored (2.7.5.3.2), as are ``next`` and NEXT in a packed ring's table (2.8.8).

    The table is the driver's memory: each entry is fetched once.
    """
    cdef char* entries
    cdef uint64_t entry_addr, word
    cdef uint32_t entry_len
    cdef uint32_t total = length >> 4
    cdef uint32_t i = 0
    cdef uint16_t entry_flags, link
    cdef int code
    if not s.indirect:
        return fail(&s.fault, VR_INDIRECT_NOT_NEGOTIATED, w.pos, 0, 0)
    if flags & VRING_DESC_F_NEXT:
        return fail(&s.fault, VR_INDIRECT_NEXT, w.pos, 0, 0)
    if length == 0 or length & 15 or total > s.num:
        return fail(&s.fault, VR_INDIRECT_LENGTH, w.pos, length, s.num)
    if not in_memory(&s.hot, table, addr, length, PERM_READ):
        s.fault.perm = PERM_READ
        return fail(&s.fault, VR_CHAIN_ADDRESS, w.pos, <int64_t>addr, length)
    # The pointer outlives changes of s.hot: the table snapshot keeps the mapping for this call.
    entries = host_of_hot(&s.hot, addr)
    while True:     # ends: admit_desc refuses more than s.num descriptors
        entry_addr = load64_any(entries + 16 * <size_t>i)
        word = load64_any(entries + 16 * <size_t>i + 8)
        entry_len = <uint32_t>word
        if packed:
            entry_flags = <uint16_t>(word >> 48)
            link = <uint16_t>(i + 1)
        else:
            entry_flags = <uint16_t>(word >> 32)
            link = <uint16_t>(word >> 48)
            if swap:
                entry_addr = swap64(entry_addr)
                entry_len = swap32(entry_len)
                entry_flags = swap16(entry_flags)
                link = swap16(link)
        if entry_flags & VRING_DESC_F_INDIRECT:
            return fail(&s.fault, VR_INDIRECT_NESTED, w.pos, i, 0)
        code = admit_desc(s, table, cols, w, entry_addr, entry_len, entry_flags)
        if code != VR_OK:
            return code
        if packed:
            if link == total:
                return VR_OK
        elif not entry_flags & VRING_DESC_F_NEXT:
            return VR_OK
        elif link >= total:
            return fail(&s.fault, VR_NEXT_RANGE, w.pos, link, total)
        i = link
