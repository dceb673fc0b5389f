"""What the driver and the device side of a queue have in common: ring memory, state, errors."""

import numpy as np

cimport cython
from libc.stdint cimport uint64_t

from virtring.memory.guest cimport GuestMemory

from virtring.errors import (
    AddressError,
    QueueBroken,
    QueueBusy,
    QueueClosed,
    engine_error,
)
from virtring.queue.config import avail_bytes, desc_bytes, used_bytes
from virtring.spec.dtypes import VRING_DESC, VRING_PACKED_DESC, VRING_PACKED_DESC_EVENT
from virtring.spec.dtypes import VRING_USED_ELEM


@cython.no_gc_clear
@cython.final
cdef class MemoryHold:
    """Keeps a guest memory from being closed as long as it lives."""

    def __cinit__(self, GuestMemory memory not None):
        memory.hold()
        self.memory = memory

    def __dealloc__(self):
        if self.memory is not None:
            self.memory.release()


cdef class QueueSide:
    """Base of :class:`Virtqueue` and :class:`DeviceQueue`.

    A side belongs to one thread at a time. A call from a second thread while a batch runs without
    the GIL raises QueueBusy; otherwise the GIL keeps calls apart, and their order is the caller's.
    """

    @property
    def name(self) -> str:
        """The queue's name, as given when it was made."""
        return self.config.name if self.config is not None else ""

    @property
    def index(self) -> int:
        """The queue's number in its device."""
        return self.config.index if self.config is not None else 0

    @property
    def features(self):
        """The negotiated :class:`~virtring.spec.features.Feature` bits."""
        return self.config.features

    @property
    def is_closed(self) -> bool:
        return self.closed

    cdef int bind_areas(self, object config) except -1:
        """Take typed views of the ring's areas, which pin the memory. Changes nothing on error."""
        cdef size_t num = config.size
        packed = config.packed
        views = {}
        for area, size in (
            ("desc", desc_bytes(num)),
            ("avail", avail_bytes(num, packed)),
            ("used", used_bytes(num, packed)),
        ):
            addr = getattr(config, area)
            try:
                views[area] = self.memory.view(addr, size)
            except AddressError as error:
                raise AddressError(f"{config.label}: {area} area: {error}") from None
            if views[area].readonly:
                raise AddressError(f"{config.label}: {area} area at {addr:#x} is read-only memory")
        desc = np.frombuffer(views["desc"], VRING_PACKED_DESC if packed else VRING_DESC)
        for area, align in (("desc", 16), ("avail", 4 if packed else 2), ("used", 4)):
            if np.frombuffer(views[area], np.uint8).ctypes.data % align:
                raise AddressError(
                    f"{config.label}: {area} area is not mapped at a multiple of {align} in this"
                    " process"
                )
        if packed:
            self.packed_desc = desc
            self.driver_event = np.frombuffer(views["avail"], VRING_PACKED_DESC_EVENT)
            self.device_event = np.frombuffer(views["used"], VRING_PACKED_DESC_EVENT)
        else:
            self.desc = desc
            self.avail = np.frombuffer(views["avail"], np.uint16)
            self.used = np.frombuffer(views["used"], np.uint16)
            self.used_elem = np.frombuffer(views["used"], VRING_USED_ELEM, num, 4)
        self.packed = packed
        self.config = config
        if self.guard is None:
            self.guard = MemoryHold(self.memory)
        self.table = self.memory.snapshot
        return 0

    cdef int unbind_areas(self) except -1:
        """Let go of the ring memory."""
        self.desc = None
        self.avail = None
        self.used = None
        self.used_elem = None
        self.packed_desc = None
        self.driver_event = None
        self.device_event = None
        self.table = None
        self.guard = None
        return 0

    cdef int refuse(self) except -1:
        """Why enter() does not let a call in."""
        # Read before any Python code runs, which may let the other thread leave.
        cdef bint closed = self.closed
        cdef bint busy = self.busy
        label = self.config.label if self.config is not None else "queue"
        if closed:
            raise QueueClosed(f"{label} is closed")
        if busy:
            raise QueueBusy(f"{label}: another thread is inside a call on this side")
        if self.pending is not None:
            error, self.pending = self.pending, None
            raise error
        raise QueueBroken(f"{label} is broken: reset it, or detach_unused_buf() what it holds")

    cdef int rebind(self) except -1:
        """The memory map has changed: forget the range that was looked up last."""
        self.hot.size = 0
        self.table = self.memory.snapshot
        return 0

    cdef object fault_error(self, int code):
        # Values are counts or addresses, never negative: those from 2**63 on neither.
        return engine_error(
            code, self.config.label, self.fault.pos, <uint64_t>self.fault.val,
            <uint64_t>self.fault.aux,
        )

    cdef int raise_fault(self, int code) except -1:
        raise self.fault_error(code)

    cdef int break_now(self, int code, bint later) except -1:
        """The peer broke the ring: mark the queue, and say it now or with the next call."""
        error = self.fault_error(code)
        self.broken = True
        if later:
            self.pending = error
            return 0
        raise error
