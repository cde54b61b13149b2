/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The indexer on tensor cores: scores of a step's queries over all compressed rows that they see,
 * and the best of them (spec 7.4, 7.5). The plain twin is index.cu; bits are the same.
 *
 * Scores: products of e2m1 values are exact in bf16 and their sums over the 32 that share scales
 * are exact in f32, in any order; scales are powers of two, so one fma a part rounds as the
 * formula does, parts and heads in ascending order. A warp has 32 keys and goes over all heads;
 * a score is kept as the 16 bits that order like it.
 *
 * The k best: a cluster of eight blocks has a query, each an eighth of its scores in shared memory.
 * Two counts of 256 classes find the k-th value; a lane counts in a column of its own, so that
 * equal classes do not wait for each other. Then each warp counts and writes a stretch of its own:
 * ascending indices, of equal scores the first.
 */
#include <cooperative_groups.h>

#include "base/err.h"
#include "gpu/cuda/device.cuh"
#include "gpu/cuda/kernels.h"
#include "gpu/index.h"
#include "gpu/index/choose.h"
#include "gpu/index/indexer.h"
#include "gpu/index/mma.h"
#include "model/kvsize.h"

namespace cg = cooperative_groups;

enum {
    WARPS = CHOOSE_WARPS,
    KEYS = CHOOSE_KEYS,
    PARTS = CHOOSE_PARTS,
    TOPK_WARPS = CHOOSE_COUNTERS,
    TOPK_THREADS = TOPK_WARPS * WARP,
    CLASSES = CHOOSE_CLASSES,
};

/* Eight e2m1 codes, low nibble first, as bf16 2^126 too small: codes i and i + 4 to r[i]. */
static __device__ __forceinline__ void
widen(uint32_t w, uint32_t *r)
{
    fpbits_e2m1_widen(w, r);
}

/* Orders like the number: negative ones turn around. */
static __device__ __forceinline__ uint16_t
sort_key(float score)
{
    return (uint16_t)fpbits_bf16_order(__float_as_uint(score) >> 16);
}

/* Shared memory of scores_kernel: queries as fragments, their scales times 2^66, weights. */
static __host__ __device__ inline size_t
scores_shared(int heads, int groups)
{
    const size_t all = (size_t)(heads + 7) / 8 * 8;

    return all * groups * 4 * 16 + all * groups * 4 + all * 4;
}

/* Grid: groups of WARPS * KEYS keys in turn, rows. */
template <int GROUPS>
static __global__ void __launch_bounds__(WARPS *WARP, 2)
scores_kernel(const __grid_constant__ struct choose_args a)
{
    LAUNCH_SHARED(16, uint8_t, memory);
    uint4 *q = (uint4 *)memory;                 /* [head / 8][group][lane] */
    const int tiles = choose_eights(a.n_heads); /* heads that are not there add nothing */
    float *scale = (float *)(q + (size_t)tiles * 8 * GROUPS * 4); /* [head / 8][group][8] */
    float *weight = scale + tiles * 8 * GROUPS;
    const int t = threadIdx.x, lane = t % WARP, warp = t / WARP, row = blockIdx.y;
    const int row_bytes = fp4_row(GROUPS * FP4_GROUP);
    const int per_page = KV_PAGE_TOKENS / a.ratio;

    pdl_go();
    pdl_wait();
    const int n = (int)entries_visible(a.rows[row].pos, (uint64_t)a.ratio);

    if (n <= a.topk || (int)blockIdx.x * WARPS * KEYS >= n)
        return;
    for (int i = t; i < tiles * GROUPS * WARP; i += WARPS * WARP) {
        const int l = i % WARP, g = i / WARP % GROUPS, h = i / WARP / GROUPS * 8 + l / 4;
        const uint8_t *from = a.q + row_start(row_start(row, a.n_heads) + h, row_bytes);
        const uint8_t *p = from + g * 16 + l % 4 * 4;
        uint32_t r[4];

        if (h >= a.n_heads) {
            q[i] = make_uint4(0, 0, 0, 0);
            if (l % 4 == 0)
                scale[i / WARP * 8 + l / 4] = 0.0f;
            continue;
        }
        widen(p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24, r);
#pragma unroll
        for (int k = 0; k < 4; k++) /* times 2^126, then 2^60 */
            r[k] = times_bf16x2(times_bf16x2(r[k], 0x7e807e80), 0x5d805d80);
        q[i] = make_uint4(r[0], r[1], r[2], r[3]);
        if (l % 4 == 0)
            scale[i / WARP * 8 + l / 4] = e8m0_to_f32(from[GROUPS * 16 + g]) * 0x1p66f;
    }
    for (int h = t; h < tiles * 8; h += WARPS * WARP)
        weight[h] = h < a.n_heads ? bf16_to_f32(a.w[row_start(row, a.n_heads) + h]) : 0.0f;
    __syncthreads();
    uint8_t *const *pages = a.spans[a.rows[row].span].pages;

    for (int j0 = choose_first(blockIdx.x, warp); j0 < n;
         j0 += (int)gridDim.x * WARPS * KEYS) {
        uint32_t key[2][GROUPS][2][4];
        float ks[4][GROUPS], sum[4] = {};

#pragma unroll
        for (int m = 0; m < 4; m++) { /* keys lane / 4, and 8, 16, 24 further on */
            const int j = min(choose_key(j0, m, lane), n - 1);
            const uint8_t *p = pages[entry_page(j, per_page)] + a.page_at +
                               entry_row(j, per_page) * row_bytes;

#pragma unroll
            for (int g = 0; g < GROUPS; g++) {
                const uint8_t *from = p + g * 16 + lane % 4 * 4;
                const uint32_t w = GROUPS % 4 == 0 ? *(const uint32_t *)from
                                                   : from[0] | (uint32_t)from[1] << 8 |
                                                         (uint32_t)from[2] << 16 |
                                                         (uint32_t)from[3] << 24;
                uint32_t r[4];

                widen(w, r);
                key[m / 2][g][0][m % 2] = r[0];
                key[m / 2][g][0][m % 2 + 2] = r[1];
                key[m / 2][g][1][m % 2] = r[2];
                key[m / 2][g][1][m % 2 + 2] = r[3];
                ks[m][g] = e8m0_to_f32(p[GROUPS * 16 + g]);
            }
        }
        for (int h = 0; h < tiles; h++) {
            float d[4][2] = {};

#pragma unroll
            for (int g = 0; g < GROUPS; g++) {
                const uint4 b = q[choose_query(h, GROUPS, g, lane)];
                const float2 qs =
                    *(const float2 *)&scale[choose_scale(h, GROUPS, g, mma_col(lane, 0))];

#pragma unroll
                for (int m = 0; m < 2; m++) {
                    float c[4] = {};

                    mma_bf16(c, key[m][g][0], b.x, b.y);
                    mma_bf16(c, key[m][g][1], b.z, b.w);
                    d[2 * m][0] = fmaf(c[0], qs.x * ks[2 * m][g], d[2 * m][0]);
                    d[2 * m][1] = fmaf(c[1], qs.y * ks[2 * m][g], d[2 * m][1]);
                    d[2 * m + 1][0] = fmaf(c[2], qs.x * ks[2 * m + 1][g], d[2 * m + 1][0]);
                    d[2 * m + 1][1] = fmaf(c[3], qs.y * ks[2 * m + 1][g], d[2 * m + 1][1]);
                }
            }
            const float2 w = *(const float2 *)&weight[h * 8 + mma_col(lane, 0)];

#pragma unroll
            for (int m = 0; m < 4; m++) {
                d[m][0] = bf16_round(fmaxf(bf16_round(d[m][0]), 0.0f) * w.x);
                d[m][1] = bf16_round(fmaxf(bf16_round(d[m][1]), 0.0f) * w.y);
            }
#pragma unroll
            for (int s = 0; s < 4; s++) /* heads in ascending order: lane by lane */
#pragma unroll
                for (int m = 0; m < 4; m++)
                    sum[m] =
                        __shfl_sync(~0u, (sum[m] + d[m][0]) + d[m][1], (lane & ~3) | s);
        }
#pragma unroll
        for (int m = 0; m < 4; m++) {
            const int j = choose_key(j0, m, lane);

            if (lane % 4 == m && j < n)
                a.score[row_start(row, a.max_rows) + j] = sort_key(bf16_round(sum[m]));
        }
    }
}

/* The class in which the k-th largest of all blocks lies, and its rank inside. All threads. */
static __device__ void
find_class(cg::cluster_group &cluster, int *count, const uint32_t *wide, int k, int *found)
{
    __shared__ int sum[CLASSES];
    const int t = threadIdx.x;

    __syncthreads();
    for (int c = t / 4; c < CLASSES; c += TOPK_THREADS / 4) {
        int v = 0;

        for (int i = t % 4; i < WARP; i += 4)
            v += (int)wide[choose_counter_read(c, i)];
        v += __shfl_xor_sync(~0u, v, 1);
        v += __shfl_xor_sync(~0u, v, 2);
        if (t % 4 == 0)
            count[c] = v;
    }
    cluster.sync();
    if (t < CLASSES) {
        int v = 0;

        for (int r = 0; r < PARTS; r++)
            v += cluster.map_shared_rank(count, r)[t];
        sum[t] = v;
    }
    __syncthreads();
    if (t < WARP) { /* a lane has 8 classes; those above come first */
        int mine = 0, above;

        for (int i = 0; i < CLASSES / WARP; i++)
            mine += sum[t * (CLASSES / WARP) + i];
        above = mine;
        for (int d = 1; d < WARP; d *= 2) {
            const int v = __shfl_down_sync(~0u, above, d);

            above += t + d < WARP ? v : 0;
        }
        above -= mine;
        if (above < k && above + mine >= k) {
            int c = (t + 1) * (CLASSES / WARP) - 1;

            for (k -= above; k > sum[c]; c--)
                k -= sum[c];
            found[0] = c;
            found[1] = k;
        }
    }
    __syncthreads();
}

static __global__ void __launch_bounds__(TOPK_THREADS)
topk_cluster_kernel(const __grid_constant__ struct choose_args a)
{
    LAUNCH_SHARED(16, uint8_t, memory);
    __shared__ int count[2][CLASSES], found[2], above[TOPK_WARPS], equal[TOPK_WARPS],
        all[2];
    cg::cluster_group cluster = cg::this_cluster();
    uint32_t *wide = (uint32_t *)memory;                 /* [CLASSES][WARP] */
    uint16_t *key = (uint16_t *)(wide + CLASSES * WARP); /* [part] */
    const int t = threadIdx.x, lane = t % WARP, warp = t / WARP;
    const int row = blockIdx.y, rank = (int)cluster.block_rank();

    pdl_go();
    pdl_wait();
    const int n = (int)entries_visible(a.rows[row].pos, (uint64_t)a.ratio);

    if (n <= a.topk)
        return;
    const int part = choose_part(n), first = min(n, rank * part),
              mine = min(n - first, part);
    const uint16_t *from = a.score + row_start(row, a.max_rows) + first;
    int *picked = a.picked + row_start(row, a.topk);
    unsigned limit = 0;
    int rest = a.topk;

    for (int i = t; i < mine; i += TOPK_THREADS)
        key[i] = from[i];
    for (int low = 0; low < 2; low++) {
        for (int i = t; i < CLASSES * WARP; i += TOPK_THREADS)
            wide[i] = 0;
        __syncthreads();
        for (int i = t; i < mine; i += TOPK_THREADS) {
            const unsigned s = key[i];

            if (!low || (s & 0xff00) == limit)
                atomicAdd(&wide[choose_counter(low ? s & 0xff : s >> 8, lane)], 1u);
        }
        find_class(cluster, count[low], wide, rest, found);
        limit |= (unsigned)found[0] << (low ? 0 : 8);
        rest = found[1];
        __syncthreads(); /* everyone has read found */
    }
    /* a warp has a stretch: multiples of 32 */
    const int stretch = choose_stretch(mine);
    const int i0 = warp * stretch, i1 = min(mine, i0 + stretch);
    int n_above = 0, n_equal = 0;

    for (int i = i0 + lane; i < i0 + stretch; i += WARP) {
        const unsigned s = i < i1 ? key[i] : 0;

        n_above += __popc(__ballot_sync(~0u, i < i1 && s > limit));
        n_equal += __popc(__ballot_sync(~0u, i < i1 && s == limit));
    }
    if (lane == 0) {
        above[warp] = n_above;
        equal[warp] = n_equal;
    }
    __syncthreads();
    if (t == 0) {
        all[0] = all[1] = 0;
        for (int w = 0; w < TOPK_WARPS; w++) {
            const int x = above[w], y = equal[w];

            above[w] = all[0];
            equal[w] = all[1];
            all[0] += x;
            all[1] += y;
        }
    }
    cluster.sync();
    int at_above = above[warp], at_equal = equal[warp];

    for (int r = 0; r < rank; r++) {
        at_above += cluster.map_shared_rank(all, r)[0];
        at_equal += cluster.map_shared_rank(all, r)[1];
    }
    for (int i = i0 + lane; i < i0 + stretch; i += WARP) {
        const unsigned s = i < i1 ? key[i] : 0, before = (1u << lane) - 1;
        const bool is_above = i < i1 && s > limit, is_equal = i < i1 && s == limit;
        const unsigned ma = __ballot_sync(~0u, is_above), me = __ballot_sync(~0u, is_equal);
        const int x = at_above + __popc(ma & before), y = at_equal + __popc(me & before);

        if (is_above || (is_equal && y < rest))
            picked[x + min(y, rest)] = first + i;
        at_above += __popc(ma);
        at_equal += __popc(me);
    }
    cluster.sync(); /* nobody leaves while others read from here */
}

bool
choose_can(int n_heads, int dim, uint64_t most, size_t shared_bytes)
{
    const int groups = dim / FP4_GROUP;

    return n_heads > 0 && dim % FP4_GROUP == 0 &&
           (groups == 1 || groups == 2 || groups == 4) &&
           scores_shared(n_heads, groups) <= shared_bytes &&
           (size_t)CLASSES * WARP * 4 + (size_t)choose_part((int)most) * 2 + 4096 <=
               shared_bytes;
}

template <int GROUPS>
static int
scores(struct cuda_rank *rk, const struct choose_args *a, struct err *e)
{
    const size_t shared = scores_shared(a->n_heads, GROUPS);
    const int tiles = ceil_div(a->max_rows, WARPS * KEYS), most = 2 * rk->sms;
    const dim3 grid(tiles < most ? tiles : most, a->n);

    if (shared > 48 * 1024)
        SHARED_TRY(scores_kernel<GROUPS>, shared, e);
    CU_TRY(launch_pdl(rk, scores_kernel<GROUPS>, grid, WARPS * WARP, shared, *a), e);
    return 0;
}

int
choose_cuda(struct cuda_rank *rk, const struct choose_args *a, struct err *e)
{
    const size_t shared = (size_t)CLASSES * WARP * 4 + (size_t)choose_part(a->max_rows) * 2;
    int r;

    if (!choose_can(a->n_heads, a->dim, (uint64_t)a->max_rows, rk->shared_bytes))
        return err_set(e, ERR_INTERNAL, 0, "choose: %d heads of %d", a->n_heads, a->dim);
    if (a->n == 0 || a->max_rows <= a->topk)
        return 0;
    switch (a->dim / FP4_GROUP) {
    case 1: r = scores<1>(rk, a, e); break;
    case 2: r = scores<2>(rk, a, e); break;
    default: r = scores<4>(rk, a, e);
    }
    if (r == -1)
        return -1;
    SHARED_TRY(topk_cluster_kernel, shared, e);
    CU_TRY(launch_cluster(rk, PARTS, topk_cluster_kernel, dim3(PARTS, a->n), TOPK_THREADS,
                          shared, *a),
           e);
    return 0;
}
