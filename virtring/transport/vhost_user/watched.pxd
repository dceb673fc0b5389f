from libc.stdint cimport uint16_t, uint32_t, uint64_t

from virtring.device.burst cimport QueueLoop
from virtring.queue.batch cimport Batch
from virtring.queue.device cimport DeviceQueue
from virtring.spec.ring cimport vring_packed_desc
from virtring.transport.vhost_user.dirty_log cimport DirtyLog
from virtring.transport.vhost_user.inflight cimport Inflight


cdef class WatchedQueue(DeviceQueue):
    cdef readonly Inflight inflight
    cdef readonly DirtyLog log
    cdef uint32_t left                  # chains to be taken again
    cdef uint16_t[::1] old_avail        # split: an avail ring with just these
    cdef vring_packed_desc[::1] old_desc    # packed: a ring with just these
    cdef char* real                     # the ring's own
    cdef uint32_t[::1] turn             # [num] IN_ORDER: what a push will publish
    cdef unsigned char[::1] marked      # [65536] IN_ORDER

    cdef uint64_t desc_addr

    cdef void swap_ring(self, bint old) noexcept nogil
    cdef const uint32_t* will_publish(self, const uint32_t* id, size_t* n) noexcept nogil
    cdef uint32_t used_position(self) noexcept nogil
    cdef bint check(self, const uint32_t* id, size_t n) noexcept nogil
    cdef void note(self, const uint32_t* id, size_t n, uint32_t pos) noexcept nogil
    cdef int popped(self, Batch batch, size_t n, uint32_t pos) except -1 nogil
    cdef void note_events(self) noexcept nogil
    cdef const uint32_t* pushing(self, const uint32_t* id, size_t* n) noexcept nogil
    cdef void pushed(
        self, const uint32_t* out, size_t published, const uint32_t* id, size_t n, uint32_t before
    ) noexcept nogil
    cdef void logged(self, const uint32_t* id, size_t n, uint32_t before, bint any) noexcept nogil
    cdef int pop_burst(self, Batch batch, size_t* n) except -1 nogil
    cdef int push_burst(
        self, const uint32_t* id, const uint32_t* written, size_t n
    ) noexcept nogil
    cdef object take_split(self, object heads, object used)
    cdef object take_packed(self, object chains, object used)


cdef class WatchedLoop(QueueLoop):
    cdef WatchedQueue watched
