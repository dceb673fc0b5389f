# cython: binding=False, always_allow_keywords=False, embedsignature.format=clinic
"""The driver side of a queue: Linux's virtqueue calls, one at a time and in batches."""

cimport cython
from libc.stdint cimport uint32_t, uint64_t

from virtring.queue.driver_add cimport NOGIL_ROWS
from virtring.ring.common cimport VR_OK
from virtring.ring.driver cimport driver_get
from virtring.ring.packed_driver cimport (
    packed_disable_cb, packed_enable_cb_delayed, packed_enable_cb_prepare, packed_off_wrap,
    packed_poll, packed_used_at,
)
from virtring.ring.split_driver cimport (
    split_disable_cb, split_enable_cb_delayed, split_enable_cb_prepare, split_poll,
)
from virtring.spec.ring cimport VRING_DESC_F_WRITE

from virtring.errors import InvalidArgument, NotSupported, QueueClosed

# "The token is the buffer itself."
cdef object SAME = object()


cdef class Virtqueue(DriverAdd):
    """The driver side of one queue (Linux ``struct virtqueue``), split or packed.

    Made by :func:`vring_create_virtqueue` or :func:`vring_new_virtqueue`; the calls have Linux's
    names without ``virtqueue_``.

    *Buffers* (``sg``) are :class:`Buffer` objects of a pool, or any contiguous object with the
    buffer protocol inside the guest memory (memoryview, numpy array), or a list of those. The
    ``premapped`` calls take ``(guest address, length in bytes)`` pairs.

    *Tokens* (``data``) are any objects but None, by default the buffer itself; :meth:`get_buf`
    gives them back. The same object cannot stand for two buffers in flight. Batches have uint64
    tokens. Both may be mixed on one queue: :meth:`get_buf` gives the number of a buffer that came
    from a batch, :meth:`get_buf_batch` puts an object into ``batch.objects``.
    """

    def __cinit__(
        self, memory, config, *, vdev=None, weak_barriers=True, context=False, notify=None,
        callback=None, num_max=0, vring_align=0, blocks=()
    ):
        for what, given in (("notify", notify), ("callback", callback)):
            if given is not None and not callable(given):
                raise InvalidArgument(
                    f"{what} is a {type(given).__name__}; it takes a function of the queue or an"
                    " EventFd"
                )
        self.memory = memory
        self.vdev = vdev
        self.weak_barriers = weak_barriers
        self.context = context
        self.notify_cb = notify
        self.callback = callback
        self.callbacks = callback is not None
        self.num_max = num_max or config.size
        self.vring_align = vring_align
        self.setup(config, list(blocks))

    # -- one at a time: not in a base class, because the interpreter calls a class's own faster ----

    def add_outbuf(self, sg, data=SAME) -> None:
        """Add a buffer, or a list of them, for the device to read. (``virtqueue_add_outbuf``)"""
        if type(sg) is list or type(sg) is tuple:
            self.add_chain(sg, (), sg if data is SAME else data, None, False, False)
        else:
            self.add_one(sg, 0, sg if data is SAME else data, None)

    def add_inbuf(self, sg, data=SAME) -> None:
        """Add a buffer, or a list of them, for the device to write. (``virtqueue_add_inbuf``)"""
        if type(sg) is list or type(sg) is tuple:
            self.add_chain((), sg, sg if data is SAME else data, None, False, False)
        else:
            self.add_one(sg, VRING_DESC_F_WRITE, sg if data is SAME else data, None)

    def kick_prepare(self) -> bool:
        """Whether the device wants to be told of what was added since the last time.

        If so, :meth:`notify` it; the two are apart so that a lock can be left in between. Has a
        full memory barrier. (Linux ``virtqueue_kick_prepare``)
        """
        self.enter()
        return self.wants_kick()

    # -- taking back ---------------------------------------------------------------------------

    def get_buf(self):
        """Next used buffer as ``(token, written)``, or None when there is none.

        ``written`` is the number of bytes the device wrote, never more than it could. Raises
        BadUsedRing (the queue is broken then) when the device named an id that is out of range or
        not in flight; QueueBroken on a broken queue. (Linux ``virtqueue_get_buf``)
        """
        cdef uint64_t token = 0
        cdef uint32_t written = 0
        cdef object data
        self.enter()
        if not self.get_one(&token, &written):
            return None
        if self.n_objects:
            data = self.recall(self.s.last_id)
            if data is not None:
                return data, written
        return token, written

    def get_buf_ctx(self):
        """As :meth:`get_buf`, as ``(token, written, ctx)``. (Linux ``virtqueue_get_buf_ctx``)"""
        self.last_context = None
        taken = self.get_buf()
        if taken is None:
            return None
        ctx, self.last_context = self.last_context, None
        return (*taken, ctx)

    def get_buf_batch(self, Batch batch not None, room=None) -> int:
        """Take up to ``room`` (by default ``batch.capacity``) used buffers; how many there were.

        Sets ``token``, ``written`` and ``count`` of the batch, and ``objects`` for buffers that
        have an object as token. A fault of the device breaks the queue; it is raised now when it
        is the first thing met, else the buffers before it are returned and it is raised next time.
        """
        cdef size_t limit = batch.cols.capacity
        cdef size_t taken = 0
        cdef int code = VR_OK
        cdef object data
        self.enter()
        if room is not None:
            if not 0 <= room <= batch.cols.capacity:
                raise InvalidArgument(f"room {room}: it takes 0 to {batch.cols.capacity}")
            limit = room
        if batch.objects:
            batch.objects.clear()
        if self.n_objects:
            while taken < limit:
                try:
                    if not self.get_one(batch.cols.token + taken, batch.cols.written + taken):
                        break
                except Exception as error:
                    if taken == 0:
                        raise
                    self.pending = error
                    break
                data = self.recall(self.s.last_id)
                if data is not None:
                    batch.objects[taken] = data
                taken += 1
            batch.rows = taken
            return taken
        if limit < NOGIL_ROWS:
            code = self.get_plain(batch, limit, &taken)
        else:
            self.busy = True
            with nogil:
                code = self.get_plain(batch, limit, &taken)
            self.busy = False
        batch.rows = taken
        if code != VR_OK:
            self.break_now(code, taken != 0)
        return taken

    @cython.final
    cdef int get_plain(self, Batch batch, size_t room, size_t* taken) noexcept nogil:
        if self.packed:
            return driver_get(&self.pack, batch.cols.token, batch.cols.written, room, taken)
        return driver_get(&self.split, batch.cols.token, batch.cols.written, room, taken)

    # -- callbacks -----------------------------------------------------------------------------

    def disable_cb(self) -> None:
        """Ask the device for no notifications; a hint, they may still come.

        (Linux ``virtqueue_disable_cb``)
        """
        self.enter()
        if self.packed:
            packed_disable_cb(&self.pack)
        else:
            split_disable_cb(&self.split)

    def enable_cb_prepare(self) -> int:
        """Ask for notifications again; the value is for :meth:`poll`.

        (Linux ``virtqueue_enable_cb_prepare``)
        """
        self.enter()
        self.s.event_triggered = False
        if self.packed:
            return packed_enable_cb_prepare(&self.pack)
        return split_enable_cb_prepare(&self.split)

    @cython.always_allow_keywords(True)
    def poll(self, last_used_idx) -> bool:
        """Whether something was used since :meth:`enable_cb_prepare` gave ``last_used_idx``.

        Has a full memory barrier. (Linux ``virtqueue_poll``)
        """
        cdef uint32_t last
        self.enter()
        if not 0 <= last_used_idx <= 0xFFFF or (
            self.packed and (last_used_idx & 0x7FFF) >= self.s.num
        ):
            raise InvalidArgument(
                f"{self.config.label}: {last_used_idx} is not a value of enable_cb_prepare()"
            )
        last = last_used_idx
        if self.packed:
            return packed_poll(&self.pack, last)
        return split_poll(&self.split, last)

    def enable_cb(self) -> bool:
        """Ask for notifications again; False when a used buffer is there already, which may not be
        notified. (Linux ``virtqueue_enable_cb``)
        """
        return not self.poll(self.enable_cb_prepare())

    def enable_cb_delayed(self) -> bool:
        """As :meth:`enable_cb`, but a notification may wait until most of what is in flight was
        used. (Linux ``virtqueue_enable_cb_delayed``)
        """
        self.enter()
        self.s.event_triggered = False
        if self.packed:
            return packed_enable_cb_delayed(&self.pack)
        return split_enable_cb_delayed(&self.split)

    def vring_interrupt(self) -> bool:
        """The device has signalled: call ``callback(vq)`` if something was used.

        False when nothing was (a shared interrupt, Linux's IRQ_NONE). While another thread is
        inside a call nobody can look: then the callback, which waits for that thread, is called
        all the same. (Linux ``vring_interrupt``)
        """
        if self.broken or self.closed:
            return False
        # While another thread is inside without the GIL nobody can look; one call too many does no
        # harm, one too few may be the last.
        if not self.busy and not self.more_used:
            return False
        if self.s.event_idx:
            self.s.event_triggered = True
        if self.callback is not None:
            self.callback(self)
        return True

    @property
    def more_used(self) -> bool:
        """Whether a used buffer is waiting. (Linux ``more_used``)"""
        self.enter()
        if self.packed:
            return self.s.group or packed_used_at(&self.pack, packed_off_wrap(&self.pack, 0))
        return split_poll(&self.split, self.split.last_used_idx)

    # -- state ---------------------------------------------------------------------------------

    @property
    def num_free(self) -> int:
        """Free descriptors. (Linux ``vq->num_free``)"""
        return self.s.num_free

    @property
    def in_flight(self) -> int:
        """Buffers added and not yet taken back."""
        return self.s.in_flight

    @property
    def excess(self) -> int:
        """Used lengths that claimed more than the device could write, and were clamped."""
        return self.s.excess

    @property
    def vring_size(self) -> int:
        """Entries of the ring. (Linux ``virtqueue_get_vring_size``)"""
        return self.s.num

    @property
    def desc_addr(self) -> int:
        """Guest address of the descriptor area. (Linux ``virtqueue_get_desc_addr``)"""
        return self.config.desc

    @property
    def avail_addr(self) -> int:
        """Guest address of the driver area. (Linux ``virtqueue_get_avail_addr``)"""
        return self.config.avail

    @property
    def used_addr(self) -> int:
        """Guest address of the device area. (Linux ``virtqueue_get_used_addr``)"""
        return self.config.used

    @property
    def we_own_ring(self) -> bool:
        """Whether the ring memory is freed with the queue."""
        return bool(self.blocks)

    @property
    def is_broken(self) -> bool:
        """(Linux ``virtqueue_is_broken``)"""
        return self.broken

    def break_(self) -> None:
        """Mark the queue broken: nothing can be added any more. (Linux ``__virtqueue_break``)"""
        self.broken = True

    def unbreak(self) -> None:
        """Take the mark back, for a ring known to be sound. (Linux ``__virtqueue_unbreak``)"""
        self.broken = False
        self.pending = None

    def detach_unused_buf(self):
        """Token of a buffer that the device has not used, or None when there is no more.

        Only for a device that has stopped; works on a broken queue. (Linux
        ``virtqueue_detach_unused_buf``)
        """
        if self.closed or self.busy:
            self.refuse()
        return self.detach_one()

    def recycle_all(self, recycle=None) -> None:
        """Detach every buffer and hand its token to ``recycle(vq, token)``."""
        while (data := self.detach_unused_buf()) is not None:
            if recycle is not None:
                recycle(self, data)

    def reset(self, recycle=None, recycle_done=None) -> None:
        """Take the queue from the device, hand every buffer to ``recycle(vq, token)``, call
        ``recycle_done(vq)``, start the ring anew and give it back to the device.

        The device is told by ``vdev.config.disable_vq_and_reset(vq)`` and
        ``enable_vq_after_reset(vq)``; without these NotSupported is raised and nothing is changed.
        Mends a broken queue. (Linux ``virtqueue_reset``)
        """
        ops = self.reset_ops()
        ops.disable_vq_and_reset(self)
        self.recycle_all(recycle)
        if recycle_done is not None:
            recycle_done(self)
        self.restart()
        ops.enable_vq_after_reset(self)

    def restart(self) -> None:
        """Start the ring anew, all zeros; only while no device looks at it."""
        if self.closed or self.busy:
            self.refuse()
        self.clear_state()

    def reset_ops(self):
        """``vdev.config`` if it can reset a single queue, which RING_RESET stands for."""
        if self.closed:
            raise QueueClosed(f"{self.config.label} is closed")
        ops = getattr(self.vdev, "config", None)
        for call in ("disable_vq_and_reset", "enable_vq_after_reset"):
            if not callable(getattr(ops, call, None)):
                raise NotSupported(
                    f"{self.config.label}: the transport has no {call}, so a single queue cannot be"
                    " reset"
                )
        return ops

    def replace_ring(self, config, blocks) -> None:
        """Run on another ring from now on; for :func:`virtqueue_resize`, the queue disabled."""
        if self.closed or self.busy:
            self.refuse()
        if self.s.in_flight:
            raise InvalidArgument(f"{self.config.label}: {self.s.in_flight} buffers are in flight")
        self.setup(config, list(blocks))

    def close(self) -> None:
        """Drop what is in flight and free the ring if it is ours. (Linux ``vring_del_virtqueue``)

        Again is fine. A device side may still be looking: stop it first.
        """
        if self.busy:
            self.refuse()
        if not self.closed:
            self.closed = True
            self.tokens = self.contexts = None
            self.n_objects = 0
            self.table_blocks = {}
            self.unbind_areas()
            self.blocks = []
