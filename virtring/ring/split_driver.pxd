"""One-step primitives of the split ring's driver side (virtio 1.4, 2.7; Linux virtqueue_*_split).

Each takes the side's structure, normally a local copy that the compiler keeps in registers (see
driver.pyx), and ``swap``, a constant wherever it is called. Nothing that stands in shared memory
is read back: chains, lengths and links are remembered in ``state`` and ``next``.
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from virtring.memory.barriers cimport (
    load16, load64_any, load_acquire16, store16, store64, store_release16, swap16, swap32, swap64,
    virtio_mb,
)
from virtring.ring.common cimport (
    VR_NEED_TABLE, VR_OK, VR_USED_ID_NOT_HEAD, VR_USED_ID_RANGE, VR_USED_IDX_JUMP, VR_USED_ORDER,
    buf_state, clamp32, driver_side, fail, indirect_table, note_extra, note_in_len, note_ndesc,
    note_word, vring_need_event,
)
from virtring.spec.ring cimport (
    VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
    VRING_USED_F_NO_NOTIFY, vring_desc,
)

ctypedef struct split_driver:
    driver_side s
    char* desc              # vring_desc[num]
    char* avail             # flags, idx
    char* avail_ring        # uint16_t[num]
    char* used              # flags, idx; the device writes here
    char* used_ring         # vring_used_elem[num]
    char* used_event        # behind the avail ring; we write
    char* avail_event       # behind the used ring; the device writes
    uint16_t mask           # num - 1
    uint16_t avail_idx      # shadow: what avail.idx will be at the next publish
    uint16_t used_idx       # used.idx as last seen and checked
    uint16_t last_used_idx
    uint16_t avail_flags_shadow


cdef inline void split_put_desc(
    char* entry, uint64_t addr, uint32_t length, uint16_t flags, uint16_t link, bint swap
) noexcept nogil:
    if swap:
        addr = swap64(addr)
        length = swap32(length)
        flags = swap16(flags)
        link = swap16(link)
    store64(entry, addr)
    store64(
        entry + 8, <uint64_t>length | (<uint64_t>flags << 32) | (<uint64_t>link << 48)
    )


cdef inline void split_put_avail(split_driver* v, uint16_t head, bint swap) noexcept nogil:
    store16(v.avail_ring + 2 * <size_t>(v.avail_idx & v.mask), swap16(head) if swap else head)
    v.avail_idx += 1


cdef inline void split_take_head(
    split_driver* v, uint16_t head, uint16_t tail, uint16_t ndesc, uint32_t in_len, uint64_t token
) noexcept nogil:
    """Note what the ring will not be asked about again."""
    cdef buf_state* st = v.s.state + head
    st.token = token
    st.note = note_word(in_len, ndesc, head ^ tail)
    v.s.free_head = v.s.next[tail]


cdef inline int split_put_one(
    split_driver* v, uint64_t addr, uint32_t length, uint16_t flags, uint64_t token, bint swap
) noexcept nogil:
    """Add a buffer of one descriptor. The caller has checked the room and the address."""
    cdef uint16_t head = v.s.free_head
    split_put_desc(v.desc + 16 * <size_t>head, addr, length, flags, 0, swap)
    split_take_head(v, head, head, 1, length if flags & VRING_DESC_F_WRITE else 0, token)
    split_put_avail(v, head, swap)
    return VR_OK


cdef inline int split_put_chain(
    split_driver* v, const vring_desc* sg, uint32_t n, uint64_t token, bint direct, bint swap
) noexcept nogil:
    """Add a buffer of n descriptors, indirect when there is a table for it and not ``direct``.

    The caller has checked the room, the addresses and that readable ones come first. VR_NEED_TABLE
    asks for a table of at least n entries for the id in fault.pos; nothing was changed then.
    """
    cdef uint16_t head = v.s.free_head
    cdef uint16_t i = head
    cdef uint16_t last = head
    cdef uint32_t k
    cdef uint64_t in_len = 0
    cdef indirect_table* table

    if v.s.tables != NULL and not direct:
        table = v.s.tables + head
        if table.capacity < n:
            return fail(&v.s.fault, VR_NEED_TABLE, head, n, 0)
        for k in range(n):
            if sg[k].flags & VRING_DESC_F_WRITE:
                in_len += sg[k].len
            split_put_desc(
                table.host + 16 * <size_t>k, sg[k].addr, sg[k].len,
                sg[k].flags | VRING_DESC_F_NEXT if k + 1 < n else sg[k].flags,
                <uint16_t>(k + 1) if k + 1 < n else 0, swap,
            )
        split_put_desc(
            v.desc + 16 * <size_t>head, table.addr, 16 * n, VRING_DESC_F_INDIRECT, 0, swap
        )
        n = 1
    else:
        for k in range(n):
            last = i
            i = v.s.next[i]
            if sg[k].flags & VRING_DESC_F_WRITE:
                in_len += sg[k].len
            split_put_desc(
                v.desc + 16 * <size_t>last, sg[k].addr, sg[k].len,
                sg[k].flags | VRING_DESC_F_NEXT if k + 1 < n else sg[k].flags,
                i if k + 1 < n else 0, swap,
            )
    split_take_head(v, head, last, <uint16_t>n, clamp32(in_len), token)
    split_put_avail(v, head, swap)
    return VR_OK


cdef inline void split_publish(split_driver* v, bint swap) noexcept nogil:
    """Show the device everything added so far."""
    # Release: pairs with the device's acquire of avail.idx (split_device.pxd, split_look). It
    # orders the descriptors and ring entries above before the index.
    store_release16(v.avail + 2, swap16(v.avail_idx) if swap else v.avail_idx, v.s.weak_barriers)


cdef inline int split_driver_look(split_driver* v, bint swap) noexcept nogil:
    """Fetch used.idx (the device writes it), check it; afterwards used_idx is what may be taken."""
    # Acquire: pairs with the device's release of used.idx (split_device.pxd, split_device_publish).
    cdef uint16_t idx = load_acquire16(v.used + 2, v.s.weak_barriers)
    if swap:
        idx = swap16(idx)
    if <uint16_t>(idx - v.last_used_idx) > v.s.in_flight:
        return fail(&v.s.fault, VR_USED_IDX_JUMP, v.last_used_idx, idx, v.s.in_flight)
    v.used_idx = idx
    return VR_OK


cdef inline uint32_t split_driver_ready(const split_driver* v) noexcept nogil:
    """How many used entries are known to be there."""
    return <uint16_t>(v.used_idx - v.last_used_idx)


cdef inline int split_release_id(
    split_driver* v, uint16_t id, uint64_t note, uint32_t length, uint64_t* token,
    uint32_t* written
) noexcept nogil:
    """Hand out the token of an outstanding id and give its descriptors back."""
    if length > note_in_len(note):
        # The device claims more than it could write: clamp and count.
        length = note_in_len(note)
        v.s.excess += 1
    v.s.last_id = id
    token[0] = v.s.state[id].token
    written[0] = length
    v.s.num_free += note_ndesc(note)
    v.s.state[id].note = 0
    if not v.s.in_order:
        v.s.next[id ^ note_extra(note)] = v.s.free_head
        v.s.free_head = id
    v.last_used_idx += 1
    return VR_OK


cdef inline int split_get_one(
    split_driver* v, uint64_t* token, uint32_t* written, bint swap
) noexcept nogil:
    """Take one used buffer; split_driver_ready() must not be 0. The caller counts in_flight."""
    # The device writes this word; one fetch, everything below works on the local.
    cdef uint64_t elem = load64_any(v.used_ring + 8 * <size_t>(v.last_used_idx & v.mask))
    cdef uint32_t id = <uint32_t>elem
    cdef uint32_t length = <uint32_t>(elem >> 32)
    cdef uint64_t note
    if swap:
        id = swap32(id)
        length = swap32(length)
    if id >= v.s.num:
        return fail(&v.s.fault, VR_USED_ID_RANGE, v.last_used_idx, id, v.s.num)
    note = v.s.state[id].note
    if note == 0:
        return fail(&v.s.fault, VR_USED_ID_NOT_HEAD, v.last_used_idx, id, v.s.num)
    return split_release_id(v, <uint16_t>id, note, length, token, written)


cdef inline int split_get_one_in_order(
    split_driver* v, uint64_t* token, uint32_t* written, bint swap
) noexcept nogil:
    """The same with IN_ORDER: one used entry may stand for a group of buffers (2.7.9).

    The entry lies at the group's first place and names the group's last buffer; those before it
    count as completely used.
    """
    cdef uint64_t elem
    cdef uint32_t id, length
    cdef uint16_t head = v.s.order_head
    cdef uint64_t note = v.s.state[head].note
    if not v.s.group:
        elem = load64_any(v.used_ring + 8 * <size_t>(v.last_used_idx & v.mask))
        id = <uint32_t>elem
        length = <uint32_t>(elem >> 32)
        if swap:
            id = swap32(id)
            length = swap32(length)
        if id >= v.s.num:
            return fail(&v.s.fault, VR_USED_ID_RANGE, v.last_used_idx, id, v.s.num)
        if v.s.state[id].note == 0:
            return fail(&v.s.fault, VR_USED_ID_NOT_HEAD, v.last_used_idx, id, v.s.num)
        v.s.group = True
        v.s.group_id = <uint16_t>id
        v.s.group_len = length
    if head == v.s.group_id:
        v.s.group = False
        length = v.s.group_len
    elif <uint16_t>(v.last_used_idx + 1) == v.used_idx:
        # The index ends before the buffer that the entry names: the two contradict each other.
        return fail(&v.s.fault, VR_USED_ORDER, v.last_used_idx, v.s.group_id, head)
    else:
        length = note_in_len(note)
    v.s.order_head = v.s.next[head ^ note_extra(note)]
    return split_release_id(v, head, note, length, token, written)


cdef inline bint split_callbacks_on(const split_driver* v) noexcept nogil:
    return not v.avail_flags_shadow & VRING_AVAIL_F_NO_INTERRUPT


cdef inline void split_rearm(split_driver* v) noexcept nogil:
    """After taking buffers with callbacks on: ask for a notification at the next one."""
    if v.s.event_idx and split_callbacks_on(v):
        store16(v.used_event, swap16(v.last_used_idx) if v.s.swap else v.last_used_idx)
        # Full: pairs with the device's in split_device_need_notify. Either it sees this event, or
        # our next look at used.idx sees its entry.
        virtio_mb(v.s.weak_barriers)


cdef inline bint split_kick_prepare(split_driver* v) noexcept nogil:
    """Whether the device wants to know of what was added (Linux virtqueue_kick_prepare_split)."""
    cdef uint16_t new = v.avail_idx
    cdef uint16_t old = <uint16_t>(new - v.s.num_added)
    cdef uint16_t word
    # Full: pairs with the device's in split_device_enable_notify. Our avail.idx must be visible
    # before its wish is read, or both sides could go to sleep.
    virtio_mb(v.s.weak_barriers)
    v.s.num_added = 0
    if v.s.event_idx:
        word = load16(v.avail_event)
        return vring_need_event(swap16(word) if v.s.swap else word, new, old)
    word = load16(v.used)
    return not (swap16(word) if v.s.swap else word) & VRING_USED_F_NO_NOTIFY


cdef inline void split_write_avail_flags(split_driver* v) noexcept nogil:
    if not v.s.event_idx:
        store16(
            v.avail, swap16(v.avail_flags_shadow) if v.s.swap else v.avail_flags_shadow
        )


cdef inline void split_disable_cb(split_driver* v) noexcept nogil:
    """Ask for no notifications; a hint, not a promise (Linux virtqueue_disable_cb_split)."""
    cdef uint16_t event
    if not v.avail_flags_shadow & VRING_AVAIL_F_NO_INTERRUPT:
        v.avail_flags_shadow |= VRING_AVAIL_F_NO_INTERRUPT
        if v.s.event_idx:
            # The entry before this one was crossed already, so it is not crossed again for nearly
            # 2^16 buffers (Linux writes 0); after a signal none comes anyway.
            if not v.s.event_triggered:
                event = <uint16_t>(v.last_used_idx - 1)
                store16(v.used_event, swap16(event) if v.s.swap else event)
        else:
            split_write_avail_flags(v)


cdef inline uint32_t split_enable_cb_prepare(split_driver* v) noexcept nogil:
    """Ask for a notification at the next used buffer; the value is for split_poll."""
    cdef uint16_t last = v.last_used_idx
    if v.avail_flags_shadow & VRING_AVAIL_F_NO_INTERRUPT:
        v.avail_flags_shadow &= <uint16_t>~VRING_AVAIL_F_NO_INTERRUPT
        split_write_avail_flags(v)
    if v.s.event_idx:
        store16(v.used_event, swap16(last) if v.s.swap else last)
    return last


cdef inline bint split_poll(split_driver* v, uint32_t last_used_idx) noexcept nogil:
    """Whether something was used since enable_cb_prepare gave ``last_used_idx``."""
    cdef uint16_t idx
    # Full: pairs with the device's in split_device_need_notify, as in split_rearm.
    virtio_mb(v.s.weak_barriers)
    idx = load16(v.used + 2)
    return (swap16(idx) if v.s.swap else idx) != <uint16_t>last_used_idx


cdef inline bint split_enable_cb_delayed(split_driver* v) noexcept nogil:
    """As enable_cb, but at three quarters of what is in flight; False: that many are there."""
    cdef uint16_t bufs
    cdef uint16_t event
    cdef uint16_t idx
    split_enable_cb_prepare(v)
    bufs = <uint16_t>((<uint16_t>(v.avail_idx - v.last_used_idx)) * 3 // 4)
    if v.s.event_idx:
        event = <uint16_t>(v.last_used_idx + bufs)
        store16(v.used_event, swap16(event) if v.s.swap else event)
    # Full: as in split_poll.
    virtio_mb(v.s.weak_barriers)
    idx = load16(v.used + 2)
    if v.s.swap:
        idx = swap16(idx)
    return <uint16_t>(idx - v.last_used_idx) <= bufs
