/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_CUDA_INDEX_QUERY_CUH
#define GPU_CUDA_INDEX_QUERY_CUH

/*
 * The indexer's queries from what their product left (spec 7.1), eight heads by a warp: rotated,
 * Hadamard, rounded to FP4, as the scores' products take them. Each sum is one of two numbers, and
 * a group's largest number is the same in any order: bits are those of queries_kernel's packed
 * rows, widened.
 *
 * A lane has elements 8 part .. 8 part + 7 of each group of 32: butterflies of 8 and 16 are between
 * lanes, all others inside.
 */
#include "gpu/cuda/device.cuh"
#include "gpu/index/indexer.h"
#include "gpu/index/rows.h"

/* Pairs of eight elements rotated; cs: their cosines and sines. */
static __device__ __forceinline__ void
rotate_eight(float *v, const float *cs)
{
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const float4 c = *(const float4 *)(cs + i * 4);
        float *u = v + i * 4;
        const float x[4] = {u[0], u[1], u[2], u[3]};

        bf16_pair(to_bf16_pair(fmaf(x[0], c.x, -(x[1] * c.y)), fmaf(x[0], c.y, x[1] * c.x)),
                  u);
        bf16_pair(to_bf16_pair(fmaf(x[2], c.z, -(x[3] * c.w)), fmaf(x[2], c.w, x[3] * c.z)),
                  u + 2);
    }
}

template <int GROUPS>
static __device__ __forceinline__ void
index_hadamard(float (*v)[8], int part)
{
#pragma unroll
    for (int g = 0; g < GROUPS; g++)
#pragma unroll
        for (int stride = 1; stride < 8; stride *= 2)
#pragma unroll
            for (int p = 0; p < 4; p++) {
                const int i = butterfly(p, stride);
                const float lo = v[g][i], hi = v[g][i + stride];

                v[g][i] = lo + hi;
                v[g][i + stride] = lo - hi;
            }
#pragma unroll
    for (int x = 1; x < 4; x *= 2) {
        const float sign = (part & x) != 0 ? -1.0f : 1.0f;

#pragma unroll
        for (int g = 0; g < GROUPS; g++)
#pragma unroll
            for (int i = 0; i < 8; i++) /* the product is exact */
                v[g][i] = fmaf(v[g][i], sign, __shfl_xor_sync(~0u, v[g][i], x));
    }
#pragma unroll
    for (int stride = 1; stride < GROUPS; stride *= 2)
#pragma unroll
        for (int p = 0; p < GROUPS / 2; p++) {
            const int g = butterfly(p, stride);

#pragma unroll
            for (int i = 0; i < 8; i++) {
                const float lo = v[g][i], hi = v[g + stride][i];

                v[g][i] = lo + hi;
                v[g + stride][i] = lo - hi;
            }
        }
}

/* The nearest number that e2m1 has, of one no larger than 6; ties to the even code: numbers are
 * 1/2 apart below 2, then 1, then 2. */
static __device__ __forceinline__ float
e2m1_round(float u)
{
    const float one = fmaxf(__uint_as_float(__float_as_uint(u) & 0x7f800000), 1.0f);

    /* products are exact, and one's last bit stands for so much */
    return fmaf(one, -0x1.8p22f, fmaf(one, 0x1.8p22f, u));
}

/* Eight numbers of a group that four lanes share, rounded, under their scale and 2^60 too large,
 * as bf16: numbers i and i + 4 to r[i]. */
static __device__ __forceinline__ uint4
index_round(const float *v, float scale)
{
    float u[8], amax = 0x1.8p-124f; /* 6 * 2^-126 */
    uint32_t r[4];

#pragma unroll
    for (int i = 0; i < 8; i += 2)
        bf16_pair(to_bf16_pair(v[i] * scale, v[i + 1] * scale), u + i);
#pragma unroll
    for (int i = 0; i < 8; i++)
        amax = fmaxf(amax, fabsf(u[i]));
    amax = fmaxf(amax, __shfl_xor_sync(~0u, amax, 1));
    amax = fmaxf(amax, __shfl_xor_sync(~0u, amax, 2));
    const uint32_t ex = f32_to_e8m0_up(amax * (1.0f / 6.0f));
    /* 2^(127 - ex), 2^(ex - 127 + 60): ex is 1 at least, and less than 254 */
    const float down = __uint_as_float((254 - ex) << 23);
    const float up = __uint_as_float(min(ex + 60, 254u) << 23);

#pragma unroll
    for (int i = 0; i < 4; i++)
        r[i] = __byte_perm(__float_as_uint(e2m1_round(u[i] * down) * up),
                           __float_as_uint(e2m1_round(u[i + 4] * down) * up), 0x7632);
    return make_uint4(r[0], r[1], r[2], r[3]);
}

/* A lane's part of a head, q bf16 [GROUPS * 32]: r[g] as the products take it. rope_dim and
 * GROUPS * 32 - rope_dim are multiples of 8. All lanes. */
template <int GROUPS>
static __device__ __forceinline__ void
index_query(const uint16_t *q, const float *cs, int rope_dim, int part, uint4 *r)
{
    const int dim = GROUPS * FP4_GROUP, nope = dim - rope_dim;
    const float scale = 1.0f / sqrtf((float)dim);
    float v[GROUPS][8];

#pragma unroll
    for (int g = 0; g < GROUPS; g++)
        bf16_eight(*(const uint4 *)(q + g * FP4_GROUP + part * 8), v[g]);
#pragma unroll
    for (int g = 0; g < GROUPS; g++)
        if (g * FP4_GROUP + part * 8 >= nope)
            rotate_eight(v[g], cs + g * FP4_GROUP + part * 8 - nope);
    index_hadamard<GROUPS>(v, part);
#pragma unroll
    for (int g = 0; g < GROUPS; g++)
        r[g] = index_round(v[g], scale);
}

#endif /* GPU_CUDA_INDEX_QUERY_CUH */
