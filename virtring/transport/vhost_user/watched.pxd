from libc.stdint cimport uint16_t, uint32_t

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

    cdef void swap_ring(self, bint old) noexcept
    cdef const uint32_t* will_publish(self, const uint32_t* id, size_t* n) noexcept
    cdef uint32_t used_position(self) noexcept
    cdef int check(self, const uint32_t* id, size_t n) except -1
    cdef int note(self, const uint32_t* id, size_t n, uint32_t pos) except -1
    cdef void note_events(self)
    cdef int logged(self, const uint32_t* id, size_t n, uint32_t before, bint any) except -1
    cdef object take_split(self, object heads, object used)
    cdef object take_packed(self, object chains, object used)
