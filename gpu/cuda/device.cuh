/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_CUDA_DEVICE_CUH
#define GPU_CUDA_DEVICE_CUH

/*
 * What several kernels share. Sums over threads go along a fixed tree, so that the same input
 * gives the same bits; products are fused only where the source says fma (the build passes
 * -fmad=false), so that formulas round where their C twins round.
 */
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <math_constants.h>

#include "base/fp.h"
#include "gpu/cuda/launch.cuh"
#include "gpu/cuda/ptx.cuh"
#include "gpu/index.h"

enum { WARP = 32 };

static __device__ __forceinline__ double
warp_sum(double v)
{
    for (int d = WARP / 2; d > 0; d /= 2)
        v += __shfl_xor_sync(~0u, v, d);
    return v;
}

static __device__ __forceinline__ float
warp_sum(float v)
{
    for (int d = WARP / 2; d > 0; d /= 2)
        v += __shfl_xor_sync(~0u, v, d);
    return v;
}

static __device__ __forceinline__ float
warp_max(float v)
{
    for (int d = WARP / 2; d > 0; d /= 2)
        v = fmaxf(v, __shfl_xor_sync(~0u, v, d));
    return v;
}

/* The same value back in every thread. blockDim.x: whole warps, at most 1024. */
static __device__ __forceinline__ double
block_sum(double v)
{
    __shared__ double part[WARP];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;

    v = warp_sum(v);
    __syncthreads(); /* part may still be read from the call before */
    if (lane == 0)
        part[warp] = v;
    __syncthreads();
    return warp_sum(lane < (int)blockDim.x / WARP ? part[lane] : 0.0);
}

/* exp of f32 rounded once, as a good libm does it: the C twins' bits, nearly always. */
static __device__ __forceinline__ float
exp_f32(float x)
{
    return (float)exp((double)x);
}

static __device__ __forceinline__ float
e4m3_value(uint8_t b)
{
    return __half2float(__half(__nv_cvt_fp8_to_halfraw(b, __NV_E4M3)));
}

/* Both elements of a pair are exact in f16. */
static __device__ __forceinline__ float2
e4m3_pair(uint16_t b)
{
    return __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2(b, __NV_E4M3)));
}

/* Low and high nibble of each of two bytes, by their place in an f16: exponent and mantissa
 * of e2m1 fall on the lowest exponent bits of f16, 2^14 too small. */
static __device__ __forceinline__ void
e2m1_quad(uint32_t b, float *v)
{
    const uint32_t lo = fpbits_e2m1_pair_to_f16(b), hi = fpbits_e2m1_pair_to_f16(b >> 8);
    const __half2 up = __float2half2_rn(16384.0f);
    __half2 h;
    float2 f;

    memcpy(&h, &lo, sizeof h);
    f = __half22float2(__hmul2(h, up));
    v[0] = f.x;
    v[1] = f.y;
    memcpy(&h, &hi, sizeof h);
    f = __half22float2(__hmul2(h, up));
    v[2] = f.x;
    v[3] = f.y;
}

/* Two at once, by the instruction for it. Single ones are f32_to_bf16: by cvt.rn.bf16.f32 every
 * golden layer came out wrong (docs/PERFORMANCE.md). */
static __device__ __forceinline__ uint32_t
to_bf16_pair(float low, float high)
{
    const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
    uint32_t u;

    memcpy(&u, &v, sizeof u);
    return u;
}

/* x rounded to FP8 under scale s, as bf16 (act_quant), which has room for it: nothing is lost
 * with the lower bits. */
static __device__ __forceinline__ uint16_t
fp8_round(float x, float s)
{
    /* s is a power of two, never small: x / s is as exact as x times its inverse */
    const float by = __uint_as_float(0x7f000000u - __float_as_uint(s));

    return __float_as_uint(
               e4m3_value(__nv_cvt_float_to_fp8(x * by, __NV_SATFINITE, __NV_E4M3)) * s) >>
           16;
}

/* The same of two. */
static __device__ __forceinline__ uint32_t
fp8_round_pair(float low, float high, float s)
{
    const float by = __uint_as_float(0x7f000000u - __float_as_uint(s));
    const float2 v = e4m3_pair(__nv_cvt_float2_to_fp8x2(make_float2(low * by, high * by),
                                                        __NV_SATFINITE, __NV_E4M3));

    return __byte_perm(__float_as_uint(v.x * s), __float_as_uint(v.y * s), 0x7632);
}

static __device__ __forceinline__ void
bf16_pair(uint32_t u, float *v)
{
    v[0] = __uint_as_float(u << 16);
    v[1] = __uint_as_float(u & 0xffff0000);
}

static __device__ __forceinline__ void
bf16_eight(uint4 u, float *v)
{
    bf16_pair(u.x, v);
    bf16_pair(u.y, v + 2);
    bf16_pair(u.z, v + 4);
    bf16_pair(u.w, v + 6);
}

static __device__ __forceinline__ uint4
to_bf16_eight(const float *v)
{
    return make_uint4(to_bf16_pair(v[0], v[1]), to_bf16_pair(v[2], v[3]),
                      to_bf16_pair(v[4], v[5]), to_bf16_pair(v[6], v[7]));
}

/* act_quant of 8 values of a group of 128 that 16 neighbouring lanes share. */
static __device__ __forceinline__ uint4
quantised(uint4 x)
{
    float v[8], amax = 1e-4f, s;
    uint32_t q[4];

    bf16_eight(x, v);
#pragma unroll
    for (int i = 0; i < 8; i++)
        amax = fmaxf(amax, fabsf(v[i]));
#pragma unroll
    for (int d = 8; d > 0; d /= 2)
        amax = fmaxf(amax, __shfl_xor_sync(~0u, amax, d));
    s = e8m0_to_f32(f32_to_e8m0_up(amax * (1.0f / 448.0f)));
#pragma unroll
    for (int i = 0; i < 4; i++)
        q[i] = fp8_round_pair(v[2 * i], v[2 * i + 1], s);
    return make_uint4(q[0], q[1], q[2], q[3]);
}

static inline bool
is_aligned(const void *p, size_t n)
{
    return (size_t)p % n == 0;
}

#endif /* GPU_CUDA_DEVICE_CUH */
