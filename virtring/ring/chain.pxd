"""What the device sides do with a chain of either layout: admit descriptors, follow a table.

Every number here was written by the driver and is checked before it is used.
"""

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

from virtring.memory.barriers cimport load64_any, swap16, swap32, swap64
from virtring.memory.table cimport PERM_READ, PERM_RW, PERM_WRITE, guest_table
from virtring.ring.common cimport (
    VR_BATCH_ROOM, VR_CHAIN_ADDRESS, VR_CHAIN_ORDER, VR_CHAIN_TOO_LONG, VR_CHAIN_ZERO_LENGTH,
    VR_INDIRECT_LENGTH, VR_INDIRECT_NESTED, VR_INDIRECT_NEXT, VR_INDIRECT_NOT_NEGOTIATED,
    VR_NEXT_RANGE, VR_OK, batch_cols, device_side, fail, host_of_hot, in_memory, inside,
    put_row,
)
from virtring.spec.ring cimport (
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, vring_desc,
)

# A chain while it is walked. Descriptors go to the batch's columns from row ``first`` on.
ctypedef struct chain_walk:
    size_t first
    uint32_t n              # descriptors so far
    uint64_t in_len         # bytes the device may write
    int64_t pos             # ring position, for messages


cdef inline uint32_t walk_plain(
    const device_side* s, const char* desc, uint32_t num, vring_desc* row, uint32_t room,
    uint64_t addr, uint64_t word, uint64_t* in_len
) noexcept nogil:
    """Walk a chain whose links stand in ``next``, all of it in the range that served the last
    address, without an indirect table; how many descriptors, 0 for any other: admit_desc says
    what it is. addr and word are the first descriptor's words, desc the table of num they are in.

    ``room`` is at most the ring's size, so it ends. All that is fetched is checked.
    """
    cdef uint64_t base = s.hot.base
    cdef uint64_t size = s.hot.size
    cdef uint64_t total = 0
    cdef uint32_t n = 0
    cdef uint32_t flags
    cdef size_t link
    while n < room:
        flags = <uint32_t>(word >> 32)
        if flags & VRING_DESC_F_INDIRECT or not inside(addr, <uint32_t>word, base, size):
            return 0
        if flags & VRING_DESC_F_WRITE:
            total += <uint32_t>word
            put_row(row + n, addr, <uint32_t>word, VRING_DESC_F_WRITE)
        elif total:
            return 0
        else:
            put_row(row + n, addr, <uint32_t>word, 0)
        n += 1
        if not flags & VRING_DESC_F_NEXT:
            in_len[0] = total
            return n
        link = word >> 48
        if link >= num:
            return 0
        addr = load64_any(desc + 16 * link)
        word = load64_any(desc + 16 * link + 8)
    return 0


cdef inline uint32_t walk_plain_table(
    const device_side* s, const char* entries, uint32_t total, vring_desc* row, uint32_t room,
    uint64_t* in_len
) noexcept nogil:
    """As walk_plain, all entries of a packed ring's indirect table: they have no links."""
    cdef uint64_t base = s.hot.base
    cdef uint64_t size = s.hot.size
    cdef uint64_t in_sum = 0
    cdef uint64_t addr, word
    cdef uint32_t n, flags
    if total > room:
        return 0
    for n in range(total):
        addr = load64_any(entries + 16 * <size_t>n)
        word = load64_any(entries + 16 * <size_t>n + 8)
        flags = <uint32_t>(word >> 48)
        if flags & VRING_DESC_F_INDIRECT or not inside(addr, <uint32_t>word, base, size):
            return 0
        if flags & VRING_DESC_F_WRITE:
            in_sum += <uint32_t>word
            put_row(row + n, addr, <uint32_t>word, VRING_DESC_F_WRITE)
        elif in_sum:
            return 0
        else:
            put_row(row + n, addr, <uint32_t>word, 0)
    in_len[0] = in_sum
    return total


cdef inline uint32_t plain_room(
    const device_side* s, const batch_cols* cols, const chain_walk* w
) noexcept nogil:
    """The most descriptors of a chain that walk_plain may take; 0 when it may not."""
    if s.hot.perm != PERM_RW or s.swap:
        return 0
    return <uint32_t>min(cols.max_desc - w.first, <size_t>s.num)


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
    # Not behind descriptors of the ring: a chain may end with a table.
    if w.n == 0:
        if packed:
            w.n = walk_plain_table(
                s, entries, total, cols.desc + w.first, plain_room(s, cols, w), &w.in_len
            )
        else:
            w.n = walk_plain(
                s, entries, total, cols.desc + w.first, plain_room(s, cols, w),
                load64_any(entries), load64_any(entries + 8), &w.in_len
            )
        if w.n:
            return VR_OK
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
