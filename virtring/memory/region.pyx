"""One shared mapping: anonymous, a memfd, a file, or memory that the caller brings along."""

import errno
import fcntl
import mmap
import operator
import os
from multiprocessing import reduction

cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_FillInfo
from cpython.memoryview cimport PyMemoryView_FromObject, PyMemoryView_GET_BUFFER
from libc.errno cimport errno as c_errno
from libc.stdint cimport uint64_t
from posix.mman cimport MAP_ANONYMOUS, MAP_SHARED, PROT_READ, PROT_WRITE
from posix.unistd cimport close as c_close

from virtring.errors import InvalidArgument, MemoryInUse, NotSupported, OutOfMemory, QueueClosed
from virtring.memory import handover

cdef extern from "<sys/mman.h>" nogil:
    void* c_mmap "mmap"(void* addr, size_t length, int prot, int flags, int fd, long long offset)
    int c_munmap "munmap"(void* addr, size_t length)
    int c_madvise "madvise"(void* addr, size_t length, int advice)
    int MADV_DONTNEED, MADV_REMOVE
    void* MAP_FAILED

cdef extern from "<sys/vfs.h>" nogil:
    struct c_statfs "statfs":
        long f_type
        long f_bsize
    int c_fstatfs "fstatfs"(int fd, c_statfs* buf)

DEF_NAME = "virtring"
cdef object PAGE = mmap.PAGESIZE
cdef object SIZE_MAX = (1 << 63) - 1
cdef long HUGETLBFS_MAGIC = 0x958458F6
cdef int SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


cdef object _count(object value, str what, object low):
    """``value`` as an int from ``low`` to 2**63 - 1, or InvalidArgument."""
    try:
        number = operator.index(value)
    except TypeError:
        raise InvalidArgument(f"{what} is {value!r}; it takes an integer") from None
    if not low <= number <= SIZE_MAX:
        raise InvalidArgument(f"{what} is {number}; it takes {low} to 2**63 - 1")
    return number


cdef size_t _page_of(int fd) noexcept nogil:
    """Mapping granularity of a file: the huge page size on hugetlbfs, else 0."""
    cdef c_statfs info
    if c_fstatfs(fd, &info) == 0 and info.f_type == HUGETLBFS_MAGIC:
        return <size_t>info.f_bsize
    return 0


@cython.no_gc_clear
cdef class Region:
    """A span of memory that two sides share. Made by one of the class methods, never directly.

    It exports the buffer protocol (format ``"B"``, one dimension of ``size`` bytes), so
    ``memoryview(region)`` and ``numpy.frombuffer(region, dtype)`` are zero-copy. While such a view
    lives, or a :class:`~virtring.memory.guest.GuestMemory` contains the region, ``close()`` is
    refused; a view keeps the mapping alive even when the region's own name is gone.

    Attributes: ``size`` in bytes; ``fd``, -1 when there is none; ``kind``, one of ``"anonymous"``,
    ``"memfd"`` (a descriptor whose file cannot shrink), ``"file"``, ``"buffer"``; ``offset``, where
    the region begins in the file; ``writable``.
    """

    def __cinit__(self):
        self.fd = -1
        self.base = NULL
        self.kind = "closed"

    def __init__(self):
        raise InvalidArgument(
            "a Region is made by Region.anonymous, memfd, from_fd, from_buffer or receive"
        )

    # -- making one ----------------------------------------------------------------------------

    @classmethod
    def anonymous(cls, size) -> Region:
        """``size`` bytes of zeroed shared memory without a file: a fork shares it, nobody else.

        Raises InvalidArgument for a size below 1, OutOfMemory when the kernel has none.
        """
        cdef size_t length = _count(size, "size", 1)
        cdef Region self = Region.__new__(Region)
        self._map(length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)
        self.size = length
        self.kind = "anonymous"
        self.writable = True
        return self

    @classmethod
    def memfd(cls, size, name=DEF_NAME, *, seal=True, hugepages=False) -> Region:
        """``size`` bytes of zeroed memory behind a file descriptor that other processes can map.

        ``seal`` fixes the size for good (F_SEAL_SHRINK, GROW, SEAL; memfd_create(2)), so that no
        peer can cut the file short and make our next access a SIGBUS. ``hugepages`` takes the
        system's default huge pages; ``size`` is then a multiple of them.

        Raises InvalidArgument for a wrong size or name, OutOfMemory when there is no memory (or no
        free huge page), OSError when the kernel refuses a descriptor.
        """
        number = _count(size, "size", 1)
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        if hugepages:
            flags |= os.MFD_HUGETLB
        try:
            fd = os.memfd_create(name, flags)
        except (TypeError, ValueError) as error:
            raise InvalidArgument(f"name is {name!r}; it takes a short string ({error})") from None
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise InvalidArgument(
                f"name is {name!r}; it takes at most 249 bytes (or there are no huge pages)"
            ) from None
        try:
            page = _page_of(fd)
            if page and number % page:
                raise InvalidArgument(
                    f"size is {number}; with huge pages it takes a multiple of {page}"
                )
            try:
                os.ftruncate(fd, number)
            except OSError as error:
                raise OutOfMemory(f"a memfd of {number} bytes: {error.strerror}") from None
            if seal:
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
            return _from_own_fd(fd, number, 0, True, "memfd")
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def from_fd(cls, fd, size=None, offset=0, *, writable=True) -> Region:
        """Map ``size`` bytes at ``offset`` of an open file; ``fd`` stays the caller's.

        ``size=None`` means up to the end of the file. ``offset`` is a multiple of the page size.
        F_SEAL_SHRINK is put on the file if it takes seals, before its size is looked at; on a file
        that takes none, the other side can still cut it short (then an access is a SIGBUS).

        Raises InvalidArgument when fd is not a file that can be mapped (so), when the range is
        empty or not inside the file, or when the offset is not aligned.
        """
        number = _count(fd, "fd", 0)
        start = _count(offset, "offset", 0)
        length = None if size is None else _count(size, "size", 1)
        try:
            own = os.dup(number)
        except OverflowError:
            raise InvalidArgument(f"fd is {number}, which is no file descriptor") from None
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            raise InvalidArgument(f"fd {number} is not an open file descriptor") from None
        try:
            return _checked_file(own, length, start, bool(writable))
        except BaseException:
            os.close(own)
            raise

    @classmethod
    def from_buffer(cls, obj) -> Region:
        """The memory of a writable, contiguous buffer: bytearray, numpy array, mmap, shm.buf.

        The buffer stays exported (a bytearray cannot be resized, for example) until ``close()``.
        Who shares it is the caller's business.

        Raises InvalidArgument when it is no such buffer, is empty, or holds Python objects.
        """
        cdef Region self
        try:
            view = memoryview(obj)
        except (TypeError, ValueError, BufferError) as error:
            raise InvalidArgument(f"this {type(obj).__name__} is no buffer: {error}") from None
        if view.readonly:
            raise InvalidArgument(f"this {type(obj).__name__} is read-only; a region is writable")
        if not view.c_contiguous:
            raise InvalidArgument(f"this {type(obj).__name__} is not C-contiguous")
        if view.nbytes == 0:
            raise InvalidArgument("the buffer is empty; a region has at least one byte")
        if "O" in view.format:
            raise InvalidArgument("the buffer holds Python objects; it takes plain numbers")
        self = Region.__new__(Region)
        self.owner = view
        self.base = <char*>PyMemoryView_GET_BUFFER(view).buf
        self.size = view.nbytes
        self.kind = "buffer"
        self.writable = True
        return self

    # -- passing it on -------------------------------------------------------------------------

    def send(self, sock) -> None:
        """Send the file descriptor with size and offset over a blocking AF_UNIX socket.

        Raises NotSupported for a region without a file, QueueClosed when it is closed, and what
        the socket raises.
        """
        self._check_open()
        self._need_file("sent over a socket")
        handover.send(sock, self.fd, self.size, self.offset, bool(self.writable))

    @classmethod
    def receive(cls, sock) -> Region:
        """The region that the other end of a blocking AF_UNIX socket sends with :meth:`send`.

        What came is checked like the arguments of :meth:`from_fd`. Raises PeerDied when the socket
        was closed, InvalidArgument for a message that is not a region; no descriptor is leaked.
        """
        fd, size, offset, writable = handover.receive(sock)
        try:
            return cls.from_fd(fd, size, offset, writable=writable)
        finally:
            os.close(fd)

    def __reduce__(self):
        self._check_open()
        self._need_file("pickled")
        return _unpickle, (reduction.DupFd(self.fd), self.size, self.offset, bool(self.writable))

    def _need_file(self, verb):
        if self.fd < 0:
            raise NotSupported(
                f"a region of kind {self.kind!r} has no file descriptor and cannot be {verb};"
                " use Region.memfd"
            )

    # -- giving pages back ---------------------------------------------------------------------

    def discard(self, offset, length) -> int:
        """Give the whole host pages in ``length`` bytes at ``offset`` back to the system.

        They read as zeros afterwards, for everyone who maps them. Gives the number of bytes given
        back: what shares a page with a neighbour stays as it was. Memory from
        :meth:`from_buffer` must be private or shared memory, not a private mapping of a file.

        Raises InvalidArgument for a range outside the region, NotSupported for a read-only region
        and where the kernel cannot do it (file systems without holes, locked pages), QueueClosed.
        """
        cdef size_t page, start, end
        cdef int code
        self._check_open()
        first, count = _count(offset, "offset", 0), _count(length, "length", 1)
        if first + count > self.size:
            raise InvalidArgument(
                f"{count} bytes at offset {first:#x} of a region of {self.size:#x} bytes"
            )
        if not self.writable:
            # Newer kernels would make the hole all the same, the file being open for writing.
            raise NotSupported(f"pages of {self!r} cannot be given back: it is read-only")
        page = (_page_of(self.fd) if self.fd >= 0 else 0) or <size_t>PAGE
        start = <size_t>self.base + <size_t>first
        end = (start + <size_t>count) // page * page
        start = (start + page - 1) // page * page
        if start >= end:
            return 0
        # Shared pages have a file behind them, in which a hole is made; private ones have none
        # (EINVAL), and dropping them is enough.
        if c_madvise(<void*>start, end - start, MADV_REMOVE):
            code = c_errno
            if code == errno.EINVAL and self.kind == "buffer":
                code = c_errno if c_madvise(<void*>start, end - start, MADV_DONTNEED) else 0
            if code:
                raise NotSupported(f"pages of {self!r} cannot be given back: {os.strerror(code)}")
        return end - start

    # -- its life ------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether ``close()`` was called."""
        return self.base == NULL

    def close(self) -> None:
        """Unmap the memory and close the descriptor. Again is fine.

        Raises MemoryInUse while views of it, or a guest memory or queue over it, live.
        """
        if self.base == NULL:
            return
        if self.exports:
            raise MemoryInUse(f"{self.exports} views of the region live; release them first")
        if self.holds:
            raise MemoryInUse(f"{self.holds} guest memories or queues use the region")
        self._unmap()

    def __enter__(self):
        self._check_open()
        return self

    def __exit__(self, kind, error, trace):
        # Frames of an exception on its way keep their views alive; it is not to be masked.
        if kind is None or not (self.exports or self.holds):
            self.close()

    def __dealloc__(self):
        self._unmap()

    def __len__(self):
        return self.size

    def __repr__(self):
        state = "closed" if self.base == NULL else f"fd={self.fd}" if self.fd >= 0 else "no fd"
        return f"<Region {self.kind} size={self.size:#x} offset={self.offset:#x} {state}>"

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        self._check_open()
        if (flags & PyBUF_WRITABLE) == PyBUF_WRITABLE and not self.writable:
            buffer.obj = None
            raise BufferError("the region is read-only")
        PyBuffer_FillInfo(buffer, self, self.base, <Py_ssize_t>self.size, not self.writable, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer* buffer):
        self.exports -= 1

    # -- for the layers above ------------------------------------------------------------------

    cdef int _check_open(self) except -1:
        if self.base == NULL:
            raise QueueClosed("the region is closed")
        return 0

    cdef object part(self, char* host, size_t length, bint writable):
        cdef Part part
        self._check_open()
        part = Part.__new__(Part)
        part.region = self
        part.host = host
        part.size = <Py_ssize_t>length
        part.writable = writable and self.writable
        self.exports += 1
        return PyMemoryView_FromObject(part)

    cdef int hold(self) except -1:
        self._check_open()
        self.holds += 1
        return 0

    cdef void release(self) noexcept:
        self.holds -= 1

    cdef int _map(self, size_t length, int prot, int flags, int fd, uint64_t offset) except -1:
        cdef void* where = c_mmap(NULL, length, prot, flags, fd, <long long>offset)
        cdef int code = c_errno
        if where == MAP_FAILED:
            if code == errno.ENOMEM:
                raise OutOfMemory(f"mapping {length} bytes: {os.strerror(code)}")
            if code in (errno.EAGAIN, errno.ENFILE):
                raise OSError(code, os.strerror(code))
            raise InvalidArgument(f"the file cannot be mapped: {os.strerror(code)}")
        self.base = <char*>where
        self.mapped = length
        return 0

    cdef void _unmap(self) noexcept:
        if self.base != NULL and self.mapped:
            c_munmap(self.base, self.mapped)
        if self.fd >= 0:
            c_close(self.fd)
        self.base = NULL
        self.mapped = 0
        self.fd = -1
        self.owner = None


@cython.no_gc_clear
@cython.final
@cython.freelist(32)
cdef class Part:
    """What a memoryview of a part of a region points to; cheaper than slicing a view of it all."""

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.host, self.size, not self.writable, flags)

    def __dealloc__(self):
        if self.region is not None:
            self.region.exports -= 1


cdef Region _from_own_fd(int fd, object size, object offset, bint writable, str kind):
    """Map a checked range; on success the region owns ``fd``."""
    cdef Region self = Region.__new__(Region)
    cdef size_t page = _page_of(fd)
    cdef size_t length = size
    if page:
        length = (length + page - 1) // page * page    # munmap(2) takes whole huge pages
    self._map(length, PROT_READ | (PROT_WRITE if writable else 0), MAP_SHARED, fd, offset)
    self.fd = fd
    self.size = size
    self.offset = offset
    self.kind = kind
    self.writable = writable
    return self


cdef Region _checked_file(int fd, object size, object offset, bint writable):
    cdef str kind = "file"
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    except OSError:
        pass        # no sealable file, or sealed already
    try:
        if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
            kind = "memfd"
    except OSError:
        pass
    # Looked at after the seal, so that it cannot change in between.
    total = os.fstat(fd).st_size
    page = _page_of(fd) or PAGE
    if offset % page:
        raise InvalidArgument(f"offset is {offset:#x}; it takes a multiple of {page:#x}")
    if size is None:
        size = total - offset
    if size < 1 or offset > total or size > total - offset:
        raise InvalidArgument(
            f"{size} bytes at offset {offset:#x} are not inside the file of {total} bytes"
        )
    return _from_own_fd(fd, size, offset, writable, kind)


def _unpickle(handle, size, offset, writable):
    fd = handle.detach()
    try:
        return Region.from_fd(fd, size, offset, writable=writable)
    finally:
        os.close(fd)
