from libc.stdint cimport uint32_t

from virtring.rpmsg.messages cimport Messages
from virtring.rpmsg.port cimport Port


cdef class EndpointCore:
    cdef readonly object bus
    cdef readonly uint32_t addr
    cdef uint32_t to                    # dst
    cdef public object callback
    cdef public object batch_callback
    cdef public Py_ssize_t backlog
    cdef public object channel
    cdef public bint destroyed
    cdef readonly object waiting        # deque of (payload, src, flags)
    cdef Port port
    cdef object tx_lock
    cdef object rx_lock

    cdef int check(self) except -1
    cdef int check_own(self) except -1
    cdef int hear(self, uint32_t src) except -1
    cdef int send_data(self, uint32_t dst, object data, bint wait) except -1
    cdef Py_ssize_t send_rows(
        self, Messages m, object start, object count, uint32_t dst, bint wait
    ) except -1
    cdef uint32_t known(self) except? 0
    cdef bint straight(self) except -1
    cdef object take(self)
    cdef Py_ssize_t take_rows(self, Messages m) except -1
