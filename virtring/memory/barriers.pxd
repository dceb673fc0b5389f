"""Barriers, single fetches and publishing stores (see barriers.h).

Names follow Linux's virtio_ring.h: ``virtio_mb``, ``virtio_rmb``, ``virtio_wmb`` take the queue's
``weak_barriers`` flag. A comment at each use names the barrier on the other side it pairs with.
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

cdef extern from "barriers.h" nogil:
    void virtio_mb "vr_mb"(int weak)
    void virtio_rmb "vr_rmb"(int weak)
    void virtio_wmb "vr_wmb"(int weak)

    uint16_t load16 "vr_load16"(const void* p)
    uint32_t load32 "vr_load32"(const void* p)
    uint64_t load64 "vr_load64"(const void* p)
    uint64_t load64_any "vr_load64_any"(const void* p)
    void store64_any "vr_store64_any"(void* p, uint64_t v)
    void store16 "vr_store16"(void* p, uint16_t v)
    void store32 "vr_store32"(void* p, uint32_t v)
    void store64 "vr_store64"(void* p, uint64_t v)
    void copy_desc "vr_copy_desc"(void* to, const void* source, uint64_t keep, uint64_t set)

    uint16_t load_acquire16 "vr_load_acquire16"(const void* p, int weak)
    uint64_t load_acquire64 "vr_load_acquire64"(const void* p, int weak)
    void store_release16 "vr_store_release16"(void* p, uint16_t v, int weak)
    void store_release64 "vr_store_release64"(void* p, uint64_t v, int weak)

    void cpu_relax "vr_relax"()
    void prefetch "vr_prefetch"(const void* p)

    uint16_t swap16 "vr_swap16"(uint16_t v)
    uint32_t swap32 "vr_swap32"(uint32_t v)
    uint64_t swap64 "vr_swap64"(uint64_t v)
