"""What all four rings share: result codes, the buffer bookkeeping, event arithmetic.

A *side* is one end of one ring. Its structure below is private memory: the peer cannot reach it.
The rings themselves lie in shared memory; each word of them is fetched once into a local.
"""

from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

from virtring.memory.barriers cimport store64
from virtring.memory.table cimport guest_range, guest_table, guest_lookup
from virtring.spec.ring cimport vring_desc

# Result codes; virtring/errors.py turns them into exceptions (same numbers, checked by a test).
cdef enum:
    VR_OK = 0
    VR_NO_SPACE = 1
    VR_BROKEN = 2
    VR_USED_ID_RANGE = 10
    VR_USED_ID_NOT_HEAD = 11
    VR_USED_IDX_JUMP = 12
    VR_USED_ORDER = 13
    VR_AVAIL_IDX_JUMP = 20
    VR_HEAD_RANGE = 21
    VR_HEAD_BUSY = 22
    VR_NEXT_RANGE = 23
    VR_CHAIN_TOO_LONG = 24
    VR_CHAIN_ADDRESS = 25
    VR_CHAIN_ZERO_LENGTH = 26
    VR_CHAIN_ORDER = 27
    VR_INDIRECT_NOT_NEGOTIATED = 28
    VR_INDIRECT_NESTED = 29
    VR_INDIRECT_LENGTH = 30
    VR_INDIRECT_NEXT = 31
    VR_NOT_HELD = 32
    VR_CHAIN_CUT = 33
    VR_TOO_MANY_IN_FLIGHT = 34
    VR_ROW_ADDRESS = 40
    VR_ROW_SIZE = 41
    VR_ROW_ORDER = 42
    VR_BATCH_ROOM = 43
    VR_ROW_ZERO_LENGTH = 44
    VR_ROW_WRITTEN = 45
    VR_ROW_FLAGS = 46
    VR_ROW_BYTES = 47
    # Not errors: what the caller has to provide before it tries again.
    VR_NEED_TABLE = 60      # an indirect table for the chain at fault.pos with fault.val entries

# Note words of buffers of one descriptor, without in_len; see note_word().
cdef enum:
    SINGLE = 1              # the driver's
    HELD_SINGLE = 1 | 1 << 16   # the device's, HELD

# Where and what, beside a result code: position or row, offending value, second value.
ctypedef struct ring_fault:
    int64_t pos
    int64_t val
    int64_t aux
    uint32_t perm           # with VR_CHAIN_ADDRESS: the rights that were missing

# One buffer that the driver has made available, by its id (split: the head descriptor). The second
# word is written and read whole, which the store buffer likes: see note_word().
ctypedef struct buf_state:
    uint64_t token
    uint64_t note           # 0: the id is not outstanding

# An indirect table that belongs to one id for good, so that the steady state never allocates.
ctypedef struct indirect_table:
    char* host
    uint64_t addr
    uint32_t capacity       # descriptors

# What the driver sides of both layouts have in common.
ctypedef struct driver_side:
    buf_state* state        # [num]
    uint16_t* next          # [num] free list; with IN_ORDER the fixed circle of all ids
    indirect_table* tables  # [num], or NULL when INDIRECT_DESC was not negotiated
    uint64_t excess         # used lengths that had to be clamped so far
    uint32_t num
    uint32_t num_free       # descriptors
    uint32_t num_added      # since the last kick decision
    uint32_t in_flight      # buffers
    uint16_t free_head
    uint16_t last_id        # the id that was handed out last
    uint16_t order_head     # IN_ORDER: the oldest outstanding id
    uint16_t group_id       # IN_ORDER: the last id of the group the device completed at once
    uint32_t group_len      # IN_ORDER: the length that goes with it
    bint group              # IN_ORDER: a group is being handed out
    bint weak_barriers
    bint event_idx
    bint in_order
    bint swap               # the ring's endianness is not ours (legacy only)
    bint event_triggered    # the device signalled: with event index it will not by itself again
    bint force_direct       # no indirect table could be had for the next chain
    guest_range hot         # the range that served the last address
    ring_fault fault

# What the device remembers of a chain, by id, is one note_word() too; its third part says where the
# chain is.
cdef enum:
    FREE = 0
    HELD = 1                # popped, the device works on it
    DONE = 2                # IN_ORDER: completed, waits for its turn

# What the device sides of both layouts have in common.
ctypedef struct device_side:
    uint64_t* held          # [num] split, [65536] packed (an id is any 16-bit number there)
    uint16_t* order         # [num] IN_ORDER: ids in the order they were popped, a ring
    uint32_t* late          # IN_ORDER, by id: length of a completion that waits for its turn
    uint32_t num
    uint32_t in_flight      # chains
    uint32_t descs_held     # ring descriptors of them
    uint32_t num_added      # used entries (split) or descriptors (packed) since the last decision
    uint32_t order_get      # IN_ORDER: oldest entry of order
    uint32_t order_len
    bint weak_barriers
    bint event_idx
    bint indirect
    bint in_order
    bint swap
    guest_range hot
    ring_fault fault

# The columns of a batch, bound once; see virtring.queue.batch.
ctypedef struct batch_cols:
    vring_desc* desc        # [max_desc] addr, len, flags (VRING_DESC_F_WRITE or 0)
    uint32_t* offsets       # [capacity + 1] row i has descriptors offsets[i] to offsets[i + 1]
    uint64_t* token         # [capacity]
    uint32_t* id            # [capacity]
    uint32_t* written       # [capacity] bytes
    size_t capacity
    size_t max_desc


cdef inline bint vring_need_event(uint16_t event, uint16_t new, uint16_t old) noexcept nogil:
    """Whether going from old to new crossed event, modulo 2^16 (2.7.10, Linux vring_need_event)."""
    return <uint16_t>(new - event - 1) < <uint16_t>(new - old)


cdef inline bint packed_need_event(
    uint16_t off_wrap, uint16_t new, bint wrap, uint32_t added, uint32_t num
) noexcept nogil:
    """The same for a packed ring: positions wrap at num (Linux virtqueue_kick_prepare_packed).

    ``added`` descriptors were passed since the last decision; ``wrap`` is the counter at ``new``.
    """
    cdef uint16_t event = off_wrap & 0x7FFF
    if (off_wrap >> 15) != wrap:
        event = <uint16_t>(event - num)
    return vring_need_event(event, new, <uint16_t>(new - added))


cdef inline bint in_memory(
    guest_range* hot, const guest_table* table, uint64_t addr, uint64_t length, uint32_t perm
) noexcept nogil:
    """Whether [addr, addr + length) lies in one range with these rights; remembers the range.

    No sum of numbers that the peer chose is formed, so nothing can overflow.
    """
    cdef const guest_range* r
    cdef uint64_t off = addr - hot.base
    if off < hot.size and length <= hot.size - off and (hot.perm & perm) == perm:
        return True
    r = guest_lookup(table, addr, length, perm)
    if r == NULL:
        return False
    hot[0] = r[0]
    return True


cdef inline char* host_of_hot(const guest_range* hot, uint64_t addr) noexcept nogil:
    """The mapping of an address that in_memory() has just accepted."""
    return hot.host + (addr - hot.base)


cdef inline uint64_t note_word(uint32_t in_len, uint32_t ndesc, uint32_t extra) noexcept nogil:
    """in_len: bytes the device may write. ndesc: ring descriptors, never 0 while outstanding.

    extra: the device keeps HELD or DONE there; the driver the last id of the chain, where the free
    list is joined again, as its difference (by XOR) from the chain's own id. So everything but
    in_len is a constant for a buffer of one descriptor, which the loops for these rely on.
    """
    return <uint64_t>(ndesc | (extra << 16)) | (<uint64_t>in_len << 32)


cdef inline uint32_t note_in_len(uint64_t note) noexcept nogil:
    return <uint32_t>(note >> 32)


cdef inline uint32_t note_ndesc(uint64_t note) noexcept nogil:
    return <uint32_t>note & 0xFFFF


cdef inline uint32_t note_extra(uint64_t note) noexcept nogil:
    return <uint32_t>note >> 16


cdef inline bint note_is_free(uint64_t note) noexcept nogil:
    """``note_extra(note) == FREE``, by one comparison where the note lies."""
    return <uint32_t>note < 1 << 16


cdef inline bint inside(
    uint64_t addr, uint64_t length, uint64_t base, uint64_t size
) noexcept nogil:
    """Whether a buffer that is not empty lies inside the range; length is below 2^32.

    ``last`` is where its last byte would be. It is below ``off`` when the sum went beyond 2^64, or
    beyond the range's end, and so it is for length 0.
    """
    cdef uint64_t off = addr - base
    cdef uint64_t last = off + (length - 1)
    return last >= off and last < size


cdef inline void put_row(
    vring_desc* row, uint64_t addr, uint32_t length, uint16_t write
) noexcept nogil:
    """Set a batch's descriptor in two stores; write is VRING_DESC_F_WRITE or 0."""
    store64(&row.addr, addr)
    store64(&row.len, <uint64_t>length | (<uint64_t>write << 32))


cdef inline uint32_t clamp32(uint64_t n) noexcept nogil:
    """A sum of lengths as far as a used length can say it."""
    return <uint32_t>n if (n >> 32) == 0 else <uint32_t>-1


cdef inline int fail(
    ring_fault* fault, int code, int64_t pos, int64_t val, int64_t aux
) noexcept nogil:
    fault.pos = pos
    fault.val = val
    fault.aux = aux
    return code
