"""Carries out block requests, from a batch of chains to a file and back, without the GIL."""

from libc.errno cimport EINTR, EOPNOTSUPP, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from posix.types cimport off_t

from virtring.device.burst cimport BurstWorker
from virtring.device.cursor cimport (
    cursor, cursor_at, cursor_init, gather, iovec, scatter, vectors,
)
from virtring.memory.guest cimport GuestMemory
from virtring.memory.snapshot cimport MemoryTable
from virtring.memory.table cimport (
    PERM_READ, PERM_WRITE, guest_lookup, guest_range, guest_table,
)
from virtring.queue.batch cimport Batch
from virtring.ring.common cimport batch_cols, clamp32
from virtring.spec.ring cimport VRING_DESC_F_WRITE, vring_desc

from virtring.errors import InvalidArgument

cdef extern from "<sys/uio.h>" nogil:
    ssize_t preadv(int fd, const iovec* iov, int n, off_t offset)
    ssize_t pwritev2(int fd, const iovec* iov, int n, off_t offset, int flags)
    int RWF_DSYNC

cdef extern from "<fcntl.h>" nogil:
    int fallocate(int fd, int mode, off_t offset, off_t length)
    int FALLOC_FL_KEEP_SIZE
    int FALLOC_FL_PUNCH_HOLE
    int FALLOC_FL_ZERO_RANGE

cdef extern from "<unistd.h>" nogil:
    int fdatasync(int fd)

cdef enum:
    SECTOR = 512
    SEGMENT = 16
    ID_BYTES = 20
    T_IN = 0
    T_OUT = 1
    T_FLUSH = 4
    T_GET_ID = 8
    T_DISCARD = 11
    T_WRITE_ZEROES = 13
    S_OK = 0
    S_IOERR = 1
    S_UNSUPP = 2
    F_UNMAP = 1
    # One call's worth; a longer request takes several.
    IOVECS = 256
    ZEROES = 65536
    # Bytes of data after which requests are completed while others of the burst still wait.
    BUDGET = 262144

cdef char zeroes[ZEROES]
memset(zeroes, 0, ZEROES)

# struct virtio_blk_req as far as the data, and struct virtio_blk_discard_write_zeroes (5.2.6).
ctypedef struct request_header:
    uint32_t type
    uint32_t reserved
    uint64_t sector

ctypedef struct clear_segment:
    uint64_t sector
    uint32_t sectors
    uint32_t flags


cdef uint64_t left_of(const cursor* c) noexcept nogil:
    """Bytes that are not used up."""
    cdef const vring_desc* d = c.desc
    cdef uint64_t n = 0
    while d < c.end:
        n += d.len
        d += 1
    return n - c.offset


cdef class BlkIo(BurstWorker):
    """Block requests on an open file.

    fd: the file, which stays the caller's. capacity: sectors of 512 bytes. read_only: refuse what
    writes. serial: up to 20 bytes, the answer to GET_ID. max_segments and max_sectors bound
    DISCARD and WRITE_ZEROES. ``write_through``: every write is on the disk when it completes.
    ``discard`` and ``write_zeroes``: were they negotiated?

    Raises InvalidArgument for a number that cannot be.
    """

    def __init__(
        self, fd, capacity, *, read_only=False, serial=b"", max_segments=16, max_sectors=1 << 22
    ):
        if not isinstance(capacity, int) or not 0 <= capacity < 1 << 54:
            raise InvalidArgument(f"capacity {capacity!r}: it takes sectors of 512 bytes")
        if len(serial) > ID_BYTES:
            raise InvalidArgument(f"the serial number has {len(serial)} bytes; {ID_BYTES} fit")
        self.fd = fd
        self.capacity = capacity
        self.read_only = read_only
        self.max_segments = max_segments
        self.max_sectors = max_sectors
        self.complaint = "a request without room for its header and status"
        memset(self.serial, 0, ID_BYTES)
        memcpy(self.serial, <char*>serial, len(serial))

    def run(self, GuestMemory memory not None, Batch batch not None, size_t start, budget) -> int:
        """Carry out the requests of the rows from ``start`` on; the number of rows done.

        Stops after the row that makes it ``budget`` bytes of data or more. Sets ``written`` of each
        row. What fails is told to the driver by the request's status. A row that has no room for a
        header and a status is the last: ``malformed`` counts it, its ``written`` is 0.
        """
        cdef MemoryTable snapshot = memory.snapshot
        cdef size_t end = batch.rows
        cdef uint64_t limit = budget
        cdef size_t done
        cdef bint bad = False
        cdef uint64_t moved = 0
        if start > end:
            raise InvalidArgument(f"start {start}: the batch has {end} rows")
        with nogil:
            done = self.rows(&snapshot.table, &batch.cols, start, end, limit, &moved, &bad)
        self.malformed += bad
        return done

    cdef size_t work(
        self, const guest_table* table, batch_cols* cols, size_t first, size_t end, uint64_t* moved,
        bint* bad
    ) noexcept nogil:
        return self.rows(table, cols, first, end, BUDGET, moved, bad)

    cdef size_t rows(
        self, const guest_table* table, batch_cols* cols, size_t first, size_t end, uint64_t limit,
        uint64_t* total, bint* bad
    ) noexcept nogil:
        cdef size_t i = first
        cdef uint64_t moved = 0
        while i < end and moved < limit and not bad[0]:
            cols.written[i] = self.request(
                table, cols.desc + cols.offsets[i], cols.desc + cols.offsets[i + 1], &moved, bad
            )
            i += 1
        total[0] += moved
        return i - first

    cdef uint32_t request(
        self, const guest_table* table, const vring_desc* first, const vring_desc* end,
        uint64_t* moved, bint* bad
    ) noexcept nogil:
        """One chain: header, data, status byte, however they are cut (2.7.4). Bytes written.

        Sets ``bad``, and writes nothing, when there is no room for a header and a status.
        """
        cdef cursor out
        cdef cursor into
        cdef cursor zeros
        cdef request_header header
        cdef const vring_desc* d = first
        cdef const guest_range* r
        cdef uint64_t readable = 0
        cdef uint64_t writable = 0
        cdef uint8_t* status
        cdef uint8_t result
        while d < end and not d.flags & VRING_DESC_F_WRITE:
            readable += d.len
            d += 1
        cursor_init(&out, table, PERM_READ)
        cursor_at(&out, first, d)
        cursor_init(&into, table, PERM_WRITE)
        cursor_at(&into, d, end)
        while d < end:
            writable += d.len
            d += 1
        if writable == 0 or gather(&out, <char*>&header, sizeof(header)) != 0:
            bad[0] = True
            return 0
        d = end - 1
        r = guest_lookup(table, d.addr, d.len, PERM_WRITE)
        if r == NULL:
            bad[0] = True
            return 0
        status = <uint8_t*>r.host + (d.addr - r.base) + d.len - 1
        writable -= 1
        readable -= sizeof(header)
        moved[0] += writable
        zeros = into
        if header.type == T_IN:
            result = self.move(&into, header.sector, writable, False)
            if result == S_OK:
                zeros.desc = zeros.end
        elif header.type == T_OUT:
            moved[0] += readable
            result = self.move(&out, header.sector, readable, True)
        elif header.type == T_FLUSH:
            result = S_OK if fdatasync(self.fd) == 0 else S_IOERR
        elif header.type == T_GET_ID:
            result = S_IOERR
            if writable >= ID_BYTES and scatter(&into, self.serial, ID_BYTES) == 0:
                result = S_OK
                zeros = into
        elif (header.type == T_DISCARD and self.discard) or (
            header.type == T_WRITE_ZEROES and self.write_zeroes
        ):
            result = self.clear(&out, readable, header.type)
        else:
            result = S_UNSUPP
        # The status is behind all else: what the request leaves unwritten before it is zeroed, for
        # the used length promises every byte up to it (2.7.8.2).
        if zeros.desc != zeros.end:
            scatter(&zeros, NULL, left_of(&zeros) - 1)
        status[0] = result
        return clamp32(writable + 1)

    cdef bint inside(self, uint64_t sector, uint64_t sectors) noexcept nogil:
        return sector <= self.capacity and sectors <= self.capacity - sector

    cdef uint8_t move(
        self, cursor* c, uint64_t sector, uint64_t size, bint write
    ) noexcept nogil:
        """Read or write ``size`` bytes from ``sector`` on."""
        cdef iovec iov[IOVECS]
        cdef uint64_t part
        cdef int n
        cdef off_t place
        if size % SECTOR or not self.inside(sector, size // SECTOR):
            return S_IOERR
        if write and self.read_only:
            return S_IOERR
        place = <off_t>(sector * SECTOR)
        while size:
            n = vectors(c, iov, IOVECS, size, &part)
            if n < 0 or self.transfer(iov, n, place, part, write) != 0:
                return S_IOERR
            place += <off_t>part
            size -= part
        return S_OK

    cdef int transfer(
        self, iovec* iov, int n, off_t place, uint64_t size, bint write
    ) noexcept nogil:
        """All of these vectors; a file that ends early is an error."""
        cdef ssize_t done
        cdef int flags = RWF_DSYNC if self.write_through else 0
        while True:
            if write:
                done = pwritev2(self.fd, iov, n, place, flags)
            else:
                done = preadv(self.fd, iov, n, place)
            if done < 0 and errno == EINTR:
                continue
            if done <= 0:
                return -1
            if <uint64_t>done == size:
                return 0
            size -= <uint64_t>done
            place += done
            while <size_t>done >= iov.iov_len:
                done -= <ssize_t>iov.iov_len
                iov += 1
                n -= 1
            iov.iov_base = <char*>iov.iov_base + done
            iov.iov_len -= <size_t>done

    cdef uint8_t clear(self, cursor* out, uint64_t size, uint32_t type) noexcept nogil:
        """DISCARD and WRITE_ZEROES: all segments are checked before the first is touched."""
        cdef cursor again = out[0]
        cdef clear_segment segment
        cdef uint64_t left
        if size == 0 or size % SEGMENT or size // SEGMENT > self.max_segments:
            return S_IOERR
        if self.read_only:
            return S_IOERR
        left = size // SEGMENT
        while left:
            if gather(out, <char*>&segment, SEGMENT) != 0:
                return S_IOERR
            left -= 1
            if segment.flags & ~<uint32_t>F_UNMAP or (segment.flags and type == T_DISCARD):
                return S_UNSUPP
            if segment.sectors > self.max_sectors or not self.inside(
                segment.sector, segment.sectors
            ):
                return S_IOERR
        left = size // SEGMENT
        while left:
            # The driver can write here meanwhile: what is used is checked again.
            if gather(&again, <char*>&segment, SEGMENT) != 0:
                return S_IOERR
            left -= 1
            if not self.inside(segment.sector, segment.sectors):
                return S_IOERR
            if segment.sectors and self.clear_range(
                <off_t>(segment.sector * SECTOR), <off_t>segment.sectors * SECTOR, type,
                segment.flags,
            ) != 0:
                return S_IOERR
        return S_OK

    cdef int clear_range(
        self, off_t place, off_t size, uint32_t type, uint32_t flags
    ) noexcept nogil:
        cdef int hole = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
        cdef int zero = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE
        cdef int mode = hole if type == T_DISCARD or flags & F_UNMAP else zero
        cdef int failed = fallocate(self.fd, mode, place, size)
        cdef iovec iov
        cdef off_t part
        if not failed:
            if self.write_through:
                return fdatasync(self.fd)
            return 0
        if errno != EOPNOTSUPP:
            return -1
        # A discard is a hint (5.2.6): a file system that has no holes leaves the data.
        while size and type == T_WRITE_ZEROES:
            part = min(size, <off_t>ZEROES)
            iov.iov_base = zeroes
            iov.iov_len = <size_t>part
            if self.transfer(&iov, 1, place, <uint64_t>part, True) != 0:
                return -1
            place += part
            size -= part
        return 0
