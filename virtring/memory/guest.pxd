from libc.stdint cimport uint32_t, uint64_t

from virtring.memory.snapshot cimport MemoryTable


cdef class GuestMemory:
    cdef MemoryTable snapshot           # replaced, never changed; take a reference to use it
    cdef readonly bint closed
    cdef Py_ssize_t holds               # queues that run over it
    cdef object allocator               # RangeAllocator, or None where only another one allocates
    cdef object creator                 # process id that may use the allocator
    cdef object followers               # WeakSet of what caches ranges of this memory, or None
    cdef object __weakref__
    # Pointers are valid while the caller keeps the snapshot they came from.
    cdef char* host_of(self, uint64_t addr, uint64_t length, uint32_t perm) except NULL
    cdef uint64_t addr_of_host(self, const char* host, uint64_t length) except? 0xFFFFFFFFFFFFFFFF
    # Position in self.snapshot of the range that has it all; asks for a translation when none has.
    cdef Py_ssize_t locate(self, uint64_t addr, uint64_t length, uint32_t perm) except -1
    # After a lookup failed: 1 when the snapshot may have changed and has it now, else 0.
    cdef int resolve_miss(self, uint64_t addr, uint64_t length, uint32_t perm) except -1
    cdef int follow(self, object follower) except -1
    cdef int replace(self, object entries) except -1
    cdef int hold(self) except -1       # close() is refused until the matching release()
    cdef void release(self) noexcept
    cdef int _check_open(self) except -1
    cdef object _allocator(self)
