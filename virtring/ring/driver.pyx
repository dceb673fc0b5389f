"""The driver side's batch loops, written once; split and packed are chosen at compile time.

Each loop works on a local copy of the side's structure, which lets the compiler keep it in
registers across the stores to the ring, and writes the copy back once. ``swap`` and ``in_order``
are constants in each of the variants that the compiler makes.
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from virtring.memory.table cimport PERM_READ, PERM_WRITE, guest_table
from virtring.ring.common cimport (
    VR_NO_SPACE, VR_OK, VR_ROW_ADDRESS, VR_ROW_ORDER, VR_ROW_SIZE, VR_ROW_ZERO_LENGTH, batch_cols,
    driver_side, fail, in_memory,
)
from virtring.ring.packed_driver cimport (
    packed_driver, packed_get_word, packed_get_word_in_order, packed_publish, packed_put_chain,
    packed_put_one, packed_rearm, packed_used_word, packed_word_used,
)
from virtring.ring.split_driver cimport (
    split_driver, split_driver_look, split_driver_ready, split_get_one, split_get_one_in_order,
    split_publish, split_put_chain, split_put_one, split_rearm,
)
from virtring.spec.ring cimport VRING_DESC_F_WRITE


cdef int check_rows(
    driver_side* s, const guest_table* table, const uint64_t* addr, const uint32_t* length,
    size_t n, uint32_t perm
) noexcept nogil:
    """Check n buffers of one descriptor each before anything is changed."""
    cdef size_t i
    cdef uint64_t base = s.hot.base
    cdef uint64_t size = s.hot.size if (s.hot.perm & perm) == perm else 0
    cdef uint64_t off
    for i in range(n):
        off = addr[i] - base
        # length - 1 wraps for 0, which sends an empty buffer to the exact checks too.
        if off < size and <uint64_t>length[i] - 1 < size - off:
            continue
        if length[i] == 0:
            return fail(&s.fault, VR_ROW_ZERO_LENGTH, i, addr[i], 0)
        if not in_memory(&s.hot, table, addr[i], length[i], perm):
            return fail(&s.fault, VR_ROW_ADDRESS, i, addr[i], length[i])
        base = s.hot.base
        size = s.hot.size
    return VR_OK


cdef int check_chain(
    driver_side* s, const guest_table* table, const uint64_t* addr, const uint32_t* length,
    const uint16_t* flags, size_t n, size_t row
) noexcept nogil:
    """Check one buffer of n descriptors: count, lengths, addresses, readable ones first."""
    cdef size_t k
    cdef bint write
    cdef bint writable = False
    if n == 0 or n > s.num:
        return fail(&s.fault, VR_ROW_SIZE, row, n, s.num)
    for k in range(n):
        write = (flags[k] & VRING_DESC_F_WRITE) != 0
        if writable and not write:
            return fail(&s.fault, VR_ROW_ORDER, row, k, 0)
        writable = write
        if length[k] == 0:
            return fail(&s.fault, VR_ROW_ZERO_LENGTH, row, addr[k], 0)
        if not in_memory(&s.hot, table, addr[k], length[k], PERM_WRITE if write else PERM_READ):
            return fail(&s.fault, VR_ROW_ADDRESS, row, addr[k], length[k])
    return VR_OK


cdef inline void _add_rows(
    driver_ring* ring, const uint64_t* addr, const uint32_t* length, const uint64_t* token,
    size_t n, uint16_t flags, bint swap
) noexcept nogil:
    cdef driver_ring v = ring[0]
    cdef size_t i
    for i in range(n):
        if driver_ring is split_driver:
            split_put_one(&v, addr[i], length[i], flags, token[i], swap)
        else:
            packed_put_one(&v, addr[i], length[i], flags, token[i], swap)
    v.s.num_free -= <uint32_t>n
    v.s.in_flight += <uint32_t>n
    v.s.num_added += <uint32_t>n
    if driver_ring is split_driver:
        split_publish(&v, swap)
    else:
        packed_publish(&v, swap)
    ring[0] = v


cdef void driver_add_rows(
    driver_ring* ring, const uint64_t* addr, const uint32_t* length, const uint64_t* token,
    size_t n, uint16_t flags
) noexcept nogil:
    """Add n checked buffers of one descriptor each (flags: WRITE or 0) and publish them at once.

    n is not 0 and at most num_free.
    """
    if ring.s.swap:
        _add_rows(ring, addr, length, token, n, flags, True)
    else:
        _add_rows(ring, addr, length, token, n, flags, False)


cdef inline int _add_chains(
    driver_ring* ring, const batch_cols* cols, size_t start, size_t end, bint direct,
    size_t* added, bint swap
) noexcept nogil:
    cdef driver_ring v = ring[0]
    cdef size_t i = start
    cdef size_t first
    cdef uint32_t n, need
    cdef uint32_t total = 0
    cdef bint alone
    cdef int code = VR_OK
    while i < end:
        first = cols.offsets[i]
        n = cols.offsets[i + 1] - cols.offsets[i]
        # Linux virtqueue_use_indirect: worth a table from two descriptors on.
        alone = direct or v.s.force_direct or n == 1 or v.s.tables == NULL
        need = n if alone else 1
        if need > v.s.num_free:
            code = fail(&v.s.fault, VR_NO_SPACE, i, need, v.s.num_free)
            break
        if driver_ring is split_driver:
            code = split_put_chain(
                &v, cols.addr + first, cols.len + first, cols.flags + first, n, cols.token[i],
                alone, swap,
            )
        else:
            code = packed_put_chain(
                &v, cols.addr + first, cols.len + first, cols.flags + first, n, cols.token[i],
                alone, swap,
            )
        if code != VR_OK:
            break
        v.s.force_direct = False
        v.s.num_free -= need
        if driver_ring is split_driver:
            total += 1
        else:
            total += need
        i += 1
    v.s.in_flight += <uint32_t>(i - start)
    v.s.num_added += total
    if i != start:
        if driver_ring is split_driver:
            split_publish(&v, swap)
        else:
            packed_publish(&v, swap)
    ring[0] = v
    added[0] = i - start
    return code


cdef int driver_add_chains(
    driver_ring* ring, const batch_cols* cols, size_t start, size_t end, bint direct, size_t* added
) noexcept nogil:
    """Add the checked buffers of rows start to end and publish those that fitted.

    Gives VR_OK, VR_NO_SPACE (the row at start + added does not fit) or VR_NEED_TABLE (it waits for
    an indirect table, or for ``force_direct``). ``direct`` never uses a table.
    """
    if ring.s.swap:
        return _add_chains(ring, cols, start, end, direct, added, True)
    return _add_chains(ring, cols, start, end, direct, added, False)


cdef inline int _get(
    driver_ring* ring, uint64_t* token, uint32_t* written, size_t room, size_t* taken,
    bint in_order, bint swap
) noexcept nogil:
    cdef driver_ring v = ring[0]
    cdef size_t i = 0
    cdef uint64_t word = 0
    cdef int code = VR_OK
    if driver_ring is split_driver:
        if split_driver_ready(&v) < room:
            code = split_driver_look(&v, swap)
        if code == VR_OK:
            if room > split_driver_ready(&v):
                room = split_driver_ready(&v)
            while i < room:
                if in_order:
                    code = split_get_one_in_order(&v, token + i, written + i, swap)
                else:
                    code = split_get_one(&v, token + i, written + i, swap)
                if code != VR_OK:
                    break
                i += 1
    else:
        while i < room:
            if not in_order or not v.s.group:
                word = packed_used_word(&v)
                if not packed_word_used(&v, word):
                    break
            if in_order:
                code = packed_get_word_in_order(&v, word, token + i, written + i)
            else:
                code = packed_get_word(&v, word, token + i, written + i)
            if code != VR_OK:
                break
            i += 1
    v.s.in_flight -= <uint32_t>i
    if i:
        if driver_ring is split_driver:
            split_rearm(&v)
        else:
            packed_rearm(&v)
    ring[0] = v
    taken[0] = i
    return code


cdef int driver_get(
    driver_ring* ring, uint64_t* token, uint32_t* written, size_t room, size_t* taken
) noexcept nogil:
    """Take up to ``room`` used buffers. On a fault those in front of it are taken all the same."""
    if ring.s.swap:
        if ring.s.in_order:
            return _get(ring, token, written, room, taken, True, True)
        return _get(ring, token, written, room, taken, False, True)
    if ring.s.in_order:
        return _get(ring, token, written, room, taken, True, False)
    return _get(ring, token, written, room, taken, False, False)


cdef void driver_add_one(
    driver_ring* ring, uint64_t addr, uint32_t length, uint64_t token, uint16_t flags
) noexcept nogil:
    """driver_add_rows for a single buffer, in place: no copy of the structure."""
    if driver_ring is split_driver:
        split_put_one(ring, addr, length, flags, token, ring.s.swap)
    else:
        packed_put_one(ring, addr, length, flags, token, ring.s.swap)
    ring.s.num_free -= 1
    ring.s.in_flight += 1
    ring.s.num_added += 1
    if driver_ring is split_driver:
        split_publish(ring, ring.s.swap)
    else:
        packed_publish(ring, ring.s.swap)


cdef int driver_get_one(
    driver_ring* ring, uint64_t* token, uint32_t* written, bint* taken
) noexcept nogil:
    """driver_get for a single buffer, in place; its id is left in ``last_id``."""
    cdef uint64_t word = 0
    cdef int code = VR_OK
    taken[0] = False
    if driver_ring is split_driver:
        if split_driver_ready(ring) == 0:
            code = split_driver_look(ring, ring.s.swap)
            if code != VR_OK or split_driver_ready(ring) == 0:
                return code
        if ring.s.in_order:
            code = split_get_one_in_order(ring, token, written, ring.s.swap)
        else:
            code = split_get_one(ring, token, written, ring.s.swap)
    else:
        if not ring.s.group:
            word = packed_used_word(ring)
            if not packed_word_used(ring, word):
                return VR_OK
        if ring.s.in_order:
            code = packed_get_word_in_order(ring, word, token, written)
        else:
            code = packed_get_word(ring, word, token, written)
    if code != VR_OK:
        return code
    taken[0] = True
    ring.s.in_flight -= 1
    if driver_ring is split_driver:
        split_rearm(ring)
    else:
        packed_rearm(ring)
    return VR_OK
