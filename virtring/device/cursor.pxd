"""The bytes of one chain, however they are cut into descriptors, used up piece by piece.

The driver may take memory away while the device works: every piece is looked up again.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset

from virtring.memory.table cimport guest_range, guest_table
from virtring.ring.common cimport host_of_hot, in_memory
from virtring.spec.ring cimport vring_desc

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void* iov_base
        size_t iov_len

ctypedef struct cursor:
    const guest_table* table
    guest_range hot         # the range that served the last descriptor
    const vring_desc* desc
    const vring_desc* end
    uint32_t offset         # bytes of *desc that are used up
    uint32_t perm


cdef inline void cursor_init(cursor* c, const guest_table* table, uint32_t perm) noexcept nogil:
    """No bytes yet: cursor_at() gives some, as often as there are chains."""
    c.table = table
    c.hot.size = 0
    c.desc = c.end = NULL
    c.offset = 0
    c.perm = perm


cdef inline void cursor_at(
    cursor* c, const vring_desc* first, const vring_desc* end
) noexcept nogil:
    c.desc = first
    c.end = end
    c.offset = 0


cdef inline char* cursor_next(cursor* c, uint64_t limit, size_t* size) noexcept nogil:
    """The next 1 to ``limit`` bytes in one piece, or NULL: no more, or memory that went away."""
    cdef const vring_desc* d = c.desc
    cdef char* host
    if d == c.end or not in_memory(&c.hot, c.table, d.addr, d.len, c.perm):
        return NULL
    host = host_of_hot(&c.hot, d.addr) + c.offset
    size[0] = <size_t>min(limit, <uint64_t>(d.len - c.offset))
    c.offset += <uint32_t>size[0]
    if c.offset == d.len:
        c.desc += 1
        c.offset = 0
    return host


cdef inline int gather(cursor* c, char* out, uint64_t size) noexcept nogil:
    """Copy the next ``size`` bytes out; -1 when there are fewer."""
    cdef size_t part
    cdef char* host
    while size:
        host = cursor_next(c, size, &part)
        if host == NULL:
            return -1
        memcpy(out, host, part)
        out += part
        size -= part
    return 0


cdef inline int scatter(cursor* c, const char* data, uint64_t size) noexcept nogil:
    """Copy ``size`` bytes in, zeros if ``data`` is NULL; -1 when there is room for fewer."""
    cdef size_t part
    cdef char* host
    while size:
        host = cursor_next(c, size, &part)
        if host == NULL:
            return -1
        if data == NULL:
            memset(host, 0, part)
        else:
            memcpy(host, data, part)
            data += part
        size -= part
    return 0


cdef inline int vectors(
    cursor* c, iovec* iov, int room, uint64_t size, uint64_t* got
) noexcept nogil:
    """The next ``size`` bytes as at most ``room`` vectors: how many, and their ``got`` bytes.

    -1 when there are fewer bytes.
    """
    cdef int n = 0
    cdef size_t part
    cdef char* host
    got[0] = 0
    while size and n < room:
        host = cursor_next(c, size, &part)
        if host == NULL:
            return -1
        iov[n].iov_base = host
        iov[n].iov_len = part
        n += 1
        got[0] += part
        size -= part
    return n
