/*
 * Memory ordering by compiler intrinsics only.
 *
 * "weak" barriers order accesses between CPUs (Linux: smp_*); "strong" ones also order accesses
 * that a real device makes (Linux: mb, rmb, wmb), for ORDER_PLATFORM and weak_barriers=False.
 * The choice is a run-time flag, tested once a batch.
 */
#ifndef VIRTRING_BARRIERS_H
#define VIRTRING_BARRIERS_H

#include <stdint.h>

#ifndef __has_builtin
#define __has_builtin(name) 0
#endif

#if defined(__x86_64__) || defined(__i386__)
#include <emmintrin.h>
#define VR_STRONG_MB() _mm_mfence()
#define VR_STRONG_RMB() _mm_lfence()
#define VR_STRONG_WMB() _mm_sfence()
#define VR_RELAX() _mm_pause()
#elif defined(__aarch64__)
#if __has_builtin(__builtin_arm_dsb)
/* 15, 13 and 14: full system, all accesses / loads / stores */
#define VR_STRONG_MB() __builtin_arm_dsb(15)
#define VR_STRONG_RMB() __builtin_arm_dsb(13)
#define VR_STRONG_WMB() __builtin_arm_dsb(14)
#define VR_RELAX() __builtin_arm_yield()
#else
/* GCC has no names for these: its full fence, of the domain that CPUs and coherent devices share. */
#define VR_STRONG_MB() __sync_synchronize()
#define VR_STRONG_RMB() __sync_synchronize()
#define VR_STRONG_WMB() __sync_synchronize()
#define VR_RELAX() __atomic_signal_fence(__ATOMIC_SEQ_CST)
#endif
#else
#define VR_STRONG_MB() __atomic_thread_fence(__ATOMIC_SEQ_CST)
#define VR_STRONG_RMB() __atomic_thread_fence(__ATOMIC_SEQ_CST)
#define VR_STRONG_WMB() __atomic_thread_fence(__ATOMIC_SEQ_CST)
#define VR_RELAX() __atomic_signal_fence(__ATOMIC_SEQ_CST)
#endif

/* Ring words are read and written whole, whatever structure they are declared in. */
typedef uint16_t __attribute__((may_alias)) vr_u16;
typedef uint32_t __attribute__((may_alias)) vr_u32;
typedef uint64_t __attribute__((may_alias)) vr_u64;
/* Indirect tables may lie at any address (2.7.5.3 sets no alignment). */
typedef uint64_t __attribute__((may_alias, aligned(1))) vr_u64_any;

static inline void vr_mb(int weak)
{
    if (weak)
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
    else
        VR_STRONG_MB();
}

static inline void vr_rmb(int weak)
{
    if (weak)
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
    else
        VR_STRONG_RMB();
}

static inline void vr_wmb(int weak)
{
    if (weak)
        __atomic_thread_fence(__ATOMIC_RELEASE);
    else
        VR_STRONG_WMB();
}

/* Single fetches and stores of shared words: never torn, never repeated by the compiler. */
static inline uint16_t vr_load16(const void *p)
{
    return __atomic_load_n((const vr_u16 *)p, __ATOMIC_RELAXED);
}

static inline uint32_t vr_load32(const void *p)
{
    return __atomic_load_n((const vr_u32 *)p, __ATOMIC_RELAXED);
}

static inline uint64_t vr_load64(const void *p)
{
    return __atomic_load_n((const vr_u64 *)p, __ATOMIC_RELAXED);
}

static inline void vr_store16(void *p, uint16_t v)
{
    __atomic_store_n((vr_u16 *)p, v, __ATOMIC_RELAXED);
}

static inline void vr_store32(void *p, uint32_t v)
{
    __atomic_store_n((vr_u32 *)p, v, __ATOMIC_RELAXED);
}

static inline void vr_store64(void *p, uint64_t v)
{
    __atomic_store_n((vr_u64 *)p, v, __ATOMIC_RELAXED);
}

/*
 * One fetch or store of a word at any alignment (used entries stand at 4 bytes, indirect tables
 * anywhere). It may tear: an index orders it, or every part is checked on its own.
 */
static inline uint64_t vr_load64_any(const void *p)
{
    return *(const volatile vr_u64_any *)p;
}

static inline void vr_store64_any(void *p, uint64_t v)
{
    *(volatile vr_u64_any *)p = v;
}

/*
 * A descriptor copied into the ring whole: the second word of what is at from, as far as keep says,
 * with the bits of set. Both ends are private or not published yet, so only speed asks for one
 * store of 16 bytes.
 */
typedef uint64_t __attribute__((may_alias, vector_size(16), aligned(8))) vr_pair;

static inline void vr_copy_desc(void *to, const void *from, uint64_t keep, uint64_t set)
{
    *(vr_pair *)to = (*(const vr_pair *)from & (vr_pair){ ~0ull, keep }) | (vr_pair){ 0, set };
}

/* Publishing and observing: the only places where the two sides synchronise. */
static inline uint16_t vr_load_acquire16(const void *p, int weak)
{
    uint16_t v;

    if (weak)
        return __atomic_load_n((const vr_u16 *)p, __ATOMIC_ACQUIRE);
    v = vr_load16(p);
    VR_STRONG_RMB();
    return v;
}

static inline uint64_t vr_load_acquire64(const void *p, int weak)
{
    uint64_t v;

    if (weak)
        return __atomic_load_n((const vr_u64 *)p, __ATOMIC_ACQUIRE);
    v = vr_load64(p);
    VR_STRONG_RMB();
    return v;
}

static inline void vr_store_release16(void *p, uint16_t v, int weak)
{
    if (weak) {
        __atomic_store_n((vr_u16 *)p, v, __ATOMIC_RELEASE);
    } else {
        VR_STRONG_WMB();
        vr_store16(p, v);
    }
}

static inline void vr_store_release64(void *p, uint64_t v, int weak)
{
    if (weak) {
        __atomic_store_n((vr_u64 *)p, v, __ATOMIC_RELEASE);
    } else {
        VR_STRONG_WMB();
        vr_store64(p, v);
    }
}

static inline void vr_relax(void)
{
    VR_RELAX();
}

static inline void vr_prefetch(const void *p)
{
    __builtin_prefetch(p);
}

static inline uint16_t vr_swap16(uint16_t v) { return __builtin_bswap16(v); }
static inline uint32_t vr_swap32(uint32_t v) { return __builtin_bswap32(v); }
static inline uint64_t vr_swap64(uint64_t v) { return __builtin_bswap64(v); }

#endif
