"""Busy polling of ring words, without the GIL, until a deadline.

The other sides' words are all that is read. Typed views and the memory's hold are kept for as long
as the loop runs, so a close from another thread cannot unmap what it reads.
"""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport int64_t, uint16_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from virtring.memory.barriers cimport cpu_relax, load16, swap16
from virtring.queue.device cimport DeviceQueue
from virtring.queue.driver cimport Virtqueue
from virtring.queue.side cimport QueueSide
from virtring.ring.packed_common cimport AVAIL_USED
from virtring.spec.ring cimport vring_packed_desc

from virtring.errors import InvalidArgument

cdef enum:
    # Polls between two looks at the clock, which costs about as much as one or two of them.
    POLLS = 16
    # How long at most without a look at signals (Ctrl-C) and at the queue's state.
    SLICE_NS = 1_000_000

cdef double MAX_US = 1e12


cdef int64_t now_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t>t.tv_sec * 1_000_000_000 + t.tv_nsec


cdef struct ring_word:
    # Moved when ``*word & mask`` differs from value; without ``differ``, when it is that.
    const char* word
    uint16_t mask
    uint16_t value
    bint differ


cdef bint poll_words(const ring_word* words, size_t n, int64_t deadline) noexcept nogil:
    """Until one of them has moved; False: too late."""
    cdef const ring_word* w
    cdef size_t i
    cdef int _look
    while True:
        for _look in range(POLLS):
            for i in range(n):
                w = words + i
                if ((load16(w.word) & w.mask) != w.value) == w.differ:
                    return True
            cpu_relax()
        if now_ns() >= deadline:
            return False


@cython.final
cdef class Watched:
    """The word to watch, and what keeps it mapped."""
    cdef ring_word at
    cdef object guard
    cdef uint16_t[::1] index
    cdef vring_packed_desc[::1] desc

    cdef int at_index(self, QueueSide side, uint16_t[::1] area, uint16_t last, bint swap) except -1:
        """A split ring's index, until it moves from ``last``."""
        self.guard = side.guard
        self.index = area
        self.at.word = <const char*>&area[1]
        self.at.mask = 0xFFFF
        self.at.value = swap16(last) if swap else last
        self.at.differ = True
        return 0

    cdef int at_desc(self, QueueSide side, uint16_t idx, uint16_t flags) except -1:
        """A packed descriptor, until its AVAIL and USED bits are ``flags``."""
        self.guard = side.guard
        self.desc = side.packed_desc
        self.at.word = <const char*>&self.desc[idx] + 14
        self.at.mask = AVAIL_USED
        self.at.value = flags
        self.at.differ = False
        return 0


cdef Watched watch_available(DeviceQueue dq):
    cdef Watched watched = Watched()
    if dq.packed:
        watched.at_desc(dq, dq.pack.last_avail_idx, dq.pack.avail_flags)
    else:
        watched.at_index(dq, dq.avail, dq.split.last_avail_idx, dq.s.swap)
    return watched


cdef int64_t deadline_of(double microseconds) except -1:
    if not 0 <= microseconds <= MAX_US:
        raise InvalidArgument(f"{microseconds} microseconds; it takes 0 to {MAX_US:.0f}")
    return now_ns() + <int64_t>(microseconds * 1000)


def spin_used(Virtqueue vq not None, double microseconds) -> bool:
    """Poll, without the GIL, until a used buffer is there; False when the time ran out.

    ``microseconds`` is 0 to 10**12; 0 is a single look. Raises QueueClosed and QueueBroken.
    """
    cdef int64_t deadline = deadline_of(microseconds)
    cdef Watched watched
    cdef int64_t until
    cdef bint found
    while True:
        if vq.more_used:
            return True
        until = now_ns()
        if until >= deadline:
            return False
        # The position is read anew: while we were out, another thread may have taken buffers.
        watched = Watched()
        if vq.packed:
            watched.at_desc(vq, vq.pack.last_used_idx, vq.pack.used_flags)
        else:
            watched.at_index(vq, vq.used, vq.split.last_used_idx, vq.s.swap)
        until = min(deadline, until + SLICE_NS)
        with nogil:
            found = poll_words(&watched.at, 1, until)
        if not found:
            PyErr_CheckSignals()


def spin_available(DeviceQueue dq not None, double microseconds) -> bool:
    """Poll, without the GIL, until a chain is available; False when the time ran out.

    As :func:`spin_used`; InvalidArgument also before :meth:`DeviceQueue.configure`.
    """
    cdef int64_t deadline = deadline_of(microseconds)
    return dq.more_available or spin_until([dq], deadline)


def spin_any_available(queues, double microseconds) -> bool:
    """As :func:`spin_available`, of a sequence of DeviceQueues: until one of them has a chain.

    InvalidArgument also when the sequence is empty.
    """
    cdef int64_t deadline = deadline_of(microseconds)
    cdef list all_of = list(queues)
    if not all_of:
        raise InvalidArgument("no queue to look at; it takes at least one")
    return spin_until(all_of, deadline)


cdef bint spin_until(list queues, int64_t deadline) except -1:
    cdef size_t n = len(queues)
    cdef ring_word* words = <ring_word*>PyMem_Malloc(n * sizeof(ring_word))
    cdef list watched
    cdef DeviceQueue dq
    cdef int64_t until
    cdef bint found
    if words == NULL:
        raise MemoryError
    try:
        while True:
            for dq in queues:
                if dq.more_available:
                    return True
            until = now_ns()
            if until >= deadline:
                return False
            watched = [watch_available(dq) for dq in queues]
            for i in range(n):
                words[i] = (<Watched>watched[i]).at
            until = min(deadline, until + SLICE_NS)
            with nogil:
                found = poll_words(words, n, until)
            if not found:
                PyErr_CheckSignals()
    finally:
        PyMem_Free(words)
