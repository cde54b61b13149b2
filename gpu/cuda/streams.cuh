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

enum {
    MAX_HC = 8,
    INPUT_TURNS = 2,  /* 8 columns each of a thread that are under way from the start */
    INPUT_WARPS = 64, /* of 256 columns each: rows of 16384 */
};

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

/* The sum of one output's parts, the same in every lane. Four of a lane's are under way at a time. */
static __device__ __forceinline__ float
part_sum(const struct streams_in_args &a, int row, int o)
{
    const float *part = a.part + mix_part(row, o, a.n_mix + 1, a.chunks, 0);
    float sum = 0.0f;

    for (int i = threadIdx.x % WARP; i < a.chunks; i += 4 * WARP) {
        float v[4];

#pragma unroll
        for (int k = 0; k < 4; k++)
            v[k] = i + k * WARP < a.chunks ? part[i + k * WARP] : 0.0f;
#pragma unroll
        for (int k = 0; k < 4; k++)
            sum += v[k];
    }
    return warp_sum(sum);
}

/* 1 / rms of all streams of a row, from the sum of squares. */
static __device__ __forceinline__ float
streams_scale(const struct streams_in_args &a, float squares)
{
    return 1.0f / sqrtf(squares / (float)(a.hc * a.dim) + a.norm_eps);
}

/*
 * The sublayer's input of a row (spec 4.2, 3.2), by all T threads of a block, which waits for the
 * kernels in front: the parts of `pre` are added up, streams mixed, the row normed and, if
 * `rounded`, rounded to FP8. keep(at, y, q) is called with 8 columns of it at a time; they are this
 * thread's alone. mixed: room for the row in shared memory. It may be keep's, too.
 *
 * Sums go over warps of 256 neighbouring columns, whoever does them: T is not in the bits.
 */
template <int HC, int T, typename F>
static __device__ __forceinline__ void
sublayer_input(const struct streams_in_args &a, int row, uint16_t *mixed, bool rounded,
               F keep)
{
    __shared__ float m[MAX_HC + 1];
    __shared__ double squares[INPUT_WARPS];
    const int t = threadIdx.x, lane = t % WARP, vectors = a.dim / 8;
    const int warps = ceil_div(vectors, WARP);
    const uint16_t *x = a.x + row_start(row_start(row, a.hc), a.dim);
    const float by = __ldg(a.scale), base = lane < a.hc ? __ldg(a.base + lane) : 0.0f;
    uint4 stream[INPUT_TURNS][HC];
    float4 weight[INPUT_TURNS][2];

#pragma unroll
    for (int k = 0; k < INPUT_TURNS; k++)
#pragma unroll
        for (int i = 0; i < 2; i++)
            weight[k][i] = t + k * T < vectors
                               ? __ldg((const float4 *)(a.norm + (t + k * T) * 8) + i)
                               : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    pdl_wait();
#pragma unroll
    for (int k = 0; k < INPUT_TURNS; k++)
#pragma unroll
        for (int j = 0; j < HC; j++)
            stream[k][j] = t + k * T < vectors && j < a.hc
                               ? *(const uint4 *)(x + row_start(j, a.dim) + (t + k * T) * 8)
                               : make_uint4(0, 0, 0, 0);
    for (int i = t / WARP; i <= a.hc; i += T / WARP) {
        const float sum = part_sum(a, row, i < a.hc ? i : a.n_mix);

        if (lane == 0)
            m[i] = sum;
    }
    __syncthreads();
    const float own =
        lane < a.hc ? sigmoid(m[lane] * streams_scale(a, m[a.hc]) * by + base) + a.hc_eps
                    : 0.0f;
    float pre[HC];

#pragma unroll
    for (int j = 0; j < HC; j++)
        pre[j] = __shfl_sync(~0u, own, j);
    for (int first = 0; first < vectors; first += INPUT_TURNS * T)
#pragma unroll
        for (int k = 0; k < INPUT_TURNS; k++) {
            const int at = first + t + k * T;
            double ss = 0.0;
            float v[8];
            uint4 u;

            if (at / WARP >= warps)
                continue; /* the whole warp */
#pragma unroll
            for (int j = 0; j < HC; j++) {
                float w[8];

                if (HC != 4 && j >= a.hc)
                    break;
                u = stream[k][j];
                if (first > 0)
                    u = at < vectors ? *(const uint4 *)(x + row_start(j, a.dim) + at * 8)
                                     : make_uint4(0, 0, 0, 0);
                bf16_eight(u, w);
#pragma unroll
                for (int i = 0; i < 8; i++)
                    v[i] = j == 0 ? pre[j] * w[i] : v[i] + pre[j] * w[i];
            }
            u = to_bf16_eight(v);
            bf16_eight(u, v);
#pragma unroll
            for (int i = 0; i < 8; i++)
                ss = fma((double)v[i], (double)v[i], ss);
            ss = warp_sum(ss);
            if (lane == 0)
                squares[at / WARP] = ss;
            if (at < vectors)
                *(uint4 *)(mixed + at * 8) = u;
        }
    __syncthreads();
    const double all = warp_sum((lane < warps ? squares[lane] : 0.0) +
                                (lane + WARP < warps ? squares[lane + WARP] : 0.0));
    const float norm = 1.0f / sqrtf((float)all / (float)a.dim + a.norm_eps);

    for (int first = 0; first < vectors; first += INPUT_TURNS * T)
#pragma unroll
        for (int k = 0; k < INPUT_TURNS; k++) {
            const int at = first + t + k * T;
            uint4 y = make_uint4(0, 0, 0, 0), q = y;

            if (at / WARP >= warps)
                continue; /* the whole warp */
            if (at < vectors) {
                float v[8], w[8];

                y = *(const uint4 *)(mixed + at * 8);
                bf16_eight(y, v);
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const float4 u = first == 0
                                         ? weight[k][i]
                                         : __ldg((const float4 *)(a.norm + at * 8) + i);

                    w[4 * i] = u.x;
                    w[4 * i + 1] = u.y;
                    w[4 * i + 2] = u.z;
                    w[4 * i + 3] = u.w;
                }
#pragma unroll
                for (int i = 0; i < 8; i++)
                    v[i] = w[i] * (v[i] * norm);
                y = to_bf16_eight(v);
            }
            if (rounded)
                q = quantised(y);
            if (at < vectors)
                keep(at * 8, y, q);
        }
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
    const float scale = streams_scale(a, m[a.n_mix]);

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
