"""A device queue that keeps accounts for the front end: what is in flight, which pages it wrote."""

import numpy as np

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from virtring.device.burst cimport QueueLoop
from virtring.memory.barriers cimport load16, swap16
from virtring.queue.batch cimport Batch
from virtring.queue.chain cimport Chain
from virtring.queue.device cimport DeviceQueue
from virtring.ring.common cimport DONE, HELD, VR_OK, note_extra
from virtring.ring.packed_common cimport AVAIL_USED
from virtring.spec.ring cimport VRING_PACKED_DESC_F_AVAIL, VRING_PACKED_DESC_F_USED
from virtring.transport.vhost_user.dirty_log cimport DirtyLog
from virtring.transport.vhost_user.inflight cimport Inflight

from virtring.errors import InvalidArgument
from virtring.spec.dtypes import VRING_PACKED_DESC

cdef enum:
    IDS = 65536


cdef class WatchedQueue(DeviceQueue):
    """A :class:`DeviceQueue`, by the same calls, for any device.

    With an :class:`Inflight`, chains that a killed back end had popped and not returned are popped
    again, oldest first, before any other: see :meth:`begin`. With a :class:`DirtyLog` every page
    that is written is marked there.
    """

    def begin(self, Inflight inflight, DirtyLog log, position=None) -> None:
        """Before the first pop: keep accounts in ``inflight`` and ``log`` (None: do not).

        position: where the ring goes on, as ``restore`` takes it, None for a new ring. An
        ``inflight`` that was in use before says it better.

        Raises InvalidArgument for a position or an area that does not fit the ring; the queue is
        not to be used then.
        """
        cdef list found
        cdef uint32_t at
        self.enter_ring()
        self.desc_addr = self.config.desc
        if inflight is not None:
            if inflight.packed != self.packed or inflight.num < self.s.num:
                raise InvalidArgument(
                    f"{self.config.label}: in-flight tracking is of another ring, for"
                    f" {inflight.num} entries"
                )
            was_new = inflight.is_new
            if self.packed:
                at = 1 << 31 | 1 << 15 if position is None else position
                found = inflight.begin_packed(self.pack.desc, self.s.num, at >> 16)
                if not was_new:
                    position = self.take_packed(
                        found, inflight.used_idx | <uint32_t>inflight.used_wrap << 15
                    )
            else:
                at = load16(self.split.used + 2)
                if self.s.swap:
                    at = swap16(<uint16_t>at)
                found = inflight.begin_split(<uint16_t>at)
                if not was_new:
                    position = self.take_split(found, at)
        if position is not None:
            self.restore(position)
        if self.left:
            # What is popped again is counted again.
            if not self.packed:
                self.split.avail_idx = <uint16_t>(self.split.last_avail_idx + self.left)
        self.inflight = inflight
        self.log = log
        if self.s.in_order:
            self.turn = np.zeros(self.s.num, np.uint32)
            self.marked = np.zeros(IDS, np.uint8)

    cdef object take_split(self, object heads, object used):
        """An avail ring in which just ``heads`` are available; the position to begin at."""
        cdef uint32_t num = self.s.num
        cdef uint32_t mask = num - 1
        cdef uint32_t i
        if len(heads) > num:
            raise InvalidArgument(f"{self.config.label}: {len(heads)} chains in flight of {num}")
        self.old_avail = np.zeros(num, np.uint16)
        for i, head in enumerate(heads):
            if head >= num:
                raise InvalidArgument(f"{self.config.label}: head {head} in flight of {num}")
            self.old_avail[(<uint32_t>used + i) & mask] = (
                swap16(<uint16_t>head) if self.s.swap else <uint16_t>head
            )
        self.left = <uint32_t>len(heads)
        return used

    cdef object take_packed(self, object chains, object used):
        """A ring in which just the descriptors of ``chains`` are available; where to begin."""
        cdef uint32_t num = self.s.num
        cdef uint32_t at = used & 0x7FFF
        cdef bint wrap = used >> 15
        cdef uint64_t word
        # Flags that are equal, as everywhere beyond the chains, never mean "available".
        ring = np.zeros(num, VRING_PACKED_DESC)
        for chain in chains:
            for addr, word in chain:
                flags = (<uint16_t>(word >> 48) & <uint16_t>~<uint16_t>AVAIL_USED) | (
                    VRING_PACKED_DESC_F_AVAIL if wrap else VRING_PACKED_DESC_F_USED
                )
                ring[at] = (addr, <uint32_t>word, <uint16_t>(word >> 32), flags)
                at += 1
                if at == num:
                    at = 0
                    wrap = not wrap
        self.old_desc = ring
        self.left = <uint32_t>len(chains)
        return used | used << 16

    # -- popping -------------------------------------------------------------------------------

    cdef void swap_ring(self, bint old) noexcept nogil:
        """Let the engine pop from what was in flight, or from the ring."""
        if self.packed:
            if old:
                self.real = self.pack.desc
                self.pack.desc = <char*>&self.old_desc[0]
            else:
                self.pack.desc = self.real
        elif old:
            self.real = self.split.avail_ring
            self.split.avail_ring = <char*>&self.old_avail[0]
        else:
            self.split.avail_ring = self.real

    cdef void note(self, const uint32_t* id, size_t n, uint32_t pos) noexcept nogil:
        """These were popped; ``pos`` is where they began in a packed ring."""
        if self.left:
            # They are written down already.
            self.left -= <uint32_t>n
        elif self.inflight is not None:
            if self.packed:
                self.inflight.popped_packed(
                    id, n, self.s.held, self.pack.desc, self.s.num, pos
                )
            else:
                self.inflight.popped_split(id, n)
        if self.log is not None:
            self.note_events()

    cdef int popped(self, Batch batch, size_t n, uint32_t pos) except -1 nogil:
        """The rows of the batch were popped."""
        cdef size_t i
        self.note(batch.cols.id, n, pos)
        if self.log is not None:
            for i in range(n):
                self.log.popped(
                    batch.cols.id[i],
                    batch.cols.desc + batch.cols.offsets[i],
                    batch.cols.offsets[i + 1] - batch.cols.offsets[i],
                )
        return 0

    cdef void note_events(self) noexcept nogil:
        """The structure that asks for kicks was written."""
        if self.packed:
            self.log.area(0, 4)
        else:
            self.log.area(0, 2)
            self.log.area(4 + 8 * <uint64_t>self.s.num, 2)

    def pop(self, Batch batch not None, room=None) -> int:
        cdef uint32_t pos = self.pack.last_avail_idx
        cdef bint old = self.left != 0
        cdef size_t n
        if old:
            room = min(batch.cols.capacity if room is None else room, self.left)
            self.swap_ring(True)
        try:
            n = DeviceQueue.pop(self, batch, room)
        finally:
            if old:
                self.swap_ring(False)
        if n:
            self.popped(batch, n, pos)
        return n

    def next_chain(self):
        cdef uint32_t pos = self.pack.last_avail_idx
        cdef bint old = self.left != 0
        cdef uint32_t i
        cdef Chain chain
        if old:
            self.swap_ring(True)
        try:
            chain = DeviceQueue.next_chain(self)
        finally:
            if old:
                self.swap_ring(False)
        if chain is not None:
            self.note(&chain.id, 1, pos)
            if self.log is not None:
                for i in range(chain.n_out, chain.n):
                    self.log.popped_part(chain.id, chain.addr[i], chain.len[i])
        return chain

    @property
    def more_available(self) -> bool:
        return self.left != 0 or DeviceQueue.more_available.__get__(self)

    def disable_notify(self) -> None:
        DeviceQueue.disable_notify(self)
        if self.log is not None:
            self.note_events()

    def enable_notify(self) -> bool:
        asleep = DeviceQueue.enable_notify(self)
        if self.log is not None:
            self.note_events()
        return asleep and self.left == 0

    # -- pushing -------------------------------------------------------------------------------

    cdef uint32_t used_position(self) noexcept nogil:
        return self.pack.used_idx if self.packed else self.split.used_idx

    cdef const uint32_t* will_publish(self, const uint32_t* id, size_t* n) noexcept nogil:
        """The chains that the driver gets when these are pushed: IN_ORDER keeps some back."""
        cdef uint32_t ids = IDS if self.packed else self.s.num
        cdef uint32_t k, head
        cdef size_t i
        if not self.s.in_order:
            return id
        for i in range(n[0]):
            if id[i] < ids:
                self.marked[id[i]] = 1
        k = 0
        while k < self.s.order_len:
            head = self.s.order[(self.s.order_get + k) % self.s.num]
            if note_extra(self.s.held[head]) != DONE and not self.marked[head]:
                break
            self.turn[k] = head
            k += 1
        for i in range(n[0]):
            if id[i] < ids:
                self.marked[id[i]] = 0
        n[0] = k
        return &self.turn[0]

    cdef bint check(self, const uint32_t* id, size_t n) noexcept nogil:
        """Held, all of them? The engine says what is wrong with one that is not."""
        cdef uint32_t ids = IDS if self.packed else self.s.num
        cdef size_t i
        for i in range(n):
            if id[i] >= ids or note_extra(self.s.held[id[i]]) != HELD:
                return False
        return True

    cdef void logged(
        self, const uint32_t* id, size_t n, uint32_t before, bint any
    ) noexcept nogil:
        """These were pushed; used entries from ``before`` on were written, if there are any."""
        cdef uint32_t num = self.s.num
        cdef uint32_t at = before
        cdef uint32_t end = self.used_position()
        cdef uint32_t last
        cdef uint64_t desc
        self.log.pushed(id, n)
        if not any or not self.log.used_set or self.log.pages is None:
            return
        if not self.packed:
            self.log.area(0, 4)
            while at != end:
                self.log.area(4 + 8 * <uint64_t>(at & (num - 1)), 8)
                at = <uint16_t>(at + 1)
            return
        # Used descriptors stand in the descriptor ring, which has no log address of its own.
        last = end if end > at else num
        desc = self.desc_addr
        self.log.pages.mark(desc + 16 * <uint64_t>at, 16 * <uint64_t>(last - at))
        if end <= at:
            self.log.pages.mark(desc, 16 * <uint64_t>end)

    cdef const uint32_t* pushing(self, const uint32_t* id, size_t* n) noexcept nogil:
        """Before a push of these, which are held: what it will publish, in number ``n``."""
        cdef const uint32_t* out = self.will_publish(id, n)
        if self.inflight is not None:
            self.inflight.pushing(out, n[0], self.s.held, self.s.num)
        return out

    cdef void pushed(
        self, const uint32_t* out, size_t published, const uint32_t* id, size_t n, uint32_t before
    ) noexcept nogil:
        """After it; ``before`` is where the next used entry was then."""
        if self.inflight is not None:
            self.inflight.pushed(out, published, self.split.used_idx)
        if self.log is not None:
            self.logged(id, n, before, published != 0)

    def push(self, Batch batch not None, Py_ssize_t start=0, count=None) -> int:
        cdef size_t first = 0
        cdef size_t end = 0
        cdef size_t n
        cdef const uint32_t* id
        cdef const uint32_t* out
        cdef uint32_t before
        self.enter_push()
        batch.window(start, count, &first, &end)
        id = batch.cols.id + first
        n = end - first
        if not n or not self.check(id, n):
            return DeviceQueue.push(self, batch, start, count)
        before = self.used_position()
        out = self.pushing(id, &n)
        try:
            published = DeviceQueue.push(self, batch, start, count)
        except BaseException:
            if self.inflight is not None:
                self.inflight.cancel()
            raise
        self.pushed(out, n, id, end - first, before)
        return published

    def return_(self, Chain chain not None, written=None) -> None:
        cdef uint32_t id = chain.id
        cdef size_t n = 1
        cdef const uint32_t* out
        cdef uint32_t before
        self.enter_push()
        if chain.queue is not self or chain.returned or not self.check(&id, 1):
            DeviceQueue.return_(self, chain, written)
            return
        before = self.used_position()
        out = self.pushing(&id, &n)
        try:
            DeviceQueue.return_(self, chain, written)
        except BaseException:
            if self.inflight is not None:
                self.inflight.cancel()
            raise
        self.pushed(out, n, &id, 1, before)

    # -- without the GIL -------------------------------------------------------------------------

    cdef int pop_burst(self, Batch batch, size_t* n) except -1 nogil:
        """:meth:`pop`, as a result code of the engine."""
        cdef uint32_t pos = self.pack.last_avail_idx
        cdef size_t room = batch.cols.capacity
        cdef bint old = self.left != 0
        cdef int code
        if old:
            room = min(room, <size_t>self.left)
            self.swap_ring(True)
        code = self.pop_plain(batch, room, n)
        if old:
            self.swap_ring(False)
        if n[0]:
            self.popped(batch, n[0], pos)
        return code

    cdef int push_burst(
        self, const uint32_t* id, const uint32_t* written, size_t n
    ) noexcept nogil:
        """:meth:`push` of chains that are held, likewise."""
        cdef size_t published = 0
        cdef size_t count = n
        cdef uint32_t before = self.used_position()
        cdef const uint32_t* out = self.pushing(id, &count)
        cdef int code = self.push_plain(id, written, n, &published)
        if code == VR_OK:
            self.pushed(out, count, id, n, before)
        elif self.inflight is not None:
            self.inflight.cancel()
        return code


cdef class WatchedLoop(QueueLoop):
    """:class:`QueueLoop` for a :class:`WatchedQueue`."""

    def __init__(self, WatchedQueue queue not None, worker, int wake, *, poll=False):
        QueueLoop.__init__(self, queue, worker, wake, poll=poll)
        self.watched = queue

    cdef int pop(self, size_t* n) except -1 nogil:
        return self.watched.pop_burst(self.batch, n)

    cdef int push(self, size_t first, size_t n) except -1 nogil:
        return self.watched.push_burst(
            self.batch.cols.id + first, self.batch.cols.written + first, n
        )

    cdef void asked(self) noexcept nogil:
        if self.watched.log is not None:
            self.watched.note_events()
