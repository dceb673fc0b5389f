"""A set of object addresses: which tokens are in flight. Open addressing, no allocation in use.

Kept at most half full by its size, so that a probe is short; a removal moves followers back, so
that no tombstones gather.
"""

from libc.stdint cimport uint64_t, uintptr_t

ctypedef struct token_set:
    uintptr_t* slots        # 0: empty
    uint64_t mask           # slots - 1, a power of two less one


cdef inline uint64_t token_home(const token_set* t, uintptr_t key) noexcept nogil:
    # Objects are 16-aligned: spread what is above that (Fibonacci hashing).
    return ((<uint64_t>key >> 4) * <uint64_t>0x9E3779B97F4A7C15 >> 32) & t.mask


cdef inline bint token_add(token_set* t, uintptr_t key) noexcept nogil:
    """Add key; False when it is there already."""
    cdef uint64_t i = token_home(t, key)
    while t.slots[i]:
        if t.slots[i] == key:
            return False
        i = (i + 1) & t.mask
    t.slots[i] = key
    return True


cdef inline void token_remove(token_set* t, uintptr_t key) noexcept nogil:
    """Remove key, which is there."""
    cdef uint64_t i = token_home(t, key)
    cdef uint64_t k
    while t.slots[i] != key:
        i = (i + 1) & t.mask
    k = i
    while True:
        k = (k + 1) & t.mask
        if t.slots[k] == 0:
            break
        # An entry may fill the gap unless its home lies behind the gap.
        if ((k - token_home(t, t.slots[k])) & t.mask) >= ((k - i) & t.mask):
            t.slots[i] = t.slots[k]
            i = k
    t.slots[i] = 0
