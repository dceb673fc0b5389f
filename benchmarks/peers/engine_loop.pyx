# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The engine without Python in the loop: one thread drives both sides and reads the clock."""

from libc.stdint cimport int64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from virtring.queue.batch cimport Batch
from virtring.queue.device cimport DeviceQueue
from virtring.queue.driver cimport Virtqueue
from virtring.ring.common cimport VR_OK
from virtring.ring.device cimport device_pop, device_push
from virtring.ring.driver cimport driver_add_rows, driver_get


cdef inline int64_t now_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t>t.tv_sec * 1_000_000_000 + t.tv_nsec


cdef inline int add(Virtqueue vq, Batch rows, size_t n) noexcept nogil:
    if vq.packed:
        return driver_add_rows(
            &vq.pack, &vq.table.table, rows.cols.desc, rows.cols.token, n, 0
        )
    return driver_add_rows(
        &vq.split, &vq.table.table, rows.cols.desc, rows.cols.token, n, 0
    )


cdef inline int pop(DeviceQueue dq, Batch rows, size_t room, size_t* n) noexcept nogil:
    if dq.packed:
        return device_pop(&dq.pack, &dq.table.table, &rows.cols, room, n)
    return device_pop(&dq.split, &dq.table.table, &rows.cols, room, n)


cdef inline int push(DeviceQueue dq, Batch rows, size_t n, size_t* done) noexcept nogil:
    if dq.packed:
        return device_push(&dq.pack, rows.cols.id, rows.cols.written, n, done)
    return device_push(&dq.split, rows.cols.id, rows.cols.written, n, done)


cdef inline int get(Virtqueue vq, Batch rows, size_t room, size_t* n) noexcept nogil:
    if vq.packed:
        return driver_get(&vq.pack, rows.cols.token, rows.cols.written, room, n)
    return driver_get(&vq.split, rows.cols.token, rows.cols.written, room, n)


def rounds(
    Virtqueue vq not None, DeviceQueue dq not None, Batch rows not None, Batch popped not None,
    Batch used not None, size_t n, size_t times
) -> float:
    """Nanoseconds for n buffers round the ring, so many times over."""
    cdef size_t some = 0
    cdef int code = VR_OK
    cdef int64_t start
    with nogil:
        start = now_ns()
        for _ in range(times):
            code = add(vq, rows, n)
            if code == VR_OK:
                code = pop(dq, popped, n, &some)
            if code == VR_OK:
                code = push(dq, popped, some, &some)
            if code == VR_OK:
                code = get(vq, used, n, &some)
            if code != VR_OK or some != n:
                break
        start = now_ns() - start
    if code != VR_OK or some != n:
        raise RuntimeError(f"code {code}: {some} of {n} buffers came back")
    return start


def parts(
    Virtqueue vq not None, DeviceQueue dq not None, Batch rows not None, Batch popped not None,
    Batch used not None, size_t n, size_t times
) -> tuple:
    """As rounds, but nanoseconds of add, pop, push and get apart; the clock is in them."""
    cdef size_t some = n
    cdef int code = VR_OK
    cdef int64_t spent[4]
    cdef int64_t at
    cdef int64_t then
    cdef int i
    for i in range(4):
        spent[i] = 0
    with nogil:
        for _ in range(times):
            at = now_ns()
            for i in range(4):
                if i == 0:
                    code = add(vq, rows, n)
                elif i == 1:
                    code = pop(dq, popped, n, &some)
                elif i == 2:
                    code = push(dq, popped, n, &some)
                else:
                    code = get(vq, used, n, &some)
                if code != VR_OK or some != n:
                    break
                then = now_ns()
                spent[i] += then - at
                at = then
            if code != VR_OK or some != n:
                break
    if code != VR_OK or some != n:
        raise RuntimeError(f"code {code}: {some} of {n} buffers came back")
    return spent[0], spent[1], spent[2], spent[3]


def serve(DeviceQueue dq not None, Batch popped not None, size_t n) -> float:
    """Nanoseconds to pop n chains and push them."""
    cdef size_t some = 0
    cdef int code
    cdef int64_t start
    with nogil:
        start = now_ns()
        code = pop(dq, popped, n, &some)
        if code == VR_OK and some == n:
            code = push(dq, popped, n, &some)
        start = now_ns() - start
    if code != VR_OK or some != n:
        raise RuntimeError(f"code {code}: {some} of {n} chains")
    return start
