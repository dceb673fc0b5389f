"""One-step primitives of the packed ring's driver side (virtio 1.4, 2.8; Linux virtqueue_*_packed).

The same steps as split_driver.pxd by the same names. A descriptor's second word (len, id, flags) is
written and read whole, so that flags never stand beside another descriptor's id or length.
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from virtring.memory.barriers cimport (
    load32, load_acquire64, store16, store64, store_release64, virtio_mb, virtio_wmb,
)
from virtring.ring.common cimport (
    VR_NEED_TABLE, VR_OK, VR_USED_ID_NOT_HEAD, VR_USED_ID_RANGE, VR_USED_ORDER, buf_state,
    clamp32, driver_side, fail, indirect_table, note_in_len, note_ndesc, note_word,
    packed_need_event,
)
from virtring.ring.packed_common cimport AVAIL_USED, packed_word
from virtring.spec.ring cimport (
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, VRING_PACKED_DESC_F_AVAIL,
    VRING_PACKED_DESC_F_USED, VRING_PACKED_EVENT_FLAG_DESC, VRING_PACKED_EVENT_FLAG_DISABLE,
    VRING_PACKED_EVENT_FLAG_ENABLE, vring_desc,
)

ctypedef struct packed_driver:
    driver_side s
    char* desc              # vring_packed_desc[num]; both sides write
    char* driver_event      # vring_packed_desc_event; we write
    char* device_event      # vring_packed_desc_event; the device writes
    char* first             # second word of the batch's first descriptor, written last
    uint64_t first_word     # what goes there; first is NULL when there is nothing to publish
    uint16_t next_avail_idx
    uint16_t avail_used_flags   # AVAIL and USED as they stand in a descriptor made available now
    uint16_t last_used_idx
    uint16_t used_flags     # AVAIL and USED as they stand in a descriptor used now
    uint16_t event_flags_shadow


cdef inline void packed_put_desc(
    packed_driver* v, uint64_t addr, uint32_t length, uint16_t id, uint16_t flags
) noexcept nogil:
    """Write one descriptor at next_avail_idx; the first of a batch stays unseen until publish."""
    cdef char* entry = v.desc + 16 * <size_t>v.next_avail_idx
    cdef uint64_t word = packed_word(length, id, flags | v.avail_used_flags)
    store64(entry, addr)
    if v.first == NULL:
        v.first = entry + 8
        v.first_word = word
    else:
        store64(entry + 8, word)
    v.next_avail_idx += 1
    if v.next_avail_idx == v.s.num:
        v.next_avail_idx = 0
        v.avail_used_flags ^= AVAIL_USED


cdef inline void packed_take_id(
    packed_driver* v, uint16_t id, uint16_t ndesc, uint32_t in_len, uint64_t token
) noexcept nogil:
    cdef buf_state* st = v.s.state + id
    st.token = token
    st.note = note_word(in_len, ndesc, 0)
    v.s.free_head = v.s.next[id]


cdef inline int packed_put_one(
    packed_driver* v, uint64_t addr, uint32_t length, uint16_t flags, uint64_t token, bint swap
) noexcept nogil:
    """Add a buffer of one descriptor. The caller has checked the room and the address."""
    cdef uint16_t id = v.s.free_head
    packed_put_desc(v, addr, length, id, flags)
    packed_take_id(v, id, 1, length if flags & VRING_DESC_F_WRITE else 0, token)
    return VR_OK


cdef inline int packed_put_chain(
    packed_driver* v, const vring_desc* sg, uint32_t n, uint64_t token, bint direct, bint swap
) noexcept nogil:
    """Add a buffer of n descriptors; as split_put_chain."""
    cdef uint16_t id = v.s.free_head
    cdef uint32_t k
    cdef uint64_t in_len = 0
    cdef indirect_table* table

    if v.s.tables != NULL and not direct:
        table = v.s.tables + id
        if table.capacity < n:
            return fail(&v.s.fault, VR_NEED_TABLE, id, n, 0)
        for k in range(n):
            if sg[k].flags & VRING_DESC_F_WRITE:
                in_len += sg[k].len
            # 2.8.8: in an indirect table only WRITE means anything; id is reserved.
            store64(table.host + 16 * <size_t>k, sg[k].addr)
            store64(table.host + 16 * <size_t>k + 8, packed_word(sg[k].len, 0, sg[k].flags))
        packed_put_desc(v, table.addr, 16 * n, id, VRING_DESC_F_INDIRECT)
        n = 1
    else:
        for k in range(n):
            if sg[k].flags & VRING_DESC_F_WRITE:
                in_len += sg[k].len
            packed_put_desc(
                v, sg[k].addr, sg[k].len, id,
                sg[k].flags | VRING_DESC_F_NEXT if k + 1 < n else sg[k].flags,
            )
    packed_take_id(v, id, <uint16_t>n, clamp32(in_len), token)
    return VR_OK


cdef inline void packed_publish(packed_driver* v, bint swap) noexcept nogil:
    """Show the device everything added so far: the first descriptor's flags, last."""
    if v.first != NULL:
        # Release: pairs with the device's acquire of the descriptor's second word
        # (packed_device.pxd, packed_look). It orders everything else of the batch before it.
        store_release64(v.first, v.first_word, v.s.weak_barriers)
        v.first = NULL


cdef inline uint64_t packed_used_word_at(const char* entry, bint weak_barriers) noexcept nogil:
    """Second word of a descriptor that the device may use."""
    # Acquire: pairs with the device's release (packed_device.pxd, packed_device_publish).
    return load_acquire64(entry + 8, weak_barriers)


cdef inline uint64_t packed_used_word(const packed_driver* v) noexcept nogil:
    return packed_used_word_at(v.desc + 16 * <size_t>v.last_used_idx, v.s.weak_barriers)


cdef inline bint packed_word_used(const packed_driver* v, uint64_t word) noexcept nogil:
    return (<uint16_t>(word >> 48) & AVAIL_USED) == v.used_flags


cdef inline int packed_release_id(
    packed_driver* v, uint16_t id, uint64_t note, uint32_t length, uint64_t* token,
    uint32_t* written
) noexcept nogil:
    """Hand out the token of an outstanding id and give its descriptors back."""
    cdef uint32_t idx = v.last_used_idx + note_ndesc(note)
    if length > note_in_len(note):
        length = note_in_len(note)
        v.s.excess += 1
    v.s.last_id = id
    token[0] = v.s.state[id].token
    written[0] = length
    v.s.num_free += note_ndesc(note)
    v.s.state[id].note = 0
    if not v.s.in_order:
        v.s.next[id] = v.s.free_head
        v.s.free_head = id
    if idx >= v.s.num:
        idx -= v.s.num
        v.used_flags ^= AVAIL_USED
    v.last_used_idx = <uint16_t>idx
    return VR_OK


cdef inline int packed_check_id(packed_driver* v, uint16_t id) noexcept nogil:
    if id >= v.s.num:
        return fail(&v.s.fault, VR_USED_ID_RANGE, v.last_used_idx, id, v.s.num)
    if v.s.state[id].note == 0:
        return fail(&v.s.fault, VR_USED_ID_NOT_HEAD, v.last_used_idx, id, v.s.num)
    return VR_OK


cdef inline int packed_get_word(
    packed_driver* v, uint64_t word, uint64_t* token, uint32_t* written
) noexcept nogil:
    """Take the used buffer that ``word`` (one fetch of a used descriptor) announces.

    Its length counts whether or not WRITE is set: devices in the field leave the flag out, and a
    length that makes no sense is clamped anyway.
    """
    cdef uint16_t id = <uint16_t>(word >> 32)
    cdef int code = packed_check_id(v, id)
    if code != VR_OK:
        return code
    return packed_release_id(v, id, v.s.state[id].note, <uint32_t>word, token, written)


cdef inline int packed_get_word_in_order(
    packed_driver* v, uint64_t word, uint64_t* token, uint32_t* written
) noexcept nogil:
    """The same with IN_ORDER: one used descriptor may stand for a group of buffers (2.8.9).

    Inside a group ``word`` is not looked at: the device wrote only the group's first place.
    """
    cdef uint16_t head = v.s.order_head
    cdef uint64_t note = v.s.state[head].note
    cdef uint32_t length = note_in_len(note)
    cdef uint16_t id
    cdef int code
    if not v.s.group:
        id = <uint16_t>(word >> 32)
        code = packed_check_id(v, id)
        if code != VR_OK:
            return code
        v.s.group = True
        v.s.group_id = id
        v.s.group_len = <uint32_t>word
    if head == v.s.group_id:
        v.s.group = False
        length = v.s.group_len
    v.s.order_head = v.s.next[head]
    return packed_release_id(v, head, note, length, token, written)


cdef inline bint packed_callbacks_on(const packed_driver* v) noexcept nogil:
    return v.event_flags_shadow != VRING_PACKED_EVENT_FLAG_DISABLE


cdef inline uint16_t packed_off_wrap(const packed_driver* v, uint32_t ahead) noexcept nogil:
    """Position and wrap counter ``ahead`` descriptors after the next one to be used."""
    cdef uint32_t idx = v.last_used_idx + ahead
    cdef uint16_t wrap = v.used_flags != 0
    if idx >= v.s.num:
        idx -= v.s.num
        wrap ^= 1
    return <uint16_t>(idx | (<uint32_t>wrap << 15))


cdef inline void packed_rearm(packed_driver* v) noexcept nogil:
    """After taking buffers with callbacks on: ask for a notification at the next one."""
    if v.event_flags_shadow == VRING_PACKED_EVENT_FLAG_DESC:
        store16(v.driver_event, packed_off_wrap(v, 0))
        # Full: pairs with the device's in packed_device_need_notify; as in split_rearm.
        virtio_mb(v.s.weak_barriers)


cdef inline bint packed_kick_prepare(packed_driver* v) noexcept nogil:
    """Whether the device wants to be told (Linux virtqueue_kick_prepare_packed)."""
    # Full: pairs with the device's in packed_device_enable_notify; as in split_kick_prepare.
    virtio_mb(v.s.weak_barriers)
    return packed_kick_decide(v)


cdef inline bint packed_kick_decide(packed_driver* v) noexcept nogil:
    """packed_kick_prepare without its barrier, for who has made another kind of one."""
    cdef uint32_t added = v.s.num_added
    cdef uint32_t event
    cdef uint16_t flags
    v.s.num_added = 0
    # The device writes this structure: off_wrap and flags in one fetch.
    event = load32(v.device_event)
    flags = <uint16_t>(event >> 16) & 3
    if flags != VRING_PACKED_EVENT_FLAG_DESC:
        return flags != VRING_PACKED_EVENT_FLAG_DISABLE
    if added > 0xFFFF:
        # One long chain can go beyond where a kick is forced; 16 bits would lose the difference.
        return True
    return packed_need_event(
        <uint16_t>event, v.next_avail_idx, (v.avail_used_flags & VRING_PACKED_DESC_F_AVAIL) != 0,
        added, v.s.num,
    )


cdef inline void packed_disable_cb(packed_driver* v) noexcept nogil:
    if v.event_flags_shadow != VRING_PACKED_EVENT_FLAG_DISABLE:
        v.event_flags_shadow = VRING_PACKED_EVENT_FLAG_DISABLE
        # After a signal under event index none comes by itself, so the store can be saved.
        if not v.s.event_triggered:
            store16(v.driver_event + 2, v.event_flags_shadow)


cdef inline uint32_t packed_enable_cb_prepare(packed_driver* v) noexcept nogil:
    cdef uint16_t off_wrap = packed_off_wrap(v, 0)
    if v.s.event_idx:
        store16(v.driver_event, off_wrap)
        # Write: off_wrap before the flags that make it count; pairs with the device's single
        # fetch of both in packed_device_need_notify.
        virtio_wmb(v.s.weak_barriers)
    if v.event_flags_shadow == VRING_PACKED_EVENT_FLAG_DISABLE:
        v.event_flags_shadow = (
            VRING_PACKED_EVENT_FLAG_DESC if v.s.event_idx else VRING_PACKED_EVENT_FLAG_ENABLE
        )
        store16(v.driver_event + 2, v.event_flags_shadow)
    return off_wrap


cdef inline bint packed_used_at(const packed_driver* v, uint16_t off_wrap) noexcept nogil:
    cdef uint64_t word = packed_used_word_at(
        v.desc + 16 * <size_t>(off_wrap & 0x7FFF), v.s.weak_barriers
    )
    cdef uint16_t expect = AVAIL_USED if off_wrap >> 15 else 0
    return (<uint16_t>(word >> 48) & AVAIL_USED) == expect


cdef inline bint packed_poll(packed_driver* v, uint32_t off_wrap) noexcept nogil:
    # Full: pairs with the device's in packed_device_need_notify; as in split_poll.
    virtio_mb(v.s.weak_barriers)
    # Inside a group the device wrote nothing, yet the rest of it is there to be taken.
    return v.s.group or packed_used_at(v, <uint16_t>off_wrap)


cdef inline bint packed_enable_cb_delayed(packed_driver* v) noexcept nogil:
    """As enable_cb, but at three quarters of what is in flight; False: something is there."""
    if v.s.event_idx:
        store16(v.driver_event, packed_off_wrap(v, (v.s.num - v.s.num_free) * 3 // 4))
        # Write: as in packed_enable_cb_prepare.
        virtio_wmb(v.s.weak_barriers)
    if v.event_flags_shadow == VRING_PACKED_EVENT_FLAG_DISABLE:
        v.event_flags_shadow = (
            VRING_PACKED_EVENT_FLAG_DESC if v.s.event_idx else VRING_PACKED_EVENT_FLAG_ENABLE
        )
        store16(v.driver_event + 2, v.event_flags_shadow)
    # Full: as in packed_poll.
    virtio_mb(v.s.weak_barriers)
    return not v.s.group and not packed_used_at(v, packed_off_wrap(v, 0))
