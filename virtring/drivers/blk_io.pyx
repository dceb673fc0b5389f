"""Many block requests in flight: headers and chains made, statuses read, a batch at a time."""

import numpy as np

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from virtring.memory.guest cimport GuestMemory
from virtring.memory.pool cimport Block
from virtring.queue.batch cimport Batch
from virtring.queue.driver cimport Virtqueue
from virtring.spec.ring cimport VRING_DESC_F_WRITE, vring_desc

from virtring.errors import InvalidArgument

cdef enum:
    SECTOR = 512
    # A header, its status byte behind it: one cache line, so that two requests never share one.
    SLOT = 64
    HEADER = 16
    T_IN = 0
    T_OUT = 1
    T_FLUSH = 4
    T_GET_ID = 8
    T_GET_LIFETIME = 10
    # No status of the standard: the device has not written one.
    UNWRITTEN = 0xFF

# struct virtio_blk_req as far as the data (5.2.6).
ctypedef struct request_header:
    uint32_t type
    uint32_t reserved
    uint64_t sector


cdef class BlkBatch:
    """Columns for up to ``capacity`` requests; rows ``0`` to ``count - 1`` are in use.

    - ``type``: uint32, a :class:`~virtring.spec.blk.BlkType`
    - ``sector``: uint64, in units of 512 bytes; 0 for FLUSH and GET_ID
    - ``addr``: uint64, guest address of the data; ``len``: uint32, its bytes, 0 for FLUSH
    - ``token``: uint64, the caller's
    - ``status``: uint8, a :class:`~virtring.spec.blk.BlkStatus`, set by :meth:`BlkQueue.reap`; 255
      when the device wrote none

    Fill the arrays in place; a completion comes back with all of its request. Raises
    InvalidArgument when capacity is not 1 to 2**20.
    """

    def __init__(self, capacity):
        if not isinstance(capacity, int) or not 1 <= capacity <= 1 << 20:
            raise InvalidArgument(f"capacity {capacity!r}: it takes 1 to 2**20")
        self.capacity = capacity
        self._type = self.type = np.zeros(capacity, np.uint32)
        self._sector = self.sector = np.zeros(capacity, np.uint64)
        self._addr = self.addr = np.zeros(capacity, np.uint64)
        self._len = self.len = np.zeros(capacity, np.uint32)
        self._token = self.token = np.zeros(capacity, np.uint64)
        self._status = self.status = np.zeros(capacity, np.uint8)

    @property
    def count(self) -> int:
        """Rows in use; set by ``reap``, and by you before ``submit``."""
        return self.rows

    @count.setter
    def count(self, value):
        if not 0 <= value <= self.capacity:
            raise InvalidArgument(f"count {value}: it takes 0 to {self.capacity}")
        self.rows = value

    def __len__(self):
        return self.rows


cdef class BlkQueue:
    """One request queue: up to ``depth`` requests in flight, no Python object for any of them.

    vq: the queue, with nothing else on it. depth: by default the ring's size. capacity: sectors of
    the disk, a request beyond is refused. max_len: most bytes of one request's data.

    ``limit``, at first ``depth``, is how many may be in flight. With a lower one more requests go
    into the ring itself instead of indirect tables, which the device is faster with.

    Belongs to one thread at a time. Raises what :meth:`GuestMemory.alloc` raises.
    """

    def __init__(self, Virtqueue vq not None, capacity, *, depth=None, max_len=0xFFFFFFFF):
        cdef GuestMemory memory = vq.memory
        if depth is None:
            depth = vq.vring_size
        if not isinstance(depth, int) or not 1 <= depth <= 1 << 16:
            raise InvalidArgument(f"depth {depth!r}: it takes 1 to 65536")
        self.vq = vq
        self.depth = depth
        self.capacity = capacity
        self.max_len = max_len
        self.block = Block(memory, depth * SLOT, SLOT)
        self.slots = self.block.host
        self.rows = Batch(depth, 3 * depth)
        self.used = Batch(depth)
        self.free = np.arange(depth, dtype=np.uint32)[::-1].copy()
        self.n_free = self.most = self.depth
        self.requests = <request*>calloc(self.depth, sizeof(request))
        if self.requests == NULL:
            raise MemoryError(f"{depth} requests")

    def __dealloc__(self):
        free(self.requests)

    @property
    def limit(self) -> int:
        """Most requests in flight, 1 to ``depth``; InvalidArgument for another."""
        return self.most

    @limit.setter
    def limit(self, value):
        if not isinstance(value, int) or not 1 <= value <= self.depth:
            raise InvalidArgument(f"limit {value!r}: it takes 1 to {self.depth}")
        self.most = value

    @property
    def in_flight(self) -> int:
        """Requests submitted and not yet reaped."""
        return self.depth - self.n_free

    cdef int check(self, BlkBatch batch, size_t first, size_t n) except -1:
        """What a driver must not send (5.2.6.1); addresses are the ring's to check."""
        cdef size_t i
        cdef uint32_t type, length
        for i in range(first, first + n):
            type = batch._type[i]
            length = batch._len[i]
            if (length == 0) != (type == T_FLUSH):
                raise InvalidArgument(
                    f"row {i}: {length} bytes of data with request type {type}; a FLUSH has none,"
                    " others have some"
                )
            if length > self.max_len:
                raise InvalidArgument(f"row {i}: {length} bytes; it takes up to {self.max_len}")
            if type == T_IN or type == T_OUT:
                if length % SECTOR:
                    raise InvalidArgument(f"row {i}: {length} bytes are not a multiple of 512")
                if (
                    batch._sector[i] > self.capacity
                    or length // SECTOR > self.capacity - batch._sector[i]
                ):
                    raise InvalidArgument(
                        f"row {i}: {length // SECTOR} sectors from {batch._sector[i]} on; the disk"
                        f" has {self.capacity}"
                    )
        return 0

    cdef void fill(self, BlkBatch batch, size_t first, size_t n) noexcept nogil:
        """Headers into free slots, and the chains that lead to them."""
        cdef vring_desc* d = self.rows.cols.desc
        cdef request_header* header
        cdef request* own
        cdef uint64_t addr
        cdef uint32_t slot
        cdef uint32_t at = 0
        cdef size_t i
        for i in range(n):
            slot = self.free[self.n_free - 1 - i]
            own = self.requests + slot
            own.token = batch._token[first + i]
            own.type = batch._type[first + i]
            own.sector = batch._sector[first + i]
            own.addr = batch._addr[first + i]
            own.len = batch._len[first + i]
            header = <request_header*>(self.slots + <size_t>SLOT * slot)
            header.type = own.type
            header.reserved = 0
            header.sector = own.sector
            (<uint8_t*>header)[HEADER] = UNWRITTEN
            addr = self.block.addr + <uint64_t>SLOT * slot
            d[at].addr = addr
            d[at].len = HEADER
            d[at].flags = 0
            at += 1
            if own.type != T_FLUSH:
                d[at].addr = own.addr
                d[at].len = own.len
                d[at].flags = (
                    VRING_DESC_F_WRITE
                    if own.type == T_IN or own.type == T_GET_ID or own.type == T_GET_LIFETIME else 0
                )
                at += 1
            d[at].addr = addr + HEADER
            d[at].len = 1
            d[at].flags = VRING_DESC_F_WRITE
            at += 1
            self.rows.cols.offsets[i + 1] = at
            self.rows.cols.token[i] = slot

    def submit(self, BlkBatch batch not None, start=0, count=None) -> int:
        """Make the requests of rows ``start`` to ``start + count`` available; how many there was
        room for. By default the rows from ``start`` to ``batch.count``.

        Call :meth:`kick` afterwards. The data belongs to the device until the request is reaped.
        Raises InvalidArgument or AddressError (all rows are checked first: nothing was submitted),
        QueueBroken.
        """
        cdef size_t first, n, added, spare
        cdef bint direct
        if count is None:
            count = batch.rows - start
        if not (0 <= start <= batch.capacity and 0 <= count <= batch.capacity - start):
            raise InvalidArgument(
                f"start {start} and count {count}; the batch has {batch.capacity} rows"
            )
        first = start
        n = count
        self.check(batch, first, n)
        if self.most <= self.depth - self.n_free:
            return 0
        spare = self.most - (self.depth - self.n_free)
        n = min(n, spare)
        if n == 0:
            return 0
        self.fill(batch, first, n)
        # Direct as long as there is a descriptor left for each of those that may follow.
        direct = self.rows.cols.offsets[n] + (spare - n) <= <size_t>self.vq.s.num_free
        added = self.vq.add_sgs_batch(self.rows, 0, n, indirect=not direct)
        self.n_free -= <uint32_t>added
        return added

    def kick(self) -> bool:
        """Tell the device of what was submitted, if it wants to know."""
        return self.vq.kick()

    def reap(self, BlkBatch batch not None, room=None, start=0) -> int:
        """Take up to ``room`` completions into the rows from ``start`` on; how many there were.

        By default as many as the batch has rows for. A row is the request as it was submitted, with
        its ``status``, so that it may be submitted again; ``count`` is set to the rows filled.
        Raises BadUsedRing, QueueBroken, and InvalidArgument for more rows than the batch has.
        """
        cdef size_t first, most, n, i
        cdef uint32_t slot
        cdef request* own
        if not 0 <= start <= batch.capacity:
            raise InvalidArgument(f"start {start}: it takes 0 to {batch.capacity}")
        first = start
        most = batch.capacity - first
        if room is not None:
            if not 0 <= room <= most:
                raise InvalidArgument(f"room {room}: it takes 0 to {most}")
            most = room
        n = self.vq.get_buf_batch(self.used, min(most, <size_t>self.depth))
        for i in range(n):
            # Our own number: the ring gives back what was added, whatever the device wrote.
            slot = <uint32_t>self.used.cols.token[i]
            own = self.requests + slot
            batch._token[first + i] = own.token
            batch._type[first + i] = own.type
            batch._sector[first + i] = own.sector
            batch._addr[first + i] = own.addr
            batch._len[first + i] = own.len
            batch._status[first + i] = (<uint8_t*>(self.slots + <size_t>SLOT * slot))[HEADER]
            self.free[self.n_free] = slot
            self.n_free += 1
        batch.rows = first + n
        return n
