"""One queue served by one thread without the GIL: wait for a kick, take a burst, work, tell.

The device gives the work (:class:`BurstWorker`), the transport the descriptors and the thread.
"""

from enum import IntEnum

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint16_t, uint32_t, uint64_t
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

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int c_poll "poll"(pollfd* fds, unsigned long n, int timeout)
    short POLLIN

cdef enum:
    STOPPED = 0
    DEAF = 1
    MUTE = 2
    MALFORMED = 3
    FAULT = 4
    GOES_ON = 5
    # Looks at the ring between two looks at whether to stop.
    LOOKS = 64


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
        self, const guest_table* table, batch_cols* cols, size_t first, size_t end, bint* bad
    ) noexcept nogil:
        bad[0] = True
        cols.written[first] = 0
        return 1


cdef class QueueLoop:
    """Serves ``queue`` with ``worker`` in the thread that calls :meth:`run`.

    wake: a descriptor that is readable after :meth:`stop`, so that a sleep ends. poll: look at the
    ring all the time instead of waiting for kicks. Nobody else may use the queue while it runs:
    QueueBusy.
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
                end = self.turn(kick, call, &code)
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

    cdef int turn(self, int kick, int call, int* code) except -1 nogil:
        cdef pollfd fds[2]
        cdef uint64_t count
        cdef ssize_t got
        cdef bint any
        cdef bint deaf = False
        cdef int end
        cdef int _i
        cdef bint poll = self.poll or kick < 0
        fds[0].fd = self.wake
        fds[1].fd = kick
        fds[0].events = fds[1].events = POLLIN
        self.disable_notify()
        while True:
            any = True
            while any:
                if load32(&self.stopping):
                    # Whoever comes next looks at the ring first, so nothing is asked for here.
                    return STOPPED
                end = self.burst(call, &any, code)
                if end != GOES_ON:
                    return end
            if deaf:
                return DEAF
            if poll:
                for _i in range(LOOKS):
                    if self.available():
                        break
                    cpu_relax()
                continue
            if self.enable_notify():
                fds[1].revents = 0
                c_poll(fds, 2, -1)
                if fds[1].revents:
                    got = read(kick, &count, sizeof(count))
                    # What was kicked for before is still looked at.
                    deaf = got == 0 or (got < 0 and errno != EAGAIN and errno != EINTR)
            self.disable_notify()

    cdef int burst(self, int call, bint* any, int* code) except -1 nogil:
        """Carry out what is available, up to a batch; sets ``any`` when there was something."""
        cdef uint64_t one = 1
        cdef size_t n = 0
        cdef size_t done = 0
        cdef size_t part
        cdef bint bad = False
        cdef bint mute = False
        cdef int fault = self.pop(&n)
        any[0] = n != 0
        while done < n:
            part = self.worker.work(&self.queue.table.table, &self.batch.cols, done, n, &bad)
            code[0] = self.push(done, part)
            if code[0] != VR_OK:
                return FAULT
            done += part
            if self.need_notify() and call >= 0:
                if write(call, &one, sizeof(one)) < 0 and errno != EAGAIN:
                    mute = True
            if bad:
                return MALFORMED
        if mute:
            return MUTE
        if fault != VR_OK and n == 0:
            code[0] = fault
            return FAULT
        return GOES_ON

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
