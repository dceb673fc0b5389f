"""The ring under a Virtqueue: its memory and bookkeeping, its tokens, buffers as addresses."""

from cpython.buffer cimport (
    PyBUF_SIMPLE,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from libc.stdint cimport uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from virtring.memory.barriers cimport store16, swap16
from virtring.memory.pool cimport Block, Buffer
from virtring.ring.common cimport buf_state, indirect_table, note_extra, note_ndesc
from virtring.ring.packed_common cimport AVAIL_USED
from virtring.ring.packed_driver cimport packed_disable_cb
from virtring.ring.split_driver cimport split_disable_cb
from virtring.spec.ring cimport VRING_PACKED_DESC_F_AVAIL, VRING_PACKED_EVENT_FLAG_ENABLE

from virtring.errors import AddressError, InvalidArgument, NotSupported, OutOfMemory
from virtring.spec.features import Feature

cdef object U32_MAX = 0xFFFFFFFF


cdef class DriverRing(QueueSide):
    """Everything of a :class:`Virtqueue` that Linux keeps behind its calls."""

    def __dealloc__(self):
        self.free_state()

    cdef int setup(self, object config, list blocks) except -1:
        """Bind the ring that ``config`` describes, in its initial state. ``blocks`` are ours."""
        cdef size_t num = config.size
        # Linux: a queue with per-buffer contexts does not go indirect.
        cdef bint indirect = Feature.INDIRECT_DESC in config.features and not self.context
        self.bind_areas(config)
        self.free_state()
        self.blocks = blocks
        self.s = &self.pack.s if self.packed else &self.split.s
        self.hot = &self.s.hot
        self.fault = &self.s.fault
        memset(&self.pack, 0, sizeof(self.pack))
        memset(&self.split, 0, sizeof(self.split))
        if self.packed:
            self.pack.desc = <char*>&self.packed_desc[0]
            self.pack.driver_event = <char*>&self.driver_event[0]
            self.pack.device_event = <char*>&self.device_event[0]
        else:
            self.split.desc = <char*>&self.desc[0]
            self.split.avail = <char*>&self.avail[0]
            self.split.avail_ring = <char*>&self.avail[2]
            self.split.used_event = <char*>&self.avail[2 + num]
            self.split.used = <char*>&self.used[0]
            self.split.used_ring = <char*>&self.used_elem[0]
            self.split.avail_event = <char*>&self.used[2 + 4 * num]
            self.split.mask = <uint16_t>(num - 1)
        self.s.num = <uint32_t>num
        self.weak_barriers &= Feature.ORDER_PLATFORM not in config.features
        self.s.weak_barriers = self.weak_barriers
        self.s.event_idx = Feature.EVENT_IDX in config.features
        self.s.in_order = Feature.IN_ORDER in config.features
        self.s.swap = config.big_endian
        self.s.state = <buf_state*>calloc(num, sizeof(buf_state))
        self.s.next = <uint16_t*>calloc(num, sizeof(uint16_t))
        self.in_use.mask = 2
        while self.in_use.mask < 2 * num:
            self.in_use.mask *= 2
        self.in_use.slots = <uintptr_t*>calloc(self.in_use.mask, sizeof(uintptr_t))
        self.in_use.mask -= 1
        if indirect:
            self.s.tables = <indirect_table*>calloc(num, sizeof(indirect_table))
        if (
            self.s.state == NULL or self.s.next == NULL or self.in_use.slots == NULL
            or (indirect and self.s.tables == NULL)
        ):
            self.free_state()
            raise OutOfMemory(f"{config.label}: no memory for the bookkeeping of {num} entries")
        self.one = Batch(1, num)
        self.one.offsets[1] = num
        self.clear_state()
        return 0

    cdef int clear_state(self) except -1:
        """An empty ring of the size it has: nothing in flight, positions at the start."""
        cdef uint32_t i
        cdef uint32_t num = self.s.num
        memset(self.s.state, 0, num * sizeof(buf_state))
        memset(self.in_use.slots, 0, (self.in_use.mask + 1) * sizeof(uintptr_t))
        self.tokens = [None] * num
        self.contexts = [None] * num if self.context else None
        self.n_objects = 0
        for i in range(num):
            self.s.next[i] = <uint16_t>(i + 1 if i + 1 < num else 0)
        self.s.num_free = num
        self.s.num_added = 0
        self.s.in_flight = 0
        self.s.free_head = 0
        self.s.order_head = 0
        self.s.group = False
        self.s.event_triggered = False
        self.s.force_direct = False
        self.detach_from = 0
        self.broken = False
        self.pending = None
        # Both sides start from zeros (2.7.1, 2.8.1); without a callback nobody wants interrupts.
        if self.packed:
            memset(self.pack.desc, 0, 16 * <size_t>num)
            memset(self.pack.driver_event, 0, 4)
            memset(self.pack.device_event, 0, 4)
            self.pack.first = NULL
            self.pack.next_avail_idx = 0
            self.pack.avail_used_flags = VRING_PACKED_DESC_F_AVAIL
            self.pack.last_used_idx = 0
            self.pack.used_flags = AVAIL_USED
            self.pack.event_flags_shadow = VRING_PACKED_EVENT_FLAG_ENABLE
            if not self.callbacks:
                packed_disable_cb(&self.pack)
        else:
            memset(self.split.desc, 0, 16 * <size_t>num)
            memset(self.split.avail, 0, 6 + 2 * <size_t>num)
            memset(self.split.used, 0, 6 + 8 * <size_t>num)
            self.split.avail_idx = 0
            self.split.used_idx = 0
            self.split.last_used_idx = 0
            self.split.avail_flags_shadow = 0
            if not self.callbacks:
                split_disable_cb(&self.split)
        return 0

    cdef void free_state(self) noexcept:
        if self.s != NULL:
            free(self.s.state)
            free(self.s.next)
            free(self.s.tables)
            self.s.state = NULL
            self.s.next = NULL
            self.s.tables = NULL
        free(self.in_use.slots)
        self.in_use.slots = NULL
        self.table_blocks = {}

    # -- buffers and tokens --------------------------------------------------------------------

    cdef int resolve(self, object sg, bint write, uint64_t* addr, uint32_t* length) except -1:
        """Guest address and length of a buffer object; the caller checks rights and range."""
        cdef Py_buffer view
        cdef Buffer buf
        cdef Py_ssize_t size
        if type(sg) is Buffer:
            buf = <Buffer>sg
            if buf.block.memory is not self.memory:
                raise AddressError(f"{self.config.label}: {sg!r} belongs to another guest memory")
            addr[0] = buf.addr
            length[0] = buf.size if write else buf.used
            return 0
        try:
            PyObject_GetBuffer(sg, &view, PyBUF_WRITABLE if write else PyBUF_SIMPLE)
        except (TypeError, BufferError, ValueError) as error:
            raise InvalidArgument(
                f"{self.config.label}: {type(sg).__name__} cannot be a"
                f" {'device-writable' if write else 'device-readable'} buffer: {error}"
            ) from None
        try:
            size = view.len
            if size == 0 or size > U32_MAX:
                raise InvalidArgument(
                    f"{self.config.label}: a buffer of {size} bytes; it takes 1 to 2**32 - 1"
                )
            addr[0] = self.memory.addr_of_host(<const char*>view.buf, size)
            length[0] = <uint32_t>size
        finally:
            PyBuffer_Release(&view)
        return 0

    cdef int refuse_token(self, object data, bint twice) except -1:
        if twice:
            raise InvalidArgument(
                f"{self.config.label}: the token {data!r} already stands for a buffer in flight"
            )
        if data is None:
            raise InvalidArgument(
                f"{self.config.label}: the token is None; it takes any other object, by default the"
                " buffer"
            )
        raise InvalidArgument(f"{self.config.label}: a ctx needs a queue made with context=True")

    cdef int give_table(self) except -1:
        """After VR_NEED_TABLE: an indirect table for that id to keep, or direct for this chain."""
        cdef uint32_t id = <uint32_t>self.fault.pos
        cdef uint32_t need = <uint32_t>self.fault.val
        cdef uint32_t capacity = 8
        cdef Block block
        while capacity < need:
            capacity *= 2
        self.table_blocks.pop(id, None)
        self.s.tables[id].capacity = 0
        try:
            block = Block(self.memory, 16 * capacity, 16)
        except (OutOfMemory, NotSupported):
            # Linux: if no table can be had, the chain goes into the ring.
            self.s.force_direct = True
            return 0
        self.table_blocks[id] = block
        self.s.tables[id].host = block.host
        self.s.tables[id].addr = block.addr
        self.s.tables[id].capacity = capacity
        return 0

    cdef object detach_one(self):
        """Token of a buffer the device will not use any more, or None; works on a broken queue."""
        cdef uint32_t step, id, tail
        cdef uint32_t num = self.s.num
        cdef buf_state* st
        cdef object data
        if self.s.in_flight == 0:
            return None
        for step in range(num):
            id = self.detach_from + step
            if id >= num:
                id -= num
            st = self.s.state + id
            if st.note:
                break
        else:
            return None
        self.detach_from = id
        data = self.recall(id)
        if data is None:
            data = st.token
        self.s.num_free += note_ndesc(st.note)
        self.s.in_flight -= 1
        tail = id ^ note_extra(st.note)
        st.note = 0
        if not self.s.in_order:
            self.s.next[tail] = self.s.free_head
            self.s.free_head = <uint16_t>id
        elif self.s.in_flight == 0:
            # The circle has no gaps any more: start it where the next buffer will be added.
            self.s.order_head = self.s.free_head
            self.s.group = False
        if not self.packed:
            # As Linux: the index no longer counts it.
            self.split.avail_idx -= 1
            store16(
                self.split.avail + 2,
                swap16(self.split.avail_idx) if self.s.swap else self.split.avail_idx,
            )
        return data
