"""In-flight tracking: what a back end works on, written down where its successor finds it.

The layouts and the order of the writes are those of QEMU's vhost-user.rst, "Inflight I/O tracking".
A process that is killed leaves its stores in the order in which it did them, so at every moment the
area says of each chain either "in flight" or "not", and where a batch was cut off is seen by
comparing it with the ring.

The area is shared with the front end: it is read once, when a ring begins, with every number
checked; afterwards it is only written.
"""

import numpy as np

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from virtring.memory.barriers cimport (
    load16, load32, load64, store16, store32, store64, store_release16, store_release64,
)
from virtring.ring.common cimport note_ndesc
from virtring.spec.ring cimport VRING_PACKED_DESC_F_USED

from virtring.errors import InvalidArgument

cdef enum:
    VERSION = 1
    IDS = 65536
    # Offsets that both layouts have in their heads.
    H_VERSION = 8
    H_DESC_NUM = 10
    # Split: the head of the last batch's list; the used index, both 16 bits.
    H_LAST_BATCH = 12
    H_USED = 14
    SPLIT_HEAD = 16
    SPLIT_ENTRY = 16
    E_SPLIT_NEXT = 6
    E_COUNTER = 8
    # Packed: the free list's head, now and before; used index now and before, wrap counters.
    H_FREE = 12
    H_USED_STATE = 16
    PACKED_HEAD = 32
    PACKED_ENTRY = 32
    E_NEXT = 2
    E_LAST = 4
    E_NUM = 6
    E_DESC_WORD = 16    # id, flags, len
    E_ADDR = 24

#: Bytes at which a queue's part begins and ends.
ALIGN = 64


def inflight_bytes(num: int) -> int:
    """Bytes that the part of one queue of ``num`` entries takes, whatever its layout."""
    return (PACKED_HEAD + PACKED_ENTRY * num + ALIGN - 1) & -ALIGN


cdef class Inflight:
    """One queue's part of the tracking area.

    area: its bytes, writable, at least ``inflight_bytes(num)``, at a multiple of 8. num: the most
    entries that the ring has. A part that is all zeros is a new one.

    Raises InvalidArgument for a part that is too small or belongs to something else.
    """

    def __cinit__(self, area, uint32_t num, bint packed):
        self.area = area
        if not 1 <= num <= 32768 or self.area.shape[0] < inflight_bytes(num):
            raise InvalidArgument(
                f"{self.area.shape[0]} bytes of in-flight tracking for {num} entries"
            )
        self.head = <char*>&self.area[0]
        self.packed = packed
        self.num = num
        if packed:
            self.desc = self.head + PACKED_HEAD
            self.next = np.arange(1, num + 1, dtype=np.uint16)
            self.last = np.zeros(num, np.uint16)
            self.entry = np.zeros(IDS, np.uint16)
        else:
            self.desc = self.head + SPLIT_HEAD
        if self.is_new:
            return
        if load16(self.head + H_VERSION) != VERSION or load16(self.head + H_DESC_NUM) != num:
            raise InvalidArgument(
                f"in-flight tracking of version {load16(self.head + H_VERSION)} for"
                f" {load16(self.head + H_DESC_NUM)} entries, not {num}"
            )

    @property
    def is_new(self) -> bool:
        """Has no ring used it yet?"""
        return load16(self.head + H_VERSION) == 0

    # -- beginning -----------------------------------------------------------------------------

    cdef list begin_split(self, uint16_t used_idx):
        """Heads that are in flight, oldest first, when the ring's used index is ``used_idx``."""
        cdef uint32_t i, behind
        cdef uint64_t count
        cdef char* e
        cdef list found = []
        self.used_idx = used_idx
        if self.is_new:
            store16(self.head + H_DESC_NUM, <uint16_t>self.num)
            store16(self.head + H_USED, used_idx)
            store_release16(self.head + H_VERSION, VERSION, True)
            return found
        # What was published by the last batch is not in flight, marked or not.
        behind = <uint16_t>(used_idx - load16(self.head + H_USED))
        if behind > self.num:
            raise InvalidArgument(f"in-flight tracking is {behind} used entries behind its ring")
        i = load16(self.head + H_LAST_BATCH)
        for _ in range(behind):
            if i >= self.num:
                raise InvalidArgument(f"in-flight tracking: entry {i} of {self.num}")
            e = self.desc + SPLIT_ENTRY * <size_t>i
            store16(e, 0)
            i = load16(e + E_SPLIT_NEXT)
        store_release16(self.head + H_USED, used_idx, True)
        for i in range(self.num):
            e = self.desc + SPLIT_ENTRY * <size_t>i
            if load16(e) & 0xFF:
                count = load64(e + E_COUNTER)
                found.append((count, i))
                self.counter = max(self.counter, count + 1)
        found.sort()
        return [head for _, head in found]

    cdef list begin_packed(self, const char* ring, uint32_t size, uint32_t used):
        """Chains in flight, oldest first, each a list of (addr, second word of the descriptor).

        used: the position where the ring goes on if the area is new; else what was there decides.
        """
        cdef uint32_t i, k, n
        cdef uint32_t total = 0
        cdef uint64_t count, state
        cdef char* e
        cdef list found = []
        cdef list chain
        cdef bint wrap
        if self.is_new:
            for i in range(self.num):
                store16(self.desc + PACKED_ENTRY * <size_t>i + E_NEXT, <uint16_t>(i + 1))
            store16(self.head + H_DESC_NUM, <uint16_t>self.num)
            self.free_head = self.old_free_head = 0
            self.used_idx = self.old_used_idx = used & 0x7FFF
            self.used_wrap = self.old_used_wrap = used >> 15
            self.put_free()
            self.put_used()
            store_release16(self.head + H_VERSION, VERSION, True)
            return found
        state = load64(self.head + H_USED_STATE)
        k = load32(self.head + H_FREE)
        i = <uint16_t>(state >> 16)
        wrap = (state >> 40) & 1
        if i >= size or <uint16_t>state >= size:
            raise InvalidArgument(f"in-flight tracking: used position {i} of {size}")
        self.old_free_head, self.old_used_idx, self.old_used_wrap = <uint16_t>(k >> 16), i, wrap
        if <uint16_t>state != i or (state >> 32) & 1 != <uint64_t>wrap:
            # A batch was on its way. It went out if its first descriptor is a used one.
            n = load16(ring + 16 * <size_t>i + 14) & VRING_PACKED_DESC_F_USED
            if (n != 0) == wrap:
                self.old_free_head = <uint16_t>k
                self.old_used_idx = <uint16_t>state
                self.old_used_wrap = (state >> 32) & 1
        self.free_head = self.old_free_head
        self.used_idx, self.used_wrap = self.old_used_idx, self.old_used_wrap
        free = bytearray(self.num)
        i = self.free_head
        while i < self.num:
            if free[i]:
                raise InvalidArgument("in-flight tracking: its free list is a circle")
            free[i] = 1
            e = self.desc + PACKED_ENTRY * <size_t>i
            store16(e, 0)
            self.next[i] = load16(e + E_NEXT)
            i = self.next[i]
        for i in range(self.num):
            e = self.desc + PACKED_ENTRY * <size_t>i
            if free[i] or not load16(e) & 0xFF:
                continue
            count = load64(e + E_COUNTER)
            self.counter = max(self.counter, count + 1)
            n = load16(e + E_NUM)
            total += n
            if n == 0 or total > size:
                raise InvalidArgument(f"in-flight tracking: {total} descriptors in flight")
            chain = []
            k = i
            while True:
                if k >= self.num or free[k]:
                    raise InvalidArgument(f"in-flight tracking: a chain at {i} leads to {k}")
                free[k] = 1
                e = self.desc + PACKED_ENTRY * <size_t>k
                chain.append((load64(e + E_ADDR), turned(load64(e + E_DESC_WORD))))
                if len(chain) == n:
                    break
                self.next[k] = load16(e + E_NEXT)
                k = self.next[k]
            self.last[i] = k
            # The id that counts is the last descriptor's.
            self.entry[<uint16_t>(<uint64_t>chain[n - 1][1] >> 32)] = i
            found.append((count, chain))
        self.put_free()
        self.put_used()
        found.sort(key=_count)
        return [chain for _, chain in found]

    # -- running -------------------------------------------------------------------------------

    cdef void put_used(self) noexcept nogil:
        """Used positions and wrap counters, now and before: one store, so never half of it."""
        store_release64(
            self.head + H_USED_STATE,
            <uint64_t>self.used_idx | (<uint64_t>self.old_used_idx << 16)
            | (<uint64_t>self.used_wrap << 32) | (<uint64_t>self.old_used_wrap << 40),
            True,
        )

    cdef void put_free(self) noexcept nogil:
        store32(self.head + H_FREE, <uint32_t>self.free_head | (<uint32_t>self.old_free_head << 16))

    cdef void popped_split(self, const uint32_t* id, size_t n) noexcept nogil:
        """The chains were taken in this order: those that are marked are always the first ones."""
        cdef size_t i
        cdef char* e
        for i in range(n):
            e = self.desc + SPLIT_ENTRY * <size_t>id[i]
            store64(e + E_COUNTER, self.counter)
            self.counter += 1
            store_release16(e, 1, True)

    cdef void popped_packed(
        self, const uint32_t* id, size_t n, const uint64_t* held, const char* ring, uint32_t size,
        uint32_t pos
    ) noexcept nogil:
        """The same; ``pos`` is where the first of them begins in the ring of ``size`` entries."""
        cdef size_t i
        cdef uint32_t ndesc
        cdef uint16_t first, at
        cdef char* e
        cdef char* head
        for i in range(n):
            ndesc = note_ndesc(held[id[i]])
            first = at = self.free_head
            head = self.desc + PACKED_ENTRY * <size_t>first
            for _ in range(ndesc):
                at = self.free_head
                e = self.desc + PACKED_ENTRY * <size_t>at
                store64(e + E_ADDR, load64(ring + 16 * <size_t>pos))
                store64(e + E_DESC_WORD, turned(load64(ring + 16 * <size_t>pos + 8)))
                self.free_head = self.next[at]
                pos = pos + 1 if pos + 1 < size else 0
            # The ring is the driver's too: the id is the one that was checked.
            store16(self.desc + PACKED_ENTRY * <size_t>at + E_DESC_WORD, <uint16_t>id[i])
            self.last[first] = at
            self.entry[id[i]] = first
            store16(head + E_LAST, at)
            store16(head + E_NUM, <uint16_t>ndesc)
            store64(head + E_COUNTER, self.counter)
            self.counter += 1
            store_release16(head, 1, True)
            self.old_free_head = self.free_head
            # From here on it counts. No store moves before the mark: it is a release of its own.
            store_release16(self.head + H_FREE + 2, self.old_free_head, True)
        self.put_free()

    cdef void pushing(
        self, const uint32_t* id, size_t n, const uint64_t* held, uint32_t size
    ) noexcept nogil:
        """These will be published next, all at once."""
        cdef size_t i
        cdef uint32_t e
        cdef uint32_t at = self.used_idx
        for i in range(n):
            if not self.packed:
                store16(
                    self.desc + SPLIT_ENTRY * <size_t>id[i] + E_SPLIT_NEXT, self.last_batch_head
                )
                self.last_batch_head = <uint16_t>id[i]
                continue
            e = self.entry[id[i]]
            self.next[self.last[e]] = self.free_head
            store16(self.desc + PACKED_ENTRY * <size_t>self.last[e] + E_NEXT, self.free_head)
            self.free_head = <uint16_t>e
            at += note_ndesc(held[id[i]])
            if at >= size:
                at -= size
                self.used_wrap = not self.used_wrap
        if self.packed:
            self.used_idx = <uint16_t>at
            self.put_free()
            self.put_used()
        else:
            store_release16(self.head + H_LAST_BATCH, self.last_batch_head, True)

    cdef void cancel(self) noexcept nogil:
        """They were not, after all."""
        if self.packed:
            self.free_head = self.old_free_head
            self.used_idx, self.used_wrap = self.old_used_idx, self.old_used_wrap
            self.put_free()
            self.put_used()

    cdef void pushed(self, const uint32_t* id, size_t n, uint16_t used_idx) noexcept nogil:
        """They were; ``used_idx`` is the split ring's."""
        cdef size_t i
        if not self.packed:
            for i in range(n):
                store16(self.desc + SPLIT_ENTRY * <size_t>id[i], 0)
            self.used_idx = used_idx
            store_release16(self.head + H_USED, used_idx, True)
            return
        for i in range(n):
            store16(self.desc + PACKED_ENTRY * <size_t>self.entry[id[i]], 0)
        self.old_free_head = self.free_head
        self.old_used_idx, self.old_used_wrap = self.used_idx, self.used_wrap
        self.put_free()
        self.put_used()


def _count(pair: tuple) -> int:
    return pair[0]


cdef inline uint64_t turned(uint64_t word) noexcept nogil:
    """A descriptor's second word (len, id, flags) as an entry has it (id, flags, len), and back."""
    return (word >> 32) | (word << 32)
