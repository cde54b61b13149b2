/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The indexer on tensor cores: scores of a step's queries over all compressed rows that they see
 * (spec 7.4); best.cu then takes the best of them. The plain twin is index.cu; bits are the same.
 *
 * Scores: e2m1 values under their power of two are exact in bf16, sums over the 32 that share
 * scales are exact in f32, in any order; parts are then added in ascending order, as the formula
 * rounds. A warp has 32 keys in registers and goes over all heads, 16 at a time: terms of two
 * heads are rounded in pairs, and pass through shared memory, so that one lane has all heads of a
 * key and adds them in ascending order. A block does this for some rows: as long as they are of
 * one sequence, its keys stay. A score is kept as the 16 bits that order
 * like it, and so is the largest of 16 neighbours.
 */
#include "base/err.h"
#include "gpu/cuda/device.cuh"
#include "gpu/cuda/index_query.cuh"
#include "gpu/cuda/kernels.h"
#include "gpu/index.h"
#include "gpu/index/choose.h"
#include "gpu/index/indexer.h"
#include "gpu/index/mma.h"
#include "model/kvsize.h"

enum {
    WARPS = CHOOSE_WARPS,
    KEYS = CHOOSE_KEYS,
    THREADS = WARPS * WARP,
    ROUND = 2, /* eights of heads whose terms are added up at once */
    SLOTS = 2, /* one is read while the next one is written */
    MOST_ROWS = 4,
    RATIO = MODEL_CSA_RATIO, /* of all layers that choose */
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

static_assert(CHOOSE_RAW_ROWS < MOST_ROWS * 4, "few rows have blocks of their own");
static_assert(PER_PAGE % KEYS == 0, "keys of a warp are on one page");

/* Keys j0 .. j0 + 31, none beyond the last, as bf16 2^60 too small: exact for scales from 2^-73 to
 * 2^61. */
template <int GROUPS>
static __device__ __forceinline__ void
load_keys(const struct choose_args &a, uint8_t *const *pages, int j0, int last,
          uint32_t (*key)[GROUPS][2][4])
{
    const int row_bytes = fp4_row(GROUPS * FP4_GROUP), lane = threadIdx.x % WARP;
    /* all on one page */
    const uint8_t *first = pages[entry_page(j0, PER_PAGE)] + a.page_at +
                           entry_row(j0, PER_PAGE) * row_bytes;
    uint32_t code[4][GROUPS], scale[4];

#pragma unroll
    for (int m = 0; m < 4; m++) { /* keys lane / 4, and 8, 16, 24 further on */
        const uint8_t *p = first + min(choose_key(0, m, lane), last - j0) * row_bytes;

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

/* Queries of one row as the products take them, under their scales and 2^60 too large. Heads that
 * are not there add nothing. */
template <int GROUPS>
static __device__ __forceinline__ void
stage_packed(const struct choose_args &a, int row, uint4 *q)
{
    for (int i = threadIdx.x; i < choose_eights(a.n_heads) * GROUPS * WARP; i += THREADS) {
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
}

/* The same of queries that are neither rotated nor packed yet, eight by a warp. */
template <int GROUPS>
static __device__ __forceinline__ void
stage_raw(const struct choose_args &a, int row, uint4 *q)
{
    const int lane = threadIdx.x % WARP;

#pragma unroll 1
    for (int e = threadIdx.x / WARP; e < choose_eights(a.n_heads); e += WARPS) {
        const int h = min(e * 8 + lane / 4, a.n_heads - 1);
        uint4 r[GROUPS];

        index_query<GROUPS>(
            a.raw + row_start(row_start(row, a.n_heads) + h, GROUPS * FP4_GROUP),
            a.cs + row_start(row, a.rope_dim), a.rope_dim, lane % 4, r);
#pragma unroll
        for (int g = 0; g < GROUPS; g++)
            q[choose_query(e, GROUPS, g, lane)] =
                e * 8 + lane / 4 < a.n_heads ? r[g] : make_uint4(0, 0, 0, 0);
    }
}

/* Pairs of weights. */
static __device__ __forceinline__ void
stage_weights(const struct choose_args &a, int row, uint32_t *weight)
{
    const uint16_t *w = a.w + row_start(row, a.n_heads);

    for (int i = threadIdx.x; i < choose_eights(a.n_heads) * 4; i += THREADS) {
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

/* A score of each lane, of key j below n, and the largest of each 16 from j0 on. Behind the last
 * one there are 0s, up to a whole unit, and up to eight units. */
static __device__ __forceinline__ void
keep_scores(uint16_t *score, int tops, int j0, int j, int n, uint32_t key)
{
    const int lane = threadIdx.x % WARP;

    key = j < n ? key : 0;
    const uint32_t low = __reduce_max_sync(~0u, j - j0 < CHOOSE_UNIT ? key : 0);
    const uint32_t high = __reduce_max_sync(~0u, j - j0 < CHOOSE_UNIT ? 0 : key);

    if (j < choose_tops(n))
        score[j] = (uint16_t)key;
    uint32_t *pairs = (uint32_t *)(score + tops);
    const int at = j0 / (2 * CHOOSE_UNIT) + lane;

    if (lane == 0 || (j0 + KEYS >= n && lane <= 3 - (at - lane) % 4))
        pairs[at] = lane == 0 ? low | high << 16 : 0;
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

/* Grid: groups of WARPS * KEYS keys in turn, groups of rows. RAW: queries are a.raw, rows
 * are apart. */
template <int GROUPS, bool RAW>
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
    const int row0 = blockIdx.y * rows_each, rows = RAW ? 1 : min(a.n - row0, rows_each);
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
    for (int r = 0; r < rows; r++) {
        stage_weights(a, row0 + r, weight + r * eights * 4);
        if (RAW)
            stage_raw<GROUPS>(a, row0 + r, q + r * per_row);
        else
            stage_packed<GROUPS>(a, row0 + r, q + r * per_row);
    }
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

            keep_scores(a.score + row_start(row0 + r, choose_stride(a.max_rows)),
                        choose_tops(a.max_rows), j0, j, n, sort_key(sum));
            __syncwarp(); /* terms may be in either slot */
        }
        have = -1;
    }
}

bool
choose_can(int n_heads, int dim, int topk, uint64_t most, size_t shared_bytes)
{
    const int groups = dim / FP4_GROUP;

    return n_heads > 0 && dim % FP4_GROUP == 0 &&
           (groups == 1 || groups == 2 || groups == 4) &&
           scores_shared(n_heads, groups, MOST_ROWS) <= shared_bytes &&
           topk <= CHOOSE_TOPK && most <= CHOOSE_MOST;
}

bool
choose_takes_raw(int rows, int dim, int rope_dim)
{
    return rows <= CHOOSE_RAW_ROWS && rope_dim % 8 == 0 && dim % 8 == 0 && rope_dim <= dim;
}

template <int GROUPS, bool RAW>
static int
scores_of(struct cuda_rank *rk, const struct choose_args *a, struct err *e)
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
        SHARED_TRY((scores_kernel<GROUPS, RAW>), shared, e);
    CU_TRY(launch_pdl(rk, scores_kernel<GROUPS, RAW>, grid, THREADS, shared, *a, rows), e);
    return 0;
}

template <int GROUPS>
static int
scores(struct cuda_rank *rk, const struct choose_args *a, struct err *e)
{
    return a->raw != NULL ? scores_of<GROUPS, true>(rk, a, e)
                          : scores_of<GROUPS, false>(rk, a, e);
}

int
choose_cuda(struct cuda_rank *rk, const struct choose_args *a, struct err *e)
{
    int r;

    if (!choose_can(a->n_heads, a->dim, a->topk, (uint64_t)a->max_rows, rk->shared_bytes))
        return err_set(e, ERR_INTERNAL, 0, "choose: %d heads of %d", a->n_heads, a->dim);
    if (a->raw != NULL && !choose_takes_raw(a->n, a->dim, a->rope_dim))
        return err_set(e, ERR_INTERNAL, 0, "choose: %d rows rotate %d", a->n, a->rope_dim);
    if (a->n == 0 || a->max_rows <= a->topk)
        return 0;
    switch (a->dim / FP4_GROUP) {
    case 1: r = scores<1>(rk, a, e); break;
    case 2: r = scores<2>(rk, a, e); break;
    default: r = scores<4>(rk, a, e);
    }
    return r == -1 ? -1 : best_cuda(rk, a, e);
}
