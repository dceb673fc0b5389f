"""A look at what a side knows and at its ring, for :mod:`virtring.queue.describe`: reads only.

Nothing here checks, moves or asks for anything: no store to the ring, no request for a translation
that is missing, and an error that waits to be raised keeps waiting.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t, uint64_t

from virtring.memory.table cimport PERM_READ, PERM_WRITE, guest_lookup, guest_range
from virtring.queue.device cimport DeviceQueue
from virtring.queue.driver cimport Virtqueue
from virtring.queue.side cimport QueueSide
from virtring.ring.common cimport DONE, FREE, note_extra, note_in_len, note_ndesc
from virtring.ring.packed_driver cimport packed_callbacks_on
from virtring.ring.split_driver cimport split_callbacks_on
from virtring.spec.ring cimport (
    VRING_PACKED_DESC_F_AVAIL, VRING_PACKED_EVENT_FLAG_DISABLE, VRING_USED_F_NO_NOTIFY,
)

from virtring.errors import InvalidArgument

cdef enum:
    PACKED_IDS = 65536


def callbacks_on(Virtqueue vq not None) -> bool:
    """Whether the driver side asks for notifications at the moment."""
    return packed_callbacks_on(&vq.pack) if vq.packed else split_callbacks_on(&vq.split)


def notify_on(DeviceQueue dq not None) -> bool:
    """Whether the device side asks for kicks at the moment."""
    if dq.packed:
        return dq.pack.event_flags_shadow != VRING_PACKED_EVENT_FLAG_DISABLE
    return not dq.split.used_flags_shadow & VRING_USED_F_NO_NOTIFY


def side_state(QueueSide side not None) -> dict:
    """Everything the side keeps in private memory. QueueClosed, QueueBusy, InvalidArgument."""
    if side.closed or side.busy:
        side.refuse()
    if side.config is None:
        raise InvalidArgument("the queue is not configured; call configure() first")
    if isinstance(side, Virtqueue):
        state = _driver_state(side)
    else:
        state = _device_state(side)
    state["broken"] = bool(side.broken)
    state["error"] = str(side.pending) if side.pending is not None else ""
    return state


cdef dict _driver_state(Virtqueue vq):
    cdef uint32_t id
    cdef uint64_t note
    cdef list order = []
    cdef list buffers = []
    for id in range(vq.s.num):
        note = vq.s.state[id].note
        if note:
            token = vq.tokens[id]
            buffers.append((
                id, note_ndesc(note), note_in_len(note),
                vq.s.state[id].token if token is None else token,
            ))
    if vq.s.in_order:
        id = vq.s.order_head
        while len(order) < vq.s.in_flight and vq.s.state[id].note:
            order.append(id)
            id = vq.s.next[id ^ note_extra(vq.s.state[id].note)]
    state = {
        "num_free": vq.s.num_free,
        "in_flight": vq.s.in_flight,
        "num_added": vq.s.num_added,
        "in_order": bool(vq.s.in_order),
        "group": (vq.s.group_id, vq.s.group_len) if vq.s.group else None,
        "order": order,
        "buffers": buffers,
    }
    if vq.packed:
        state["avail"] = vq.pack.next_avail_idx
        state["avail_wrap"] = int((vq.pack.avail_used_flags & VRING_PACKED_DESC_F_AVAIL) != 0)
        state["used"] = vq.pack.last_used_idx
        state["used_wrap"] = int(vq.pack.used_flags != 0)
    else:
        state["avail"] = vq.split.avail_idx
        state["used"] = vq.split.last_used_idx
        state["seen"] = vq.split.used_idx
    return state


cdef dict _device_state(DeviceQueue dq):
    cdef uint32_t id
    cdef uint64_t note
    cdef list buffers = []
    for id in range(PACKED_IDS if dq.packed else dq.s.num):
        note = dq.s.held[id]
        if note_extra(note) != FREE:
            buffers.append((id, note_ndesc(note), note_in_len(note), note_extra(note) == DONE))
    state = {
        "in_flight": dq.s.in_flight,
        "num_added": dq.s.num_added,
        "buffers": buffers,
    }
    if dq.packed:
        state["avail"] = dq.pack.last_avail_idx
        state["avail_wrap"] = int((dq.pack.avail_flags & VRING_PACKED_DESC_F_AVAIL) != 0)
        state["used"] = dq.pack.used_idx
        state["used_wrap"] = int(dq.pack.used_flags != 0)
    else:
        state["avail"] = dq.split.last_avail_idx
        state["used"] = dq.split.used_idx
        state["seen"] = dq.split.avail_idx
    return state


def ring_bytes(QueueSide side not None) -> tuple[bytes, bytes, bytes]:
    """Copies of the descriptor, driver and device areas, as they stand now.

    The two that tell what is in the ring are taken before the descriptors, so that nothing they
    announce is missing there.
    """
    cdef size_t num
    if side.closed or side.busy:
        side.refuse()
    if side.packed:
        num = side.packed_desc.shape[0]
        driver = PyBytes_FromStringAndSize(<char*>&side.driver_event[0], 4)
        device = PyBytes_FromStringAndSize(<char*>&side.device_event[0], 4)
        return PyBytes_FromStringAndSize(<char*>&side.packed_desc[0], 16 * num), driver, device
    num = side.desc.shape[0]
    driver = PyBytes_FromStringAndSize(<char*>&side.avail[0], 6 + 2 * num)
    device = PyBytes_FromStringAndSize(<char*>&side.used[0], 6 + 8 * num)
    return PyBytes_FromStringAndSize(<char*>&side.desc[0], 16 * num), driver, device


def reachable(QueueSide side not None, uint64_t addr, uint64_t length, bint write) -> bool:
    """Whether the range lies in the memory with the right to write (else: to read) it."""
    return length and guest_lookup(
        &side.memory.snapshot.table, addr, length, PERM_WRITE if write else PERM_READ
    ) != NULL


def peek(QueueSide side not None, uint64_t addr, uint64_t length):
    """A copy of guest memory, or None when it is not all there."""
    cdef const guest_range* r = guest_lookup(&side.memory.snapshot.table, addr, length, PERM_READ)
    if r == NULL:
        return None
    return PyBytes_FromStringAndSize(r.host + (addr - r.base), length)
