"""One-step primitives of the packed ring's device side (virtio 1.4, 2.8).

The same steps as split_device.pxd by the same names. The ring is written by both sides: what the
driver put there is fetched once and checked.
"""

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

from virtring.memory.barriers cimport (
    load32, load64, load_acquire64, store16, store64, store_release64, virtio_mb, virtio_wmb,
)
from virtring.memory.table cimport guest_table
from virtring.ring.chain cimport admit_desc, chain_walk, plain_room, walk_indirect
from virtring.ring.common cimport (
    FREE, HELD, VR_CHAIN_CUT, VR_CHAIN_TOO_LONG, VR_HEAD_BUSY, VR_OK, VR_TOO_MANY_IN_FLIGHT,
    batch_cols, clamp32, device_side, fail, inside, note_extra, note_word, packed_need_event,
    put_row,
)
from virtring.ring.packed_common cimport AVAIL_USED, packed_word
from virtring.spec.ring cimport (
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, VRING_PACKED_DESC_F_AVAIL,
    VRING_PACKED_DESC_F_USED, VRING_PACKED_EVENT_FLAG_DESC, VRING_PACKED_EVENT_FLAG_DISABLE,
    VRING_PACKED_EVENT_FLAG_ENABLE, vring_desc,
)

ctypedef struct packed_device:
    device_side s
    char* desc              # vring_packed_desc[num]; both sides write
    char* driver_event      # vring_packed_desc_event; the driver writes
    char* device_event      # vring_packed_desc_event; we write
    char* first             # second word of the batch's first used descriptor, written last
    uint64_t first_word
    uint16_t last_avail_idx
    uint16_t avail_flags    # AVAIL and USED as they stand in a descriptor available now
    uint16_t used_idx
    uint16_t used_flags     # AVAIL and USED as they go into a descriptor used now
    uint16_t group_idx      # IN_ORDER: place and flags of the group being completed
    uint16_t group_flags
    uint16_t event_flags_shadow


cdef inline uint64_t packed_look_at(const char* entry, bint weak_barriers) noexcept nogil:
    """Second word of a descriptor that can become available; the driver writes it."""
    # Acquire: pairs with the driver's release (packed_driver.pxd, packed_publish).
    return load_acquire64(entry + 8, weak_barriers)


cdef inline uint64_t packed_look(const packed_device* v) noexcept nogil:
    return packed_look_at(v.desc + 16 * <size_t>v.last_avail_idx, v.s.weak_barriers)


cdef inline bint packed_word_available(const packed_device* v, uint64_t word) noexcept nogil:
    return (<uint16_t>(word >> 48) & AVAIL_USED) == v.avail_flags


cdef inline int packed_hold(
    packed_device* v, int64_t pos, uint32_t id, uint32_t ndesc, uint64_t in_len
) noexcept nogil:
    """The chain of ndesc descriptors at the next place is ours until it is pushed."""
    cdef uint32_t idx = v.last_avail_idx + ndesc
    if note_extra(v.s.held[id]) != FREE:
        return fail(&v.s.fault, VR_HEAD_BUSY, pos, id, v.s.num)
    if v.s.descs_held + ndesc > v.s.num:
        return fail(&v.s.fault, VR_TOO_MANY_IN_FLIGHT, pos, v.s.descs_held + ndesc, v.s.num)
    v.s.held[id] = note_word(clamp32(in_len), ndesc, HELD)
    v.s.descs_held += ndesc
    if idx >= v.s.num:
        idx -= v.s.num
        v.avail_flags ^= AVAIL_USED
    v.last_avail_idx = <uint16_t>idx
    return VR_OK


cdef inline uint32_t packed_walk_plain(
    const packed_device* v, vring_desc* row, uint32_t room, uint64_t addr, uint64_t word,
    uint32_t* id, uint64_t* in_len
) noexcept nogil:
    """As walk_plain (chain.pxd), a list in this ring; ``id`` is the last descriptor's."""
    cdef uint64_t base = v.s.hot.base
    cdef uint64_t size = v.s.hot.size
    cdef const char* place = v.desc + 16 * <size_t>v.last_avail_idx
    cdef const char* end = v.desc + 16 * <size_t>v.s.num
    cdef uint32_t avail_flags = v.avail_flags
    cdef uint64_t total = 0
    cdef uint32_t n = 0
    cdef uint32_t flags
    while n < room:
        flags = <uint32_t>(word >> 48)
        if (
            (flags & (AVAIL_USED | VRING_DESC_F_INDIRECT)) != avail_flags
            or not inside(addr, <uint32_t>word, base, size)
        ):
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
            id[0] = <uint16_t>(word >> 32)
            return n
        place += 16
        if place == end:
            place = v.desc
            avail_flags ^= AVAIL_USED
        # The first descriptor's acquire covers the rest: they were written before it (2.8.21).
        addr = load64(place)
        word = load64(place + 8)
    return 0


cdef inline int packed_pop_chain(
    packed_device* v, const guest_table* table, batch_cols* cols, chain_walk* w, uint32_t* id,
    uint64_t addr, uint64_t word
) noexcept nogil:
    """Walk the next available chain into the columns; addr and word are its first two words.

    On a fault nothing moves: the chain is still the next one.
    """
    cdef uint32_t idx = v.last_avail_idx
    cdef uint16_t avail_flags = v.avail_flags
    cdef uint16_t flags
    cdef uint32_t ndesc = 0
    cdef int code
    if not word & <uint64_t>VRING_DESC_F_INDIRECT << 48:
        w.n = packed_walk_plain(
            v, cols.desc + w.first, plain_room(&v.s, cols, w), addr, word, id, &w.in_len
        )
        if w.n:
            return packed_hold(v, w.pos, id[0], w.n, w.in_len)
    while True:
        flags = <uint16_t>(word >> 48)
        ndesc += 1
        if flags & VRING_DESC_F_INDIRECT:
            code = walk_indirect(
                &v.s, table, cols, w, addr, <uint32_t>word, flags, True, False
            )
            if code != VR_OK:
                return code
            break
        code = admit_desc(&v.s, table, cols, w, addr, <uint32_t>word, flags)
        if code != VR_OK:
            return code
        if not flags & VRING_DESC_F_NEXT:
            break
        if ndesc == v.s.num:
            return fail(&v.s.fault, VR_CHAIN_TOO_LONG, w.pos, ndesc, v.s.num)
        idx += 1
        if idx == v.s.num:
            idx = 0
            avail_flags ^= AVAIL_USED
        # The first descriptor's acquire covers the rest: they were written before it (2.8.21).
        addr = load64(v.desc + 16 * <size_t>idx)
        word = load64(v.desc + 16 * <size_t>idx + 8)
        if (<uint16_t>(word >> 48) & AVAIL_USED) != avail_flags:
            return fail(&v.s.fault, VR_CHAIN_CUT, w.pos, ndesc, 0)
    # 2.8.6: the id counts in the last descriptor of a list.
    id[0] = <uint16_t>(word >> 32)
    return packed_hold(v, w.pos, id[0], ndesc, w.in_len)


cdef inline void packed_advance_used(packed_device* v, uint32_t ndesc) noexcept nogil:
    cdef uint32_t idx = v.used_idx + ndesc
    if idx >= v.s.num:
        idx -= v.s.num
        v.used_flags ^= AVAIL_USED
    v.used_idx = <uint16_t>idx


cdef inline void packed_write_used(
    packed_device* v, uint16_t idx, uint16_t used_flags, uint32_t id, uint32_t written
) noexcept nogil:
    """Write a used descriptor; the first of a batch stays unseen until publish."""
    cdef char* entry = v.desc + 16 * <size_t>idx + 8
    cdef uint64_t word = packed_word(
        written, <uint16_t>id, used_flags | (VRING_DESC_F_WRITE if written else 0)
    )
    if v.first == NULL:
        v.first = entry
        v.first_word = word
    else:
        store64(entry, word)


cdef inline void packed_put_used(
    packed_device* v, uint32_t id, uint32_t written, uint32_t ndesc, bint swap
) noexcept nogil:
    """Write the next used descriptor and skip what the chain occupied."""
    packed_write_used(v, v.used_idx, v.used_flags, id, written)
    packed_advance_used(v, ndesc)
    v.group_idx = v.used_idx
    v.group_flags = v.used_flags


cdef inline void packed_skip_used(packed_device* v, uint32_t ndesc) noexcept nogil:
    """IN_ORDER: the buffer will be covered by the descriptor of the group's last one (2.8.9)."""
    packed_advance_used(v, ndesc)


cdef inline void packed_put_used_group(
    packed_device* v, uint32_t id, uint32_t written, uint32_t ndesc, bint swap
) noexcept nogil:
    """IN_ORDER: end a group: one descriptor, at the group's first place, naming its last buffer."""
    packed_write_used(v, v.group_idx, v.group_flags, id, written)
    packed_advance_used(v, ndesc)
    v.group_idx = v.used_idx
    v.group_flags = v.used_flags


cdef inline void packed_device_publish(packed_device* v, bint swap) noexcept nogil:
    """Show the driver everything used so far: the first used descriptor, last."""
    if v.first != NULL:
        # Release: pairs with the driver's acquire (packed_driver.pxd, packed_used_word). It orders
        # the other used descriptors and the data in the buffers before it.
        store_release64(v.first, v.first_word, v.s.weak_barriers)
        v.first = NULL


cdef inline void packed_device_rearm(packed_device* v) noexcept nogil:
    """After popping with notifications on: ask for a kick at the next one."""
    if v.s.event_idx and v.event_flags_shadow == VRING_PACKED_EVENT_FLAG_DESC:
        store16(v.device_event, packed_device_off_wrap(v))
        # Full: pairs with the driver's in packed_kick_prepare; as in split_device_rearm.
        virtio_mb(v.s.weak_barriers)


cdef inline uint16_t packed_device_off_wrap(const packed_device* v) noexcept nogil:
    """Position and wrap counter of the next descriptor to become available."""
    cdef uint16_t wrap = (v.avail_flags & VRING_PACKED_DESC_F_AVAIL) != 0
    return <uint16_t>(v.last_avail_idx | (wrap << 15))


cdef inline bint packed_device_need_notify(packed_device* v) noexcept nogil:
    """Whether the driver wants to be told of what was used."""
    cdef uint32_t added = v.s.num_added
    cdef uint32_t event
    cdef uint16_t flags
    # Full: pairs with the driver's in packed_rearm and packed_poll; as in the split ring.
    virtio_mb(v.s.weak_barriers)
    v.s.num_added = 0
    # The driver writes this structure: off_wrap and flags in one fetch.
    event = load32(v.driver_event)
    flags = <uint16_t>(event >> 16) & 3
    if flags != VRING_PACKED_EVENT_FLAG_DESC:
        return flags != VRING_PACKED_EVENT_FLAG_DISABLE
    if added > 0xFFFF:
        return True
    return packed_need_event(
        <uint16_t>event, v.used_idx, v.used_flags != 0, added, v.s.num
    )


cdef inline void packed_device_disable_notify(packed_device* v) noexcept nogil:
    if v.event_flags_shadow != VRING_PACKED_EVENT_FLAG_DISABLE:
        v.event_flags_shadow = VRING_PACKED_EVENT_FLAG_DISABLE
        store16(v.device_event + 2, v.event_flags_shadow)


cdef inline bint packed_device_enable_notify(packed_device* v) noexcept nogil:
    """Ask for a kick at the next buffer; False: one is there already."""
    if v.s.event_idx:
        store16(v.device_event, packed_device_off_wrap(v))
        # Write: off_wrap before the flags that make it count; pairs with the driver's single fetch
        # of both in packed_kick_prepare.
        virtio_wmb(v.s.weak_barriers)
    v.event_flags_shadow = (
        VRING_PACKED_EVENT_FLAG_DESC if v.s.event_idx else VRING_PACKED_EVENT_FLAG_ENABLE
    )
    store16(v.device_event + 2, v.event_flags_shadow)
    # Full: pairs with the driver's in packed_kick_prepare; as in the split ring.
    virtio_mb(v.s.weak_barriers)
    return not packed_word_available(v, packed_look(v))
