/*
 * The wire structures of both ring layouts, with their sizes and offsets asserted at compile time.
 * virtio 1.4, 2.7 "Split Virtqueues" and 2.8 "Packed Virtqueues".
 */
#ifndef VIRTRING_LAYOUT_CHECK_H
#define VIRTRING_LAYOUT_CHECK_H

#include <stddef.h>
#include <stdint.h>

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "virtring composes ring words for a little-endian host"
#endif

/* 2.7.5 virtq_desc */
typedef struct vring_desc {
    uint64_t addr;
    uint32_t len;
    uint16_t flags;
    uint16_t next;
} vring_desc;

/* 2.7.8 virtq_used_elem */
typedef struct vring_used_elem {
    uint32_t id;
    uint32_t len;
} vring_used_elem;

/* 2.8.13 pvirtq_desc */
typedef struct vring_packed_desc {
    uint64_t addr;
    uint32_t len;
    uint16_t id;
    uint16_t flags;
} vring_packed_desc;

/* 2.8.14 pvirtq_event_suppress */
typedef struct vring_packed_desc_event {
    uint16_t off_wrap;
    uint16_t flags;
} vring_packed_desc_event;

_Static_assert(sizeof(vring_desc) == 16, "vring_desc is 16 bytes");
_Static_assert(offsetof(vring_desc, addr) == 0 && offsetof(vring_desc, len) == 8, "vring_desc");
_Static_assert(offsetof(vring_desc, flags) == 12 && offsetof(vring_desc, next) == 14, "vring_desc");
_Static_assert(sizeof(vring_used_elem) == 8, "vring_used_elem is 8 bytes");
_Static_assert(offsetof(vring_used_elem, len) == 4, "vring_used_elem");
_Static_assert(sizeof(vring_packed_desc) == 16, "vring_packed_desc is 16 bytes");
_Static_assert(offsetof(vring_packed_desc, len) == 8, "vring_packed_desc");
_Static_assert(offsetof(vring_packed_desc, id) == 12, "vring_packed_desc");
_Static_assert(offsetof(vring_packed_desc, flags) == 14, "vring_packed_desc");
_Static_assert(sizeof(vring_packed_desc_event) == 4, "vring_packed_desc_event is 4 bytes");
_Static_assert(offsetof(vring_packed_desc_event, flags) == 2, "vring_packed_desc_event");

#endif
