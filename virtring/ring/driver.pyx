"""The driver side's batch loops, written once; split and packed are chosen at compile time.

Buffers of one descriptor, the common case, go through loops of their own (_put_rows, _get_singles)
that fit into the registers; everything else, foreign endianness too, takes the one-step primitives.
What is done for one buffer at a time is in driver.pxd.
"""

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

from virtring.memory.barriers cimport copy_desc, load64_any, store16, store64
from virtring.memory.table cimport PERM_READ, PERM_RW, PERM_WRITE, guest_table
from virtring.ring.common cimport (
    SINGLE, VR_NO_SPACE, VR_OK, VR_ROW_ADDRESS, VR_ROW_BYTES, VR_ROW_FLAGS, VR_ROW_ORDER,
    VR_ROW_SIZE, VR_ROW_ZERO_LENGTH, batch_cols, buf_state, driver_side, fail, in_memory, inside,
    note_in_len, note_ndesc, note_word,
)
from virtring.ring.packed_common cimport AVAIL_USED
from virtring.ring.packed_driver cimport (
    packed_publish, packed_put_chain, packed_put_one, packed_rearm,
    packed_used_word_at,
)
from virtring.ring.split_driver cimport (
    split_driver, split_driver_look, split_driver_ready, split_publish, split_put_chain,
    split_put_one, split_rearm,
)
from virtring.spec.ring cimport VRING_DESC_F_WRITE, vring_desc


cdef int check_chain(
    driver_side* s, const guest_table* table, const vring_desc* sg, size_t n, size_t row
) noexcept nogil:
    """Check one buffer of n descriptors: count, lengths, addresses, readable ones first."""
    cdef uint64_t base = s.hot.base
    cdef uint64_t size = s.hot.size if s.hot.perm == PERM_RW else 0
    cdef size_t k
    cdef bint write
    cdef bint writable = False
    cdef uint64_t total = 0
    if n == 0 or n > s.num:
        return fail(&s.fault, VR_ROW_SIZE, row, n, s.num)
    for k in range(n):
        if sg[k].flags & <uint16_t>~VRING_DESC_F_WRITE:
            # They would go into the ring as they are, and NEXT or AVAIL there is for us to set.
            return fail(&s.fault, VR_ROW_FLAGS, row, sg[k].flags, 0)
        write = (sg[k].flags & VRING_DESC_F_WRITE) != 0
        if writable and not write:
            return fail(&s.fault, VR_ROW_ORDER, row, k, 0)
        writable = write
        if not inside(sg[k].addr, sg[k].len, base, size):
            # Empty, or not in the range that served the last one: the exact check.
            if sg[k].len == 0:
                return fail(&s.fault, VR_ROW_ZERO_LENGTH, row, sg[k].addr, 0)
            if not in_memory(
                &s.hot, table, sg[k].addr, sg[k].len, PERM_WRITE if write else PERM_READ
            ):
                return fail(&s.fault, VR_ROW_ADDRESS, row, sg[k].addr, sg[k].len)
            base = s.hot.base
            size = s.hot.size if s.hot.perm == PERM_RW else 0
        total += sg[k].len
    if total > <uint64_t>1 << 32:   # virtio 1.4, 2.7.5.2 and 2.8.6
        return fail(&s.fault, VR_ROW_BYTES, row, <int64_t>total, <int64_t>1 << 32)
    return VR_OK


cdef int driver_check_rows(
    driver_side* s, const guest_table* table, const vring_desc* sg, size_t first, size_t n,
    uint16_t flags
) noexcept nogil:
    """Check buffers of one descriptor each, from row ``first`` to before row ``n``.

    One that is empty or outside the memory is told by its row.
    """
    cdef uint32_t perm = PERM_WRITE if flags & VRING_DESC_F_WRITE else PERM_READ
    cdef uint64_t base, size
    cdef size_t i = first
    while i < n:
        base = s.hot.base
        size = s.hot.size if s.hot.perm & perm else 0
        while i + 2 <= n and inside(sg[i].addr, sg[i].len, base, size):
            if not inside(sg[i + 1].addr, sg[i + 1].len, base, size):
                i += 1
                break
            i += 2
        if i == n:
            return VR_OK
        # Not inside the range that served the last one: the exact check.
        if sg[i].len == 0:
            return fail(&s.fault, VR_ROW_ZERO_LENGTH, i, sg[i].addr, 0)
        if not in_memory(&s.hot, table, sg[i].addr, sg[i].len, perm):
            return fail(&s.fault, VR_ROW_ADDRESS, i, sg[i].addr, sg[i].len)
        i += 1
    return VR_OK


cdef inline size_t _put_row(
    driver_ring* ring, char* place, char* desc, uint64_t bits, buf_state* state,
    const uint16_t* link, size_t id, const vring_desc* sg, uint64_t token, uint16_t flags
) noexcept nogil:
    """One step of _put_rows, with id ``id``; the id for the next."""
    if driver_ring is split_driver:
        copy_desc(desc + 16 * id, sg, 0xFFFFFFFF, <uint64_t>flags << 32)
        store16(place, <uint16_t>id)
    else:
        store64(place, sg.addr)
        store64(place + 8, sg.len | (<uint64_t>id << 32) | bits)
    state[id].token = token
    state[id].note = note_word(sg.len if flags & VRING_DESC_F_WRITE else 0, 1, 0)
    return link[id]


cdef inline size_t _put_rows(
    driver_ring* ring, const vring_desc* sg, const uint64_t* token, size_t n, uint16_t flags
) noexcept nogil:
    """Put checked buffers of one descriptor until the ring ends; ``flags`` is a constant.

    Nothing is published; num_free and the other counts are the caller's.
    """
    cdef buf_state* state = ring.s.state
    cdef const uint16_t* link = ring.s.next
    cdef char* desc = ring.desc
    cdef uint32_t num = ring.s.num
    cdef size_t id = ring.s.free_head
    cdef uint32_t pos
    cdef uint64_t bits = 0
    cdef const vring_desc* end
    cdef char* place
    cdef size_t step
    if ring.s.swap:
        return 0
    if driver_ring is split_driver:
        pos = ring.avail_idx & ring.mask
        place = ring.avail_ring + 2 * <size_t>pos
        step = 2
    else:
        pos = ring.next_avail_idx
        place = desc + 16 * <size_t>pos
        bits = <uint64_t>(flags | ring.avail_used_flags) << 48
        step = 16
    n = min(n, num - pos)
    # Two at a turn: a quarter of a step's instructions are the loop's own.
    end = sg + (n & ~<size_t>1)
    while sg != end:
        id = _put_row(ring, place, desc, bits, state, link, id, sg, token[0], flags)
        id = _put_row(ring, place + step, desc, bits, state, link, id, sg + 1, token[1], flags)
        place += 2 * step
        token += 2
        sg += 2
    if n & 1:
        id = _put_row(ring, place, desc, bits, state, link, id, sg, token[0], flags)
    ring.s.free_head = <uint16_t>id
    if driver_ring is split_driver:
        ring.avail_idx += <uint16_t>n
    elif pos + n == num:
        ring.next_avail_idx = 0
        ring.avail_used_flags ^= AVAIL_USED
    else:
        ring.next_avail_idx = <uint16_t>(pos + n)
    return n


cdef size_t _put_readable(
    driver_ring* ring, const vring_desc* sg, const uint64_t* token, size_t n
) noexcept nogil:
    return _put_rows(ring, sg, token, n, 0)


cdef size_t _put_writable(
    driver_ring* ring, const vring_desc* sg, const uint64_t* token, size_t n
) noexcept nogil:
    return _put_rows(ring, sg, token, n, VRING_DESC_F_WRITE)


cdef int driver_add_rows(
    driver_ring* ring, const guest_table* table, const vring_desc* sg, const uint64_t* token,
    size_t n, uint16_t flags
) noexcept nogil:
    """Add n buffers of one descriptor each (flags: WRITE or 0) and publish them at once.

    n is at most num_free. All are checked first: driver_check_rows says what is wrong with one, and
    nothing was changed then.
    """
    cdef size_t i = 0
    cdef int code = driver_check_rows(&ring.s, table, sg, 0, n, flags)
    if code != VR_OK or n == 0:
        return code
    while i < n:
        # In a packed ring the batch's first descriptor takes this way: it has to stay unseen.
        if driver_ring is split_driver:
            split_put_one(ring, sg[i].addr, sg[i].len, flags, token[i], ring.s.swap)
        else:
            packed_put_one(ring, sg[i].addr, sg[i].len, flags, token[i], ring.s.swap)
        i += 1
        if flags & VRING_DESC_F_WRITE:
            i += _put_writable(ring, sg + i, token + i, n - i)
        else:
            i += _put_readable(ring, sg + i, token + i, n - i)
    ring.s.num_free -= <uint32_t>n
    ring.s.in_flight += <uint32_t>n
    ring.s.num_added += <uint32_t>n
    if driver_ring is split_driver:
        split_publish(ring, ring.s.swap)
    else:
        packed_publish(ring, ring.s.swap)
    return VR_OK


cdef int driver_add_chains(
    driver_ring* ring, const batch_cols* cols, size_t start, size_t end, bint direct, size_t* added
) noexcept nogil:
    """Add the checked buffers of rows start to end and publish those that fitted.

    Gives VR_OK, VR_NO_SPACE (the row at start + added does not fit) or VR_NEED_TABLE (it waits for
    an indirect table, or for ``force_direct``). ``direct`` never uses a table.
    """
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
                &v, cols.desc + first, n, cols.token[i], alone, v.s.swap,
            )
        else:
            code = packed_put_chain(
                &v, cols.desc + first, n, cols.token[i], alone, v.s.swap,
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
            split_publish(&v, v.s.swap)
        else:
            packed_publish(&v, v.s.swap)
    ring[0] = v
    added[0] = i - start
    return code


cdef inline bint _take_single(
    driver_ring* ring, const char* entry, uint32_t used_flags, uint32_t num, buf_state* state,
    uint16_t* link, uint16_t* free_head, uint64_t* token, uint32_t* written
) noexcept nogil:
    """One step of _take_singles; False: nothing used, another kind of buffer, or a fault."""
    cdef uint64_t word, note
    cdef size_t id
    cdef uint32_t length
    if driver_ring is split_driver:
        word = load64_any(entry)
        id = <uint32_t>word
        length = <uint32_t>(word >> 32)
    else:
        word = packed_used_word_at(entry, True)
        if (<uint32_t>(word >> 48) & AVAIL_USED) != used_flags:
            return False
        id = <uint16_t>(word >> 32)
        length = <uint32_t>word
    if id >= num:
        return False
    note = state[id].note
    if <uint32_t>note != SINGLE or length > note_in_len(note):
        return False
    link[id] = free_head[0]
    free_head[0] = <uint16_t>id
    token[0] = state[id].token
    written[0] = length
    state[id].note = 0
    return True


cdef size_t _take_singles(
    driver_ring* ring, uint64_t* token, uint32_t* written, size_t room
) noexcept nogil:
    """The loop of _get_singles, alone, so that it has every register. How many it took."""
    cdef buf_state* state = ring.s.state
    cdef uint16_t* link = ring.s.next
    cdef uint32_t num = ring.s.num
    cdef uint16_t free_head = ring.s.free_head
    cdef uint64_t* out = token
    cdef uint64_t* end = token + (room & ~<size_t>1)
    cdef const char* entry
    cdef uint32_t used_flags = 0
    cdef size_t step
    if driver_ring is split_driver:
        entry = ring.used_ring + 8 * <size_t>(ring.last_used_idx & ring.mask)
        step = 8
    else:
        entry = ring.desc + 16 * <size_t>ring.last_used_idx
        used_flags = ring.used_flags
        step = 16
    # Two at a turn: a quarter of a step's instructions are the loop's own.
    while out != end:
        if not _take_single(
            ring, entry, used_flags, num, state, link, &free_head, out, written
        ):
            break
        if not _take_single(
            ring, entry + step, used_flags, num, state, link, &free_head, out + 1, written + 1
        ):
            out += 1
            break
        entry += 2 * step
        written += 2
        out += 2
    else:
        if room & 1 and _take_single(
            ring, entry, used_flags, num, state, link, &free_head, out, written
        ):
            out += 1
    ring.s.free_head = free_head
    return out - token


cdef size_t _get_singles(
    driver_ring* ring, uint64_t* token, uint32_t* written, size_t room
) noexcept nogil:
    """Take used buffers of one descriptor until something else comes, or something wrong, or the
    end of the ring.

    Positions run on by themselves, so that no step waits for the one before.
    """
    cdef uint32_t pos
    if driver_ring is split_driver:
        pos = ring.last_used_idx & ring.mask
        room = min(room, split_driver_ready(ring))
    else:
        if not ring.s.weak_barriers:
            # A barrier for each descriptor costs more than the loop saves.
            return 0
        pos = ring.last_used_idx
    room = _take_singles(ring, token, written, min(room, ring.s.num - pos))
    _took_singles(ring, room)
    return room


cdef size_t _get_group(
    driver_ring* ring, uint64_t* token, uint32_t* written, size_t room
) noexcept nogil:
    """IN_ORDER, inside a group: take buffers of one descriptor up to the group's last one.

    The device wrote nothing for these: they count as completely used.
    """
    cdef buf_state* state = ring.s.state
    cdef uint32_t num = ring.s.num
    cdef uint32_t head = ring.s.order_head
    cdef uint32_t last = ring.s.group_id
    cdef uint64_t note
    cdef size_t k = 0
    if driver_ring is split_driver:
        # The last one is left to split_get_one_in_order, which sees a group cut short.
        room = min(room, max(split_driver_ready(ring), 1) - 1)
    else:
        room = min(room, num - ring.last_used_idx)
    while k < room:
        note = state[head].note
        if head == last or note_ndesc(note) != 1:
            break
        token[k] = state[head].token
        written[k] = note_in_len(note)
        state[head].note = 0
        head += 1
        if head == num:
            head = 0
        k += 1
    ring.s.order_head = <uint16_t>head
    _took_singles(ring, k)
    return k


cdef inline void _took_singles(driver_ring* ring, size_t k) noexcept nogil:
    """k buffers of one descriptor were taken, in a packed ring at most up to its end."""
    ring.s.num_free += <uint32_t>k
    if driver_ring is split_driver:
        ring.last_used_idx += <uint16_t>k
    elif ring.last_used_idx + k == ring.s.num:
        ring.last_used_idx = 0
        ring.used_flags ^= AVAIL_USED
    else:
        ring.last_used_idx = <uint16_t>(ring.last_used_idx + k)


cdef int driver_get(
    driver_ring* ring, uint64_t* token, uint32_t* written, size_t room, size_t* taken
) noexcept nogil:
    """Take up to ``room`` used buffers. On a fault those in front of it are taken all the same."""
    cdef size_t i = 0
    cdef bint one = True
    cdef int code = VR_OK
    taken[0] = 0
    if driver_ring is split_driver:
        if split_driver_ready(ring) < room:
            code = split_driver_look(ring, ring.s.swap)
    while i < room and code == VR_OK:
        if ring.s.group:
            i += _get_group(ring, token + i, written + i, room - i)
        elif not ring.s.in_order and not ring.s.swap:
            i += _get_singles(ring, token + i, written + i, room - i)
        if i == room:
            break
        code = driver_get_next(ring, token + i, written + i, &one)
        if not one:
            break
        i += 1
    ring.s.in_flight -= <uint32_t>i
    if i:
        if driver_ring is split_driver:
            split_rearm(ring)
        else:
            packed_rearm(ring)
    taken[0] = i
    return code
