"""The driver side of a queue, first half: adding buffers and telling the device of them."""

cimport cython
from libc.stdint cimport uint16_t, uint32_t, uint64_t

from virtring.memory.pool cimport Buffer
from virtring.memory.table cimport PERM_READ, PERM_WRITE
from virtring.ring.common cimport VR_NEED_TABLE, VR_NO_SPACE, VR_OK, in_memory
from virtring.ring.driver cimport (
    check_chain, driver_add_chains, driver_add_one, driver_add_rows, driver_check_rows,
)
from virtring.spec.ring cimport VRING_DESC_F_WRITE, vring_desc

from virtring.errors import AddressError, InvalidArgument, NoSpace

cdef enum:
    # Where Linux (virtqueue_add) makes a driver kick, before num_added could outgrow its 16 bits.
    KICK_AT = 0xFFFF


cdef class DriverAdd(DriverRing):
    """What a :class:`Virtqueue` does before the device: add, kick, notify."""

    # -- adding --------------------------------------------------------------------------------

    cdef int refuse_full(self, uint32_t need, bint out) except -1:
        # Historical, and kept by Linux: a full queue with something to say is notified at once.
        if out:
            self.do_notify()
        raise NoSpace(
            f"{self.config.label}: the buffer needs {need} descriptors and {self.s.num_free} are"
            " free; take used buffers with get_buf() first"
        )

    cdef int add_one(self, object sg, uint16_t flags, object data, object ctx) except -1:
        """Add a buffer of one descriptor."""
        cdef uint64_t addr = 0
        cdef uint32_t length = 0
        cdef uint32_t id
        self.enter()
        self.check_token(data, ctx)
        if type(sg) is Buffer and (<Buffer>sg).block.memory is self.memory:
            addr = (<Buffer>sg).addr
            length = (<Buffer>sg).size if flags else (<Buffer>sg).used
        else:
            self.resolve(sg, flags != 0, &addr, &length)
        if length == 0:
            raise InvalidArgument(f"{self.config.label}: {sg!r} is empty; it takes 1 byte or more")
        if not in_memory(
            self.hot, &self.table.table, addr, length, PERM_WRITE if flags else PERM_READ
        ):
            raise AddressError(
                f"{self.config.label}: {length} bytes at {addr:#x} are not inside the guest memory"
                f" with the right to {'write' if flags else 'read'} them"
            )
        if self.s.num_free == 0:
            self.refuse_full(1, flags == 0)
        id = self.s.free_head
        self.remember(id, data, ctx)
        if self.packed:
            driver_add_one(&self.pack, addr, length, id, flags)
        else:
            driver_add_one(&self.split, addr, length, id, flags)
        if self.s.num_added >= KICK_AT:
            self.kick()
        return 0

    cdef int add_chain(
        self, object out_sgs, object in_sgs, object data, object ctx, bint rpmsg, bint premapped
    ) except -1:
        """Add a buffer of any number of descriptors (Linux virtqueue_add)."""
        cdef Batch one = self.one
        cdef size_t n = 0
        cdef size_t added = 0
        cdef size_t total = len(out_sgs) + len(in_sgs)
        cdef uint32_t id
        cdef bint write = False
        cdef int code
        self.enter()
        self.check_token(data, ctx)
        if total == 0 or total > self.s.num:
            raise InvalidArgument(
                f"{self.config.label}: a buffer of {total} descriptors; this queue takes 1 to"
                f" {self.s.num}"
            )
        for sgs in (out_sgs, in_sgs):
            for sg in sgs:
                if n == total:
                    raise InvalidArgument(
                        f"{self.config.label}: {type(sgs).__name__} gives more items than its len()"
                    )
                if premapped:
                    try:
                        one.addr[n], one.len[n] = sg
                    except (TypeError, ValueError, OverflowError):
                        raise InvalidArgument(
                            f"{self.config.label}: {sg!r} is no (guest address, length) pair"
                        ) from None
                else:
                    self.resolve(sg, write, &one.cols.desc[n].addr, &one.cols.desc[n].len)
                one.cols.desc[n].flags = VRING_DESC_F_WRITE if write else 0
                n += 1
            write = True
        # Iterating may have run anything.
        self.enter()
        code = check_chain(
            self.s, &self.table.table, one.cols.desc, n, 0
        )
        if code != VR_OK:
            self.raise_fault(code)
        one.cols.offsets[1] = <uint32_t>n
        id = self.s.free_head
        one.cols.token[0] = id
        if self.s.num_free == 0:
            self.refuse_full(<uint32_t>n, len(out_sgs) != 0)
        self.remember(id, data, ctx)
        while True:
            if self.packed:
                code = driver_add_chains(&self.pack, &one.cols, 0, 1, rpmsg, &added)
            else:
                code = driver_add_chains(&self.split, &one.cols, 0, 1, rpmsg, &added)
            if code != VR_NEED_TABLE:
                break
            self.give_table()
        if code != VR_OK:
            self.s.force_direct = False
            self.recall(id)
            self.refuse_full(<uint32_t>n, len(out_sgs) != 0)
        if self.s.num_added >= KICK_AT:
            self.kick()
        return 0

    def virtqueue_add(
        self, out_sgs, in_sgs, data, *, ctx=None, rpmsg=False, premapped=False
    ) -> None:
        """Add one buffer: ``out_sgs`` for the device to read, then ``in_sgs`` for it to write.

        Goes indirect when that was negotiated, there is more than one descriptor and a table can
        be had, but never with ``rpmsg``. Made available at once; :meth:`kick` tells the device.

        Raises NoSpace when too few descriptors are free (the device is notified first if there is
        an outgoing part, as in Linux), QueueBroken, InvalidArgument (a token that is None or in
        flight, none or more than ``vring_size`` descriptors, an empty one), AddressError.
        Nothing was changed then. (Linux ``virtqueue_add``)
        """
        self.add_chain(out_sgs, in_sgs, data, ctx, rpmsg, premapped)

    def add_sgs(self, out_sgs, in_sgs, data) -> None:
        """:meth:`virtqueue_add` of lists of buffers. (Linux ``virtqueue_add_sgs``)"""
        self.add_chain(out_sgs, in_sgs, data, None, False, False)

    def add_inbuf_ctx(self, sg, data, ctx) -> None:
        """:meth:`add_inbuf` with a context, which :meth:`get_buf_ctx` gives back.

        The queue must have been made with ``context=True``. (Linux ``virtqueue_add_inbuf_ctx``)
        """
        if type(sg) is list or type(sg) is tuple:
            self.add_chain((), sg, data, ctx, False, False)
        else:
            self.add_one(sg, VRING_DESC_F_WRITE, data, ctx)

    def add_outbuf_premapped(self, sgs, data) -> None:
        """:meth:`add_outbuf` of (guest address, length) pairs. (``virtqueue_add_outbuf_premapped``)
        """
        self.add_chain(sgs, (), data, None, False, True)

    def add_inbuf_premapped(self, sgs, data, ctx=None) -> None:
        """:meth:`add_inbuf` of (guest address, length) pairs. (``virtqueue_add_inbuf_premapped``)
        """
        self.add_chain((), sgs, data, ctx, False, True)

    # -- adding, batched -----------------------------------------------------------------------

    cdef object add_rows(self, Batch batch, Py_ssize_t start, object count, uint16_t flags):
        cdef size_t first = 0
        cdef size_t end = 0
        cdef size_t n
        cdef int code
        self.enter()
        batch.window(start, count, &first, &end)
        n = end - first
        if n > batch.cols.max_desc - min(first, batch.cols.max_desc):
            raise InvalidArgument(
                f"{self.config.label}: {n} rows from {first} on need as many descriptors; the batch"
                f" has {batch.cols.max_desc}"
            )
        if self.s.num_added + min(n, <size_t>self.s.num_free) >= KICK_AT:
            # Before anything is counted: notify() may add buffers itself, or break the queue.
            self.kick()
            self.enter()
        if n > self.s.num_free:
            n = self.s.num_free
            # Rows that have to wait are checked now too: a bad row adds nothing, wherever it is.
            code = driver_check_rows(
                self.s, &self.table.table, batch.cols.desc + first, n,
                end - first, flags,
            )
            if code != VR_OK:
                self.fault.pos += first
                self.raise_fault(code)
        if n < NOGIL_ROWS:
            code = self.add_checked(batch, first, n, flags)
        else:
            self.busy = True
            with nogil:
                code = self.add_checked(batch, first, n, flags)
            self.busy = False
        if code != VR_OK:
            self.fault.pos += first
            self.raise_fault(code)
        return n

    @cython.final
    cdef int add_checked(self, Batch batch, size_t first, size_t n, uint16_t flags) noexcept nogil:
        cdef const vring_desc* sg = batch.cols.desc + first
        cdef const uint64_t* token = batch.cols.token + first
        if self.packed:
            return driver_add_rows(
                &self.pack, &self.table.table, sg, token, n, flags
            )
        return driver_add_rows(&self.split, &self.table.table, sg, token, n, flags)

    def add_outbuf_batch(self, Batch batch not None, Py_ssize_t start=0, count=None) -> int:
        """Add rows of one device-readable descriptor each: ``addr``, ``len``, ``token`` of row i.

        Rows ``start`` to ``start + count``, by default up to ``batch.count``. All are checked
        first (AddressError or InvalidArgument: nothing was added); then as many as there are free
        descriptors are added, published at once, and their number is returned.
        """
        return self.add_rows(batch, start, count, 0)

    def add_inbuf_batch(self, Batch batch not None, Py_ssize_t start=0, count=None) -> int:
        """:meth:`add_outbuf_batch` for device-writable buffers."""
        return self.add_rows(batch, start, count, VRING_DESC_F_WRITE)

    def add_sgs_batch(
        self, Batch batch not None, Py_ssize_t start=0, count=None, *, bint indirect=True
    ) -> int:
        """Add chains: row i has the descriptors ``offsets[i]`` to ``offsets[i + 1] - 1``.

        ``flags`` of a descriptor is 2 (``VRING_DESC_F_WRITE``) when the device may write it; such
        ones come last in a row. Checked, counted and published as in :meth:`add_outbuf_batch`;
        goes indirect as :meth:`virtqueue_add` does. With ``indirect`` False every descriptor goes
        into the ring itself: a device has less to fetch then, but the ring is full sooner.
        """
        cdef size_t first = 0
        cdef size_t end = 0
        cdef size_t added = 0
        cdef size_t row
        cdef size_t done
        cdef uint32_t at
        cdef int code = VR_OK
        self.enter()
        batch.window(start, count, &first, &end)
        batch.check_offsets(first, end)
        for row in range(first, end):
            at = batch.cols.offsets[row]
            code = check_chain(
                self.s, &self.table.table, batch.cols.desc + at,
                batch.cols.offsets[row + 1] - at, row,
            )
            if code != VR_OK:
                self.raise_fault(code)
        done = first
        while done < end:
            if self.s.num_added + (batch.cols.offsets[end] - batch.cols.offsets[done]) >= KICK_AT:
                self.kick()
                if self.broken:
                    break
            self.busy = True
            with nogil:
                if self.packed:
                    code = driver_add_chains(
                        &self.pack, &batch.cols, done, end, not indirect, &added
                    )
                else:
                    code = driver_add_chains(
                        &self.split, &batch.cols, done, end, not indirect, &added
                    )
            self.busy = False
            done += added
            if code == VR_NEED_TABLE:
                self.give_table()
            elif code == VR_NO_SPACE:
                self.s.force_direct = False
                break
        if self.broken and done == first:
            self.refuse()
        return done - first

    # -- telling the device --------------------------------------------------------------------

    cdef bint do_notify(self) except -1:
        if self.broken or self.closed:
            return False
        if self.notify_cb is not None and self.notify_cb(self) is False:
            # Linux: a device that cannot be notified is gone.
            self.broken = True
            return False
        return True

    def notify(self) -> bool:
        """Call the queue's ``notify(vq)``; False, and a broken queue, when that gives False.

        (Linux ``virtqueue_notify``)
        """
        return self.do_notify()

    def kick(self) -> bool:
        """:meth:`kick_prepare` and, if it wants that, :meth:`notify`. (Linux ``virtqueue_kick``)"""
        if self.broken:
            return False
        self.enter()
        if self.wants_kick():
            return self.do_notify()
        return True

    @property
    def notification_data(self) -> int:
        """What a notification carries with NOTIFICATION_DATA, 32 bits (2.9.1).

        The queue's index below, the next available position above; in a packed ring with the wrap
        counter as the top bit. (Linux ``vring_notification_data``)
        """
        cdef uint32_t position
        self.enter()
        if self.packed:
            position = self.pack.next_avail_idx | (
                <uint32_t>((self.pack.avail_used_flags & 0x80) != 0) << 15
            )
        else:
            position = self.split.avail_idx
        return (self.config.index & 0xFFFF) | (position << 16)
