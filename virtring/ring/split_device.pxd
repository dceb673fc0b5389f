"""One-step primitives of the split ring's device side (virtio 1.4, 2.7; Linux vringh, vhost).

The driver writes the descriptor table and the avail ring: every word is fetched once and checked.
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from virtring.memory.barriers cimport (
    load16, load64, load_acquire16, store16, store64_any, store_release16, swap16, swap32, swap64,
    virtio_mb,
)
from virtring.memory.table cimport guest_table
from virtring.ring.chain cimport (
    admit_desc, chain_walk, plain_room, walk_indirect, walk_plain,
)
from virtring.ring.common cimport (
    HELD, VR_AVAIL_IDX_JUMP, VR_NEXT_RANGE, VR_OK, batch_cols, clamp32, device_side, fail,
    note_word, vring_need_event,
)
from virtring.spec.ring cimport (
    VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_USED_F_NO_NOTIFY,
)

ctypedef struct split_device:
    device_side s
    char* desc              # vring_desc[num]; the driver writes
    char* avail             # flags, idx; the driver writes
    char* avail_ring        # uint16_t[num]; the driver writes
    char* used              # flags, idx
    char* used_ring         # vring_used_elem[num]
    char* used_event        # behind the avail ring; the driver writes
    char* avail_event       # behind the used ring; we write
    uint16_t mask
    uint16_t avail_idx      # avail.idx as last seen and checked
    uint16_t last_avail_idx
    uint16_t used_idx       # what used.idx will be at the next publish
    uint16_t group_idx      # IN_ORDER: place of the entry of the group being completed
    uint16_t used_flags_shadow


cdef inline int split_look(split_device* v, bint swap) noexcept nogil:
    """Fetch avail.idx and check it; afterwards avail_idx is what may be popped."""
    # Acquire: pairs with the driver's release of avail.idx (split_driver.pxd, split_publish).
    cdef uint16_t idx = load_acquire16(v.avail + 2, v.s.weak_barriers)
    if swap:
        idx = swap16(idx)
    # What is available and not yet used can never be more than the ring has entries.
    if <uint32_t><uint16_t>(idx - v.last_avail_idx) + v.s.in_flight > v.s.num:
        return fail(&v.s.fault, VR_AVAIL_IDX_JUMP, v.last_avail_idx, idx, v.s.num)
    v.avail_idx = idx
    return VR_OK


cdef inline uint32_t split_device_ready(const split_device* v) noexcept nogil:
    return <uint16_t>(v.avail_idx - v.last_avail_idx)


cdef inline uint32_t split_next_head(const split_device* v, bint swap) noexcept nogil:
    """The next entry of the avail ring, which the driver wrote; not checked yet."""
    cdef uint16_t head = load16(v.avail_ring + 2 * <size_t>(v.last_avail_idx & v.mask))
    return swap16(head) if swap else head


cdef inline void split_hold(
    split_device* v, uint32_t head, uint32_t ndesc, uint64_t in_len
) noexcept nogil:
    """The chain at the next avail entry is ours until it is pushed."""
    v.s.held[head] = note_word(clamp32(in_len), ndesc, HELD)
    v.last_avail_idx += 1


cdef inline int split_pop_chain(
    split_device* v, const guest_table* table, batch_cols* cols, chain_walk* w, uint32_t head,
    uint64_t addr, uint64_t word, bint swap
) noexcept nogil:
    """Walk the next available chain into the columns; addr and word are its head's two words.

    The caller has checked the head. On a fault nothing moves: the chain is still the next one.
    """
    cdef uint32_t length
    cdef uint16_t flags, link
    cdef uint32_t ndesc = 0
    cdef int code
    if not word & <uint64_t>VRING_DESC_F_INDIRECT << 32:
        w.n = walk_plain(
            &v.s, v.desc, v.s.num, cols.desc + w.first, plain_room(&v.s, cols, w), addr, word,
            &w.in_len
        )
        if w.n:
            split_hold(v, head, w.n, w.in_len)
            return VR_OK
    while True:
        length = <uint32_t>word
        flags = <uint16_t>(word >> 32)
        link = <uint16_t>(word >> 48)
        if swap:
            addr = swap64(addr)
            length = swap32(length)
            flags = swap16(flags)
            link = swap16(link)
        ndesc += 1
        if flags & VRING_DESC_F_INDIRECT:
            code = walk_indirect(&v.s, table, cols, w, addr, length, flags, False, swap)
            if code != VR_OK:
                return code
            break
        code = admit_desc(&v.s, table, cols, w, addr, length, flags)
        if code != VR_OK:
            return code
        if not flags & VRING_DESC_F_NEXT:
            break
        if link >= v.s.num:
            return fail(&v.s.fault, VR_NEXT_RANGE, w.pos, link, v.s.num)
        addr = load64(v.desc + 16 * <size_t>link)
        word = load64(v.desc + 16 * <size_t>link + 8)
    split_hold(v, head, ndesc, w.in_len)
    return VR_OK


cdef inline void split_put_used(
    split_device* v, uint32_t id, uint32_t written, uint32_t ndesc, bint swap
) noexcept nogil:
    """Write the next used entry; seen by the driver at the next publish."""
    if swap:
        id = swap32(id)
        written = swap32(written)
    store64_any(
        v.used_ring + 8 * <size_t>(v.used_idx & v.mask), <uint64_t>id | (<uint64_t>written << 32)
    )
    v.used_idx += 1
    v.group_idx = v.used_idx


cdef inline void split_skip_used(split_device* v, uint32_t ndesc) noexcept nogil:
    """IN_ORDER: the buffer will be covered by the entry of the group's last one (2.7.9)."""
    v.used_idx += 1


cdef inline void split_put_used_group(
    split_device* v, uint32_t id, uint32_t written, uint32_t ndesc, bint swap
) noexcept nogil:
    """IN_ORDER: end a group: one entry, at the group's first place, naming its last buffer."""
    cdef uint16_t end = <uint16_t>(v.used_idx + 1)
    v.used_idx = v.group_idx
    split_put_used(v, id, written, ndesc, swap)
    v.used_idx = end
    v.group_idx = end


cdef inline void split_device_publish(split_device* v, bint swap) noexcept nogil:
    """Show the driver everything used so far."""
    # Release: pairs with the driver's acquire of used.idx (split_driver.pxd, split_driver_look). It
    # orders the used entries and the data in the buffers before the index.
    store_release16(v.used + 2, swap16(v.used_idx) if swap else v.used_idx, v.s.weak_barriers)


cdef inline void split_device_rearm(split_device* v) noexcept nogil:
    """After popping with notifications on: ask for a kick at the next one (Fuchsia NextAvail)."""
    if v.s.event_idx and not v.used_flags_shadow & VRING_USED_F_NO_NOTIFY:
        store16(v.avail_event, swap16(v.last_avail_idx) if v.s.swap else v.last_avail_idx)
        # Full: pairs with the driver's in split_kick_prepare. Either it sees this event, or our
        # next look at avail.idx sees its buffer.
        virtio_mb(v.s.weak_barriers)


cdef inline bint split_device_need_notify(split_device* v) noexcept nogil:
    """Whether the driver wants to be told of what was used (Linux vhost_notify)."""
    cdef uint32_t added = v.s.num_added
    cdef uint16_t word
    # Full: pairs with the driver's in split_rearm and split_poll. Our used.idx must be visible
    # before its wish is read, or both sides could go to sleep.
    virtio_mb(v.s.weak_barriers)
    v.s.num_added = 0
    if v.s.event_idx:
        word = load16(v.used_event)
        if added > 0xFFFF:
            return True
        return vring_need_event(
            swap16(word) if v.s.swap else word, v.used_idx, <uint16_t>(v.used_idx - added)
        )
    word = load16(v.avail)
    return not (swap16(word) if v.s.swap else word) & VRING_AVAIL_F_NO_INTERRUPT


cdef inline void split_device_disable_notify(split_device* v) noexcept nogil:
    """Ask the driver for no kicks; a hint (Linux vringh_notify_disable)."""
    cdef uint16_t event
    if not v.used_flags_shadow & VRING_USED_F_NO_NOTIFY:
        v.used_flags_shadow |= VRING_USED_F_NO_NOTIFY
        if v.s.event_idx:
            # As in split_disable_cb: an event just behind is not crossed soon.
            event = <uint16_t>(v.last_avail_idx - 1)
            store16(v.avail_event, swap16(event) if v.s.swap else event)
        else:
            store16(
                v.used, swap16(v.used_flags_shadow) if v.s.swap else v.used_flags_shadow
            )


cdef inline bint split_device_enable_notify(split_device* v) noexcept nogil:
    """Ask for a kick at the next buffer; False: one is there (Linux vringh_notify_enable)."""
    cdef uint16_t idx
    v.used_flags_shadow &= <uint16_t>~VRING_USED_F_NO_NOTIFY
    if v.s.event_idx:
        store16(v.avail_event, swap16(v.last_avail_idx) if v.s.swap else v.last_avail_idx)
    else:
        store16(v.used, swap16(v.used_flags_shadow) if v.s.swap else v.used_flags_shadow)
    # Full: pairs with the driver's in split_kick_prepare. Either it sees our wish, or we see its
    # buffer here.
    virtio_mb(v.s.weak_barriers)
    idx = load16(v.avail + 2)
    return (swap16(idx) if v.s.swap else idx) == v.last_avail_idx
