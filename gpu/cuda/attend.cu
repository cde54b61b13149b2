/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attention of query rows over packed key rows on tensor cores, in one kernel (spec 5.6); the plain
 * twin is attention.cu, which takes what does not fit here.
 *
 * A cluster has a row and a group of 16 heads, or two. The row's keys, the window oldest first and then
 * the compressed ones, are cut into 16 parts by their number alone, and a block of the cluster has
 * one part, or two or four neighbours when rows are many. It unpacks its keys to bf16 (exactly), makes
 * their scores, tells the others its maxima, and weighs its values under the one maximum of all keys;
 * sums of parts are added up as a tree, of which a block has a branch, so that a row's bits
 * depend on the row alone. Each block gets the sums of some dims sent from all, adds them
 * up, divides, and rotates back.
 *
 * What kernels in front do not write, keys of earlier steps and what leads to them, is on its way before these are
 * waited for.
 */
#include <cooperative_groups.h>

#include "base/err.h"
#include "gpu/cuda/device.cuh"
#include "gpu/cuda/kernels.h"
#include "gpu/cuda/query.cuh"
#include "gpu/index.h"
#include "gpu/index/attend.h"
#include "gpu/index/mma.h"
#include "gpu/index/rows.h"
#include "model/kvsize.h"

namespace cg = cooperative_groups;

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

/* How blocks share the work: clusters of so many, for so many groups of heads. One row wants many
 * blocks; many rows want them large, so that a key is unpacked for all heads at once. */
enum { FEW = PARTS, MEDIUM = PARTS / 2, MANY = PARTS / 4 };

static bool
fits(const struct attend_args *a, int max_keys, int blocks, int groups, size_t bytes)
{
    return (size_t)attend_plan_for(a->dim, max_keys, blocks, groups).bytes <= bytes;
}

bool
attend_can(const struct attend_args *like, int max_keys, size_t shared_bytes)
{
    const int nope = like->dim - like->rope_dim;

    return like->dim % 64 == 0 && like->dim <= MAX_DIM && nope % 8 == 0 && nope > 0 &&
           like->rope_dim % 4 == 0 && fits(like, max_keys, FEW, 1, shared_bytes) &&
           fits(like, max_keys, MEDIUM, 1, shared_bytes);
}

/* What a query row looks at. */
struct list {
    struct dev_row r;
    struct dev_span s;
    uint64_t first; /* of the window */
    int n_window, n;
    bool some; /* of the compressed rows: those picked */
    const int *picked;
};

static __device__ __forceinline__ struct list
list_of(const struct attend_args &a, int row)
{
    struct list l;
    const int visible =
        a.ratio > 0 ? (int)entries_visible(a.rows[row].pos, (uint64_t)a.ratio) : 0;

    l.r = a.rows[row];
    l.s = a.spans[l.r.span];
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
        return *old
                   ? l.s.rings + a.ring_at +
                         row_start(ring_slot(p, a.ring_slots), a.row_bytes)
                   : a.step_rows + row_start(step_row(l.s.row0, p, l.s.start), a.row_bytes);
    }
    const int per_page = KV_PAGE_TOKENS / a.ratio;
    const uint64_t j = l.some ? l.picked[i - l.n_window] : i - l.n_window;

    *old = (j + 1) * (uint64_t)a.ratio <= l.s.start;
    return l.s.pages[entry_page(j, per_page)] + a.page_at +
           row_start(entry_row(j, per_page), a.row_bytes);
}

/* Four e4m3 codes under scale 2^(e - 127) as bf16: by their bits 2^120 too small. */
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
        const int at = lane + w * WARP, group = at / 8;

        if (at < codes) {
            const uint32_t e =
                (group < 4 ? x.scale.x >> 8 * group : x.scale.y >> 8 * (group - 4)) & 0xff;
            const uint32_t f = min(e + 60, 254u) << 7;
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

/* Tiles behind the first one of a block, and those that are loaded again. */
static __device__ __noinline__ void
load_again(const struct attend_args &a, const struct list &l, int i0, int n, int end,
           uint16_t *tile)
{
    load_tile(a, l, i0, n, end, tile, ALL);
}

/* This warp's head of the row, in pairs. */
struct head {
    uint32_t pair[MAX_DIM / 2 / WARP];
};

static __device__ __forceinline__ struct head
load_head(const struct attend_args &a, int row, int h)
{
    const int lane = threadIdx.x % WARP;
    const uint16_t *q = a.q + row_start(row_start(row, a.n_heads) + h, a.dim) + 2 * lane;
    struct head x;

#pragma unroll
    for (int i = 0; i < MAX_DIM / 2 / WARP; i++)
        x.pair[i] = h < a.n_heads && i < a.dim / 2 / WARP
                        ? *(const uint32_t *)(q + i * 2 * WARP)
                        : 0;
    return x;
}

/* To shared memory; normed and rotated on the way, if nobody has. */
static __device__ __forceinline__ void
put_head(const struct attend_args &a, struct head x, int row, uint16_t *q)
{
    const int lane = threadIdx.x % WARP;
    const float *cs = a.cs + row_start(row, a.rope_dim);
    double sum = 0.0;

    if (a.raw) {
#pragma unroll
        for (int i = 0; i < MAX_DIM / 2 / WARP; i++)
            if (i < a.dim / 2 / WARP)
                sum = query_squares(x.pair[i], sum);
        const float factor = query_factor(sum, a.dim, a.eps);

#pragma unroll
        for (int i = 0; i < MAX_DIM / 2 / WARP; i++)
            if (i < a.dim / 2 / WARP)
                x.pair[i] = query_pair(x.pair[i], factor, cs, 2 * (lane + i * WARP),
                                       a.dim - a.rope_dim);
    }
#pragma unroll
    for (int i = 0; i < MAX_DIM / 2 / WARP; i++)
        if (i < a.dim / 2 / WARP)
            *(uint32_t *)(q + 2 * (lane + i * WARP)) = x.pair[i];
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

/* One from its slices. */
static __device__ __forceinline__ float
score_of(const float *c, double by, bool there)
{
    const float s = (float)((double)((c[0] + c[1]) + (c[2] + c[3])) * by);

    return there ? s : -CUDART_INF_F;
}

/* The tile's scores of all groups, a warp all slices of eight keys. */
template <int GROUPS>
static __device__ __forceinline__ void
scores_at_once(int dim, const uint16_t *q, const uint16_t *tile, int n, double by, int end,
               float *score, int cap)
{
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;

#pragma unroll 1
    for (int t = warp; t < n / 8 * GROUPS; t += WARPS) {
        const int group = t % GROUPS, t8 = t / GROUPS;
        float all[SLICES][4];

#pragma unroll
        for (int i = 0; i < SLICES; i++) {
            uint32_t x[MAX_DIM / 32 / SLICES][2][4];
            float c[2][4] = {};

            query_slice(dim, q + attend_row(group * HEADS, dim), i * 32, x);
            score_slice(dim, x, tile, t8, i * 32, c);
            for (int j = 0; j < 4; j++)
                all[i][j] = c[0][j] + c[1][j];
        }
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int h = group * HEADS + mma_row(lane, j), k = t8 * 8 + mma_col(lane, j);
            const float c[SLICES] = {all[0][j], all[1][j], all[2][j], all[3][j]};

            score[attend_row_f32(h, cap) + k] = score_of(c, by, k < end);
        }
    }
}

/* A warp's head: slices to scores; the largest so far. */
static __device__ __forceinline__ float
add_slices(const float *slice, int n, int tile, double by, int end, float *score, float top)
{
    const int h = threadIdx.x / WARP, lane = threadIdx.x % WARP;

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

/* A warp's head: weights of a part under the maximum of all, rounded; the sum of those not rounded. */
static __device__ __forceinline__ double
weights(const float *score, int from, int to, float top, uint16_t *p)
{
    const int lane = threadIdx.x % WARP;
    double sum = 0.0;

    for (int i = from + lane; i < to; i += WARP) {
        const float v = exp_f32(score[i] - top);

        sum += (double)v;
        p[i] = f32_to_bf16(v);
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

/* to = a + b */
static __device__ __forceinline__ void
add_sums(float (*to)[4], const float (*a)[4], const float (*b)[4])
{
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int j = 0; j < 4; j++)
            to[t][j] = a[t][j] + b[t][j];
}

static __device__ __forceinline__ void
copy_sums(float (*to)[4], const float (*from)[4])
{
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int j = 0; j < 4; j++)
            to[t][j] = from[t][j];
}

/* The branch of the tree that this block's parts are: acc, the sum of part `leaf`, becomes that of
 * all that end with it; kept, by level, is what waits for its neighbour. */
template <int LEAVES>
static __device__ __forceinline__ void
add_leaf(int leaf, float (*acc)[4], float (*kept)[TILES][4])
{
    if (leaf % 2 == 1)
        add_sums(acc, kept[0], acc);
    if (leaf % 4 == 3)
        add_sums(acc, kept[1], acc);
    if (LEAVES > 1 && leaf % 2 == 0)
        copy_sums(kept[0], acc);
    if (LEAVES > 2 && leaf % 4 == 1)
        copy_sums(kept[1], acc);
}

/* Sums of this block's parts, to who adds up those dims. */
template <int BLOCKS, int GROUPS>
static __device__ __forceinline__ void
send(int dim, cg::cluster_group &cluster, int group, const float (*acc)[4], float *in)
{
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int tiles = attend_tiles(dim), dims = dim / BLOCKS;
    const int first = attend_sent((int)cluster.block_rank(), group * HEADS, GROUPS * HEADS);

#pragma unroll
    for (int t = 0; t < TILES; t++) {
        const int c = attend_dims(warp, tiles, t) + mma_col(lane, 0);

        if (t >= tiles || c >= dim)
            break;
        float *to = cluster.map_shared_rank(in, c / dims) + c % dims;

#pragma unroll
        for (int i = 0; i < 4; i += 2)
            *(float2 *)(to + attend_row_f32(first + mma_row(lane, i), dims)) =
                make_float2(acc[t][i], acc[t][i + 1]);
    }
}

/* The sum of n as a tree, neighbours first. */
template <int N, typename T>
static __device__ __forceinline__ T
tree(T *v)
{
#pragma unroll
    for (int step = 1; step < N; step *= 2)
#pragma unroll
        for (int r = 0; r < N; r += 2 * step)
            v[r] += v[r + step];
    return v[0];
}

/* This block's dims of all heads: blocks added up, divided, rotated back. */
template <int BLOCKS, int GROUPS>
static __device__ __forceinline__ void
finish(const struct attend_args &a, int rank, int row, int h0, const float *in,
       const double *den, const float *rest)
{
    const int dims = a.dim / BLOCKS, nope = a.dim - a.rope_dim;
    const float *cs = a.cs + row_start(row, a.rope_dim);

    for (int i = threadIdx.x; i < GROUPS * HEADS * dims / 2; i += THREADS) {
        const int h = i / (dims / 2), at = attend_pair(i, dims), c = rank * dims + at;
        float v[BLOCKS], u[BLOCKS];
        double all[BLOCKS];

        if (h0 + h >= a.n_heads)
            continue;
#pragma unroll
        for (int r = 0; r < BLOCKS; r++) {
            const int from = attend_sent(r, h, GROUPS * HEADS);
            const float2 pair = *(const float2 *)(in + attend_row_f32(from, dims) + at);

            v[r] = pair.x;
            u[r] = pair.y;
            all[r] = den[from];
        }
        const float by = (float)(tree<BLOCKS>(all) + (double)rest[h]);
        float re = bf16_round(tree<BLOCKS>(v) / by), im = bf16_round(tree<BLOCKS>(u) / by);

        if (c >= nope) {
            const float x = re, y = im, co = cs[c - nope], si = -cs[c - nope + 1];

            re = bf16_round(fmaf(x, co, -(y * si)));
            im = bf16_round(fmaf(x, si, y * co));
        }
        *(uint32_t *)(a.o + row_start(row_start(row, a.n_heads) + h0 + h, a.dim) + c) =
            f32_to_bf16(re) | (uint32_t)f32_to_bf16(im) << 16;
    }
}

/* Grid: BLOCKS, GROUPS groups of HEADS, rows. */
template <int BLOCKS, int GROUPS>
static __global__ void __launch_bounds__(THREADS)
attend_kernel(const __grid_constant__ struct attend_args a)
{
    enum {
        LEAVES = PARTS / BLOCKS,
        ALL = GROUPS * HEADS,
        TOGETHER = LEAVES <= 2 ? GROUPS : 1, /* groups whose sums registers hold */
    };

    LAUNCH_SHARED(128, uint8_t, memory);
    cg::cluster_group cluster = cg::this_cluster();
    const struct attend_plan s = attend_plan_for(a.dim, a.max_keys, BLOCKS, GROUPS);
    const int row = blockIdx.z, h0 = blockIdx.y * ALL, rank = (int)cluster.block_rank();
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int cap = attend_cap(a.max_keys, BLOCKS);
    uint16_t *tile = (uint16_t *)(memory + s.keys), *q = (uint16_t *)(memory + s.q);
    uint16_t *p = (uint16_t *)(memory + s.p);
    float *score = (float *)(memory + s.score), *in = (float *)(memory + s.in);
    float *slice = (float *)(memory + s.slice), *tops = (float *)(memory + s.tops);
    float *rest = (float *)(memory + s.rest);
    double *den = (double *)(memory + s.den);
    const double by = 1.0 / sqrt((double)a.dim);
    float top[GROUPS];

    pdl_go();
    const struct list l = list_of(a, row);
    const int part = attend_part(l.n);
    const int first = attend_first(l.n, rank * LEAVES);
    const int end = attend_first(l.n, (rank + 1) * LEAVES);
    const int n = end - first, padded = (n + 15) / 16 * 16;

    load_tile(a, l, first, min(s.tile, padded), end, tile, EARLY);
    cluster.sync(); /* all are there to be written to */
    pdl_wait();
    struct head head[GROUPS];

#pragma unroll
    for (int g = 0; g < GROUPS; g++)
        head[g] = load_head(a, row, h0 + g * HEADS + warp);
    load_tile(a, l, first, min(s.tile, padded), end, tile, LATE);
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
        put_head(a, head[g], row, q + attend_row(g * HEADS + warp, a.dim));
        top[g] = -CUDART_INF_F;
    }
    for (int k = 0; k < padded; k += s.tile) {
        const int m = min(s.tile, padded - k);

        if (k > 0) {
            __syncthreads(); /* the tile before is used up */
            load_again(a, l, first + k, m, end, tile);
        }
        __syncthreads();
        if (GROUPS > 1)
            scores_at_once<GROUPS>(a.dim, q, tile, m, by, n - k, score + k, cap);
        else {
            scores_in_slices(a.dim, q, tile, m, slice, s.tile);
            __syncthreads();
            top[0] = add_slices(slice, m, s.tile, by, n - k,
                                score + attend_row_f32(warp, cap) + k, top[0]);
        }
    }
    __syncthreads();
#pragma unroll
    for (int g = 0; g < GROUPS; g++) {
        const int h = g * HEADS + warp;

        if (GROUPS > 1)
            for (int k = lane; k < padded; k += WARP)
                top[g] = fmaxf(top[g], score[attend_row_f32(h, cap) + k]);
        top[g] = warp_max(top[g]);
        if (lane < BLOCKS)
            cluster.map_shared_rank(tops, lane)[attend_sent(rank, h, ALL)] = top[g];
    }
    cluster.sync();
#pragma unroll 1
    for (int g = 0; g < GROUPS; g++) {
        const int h = g * HEADS + warp;
        const float most =
            warp_max(lane < BLOCKS ? tops[attend_sent(lane, h, ALL)] : -CUDART_INF_F);
        double sum[LEAVES];

#pragma unroll
        for (int i = 0; i < LEAVES; i++)
            sum[i] = weights(score + attend_row_f32(h, cap), i * part,
                             min((i + 1) * part, padded), most, p + attend_row(h, cap));
        tree<LEAVES>(sum);
        if (lane < BLOCKS)
            cluster.map_shared_rank(den, lane)[attend_sent(rank, h, ALL)] = sum[0];
        if (lane == 0)
            rest[h] = h0 + h < a.n_heads ? exp_f32(a.sink[h0 + h] - most) : 0.0f;
    }
    __syncthreads();
#pragma unroll 1
    for (int g = 0; g < GROUPS; g += TOGETHER) {
        float kept[TOGETHER][2][TILES][4];

#pragma unroll 1
        for (int i = 0; i < LEAVES; i++) {
            float acc[TOGETHER][TILES][4] = {};
            const int to = min((i + 1) * part, padded);

            for (int k = i * part; k < to; k += s.tile) {
                const int m = min(s.tile, to - k), in_tile = padded > s.tile ? 0 : k;

                if (padded > s.tile) {
                    __syncthreads(); /* the tile before is used up */
                    load_again(a, l, first + k, m, end, tile);
                    __syncthreads();
                }
                values<TOGETHER>(a.dim, p + attend_row(g * HEADS, cap) + k,
                                 tile + attend_row(in_tile, a.dim), m, cap, acc);
            }
#pragma unroll
            for (int u = 0; u < TOGETHER; u++) {
                add_leaf<LEAVES>(i, acc[u], kept[u]);
                if (i == LEAVES - 1)
                    send<BLOCKS, GROUPS>(a.dim, cluster, g + u, acc[u], in);
            }
        }
    }
    cluster.sync();
    finish<BLOCKS, GROUPS>(a, rank, row, h0, in, den, rest);
}

template <int BLOCKS, int GROUPS>
static int
attend_in(struct cuda_rank *rk, const struct attend_args *a, struct err *e)
{
    const int shared = attend_plan_for(a->dim, a->max_keys, BLOCKS, GROUPS).bytes;
    const dim3 grid(BLOCKS, ceil_div(a->n_heads, GROUPS * HEADS), a->n);

    SHARED_TRY((attend_kernel<BLOCKS, GROUPS>), shared, e);
    CU_TRY(launch_cluster(rk, BLOCKS, attend_kernel<BLOCKS, GROUPS>, grid, THREADS, shared,
                          *a),
           e);
    return 0;
}

int
attend_cuda(struct cuda_rank *rk, const struct attend_args *a, struct err *e)
{
    static int few = -1; /* clusters of FEW blocks that there is room for at a time */
    const size_t most = rk->shared_bytes;

    if (!attend_can(a, a->max_keys, most))
        return err_set(e, ERR_INTERNAL, 0, "attend: %d keys of %d", a->max_keys, a->dim);
    if (a->n == 0)
        return 0;
    if (few == -1) {
        SHARED_TRY((attend_kernel<FEW, 1>), most, e);
        CLUSTER_TRY((attend_kernel<FEW, 1>), e);
        few = clusters_at_once(FEW, attend_kernel<FEW, 1>, THREADS, most);
    }
    if (a->n * ceil_div(a->n_heads, HEADS) <= few)
        return attend_in<FEW, 1>(rk, a, e);
    if (a->n * ceil_div(a->n_heads, HEADS) * MEDIUM <= rk->sms)
        return attend_in<MEDIUM, 1>(rk, a, e);
    if (attend_cap(a->max_keys, MANY) <= ATTEND_TILE && fits(a, a->max_keys, MANY, 2, most))
        return attend_in<MANY, 2>(rk, a, e);
    return fits(a, a->max_keys, MEDIUM, 2, most) ? attend_in<MEDIUM, 2>(rk, a, e)
                                                 : attend_in<MEDIUM, 1>(rk, a, e);
}
