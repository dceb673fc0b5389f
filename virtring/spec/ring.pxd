"""Both ring layouts as C structures and bits (virtio 1.4, 2.7 and 2.8). No logic."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

cdef extern from "layout_check.h" nogil:
    # 2.7.5 virtq_desc
    ctypedef struct vring_desc:
        uint64_t addr
        uint32_t len
        uint16_t flags
        uint16_t next

    # 2.7.8 virtq_used_elem
    ctypedef struct vring_used_elem:
        uint32_t id
        uint32_t len

    # 2.8.13 pvirtq_desc
    ctypedef struct vring_packed_desc:
        uint64_t addr
        uint32_t len
        uint16_t id
        uint16_t flags

    # 2.8.14 pvirtq_event_suppress
    ctypedef struct vring_packed_desc_event:
        uint16_t off_wrap
        uint16_t flags

cdef enum:
    # 2.7.5 and 2.8.13: bits of a descriptor's flags
    VRING_DESC_F_NEXT = 1
    VRING_DESC_F_WRITE = 2
    VRING_DESC_F_INDIRECT = 4
    VRING_PACKED_DESC_F_AVAIL = 1 << 7
    VRING_PACKED_DESC_F_USED = 1 << 15

    # 2.7.6 and 2.7.8: flags of the available and the used ring
    VRING_AVAIL_F_NO_INTERRUPT = 1
    VRING_USED_F_NO_NOTIFY = 1

    # 2.8.10: flags of a packed ring's event suppression structures
    VRING_PACKED_EVENT_FLAG_ENABLE = 0
    VRING_PACKED_EVENT_FLAG_DISABLE = 1
    VRING_PACKED_EVENT_FLAG_DESC = 2
    VRING_PACKED_EVENT_F_WRAP_CTR = 15

    VRING_MAX_NUM = 32768
