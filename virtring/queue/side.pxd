cimport cython
from libc.stdint cimport uint16_t, uint32_t, uint64_t

from virtring.memory.guest cimport GuestMemory, MemoryTable
from virtring.ring.common cimport guest_range, ring_fault
from virtring.spec.ring cimport (
    vring_desc,
    vring_packed_desc,
    vring_packed_desc_event,
    vring_used_elem,
)


cdef class MemoryHold:
    cdef GuestMemory memory


cdef class QueueSide:
    cdef readonly GuestMemory memory
    cdef readonly object config         # QueueConfig; None before configure()
    cdef readonly bint packed
    cdef MemoryTable table              # the snapshot in use
    cdef guest_range* hot               # of the engine's structure: forgotten with the snapshot
    cdef ring_fault* fault              # likewise
    cdef bint closed
    cdef bint busy                      # a thread is inside without the GIL
    cdef bint broken
    cdef MemoryHold guard               # while we point into the memory, it cannot be closed
    cdef object pending                 # a fault found behind buffers that were handed out
    # The ring's areas, typed; the engine's pointers are taken from these, once.
    cdef vring_desc[::1] desc
    cdef uint16_t[::1] avail
    cdef uint16_t[::1] used
    cdef vring_used_elem[::1] used_elem
    cdef vring_packed_desc[::1] packed_desc
    cdef vring_packed_desc_event[::1] driver_event
    cdef vring_packed_desc_event[::1] device_event

    cdef int bind_areas(self, object config) except -1
    cdef int unbind_areas(self) except -1
    cdef int refuse(self) except -1
    cdef int rebind(self) except -1
    cdef object fault_error(self, int code)
    cdef int raise_fault(self, int code) except -1
    cdef int break_now(self, int code, bint later) except -1

    @cython.final
    cdef inline int enter(self) except -1:
        """Before every call: may it go on, and is the memory map the one we know?"""
        if self.closed or self.busy or self.broken:
            self.refuse()
        if self.memory.snapshot is not self.table:
            self.rebind()
        return 0
