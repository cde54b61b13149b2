/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_CUDA_QUERY_CUH
#define GPU_CUDA_QUERY_CUH

/*
 * A query head's norm without weight and its rotation (spec 5.3), by one warp: a lane has pairs of
 * elements 2 lane, 2 lane + 64, .. in turn. Attention makes it of the heads that it loads when rows are few, a
 * kernel of its own when they are many, and bits are the same.
 */
#include "gpu/cuda/device.cuh"

/* Both elements' squares, rounded as the formula has them. */
static __device__ __forceinline__ double
query_squares(uint32_t pair, double sum)
{
    float v[2];

    bf16_pair(pair, v);
    sum += (double)bf16_round(v[0] * v[0]);
    return sum + (double)bf16_round(v[1] * v[1]);
}

/* What to multiply by, from a lane's sum of squares. */
static __device__ __forceinline__ float
query_factor(double sum, int dim, float eps)
{
    const float mean = bf16_round((float)(warp_sum(sum) / dim));

    return bf16_round(1.0f / sqrtf(bf16_round(mean + eps)));
}

/* Elements c and c + 1. */
static __device__ __forceinline__ uint32_t
query_pair(uint32_t pair, float factor, const float *cs, int c, int nope)
{
    float v[2];

    bf16_pair(pair, v);
    v[0] = bf16_round(v[0] * factor);
    v[1] = bf16_round(v[1] * factor);
    if (c >= nope) {
        const float re = v[0], im = v[1], co = cs[c - nope], si = cs[c - nope + 1];

        v[0] = bf16_round(fmaf(re, co, -(im * si)));
        v[1] = bf16_round(fmaf(re, si, im * co));
    }
    return f32_to_bf16(v[0]) | (uint32_t)f32_to_bf16(v[1]) << 16;
}

#endif /* GPU_CUDA_QUERY_CUH */
