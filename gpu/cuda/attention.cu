/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attention of query rows over lists of packed key rows (spec 5.6), in three kernels: scores,
 * softmax under one maximum over all keys, values. Scores lie in memory between them.
 *
 * scores: 32 keys by 32 heads a block, a key a lane; both unpacked to f32 in shared memory, 256
 * dims at a time, products in four interleaved ascending sums. softmax: a warp a head; sums in
 * double. values: a thread a dim, 8 heads; partial sums of 32 keys, added in ascending order.
 * Each order is one of absolute places in the job's own lists, so a job's bits depend on the
 * job alone. Bound by f32 arithmetic for many rows and by latency for one.
 */
#include "base/err.h"
#include "gpu/cuda/device.cuh"
#include "gpu/index/attention.h"
#include "gpu/index/rows.h"
#include "gpu/ops/attention.h"

enum {
    TILE_KEYS = 32,
    TILE_HEADS = 32,
    TILE_DIMS = 256,
    PAD = 4, /* a lane's 16-byte loads then fall on banks of their own */
    WARPS = 8,
    WARP_HEADS = TILE_HEADS / WARPS,
    VALUE_HEADS = 8,
    VALUE_DIMS = 128,
};

struct score_smem {
    float key[TILE_KEYS][TILE_DIMS + PAD];
    float q[TILE_HEADS][TILE_DIMS];
    const uint8_t *row[TILE_KEYS];
};

static_assert((int)KEY_GROUP == (int)KV_GROUP, "what rows are packed with");

static __device__ __forceinline__ struct key_parts
row_layout(const struct attention_args &a)
{
    return key_parts_of(a.dim, a.fmt == KV_BF16 ? 0 : a.dim - a.rope_dim);
}

/* Elements c .. c + 3, c a multiple of 4 (so is nope). */
static __device__ __forceinline__ float4
key_quad(const uint8_t *row, struct key_parts l, int c)
{
    float v[4];

    if (c < l.nope) {
        const uint32_t u = *(const uint32_t *)(row + c);
        const float s = e8m0_to_f32(row[key_scale(l, c)]);
        const float2 lo = e4m3_pair((uint16_t)u), hi = e4m3_pair((uint16_t)(u >> 16));

        return make_float4(lo.x * s, lo.y * s, hi.x * s, hi.y * s);
    }
    const uint32_t *p = (const uint32_t *)(row + key_wide(l, c));

    bf16_pair(p[0], v);
    bf16_pair(p[1], v + 2);
    return make_float4(v[0], v[1], v[2], v[3]);
}

static __device__ __forceinline__ float
key_value(const uint8_t *row, struct key_parts l, int c)
{
    if (c < l.nope)
        return e4m3_value(row[c]) * e8m0_to_f32(row[key_scale(l, c)]);
    return bf16_to_f32(*(const uint16_t *)(row + key_wide(l, c)));
}

size_t
attention_scratch(const struct attention_args *like)
{
    return weight_scratch(like->n_heads, like->n_keys);
}

/* Keys and queries of this block, dims c0 .. c0 + TILE_DIMS - 1; zeros beyond what there is. */
static __device__ void
load_tiles(struct score_smem *s, const struct attention_args &a, struct key_parts l, int h0,
           int c0)
{
    enum { QUADS = TILE_DIMS / 4 };

    for (int i = threadIdx.x; i < TILE_KEYS * QUADS; i += blockDim.x) {
        const int k = piece_row(i, QUADS), c = piece_at(i, QUADS, 4);
        float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);

        if (s->row[k] != NULL && c0 + c < a.dim)
            v = key_quad(s->row[k], l, c0 + c);
        *(float4 *)&s->key[k][c] = v;
    }
    for (int i = threadIdx.x; i < TILE_HEADS * QUADS; i += blockDim.x) {
        const int h = piece_row(i, QUADS), c = piece_at(i, QUADS, 4);
        float v[4] = {0.0f, 0.0f, 0.0f, 0.0f};

        if (h0 + h < a.n_heads && c0 + c < a.dim) {
            const uint2 u = *(const uint2 *)(a.q + head_cell(h0 + h, a.dim, c0 + c));

            bf16_pair(u.x, v);
            bf16_pair(u.y, v + 2);
        }
        *(float4 *)&s->q[h][c] = make_float4(v[0], v[1], v[2], v[3]);
    }
}

/* Grid: key tiles, head tiles, jobs. */
static __global__ void __launch_bounds__(WARPS *WARP)
score_kernel(const struct attention_args *jobs, int max_keys, float *score)
{
    LAUNCH_SHARED(16, uint8_t, memory);
    struct score_smem *s = (struct score_smem *)memory;
    const struct attention_args a = jobs[blockIdx.z];
    const struct key_parts l = row_layout(a);
    const int k0 = blockIdx.x * TILE_KEYS, h0 = blockIdx.y * TILE_HEADS;
    const int lane = threadIdx.x % WARP, first = threadIdx.x / WARP * WARP_HEADS;
    float4 acc[WARP_HEADS];

    if (k0 >= a.n_keys)
        return;
    if (threadIdx.x < TILE_KEYS)
        s->row[lane] = k0 + lane < a.n_keys ? a.keys[k0 + lane] : NULL;
    for (int i = 0; i < WARP_HEADS; i++)
        acc[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    for (int c0 = 0; c0 < a.dim; c0 += TILE_DIMS) {
        __syncthreads(); /* row is there; the tiles before are used up */
        load_tiles(s, a, l, h0, c0);
        __syncthreads();
        for (int c = 0; c < TILE_DIMS && c0 + c < a.dim; c += 4) {
            const float4 k = *(const float4 *)&s->key[lane][c];

#pragma unroll
            for (int i = 0; i < WARP_HEADS; i++) {
                const float4 q = *(const float4 *)&s->q[first + i][c];

                acc[i].x = fmaf(q.x, k.x, acc[i].x);
                acc[i].y = fmaf(q.y, k.y, acc[i].y);
                acc[i].z = fmaf(q.z, k.z, acc[i].z);
                acc[i].w = fmaf(q.w, k.w, acc[i].w);
            }
        }
    }
    score += row_start(blockIdx.z, weight_scratch(a.n_heads, max_keys));
    for (int i = 0; i < WARP_HEADS; i++) {
        const int h = h0 + first + i;
        const float sum = (acc[i].x + acc[i].y) + (acc[i].z + acc[i].w);

        if (h < a.n_heads && k0 + lane < a.n_keys)
            score[weight_cell(h, max_keys, k0 + lane)] =
                (float)((double)sum / sqrt((double)a.dim));
    }
}

/* Scores to weights in place, rounded to bf16; the sum of those not rounded and the sink's
 * share behind them. Grid: groups of WARPS heads, jobs. */
static __global__ void __launch_bounds__(WARPS *WARP)
softmax_kernel(const struct attention_args *jobs, int max_keys, float *score)
{
    const struct attention_args *a = &jobs[blockIdx.y];
    const int h = grid_item(blockIdx.x, WARPS, threadIdx.x / WARP),
              lane = threadIdx.x % WARP;
    const int n = a->n_keys;
    float top = -CUDART_INF_F;
    double den = 0.0;

    if (h >= a->n_heads)
        return;
    score += row_start(blockIdx.y, weight_scratch(a->n_heads, max_keys));
    float *s = score + weight_cell(h, max_keys, 0);

    for (int i = lane; i < n; i += WARP)
        top = fmaxf(top, s[i]);
    top = warp_max(top);
    for (int i = lane; i < n; i += WARP) {
        const float p = exp_f32(s[i] - top);

        den += (double)p;
        s[i] = bf16_round(p);
    }
    den = warp_sum(den) + (double)exp_f32(a->sink[h] - top);
    if (lane == 0)
        score[weight_cell(a->n_heads, max_keys, h)] = (float)den;
}

/* Grid: tiles of VALUE_DIMS, groups of VALUE_HEADS, jobs. */
static __global__ void __launch_bounds__(VALUE_DIMS)
value_kernel(const struct attention_args *jobs, int max_keys, const float *score)
{
    __shared__ __align__(16) float p[TILE_KEYS][VALUE_HEADS];
    __shared__ const uint8_t *row[TILE_KEYS];
    const struct attention_args a = jobs[blockIdx.z];
    const struct key_parts l = row_layout(a);
    const int c = grid_item(blockIdx.x, VALUE_DIMS, threadIdx.x),
              h0 = blockIdx.y * VALUE_HEADS;
    float total[VALUE_HEADS] = {0};

    score += row_start(blockIdx.z, weight_scratch(a.n_heads, max_keys));
    for (int k0 = 0; k0 < a.n_keys; k0 += TILE_KEYS) {
        float sum[VALUE_HEADS] = {0};

        __syncthreads(); /* the tile before is used up */
        for (int i = threadIdx.x; i < TILE_KEYS * VALUE_HEADS; i += VALUE_DIMS) {
            const int h = piece_row(i, TILE_KEYS), k = piece_at(i, TILE_KEYS, 1);
            const bool there = h0 + h < a.n_heads && k0 + k < a.n_keys;

            p[k][h] = there ? score[weight_cell(h0 + h, max_keys, k0 + k)] : 0.0f;
        }
        if (threadIdx.x < TILE_KEYS)
            row[threadIdx.x] = a.keys[min(k0 + (int)threadIdx.x, a.n_keys - 1)];
        __syncthreads();
        if (c >= a.dim)
            continue;
#pragma unroll 8
        for (int k = 0; k < TILE_KEYS; k++) {
            if (k0 + k >= a.n_keys)
                break;
            const float v = key_value(row[k], l, c);

#pragma unroll
            for (int h = 0; h < VALUE_HEADS; h++)
                sum[h] = fmaf(p[k][h], v, sum[h]);
        }
#pragma unroll
        for (int h = 0; h < VALUE_HEADS; h++)
            total[h] += sum[h];
    }
    for (int h = 0; h < VALUE_HEADS; h++)
        if (h0 + h < a.n_heads && c < a.dim)
            a.o[head_cell(h0 + h, a.dim, c)] =
                f32_to_bf16(total[h] / score[weight_cell(a.n_heads, max_keys, h0 + h)]);
}

int
attention_cuda(struct cuda_rank *rk, const struct attention_args *a, int n,
               const struct attention_args *like, float *score, struct err *e)
{
    const int heads = like->n_heads, keys = like->n_keys;
    const size_t shared = sizeof(struct score_smem);

    if (like->dim % 4 != 0 || (like->dim - like->rope_dim) % 4 != 0 || keys < 1)
        return err_set(e, ERR_INTERNAL, 0, "attention: heads of %d, %d rotated", like->dim,
                       like->rope_dim);
    if (n == 0)
        return 0;
    SHARED_TRY(score_kernel, shared, e);
    CU_TRY(launch_kernel(rk->stream, score_kernel,
                         dim3(ceil_div(keys, TILE_KEYS), ceil_div(heads, TILE_HEADS), n),
                         WARPS * WARP, shared, a, keys, score),
           e);
    CU_TRY(launch_kernel(rk->stream, softmax_kernel, dim3(ceil_div(heads, WARPS), n),
                         WARPS * WARP, 0, a, keys, score),
           e);
    CU_TRY(launch_kernel(
               rk->stream, value_kernel,
               dim3(ceil_div(like->dim, VALUE_DIMS), ceil_div(heads, VALUE_HEADS), n),
               VALUE_DIMS, 0, a, keys, score),
           e);
    return 0;
}
