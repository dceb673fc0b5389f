"""The ring under a DeviceQueue: where it lies, its bookkeeping, its life."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from virtring.ring.packed_common cimport AVAIL_USED
from virtring.spec.ring cimport VRING_PACKED_DESC_F_AVAIL, VRING_PACKED_EVENT_FLAG_ENABLE

from virtring.errors import InvalidArgument, OutOfMemory, QueueClosed
from virtring.queue.config import QueueConfig
from virtring.spec.features import Feature

cdef enum:
    PACKED_IDS = 65536


cdef class DeviceRing(QueueSide):
    """What a :class:`DeviceQueue` stands on."""

    def __cinit__(self, *args, **kwargs):
        self.s = &self.split.s
        self.hot = &self.s.hot
        self.fault = &self.s.fault

    def __dealloc__(self):
        self.free_state()

    @property
    def weak_barriers(self) -> bool:
        """Whether barriers order accesses between CPUs only, not those of real hardware."""
        if self.config is None:
            return self.weak_asked
        return self.s.weak_barriers

    def configure(self, config) -> None:
        """Serve the ring that ``config`` (a :class:`QueueConfig`) describes, from its first entry.

        Raises AddressError when an area is not inside the memory, InvalidArgument when the queue
        is configured already: :meth:`reset` it first, for its size and addresses are frozen.
        """
        cdef size_t num
        cdef size_t ids
        if not isinstance(config, QueueConfig):
            raise InvalidArgument(f"config is a {type(config).__name__}; it takes a QueueConfig")
        if self.closed:
            raise QueueClosed("the queue is closed")
        if self.config is not None:
            raise InvalidArgument(f"{self.config.label} is configured; reset() it first")
        num = config.size
        ids = PACKED_IDS if config.packed else num
        self.bind_areas(config)
        self.s = &self.pack.s if self.packed else &self.split.s
        self.hot = &self.s.hot
        self.fault = &self.s.fault
        memset(&self.pack, 0, sizeof(self.pack))
        memset(&self.split, 0, sizeof(self.split))
        if self.packed:
            self.pack.desc = <char*>&self.packed_desc[0]
            self.pack.driver_event = <char*>&self.driver_event[0]
            self.pack.device_event = <char*>&self.device_event[0]
        else:
            self.split.desc = <char*>&self.desc[0]
            self.split.avail = <char*>&self.avail[0]
            self.split.avail_ring = <char*>&self.avail[2]
            self.split.used_event = <char*>&self.avail[2 + num]
            self.split.used = <char*>&self.used[0]
            self.split.used_ring = <char*>&self.used_elem[0]
            self.split.avail_event = <char*>&self.used[2 + 4 * num]
            self.split.mask = <uint16_t>(num - 1)
        self.s.num = <uint32_t>num
        self.s.weak_barriers = (
            self.weak_asked and Feature.ORDER_PLATFORM not in config.features
        )
        self.s.event_idx = Feature.EVENT_IDX in config.features
        self.s.indirect = Feature.INDIRECT_DESC in config.features
        self.s.in_order = Feature.IN_ORDER in config.features
        self.s.swap = config.big_endian
        self.s.held = <uint64_t*>calloc(ids, sizeof(uint64_t))
        if self.s.in_order:
            self.s.order = <uint16_t*>calloc(num, sizeof(uint16_t))
            self.s.late = <uint32_t*>calloc(ids, sizeof(uint32_t))
        if self.s.held == NULL or (
            self.s.in_order and (self.s.order == NULL or self.s.late == NULL)
        ):
            self.free_state()
            self.unbind_areas()
            self.config = None
            raise OutOfMemory(f"{config.label}: no memory for the bookkeeping of {num} entries")
        self.one = Batch(1, num)
        self.clear_state()
        return None

    cdef int clear_state(self) except -1:
        """Positions at the start, nothing held. The ring's memory is the driver's to initialise."""
        memset(self.s.held, 0, (PACKED_IDS if self.packed else self.s.num) * sizeof(uint64_t))
        self.s.in_flight = 0
        self.s.descs_held = 0
        self.s.num_added = 0
        self.s.order_get = 0
        self.s.order_len = 0
        self.generation += 1
        self.broken = False
        self.pending = None
        if self.packed:
            self.pack.first = NULL
            self.pack.last_avail_idx = self.pack.used_idx = self.pack.group_idx = 0
            self.pack.avail_flags = VRING_PACKED_DESC_F_AVAIL
            self.pack.used_flags = self.pack.group_flags = AVAIL_USED
            self.pack.event_flags_shadow = VRING_PACKED_EVENT_FLAG_ENABLE
        else:
            self.split.last_avail_idx = self.split.avail_idx = 0
            self.split.used_idx = self.split.group_idx = 0
            self.split.used_flags_shadow = 0
        return 0

    cdef void free_state(self) noexcept:
        free(self.s.held)
        free(self.s.order)
        free(self.s.late)
        self.s.held = NULL
        self.s.order = NULL
        self.s.late = NULL

    def reset(self) -> None:
        """Forget the ring, as after a device or queue reset; :meth:`configure` starts the next.

        Chains that are still out become void: returning one raises InvalidArgument.
        """
        if self.busy:
            self.refuse()
        self.free_state()
        self.s.in_flight = 0
        self.generation += 1
        self.unbind_areas()
        self.broken = False
        self.pending = None
        self.config = None

    def close(self) -> None:
        """:meth:`reset`, for good. Again is fine."""
        self.reset()
        self.closed = True
