# cython: language_level=3, boundscheck=False, wraparound=False
"""Somebody else's module: drives both sides of a ring through virtring's C API, without the GIL."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from virtring.memory.table cimport PERM_RW, guest_lookup, guest_range
from virtring.queue.batch cimport Batch
from virtring.queue.device cimport DeviceQueue
from virtring.queue.driver cimport Virtqueue
from virtring.ring.common cimport VR_OK
from virtring.ring.device cimport device_pop, device_push
from virtring.ring.driver cimport driver_add_rows, driver_get
from virtring.spec.ring cimport VRING_DESC_F_WRITE


cdef int add(Virtqueue vq, Batch rows, size_t n) noexcept nogil:
    if vq.packed:
        return driver_add_rows(
            &vq.pack, &vq.table.table, rows.cols.desc, rows.cols.token, n,
            VRING_DESC_F_WRITE,
        )
    return driver_add_rows(
        &vq.split, &vq.table.table, rows.cols.desc, rows.cols.token, n,
        VRING_DESC_F_WRITE,
    )


cdef int serve(DeviceQueue dq, Batch rows, size_t room, size_t* n) noexcept nogil:
    """The device: count every byte of every buffer up by one, and give it back."""
    cdef const guest_range* r
    cdef uint8_t* data
    cdef size_t row
    cdef size_t done = 0
    cdef uint32_t i
    cdef int code
    if dq.packed:
        code = device_pop(&dq.pack, &dq.table.table, &rows.cols, room, n)
    else:
        code = device_pop(&dq.split, &dq.table.table, &rows.cols, room, n)
    if code != VR_OK:
        return code
    for row in range(n[0]):
        r = guest_lookup(
            &dq.table.table, rows.cols.desc[row].addr, rows.cols.desc[row].len, PERM_RW
        )
        if r == NULL:
            return -1
        data = <uint8_t*>r.host + (rows.cols.desc[row].addr - r.base)
        for i in range(rows.cols.desc[row].len):
            data[i] += 1
        rows.cols.written[row] = rows.cols.desc[row].len
    if dq.packed:
        return device_push(&dq.pack, rows.cols.id, rows.cols.written, n[0], &done)
    return device_push(&dq.split, rows.cols.id, rows.cols.written, n[0], &done)


cdef int take(Virtqueue vq, Batch rows, size_t room, size_t* n) noexcept nogil:
    if vq.packed:
        return driver_get(&vq.pack, rows.cols.token, rows.cols.written, room, n)
    return driver_get(&vq.split, rows.cols.token, rows.cols.written, room, n)


def rounds(
    Virtqueue vq not None, DeviceQueue dq not None, Batch add_rows not None,
    Batch dev_rows not None, Batch got_rows not None, size_t n, size_t times
):
    """Send n rows round the ring so many times; (code, buffers back, sum of their tokens)."""
    cdef size_t popped = 0
    cdef size_t taken = 0
    cdef size_t total = 0
    cdef uint64_t tokens = 0
    cdef size_t k
    cdef int code = VR_OK
    with nogil:
        for _ in range(times):
            code = add(vq, add_rows, n)
            if code == VR_OK:
                code = serve(dq, dev_rows, n, &popped)
            if code == VR_OK:
                code = take(vq, got_rows, n, &taken)
            if code != VR_OK:
                break
            total += taken
            for k in range(taken):
                tokens += got_rows.cols.token[k]
    return code, total, tokens
