"""The device side's batch loops, once for both layouts (see device.pyx), and single chains.

A single chain that is not as simple as most is left to the loops, and nothing was changed then.
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from virtring.memory.barriers cimport load16, load64, store64, store64_any
from virtring.memory.table cimport PERM_RW, guest_table
from virtring.ring.common cimport (
    FREE, HELD, HELD_SINGLE, VR_OK, batch_cols, inside, note_extra, note_in_len, note_is_free,
    note_ndesc, note_word, put_row,
)
from virtring.ring.packed_common cimport AVAIL_USED
from virtring.ring.packed_device cimport (
    packed_device, packed_device_publish, packed_device_rearm, packed_look, packed_look_at,
    packed_put_used, packed_word_available,
)
from virtring.ring.split_device cimport (
    split_device, split_device_publish, split_device_ready, split_device_rearm, split_look,
    split_next_head, split_put_used,
)
from virtring.spec.ring cimport (
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, vring_desc,
)

ctypedef fused device_ring:
    split_device
    packed_device

cdef int device_pop(
    device_ring* ring, const guest_table* table, batch_cols* cols, size_t room, size_t* popped
) noexcept nogil
cdef int device_push(
    device_ring* ring, const uint32_t* id, const uint32_t* written, size_t n, size_t* published
) noexcept nogil


cdef inline bint fetch_single(
    device_ring* ring, const char* place, const char* desc, uint32_t avail_flags, uint32_t num,
    uint64_t* held, uint64_t base, uint64_t size, vring_desc* out, uint32_t* out_id
) noexcept nogil:
    """One step of a burst: the buffer at ``place`` into a row; False: it is another kind."""
    cdef uint64_t addr, word
    cdef size_t id
    cdef uint32_t length, flags
    if device_ring is split_device:
        id = load16(place)
        if id >= num:
            return False
        addr = load64(desc + 16 * id)
        word = load64(desc + 16 * id + 8)
        flags = <uint32_t>(word >> 32)
    else:
        word = packed_look_at(place, True)
        flags = <uint32_t>(word >> 48)
        if (flags & AVAIL_USED) != avail_flags:
            return False
        addr = load64(place)
        id = <uint16_t>(word >> 32)
    length = <uint32_t>word
    if (
        flags & (VRING_DESC_F_NEXT | VRING_DESC_F_INDIRECT)
        or not inside(addr, length, base, size) or not note_is_free(held[id])
    ):
        return False
    if flags & VRING_DESC_F_WRITE:
        held[id] = note_word(length, 1, HELD)
        put_row(out, addr, length, VRING_DESC_F_WRITE)
    else:
        held[id] = HELD_SINGLE
        put_row(out, addr, length, 0)
    out_id[0] = <uint32_t>id
    return True


cdef inline bint write_single(
    device_ring* ring, char* entry, uint32_t limit, uint64_t unused, uint64_t used, uint64_t* held,
    size_t id, uint32_t length
) noexcept nogil:
    """One step of a burst; False: it is another kind of chain, or a mistake."""
    cdef uint64_t note
    if id >= limit:
        return False
    note = held[id]
    if <uint32_t>note != HELD_SINGLE or length > note_in_len(note):
        return False
    if device_ring is split_device:
        store64_any(entry, <uint64_t>id | (<uint64_t>length << 32))
    else:
        # WRITE says that the length counts (2.8.21).
        store64(entry, (<uint64_t>id << 32) | (used | length if length else unused))
    held[id] = note ^ (HELD ^ FREE) << 16
    return True


# What became of a single chain.
cdef enum:
    ONE_NONE = 0            # nothing is available
    ONE_DONE = 1
    ONE_LEFT = 2            # for the loops


cdef inline int device_pop_one(device_ring* ring, vring_desc* out, uint32_t* id) noexcept nogil:
    """Pop the next chain if it is one descriptor inside the range that served the last one."""
    cdef uint64_t addr, word
    cdef uint32_t head, length
    cdef uint16_t flags
    if ring.s.hot.perm != PERM_RW or ring.s.swap or ring.s.in_order:
        return ONE_LEFT
    if device_ring is split_device:
        if split_device_ready(ring) == 0:
            if split_look(ring, False) != VR_OK:
                return ONE_LEFT
            if split_device_ready(ring) == 0:
                return ONE_NONE
        head = split_next_head(ring, False)
        if head >= ring.s.num:
            return ONE_LEFT
        addr = load64(ring.desc + 16 * <size_t>head)
        word = load64(ring.desc + 16 * <size_t>head + 8)
        flags = <uint16_t>(word >> 32)
    else:
        word = packed_look(ring)
        if not packed_word_available(ring, word):
            return ONE_NONE
        addr = load64(ring.desc + 16 * <size_t>ring.last_avail_idx)
        flags = <uint16_t>(word >> 48)
        head = <uint16_t>(word >> 32)
        if ring.s.descs_held == ring.s.num:
            return ONE_LEFT
    length = <uint32_t>word
    if (
        flags & (VRING_DESC_F_NEXT | VRING_DESC_F_INDIRECT)
        or not inside(addr, length, ring.s.hot.base, ring.s.hot.size)
        or note_extra(ring.s.held[head]) != FREE
    ):
        return ONE_LEFT
    out.addr = addr
    out.len = length
    out.flags = flags & VRING_DESC_F_WRITE
    id[0] = head
    ring.s.held[head] = note_word(length if out.flags else 0, 1, HELD)
    ring.s.in_flight += 1
    if device_ring is split_device:
        ring.last_avail_idx += 1
        split_device_rearm(ring)
    else:
        ring.s.descs_held += 1
        ring.last_avail_idx += 1
        if ring.last_avail_idx == ring.s.num:
            ring.last_avail_idx = 0
            ring.avail_flags ^= AVAIL_USED
        packed_device_rearm(ring)
    return ONE_DONE


cdef inline int device_push_one(device_ring* ring, uint32_t id, uint32_t written) noexcept nogil:
    """Complete and publish one chain whose id came from this ring; not with IN_ORDER."""
    cdef uint64_t note = ring.s.held[id]
    cdef uint32_t ndesc = note_ndesc(note)
    if ring.s.in_order or note_extra(note) != HELD or written > note_in_len(note):
        return ONE_LEFT
    ring.s.held[id] = note_word(note_in_len(note), ndesc, FREE)
    ring.s.in_flight -= 1
    if device_ring is split_device:
        split_put_used(ring, id, written, ndesc, ring.s.swap)
        ring.s.num_added += 1
        split_device_publish(ring, ring.s.swap)
    else:
        packed_put_used(ring, id, written, ndesc, False)
        ring.s.num_added += ndesc
        ring.s.descs_held -= ndesc
        packed_device_publish(ring, False)
    return ONE_DONE
