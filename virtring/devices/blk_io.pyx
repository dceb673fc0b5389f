"""Carries out block requests, from a batch of chains to a file and back, without the GIL."""

from libc.errno cimport EINTR, EOPNOTSUPP, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from posix.types cimport off_t

from virtring.memory.guest cimport GuestMemory
from virtring.memory.snapshot cimport MemoryTable
from virtring.memory.table cimport (
    PERM_READ, PERM_WRITE, guest_lookup, guest_range, guest_table,
)
from virtring.queue.batch cimport Batch
from virtring.spec.ring cimport VRING_DESC_F_WRITE, vring_desc

from virtring.errors import InvalidArgument
from virtring.spec.blk import BLK_ID_BYTES

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
    HEADER = 16
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

cdef char zeroes[ZEROES]
memset(zeroes, 0, ZEROES)


cdef inline void* span(
    const guest_table* table, const vring_desc* d, uint32_t perm
) noexcept nogil:
    cdef const guest_range* r = guest_lookup(table, d.addr, d.len, perm)
    if r == NULL:
        return NULL
    return r.host + (d.addr - r.base)


cdef int gather(const guest_table* table, cursor* c, char* out, size_t size) noexcept nogil:
    """Copy the next ``size`` bytes out; -1 when there are fewer, or memory that went away."""
    cdef size_t part
    cdef char* host
    while size:
        if c.desc == c.end:
            return -1
        part = min(size, <size_t>(c.desc.len - c.offset))
        host = <char*>span(table, c.desc, c.perm)
        if host == NULL:
            return -1
        memcpy(out, host + c.offset, part)
        out += part
        size -= part
        c.offset += <uint32_t>part
        if c.offset == c.desc.len:
            c.desc += 1
            c.offset = 0
    return 0


cdef int scatter(
    const guest_table* table, cursor* c, const char* data, size_t size
) noexcept nogil:
    """Copy ``size`` bytes in, as :func:`gather` does out."""
    cdef size_t part
    cdef char* host
    while size:
        if c.desc == c.end:
            return -1
        part = min(size, <size_t>(c.desc.len - c.offset))
        host = <char*>span(table, c.desc, c.perm)
        if host == NULL:
            return -1
        memcpy(host + c.offset, data, part)
        data += part
        size -= part
        c.offset += <uint32_t>part
        if c.offset == c.desc.len:
            c.desc += 1
            c.offset = 0
    return 0


cdef int vectors(
    const guest_table* table, cursor* c, iovec* iov, uint64_t size, uint64_t* got
) noexcept nogil:
    """The next bytes as at most IOVECS vectors: how many, and their ``got`` bytes; -1 as above."""
    cdef int n = 0
    cdef size_t part
    cdef char* host
    got[0] = 0
    while size and n < IOVECS:
        if c.desc == c.end:
            return -1
        part = <size_t>min(size, <uint64_t>(c.desc.len - c.offset))
        host = <char*>span(table, c.desc, c.perm)
        if host == NULL:
            return -1
        iov[n].iov_base = host + c.offset
        iov[n].iov_len = part
        n += 1
        got[0] += part
        size -= part
        c.offset += <uint32_t>part
        if c.offset == c.desc.len:
            c.desc += 1
            c.offset = 0
    return n


cdef class BlkIo:
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
        if len(serial) > BLK_ID_BYTES:
            raise InvalidArgument(f"the serial number has {len(serial)} bytes; {BLK_ID_BYTES} fit")
        self.fd = fd
        self.capacity = capacity
        self.read_only = read_only
        self.max_segments = max_segments
        self.max_sectors = max_sectors
        memset(self.serial, 0, ID_BYTES)
        memcpy(self.serial, <char*>serial, len(serial))

    def run(self, GuestMemory memory not None, Batch batch not None, size_t start, budget) -> int:
        """Carry out the requests of the rows from ``start`` on; the number of rows done.

        Stops after the row that makes it ``budget`` bytes of data or more. Sets ``written`` of each
        row. What fails is told to the driver by the request's status. Rows that have no room for a
        header and a status end it: ``malformed`` counts them, their ``written`` is 0.
        """
        cdef MemoryTable snapshot = memory.snapshot
        cdef size_t end = batch.rows
        cdef uint64_t limit = budget
        cdef size_t i = start
        cdef uint64_t moved = 0
        if start > end:
            raise InvalidArgument(f"start {start}: the batch has {end} rows")
        with nogil:
            while i < end and moved < limit:
                batch.cols.written[i] = self.request(
                    &snapshot.table,
                    batch.cols.desc + batch.cols.offsets[i],
                    batch.cols.desc + batch.cols.offsets[i + 1],
                    &moved,
                )
                i += 1
        return i - start

    cdef uint32_t request(
        self, const guest_table* table, const vring_desc* first, const vring_desc* end,
        uint64_t* moved
    ) noexcept nogil:
        """One chain: header, data, status byte, however they are cut (2.7.4). Bytes written."""
        cdef cursor out
        cdef cursor into
        cdef char header[HEADER]
        cdef const vring_desc* d = first
        cdef uint64_t readable = 0
        cdef uint64_t writable = 0
        cdef uint8_t* status
        cdef uint8_t result
        cdef uint32_t type
        cdef uint64_t sector
        while d < end and not d.flags & VRING_DESC_F_WRITE:
            readable += d.len
            d += 1
        out.desc, out.end, out.offset, out.perm = first, d, 0, PERM_READ
        into.desc, into.end, into.offset, into.perm = d, end, 0, PERM_WRITE
        while d < end:
            writable += d.len
            d += 1
        if writable == 0 or gather(table, &out, header, HEADER) != 0:
            self.malformed += 1
            return 0
        status = <uint8_t*>span(table, end - 1, PERM_WRITE)
        if status == NULL:
            self.malformed += 1
            return 0
        status += (end - 1).len - 1
        type = (<uint32_t*>header)[0]
        sector = (<uint64_t*>(header + 8))[0]
        writable -= 1
        readable -= HEADER
        if type == T_IN:
            result = self.move(table, &into, sector, writable, False)
            moved[0] += writable
            status[0] = result
            return <uint32_t>(writable + 1) if result == S_OK else 1
        if type == T_OUT:
            moved[0] += readable
            result = self.move(table, &out, sector, readable, True)
        elif type == T_FLUSH:
            result = S_OK if fdatasync(self.fd) == 0 else S_IOERR
        elif type == T_GET_ID:
            if writable < ID_BYTES or scatter(table, &into, self.serial, ID_BYTES) != 0:
                result = S_IOERR
            else:
                status[0] = S_OK
                return ID_BYTES + 1
        elif (type == T_DISCARD and self.discard) or (
            type == T_WRITE_ZEROES and self.write_zeroes
        ):
            result = self.clear(table, &out, readable, type)
        else:
            result = S_UNSUPP
        status[0] = result
        return 1

    cdef bint inside(self, uint64_t sector, uint64_t sectors) noexcept nogil:
        return sector <= self.capacity and sectors <= self.capacity - sector

    cdef uint8_t move(
        self, const guest_table* table, cursor* c, uint64_t sector, uint64_t size, bint write
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
            n = vectors(table, c, iov, size, &part)
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

    cdef uint8_t clear(
        self, const guest_table* table, cursor* out, uint64_t size, uint32_t type
    ) noexcept nogil:
        """DISCARD and WRITE_ZEROES: all segments are checked before the first is touched."""
        cdef cursor again = out[0]
        cdef char segment[SEGMENT]
        cdef uint64_t sector, left
        cdef uint32_t sectors, flags
        if size == 0 or size % SEGMENT or size // SEGMENT > self.max_segments:
            return S_IOERR
        if self.read_only:
            return S_IOERR
        left = size // SEGMENT
        while left:
            if gather(table, out, segment, SEGMENT) != 0:
                return S_IOERR
            left -= 1
            sector = (<uint64_t*>segment)[0]
            sectors = (<uint32_t*>(segment + 8))[0]
            flags = (<uint32_t*>(segment + 12))[0]
            if flags & ~<uint32_t>F_UNMAP or (flags and type == T_DISCARD):
                return S_UNSUPP
            if sectors > self.max_sectors or not self.inside(sector, sectors):
                return S_IOERR
        left = size // SEGMENT
        while left:
            # The driver can write here meanwhile: what is used is checked again.
            if gather(table, &again, segment, SEGMENT) != 0:
                return S_IOERR
            left -= 1
            sector = (<uint64_t*>segment)[0]
            sectors = (<uint32_t*>(segment + 8))[0]
            flags = (<uint32_t*>(segment + 12))[0]
            if not self.inside(sector, sectors):
                return S_IOERR
            if sectors and self.clear_range(
                <off_t>(sector * SECTOR), <off_t>sectors * SECTOR, type, flags
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
