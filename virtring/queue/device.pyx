# cython: binding=False, always_allow_keywords=False, embedsignature.format=clinic
"""The device side of a queue: pop chains, do the work, push them back."""

cimport cython
from cpython.long cimport PyLong_AsLongLongAndOverflow
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

from virtring.memory.barriers cimport load16, swap16
from virtring.queue.chain cimport Chain, make_chain
from virtring.ring.common cimport VR_BATCH_ROOM, VR_CHAIN_ADDRESS, VR_OK
from virtring.ring.device cimport (
    ONE_DONE, ONE_LEFT, ONE_NONE, device_pop, device_pop_one, device_push, device_push_one,
)
from virtring.ring.packed_common cimport AVAIL_USED
from virtring.ring.packed_device cimport (
    packed_device_disable_notify, packed_device_enable_notify, packed_device_need_notify,
    packed_look, packed_word_available,
)
from virtring.ring.split_device cimport (
    split_device_disable_notify, split_device_enable_notify, split_device_need_notify,
    split_device_ready,
)
from virtring.spec.ring cimport VRING_PACKED_DESC_F_AVAIL, vring_desc

from virtring.errors import InvalidArgument

cdef enum:
    # Below this many rows, giving the GIL away costs more than the rows take.
    NOGIL_ROWS = 512


cdef class DeviceQueue(DeviceRing):
    """The device side of one queue, split or packed (Fuchsia VirtioQueue, Linux vringh).

    ``memory`` is the guest memory that the driver's addresses point into. ``config`` is a
    :class:`QueueConfig`; without one, call :meth:`configure` before anything else. ``call(dq)`` is
    what :meth:`signal` does to interrupt the driver. ``weak_barriers=False`` orders accesses as
    for real hardware; ORDER_PLATFORM among the features does so too.

    Everything the driver wrote is checked. What cannot be right raises BadChain and breaks the
    queue; chains popped before stay valid and can be pushed.
    """

    def __cinit__(self, memory, config=None, *, weak_barriers=True, call=None):
        if call is not None and not callable(call):
            raise InvalidArgument(
                f"call is a {type(call).__name__}; it takes a function of the queue or an EventFd"
            )
        self.memory = memory
        self.weak_asked = weak_barriers
        self.call_cb = call
        if config is not None:
            self.configure(config)

    # -- batches -------------------------------------------------------------------------------

    @cython.final
    cdef size_t pop_rows(self, Batch batch, size_t room) except? 0:
        cdef size_t popped = 0
        cdef int code
        cdef uint64_t tried = 0
        cdef unsigned long generation = self.generation
        cdef bint again = False
        cdef bint found
        while True:
            if room < NOGIL_ROWS:
                code = self.pop_plain(batch, room, &popped)
            else:
                self.busy = True
                with nogil:
                    code = self.pop_plain(batch, room, &popped)
                self.busy = False
            if code != VR_CHAIN_ADDRESS or popped:
                break
            # An I/O TLB may not have been asked for this address yet: ask once for each.
            if again and tried == <uint64_t>self.fault.val:
                break
            again = True
            tried = <uint64_t>self.fault.val
            found = self.memory.resolve_miss(
                tried, <uint64_t>self.fault.aux, self.fault.perm
            )
            # The handler is the caller's code: the ring may be another by now, or none.
            self.enter_ring()
            if self.generation != generation:
                return 0
            if not found:
                break
        if code == VR_OK or (popped and (code == VR_BATCH_ROOM or code == VR_CHAIN_ADDRESS)):
            # What stopped the batch waits for the next call, with the popped ones out of the way.
            return popped
        if code == VR_BATCH_ROOM:
            self.raise_fault(code)
        self.break_now(code, popped != 0)
        return popped

    @cython.final
    cdef int pop_plain(self, Batch batch, size_t room, size_t* popped) noexcept nogil:
        if self.packed:
            return device_pop(&self.pack, &self.table.table, &batch.cols, room, popped)
        return device_pop(&self.split, &self.table.table, &batch.cols, room, popped)

    @cython.final
    cdef int push_plain(
        self, const uint32_t* id, const uint32_t* written, size_t n, size_t* published
    ) noexcept nogil:
        if self.packed:
            return device_push(&self.pack, id, written, n, published)
        return device_push(&self.split, id, written, n, published)

    def pop(self, Batch batch not None, room=None) -> int:
        """Pop up to ``room`` (by default ``batch.capacity``) available chains; how many there were.

        Sets ``id``, ``offsets``, ``addr``, ``len``, ``flags`` and ``count`` of the batch. Every
        descriptor was checked against the guest memory; readable ones come first in a row.

        Raises BadChain, and breaks the queue, for a chain that cannot be right; if chains were
        popped before it, they are returned and it is raised with the next call. InvalidArgument
        when not even the next chain has room in the batch's descriptors; it can be popped later.
        """
        cdef size_t limit = batch.cols.capacity
        self.enter_ring()
        if room is not None:
            if not 0 <= room <= batch.cols.capacity:
                raise InvalidArgument(f"room {room}: it takes 0 to {batch.cols.capacity}")
            limit = room
        batch.rows = 0
        batch.rows = self.pop_rows(batch, limit)
        return batch.rows

    @cython.final
    cdef size_t push_rows(
        self, const uint32_t* id, const uint32_t* written, size_t n, size_t row
    ) except? 0:
        """Push n rows; ``row`` is the number of the first one, for messages."""
        cdef size_t published = 0
        cdef int code
        if n < NOGIL_ROWS:
            code = self.push_plain(id, written, n, &published)
        else:
            self.busy = True
            with nogil:
                code = self.push_plain(id, written, n, &published)
            self.busy = False
        if code != VR_OK:
            self.fault.pos += row
            self.raise_fault(code)
        return published

    def push(self, Batch batch not None, Py_ssize_t start=0, count=None) -> int:
        """Complete the chains of rows ``start`` to ``start + count`` (default: all from start on).

        ``id`` names each chain, ``written`` the bytes the device wrote into it. All become visible
        to the driver at once; call :meth:`signal` afterwards. Returns how many were published:
        with IN_ORDER a chain waits until those popped before it are complete.

        Raises InvalidArgument for an id that is not held or a length that is too large; then
        nothing was pushed. Allowed on a broken queue.
        """
        cdef size_t first = 0
        cdef size_t end = 0
        self.enter_push()
        batch.window(start, count, &first, &end)
        if first == end:
            return 0
        return self.push_rows(
            batch.cols.id + first, batch.cols.written + first, end - first, first
        )

    cdef int refuse_unset(self) except -1:
        if self.closed:
            self.refuse()
        raise InvalidArgument("the queue is not configured; call configure() first")

    # -- chains --------------------------------------------------------------------------------

    def next_chain(self):
        """The next available :class:`Chain`, or None when there is none.

        Raises as :meth:`pop`. (Fuchsia VirtioQueue::NextChain)
        """
        cdef vring_desc desc
        cdef uint32_t id = 0
        cdef uint32_t n = 1
        cdef const vring_desc* descs = &desc
        cdef int got
        self.enter_ring()
        if self.packed:
            got = device_pop_one(&self.pack, &desc, &id)
        else:
            got = device_pop_one(&self.split, &desc, &id)
        if got == ONE_LEFT:
            got = ONE_DONE if self.pop_rows(self.one, 1) else ONE_NONE
            descs = self.one.cols.desc
            n = self.one.cols.offsets[1]
            id = self.one.cols.id[0]
        if got == ONE_NONE:
            return None
        return make_chain(self, descs, n, id, self.generation)

    def return_(self, Chain chain not None, written=None) -> None:
        """Complete a chain; the driver sees it at once. :meth:`signal` tells it.

        ``written`` is the number of bytes the device wrote, by default what ``chain.write`` wrote.
        Raises InvalidArgument for a chain that was returned before or belongs to another queue or
        to the ring before a reset, or a length that is too large. (Fuchsia VirtioQueue::Return)
        """
        cdef uint32_t id = chain.id
        cdef uint32_t length = chain.wrote
        cdef int64_t value
        cdef int over = 0
        cdef int done
        self.enter_push()
        if chain.queue is not self or chain.generation != self.generation or chain.returned:
            raise InvalidArgument(
                f"{self.config.label}: {chain!r} is not a chain that this queue has out"
            )
        if written is not None:
            value = PyLong_AsLongLongAndOverflow(written, &over)
            if over or not 0 <= value <= 0xFFFFFFFF:
                raise InvalidArgument(f"written is {written}; it takes 0 to 2**32 - 1")
            length = <uint32_t>value
        if self.packed:
            done = device_push_one(&self.pack, id, length)
        else:
            done = device_push_one(&self.split, id, length)
        if done != ONE_DONE:
            self.push_rows(&id, &length, 1, 0)
        chain.returned = True

    # -- notifications -------------------------------------------------------------------------

    def need_notify(self) -> bool:
        """Whether the driver wants an interrupt for what was used since the last time.

        Has a full memory barrier. (Linux ``vhost_notify``, vringh_need_notify)
        """
        self.enter_push()
        return self.need_notify_plain()

    @cython.final
    cdef bint need_notify_plain(self) noexcept nogil:
        if self.packed:
            return packed_device_need_notify(&self.pack)
        return split_device_need_notify(&self.split)

    def signal(self) -> bool:
        """Interrupt the driver by ``call(dq)`` if it :meth:`need_notify`; whether it did.

        (Linux ``vhost_signal``)
        """
        if not self.need_notify():
            return False
        if self.call_cb is not None:
            self.call_cb(self)
        return True

    def disable_notify(self) -> None:
        """Ask the driver for no kicks; a hint. (Linux ``vringh_notify_disable``)"""
        self.enter_ring()
        if self.packed:
            packed_device_disable_notify(&self.pack)
        else:
            split_device_disable_notify(&self.split)

    def enable_notify(self) -> bool:
        """Ask for a kick at the next buffer; False when one is there already, which may not kick.

        Has a full memory barrier. (Linux ``vringh_notify_enable``)
        """
        self.enter_ring()
        if self.packed:
            return packed_device_enable_notify(&self.pack)
        return split_device_enable_notify(&self.split)

    @property
    def more_available(self) -> bool:
        """Whether a chain is waiting to be popped; says nothing of whether it is sound."""
        cdef uint16_t idx
        self.enter_ring()
        if self.packed:
            return packed_word_available(&self.pack, packed_look(&self.pack))
        if split_device_ready(&self.split):
            return True
        idx = load16(self.split.avail + 2)
        return (swap16(idx) if self.s.swap else idx) != self.split.last_avail_idx

    # -- state ---------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Entries of the ring, 0 before :meth:`configure`."""
        return self.config.size if self.config is not None else 0

    @property
    def in_flight(self) -> int:
        """Chains popped and not yet pushed (with IN_ORDER: not yet published)."""
        return self.s.in_flight

    @property
    def is_broken(self) -> bool:
        """Whether the driver wrote something that cannot be right."""
        return self.broken

    @property
    def position(self) -> int:
        """Where the device is in the ring, as vhost's ``VRING_BASE`` says it.

        Split: the next avail index. Packed: the next available position and its wrap counter in
        bits 0 to 15, the next used position and its wrap counter in bits 16 to 31.
        """
        cdef uint32_t avail
        cdef uint32_t used
        self.enter_push()
        if not self.packed:
            return self.split.last_avail_idx
        avail = self.pack.last_avail_idx | (
            <uint32_t>((self.pack.avail_flags & VRING_PACKED_DESC_F_AVAIL) != 0) << 15
        )
        used = self.pack.used_idx | (<uint32_t>(self.pack.used_flags != 0) << 15)
        return avail | (used << 16)

    @cython.always_allow_keywords(True)
    def restore(self, position) -> None:
        """Go on where :attr:`position` was taken; chains that were out then are not popped again.

        A split ring's used index is read from the ring. Raises InvalidArgument for a position that
        the ring does not have, or while chains are held.
        """
        cdef uint32_t num = self.s.num
        cdef uint32_t limit
        self.enter_push()
        limit = 0xFFFFFFFF if self.packed else 0xFFFF
        if self.s.in_flight:
            raise InvalidArgument(
                f"{self.config.label}: {self.s.in_flight} chains are held; push them first"
            )
        if not isinstance(position, int) or not 0 <= position <= limit:
            raise InvalidArgument(
                f"{self.config.label}: {position!r} is not a position of this ring"
            )
        if self.packed and ((position & 0x7FFF) >= num or ((position >> 16) & 0x7FFF) >= num):
            raise InvalidArgument(
                f"{self.config.label}: position {position:#x} is beyond the ring's {num} entries"
            )
        self.clear_state()
        # Nobody knows what the driver was told of: notify it once (vhost: signalled_used_valid).
        self.s.num_added = 0x10000
        if self.packed:
            self.pack.last_avail_idx = position & 0x7FFF
            self.pack.avail_flags = VRING_PACKED_DESC_F_AVAIL
            if not position & 0x8000:
                self.pack.avail_flags ^= AVAIL_USED
            self.pack.used_idx = (position >> 16) & 0x7FFF
            self.pack.used_flags = AVAIL_USED if position >> 31 else 0
            self.pack.group_idx = self.pack.used_idx
            self.pack.group_flags = self.pack.used_flags
        else:
            self.split.last_avail_idx = self.split.avail_idx = position
            # Ours, but the driver can write there too: a wrong value harms only the driver.
            self.split.used_idx = load16(self.split.used + 2)
            if self.s.swap:
                self.split.used_idx = swap16(self.split.used_idx)
            self.split.group_idx = self.split.used_idx
