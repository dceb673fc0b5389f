"""What both directions of a channel's end have in common: memory, peer, life."""

import os
import weakref

from libc.stdint cimport uint32_t, uint64_t

from virtring.memory.barriers cimport load_acquire64, store_release64
from virtring.memory.guest cimport GuestMemory
from virtring.memory.snapshot cimport MemoryTable
from virtring.memory.table cimport PERM_RW

from virtring.channel.layout import BASE, Layout
from virtring.channel.peer import CLOSED, FENCES, OPEN, Peer
from virtring.errors import InvalidArgument, PeerClosed, PeerDied, QueueBroken, QueueClosed
from virtring.memory.region import Region
from virtring.queue.create import RingDevice
from virtring.queue.eventfd import EventFd

cdef enum:
    # Of ChannelEnd.state, besides 0.
    FRESH = 1           # not attached yet: may still be handed to another process
    BROKEN = 2          # the peer wrote nonsense
    SHUT = 3            # closed, or handed over
    FOREIGN = 4         # a fork's copy of an end that the parent uses

cdef extern from "<sys/syscall.h>" nogil:
    long SYS_membarrier
cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...)

cdef enum:
    # Of membarrier(2).
    CMD_GLOBAL_EXPEDITED = 2
    CMD_REGISTER_GLOBAL_EXPEDITED = 4


cdef bint fence_others() noexcept nogil:
    """A full memory barrier in every process that asked for it, as if each had made it itself."""
    return syscall(SYS_membarrier, <long>CMD_GLOBAL_EXPEDITED, <long>0, <long>0) == 0


#: Ends in use, for the child of a fork to let go of.
_attached = weakref.WeakSet()


def _after_fork() -> None:
    cdef ChannelEnd end
    for item in list(_attached):
        end = item
        if end.state == 0 or end.state == BROKEN:
            end.state = FOREIGN
    _attached.clear()


os.register_at_fork(after_in_child=_after_fork)


cdef class Word:
    """The peer's control word, for those who have no pointers."""
    cdef MemoryTable table              # keeps the mapping
    cdef const uint64_t* at

    def __call__(self) -> int:
        return load_acquire64(self.at, True)


cdef Word _word(MemoryTable table, const uint64_t* at):
    cdef Word word = Word()
    word.table = table
    word.at = at
    return word


cdef class ChannelEnd:
    """The part of :class:`Channel` that both directions share."""

    def __cinit__(
        self, region, layout, side, events, *, sock=None, spin_us=None
    ):
        self.state = SHUT
        if not isinstance(region, Region):
            raise InvalidArgument(f"region is a {type(region).__name__}; it takes a Region")
        if not isinstance(layout, Layout):
            raise InvalidArgument(f"layout is a {type(layout).__name__}; it takes a Layout")
        if side not in (0, 1):
            raise InvalidArgument(f"side is {side!r}; it takes 0 or 1")
        events = tuple(events)
        if len(events) != 4 or not all([isinstance(event, EventFd) for event in events]):
            raise InvalidArgument("events takes four EventFd")
        if region.size < layout.size:
            raise InvalidArgument(
                f"a region of {region.size} bytes; {layout} takes {layout.size}"
            )
        self.region = region
        self.layout = layout
        self.side = side
        self.events = events
        self.sock = sock
        self.spin_limit = spin_us
        self.slot_size = layout.slot_size
        self.state = FRESH

    # -- its life ------------------------------------------------------------------------------

    def attach(self) -> None:
        """Make this process the one that uses the end; the first call of any other method does so.

        From then on the end cannot be handed to another process, and the other end notices when
        this process dies. Again is fine. Raises InvalidArgument when another process was first,
        QueueClosed when the end was closed or handed over.
        """
        cdef uint64_t word
        cdef size_t mine, peers
        if self.state == 0:
            return
        if self.state != FRESH:
            self.enter_slowly()
        memory = GuestMemory()
        memory.add_region(BASE, self.region)
        self.memory = memory
        self.base = self.memory.host_of(BASE, self.layout.size, PERM_RW)
        self.table = self.memory.snapshot
        mine = self.layout.control(self.side) - BASE
        peers = self.layout.control(1 - self.side) - BASE
        self.my_word = <uint64_t*>(self.base + mine)
        self.peer_word = <const uint64_t*>(self.base + peers)
        word = load_acquire64(self.my_word, True)
        if word:
            raise InvalidArgument(
                f"end {self.side} of the channel is used by process {word >> 32} already"
            )
        self.creator = os.getpid()
        # Whoever can be fenced can fence; where the kernel cannot, each send makes its own barrier.
        self.fenced = syscall(
            SYS_membarrier, <long>CMD_REGISTER_GLOBAL_EXPEDITED, <long>0, <long>0
        ) == 0
        state = OPEN | FENCES if self.fenced else OPEN
        store_release64(self.my_word, (<uint64_t>self.creator << 32) | <uint32_t>state, True)
        self.peer = Peer(_word(self.table, self.peer_word), self.sock)
        self.attach_queues(RingDevice(self.memory, self.layout.ring(0).features))
        self.state = 0
        _attached.add(self)
        # The peer may sleep already: it learns whom to look after, and asks again to be woken by
        # the ring that was cleared just now.
        self.signal_peer()

    def signal_peer(self) -> None:
        """Wake whoever waits on the other end, so that it looks at the channel again."""
        self.events[2 * self.side].signal()
        self.events[2 * (1 - self.side) + 1].signal()

    def close(self) -> None:
        """Say to the other end that nothing more comes, and let go of the memory. Again is fine.

        What was sent can still be received there. Loans that were not committed are lost; views of
        messages stay readable until they are dropped. Calls that wait in other threads raise
        QueueClosed.
        """
        cdef int was = self.state
        if was == SHUT:
            return
        self.state = SHUT
        if was == FRESH:
            self.region = self.events = None
            return
        if was != FOREIGN and self.creator == os.getpid():
            # Release: everything sent is visible before the word.
            store_release64(self.my_word, (<uint64_t>self.creator << 32) | <uint32_t>CLOSED, True)
            self.signal_peer()
        self.drop_queues()
        self.peer.close()
        self.region = self.events = None
        self.memory = None

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.close()

    def __del__(self):
        self.close()

    def __repr__(self):
        state = {0: "open", FRESH: "new", BROKEN: "broken", SHUT: "closed", FOREIGN: "forked"}
        return (
            f"<{type(self).__name__} end {self.side}, {self.layout.slots} x"
            f" {self.layout.slot_size}, {state[self.state]}>"
        )

    @property
    def closed(self) -> bool:
        """Whether this end was closed or handed to another process."""
        return self.state == SHUT

    @property
    def slots(self) -> int:
        """Messages that fit in each direction, at least."""
        return self.layout.slots

    @property
    def max_size(self) -> int:
        """Longest message in bytes."""
        return self.layout.slot_size

    @property
    def peer_alive(self) -> bool:
        """Whether the other end is neither closed nor its process gone; a system call.

        True as long as nobody uses the other end yet.
        """
        if self.state:
            self.enter_slowly()
        try:
            self.peer.check()
        except PeerClosed:
            return False
        except PeerDied:
            self.dead = True
            return False
        return True

    # -- to another process --------------------------------------------------------------------

    def hand_over(self):
        """The parts another process makes this end of: (region, layout, side, events); closes it.

        Raises InvalidArgument when the end is in use: only one that was never used can move.
        """
        if self.state == SHUT:
            self.enter_slowly()
        if self.state != FRESH:
            raise InvalidArgument("this end of the channel is in use; only a new one can move")
        parts = self.region, self.layout, self.side, self.events
        self.state = SHUT
        self.region = self.events = None
        return parts

    def __reduce__(self):
        cls = type(self)
        spin_us = self.spin_limit
        region, layout, side, events = self.hand_over()
        return _unpickle, (cls, region, layout.slots, layout.slot_size, side, events, spin_us)

    # -- for the directions --------------------------------------------------------------------

    cdef int enter_slowly(self) except -1:
        """Why the end is not ready; attaches it if that is all."""
        if self.state == FRESH:
            self.attach()
            return 0
        if self.state == SHUT:
            raise QueueClosed("this end of the channel is closed")
        if self.state == FOREIGN:
            raise QueueClosed(
                f"this end of the channel belongs to process {self.creator}, which forked; only an"
                " end that was not used yet can be used by the child"
            )
        if self.state == BROKEN:
            raise QueueBroken(f"the channel is broken: {self.error}")
        return 0

    cdef int look_at_peer(self) except -1:
        """Raise what is known of a peer that is gone, without a system call."""
        if load_acquire64(self.peer_word, True) & 0xFF == <uint64_t>CLOSED:
            raise PeerClosed("the other end of the channel was closed")
        if self.dead:
            raise PeerDied("the process on the other end of the channel is gone")
        return 0

    cdef int break_channel(self, object error) except -1:
        self.error = error
        self.state = BROKEN
        raise error

    cdef int attach_queues(self, object vdev) except -1:
        return 0

    cdef int drop_queues(self) except -1:
        return 0


def _unpickle(cls, region, slots, slot_size, side, events, spin_us):
    end = cls(region, Layout(slots, slot_size), side, events, spin_us=spin_us)
    end.attach()
    return end
