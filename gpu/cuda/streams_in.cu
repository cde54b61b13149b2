/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The next sublayer's input from the streams (spec 4.2, 3.2), behind streams.cu: a block a row adds
 * the parts of the mixing matrix up in order, mixes the streams, norms what comes out and rounds it
 * to FP8. Plain twins are in mhc.cu, norm.cu and quant.cu.
 */
#include "base/err.h"
#include "gpu/cuda/device.cuh"
#include "gpu/cuda/streams.cuh"

enum { IN_THREADS = 512 };

/* 8 columns of all streams of a row. */
template <int HC>
static __device__ __forceinline__ void
load_streams(const struct streams_in_args &a, const uint16_t *x, int at, float (*w)[8])
{
    uint4 stream[HC];

#pragma unroll
    for (int j = 0; j < HC; j++)
        stream[j] = at < a.dim / 8 && (HC == 4 || j < a.hc)
                        ? *(const uint4 *)(x + row_start(j, a.dim) + at * 8)
                        : make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int j = 0; j < HC; j++)
        bf16_eight(stream[j], w[j]);
}

/* How much of each stream (spec 4.2), by a warp that waits for the kernels in front: the parts of
 * `pre` and of the squares are added up, PARTS fours a lane; lane l gets number l / LANES's. */
template <int HC, int PARTS>
static __device__ __forceinline__ void
mix_of(const struct streams_in_args &a, int row, float *pre)
{
    constexpr int N = 2 * HC, LANES = WARP / N;

    const int hc = HC == 4 ? 4 : a.hc, lane = threadIdx.x % WARP, j = lane / LANES;
    const float by = load_ahead(a.scale), base = load_ahead(a.base + (j < hc ? j : 0));
    const float per = unknown(1.0f / (float)(hc * a.dim));
    const float4 *part = parts_of(a, row, 0), *square = parts_of(a, row, a.n_mix);
    float v[N] = {};

    pdl_wait();
#pragma unroll
    for (int k = 0; k < PARTS; k++)
#pragma unroll
        for (int o = 0; o <= HC; o++) {
            const float4 *from = o < HC ? part + o * (a.chunks / 4) : square;
            const int i = lane + k * WARP;

            if (i < a.chunks / 4 && (o == HC || HC == 4 || o < hc))
                v[o] += four_parts(from[i]);
        }
    const float sum = spread_sums<N>(v), all = __shfl_sync(~0u, sum, HC * LANES);

    if (lane % LANES == 0 && j < hc)
        pre[j] = sigmoid(sum * inverse_rms(all, per, a.norm_eps) * by + base) + a.hc_eps;
}

/* v: 8 columns of the mix, rounded; the first lane leaves the warp's sum of squares. */
template <int HC>
static __device__ __forceinline__ void
mixed_eight(const float (*w)[8], const float *pre, int hc, float *v, float *squares)
{
    float ss[2] = {0.0f, 0.0f};

#pragma unroll
    for (int j = 0; j < HC; j++) {
        if (HC != 4 && j >= hc)
            break;
#pragma unroll
        for (int i = 0; i < 8; i++)
            v[i] = j == 0 ? pre[j] * w[j][i] : v[i] + pre[j] * w[j][i];
    }
    bf16_eight(to_bf16_eight(v), v);
#pragma unroll
    for (int i = 0; i < 8; i++)
        ss[i % 2] = fmaf(v[i], v[i], ss[i % 2]);
    ss[0] = warp_sum(ss[0] + ss[1]);
    if (threadIdx.x % WARP == 0)
        *squares = ss[0];
}

static __device__ __forceinline__ uint4
normed_eight(const float *x, const float4 *weight, float norm)
{
    const float w[8] = {weight[0].x, weight[0].y, weight[0].z, weight[0].w,
                        weight[1].x, weight[1].y, weight[1].z, weight[1].w};
    float v[8];

#pragma unroll
    for (int i = 0; i < 8; i++)
        v[i] = w[i] * (x[i] * norm);
    return to_bf16_eight(v);
}

/*
 * Grid: rows. A thread has TURNS times 8 columns, a warp 256 that lie together; sums go over those,
 * then over warps as they lie. One more warp says how streams are mixed. What is constant is on its
 * way before the kernels in front are done; what they left is asked for at once and widened while
 * that warp is at work, if there are registers for it.
 */
template <int HC, int TURNS>
static __global__ void __launch_bounds__(IN_THREADS + WARP)
streams_in_kernel(const __grid_constant__ struct streams_in_args a)
{
    constexpr int WARPS = IN_THREADS / WARP;
    constexpr bool EARLY = TURNS * HC <= 8;

    __shared__ __align__(16) float pre[MAX_HC], squares[TURNS * WARPS];
    const int t = threadIdx.x, warp = t / WARP, row = blockIdx.x, vectors = a.dim / 8;
    const uint16_t *x = a.x + row_start(row_start(row, a.hc), a.dim);
    const float per = unknown(1.0f / (float)a.dim);
    float4 weight[TURNS][2];
    float y[TURNS][8], w[EARLY ? TURNS : 1][HC][8];

    pdl_go();
    if (warp == WARPS)
        mix_of<HC, TURNS * HC / 4>(a, row, pre);
    else {
#pragma unroll
        for (int k = 0; k < TURNS; k++)
#pragma unroll
            for (int i = 0; i < 2; i++)
                if (t + k * IN_THREADS < vectors)
                    weight[k][i] =
                        load_ahead((const float4 *)a.norm + (t + k * IN_THREADS) * 2 + i);
        pdl_wait();
#pragma unroll
        for (int k = 0; k < TURNS && EARLY; k++)
            load_streams<HC>(a, x, t + k * IN_THREADS, w[k]);
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < TURNS && warp < WARPS; k++) {
        if (!EARLY)
            load_streams<HC>(a, x, t + k * IN_THREADS, w[0]);
        mixed_eight<HC>(w[EARLY ? k : 0], pre, a.hc, y[k], &squares[warp + k * WARPS]);
    }
    __syncthreads();
    if (warp == WARPS)
        return;
    float sum = 0.0f;

#pragma unroll
    for (int i = 0; i < TURNS * WARPS / 4; i++)
        sum += four_parts(((const float4 *)squares)[i]);
    const float norm = inverse_rms(sum, per, a.norm_eps);

#pragma unroll
    for (int k = 0; k < TURNS; k++) {
        const int at = t + k * IN_THREADS;
        const size_t to = row_start(row, a.dim) + at * 8;
        uint4 u = make_uint4(0, 0, 0, 0);

        if (at < vectors) {
            u = normed_eight(y[k], weight[k], norm);
            *(uint4 *)(a.y + to) = u;
        }
        if (a.yq == NULL)
            continue;
        u = quantised(u);
        if (at < vectors)
            *(uint4 *)(a.yq + to) = u;
    }
}

int
streams_in_cuda(struct cuda_rank *rk, const struct streams_in_args *a, struct err *e)
{
    static void (*const kernel[2][3])(struct streams_in_args) = {
        {streams_in_kernel<MAX_HC, 1>, streams_in_kernel<MAX_HC, 2>,
         streams_in_kernel<MAX_HC, 4>},
        {streams_in_kernel<4, 1>, streams_in_kernel<4, 2>, streams_in_kernel<4, 4>}};
    const int turns = ceil_div(a->dim, IN_THREADS * 8);

    if (a->hc < 1 || a->hc > MAX_HC || a->dim % 8 != 0 || turns > 4 ||
        a->chunks != streams_chunks(a->hc, a->dim))
        return err_set(e, ERR_INTERNAL, 0, "streams: %d of %d", a->hc, a->dim);
    if (a->rows == 0)
        return 0;
    CU_TRY(launch_pdl(rk, kernel[a->hc == 4][turns <= 2 ? turns - 1 : 2], dim3(a->rows),
                      IN_THREADS + WARP, 0, *a),
           e);
    return 0;
}
