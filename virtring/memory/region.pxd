from libc.stdint cimport uint64_t


cdef class Region:
    cdef readonly size_t size           # bytes
    cdef readonly int fd                # -1 when the region has none
    cdef readonly str kind              # "anonymous" | "memfd" | "file" | "buffer"
    cdef readonly uint64_t offset       # where the region begins in the file of fd
    cdef readonly bint writable
    cdef char* base                     # NULL once closed
    cdef size_t mapped                  # bytes to unmap; 0 when the memory is not ours
    cdef Py_ssize_t exports             # buffer views that are out
    cdef Py_ssize_t holds               # tables and queues that point into it
    cdef object owner                   # what keeps a caller-given buffer alive
    cdef int _check_open(self) except -1
    cdef int hold(self) except -1       # close() is refused until the matching release()
    cdef void release(self) noexcept
    cdef int _map(self, size_t length, int prot, int flags, int fd, uint64_t offset) except -1
    cdef void _unmap(self) noexcept
    # A memoryview of a part that the caller has checked; it counts as an export while it lives.
    cdef object part(self, char* host, size_t length, bint writable)


cdef class Part:
    cdef Region region
    cdef char* host
    cdef Py_ssize_t size
    cdef bint writable
