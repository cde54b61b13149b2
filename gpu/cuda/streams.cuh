/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_CUDA_STREAMS_CUH
#define GPU_CUDA_STREAMS_CUH

/*
 * The mixing matrix of a row, from the parts that streams_mix has left, and what of it the way back
 * needs (spec 4.2). Kernels that run beside long ones have a block a row for that.
 */
#include "gpu/cuda/device.cuh"
#include "gpu/cuda/kernels.h"
#include "gpu/index/rows.h"

enum { MAX_HC = 8 };

/* Some units in the last place off, in a tenth of the time that rounding it once takes. */
static __device__ __forceinline__ float
sigmoid(float x)
{
    return inverse(1.0f + expf(-x));
}

/* warp_sum of each of N values, along its tree: WARP / N lanes get number 0's, and so on. */
template <int N>
static __device__ __forceinline__ float
spread_sums(float *v)
{
    const int lane = threadIdx.x % WARP;

#pragma unroll
    for (int n = N / 2, d = WARP / 2; n > 0; n /= 2, d /= 2) {
        const bool high = (lane & d) != 0;

#pragma unroll
        for (int i = 0; i < n; i++) {
            const float keep = high ? v[i + n] : v[i], give = high ? v[i] : v[i + n];

            v[i] = keep + __shfl_xor_sync(~0u, give, d);
        }
    }
#pragma unroll
    for (int d = WARP / N / 2; d > 0; d /= 2)
        v[0] += __shfl_xor_sync(~0u, v[0], d);
    return v[0];
}

/* One lane an element of comb [HC][HC]: sums in ascending order, by shuffles. */
template <int HC>
static __device__ __forceinline__ float
line_sum(float v, int first, int step)
{
    float x[HC], sum = 0.0f;

#pragma unroll
    for (int j = 0; j < HC; j++)
        x[j] = __shfl_sync(~0u, v, first + j * step);
#pragma unroll
    for (int j = 0; j < HC; j++)
        sum += x[j];
    return sum;
}

template <int HC>
static __device__ __forceinline__ float
sinkhorn_lane(float v, int iters, float eps)
{
    const int lane = threadIdx.x % WARP < HC * HC ? threadIdx.x % WARP : 0;
    const int row = comb_row(lane, HC), col = comb_col(lane, HC);
    float top = __shfl_sync(~0u, v, row);

#pragma unroll
    for (int j = 1; j < HC; j++)
        top = fmaxf(top, __shfl_sync(~0u, v, row + j));
    v = exp_f32(v - top);
    v = v / line_sum<HC>(v, row, 1) + eps;
    v = v / (line_sum<HC>(v, col, HC) + eps);
    for (int i = 1; i < iters; i++) {
        v = v / (line_sum<HC>(v, row, 1) + eps);
        v = v / (line_sum<HC>(v, col, HC) + eps);
    }
    return v;
}

/* One pass of the same for more streams, two elements a lane, through shared memory. */
static __device__ void
divide_lines(float *c, int hc, bool rows, float inside, float outside)
{
    const int lane = threadIdx.x % WARP;
    float v[2] = {0.0f, 0.0f};

    __syncwarp();
    for (int i = lane, k = 0; i < hc * hc; i += WARP, k++) {
        const int first = rows ? comb_row(i, hc) : comb_col(i, hc), step = rows ? 1 : hc;
        float sum = 0.0f;

        for (int j = 0; j < hc; j++)
            sum += c[first + j * step];
        v[k] = c[i] / (sum + inside) + outside;
    }
    __syncwarp();
    for (int i = lane, k = 0; i < hc * hc; i += WARP, k++)
        c[i] = v[k];
}

static __device__ void
sinkhorn_shared(float *c, int hc, int iters, float eps)
{
    const int lane = threadIdx.x % WARP;
    float v[2] = {0.0f, 0.0f};

    __syncwarp();
    for (int i = lane, k = 0; i < hc * hc; i += WARP, k++) {
        float top = c[comb_row(i, hc)];

        for (int j = 1; j < hc; j++)
            top = fmaxf(top, c[comb_row(i, hc) + j]);
        v[k] = exp_f32(c[i] - top);
    }
    __syncwarp();
    for (int i = lane, k = 0; i < hc * hc; i += WARP, k++)
        c[i] = v[k];
    divide_lines(c, hc, true, 0.0f, eps);
    divide_lines(c, hc, false, eps, 0.0f);
    for (int i = 1; i < iters; i++) {
        divide_lines(c, hc, true, eps, 0.0f);
        divide_lines(c, hc, false, eps, 0.0f);
    }
    __syncwarp();
}

static __device__ __forceinline__ float
four_parts(float4 v)
{
    return (v.x + v.y) + (v.z + v.w);
}

/* Of one output of a row, the parts: streams_chunks of them, by fours. */
static __device__ __forceinline__ const float4 *
parts_of(const struct streams_in_args &a, int row, int o)
{
    return (const float4 *)(a.part + mix_part(row, o, a.n_mix + 1, a.chunks, 0));
}

/* Their sum, the same in every lane. */
static __device__ __forceinline__ float
part_sum(const struct streams_in_args &a, int row, int o)
{
    const float4 *part = parts_of(a, row, o);
    float sum = 0.0f;

    for (int i = threadIdx.x % WARP; i < a.chunks / 4; i += WARP)
        sum += four_parts(part[i]);
    return warp_sum(sum);
}

/* 1 / rms of n numbers from the sum of their squares, and 1 / n. */
static __device__ __forceinline__ float
inverse_rms(float squares, float per, float eps)
{
    return inverse_root(squares * per + eps);
}

/* post and comb of a row, by a block whose first warp does the most of it. */
static __device__ void
way_back(const struct streams_in_args &a, size_t row)
{
    __shared__ float m[2 * MAX_HC + MAX_HC * MAX_HC + 1], comb[MAX_HC * MAX_HC];
    const int lane = threadIdx.x, hc = a.hc;

    for (int o = hc + lane / WARP; o <= a.n_mix; o += (int)blockDim.x / WARP) {
        const float sum = part_sum(a, (int)row, o);

        if (lane % WARP == 0)
            m[o] = sum;
    }
    __syncthreads();
    if (lane >= WARP)
        return;
    const float scale = inverse_rms(m[a.n_mix], 1.0f / (float)(hc * a.dim), a.norm_eps);

    if (lane < hc)
        a.post[row_start(row, hc) + lane] =
            2.0f * sigmoid(m[mix_post(hc, lane)] * scale * a.scale[1] +
                           a.base[mix_post(hc, lane)]);
    if (hc == 4) {
        const int i = lane < hc * hc ? lane : 0;
        const float v = sinkhorn_lane<4>(m[mix_comb(hc, i)] * scale * a.scale[2] +
                                             a.base[mix_comb(hc, i)],
                                         a.iters, a.hc_eps);

        if (lane < hc * hc)
            a.comb[row_start(row_start(row, hc), hc) + lane] = v;
        return;
    }
    for (int i = lane; i < hc * hc; i += WARP)
        comb[i] = m[mix_comb(hc, i)] * scale * a.scale[2] + a.base[mix_comb(hc, i)];
    sinkhorn_shared(comb, hc, a.iters, a.hc_eps);
    for (int i = lane; i < hc * hc; i += WARP)
        a.comb[row_start(row_start(row, hc), hc) + i] = comb[i];
}

#endif /* GPU_CUDA_STREAMS_CUH */
