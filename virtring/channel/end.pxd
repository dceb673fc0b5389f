from libc.stdint cimport int64_t, uint32_t, uint64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from virtring.memory.guest cimport GuestMemory
from virtring.memory.snapshot cimport MemoryTable


cdef inline int64_t now_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t>t.tv_sec * 1_000_000_000 + t.tv_nsec


cdef bint fence_others() noexcept nogil


cdef class ChannelEnd:
    cdef readonly object layout         # Layout
    cdef readonly int side              # 0 or 1
    cdef object region
    cdef object events                  # the four eventfds
    cdef object sock                    # what ends with the peer's process, or None
    cdef object spin_limit              # microseconds, or None for Spin's own choice
    cdef object peer                    # Peer, from attach() on
    cdef object error                   # why the channel is broken, or None
    cdef object creator                 # process id that attached
    cdef object __weakref__
    cdef GuestMemory memory
    cdef MemoryTable table              # keeps the mapping
    cdef char* base                     # where the memory is mapped
    cdef uint64_t* my_word
    cdef const uint64_t* peer_word
    cdef uint32_t slot_size
    cdef int state                      # 0: attached and fine
    cdef bint dead
    cdef bint fenced                    # fence_others() works, on us and by us

    cdef int enter_slowly(self) except -1
    cdef int attach_queues(self, object vdev) except -1
    cdef int drop_queues(self) except -1
    cdef int look_at_peer(self) except -1
    cdef int break_channel(self, object error) except -1
