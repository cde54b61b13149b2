/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The indexer: scores of a query over all compressed rows that it sees, and the best of them
 * (spec 7.4, 7.5).
 *
 * Twice an e2m1 value is a small integer, so the 32 products under a scale add up exactly in
 * integers (dp4a) in any order; from there on it is the formula's own order: bits are those of
 * the C twin. A block is 64 keys; 4 threads share a key's heads, one adds their terms up.
 *
 * The k best: scores have only 16 bits, so two counts of 256 classes find the k-th value; one
 * pass in order then writes them, places from prefix sums. One block a query: integer counts by
 * atomics are exact, the order of writing is fixed.
 */
#include "base/err.h"
#include "gpu/cuda/device.cuh"
#include "gpu/cuda/kernels.h"
#include "gpu/index.h"
#include "gpu/index/indexer.h"
#include "gpu/index/rows.h"

enum {
    KEYS = SCORE_KEYS,
    SCORE_THREADS = KEYS * SCORE_PARTS,
    TOPK_THREADS = 1024,
    CLASSES = 256,
};

/* One packed row's part i: two values each up to dim / 2, scales behind. */
static __device__ __forceinline__ void
unpack(const uint8_t *row, int i, int dim, int8_t *values, float *scales)
{
    if (i < dim / 2)
        *(uint16_t *)(values + 2 * i) = (uint16_t)fpbits_e2m1_pair_twice(row[i]);
    else
        scales[i - dim / 2] = e8m0_to_f32(row[i]);
}

/* Twice twice q . k, by groups, scaled and added in ascending order. Rows aligned to 16. */
static __device__ __forceinline__ float
dot(const int8_t *q, const int8_t *k, const float *qs, const float *ks, int groups)
{
    float d = 0.0f;

    for (int g = 0; g < groups; g++) {
        const int4 *x = (const int4 *)(q + g * FP4_GROUP);
        const int4 *y = (const int4 *)(k + g * FP4_GROUP);
        int sum = 0;

#pragma unroll
        for (int i = 0; i < 2; i++) {
            sum = __dp4a(x[i].x, y[i].x, sum);
            sum = __dp4a(x[i].y, y[i].y, sum);
            sum = __dp4a(x[i].z, y[i].z, sum);
            sum = __dp4a(x[i].w, y[i].w, sum);
        }
        d += (float)sum * 0.25f * qs[g] * ks[g];
    }
    return d;
}

/* Grid: tiles of keys, jobs. */
static __global__ void __launch_bounds__(SCORE_THREADS)
index_score_kernel(const struct index_score_args *jobs, size_t block_at)
{
    LAUNCH_SHARED(16, uint8_t, memory);
    const struct index_score_args a = jobs[blockIdx.y];
    const struct score_plan p = score_plan_for(a.n_heads, a.dim);
    const int groups = a.dim / FP4_GROUP, t = threadIdx.x, j0 = blockIdx.x * KEYS;
    const int mine = t % KEYS, h0 = score_head(t / KEYS, a.n_heads);
    const int h1 = score_head(t / KEYS + 1, a.n_heads);
    int8_t *q = (int8_t *)memory + p.q, *key = (int8_t *)memory + p.key;
    float *qs = (float *)(memory + p.q_scale), *ks = (float *)(memory + p.key_scale);
    float *w = (float *)(memory + p.w), *term = (float *)(memory + p.term), score = 0.0f;

    if (j0 >= a.n_rows)
        return;
    for (int i = t; i < a.n_heads * p.row; i += SCORE_THREADS) {
        const int h = piece_row(i, p.row), part = piece_at(i, p.row, 1);

        unpack(a.q + row_start(h, p.row), part, a.dim, q + h * a.dim, qs + h * groups);
    }
    for (int i = t; i < KEYS * p.row; i += SCORE_THREADS) {
        const int k = piece_row(i, p.row), part = piece_at(i, p.row, 1), j = j0 + k;

        if (j < a.n_rows)
            unpack(a.blocks[entry_page(j, a.block_rows)] + block_at +
                       row_start(entry_row(j, a.block_rows), p.row),
                   part, a.dim, key + score_key(k, a.dim), ks + k * groups);
    }
    for (int h = t; h < a.n_heads; h += SCORE_THREADS)
        w[h] = bf16_to_f32(a.w[h]);
    __syncthreads();
    for (int h = h0; h < h1 && j0 + mine < a.n_rows; h++) {
        const float d = bf16_round(dot(q + h * a.dim, key + score_key(mine, a.dim),
                                       qs + h * groups, ks + mine * groups, groups));

        term[score_term(h, mine)] = bf16_round((d > 0.0f ? d : 0.0f) * w[h]);
    }
    __syncthreads();
    if (t >= KEYS || j0 + t >= a.n_rows)
        return;
    for (int h = 0; h < a.n_heads; h++)
        score += term[score_term(h, t)];
    a.score[j0 + t] = bf16_round(score);
}

int
index_scores_cuda(struct cuda_rank *rk, const struct index_score_args *a, int n,
                  const struct index_score_args *like, size_t block_at, struct err *e)
{
    const int bytes = score_plan_for(like->n_heads, like->dim).bytes;

    if (like->dim % FP4_GROUP != 0 || (size_t)bytes > rk->shared_bytes)
        return err_set(e, ERR_INTERNAL, 0, "index_scores: %d heads of %d", like->n_heads,
                       like->dim);
    if (n == 0 || like->n_rows == 0)
        return 0;
    SHARED_TRY(index_score_kernel, bytes, e);
    CU_TRY(launch_kernel(rk->stream, index_score_kernel,
                         dim3(ceil_div(like->n_rows, KEYS), n), SCORE_THREADS, bytes, a,
                         block_at),
           e);
    return 0;
}

/* Orders like the number. */
static __device__ __forceinline__ unsigned
sort_key(float score)
{
    return fpbits_bf16_order(f32_bits(score) >> 16);
}

/* The class in which the k-th largest lies, and its rank inside. Thread 0. */
static __device__ void
find_class(const int *count, int k, int *cls, int *rank)
{
    int i = CLASSES - 1;

    while (i > 0 && k > count[i])
        k -= count[i--];
    *cls = i;
    *rank = k;
}

static __global__ void __launch_bounds__(TOPK_THREADS)
topk_kernel(const struct index_score_args *jobs, int topk, int *picked)
{
    __shared__ int count[CLASSES], above[WARP], equal[WARP], cls, rank;
    const float *score = jobs[blockIdx.x].score;
    const int n = jobs[blockIdx.x].n_rows, t = threadIdx.x, lane = t % WARP,
              warp = t / WARP;
    int n_above = 0, n_equal = 0;
    unsigned limit = 0;

    if (n <= topk)
        return;
    picked += (size_t)blockIdx.x * topk;
    for (int low = 0; low < 2; low++) {
        if (t < CLASSES)
            count[t] = 0;
        __syncthreads();
        for (int i = t; i < n; i += TOPK_THREADS) {
            const unsigned s = sort_key(score[i]);

            if (!low || (s & 0xff00) == limit)
                atomicAdd(&count[low ? s & 0xff : s >> 8], 1);
        }
        __syncthreads();
        if (t == 0)
            find_class(count, low ? rank : topk, &cls, &rank);
        __syncthreads();
        limit |= (unsigned)cls << (low ? 0 : 8);
    }
    for (int i0 = 0; i0 < n; i0 += TOPK_THREADS) {
        const int i = i0 + t;
        const unsigned s = i < n ? sort_key(score[i]) : 0;
        const bool is_above = i < n && s > limit, is_equal = i < n && s == limit;
        const unsigned ma = __ballot_sync(~0u, is_above), me = __ballot_sync(~0u, is_equal);
        const unsigned before = (1u << lane) - 1;
        int at_above = n_above + __popc(ma & before);
        int at_equal = n_equal + __popc(me & before);

        if (lane == 0) {
            above[warp] = __popc(ma);
            equal[warp] = __popc(me);
        }
        __syncthreads();
        for (int x = 0; x < TOPK_THREADS / WARP; x++) {
            at_above += x < warp ? above[x] : 0;
            at_equal += x < warp ? equal[x] : 0;
            n_above += above[x];
            n_equal += equal[x];
        }
        if (is_above || (is_equal && at_equal < rank))
            picked[topk_place(at_above, at_equal, rank)] = i;
        __syncthreads(); /* counts of this chunk are used up */
    }
}

int
topk_cuda(struct cuda_rank *rk, const struct index_score_args *jobs, int n, int topk,
          int *picked, struct err *e)
{
    if (n == 0 || topk == 0)
        return 0;
    CU_TRY(launch_kernel(rk->stream, topk_kernel, dim3(n), TOPK_THREADS, 0, jobs, topk,
                         picked),
           e);
    return 0;
}
