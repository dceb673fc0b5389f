"""One queue served by one thread without the GIL: wait for a kick, take a burst, work, tell.

The device gives the work (:class:`BurstWorker`), the transport the descriptors and the thread.
"""

from enum import IntEnum

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport read, write

from virtring.memory.barriers cimport cpu_relax, load16, load32, store32, swap16
from virtring.memory.table cimport guest_table
from virtring.queue.batch cimport Batch
from virtring.queue.device cimport DeviceQueue
from virtring.ring.common cimport VR_OK, batch_cols
from virtring.ring.packed_device cimport (
    packed_device_disable_notify, packed_device_enable_notify, packed_device_need_notify,
    packed_look, packed_word_available,
)
from virtring.ring.split_device cimport (
    split_device_disable_notify, split_device_enable_notify, split_device_need_notify,
)

from virtring.errors import InvalidArgument

cdef extern from *:
    """
    #include <poll.h>
    #include <sys/prctl.h>
    """
    struct pollfd:
        int fd
        short events
        short revents
    int ppoll(pollfd* fds, unsigned long n, const timespec* timeout, const void* mask) nogil
    int prctl(int option, unsigned long value) nogil
    short POLLIN
    int PR_SET_TIMERSLACK

cdef enum:
    STOPPED = 0
    DEAF = 1
    MUTE = 2
    MALFORMED = 3
    FAULT = 4
    GOES_ON = 5
    # A call descriptor that does not work.
    LOST = -2
    # Looks at the ring between two looks at whether to stop.
    LOOKS = 64
    # Requests whose completion the driver does not know of yet, at most, while others come.
    MOST_UNTOLD = 8
    # How long to wait for more of them; and up to where a wait does not sleep.
    SHORTEST_NS = 5000
    LONGEST_NS = 400000
    SPIN_NS = 20000
    MOST_PATIENCE = 256
    # Bytes of data after which the driver is told at once.
    BIG = 131072
    SLACK_NS = 1000


cdef int64_t now_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t>t.tv_sec * 1000000000 + t.tv_nsec


class Ended(IntEnum):
    """Why a :class:`QueueLoop` came back: it was told to stop; no kick can come any more; nobody
    can be told; the driver's request was none."""

    STOPPED = 0
    DEAF = 1
    MUTE = 2
    MALFORMED = 3


cdef class BurstWorker:
    """What a device does with the chains of a burst. ``work`` is called by several threads at once,
    for different queues.

    ``complaint`` says what is wrong with a chain that is no request.
    """

    cdef size_t work(
        self, const guest_table* table, batch_cols* cols, size_t first, size_t end, uint64_t* moved,
        bint* bad
    ) noexcept nogil:
        bad[0] = True
        cols.written[first] = 0
        return 1


cdef class QueueLoop:
    """Serves ``queue`` with ``worker`` in the thread that calls :meth:`run`.

    wake: a descriptor that is readable after :meth:`stop`, so that a sleep ends. poll: look at the
    ring all the time instead of waiting for kicks. Nobody else may use the queue while it runs:
    QueueBusy.

    ``vain``: how often the driver was told later than it could have been, because more requests
    were waited for and did not come.
    """

    def __init__(
        self, DeviceQueue queue not None, BurstWorker worker not None, int wake, *, poll=False
    ):
        if queue.config is None:
            raise InvalidArgument("the queue is not configured")
        self.queue = queue
        self.worker = worker
        self.wake = wake
        self.poll = poll
        self.target = self.patience = 1
        # A chain has as many descriptors as the ring at most, so any chain fits.
        self.batch = Batch(queue.config.size, 2 * queue.config.size)

    def stop(self) -> None:
        """Make :meth:`run`, now or later, come back soon; make ``wake`` readable as well. Any
        thread."""
        store32(&self.stopping, 1)

    def run(self, int kick, int call) -> Ended:
        """Serve until :meth:`stop`, or until it cannot go on.

        kick: descriptor of the driver's notifications, negative to poll. call: where the driver is
        told, negative for nowhere. Both non-blocking. Begins with a look at the ring. MUTE and DEAF
        may be followed by another run.

        Raises BadChain and breaks the queue when the driver wrote nonsense; QueueBroken,
        QueueClosed.
        """
        cdef DeviceQueue queue = self.queue
        cdef int code = VR_OK
        cdef int end
        queue.enter_ring()
        queue.busy = True
        try:
            with nogil:
                end = self.turn(kick, &call, &code)
        finally:
            queue.busy = False
        if end == FAULT:
            queue.break_now(code, False)
        return Ended(end)

    # -- what differs between kinds of queues ----------------------------------------------------

    cdef int pop(self, size_t* n) except -1 nogil:
        """Fill the batch; the engine's result code."""
        return self.queue.pop_plain(self.batch, self.batch.cols.capacity, n)

    cdef int push(self, size_t first, size_t n) except -1 nogil:
        """Complete rows of the batch; the engine's result code."""
        cdef size_t published = 0
        return self.queue.push_plain(
            self.batch.cols.id + first, self.batch.cols.written + first, n, &published
        )

    cdef void asked(self) noexcept nogil:
        """What tells the driver whether to kick was written."""

    # -- the loop --------------------------------------------------------------------------------

    cdef int turn(self, int kick, int* call, int* code) except -1 nogil:
        cdef int end
        # A sleep of some microseconds shall not take the usual 50 more.
        prctl(PR_SET_TIMERSLACK, <unsigned long>SLACK_NS)
        self.disable_notify()
        end = self.look(kick, call, code)
        self.tell(call)
        return end

    cdef int look(self, int kick, int* call, int* code) except -1 nogil:
        cdef bint poll = self.poll or kick < 0
        cdef bint deaf = False
        cdef bint any
        cdef int end
        cdef int _i
        while True:
            any = True
            while any:
                if load32(&self.stopping):
                    # Whoever comes next looks at the ring first, so nothing is asked for here.
                    return STOPPED
                end = self.burst(call, &any, code)
                if end != GOES_ON:
                    return end
                if self.enough():
                    self.tell(call)
            if deaf:
                return DEAF
            if self.untold:
                if self.hold():
                    continue
                self.tell(call)
            if call[0] == LOST:
                return MUTE
            if poll:
                for _i in range(LOOKS):
                    if self.available():
                        break
                    cpu_relax()
                continue
            if self.enable_notify():
                # What was kicked for before is still looked at.
                deaf = not self.wait(kick)
            self.disable_notify()

    cdef bint wait(self, int kick) noexcept nogil:
        """Sleep until a kick or a stop; False when no more kicks can come."""
        cdef pollfd fds[2]
        cdef uint64_t count
        cdef ssize_t got
        fds[0].fd = self.wake
        fds[1].fd = kick
        fds[0].events = fds[1].events = POLLIN
        fds[1].revents = 0
        ppoll(fds, 2, NULL, NULL)
        if not fds[1].revents:
            return True
        got = read(kick, &count, sizeof(count))
        return got > 0 or (got < 0 and (errno == EAGAIN or errno == EINTR))

    cdef int burst(self, int* call, bint* any, int* code) except -1 nogil:
        """Carry out what is available, up to a batch; sets ``any`` when there was something."""
        cdef size_t n = 0
        cdef size_t done = 0
        cdef size_t part
        cdef int64_t now
        cdef bint bad = False
        cdef int fault = self.pop(&n)
        any[0] = n != 0
        if n:
            now = now_ns()
            self.gap += (min(now - self.came, <int64_t>LONGEST_NS) - self.gap) // 8
            self.came = now
        while done < n:
            part = self.worker.work(
                &self.queue.table.table, &self.batch.cols, done, n, &self.moved, &bad
            )
            code[0] = self.push(done, part)
            if code[0] != VR_OK:
                return FAULT
            done += part
            self.untold += <uint32_t>part
            if bad:
                return MALFORMED
            if done < n:
                # Enough for one notification: the driver can go on while we do.
                self.tell(call)
        if fault != VR_OK and n == 0:
            code[0] = fault
            return FAULT
        return GOES_ON

    cdef void tell(self, int* call) noexcept nogil:
        """Notify the driver of what was pushed, if it wants that."""
        cdef uint64_t one = 1
        if self.untold and self.need_notify() and call[0] >= 0:
            if write(call[0], &one, sizeof(one)) < 0 and errno != EAGAIN:
                call[0] = LOST
        self.untold = 0
        self.moved = 0

    cdef bint enough(self) noexcept nogil:
        """Is it time to tell the driver, whatever comes next? Learns for :meth:`hold`."""
        if self.moved >= BIG:
            return True
        if self.untold < self.target:
            return False
        if self.trial:
            # More than before, and they came: go on like that.
            self.trial = False
            self.patience = 1
        self.reached += 1
        if self.reached >= self.patience and self.target < MOST_UNTOLD:
            self.target = min(2 * self.target, <uint32_t>MOST_UNTOLD)
            self.reached = 0
            self.trial = True
        return True

    cdef bint hold(self) noexcept nogil:
        """Before the driver is told of less than enough: wait for more; True when some came.

        A driver with many requests in flight gets one notification for several of them, and its
        kicks are not needed meanwhile; both cost a guest more than the wait. How many can be
        waited for is learned: a wait in vain says how many the driver has in flight. Twice as many
        are tried for now and then, the more rarely the more often that was in vain: a driver with a
        single request is told at once but for one in 256.
        """
        cdef pollfd fd
        cdef timespec step
        cdef int64_t now = now_ns()
        cdef int64_t limit = max(<int64_t>SHORTEST_NS, min(2 * self.gap, <int64_t>LONGEST_NS))
        cdef int64_t deadline = now + limit
        fd.fd = self.wake
        fd.events = POLLIN
        step.tv_sec = 0
        step.tv_nsec = max(limit // 4, <int64_t>SHORTEST_NS)
        while not self.available():
            if now >= deadline or load32(&self.stopping):
                self.target = max(self.untold, <uint32_t>1)
                self.reached = 0
                if self.trial:
                    self.trial = False
                    self.patience = min(4 * self.patience, <uint32_t>MOST_PATIENCE)
                self.vain += 1
                return False
            if self.poll or limit <= SPIN_NS:
                cpu_relax()
            else:
                ppoll(&fd, 1, &step, NULL)
            now = now_ns()
        return True

    cdef bint need_notify(self) noexcept nogil:
        if self.queue.packed:
            return packed_device_need_notify(&self.queue.pack)
        return split_device_need_notify(&self.queue.split)

    cdef void disable_notify(self) noexcept nogil:
        if self.queue.packed:
            packed_device_disable_notify(&self.queue.pack)
        else:
            split_device_disable_notify(&self.queue.split)
        self.asked()

    cdef bint enable_notify(self) noexcept nogil:
        cdef bint asleep
        if self.queue.packed:
            asleep = packed_device_enable_notify(&self.queue.pack)
        else:
            asleep = split_device_enable_notify(&self.queue.split)
        self.asked()
        return asleep

    cdef bint available(self) noexcept nogil:
        """Is there a chain? One look."""
        cdef uint16_t idx
        if self.queue.packed:
            return packed_word_available(&self.queue.pack, packed_look(&self.queue.pack))
        idx = load16(self.queue.split.avail + 2)
        return (swap16(idx) if self.queue.s.swap else idx) != self.queue.split.last_avail_idx
