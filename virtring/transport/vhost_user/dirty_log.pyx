"""Dirty logging: which pages of guest memory a device has written, for live migration.

QEMU's vhost-user.rst, "Migration": one bit for every 4096 bytes from address 0 on. The other end
takes bits away at any time: it then copies the page. A page is marked after it was written.
"""

import numpy as np

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, realloc

from virtring.spec.ring cimport VRING_DESC_F_WRITE, vring_desc

from virtring.errors import InvalidArgument, OutOfMemory

cdef extern from *:
    """
    /* A full barrier on its own: the page's writes are seen by whoever sees the bit. */
    static inline void vr_or8(unsigned char *p, unsigned char bits)
    {
        __atomic_fetch_or(p, bits, __ATOMIC_SEQ_CST);
    }
    """
    void or8 "vr_or8"(unsigned char* p, unsigned char bits) noexcept nogil

cdef enum:
    PAGE_SHIFT = 12
    IDS = 65536
    FIRST_PARTS = 256


cdef class DirtyPages:
    """The bitmap. bits: its bytes, writable, shared with the other end."""

    def __cinit__(self, bits):
        self.bits = bits
        self.size = self.bits.shape[0]
        if not self.size:
            raise InvalidArgument("a dirty log without room")

    cdef void mark(self, uint64_t addr, uint64_t length) noexcept nogil:
        """Mark what lies inside; the rest of guest memory has no bit."""
        cdef uint64_t page = addr >> PAGE_SHIFT
        cdef uint64_t end
        if length == 0:
            return
        end = (addr + (length - 1)) >> PAGE_SHIFT
        while page <= end and page >> 3 < self.size:
            or8(&self.bits[page >> 3], <unsigned char>(1 << (page & 7)))
            page += 1


cdef class DirtyLog:
    """What one queue's device writes.

    The writable parts of each chain are kept from the moment it is popped: logging may begin while
    the device has it. All of them count as written when it comes back, for a device may write less
    than it says, or elsewhere in the buffer (a block device's status stands at its end).
    """

    def __cinit__(self):
        self.first = np.zeros(IDS, np.uint32)

    def __dealloc__(self):
        free(self.parts)

    @property
    def used(self):
        """Guest address at which writes of the used ring are marked, None for not."""
        return self.used_addr if self.used_set else None

    @used.setter
    def used(self, value):
        self.used_addr = 0 if value is None else value
        self.used_set = value is not None

    cdef int popped_part(self, uint32_t id, uint64_t addr, uint32_t length) except -1 nogil:
        cdef uint32_t room, i
        cdef part* more
        if not self.free:
            room = 2 * self.room if self.room else FIRST_PARTS
            more = <part*>realloc(self.parts, room * sizeof(part))
            if more == NULL:
                with gil:
                    raise OutOfMemory("no memory for what the dirty log has to know")
            self.parts = more
            # Number 0 stands for none.
            for i in range(max(self.room, 1), room):
                more[i].next = self.free
                self.free = i
            self.room = room
        i = self.free
        self.free = self.parts[i].next
        self.parts[i].addr = addr
        self.parts[i].len = length
        self.parts[i].next = self.first[id]
        self.first[id] = i
        return 0

    cdef int popped(self, uint32_t id, const vring_desc* desc, size_t n) except -1 nogil:
        cdef size_t i
        for i in range(n):
            if desc[i].flags & VRING_DESC_F_WRITE:
                self.popped_part(id, desc[i].addr, desc[i].len)
        return 0

    cdef void pushed(self, const uint32_t* id, size_t n) noexcept nogil:
        """These chains go back to the driver."""
        cdef size_t k
        cdef uint32_t i, next
        cdef bint mark = self.buffers and self.pages is not None
        for k in range(n):
            i = self.first[id[k]]
            self.first[id[k]] = 0
            while i:
                if mark:
                    self.pages.mark(self.parts[i].addr, self.parts[i].len)
                next = self.parts[i].next
                self.parts[i].next = self.free
                self.free = i
                i = next

    cdef void area(self, uint64_t offset, uint64_t length) noexcept nogil:
        """``length`` bytes from ``offset`` on of the device area (split: the used ring) written."""
        if self.pages is not None and self.used_set:
            self.pages.mark(self.used_addr + offset, length)
