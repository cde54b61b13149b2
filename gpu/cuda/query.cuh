/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_CUDA_QUERY_CUH
#define GPU_CUDA_QUERY_CUH

/*
 * A query head's norm without weight and its rotation (spec 5.3), by one warp: a lane has pieces of
 * eight elements, 8 lane, 8 lane + 256, .. in turn. Attention makes it of the heads that it loads when
 * rows are few, a kernel of its own when they are many, and bits are the same.
 */
#include "gpu/cuda/device.cuh"

enum { QUERY_PIECE = 8 };

static __device__ __forceinline__ uint4
times_eight(uint4 x, uint4 y)
{
    return make_uint4(times_bf16x2(x.x, y.x), times_bf16x2(x.y, y.y),
                      times_bf16x2(x.z, y.z), times_bf16x2(x.w, y.w));
}

/* A piece's squares, rounded as the formula has them. */
static __device__ __forceinline__ float
query_squares(uint4 x, float sum)
{
    float v[QUERY_PIECE];

    bf16_eight(times_eight(x, x), v);
#pragma unroll
    for (int i = 0; i < QUERY_PIECE; i++)
        sum += v[i];
    return sum;
}

static __device__ __forceinline__ float
rounded_once(float x)
{
    return __uint_as_float(to_bf16_pair(0.0f, x));
}

/* What to multiply by, twice, from a lane's sum of squares. Of no bf16 is the inverse root so near
 * to the middle of two that rsqrtf, two units in the last place off at most, is rounded otherwise. */
static __device__ __forceinline__ uint32_t
query_factor(float sum, double per_dim, float eps)
{
    const float mean = rounded_once((float)(warp_sum((double)sum) * per_dim));
    const float factor = rsqrtf(rounded_once(mean + eps));

    return to_bf16_pair(factor, factor);
}

static __device__ __forceinline__ uint32_t
query_turned(uint32_t pair, float co, float si)
{
    float v[2];

    bf16_pair(pair, v);
    return to_bf16_pair(fmaf(v[0], co, -(v[1] * si)), fmaf(v[0], si, v[1] * co));
}

/* The piece of elements c, c + 1, .. */
static __device__ __forceinline__ uint4
query_piece(uint4 x, uint32_t factor, const float *cs, int c, int nope)
{
    x = times_eight(x, make_uint4(factor, factor, factor, factor));
    if (c >= nope) {
        const float4 lo = *(const float4 *)(cs + c - nope);
        const float4 hi = *(const float4 *)(cs + c - nope + 4);

        x = make_uint4(query_turned(x.x, lo.x, lo.y), query_turned(x.y, lo.z, lo.w),
                       query_turned(x.z, hi.x, hi.y), query_turned(x.w, hi.z, hi.w));
    }
    return x;
}

#endif /* GPU_CUDA_QUERY_CUH */
