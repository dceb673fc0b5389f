"""Equal buffers inside a guest memory, made once and handed out again and again."""

import operator

import numpy as np

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from libc.stdint cimport uint32_t, uint64_t

from virtring.memory.guest cimport GuestMemory
from virtring.memory.table cimport PERM_RW

from virtring.errors import InvalidArgument, NoSpace, VirtioError


@cython.no_gc_clear
@cython.final
cdef class Block:
    """One allocation of a guest memory, which it gives back when nothing refers to it any more.

    It exports the buffer protocol; ``addr`` is its guest address, ``size`` its length in bytes.
    Raises what :meth:`GuestMemory.alloc` raises.
    """

    def __cinit__(self, GuestMemory memory not None, size, align):
        cdef uint64_t addr = memory.alloc(size, align)
        self.memory = memory
        self.addr = addr
        self.size = size
        self.host = memory.host_of(addr, self.size, PERM_RW)
        self.snapshot = memory.snapshot

    def __dealloc__(self):
        if self.memory is None:
            return
        try:
            self.memory.free(self.addr)
        except VirtioError:
            pass        # closed before us, or we are the copy that a fork made

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.host, <Py_ssize_t>self.size, 0, flags)


@cython.no_gc_clear
@cython.final
cdef class Buffer:
    """One buffer of a :class:`BufferPool`; made by the pool, never directly.

    ``addr`` is its guest address, ``size`` its bytes, ``index`` its place in the pool, ``len`` how
    many of the bytes are in use. It exports the buffer protocol over all ``size`` bytes (writable,
    format ``"B"``): ``numpy.frombuffer(buf, dtype)`` is zero-copy; :attr:`view` is the used part.
    """

    def __init__(self):
        raise InvalidArgument("a Buffer is made by a BufferPool")

    @property
    def len(self) -> int:
        """Bytes in use, from the beginning; ``size`` after ``get()``. Setting more than ``size``
        raises InvalidArgument."""
        return self.used

    @len.setter
    def len(self, value):
        try:
            number = operator.index(value)
        except TypeError:
            raise InvalidArgument(f"len is {value!r}; it takes an integer") from None
        if not 0 <= number <= self.size:
            raise InvalidArgument(f"len is {number}; this buffer takes 0 to {self.size}")
        self.used = number

    @property
    def view(self) -> memoryview:
        """Writable memoryview of the used bytes, ``[0:len]``."""
        return memoryview(self)[: self.used]

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.host, <Py_ssize_t>self.size, 0, flags)

    def __repr__(self):
        return f"<Buffer {self.index} addr={self.addr:#x} len={self.used} of {self.size}>"


@cython.final
cdef class BufferPool:
    """``count`` buffers of ``size`` bytes each in one allocation of ``memory``.

    Each begins at a multiple of ``align`` (a power of two); the distance between two is ``stride``,
    ``size`` rounded up to ``align``. The allocation goes back when the pool, its buffers and all
    arrays over it are gone.

    For batches: ``addrs`` is a read-only numpy uint64 array of the ``count`` guest addresses,
    ``array`` a writable numpy uint8 array ``(count, stride)`` over the memory itself.

    Raises InvalidArgument for wrong numbers, and what :meth:`GuestMemory.alloc` raises.
    """

    def __init__(self, memory, count, size, *, align=64):
        cdef Buffer buf
        cdef uint32_t i
        if not isinstance(memory, GuestMemory):
            raise InvalidArgument(f"memory is {memory!r}; it takes a GuestMemory")
        try:
            count, size, align = [operator.index(number) for number in (count, size, align)]
        except TypeError:
            raise InvalidArgument("count, size and align must be integers") from None
        if not 1 <= count < 1 << 32 or not 1 <= size < 1 << 32:
            raise InvalidArgument(f"count is {count} and size {size}; each takes 1 to 2**32 - 1")
        if not 1 <= align <= 1 << 30 or align & (align - 1):
            raise InvalidArgument(f"align is {align}; it takes a power of two up to 2**30")
        stride = -(-size // align) * align
        block = Block(memory, count * stride, align)
        self.memory = memory
        self.block = block
        self.size = size
        self.stride = stride
        self.addrs = np.arange(count, dtype=np.uint64) * np.uint64(stride) + np.uint64(block.addr)
        self.addrs.setflags(write=False)
        self.array = np.frombuffer(block, np.uint8).reshape(count, stride)
        self.buffers = []
        for i in range(<uint32_t>count):
            buf = Buffer.__new__(Buffer)
            buf.block = self.block
            buf.addr = self.block.addr + i * self.stride
            buf.host = self.block.host + i * self.stride
            buf.size = self.size
            buf.used = self.size
            buf.index = i
            self.buffers.append(buf)
        self.ready = self.buffers[::-1]

    cpdef Buffer get(self):
        """A buffer that nobody has, with ``len`` set to ``size``; the one put back last first.

        Raises NoSpace when all are out.
        """
        cdef Buffer buf
        if not self.ready:
            raise NoSpace(f"all {len(self.buffers)} buffers of the pool are out")
        buf = self.ready.pop()
        buf.out = True
        buf.used = buf.size
        return buf

    cpdef put(self, Buffer buf):
        """Give back a buffer. Raises InvalidArgument when it is another pool's, or not out."""
        if buf is None or buf.block is not self.block:
            raise InvalidArgument(f"{buf!r} is not a buffer of this pool")
        if not buf.out:
            raise InvalidArgument(f"buffer {buf.index} is not out: it was put back before")
        buf.out = False
        self.ready.append(buf)

    @property
    def free_count(self) -> int:
        """How many buffers :meth:`get` can hand out now."""
        return len(self.ready)

    def __len__(self):
        return len(self.buffers)

    def __getitem__(self, index):
        """The buffer with that index, whether out or not. Raises IndexError."""
        cdef Py_ssize_t i
        try:
            i = operator.index(index)
        except TypeError:
            raise InvalidArgument(f"index is {index!r}; it takes an integer") from None
        if i < 0:
            i += len(self.buffers)
        if not 0 <= i < len(self.buffers):
            raise IndexError(f"index {index} of a pool of {len(self.buffers)} buffers")
        return self.buffers[i]

    def __repr__(self):
        return f"<BufferPool {len(self.buffers)} x {self.size}, {len(self.ready)} free>"
