"""The device side's batch loops, written once; split and packed are chosen at compile time.

As in driver.pyx each loop works on a local copy of the side's structure. Chains of more than one
descriptor take the long way round through _pop_chain, so that the common case stays in registers.
"""

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

from virtring.memory.barriers cimport load64, store16, swap16, swap32, swap64
from virtring.memory.table cimport PERM_READ, PERM_WRITE, guest_table
from virtring.ring.chain cimport chain_walk
from virtring.ring.common cimport (
    VR_HEAD_BUSY, VR_HEAD_RANGE, VR_NOT_HELD, VR_OK, VR_ROW_WRITTEN, batch_cols, fail, held_chain,
)
from virtring.ring.packed_device cimport (
    packed_device, packed_device_publish, packed_hold, packed_look, packed_pop_chain,
    packed_put_used, packed_put_used_group, packed_skip_used, packed_word_available,
)
from virtring.ring.split_device cimport (
    split_device, split_device_publish, split_device_ready, split_hold, split_look,
    split_next_head, split_pop_chain, split_put_used, split_put_used_group, split_skip_used,
)
from virtring.spec.ring cimport (
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, VRING_PACKED_DESC_F_USED,
)

# What a held_chain says of itself.
cdef enum:
    FREE = 0
    HELD = 1
    DONE = 2                # IN_ORDER: completed, waits for its turn

cdef enum:
    PACKED_IDS = 65536


cdef int _pop_chain(
    device_ring* ring, const guest_table* table, batch_cols* cols, chain_walk* w, uint32_t* id,
    uint64_t addr, uint64_t word, bint swap
) noexcept nogil:
    w.n = 0
    w.in_len = 0
    w.pos = ring.last_avail_idx
    if device_ring is split_device:
        return split_pop_chain(ring, table, cols, w, id[0], addr, word, swap)
    else:
        return packed_pop_chain(ring, table, cols, w, id, addr, word)


cdef inline int _pop(
    device_ring* ring, const guest_table* table, batch_cols* cols, size_t room, size_t* popped,
    bint swap
) noexcept nogil:
    cdef device_ring v = ring[0]
    cdef batch_cols c = cols[0]
    cdef chain_walk w
    cdef size_t i = 0
    cdef size_t k
    cdef size_t d = 0
    cdef uint32_t id = 0
    cdef uint64_t raw_addr, word, addr, off
    cdef uint32_t length, ready, perm
    cdef uint16_t flags
    cdef int code = VR_OK
    if device_ring is split_device:
        ready = split_device_ready(&v)
        if ready < room:
            code = split_look(&v, swap)
            ready = split_device_ready(&v)
            if room > ready:
                room = ready
        if code != VR_OK:
            room = 0
    c.offsets[0] = 0
    while i < room:
        if device_ring is split_device:
            id = split_next_head(&v, swap)
            if id >= v.s.num:
                code = fail(&v.s.fault, VR_HEAD_RANGE, v.last_avail_idx, id, v.s.num)
                break
            if v.s.held[id].held != FREE:
                code = fail(&v.s.fault, VR_HEAD_BUSY, v.last_avail_idx, id, v.s.num)
                break
            raw_addr = load64(v.desc + 16 * <size_t>id)
            word = load64(v.desc + 16 * <size_t>id + 8)
            flags = <uint16_t>(word >> 32)
            if swap:
                flags = swap16(flags)
        else:
            word = packed_look(&v)
            if not packed_word_available(&v, word):
                break
            raw_addr = load64(v.desc + 16 * <size_t>v.last_avail_idx)
            flags = <uint16_t>(word >> 48)
        addr = raw_addr
        length = <uint32_t>word
        if swap:
            addr = swap64(addr)
            length = swap32(length)
        perm = PERM_WRITE if flags & VRING_DESC_F_WRITE else PERM_READ
        off = addr - v.s.hot.base
        # length - 1 wraps for 0 and so never passes.
        if (
            not flags & (VRING_DESC_F_NEXT | VRING_DESC_F_INDIRECT)
            and off < v.s.hot.size and <uint64_t>length - 1 < v.s.hot.size - off
            and v.s.hot.perm & perm and d < c.max_desc
        ):
            if device_ring is split_device:
                split_hold(&v, id, 1, length if flags & VRING_DESC_F_WRITE else 0)
            else:
                id = <uint16_t>(word >> 32)
                code = packed_hold(
                    &v, v.last_avail_idx, id, 1, length if flags & VRING_DESC_F_WRITE else 0
                )
                if code != VR_OK:
                    break
            c.addr[d] = addr
            c.len[d] = length
            c.flags[d] = flags & VRING_DESC_F_WRITE
            d += 1
        else:
            w.first = d
            ring[0] = v
            code = _pop_chain(ring, table, cols, &w, &id, raw_addr, word, swap)
            v = ring[0]
            if code != VR_OK:
                break
            d += w.n
        c.id[i] = id
        i += 1
        c.offsets[i] = <uint32_t>d
    v.s.in_flight += <uint32_t>i
    if v.s.in_order:
        for k in range(i):
            v.s.order[(v.s.order_get + v.s.order_len) % v.s.num] = <uint16_t>c.id[k]
            v.s.order_len += 1
    ring[0] = v
    popped[0] = i
    return code


cdef int device_pop(
    device_ring* ring, const guest_table* table, batch_cols* cols, size_t room, size_t* popped
) noexcept nogil:
    """Pop up to ``room`` available chains into the columns from row 0 on.

    Stops in front of a chain with a fault, which stays where it is; those before it are popped.
    """
    if ring.s.swap:
        return _pop(ring, table, cols, room, popped, True)
    return _pop(ring, table, cols, room, popped, False)


cdef inline int _check_row(
    device_ring* ring, const uint32_t* id, const uint32_t* written, size_t row
) noexcept nogil:
    """Why a row cannot be pushed: the device's own mistake, not the driver's."""
    cdef uint32_t ids = ring.s.num
    if device_ring is packed_device:
        ids = PACKED_IDS
    if id[row] >= ids or ring.s.held[id[row]].held != HELD:
        return fail(&ring.s.fault, VR_NOT_HELD, row, id[row], ids)
    return fail(&ring.s.fault, VR_ROW_WRITTEN, row, written[row], ring.s.held[id[row]].in_len)


cdef void _undo_push(device_ring* ring, const uint32_t* id, size_t n) noexcept nogil:
    """Take back n rows that were written but not published; ring is as it was before them."""
    cdef size_t k
    cdef uint32_t idx, used_flags
    for k in range(n):
        ring.s.held[id[k]].held = HELD
    if device_ring is packed_device:
        # Used flags behind the unpublished first descriptor would come to light with the next
        # push: make them "not used yet" again. The slots are ours until we use them.
        idx = ring.used_idx
        used_flags = ring.used_flags
        for k in range(n):
            store16(
                ring.desc + 16 * <size_t>idx + 14, <uint16_t>(used_flags ^ VRING_PACKED_DESC_F_USED)
            )
            idx += ring.s.held[id[k]].ndesc
            if idx >= ring.s.num:
                idx -= ring.s.num
                used_flags ^= 0x8080


cdef inline int _push(
    device_ring* ring, const uint32_t* id, const uint32_t* written, size_t n, bint swap
) noexcept nogil:
    cdef device_ring v = ring[0]
    cdef size_t i
    cdef uint32_t ids = v.s.num
    cdef uint32_t descs = 0
    cdef held_chain h
    if device_ring is packed_device:
        ids = PACKED_IDS
    for i in range(n):
        if id[i] >= ids:
            break
        h = v.s.held[id[i]]
        if h.held != HELD or written[i] > h.in_len:
            break
        if device_ring is split_device:
            split_put_used(&v, id[i], written[i], h.ndesc, swap)
        else:
            packed_put_used(&v, id[i], written[i], h.ndesc, swap)
            descs += h.ndesc
        v.s.held[id[i]].held = FREE
    else:
        i = n
    if i != n:
        _undo_push(ring, id, i)
        return _check_row(ring, id, written, i)
    v.s.in_flight -= <uint32_t>n
    if device_ring is split_device:
        v.s.num_added += <uint32_t>n
        split_device_publish(&v, swap)
    else:
        v.s.num_added += descs
        v.s.descs_held -= descs
        packed_device_publish(&v, swap)
    ring[0] = v
    return VR_OK


cdef inline int _push_in_order(
    device_ring* ring, const uint32_t* id, const uint32_t* written, size_t n, size_t* published,
    bint swap
) noexcept nogil:
    """Complete in any order, publish in the order of the ring (virtio 1.4, 2.7.9 and 2.8.9).

    Buffers that were written completely (or had nothing to write) need no entry of their own: they
    are covered by the next buffer's entry, which stands at the place of the first of them.
    """
    cdef device_ring v
    cdef size_t i, k
    cdef uint32_t ids = ring.s.num
    cdef uint32_t head, length
    cdef uint32_t descs = 0
    cdef held_chain h
    if device_ring is packed_device:
        ids = PACKED_IDS
    for i in range(n):
        if id[i] >= ids:
            break
        h = ring.s.held[id[i]]
        if h.held != HELD or written[i] > h.in_len:
            break
        ring.s.held[id[i]].held = DONE
        ring.s.late[id[i]] = written[i]
    else:
        i = n
    if i != n:
        for k in range(i):
            ring.s.held[id[k]].held = HELD
        return _check_row(ring, id, written, i)
    v = ring[0]
    k = 0
    while v.s.order_len:
        head = v.s.order[v.s.order_get]
        h = v.s.held[head]
        if h.held != DONE:
            break
        length = v.s.late[head]
        v.s.held[head].held = FREE
        v.s.order_get = v.s.order_get + 1 if v.s.order_get + 1 < v.s.num else 0
        v.s.order_len -= 1
        k += 1
        descs += h.ndesc
        if (
            length == h.in_len and v.s.order_len
            and v.s.held[v.s.order[v.s.order_get]].held == DONE
        ):
            if device_ring is split_device:
                split_skip_used(&v, h.ndesc)
            else:
                packed_skip_used(&v, h.ndesc)
        elif device_ring is split_device:
            split_put_used_group(&v, head, length, h.ndesc, swap)
        else:
            packed_put_used_group(&v, head, length, h.ndesc, swap)
    v.s.in_flight -= <uint32_t>k
    if device_ring is split_device:
        v.s.num_added += <uint32_t>k
        if k:
            split_device_publish(&v, swap)
    else:
        v.s.num_added += descs
        v.s.descs_held -= descs
        packed_device_publish(&v, swap)
    ring[0] = v
    published[0] = k
    return VR_OK


cdef int device_push(
    device_ring* ring, const uint32_t* id, const uint32_t* written, size_t n, size_t* published
) noexcept nogil:
    """Complete n chains and publish them at once; with IN_ORDER those whose turn has come.

    A row that cannot be pushed is the caller's mistake; then nothing is changed. n is not 0.
    """
    if ring.s.in_order:
        if ring.s.swap:
            return _push_in_order(ring, id, written, n, published, True)
        return _push_in_order(ring, id, written, n, published, False)
    published[0] = n
    if ring.s.swap:
        return _push(ring, id, written, n, True)
    return _push(ring, id, written, n, False)
