/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The indexer on tensor cores: scores of a step's queries over all compressed rows that they see,
 * and the best of them (spec 7.4, 7.5). The plain twin is index.cu; bits are the same.
 *
 * Scores: e2m1 values under their power of two are exact in bf16, sums over the 32 that share
 * scales are exact in f32, in any order; parts are then added in ascending order, as the formula
 * rounds. A warp has 32 keys in registers and goes over all heads, 16 at a time: terms of two
 * heads are rounded in pairs, and pass through shared memory, so that one lane has all heads of a
 * key and adds them in ascending order. A block does this for some rows: as long as they are of
 * one sequence, its keys stay. A score is kept as the 16 bits that order like it.
 *
 * The k best: a query has one block, or a cluster with a part of its scores each, in registers: neighbours in one thread. Two counts of 256 classes find the k-th value; a lane
 * counts in a column of its own, so that equal classes do not wait for each other. What is in
 * front of a thread then says where its own go: ascending indices, of equal scores the first.
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
    THREADS = WARPS * WARP,
    ROUND = 2, /* eights of heads whose terms are added up at once */
    SLOTS = 2, /* one is read while the next one is written */
    MOST_ROWS = 4,
    PARTS = CHOOSE_PARTS,
    CLASSES = CHOOSE_CLASSES,
    TOPK_THREADS = 1024,
    EIGHTS = CHOOSE_EIGHTS,
    BLOCK_MOST = TOPK_THREADS * EIGHTS * 8, /* scores of a block */
    BLOCK_FEW = 4096,                       /* enough for one */
    RATIO = MODEL_CSA_RATIO,                /* of all layers that choose */
    PER_PAGE = KV_PAGE_TOKENS / RATIO,
};

/* Orders like the number: negative ones turn around. */
static __device__ __forceinline__ uint16_t
sort_key(float score)
{
    return (uint16_t)fpbits_bf16_order(f32_to_bf16(score));
}

/* Codes i and i + 4 of eight to r[i], as bf16 2^126 too small. */
static __device__ __forceinline__ void
widen(uint32_t w, uint32_t *r)
{
    fpbits_e2m1_widen(w, r);
}

/* The 4 codes' bytes; rows of 4 groups are whole words. */
template <int GROUPS>
static __device__ __forceinline__ uint32_t
code_word(const uint8_t *p)
{
    return GROUPS % 4 == 0
               ? *(const uint32_t *)p
               : p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

template <int GROUPS>
static __device__ __forceinline__ uint32_t
scale_word(const uint8_t *p)
{
    if constexpr (GROUPS % 4 == 0) {
        return *(const uint32_t *)p;
    } else {
        uint32_t w = 0;

        for (int g = 0; g < GROUPS; g++)
            w |= (uint32_t)p[g] << 8 * g;
        return w;
    }
}

/* Keys j0 .. j0 + 31, none beyond the last, as bf16 2^60 too small: exact for scales from 2^-73 to
 * 2^61. */
template <int GROUPS>
static __device__ __forceinline__ void
load_keys(const struct choose_args &a, uint8_t *const *pages, int j0, int last,
          uint32_t (*key)[GROUPS][2][4])
{
    const int row_bytes = fp4_row(GROUPS * FP4_GROUP), lane = threadIdx.x % WARP;
    uint32_t code[4][GROUPS], scale[4];

#pragma unroll
    for (int m = 0; m < 4; m++) { /* keys lane / 4, and 8, 16, 24 further on */
        const int j = min(choose_key(j0, m, lane), last);
        const uint8_t *p = pages[entry_page(j, PER_PAGE)] + a.page_at +
                           entry_row(j, PER_PAGE) * row_bytes;

#pragma unroll
        for (int g = 0; g < GROUPS; g++)
            code[m][g] = code_word<GROUPS>(p + g * 16 + lane % 4 * 4);
        scale[m] = scale_word<GROUPS>(p + GROUPS * 16);
    }
#pragma unroll
    for (int m = 0; m < 4; m++)
#pragma unroll
        for (int g = 0; g < GROUPS; g++) {
            const uint32_t up = min((scale[m] >> 8 * g & 0xff) + 126 - 60, 254u);
            uint32_t r[4];

            widen(code[m][g], r);
#pragma unroll
            for (int i = 0; i < 4; i++)
                key[m / 2][g][i / 2][i % 2 * 2 + m % 2] =
                    times_bf16x2(r[i], up * 0x00800080);
        }
}

/* Queries of one row as the products take them, under their scales and 2^60 too large; pairs of
 * weights. Heads that are not there add nothing. */
template <int GROUPS>
static __device__ void
stage_queries(const struct choose_args &a, int row, uint4 *q, uint32_t *weight)
{
    const int eights = choose_eights(a.n_heads);
    const uint16_t *w = a.w + row_start(row, a.n_heads);

    for (int i = threadIdx.x; i < eights * GROUPS * WARP; i += THREADS) {
        const int l = i % WARP, g = i / WARP % GROUPS, h = i / WARP / GROUPS * 8 + l / 4;
        const uint8_t *from =
            a.q + row_start(row_start(row, a.n_heads) + h, fp4_row(GROUPS * FP4_GROUP));
        uint32_t r[4] = {};

        if (h < a.n_heads) {
            const uint32_t up = __float_as_uint(e8m0_to_f32(from[GROUPS * 16 + g])) >> 16;

            widen(code_word<GROUPS>(from + g * 16 + l % 4 * 4), r);
#pragma unroll
            for (int k = 0; k < 4; k++) /* times 2^126, then 2^60 */
                r[k] = times_bf16x2(
                    times_bf16x2(times_bf16x2(r[k], 0x7e807e80), 0x5d805d80), up * 0x10001);
        }
        q[i] = make_uint4(r[0], r[1], r[2], r[3]);
    }
    for (int i = threadIdx.x; i < eights * 4; i += THREADS) {
        const int h = i * 2;

        weight[i] = (h < a.n_heads ? w[h] : 0u) |
                    (uint32_t)(h + 1 < a.n_heads ? w[h + 1] : 0) << 16;
    }
}

/* Terms of 32 keys with eight heads: of each of the lane's four keys and two heads, a word. */
template <int GROUPS>
static __device__ __forceinline__ uint4
eight_terms(const uint32_t (*key)[GROUPS][2][4], const uint4 *q, uint32_t w)
{
    float d[4][2];
    uint32_t p[4];

#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
        const uint4 b = q[choose_query(0, GROUPS, g, 0)];

#pragma unroll
        for (int m = 0; m < 2; m++) {
            float c[4] = {};

            mma_bf16(c, key[m][g][0], b.x, b.y);
            mma_bf16(c, key[m][g][1], b.z, b.w);
#pragma unroll
            for (int i = 0; i < 4; i++)
                d[2 * m + i / 2][i % 2] = g == 0 ? c[i] : d[2 * m + i / 2][i % 2] + c[i];
        }
    }
#pragma unroll
    for (int m = 0; m < 4; m++)
        p[m] = times_bf16x2(relu_bf16_pair(d[m][0], d[m][1]), w);
    return make_uint4(p[0], p[1], p[2], p[3]);
}

/* Eight heads' terms of one key in ascending order. */
static __device__ __forceinline__ float
add_terms(float sum, const uint32_t *from)
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float v[2];

        bf16_pair(from[choose_term(0, i) * 4], v);
        sum = (sum + v[0]) + v[1];
    }
    return sum;
}

/* The score of one key, which is another one in each lane: j0 + choose_key(0, lane % 4, lane).
 * Terms of a round are added up beside the products of the next one. */
template <int GROUPS>
static __device__ __forceinline__ float
score_keys(const uint32_t (*key)[GROUPS][2][4], const uint4 *__restrict__ q,
           const uint32_t *__restrict__ weight, int eights, uint4 *__restrict__ term,
           int lane)
{
    uint4 *to = term + choose_term(lane / 4, lane % 4);
    const uint32_t *from = (const uint32_t *)(term + choose_term(lane / 4, 0)) + lane % 4;
    int slot = 0;
    float sum = 0.0f;

    q += lane;
    weight += lane % 4;
#pragma unroll
    for (int u = 0; u < ROUND; u++)
        to[u * CHOOSE_TERMS] =
            eight_terms<GROUPS>(key, q + choose_query(u, GROUPS, 0, 0), weight[u * 4]);
    __syncwarp();
#pragma unroll 1
    for (int h = ROUND; h < eights; h += ROUND) {
        const uint32_t *last = from + slot * 4;
        uint4 p[ROUND];

        q += choose_query(ROUND, GROUPS, 0, 0);
        weight += ROUND * 4;
#pragma unroll
        for (int u = 0; u < ROUND; u++) {
            p[u] =
                eight_terms<GROUPS>(key, q + choose_query(u, GROUPS, 0, 0), weight[u * 4]);
            sum = add_terms(sum, last + u * CHOOSE_TERMS * 4);
        }
        slot = ROUND * CHOOSE_TERMS - slot;
#pragma unroll
        for (int u = 0; u < ROUND; u++)
            to[slot + u * CHOOSE_TERMS] = p[u];
        __syncwarp();
    }
#pragma unroll
    for (int u = 0; u < ROUND; u++)
        sum = add_terms(sum, from + (slot + u * CHOOSE_TERMS) * 4);
    return sum;
}

/* Shared memory of scores_kernel: each row's queries and weights; terms of each warp. */
static __host__ __device__ inline size_t
scores_shared(int heads, int groups, int rows)
{
    const size_t eights = (size_t)choose_eights(heads);

    return ((eights * groups * WARP + eights) * rows +
            WARPS * SLOTS * ROUND * CHOOSE_TERMS) *
           sizeof(uint4);
}

/* Grid: groups of WARPS * KEYS keys in turn, groups of rows. */
template <int GROUPS>
static __global__ void __launch_bounds__(THREADS, 2)
scores_kernel(const __grid_constant__ struct choose_args a, int rows_each)
{
    LAUNCH_SHARED(16, uint8_t, memory);
    const int eights = choose_eights(a.n_heads), per_row = eights * GROUPS * WARP;
    uint4 *q = (uint4 *)memory;                    /* [row][eight][group][lane] */
    uint4 *term = q + (size_t)per_row * rows_each; /* [warp][slot][eight][lane] */
    uint32_t *weight =
        (uint32_t *)(term + WARPS * SLOTS * ROUND * CHOOSE_TERMS); /* [row][pair] */
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int row0 = blockIdx.y * rows_each, rows = min(a.n - row0, rows_each);
    const int first = choose_first(blockIdx.x, warp);
    const int step = (int)gridDim.x * WARPS * KEYS;
    uint32_t key[2][GROUPS][2][4];
    int most = 0, have = -1; /* whose keys there are */

    pdl_go();
    for (int r = 0; r < rows; r++)
        most = max(most, (int)entries_visible(a.rows[row0 + r].pos, (uint64_t)RATIO));
    if (most <= a.topk || (int)blockIdx.x * WARPS * KEYS >= most) {
        pdl_wait();
        return;
    }
    /* entries that were there before this step need not wait */
    const struct dev_span &span = a.spans[a.rows[row0].span];

    if (first + KEYS <= (int)(span.start / (uint64_t)RATIO)) {
        load_keys<GROUPS>(a, span.pages, first, first + KEYS - 1, key);
        have = a.rows[row0].span;
    }
    pdl_wait();
    for (int r = 0; r < rows; r++)
        stage_queries<GROUPS>(a, row0 + r, q + r * per_row, weight + r * eights * 4);
    __syncthreads();
    term += warp * SLOTS * ROUND * CHOOSE_TERMS;
    for (int j0 = first; j0 < most; j0 += step) {
        for (int r = 0; r < rows; r++) {
            const struct dev_row &row = a.rows[row0 + r];
            const int n = (int)entries_visible(row.pos, (uint64_t)RATIO);

            if (n <= a.topk || j0 >= n)
                continue;
            if (have != row.span) {
                const struct dev_span &s = a.spans[row.span];
                const uint64_t end = (s.start + (uint64_t)s.n) / (uint64_t)RATIO;

                load_keys<GROUPS>(a, s.pages, j0, (int)end - 1, key);
                have = row.span;
            }
            const float sum = score_keys<GROUPS>(
                key, q + r * per_row, weight + r * eights * 4, eights, term, lane);
            const int j = choose_key(j0, lane % 4, lane);

            if (j < n)
                a.score[row_start(row0 + r, choose_stride(a.max_rows)) + j] = sort_key(sum);
            __syncwarp(); /* terms may be in either slot */
        }
        have = -1;
    }
}

/* A block's counts of all classes, from those of lanes, which are 0 again then, to all blocks of
 * the cluster: to[rank][class]. */
static __device__ void
send_counts(cg::cluster_group &cluster, uint32_t *wide, int *to)
{
    const int t = threadIdx.x, parts = (int)gridDim.x, rank = (int)cluster.block_rank();

    __syncthreads();
    for (int c = t / 4; c < CLASSES; c += (int)blockDim.x / 4) {
        int v = 0;

        for (int i = t % 4; i < WARP; i += 4) {
            v += (int)wide[choose_counter_read(c, i)];
            wide[choose_counter_read(c, i)] = 0;
        }
        v += __shfl_xor_sync(~0u, v, 1);
        v += __shfl_xor_sync(~0u, v, 2);
        for (int r = t % 4; r < parts; r += 4)
            cluster.map_shared_rank(to, r)[rank * CLASSES + c] = v;
    }
    cluster.sync();
}

/* The class in which the k-th largest of all blocks lies, and its rank inside; how many of class t
 * the blocks in front have. All threads. */
static __device__ int
find_class(const int *count, int rank, int k, int *found)
{
    __shared__ int sum[CLASSES / WARP];
    const int t = threadIdx.x, lane = t % WARP, warp = t / WARP;
    int before = 0, mine = 0, upto;

    if (t < CLASSES)
        for (int r = 0; r < (int)gridDim.x; r++) {
            const int x = count[r * CLASSES + t];

            before += r < rank ? x : 0;
            mine += x;
        }
    upto = mine; /* classes above, to the warp's last one */
    for (int d = 1; d < WARP; d *= 2) {
        const int v = __shfl_down_sync(~0u, upto, d);

        upto += lane + d < WARP ? v : 0;
    }
    if (t < CLASSES && lane == 0)
        sum[warp] = upto;
    __syncthreads();
    if (t < CLASSES) {
        for (int w = warp + 1; w < CLASSES / WARP; w++)
            upto += sum[w];
        if (upto >= k && upto - mine < k) {
            found[0] = t;
            found[1] = k - (upto - mine);
        }
    }
    __syncthreads();
    return before;
}

/* Key i of the 8 in v. */
static __device__ __forceinline__ unsigned
one_of(const uint4 &v, int i)
{
    const uint32_t w = i / 2 == 0 ? v.x : i / 2 == 1 ? v.y : i / 2 == 2 ? v.z : v.w;

    return i % 2 == 0 ? w & 0xffff : w >> 16;
}

/* n of eight, 0s behind them; nobody has written what lies behind. */
static __device__ __forceinline__ uint4
first_of(const uint4 *from, int n)
{
    const uint16_t *p = (const uint16_t *)from;
    uint32_t r[4] = {};

#pragma unroll
    for (int i = 0; i < 8; i++)
        if (i < n)
            r[i / 2] |= (uint32_t)p[i] << (i % 2 * 16);
    return make_uint4(r[0], r[1], r[2], r[3]);
}

/* f(score, its place) of a thread's scores, ascending. */
template <typename F>
static __device__ __forceinline__ void
each_key(const uint4 (&key)[EIGHTS], int each, F f)
{
#pragma unroll
    for (int e = 0; e < EIGHTS; e++) {
        if (e >= each)
            break;
#pragma unroll
        for (int i = 0; i < 8; i++)
            f(one_of(key[e], i), e * 8 + i);
    }
}

/* Grid: blocks of a cluster, rows. part: scores of a block; each: of a thread, by 8. */
static __global__ void __launch_bounds__(TOPK_THREADS)
topk_cluster_kernel(const __grid_constant__ struct choose_args a, int part, int each)
{
    LAUNCH_SHARED(16, uint8_t, memory);
    __shared__ int found[2], front[WARP], total[WARP], front_equal;
    cg::cluster_group cluster = cg::this_cluster();
    uint32_t *wide = (uint32_t *)memory;         /* [CLASSES][WARP] */
    int *count = (int *)(wide + CLASSES * WARP); /* [upper, lower byte][part][CLASSES] */
    const int t = threadIdx.x, lane = t % WARP, warp = t / WARP, row = blockIdx.y;
    const int n = (int)entries_visible(a.rows[row].pos, (uint64_t)RATIO);
    const int rank = (int)cluster.block_rank(), first = rank * part;
    const int own = choose_own(t, each);
    const uint4 *from =
        (const uint4 *)(a.score + row_start(row, choose_stride(a.max_rows)) + first);
    uint4 key[EIGHTS];
    unsigned limit = 0;
    int rest = a.topk, before[2];

    pdl_go();
    if (n <= a.topk) {
        pdl_wait();
        return;
    }
    for (int i = t; i < CLASSES * WARP / 4; i += (int)blockDim.x)
        ((uint4 *)wide)[i] = make_uint4(0, 0, 0, 0);
    if (t < WARP)
        front[t] = 0;
    cluster.sync(); /* all are there to be written to */
    pdl_wait();
#pragma unroll
    for (int e = 0; e < EIGHTS; e++) {
        const int at = (own + e) * 8, left = min(part, n - first) - at;

        /* Beyond the last one are 0s: nothing is less, and they are behind all that equal them. */
        key[e] = make_uint4(0, 0, 0, 0);
        if (e < each && left > 0)
            key[e] = left < 8 ? first_of(from + own + e, left) : from[own + e];
    }
#pragma unroll
    for (int low = 0; low < 2; low++) {
        int *counts = count + low * (int)gridDim.x * CLASSES;

        each_key(key, each, [&](unsigned s, int) {
            if (!low || (s & 0xff00) == limit)
                atomicAdd(&wide[choose_counter(low ? s & 0xff : s >> 8, lane)], 1u);
        });
        send_counts(cluster, wide, counts);
        before[low] = find_class(counts, rank, rest, found);
        limit |= (unsigned)found[0] << (low ? 0 : 8);
        rest = found[1];
    }
    /* chosen ones and equal ones in front: of other blocks, of other warps, of other lanes */
    int mine = 0;

    each_key(key, each, [&](unsigned s, int) {
        mine += (s > limit ? 1 : 0) + (s == limit ? 1 << 16 : 0);
    });
    int upto = mine;

    for (int d = 1; d < WARP; d *= 2) {
        const int v = __shfl_up_sync(~0u, upto, d);

        upto += lane >= d ? v : 0;
    }
    if (lane == WARP - 1)
        total[warp] = upto;
    if (t < CLASSES) {
        int v = (t > (int)(limit >> 8) ? before[0] : 0) +
                (t > (int)(limit & 0xff) ? before[1] : 0);

        if (t == (int)(limit & 0xff))
            front_equal = before[1];
        for (int d = 1; d < WARP; d *= 2)
            v += __shfl_xor_sync(~0u, v, d);
        if (lane == 0)
            front[warp] = v;
    }
    __syncthreads();
    int in_front = lane < warp ? total[lane] : 0, above = front[lane];

    for (int d = 1; d < WARP; d *= 2) {
        in_front += __shfl_xor_sync(~0u, in_front, d);
        above += __shfl_xor_sync(~0u, above, d);
    }
    in_front += upto - mine;
    above += in_front & 0xffff;
    int equal = front_equal + (in_front >> 16), *picked = a.picked + row_start(row, a.topk);

    if (mine != 0)
        each_key(key, each, [&](unsigned s, int i) {
            if (s > limit || (s == limit && equal < rest))
                picked[topk_place(above, equal, rest)] = first + own * 8 + i;
            above += s > limit ? 1 : 0;
            equal += s == limit ? 1 : 0;
        });
}

static size_t
topk_shared(int parts)
{
    return (size_t)CLASSES * WARP * sizeof(uint32_t) +
           (size_t)2 * parts * CLASSES * sizeof(int);
}

bool
choose_can(int n_heads, int dim, uint64_t most, size_t shared_bytes)
{
    const int groups = dim / FP4_GROUP;

    return n_heads > 0 && dim % FP4_GROUP == 0 &&
           (groups == 1 || groups == 2 || groups == 4) &&
           scores_shared(n_heads, groups, MOST_ROWS) <= shared_bytes &&
           topk_shared(PARTS) + 4096 <= shared_bytes &&
           most <= (uint64_t)PARTS * BLOCK_MOST;
}

template <int GROUPS>
static int
scores(struct cuda_rank *rk, const struct choose_args *a, struct err *e)
{
    /* rows of one sequence share keys; few rows need all blocks */
    const int rows = a->n >= MOST_ROWS * 4 && a->n >= MOST_ROWS * a->n_spans ? MOST_ROWS
                                                                             : 1;
    const size_t shared = scores_shared(a->n_heads, GROUPS, rows);
    /* as many blocks as run at once: each has its queries ready for some keys */
    const int tiles = ceil_div(a->max_rows, WARPS * KEYS), groups = ceil_div(a->n, rows);
    const int most = 2 * rk->sms > groups ? 2 * rk->sms / groups : 1;
    const dim3 grid(tiles < most ? tiles : most, groups);

    if (shared > 48 * 1024)
        SHARED_TRY(scores_kernel<GROUPS>, shared, e);
    CU_TRY(launch_pdl(rk, scores_kernel<GROUPS>, grid, THREADS, shared, *a, rows), e);
    return 0;
}

/* Blocks of a cluster: as few as can have a row, more while there is room and work for all. */
static int
topk(struct cuda_rank *rk, const struct choose_args *a, struct err *e)
{
    int parts = 1;

    while (parts < PARTS &&
           (a->max_rows > parts * BLOCK_MOST ||
            (a->max_rows > parts * BLOCK_FEW && a->n * parts * 2 <= rk->sms)))
        parts *= 2;
    const int part = choose_part(a->max_rows, parts);
    const int threads = part <= 256 * 8 ? 256 : part <= 512 * 8 ? 512 : TOPK_THREADS;
    const size_t shared = topk_shared(parts);

    SHARED_TRY(topk_cluster_kernel, shared, e);
    CLUSTER_TRY(topk_cluster_kernel, e);
    CU_TRY(launch_cluster(rk, parts, topk_cluster_kernel, dim3(parts, a->n), threads,
                          shared, *a, part, choose_each(part, threads)),
           e);
    return 0;
}

int
choose_cuda(struct cuda_rank *rk, const struct choose_args *a, struct err *e)
{
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
    return r == -1 ? -1 : topk(rk, a, e);
}
