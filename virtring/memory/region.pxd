cdef class Region:
    cdef readonly size_t size           # bytes
    cdef readonly int fd                # -1 when the region has none
    cdef readonly str kind              # "anonymous" | "memfd" | "file" | "buffer"
    cdef char* base                     # NULL once closed
    cdef Py_ssize_t exports             # buffer views that are out
    cdef object owner                   # what keeps a caller-given buffer alive
    cdef int _check_open(self) except -1
