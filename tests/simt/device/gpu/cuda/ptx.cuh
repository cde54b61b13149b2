/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_CUDA_PTX_CUH
#define GPU_CUDA_PTX_CUH

/* gpu/cuda/ptx.cuh for threads that are fibers; meanings are said there. */
#include "base/fp.h"
#include "tests/simt/device/simt_device.h"

#define LAUNCH_SHARED(align, type, name) type *const name = (type *)simt_dynamic()

static inline int
unknown(int x)
{
    return x;
}

static inline float
unknown(float x)
{
    return x;
}

template <typename T>
static inline T *
unknown(T *p)
{
    return p;
}

static inline uint4
load_once(const uint4 *p)
{
    return *p;
}

static inline float
load_ahead(const float *p)
{
    return *p;
}

static inline float4
load_ahead(const float4 *p)
{
    return *p;
}

static inline uint2
load_beside(const uint2 *p)
{
    return *p;
}

static inline uint16_t
load_beside(const uint16_t *p)
{
    return *p;
}

static inline void
copy_async(void *to, const void *from, bool there)
{
    simt_copy(to, from, there);
}

static inline void
copies_close(void)
{
    simt_copies_close();
}

template <int N>
static inline void
copies_wait(void)
{
    simt_copies_wait(N);
}

static inline void
prefetch_l2(const void *)
{
}

static inline void
mma_bf16(float *c, const uint32_t *a, uint32_t b0, uint32_t b1)
{
    struct simt_mma m = {c, a, {b0, b1}};

    simt_together(simt_mma_op, ~0u, &m);
}

static inline float
inverse_root(float x)
{
    return 1.0f / sqrtf(x);
}

static inline float
inverse(float x)
{
    return 1.0f / x;
}

/* A product of two bf16 is exact in f32. */
static inline uint32_t
times_bf16x2(uint32_t x, uint32_t factor)
{
    const float lo = bf16_to_f32((uint16_t)x) * bf16_to_f32((uint16_t)factor);
    const float hi = bf16_to_f32((uint16_t)(x >> 16)) *
                     bf16_to_f32((uint16_t)(factor >> 16));

    return f32_to_bf16(lo) | (uint32_t)f32_to_bf16(hi) << 16;
}

static inline uint32_t
relu_bf16_pair(float low, float high)
{
    return f32_to_bf16(low < 0.0f ? 0.0f : low) |
           (uint32_t)f32_to_bf16(high < 0.0f ? 0.0f : high) << 16;
}

static inline void
ldmatrix(uint32_t *r, const void *p)
{
    struct simt_matrices m = {r, p};

    simt_together(simt_ldmatrix_op, ~0u, &m);
}

static inline void
ldmatrix_trans(uint32_t *r, const void *p)
{
    struct simt_matrices m = {r, p};

    simt_together(simt_ldmatrix_trans_op, ~0u, &m);
}

/* Blocks run one after another: what one has written the next one sees. */
static inline uint32_t
arrive(uint32_t *n)
{
    return (*n)++;
}

/* Who waits for all does so at one place. */
static inline void
cluster_begin(void)
{
}

static inline void
cluster_begun(void)
{
    simt_cluster_barrier();
}

static inline void
pdl_wait(void)
{
    simt_waited();
}

static inline void
pdl_go(void)
{
}

#endif /* GPU_CUDA_PTX_CUH */
