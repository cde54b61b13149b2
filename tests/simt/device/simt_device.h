/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_SIMT_DEVICE_SIMT_DEVICE_H
#define TESTS_SIMT_DEVICE_SIMT_DEVICE_H

/*
 * The language of kernels for a host compiler: included in front of each .cu file. What CUDA's own
 * headers have for the host (vector types, bf16, f16, FP8) comes from them.
 */
#include <cuda_runtime.h>
#include <math.h>
#include <string.h>

#include "tests/simt/simt.h"

/* A section of its own, so that blocks of a cluster can take turns in it. */
#undef __shared__
#define __shared__   static __attribute__((section("simt_shared")))
#define __noinline__ __attribute__((noinline))
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __noinline__
#define __noinline__

#define threadIdx simt_thread_at
#define blockIdx  simt_block_at
#define blockDim  simt_block_size
#define gridDim   simt_grid_size

static inline void
__syncthreads(void)
{
    simt_block_barrier();
}

static inline void
__syncwarp(uint32_t mask = ~0u)
{
    simt_together(simt_sync_op, mask, NULL);
}

template <typename T>
static inline T
simt_shuffle(uint32_t mask, T v, unsigned from)
{
    struct simt_exchange x = {0, from};

    static_assert(sizeof v <= sizeof x.value, "shuffles are of 8 bytes at most");
    memcpy(&x.value, &v, sizeof v);
    simt_together(simt_exchange_op, mask, &x);
    memcpy(&v, &x.value, sizeof v);
    return v;
}

template <typename T>
static inline T
__shfl_sync(uint32_t mask, T v, int from)
{
    return simt_shuffle(mask, v, (unsigned)from % SIMT_WARP);
}

template <typename T>
static inline T
__shfl_xor_sync(uint32_t mask, T v, int flip)
{
    return simt_shuffle(mask, v, (simt_lane() ^ (unsigned)flip) % SIMT_WARP);
}

template <typename T>
static inline T
__shfl_down_sync(uint32_t mask, T v, unsigned by)
{
    const unsigned lane = simt_lane();

    return simt_shuffle(mask, v, lane + by < SIMT_WARP ? lane + by : lane);
}

template <typename T>
static inline T
__shfl_up_sync(uint32_t mask, T v, unsigned by)
{
    const unsigned lane = simt_lane();

    return simt_shuffle(mask, v, lane >= by ? lane - by : lane);
}

static inline uint32_t
__ballot_sync(uint32_t mask, int yes)
{
    return simt_ballot(mask, yes != 0);
}

/* The lanes that bring the same. */
static inline uint32_t
__match_any_sync(uint32_t mask, int v)
{
    struct simt_match m = {v, 0};

    simt_together(simt_match_op, mask, &m);
    return m.same;
}

static inline uint32_t
__reduce_max_sync(uint32_t mask, uint32_t v)
{
    struct simt_extremes e = {v, 0, 0};

    simt_together(simt_extremes_op, mask, &e);
    return e.most;
}

static inline uint32_t
__reduce_min_sync(uint32_t mask, uint32_t v)
{
    struct simt_extremes e = {v, 0, 0};

    simt_together(simt_extremes_op, mask, &e);
    return e.least;
}

static inline uint32_t
__reduce_add_sync(uint32_t mask, uint32_t v)
{
    for (int d = SIMT_WARP / 2; d > 0; d /= 2)
        v += __shfl_xor_sync(mask, v, d);
    return v;
}

/* The larger ones of two halves. */
static inline uint32_t
__vmaxu2(uint32_t a, uint32_t b)
{
    const uint32_t low = (a & 0xffff) > (b & 0xffff) ? a & 0xffff : b & 0xffff;

    return low | ((a >> 16) > (b >> 16) ? a >> 16 : b >> 16) << 16;
}

/* And whether the first one is at least as large. */
static inline uint32_t
__vibmax_u16x2(uint32_t a, uint32_t b, bool *high, bool *low)
{
    *high = a >> 16 >= b >> 16;
    *low = (a & 0xffff) >= (b & 0xffff);
    return __vmaxu2(a, b);
}

/* One thread runs at a time, so these are whole as they are. */
template <typename T>
static inline T
atomicAdd(T *p, T v)
{
    const T old = *p;

    *p = old + v;
    return old;
}

template <typename T>
static inline T
atomicMax(T *p, T v)
{
    const T old = *p;

    *p = old < v ? v : old;
    return old;
}

template <typename T>
static inline T
__ldg(const T *p)
{
    return *p;
}

template <typename T>
static inline T
__ldcg(const T *p)
{
    return *p;
}

static inline long long
__double_as_longlong(double x)
{
    long long i;

    memcpy(&i, &x, sizeof i);
    return i;
}

static inline double
__longlong_as_double(long long i)
{
    double x;

    memcpy(&x, &i, sizeof x);
    return x;
}

static inline int
__popc(uint32_t x)
{
    return __builtin_popcount(x);
}

static inline int
__ffs(int x)
{
    return __builtin_ffs(x);
}

static inline uint32_t
__float_as_uint(float x)
{
    uint32_t u;

    memcpy(&u, &x, sizeof u);
    return u;
}

static inline float
__uint_as_float(uint32_t u)
{
    float x;

    memcpy(&x, &u, sizeof x);
    return x;
}

static inline float
__int_as_float(int i)
{
    return __uint_as_float((uint32_t)i);
}

static inline float
rsqrtf(float x)
{
    return 1.0f / sqrtf(x);
}

/* Each nibble of s names a byte of y:x, low first. */
static inline uint32_t
__byte_perm(uint32_t x, uint32_t y, uint32_t s)
{
    const uint64_t all = (uint64_t)y << 32 | x;
    uint32_t r = 0;

    for (int i = 0; i < 4; i++)
        r |= (uint32_t)(all >> (s >> 4 * i & 7) * 8 & 0xff) << 8 * i;
    return r;
}

static inline int
__dp4a(int a, int b, int c)
{
    for (int i = 0; i < 4; i++)
        c += (int8_t)((uint32_t)a >> 8 * i) * (int8_t)((uint32_t)b >> 8 * i);
    return c;
}

static inline uint32_t
__vcmpeq4(uint32_t a, uint32_t b)
{
    uint32_t r = 0;

    for (int i = 0; i < 4; i++)
        r |= (a >> 8 * i & 0xff) == (b >> 8 * i & 0xff) ? 0xffu << 8 * i : 0;
    return r;
}

static inline int
min(int a, int b)
{
    return a < b ? a : b;
}

static inline uint32_t
min(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static inline int
max(int a, int b)
{
    return a < b ? b : a;
}

static inline uint32_t
max(uint32_t a, uint32_t b)
{
    return a < b ? b : a;
}

#endif /* TESTS_SIMT_DEVICE_SIMT_DEVICE_H */
