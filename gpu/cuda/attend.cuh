/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_CUDA_ATTEND_CUH
#define GPU_CUDA_ATTEND_CUH

/*
 * What a block of attention does with a stretch of a row's keys (attend.cu, attend_long.cu): finds
 * and unpacks them, makes scores, weights and sums of 16 heads, one a warp.
 */
#include "gpu/cuda/device.cuh"
#include "gpu/cuda/kernels.h"
#include "gpu/cuda/query.cuh"
#include "gpu/index.h"
#include "gpu/index/attend.h"
#include "gpu/index/mma.h"
#include "gpu/index/rows.h"
#include "model/kvsize.h"

enum {
    PARTS = ATTEND_PARTS,
    HEADS = ATTEND_HEADS,
    SLICES = ATTEND_SLICES,
    WARPS = HEADS,
    THREADS = WARPS * WARP,
    MAX_DIM = 512,
    TILES = MAX_DIM / 8 / WARPS, /* of 8 dims a warp */
    KEYS_AT_ONCE = 4,
};

/* attend_long.cu: whether it takes these, and does. */
bool attend_is_long(const struct attend_args *a);
int attend_long_cuda(struct cuda_rank *rk, const struct attend_args *a, struct err *e);

/* attend_many.cu: the same. */
bool attend_is_many(const struct cuda_rank *rk, const struct attend_args *a);
int attend_many_cuda(struct cuda_rank *rk, const struct attend_args *a, struct err *e);

/* What a query row looks at. */
struct list {
    struct dev_row r;
    struct dev_span s;
    uint64_t first; /* of the window */
    int n_window, n;
    bool some; /* of the compressed rows: those picked */
    const int *picked;
};

/* Ratios divide a page's tokens: powers of two. */
static __device__ __forceinline__ int
log2_of(int n)
{
    return __ffs(n) - 1;
}

static __device__ __forceinline__ struct list
list_of(const struct attend_args &a, int row)
{
    struct list l;

    l.r = a.rows[row];
    l.s = a.spans[l.r.span];
    const int visible =
        a.ratio > 0 ? (int)entries_visible(l.r.pos, (uint64_t)1 << log2_of(a.ratio)) : 0;

    l.first = window_first(l.r.pos, (uint64_t)a.window);
    l.n_window = window_count(l.r.pos, l.first);
    l.some = a.picked != NULL && visible > a.topk;
    l.picked = a.picked + (l.some ? row_start(row, a.topk) : 0);
    l.n = l.n_window + (l.some ? a.topk : visible);
    return l;
}

/* Key i, and whether it is of an earlier step. */
static __device__ __forceinline__ const uint8_t *
key_at(const struct attend_args &a, const struct list &l, int i, bool *old)
{
    if (i < l.n_window) {
        const uint64_t p = l.first + (uint64_t)i;

        *old = p < l.s.start;
        if (!*old)
            return a.step_rows + row_start(step_row(l.s.row0, p, l.s.start), a.row_bytes);
        return l.s.rings + a.ring_at +
               row_start((uint32_t)p % (uint32_t)a.ring_slots, a.row_bytes);
    }
    const uint64_t ratio = (uint64_t)1 << log2_of(a.ratio);
    const uint64_t per_page = (uint64_t)1 << (log2_of(KV_PAGE_TOKENS) - log2_of(a.ratio));
    const uint64_t j = (uint32_t)(l.some ? l.picked[i - l.n_window] : i - l.n_window);

    *old = (j + 1) * ratio <= l.s.start;
    return l.s.pages[entry_page(j, per_page)] + a.page_at +
           row_start(entry_row(j, per_page), a.row_bytes);
}

/* What of a scale 2^(e - 127) is left to multiply by, when e4m3 codes have been multiplied by 2^60:
 * by their bits they are 2^120 too small. */
static __device__ __forceinline__ uint32_t
factor_bf16(uint32_t e)
{
    return min(e + 60, 254u) << 7;
}

/* Four e4m3 codes as bf16. */
static __device__ __forceinline__ uint2
widen(uint32_t w, uint32_t factor)
{
    const uint32_t lo = __byte_perm(w, 0, 0x1404), hi = __byte_perm(w, 0, 0x3424);
    const uint32_t up = 0x5d805d80; /* 2^60 twice */

    return make_uint2(times_bf16x2(times_bf16x2(fpbits_e4m3_high(lo), up), factor),
                      times_bf16x2(times_bf16x2(fpbits_e4m3_high(hi), up), factor));
}

/* Which keys load_tile takes: those of earlier steps, if the list is known, and zeros behind the
 * end; the others; all. */
enum when { EARLY, LATE, ALL };

/* Key i0 + k of a tile, or NULL: it is not of these, or there is none. */
static __device__ __forceinline__ const uint8_t *
key_for(const struct attend_args &a, const struct list &l, int i, int end, enum when when,
        bool *zero)
{
    const bool known = i < l.n_window || !l.some;
    const uint8_t *key = NULL;
    bool old = false;

    *zero = i >= end && when != LATE;
    if (i < end && (when != EARLY || known)) {
        key = key_at(a, l, i, &old);
        if (when != ALL && (old && known) != (when == EARLY))
            key = NULL;
    }
    return key;
}

/* Words of a key that a lane has, and the key's scales. */
struct words {
    uint2 v[3], scale;
};

static __device__ __forceinline__ struct words
load_words(const uint8_t *key, int words)
{
    const int lane = threadIdx.x % WARP;
    struct words x;

#pragma unroll
    for (int w = 0; w < 3; w++)
        x.v[w] = key != NULL && lane + w * WARP < words
                     ? load_beside((const uint2 *)(key + (lane + w * WARP) * 8))
                     : make_uint2(0, 0);
    x.scale = key != NULL ? load_beside((const uint2 *)(key + words * 8))
                          : make_uint2(0, 0);
    return x;
}

/* Unpacked, to a row of the tile. */
static __device__ __forceinline__ void
put_words(struct words x, int codes, int words, uint16_t *row)
{
    const int lane = threadIdx.x % WARP;

#pragma unroll
    for (int w = 0; w < 3; w++) {
        const int at = lane + w * WARP;

        if (w < 2 && at < codes) { /* of 64 words at most: MAX_DIM */
            const uint32_t e = (w == 0 ? x.scale.x : x.scale.y) >> lane / 8 * 8 & 0xff;
            const uint32_t f = factor_bf16(e);
            const uint2 lo = widen(x.v[w].x, f | f << 16);
            const uint2 hi = widen(x.v[w].y, f | f << 16);

            *(uint4 *)(row + attend_element(at, codes)) =
                make_uint4(lo.x, lo.y, hi.x, hi.y);
        } else if (at < words)
            *(uint2 *)(row + attend_element(at, codes)) = x.v[w];
    }
}

/* Keys i0 .. i0 + n - 1 to the tile, zeros for those behind `end`. */
static __device__ __forceinline__ void
load_tile(const struct attend_args &a, const struct list &l, int i0, int n, int end,
          uint16_t *tile, enum when when)
{
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int codes = (a.dim - a.rope_dim) / 8, words = codes + a.rope_dim / 4;

#pragma unroll 1
    for (int k0 = warp; k0 < n; k0 += WARPS * KEYS_AT_ONCE) {
        const int mine = k0 + lane * WARPS; /* a lane finds the key of each */
        bool zero = false;
        const uint8_t *key = lane < KEYS_AT_ONCE && mine < n
                                 ? key_for(a, l, i0 + mine, end, when, &zero)
                                 : NULL;
        const uint32_t some = __ballot_sync(~0u, key != NULL || zero);
        struct words x[KEYS_AT_ONCE];

#pragma unroll
        for (int u = 0; u < KEYS_AT_ONCE; u++)
            if (some >> u & 1)
                x[u] = load_words(
                    (const uint8_t *)__shfl_sync(~0u, (unsigned long long)key, u), words);
#pragma unroll
        for (int u = 0; u < KEYS_AT_ONCE; u++)
            if (some >> u & 1)
                put_words(x[u], codes, words, tile + attend_row(k0 + u * WARPS, a.dim));
    }
}

/* This warp's head of the row. */
struct head {
    uint4 piece[MAX_DIM / QUERY_PIECE / WARP];
};

static __device__ __forceinline__ struct head
load_head(const struct attend_args &a, int row, int h)
{
    const int lane = threadIdx.x % WARP;
    const uint16_t *q = a.q + row_start(row_start(row, a.n_heads) + h, a.dim);
    struct head x;

#pragma unroll
    for (int i = 0; i < MAX_DIM / QUERY_PIECE / WARP; i++) {
        const int c = (lane + i * WARP) * QUERY_PIECE;

        x.piece[i] = h < a.n_heads && c < a.dim ? *(const uint4 *)(q + c)
                                                : make_uint4(0, 0, 0, 0);
    }
    return x;
}

/* To shared memory; normed and rotated on the way, if nobody has. */
static __device__ __forceinline__ void
put_head(const struct attend_args &a, struct head x, int row, uint16_t *q)
{
    const int lane = threadIdx.x % WARP;
    const float *cs = a.cs + row_start(row, a.rope_dim);
    float sum = 0.0f;
    uint32_t factor = 0;

    if (a.raw) {
#pragma unroll
        for (int i = 0; i < MAX_DIM / QUERY_PIECE / WARP; i++)
            sum = query_squares(x.piece[i], sum);
        factor = query_factor(sum, a.per_dim, a.eps);
    }
#pragma unroll
    for (int i = 0; i < MAX_DIM / QUERY_PIECE / WARP; i++) {
        const int c = (lane + i * WARP) * QUERY_PIECE;

        if (c < a.dim)
            *(uint4 *)(q + c) =
                a.raw ? query_piece(x.piece[i], factor, cs, c, a.dim - a.rope_dim)
                      : x.piece[i];
    }
}

/* A slice of the scores of eight keys, dims first .. first + 31 and on by SLICES times 32. */
static __device__ __forceinline__ void
score_slice(int dim, const uint32_t (*x)[2][4], const uint16_t *tile, int t, int first,
            float (*c)[4])
{
    const int lane = threadIdx.x % WARP, stride = attend_row(1, dim);

#pragma unroll
    for (int i = 0; i < MAX_DIM / 32 / SLICES; i++) {
        const int d = first + i * 32 * SLICES;
        uint32_t b[4];

        if (d >= dim)
            break;
        ldmatrix(b, tile + (t * 8 + quad_row(lane, 8)) * stride + d + quad_at(lane, 8));
        mma_bf16(c[0], x[i][0], b[0], b[1]);
        mma_bf16(c[1], x[i][1], b[2], b[3]);
    }
}

/* The queries of a slice. */
static __device__ __forceinline__ void
query_slice(int dim, const uint16_t *q, int first, uint32_t (*x)[2][4])
{
    const int lane = threadIdx.x % WARP;

#pragma unroll
    for (int i = 0; i < MAX_DIM / 32 / SLICES; i++)
#pragma unroll
        for (int half = 0; half < 2; half++)
            if (first + i * 32 * SLICES < dim)
                ldmatrix(x[i][half], q + attend_row(quad_row(lane, 16), dim) + first +
                                         i * 32 * SLICES + half * 16 + quad_at(lane, 16));
}

/* The tile's scores of one group, each in as many slices of dims, by as many warps. */
static __device__ __forceinline__ void
scores_in_slices(int dim, const uint16_t *q, const uint16_t *tile, int n, float *slice,
                 int cap)
{
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    uint32_t x[MAX_DIM / 32 / SLICES][2][4];

    if (warp / SLICES >= n / 8)
        return;
    query_slice(dim, q, warp % SLICES * 32, x);
    for (int t = warp / SLICES; t < n / 8; t += WARPS / SLICES) {
        float c[2][4] = {};

        score_slice(dim, x, tile, t, warp % SLICES * 32, c);
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
            const int h = mma_row(lane, i), k = t * 8 + mma_col(lane, i);

            *(float2 *)(slice + attend_row_f32(warp % SLICES * HEADS + h, cap) + k) =
                make_float2(c[0][i] + c[1][i], c[0][i + 1] + c[1][i + 1]);
        }
    }
}

/* One from its slices: the product as f64 would round it, but for ties of nearly all bits. */
static __device__ __forceinline__ float
score_of(const float *c, double by, bool there)
{
    const float high = (float)by, low = (float)(by - (double)high);
    const float sum = (c[0] + c[1]) + (c[2] + c[3]);

    return there ? fmaf(sum, high, sum * low) : -CUDART_INF_F;
}

/* A warp's head: slices to scores; the largest so far. */
static __device__ __forceinline__ float
add_slices(const float *slice, int n, int tile, double by, int end, float *score, float top)
{
    const int h = threadIdx.x / WARP, lane = threadIdx.x % WARP;

#pragma unroll 1
    for (int k = lane; k < n; k += WARP) {
        float c[SLICES];

#pragma unroll
        for (int i = 0; i < SLICES; i++)
            c[i] = slice[attend_row_f32(i * HEADS + h, tile) + k];
        score[k] = score_of(c, by, k < end);
        top = fmaxf(top, score[k]);
    }
    return top;
}

/* What a key weighs, under the maximum. */
static __device__ __forceinline__ float
weight_of(float score, float most)
{
    return expf(score - most);
}

/* A warp's head: weights of a part under the maximum of all, rounded; the sum of those not rounded. */
static __device__ __forceinline__ double
weights(const float *score, int from, int to, float top, uint16_t *p)
{
    const int lane = threadIdx.x % WARP;
    double sum = 0.0;

#pragma unroll 1
    for (int i = from + lane; i < to; i += WARP) {
        const float v = weight_of(score[i], top);

        sum += (double)v;
        p[i] = (uint16_t)to_bf16_pair(v, v);
    }
    return warp_sum(sum);
}

/* acc[.][t] += weights of N groups' heads times values, dims of this warp. */
template <int N>
static __device__ __forceinline__ void
values(int dim, const uint16_t *p, const uint16_t *tile, int n, int cap,
       float (*acc)[TILES][4])
{
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int stride = attend_row(1, dim);
    const int tiles = attend_tiles(dim), d0 = attend_dims(warp, tiles, 0);

    for (int k = 0; k < n; k += 16) {
        uint32_t x[N][4];

#pragma unroll
        for (int g = 0; g < N; g++)
            ldmatrix(x[g], p + attend_row(g * HEADS + quad_row(lane, 16), cap) + k +
                               quad_at(lane, 16));
#pragma unroll
        for (int t = 0; t < TILES; t += 2) {
            uint32_t b[4];

            if (t >= tiles)
                break;
            /* what is not this warp's, or not there, is loaded and not used */
            ldmatrix_trans(b, tile + (k + quad_row(lane, 16)) * stride +
                                  min(d0 + t * 8 + quad_at(lane, 16), dim - 8));
#pragma unroll
            for (int g = 0; g < N; g++) {
                mma_bf16(acc[g][t], x[g], b[0], b[1]);
                mma_bf16(acc[g][t + 1], x[g], b[2], b[3]);
            }
        }
    }
}

/* Sums of a row's parts so far. They are added up in the order of parts, by whoever has them. */
struct sums {
    float re, im;
    double den;
};

static __device__ __forceinline__ void
add_part(struct sums *x, float2 v, double den)
{
    x->re += v.x;
    x->im += v.y;
    x->den += den;
}

/* What sums are to be multiplied by. */
static __device__ __forceinline__ float
inverse_of(double den)
{
    return 1.0f / (float)den;
}

/* Dims c and c + 1 of a head: divided, rotated back. */
static __device__ __forceinline__ void
put_pair(const struct attend_args &a, int row, int h, int c, float re, float im, float by)
{
    const int nope = a.dim - a.rope_dim;
    uint32_t pair = to_bf16_pair(re * by, im * by);

    if (c >= nope) {
        const float *cs = a.cs + row_start(row, a.rope_dim) + c - nope;

        pair = query_turned(pair, cs[0], -cs[1]);
    }
    *(uint32_t *)(a.o + row_start(row_start(row, a.n_heads) + h, a.dim) + c) = pair;
}

#endif /* GPU_CUDA_ATTEND_CUH */
