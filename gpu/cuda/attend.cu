/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attention of query rows over packed key rows on tensor cores, in one kernel (spec 5.6); the plain
 * twin is attention.cu, which takes what does not fit here.
 *
 * A cluster of eight blocks has a row and 16 heads. The row's keys, the window oldest first and
 * then the compressed ones, are cut into eight parts by their number alone. A block unpacks its
 * keys to bf16 (exactly), makes their scores, hears the others' maxima, and weighs its values under
 * the one maximum of all keys; then each block adds an eighth of the dims up over all blocks, in
 * ascending order, divides, and rotates back. So a row's bits depend on the row alone.
 */
#include <cooperative_groups.h>

#include "base/err.h"
#include "gpu/cuda/device.cuh"
#include "gpu/cuda/kernels.h"
#include "gpu/index.h"
#include "gpu/index/attend.h"
#include "gpu/index/mma.h"
#include "gpu/index/rows.h"
#include "model/kvsize.h"

namespace cg = cooperative_groups;

enum {
    PARTS = ATTEND_PARTS,
    HEADS = ATTEND_HEADS,
    WARPS = 8,
    THREADS = WARPS * WARP,
    MAX_DIM = 512,
    KEYS_AT_ONCE = 4,
};

bool
attend_can(const struct attend_args *like, int max_keys, size_t shared_bytes)
{
    const int nope = like->dim - like->rope_dim;

    return like->dim % 64 == 0 && like->dim <= MAX_DIM && nope % 8 == 0 && nope > 0 &&
           like->rope_dim % 4 == 0 &&
           (size_t)attend_plan_for(like->dim, max_keys).bytes + 1024 <= shared_bytes;
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

static __device__ __forceinline__ const uint8_t *
key_at(const struct attend_args &a, const struct list &l, int i)
{
    if (i >= l.n)
        return NULL;
    if (i < l.n_window) {
        const uint64_t p = l.first + (uint64_t)i;

        return p >= l.s.start
                   ? a.step_rows + row_start(step_row(l.s.row0, p, l.s.start), a.row_bytes)
                   : l.s.rings + a.ring_at +
                         row_start(ring_slot(p, a.ring_slots), a.row_bytes);
    }
    const int per_page = KV_PAGE_TOKENS / a.ratio;
    const uint64_t j = l.some ? l.picked[i - l.n_window] : i - l.n_window;

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

/* Keys i0 .. i0 + n - 1 to the tile, zeros for those behind `end`. */
static __device__ void
load_tile(const struct attend_args &a, const struct list &l, int i0, int n, int end,
          uint16_t *tile)
{
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int nope = a.dim - a.rope_dim, codes = nope / 8, words = codes + a.rope_dim / 4;
    const int stride = attend_row(1, a.dim);

    for (int k0 = warp; k0 < n; k0 += WARPS * KEYS_AT_ONCE) {
        const int mine = k0 + lane * WARPS; /* a lane finds the key of each */
        const uint8_t *key = lane < KEYS_AT_ONCE && mine < n && i0 + mine < end
                                 ? key_at(a, l, i0 + mine)
                                 : NULL;
        uint2 v[KEYS_AT_ONCE][3], scale[KEYS_AT_ONCE];

#pragma unroll
        for (int u = 0; u < KEYS_AT_ONCE; u++) {
            const uint8_t *p =
                (const uint8_t *)__shfl_sync(~0u, (unsigned long long)key, u);

#pragma unroll
            for (int w = 0; w < 3; w++)
                v[u][w] = p != NULL && lane + w * WARP < words
                              ? *(const uint2 *)(p + (lane + w * WARP) * 8)
                              : make_uint2(0, 0);
            scale[u] = p != NULL ? *(const uint2 *)(p + words * 8) : make_uint2(0, 0);
        }
#pragma unroll
        for (int u = 0; u < KEYS_AT_ONCE; u++) {
            const int k = k0 + u * WARPS;

            if (k >= n)
                break;
#pragma unroll
            for (int w = 0; w < 3; w++) {
                const int at = lane + w * WARP, group = at / 8;

                if (at < codes) {
                    const uint32_t e = (group < 4 ? scale[u].x >> 8 * group
                                                  : scale[u].y >> 8 * (group - 4)) &
                                       0xff;
                    const uint32_t f = min(e + 60, 254u) << 7;
                    const uint2 lo = widen(v[u][w].x, f | f << 16);
                    const uint2 hi = widen(v[u][w].y, f | f << 16);

                    *(uint4 *)(tile + k * stride + attend_element(at, codes)) =
                        make_uint4(lo.x, lo.y, hi.x, hi.y);
                } else if (at < words)
                    *(uint2 *)(tile + k * stride + attend_element(at, codes)) = v[u][w];
            }
        }
    }
}

/* Scores of the tile's keys, from key k0 of the part on. */
static __device__ void
scores(const struct attend_args &a, const uint16_t *q, const uint16_t *tile, int n, int k0,
       int end, float *score, int cap)
{
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int stride = attend_row(1, a.dim);
    const double by = 1.0 / sqrt((double)a.dim);

    for (int t = warp; t < n / 8; t += WARPS) {
        float c[2][4] = {};

        for (int d = 0; d < a.dim; d += 32) {
            uint32_t b[4], x[4], y[4];

            ldmatrix(b, tile + (t * 8 + quad_row(lane, 8)) * stride + d + quad_at(lane, 8));
            ldmatrix(x, q + quad_row(lane, 16) * stride + d + quad_at(lane, 16));
            ldmatrix(y, q + quad_row(lane, 16) * stride + d + 16 + quad_at(lane, 16));
            mma_bf16(c[0], x, b[0], b[1]);
            mma_bf16(c[1], y, b[2], b[3]);
        }
        for (int i = 0; i < 4; i++) {
            const int h = mma_row(lane, i), k = k0 + t * 8 + mma_col(lane, i);
            const float s = (float)((double)(c[0][i] + c[1][i]) * by);

            score[attend_row_f32(h, cap) + k] = k < end ? s : -CUDART_INF_F;
        }
    }
}

/* Two heads a warp: this part's maximum. */
static __device__ void
maxima(const float *score, int n, int cap, float *top)
{
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;

    for (int h = warp; h < HEADS; h += WARPS) {
        float m = -CUDART_INF_F;

        for (int i = lane; i < n; i += WARP)
            m = fmaxf(m, score[attend_row_f32(h, cap) + i]);
        m = warp_max(m);
        if (lane == 0)
            top[h] = m;
    }
}

/* Weights under the maximum of all, rounded, and the sum of those not rounded. */
static __device__ void
weights(const float *score, int n, int cap, const float *top, uint16_t *p, double *den)
{
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;

    for (int h = warp; h < HEADS; h += WARPS) {
        double sum = 0.0;

        for (int i = lane; i < n; i += WARP) {
            const float v = exp_f32(score[attend_row_f32(h, cap) + i] - top[h]);

            sum += (double)v;
            p[attend_row(h, cap) + i] = f32_to_bf16(v);
        }
        sum = warp_sum(sum);
        if (lane == 0)
            den[h] = sum;
    }
}

/* acc[t] += weights of 16 heads times values, dims of this warp. */
static __device__ __forceinline__ void
values(const struct attend_args &a, const uint16_t *p, const uint16_t *tile, int n, int k0,
       int cap, float (*acc)[4])
{
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int stride = attend_row(1, a.dim);
    const int tiles = a.dim / 64, d0 = attend_dims(warp, tiles, 0);

    for (int k = 0; k < n; k += 16) {
        uint32_t x[4];

        ldmatrix(x, p + attend_row(quad_row(lane, 16), cap) + k0 + k + quad_at(lane, 16));
#pragma unroll
        for (int t = 0; t < MAX_DIM / 64; t += 2) {
            uint32_t b[4];

            if (t >= tiles)
                break;
            /* the second eight dims may be the next warp's: loaded, not used */
            ldmatrix_trans(b, tile + (k + quad_row(lane, 16)) * stride +
                                  min(d0 + t * 8 + quad_at(lane, 16), a.dim - 8));
            mma_bf16(acc[t], x, b[0], b[1]);
            if (t + 1 < tiles)
                mma_bf16(acc[t + 1], x, b[2], b[3]);
        }
    }
}

/* This block's dims of all heads: parts added up, divided, rotated back. */
static __device__ void
finish(const struct attend_args &a, cg::cluster_group &cluster, int row, int h0, float *out,
       const float *top, double *den)
{
    const int rank = (int)cluster.block_rank(), dims = a.dim / PARTS,
              stride = attend_row_f32(1, a.dim);
    const float *cs = a.cs + row_start(row, a.rope_dim);

    for (int i = threadIdx.x; i < HEADS * dims / 2; i += THREADS) {
        const int h = i / (dims / 2), c = attend_pair(i, dims, rank);
        const int p = (c - (a.dim - a.rope_dim)) / 2;
        float re = 0.0f, im = 0.0f;
        double all = 0.0;

        if (h0 + h >= a.n_heads)
            continue;
        for (int r = 0; r < PARTS; r++) {
            const float2 v =
                *(const float2 *)(cluster.map_shared_rank(out, r) + h * stride + c);

            re += v.x;
            im += v.y;
            all += cluster.map_shared_rank(den, r)[h];
        }
        const float by = (float)(all + (double)exp_f32(a.sink[h0 + h] - top[h]));

        re = bf16_round(re / by);
        im = bf16_round(im / by);
        if (c >= a.dim - a.rope_dim) {
            const float x = re, y = im, co = cs[2 * p], si = -cs[2 * p + 1];

            re = bf16_round(fmaf(x, co, -(y * si)));
            im = bf16_round(fmaf(x, si, y * co));
        }
        *(uint32_t *)(a.o + row_start(row_start(row, a.n_heads) + h0 + h, a.dim) + c) =
            f32_to_bf16(re) | (uint32_t)f32_to_bf16(im) << 16;
    }
}

/* Grid: PARTS, groups of HEADS, rows. */
static __global__ void __launch_bounds__(THREADS)
attend_kernel(const __grid_constant__ struct attend_args a)
{
    LAUNCH_SHARED(128, uint8_t, memory);
    __shared__ float top[HEADS], own_top[HEADS];
    __shared__ double den[HEADS];
    cg::cluster_group cluster = cg::this_cluster();
    const struct attend_plan s = attend_plan_for(a.dim, a.max_keys);
    const int row = blockIdx.z, h0 = blockIdx.y * HEADS, rank = (int)cluster.block_rank();
    const int cap = attend_part(a.max_keys), t = threadIdx.x;
    uint16_t *tile = (uint16_t *)(memory + s.keys), *q = (uint16_t *)(memory + s.q);
    uint16_t *p = (uint16_t *)(memory + s.p);
    float *score = (float *)(memory + s.score), *out = (float *)(memory + s.keys);
    float acc[MAX_DIM / 64][4] = {};

    pdl_go();
    pdl_wait();
    const struct list l = list_of(a, row);
    const int first = attend_first(l.n, rank), end = attend_first(l.n, rank + 1);
    const int n = end - first, padded = (n + 15) / 16 * 16;

    for (int i = t; i < HEADS * a.dim / 8; i += THREADS) {
        const int h = piece_row(i, a.dim / 8), c = piece_at(i, a.dim / 8, 8);
        const uint4 v =
            h0 + h < a.n_heads
                ? *(const uint4 *)(a.q +
                                   row_start(row_start(row, a.n_heads) + h0 + h, a.dim) + c)
                : make_uint4(0, 0, 0, 0);

        *(uint4 *)(q + attend_row(h, a.dim) + c) = v;
    }
    for (int k = 0; k < padded; k += s.tile) {
        const int m = min(s.tile, padded - k);

        __syncthreads(); /* the tile before is used up */
        load_tile(a, l, first + k, m, end, tile);
        __syncthreads();
        scores(a, q, tile, m, k, n, score, cap);
    }
    __syncthreads();
    maxima(score, padded, cap, own_top);
    cluster.sync();
    if (t < HEADS) {
        float m = -CUDART_INF_F;

        for (int r = 0; r < PARTS; r++)
            m = fmaxf(m, cluster.map_shared_rank(own_top, r)[t]);
        top[t] = m;
    }
    __syncthreads();
    weights(score, padded, cap, top, p, den);
    __syncthreads();
    for (int k = 0; k < padded; k += s.tile) {
        const int m = min(s.tile, padded - k);

        if (padded > s.tile) {
            __syncthreads();
            load_tile(a, l, first + k, m, end, tile);
            __syncthreads();
        }
        values(a, p, tile, m, k, cap, acc);
    }
    __syncthreads(); /* out lies where the keys were */
#pragma unroll
    for (int i = 0; i < MAX_DIM / 64; i++) {
        const int lane = t % WARP, tiles = a.dim / 64;
        float *to = out + attend_row_f32(mma_row(lane, 0), a.dim) +
                    attend_dims(t / WARP, tiles, i) + mma_col(lane, 0);

        if (i >= tiles)
            break;
        *(float2 *)to = make_float2(acc[i][0], acc[i][1]);
        *(float2 *)(to + attend_row_f32(8, a.dim)) = make_float2(acc[i][2], acc[i][3]);
    }
    cluster.sync();
    finish(a, cluster, row, h0, out, top, den);
    cluster.sync(); /* nobody leaves while others read from here */
}

int
attend_cuda(struct cuda_rank *rk, const struct attend_args *a, struct err *e)
{
    const int shared = attend_plan_for(a->dim, a->max_keys).bytes;

    if (!attend_can(a, a->max_keys, rk->shared_bytes))
        return err_set(e, ERR_INTERNAL, 0, "attend: %d keys of %d", a->max_keys, a->dim);
    if (a->n == 0)
        return 0;
    SHARED_TRY(attend_kernel, shared, e);
    CU_TRY(launch_cluster(rk, PARTS, attend_kernel,
                          dim3(PARTS, ceil_div(a->n_heads, HEADS), a->n), THREADS, shared,
                          *a),
           e);
    return 0;
}
