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

static __device__ __forceinline__ float
sigmoid(float x)
{
    return 1.0f / (1.0f + exp_f32(-x));
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

/* m[o] of this row and the streams' scale, by all warps: parts in a fixed order. */
static __device__ __forceinline__ float
add_parts(const struct streams_in_args &a, int row, float *m)
{
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, n = a.n_mix + 1;
    const float *part = a.part + row_start(row_start(row, a.chunks), n);

    for (int o = warp; o < n; o += (int)blockDim.x / WARP) {
        float sum = 0.0f;

        for (int i = lane; i < a.chunks; i += WARP)
            sum += part[row_start(i, n) + o];
        sum = warp_sum(sum);
        if (lane == 0)
            m[o] = sum;
    }
    __syncthreads();
    return 1.0f / sqrtf(m[a.n_mix] / (float)(a.hc * a.dim) + a.norm_eps);
}

/* post and comb of a row, by a block whose first warp does the most of it. */
static __device__ void
way_back(const struct streams_in_args &a, size_t row)
{
    __shared__ float m[2 * MAX_HC + MAX_HC * MAX_HC + 1], comb[MAX_HC * MAX_HC];
    const float scale = add_parts(a, (int)row, m);
    const int lane = threadIdx.x, hc = a.hc;

    if (lane >= WARP)
        return;
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
