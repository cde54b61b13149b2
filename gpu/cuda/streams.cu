/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hyper-connections between sublayers in two kernels (spec 4): the plain operations are in mhc.cu,
 * norm.cu and quant.cu, and these do the same to a row that is read once.
 *
 * streams_mix: a block has 64 columns of all streams of some rows. It puts the sublayer's output
 * back, and from what the streams now are it makes its part of the next mixing matrix. streams_in:
 * a block a row adds those parts up in order, mixes the streams to the next sublayer's input, norms
 * it and rounds it to FP8. What the way back will need takes Sinkhorn's iterations, a long chain
 * that nobody waits for yet: blocks of later kernels make it (streams.cuh).
 */
#include "base/err.h"
#include "gpu/cuda/device.cuh"
#include "gpu/cuda/streams.cuh"

enum {
    COLS = 64,
    ROWS = 4, /* that a block of streams_mix may take one after another */
    MIX_WARPS = 8,
    MIX_OUT = 10, /* outputs of a warp at most: 80 are 2 * 8 + 64 */
    IN_THREADS = 512,
    IN_VECTORS = 4, /* of 8 columns a thread: 16384 */
};

static __device__ __forceinline__ float
stream_of(const float *old, int j)
{
    float v = old[0];

#pragma unroll
    for (int i = 1; i < MAX_HC; i++)
        v = i == j ? old[i] : v;
    return v;
}

/* The sublayer's output in column c: one row, or the experts' rows added up. */
static __device__ __forceinline__ float
sublayer_output(const struct streams_mix_args &a, int row, int c)
{
    float sum = 0.0f;

    if (a.f != NULL)
        return bf16_to_f32(a.f[row_start(row, a.dim) + c]);
    for (int i = 0; i < a.k; i++)
        sum += bf16_to_f32(a.routed[row_start(a.slot[row_start(row, a.k) + i], a.dim) + c]);
    return bf16_round(sum + bf16_to_f32(a.shared[row_start(row, a.dim) + c]));
}

/*
 * Grid: chunks of columns, groups of ROWS rows, of which a block takes `rows`: 64 threads have a
 * row's columns with all their streams, then all warps go over the rows' parts of the mix.
 */
static __global__ void __launch_bounds__(ROWS *COLS)
streams_mix_kernel(const __grid_constant__ struct streams_mix_args a, int rows)
{
    __shared__ float x[ROWS][MAX_HC * COLS];
    __shared__ double squares[ROWS * COLS / WARP];
    const int t = threadIdx.x, c = grid_item(blockIdx.x, COLS, piece_at(t, COLS, 1)),
              n = a.hc * COLS;
    const int lane = t % WARP, warp = t / WARP, width = a.hc * a.dim;
    const int row0 = blockIdx.y * rows, row = row0 + piece_row(t, COLS);
    const bool mine = t / COLS < rows && row < a.rows && c < a.dim;
    float4 early[3][2];
    const bool has_early = a.n_mix <= 3 * MIX_WARPS && n <= 2 * WARP * 4 && a.fn != NULL;

    pdl_go();
#pragma unroll
    for (int k = 0; k < 3; k++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int o = warp + k * MIX_WARPS, at = lane * 4 + i * WARP * 4;

            early[k][i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (has_early && o < a.n_mix && at < n && blockIdx.x * COLS + at % COLS < a.dim)
                early[k][i] =
                    __ldg((const float4 *)(a.fn + row_start(o, width) +
                                           stream_cell(piece_row(at, COLS), a.dim, 0) +
                                           blockIdx.x * COLS + piece_at(at, COLS, 1)));
        }
    pdl_wait();
    double ss = 0.0;

    if (mine) {
        uint16_t *stream = a.x + row_start(row, width) + c;
        float old[MAX_HC], f = 0.0f;

        if (a.post != NULL)
            f = sublayer_output(a, row, c);
#pragma unroll
        for (int i = 0; i < MAX_HC; i++)
            old[i] = i < a.hc ? bf16_to_f32(stream[row_start(i, a.dim)]) : 0.0f;
        for (int j = 0; j < a.hc; j++) {
            float v = stream_of(old, j);

            if (a.post != NULL) {
                const float *comb = a.comb + row_start(row_start(row, a.hc), a.hc);
                float sum = 0.0f;

#pragma unroll
                for (int i = 0; i < MAX_HC; i++)
                    if (i < a.hc)
                        sum += comb[stream_cell(i, a.hc, j)] * old[i];
                v = bf16_round(a.post[row_start(row, a.hc) + j] * f + sum);
                stream[row_start(j, a.dim)] = f32_to_bf16(v);
            }
            x[piece_row(t, COLS)][stream_cell(j, COLS, piece_at(t, COLS, 1))] = v;
            ss += (double)v * (double)v;
        }
    } else
        for (int j = 0; j < a.hc; j++)
            x[piece_row(t, COLS)][stream_cell(j, COLS, piece_at(t, COLS, 1))] = 0.0f;
    if (a.fn == NULL)
        return;
    ss = warp_sum(ss);
    if (lane == 0)
        squares[warp] = ss;
    __syncthreads();
    for (int r = 0; r < rows && row0 + r < a.rows; r++) {
        float *part = a.part +
                      row_start(row_start(row0 + r, gridDim.x) + blockIdx.x, a.n_mix + 1);

        if (t == 0)
            part[a.n_mix] = (float)(squares[2 * r] + squares[2 * r + 1]);
        if (has_early)
#pragma unroll
            for (int k = 0; k < 3; k++) {
                const int o = warp + k * MIX_WARPS;
                float sum = 0.0f;

#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const int at = lane * 4 + i * WARP * 4;

                    if (at >= n)
                        continue;
                    sum = fmaf(early[k][i].x, x[r][at], sum);
                    sum = fmaf(early[k][i].y, x[r][at + 1], sum);
                    sum = fmaf(early[k][i].z, x[r][at + 2], sum);
                    sum = fmaf(early[k][i].w, x[r][at + 3], sum);
                }
                sum = warp_sum(sum);
                if (lane == 0 && o < a.n_mix)
                    part[o] = sum;
            }
        else
            for (int o = warp; o < a.n_mix; o += MIX_WARPS) {
                const float *w = a.fn + row_start(o, width) + blockIdx.x * COLS;
                float sum = 0.0f;

                for (int at = lane * 4; at < n; at += WARP * 4) {
                    if (blockIdx.x * COLS + at % COLS >= a.dim)
                        continue;
                    const float4 u = __ldg(
                        (const float4 *)(w + stream_cell(piece_row(at, COLS), a.dim, 0) +
                                         piece_at(at, COLS, 1)));

                    sum = fmaf(u.x, x[r][at], sum);
                    sum = fmaf(u.y, x[r][at + 1], sum);
                    sum = fmaf(u.z, x[r][at + 2], sum);
                    sum = fmaf(u.w, x[r][at + 3], sum);
                }
                sum = warp_sum(sum);
                if (lane == 0)
                    part[o] = sum;
            }
    }
}

int
streams_chunks(int dim)
{
    return ceil_div(dim, COLS);
}

int
streams_mix_cuda(struct cuda_rank *rk, const struct streams_mix_args *a, struct err *e)
{
    const int rows = a->rows > 16 ? ROWS : 1;

    if (a->hc < 1 || a->hc > MAX_HC || a->dim % 4 != 0 || a->n_mix > MIX_OUT * MIX_WARPS)
        return err_set(e, ERR_INTERNAL, 0, "streams: %d of %d", a->hc, a->dim);
    if (a->rows == 0)
        return 0;
    CU_TRY(launch_pdl(rk, streams_mix_kernel,
                      dim3(ceil_div(a->dim, COLS), ceil_div(a->rows, rows)), ROWS * COLS, 0,
                      *a, rows),
           e);
    return 0;
}

/* Grid: rows. */
static __global__ void __launch_bounds__(IN_THREADS)
streams_in_kernel(const __grid_constant__ struct streams_in_args a)
{
    __shared__ float m[2 * MAX_HC + MAX_HC * MAX_HC + 1], pre[MAX_HC];
    const int t = threadIdx.x, vectors = a.dim / 8;
    float v[IN_VECTORS][8];
    double ss = 0.0;

    const uint16_t *x = a.x + row_start(row_start(blockIdx.x, a.hc), a.dim);
    const bool mine = t < vectors;
    uint4 early[MAX_HC];
    float4 weight[2] = {};

    pdl_go();
    if (mine) { /* the first vector's are under way while others are waited for */
        weight[0] = __ldg((const float4 *)(a.norm + t * 8));
        weight[1] = __ldg((const float4 *)(a.norm + t * 8 + 4));
    }
    pdl_wait();
#pragma unroll
    for (int j = 0; j < MAX_HC; j++)
        early[j] = mine && j < a.hc ? *(const uint4 *)(x + row_start(j, a.dim) + t * 8)
                                    : make_uint4(0, 0, 0, 0);
    const float scale = add_parts(a, blockIdx.x, m);

    if (t < a.hc)
        pre[t] = sigmoid(m[t] * scale * a.scale[0] + a.base[t]) + a.hc_eps;
    __syncthreads();
#pragma unroll
    for (int k = 0; k < IN_VECTORS; k++) {
        const int at = t + k * IN_THREADS;

#pragma unroll
        for (int i = 0; i < 8; i++)
            v[k][i] = 0.0f;
        if (at >= vectors)
            continue;
#pragma unroll
        for (int j = 0; j < MAX_HC; j++) {
            float w[8];
            uint4 u;

            if (j >= a.hc)
                break;
            u = k == 0 ? early[j] : *(const uint4 *)(x + row_start(j, a.dim) + at * 8);

            bf16_pair(u.x, w);
            bf16_pair(u.y, w + 2);
            bf16_pair(u.z, w + 4);
            bf16_pair(u.w, w + 6);
#pragma unroll
            for (int i = 0; i < 8; i++)
                v[k][i] += pre[j] * w[i];
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
            v[k][i] = bf16_round(v[k][i]);
            ss += (double)v[k][i] * (double)v[k][i];
        }
    }
    const float norm = 1.0f / sqrtf((float)(block_sum(ss) / a.dim) + a.norm_eps);

#pragma unroll
    for (int k = 0; k < IN_VECTORS; k++) {
        const int at = t + k * IN_THREADS;
        float amax = 1e-4f, s;
        uint32_t y[4], q[4];

        if (at / WARP * WARP >= vectors)
            continue; /* the whole warp */
#pragma unroll
        for (int i = 0; i < 8; i++) {
            v[k][i] = at < vectors ? bf16_round((k == 0 ? ((const float *)weight)[i]
                                                        : a.norm[at * 8 + i]) *
                                                (v[k][i] * norm))
                                   : 0.0f;
            amax = fmaxf(amax, fabsf(v[k][i]));
        }
#pragma unroll
        for (int d = 8; d > 0; d /= 2)
            amax = fmaxf(amax, __shfl_xor_sync(~0u, amax, d));
        s = e8m0_to_f32(f32_to_e8m0_up(amax * (1.0f / 448.0f)));
#pragma unroll
        for (int i = 0; i < 4; i++) {
            y[i] = f32_to_bf16(v[k][2 * i]) | (uint32_t)f32_to_bf16(v[k][2 * i + 1]) << 16;
            q[i] = fp8_round_pair(v[k][2 * i], v[k][2 * i + 1], s);
        }
        if (at >= vectors)
            continue;
        *(uint4 *)(a.y + row_start(blockIdx.x, a.dim) + at * 8) =
            make_uint4(y[0], y[1], y[2], y[3]);
        *(uint4 *)(a.yq + row_start(blockIdx.x, a.dim) + at * 8) =
            make_uint4(q[0], q[1], q[2], q[3]);
    }
}

int
streams_in_cuda(struct cuda_rank *rk, const struct streams_in_args *a, struct err *e)
{
    if (a->hc < 1 || a->hc > MAX_HC || a->dim % 8 != 0 ||
        a->dim > IN_THREADS * IN_VECTORS * 8 || a->n_mix != 2 * a->hc + a->hc * a->hc)
        return err_set(e, ERR_INTERNAL, 0, "streams: %d of %d", a->hc, a->dim);
    if (a->rows == 0)
        return 0;
    CU_TRY(launch_pdl(rk, streams_in_kernel, dim3(a->rows), IN_THREADS, 0, *a), e);
    return 0;
}
