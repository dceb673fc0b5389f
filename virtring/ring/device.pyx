"""The device side's batch loops, written once; split and packed are chosen at compile time.

Chains of one descriptor, the common case, are popped by a loop of their own that fits into the
registers; everything else, and everything that is wrong, goes through _pop_chain one at a time.
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from virtring.memory.barriers cimport load64, store16
from virtring.memory.table cimport PERM_RW, guest_table
from virtring.ring.chain cimport chain_walk
from virtring.ring.common cimport (
    DONE, FREE, HELD, VR_HEAD_BUSY, VR_HEAD_RANGE, VR_NOT_HELD, VR_OK,
    VR_ROW_WRITTEN, batch_cols, fail, note_extra, note_in_len, note_ndesc, note_word,
)
from virtring.ring.packed_common cimport AVAIL_USED
from virtring.ring.packed_device cimport (
    packed_device, packed_device_publish, packed_device_rearm, packed_look,
    packed_pop_chain, packed_put_used, packed_put_used_group, packed_skip_used,
    packed_word_available,
)
from virtring.ring.split_device cimport (
    split_device, split_device_publish, split_device_ready, split_device_rearm, split_look,
    split_next_head, split_pop_chain, split_put_used, split_put_used_group,
    split_skip_used,
)
from virtring.spec.ring cimport VRING_DESC_F_WRITE, VRING_PACKED_DESC_F_USED, vring_desc

cdef enum:
    PACKED_IDS = 65536
    NOTHING = -1            # _pop_chain: no chain is available


cdef int _pop_chain(
    device_ring* ring, const guest_table* table, batch_cols* cols, chain_walk* w, uint32_t* id
) noexcept nogil:
    """Pop the next chain, whatever it is, into the columns from row w.first on."""
    cdef uint64_t addr, word
    w.n = 0
    w.in_len = 0
    w.pos = ring.last_avail_idx
    if device_ring is split_device:
        if split_device_ready(ring) == 0:
            return NOTHING
        id[0] = split_next_head(ring, ring.s.swap)
        if id[0] >= ring.s.num:
            return fail(&ring.s.fault, VR_HEAD_RANGE, w.pos, id[0], ring.s.num)
        if note_extra(ring.s.held[id[0]]) != FREE:
            return fail(&ring.s.fault, VR_HEAD_BUSY, w.pos, id[0], ring.s.num)
        addr = load64(ring.desc + 16 * <size_t>id[0])
        word = load64(ring.desc + 16 * <size_t>id[0] + 8)
        return split_pop_chain(ring, table, cols, w, id[0], addr, word, ring.s.swap)
    else:
        word = packed_look(ring)
        if not packed_word_available(ring, word):
            return NOTHING
        addr = load64(ring.desc + 16 * <size_t>ring.last_avail_idx)
        return packed_pop_chain(ring, table, cols, w, id, addr, word)


cdef size_t _fetch_singles(
    device_ring* ring, vring_desc* out, uint32_t* out_id, size_t room
) noexcept nogil:
    """The loop of _pop_singles, alone, so that it has every register. How many rows it wrote."""
    cdef uint64_t* held = ring.s.held
    cdef uint64_t base = ring.s.hot.base
    cdef uint64_t size = ring.s.hot.size
    cdef const char* desc = ring.desc
    cdef const char* place
    cdef uint32_t num = ring.s.num
    cdef uint32_t avail_flags = 0
    cdef size_t step
    cdef vring_desc* row = out
    # Two at a turn: a quarter of a step's instructions are the loop's own.
    cdef vring_desc* end = out + (room & ~<size_t>1)
    if device_ring is split_device:
        place = ring.avail_ring + 2 * <size_t>(ring.last_avail_idx & ring.mask)
        step = 2
    else:
        place = desc + 16 * <size_t>ring.last_avail_idx
        avail_flags = ring.avail_flags
        step = 16
    while row != end:
        if not fetch_single(
            ring, place, desc, avail_flags, num, held, base, size, row, out_id
        ):
            return row - out
        if not fetch_single(
            ring, place + step, desc, avail_flags, num, held, base, size, row + 1, out_id + 1
        ):
            return row + 1 - out
        place += 2 * step
        out_id += 2
        row += 2
    if room & 1 and fetch_single(
        ring, place, desc, avail_flags, num, held, base, size, row, out_id
    ):
        row += 1
    return row - out


cdef size_t _pop_singles(
    device_ring* ring, batch_cols* cols, size_t row, size_t first, size_t room
) noexcept nogil:
    """Pop chains of one descriptor until something else comes or the ring ends; rows from ``row``,
    descriptors from ``first``. How many there were."""
    cdef uint32_t num = ring.s.num
    cdef uint32_t pos
    cdef size_t k
    if ring.s.hot.perm != PERM_RW or ring.s.swap:
        return 0
    room = min(room, cols.max_desc - first)
    if device_ring is split_device:
        pos = ring.last_avail_idx & ring.mask
        room = min(room, split_device_ready(ring))
    else:
        if not ring.s.weak_barriers:
            # A barrier for each descriptor costs more than the loop saves.
            return 0
        pos = ring.last_avail_idx
        # No more than can be in flight.
        room = min(room, num - ring.s.descs_held)
    k = _fetch_singles(ring, cols.desc + first, cols.id + row, min(room, num - pos))
    _count_up(cols.offsets + row + 1, <uint32_t>first + 1, k)
    if device_ring is split_device:
        ring.last_avail_idx += <uint16_t>k
    else:
        ring.s.descs_held += <uint32_t>k
        if pos + k == num:
            ring.last_avail_idx = 0
            ring.avail_flags ^= AVAIL_USED
        else:
            ring.last_avail_idx = <uint16_t>(pos + k)
    return k


cdef void _count_up(uint32_t* out, uint32_t start, size_t n) noexcept nogil:
    cdef uint32_t k
    for k in range(<uint32_t>n):
        out[k] = start + k


cdef int device_pop(
    device_ring* ring, const guest_table* table, batch_cols* cols, size_t room, size_t* popped
) noexcept nogil:
    """Pop up to ``room`` available chains into the columns from row 0 on.

    Stops in front of a chain with a fault, which stays where it is; those before it are popped.
    """
    cdef chain_walk w
    cdef size_t i = 0
    cdef size_t k
    cdef size_t d = 0
    cdef uint32_t id = 0
    cdef uint32_t put
    cdef bint single = True
    cdef int code = VR_OK
    popped[0] = 0
    if device_ring is split_device:
        if split_device_ready(ring) < room:
            code = split_look(ring, ring.s.swap)
            if code != VR_OK:
                return code
    cols.offsets[0] = 0
    while i < room:
        if single:
            k = _pop_singles(ring, cols, i, d, room - i)
            i += k
            d += k
            if i == room:
                break
        w.first = d
        code = _pop_chain(ring, table, cols, &w, &id)
        if code != VR_OK:
            break
        single = w.n == 1
        d += w.n
        cols.id[i] = id
        i += 1
        cols.offsets[i] = <uint32_t>d
    ring.s.in_flight += <uint32_t>i
    if ring.s.in_order:
        put = ring.s.order_get + ring.s.order_len
        for k in range(i):
            if put >= ring.s.num:
                put -= ring.s.num
            ring.s.order[put] = <uint16_t>cols.id[k]
            put += 1
        ring.s.order_len += <uint32_t>i
    if i:
        if device_ring is split_device:
            split_device_rearm(ring)
        else:
            packed_device_rearm(ring)
    popped[0] = i
    return VR_OK if code == NOTHING else code


cdef inline void _mark(uint64_t* note, uint32_t where) noexcept nogil:
    note[0] = note_word(note_in_len(note[0]), note_ndesc(note[0]), where)


cdef inline int _check_row(
    device_ring* ring, const uint32_t* id, const uint32_t* written, size_t row
) noexcept nogil:
    """Why a row cannot be pushed: the device's own mistake, not the driver's."""
    cdef uint32_t ids = ring.s.num
    if device_ring is packed_device:
        ids = PACKED_IDS
    if id[row] >= ids or note_extra(ring.s.held[id[row]]) != HELD:
        return fail(&ring.s.fault, VR_NOT_HELD, row, id[row], ids)
    return fail(&ring.s.fault, VR_ROW_WRITTEN, row, written[row], note_in_len(ring.s.held[id[row]]))


cdef void _undo_push(device_ring* ring, const uint32_t* id, size_t n) noexcept nogil:
    """Take back n rows that were written but not published; ring is as it was before them."""
    cdef size_t k
    cdef uint32_t idx, used_flags
    for k in range(n):
        _mark(&ring.s.held[id[k]], HELD)
    if device_ring is packed_device:
        # Used flags behind the unpublished first descriptor would come to light with the next
        # push: make them "not used yet" again. The slots are ours until we use them.
        idx = ring.used_idx
        used_flags = ring.used_flags
        for k in range(n):
            store16(
                ring.desc + 16 * <size_t>idx + 14, <uint16_t>(used_flags ^ VRING_PACKED_DESC_F_USED)
            )
            idx += note_ndesc(ring.s.held[id[k]])
            if idx >= ring.s.num:
                idx -= ring.s.num
                used_flags ^= 0x8080


cdef size_t _write_singles(
    device_ring* ring, const uint32_t* ids, const uint32_t* written, size_t n
) noexcept nogil:
    """The loop of _push_singles, alone, so that it has every register. How many rows it took."""
    cdef uint64_t* held = ring.s.held
    cdef const uint32_t* id = ids
    cdef const uint32_t* end = ids + (n & ~<size_t>1)
    cdef uint32_t limit
    cdef uint64_t unused = 0
    cdef uint64_t used = 0
    cdef char* entry
    cdef size_t step
    if device_ring is split_device:
        limit = ring.s.num
        entry = ring.used_ring + 8 * <size_t>(ring.used_idx & ring.mask)
        step = 8
    else:
        limit = PACKED_IDS
        entry = ring.desc + 16 * <size_t>ring.used_idx + 8
        unused = <uint64_t>ring.used_flags << 48
        used = unused | <uint64_t>VRING_DESC_F_WRITE << 48
        step = 16
    while id != end:
        if not write_single(ring, entry, limit, unused, used, held, id[0], written[0]):
            return id - ids
        if not write_single(ring, entry + step, limit, unused, used, held, id[1], written[1]):
            return id + 1 - ids
        entry += 2 * step
        written += 2
        id += 2
    if n & 1 and write_single(ring, entry, limit, unused, used, held, id[0], written[0]):
        id += 1
    return id - ids


cdef size_t _push_singles(
    device_ring* ring, const uint32_t* ids, const uint32_t* written, size_t n
) noexcept nogil:
    """Write used entries for chains of one ring descriptor until something else comes or the ring
    ends.

    A loop of its own: positions run on by themselves, so no step waits for the one before.
    """
    cdef uint32_t num = ring.s.num
    cdef uint32_t pos
    cdef size_t k
    if device_ring is split_device:
        pos = ring.used_idx & ring.mask
    else:
        if ring.first == NULL:
            # The batch's first one is left to packed_put_used, which holds it back.
            return 0
        pos = ring.used_idx
    k = _write_singles(ring, ids, written, min(n, num - pos))
    if device_ring is split_device:
        ring.used_idx += <uint16_t>k
    elif pos + k == num:
        ring.used_idx = 0
        ring.used_flags ^= AVAIL_USED
    else:
        ring.used_idx = <uint16_t>(pos + k)
    return k


cdef int _push(
    device_ring* ring, const uint32_t* id, const uint32_t* written, size_t n
) noexcept nogil:
    cdef device_ring old = ring[0]
    cdef size_t i = 0
    cdef uint32_t ids = ring.s.num
    cdef uint32_t descs = 0
    cdef uint64_t note
    cdef size_t run
    cdef int code
    if device_ring is packed_device:
        ids = PACKED_IDS
    while i < n:
        if id[i] >= ids:
            break
        note = ring.s.held[id[i]]
        if note_extra(note) != HELD or written[i] > note_in_len(note):
            break
        if device_ring is split_device:
            split_put_used(ring, id[i], written[i], note_ndesc(note), ring.s.swap)
        else:
            packed_put_used(ring, id[i], written[i], note_ndesc(note), ring.s.swap)
        descs += note_ndesc(note)
        _mark(&ring.s.held[id[i]], FREE)
        i += 1
        if note_ndesc(note) == 1 and i < n and not ring.s.swap:
            run = _push_singles(ring, id + i, written + i, n - i)
            i += run
            descs += <uint32_t>run
    if i != n:
        # Before the undo: a row may be wrong only because an earlier one has the same id.
        code = _check_row(ring, id, written, i)
        old.s.fault = ring.s.fault
        ring[0] = old
        _undo_push(ring, id, i)
        return code
    ring.s.in_flight -= <uint32_t>n
    if device_ring is split_device:
        ring.s.num_added += <uint32_t>n
        split_device_publish(ring, ring.s.swap)
    else:
        ring.s.num_added += descs
        ring.s.descs_held -= descs
        packed_device_publish(ring, ring.s.swap)
    return VR_OK


cdef int _push_in_order(
    device_ring* ring, const uint32_t* id, const uint32_t* written, size_t n, size_t* published
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
    cdef uint64_t h
    cdef int code
    if device_ring is packed_device:
        ids = PACKED_IDS
    for i in range(n):
        if id[i] >= ids:
            break
        h = ring.s.held[id[i]]
        if note_extra(h) != HELD or written[i] > note_in_len(h):
            break
        _mark(&ring.s.held[id[i]], DONE)
        ring.s.late[id[i]] = written[i]
    else:
        i = n
    if i != n:
        code = _check_row(ring, id, written, i)
        for k in range(i):
            _mark(&ring.s.held[id[k]], HELD)
        return code
    v = ring[0]
    k = 0
    while v.s.order_len:
        head = v.s.order[v.s.order_get]
        h = v.s.held[head]
        if note_extra(h) != DONE:
            break
        length = v.s.late[head]
        _mark(&v.s.held[head], FREE)
        v.s.order_get = v.s.order_get + 1 if v.s.order_get + 1 < v.s.num else 0
        v.s.order_len -= 1
        k += 1
        descs += note_ndesc(h)
        if (
            length == note_in_len(h) and v.s.order_len
            and note_extra(v.s.held[v.s.order[v.s.order_get]]) == DONE
        ):
            if device_ring is split_device:
                split_skip_used(&v, note_ndesc(h))
            else:
                packed_skip_used(&v, note_ndesc(h))
        elif device_ring is split_device:
            split_put_used_group(&v, head, length, note_ndesc(h), v.s.swap)
        else:
            packed_put_used_group(&v, head, length, note_ndesc(h), v.s.swap)
    v.s.in_flight -= <uint32_t>k
    if device_ring is split_device:
        v.s.num_added += <uint32_t>k
        if k:
            split_device_publish(&v, v.s.swap)
    else:
        v.s.num_added += descs
        v.s.descs_held -= descs
        packed_device_publish(&v, v.s.swap)
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
        return _push_in_order(ring, id, written, n, published)
    published[0] = n
    return _push(ring, id, written, n)
