/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attention of query rows over packed key rows on tensor cores, in one kernel (spec 5.6); the plain
 * twin is attention.cu, which takes what does not fit here.
 *
 * A cluster has a row and a group of 16 heads. The row's keys, the window oldest first and then the
 * compressed ones, are cut into 16 parts by their number alone, and a block of the cluster has one
 * part. It unpacks its keys to bf16 (exactly), makes their scores, tells the others its maxima, and
 * weighs its values under the one maximum of all keys. Each block gets the sums of some dims sent
 * from all, adds them up in the order of parts, as all forms of this do, so that a row's bits depend
 * on the row alone, divides, and rotates back.
 *
 * What kernels in front do not write, keys of earlier steps and what leads to them, is on its way before these are
 * waited for.
 */
#include <cooperative_groups.h>

#include "base/err.h"
#include "gpu/cuda/attend.cuh"

namespace cg = cooperative_groups;

bool
attend_can(const struct attend_args *like, int max_keys, size_t shared_bytes)
{
    const int nope = like->dim - like->rope_dim;

    return like->dim % 64 == 0 && like->dim <= MAX_DIM && nope % 8 == 0 && nope > 0 &&
           like->rope_dim % 4 == 0 &&
           (size_t)attend_plan_for(like->dim, max_keys).bytes <= shared_bytes;
}

/* Tiles behind the first one of a block, and those that are loaded again. */
static __device__ __noinline__ void
load_again(const struct attend_args &a, const struct list &l, int i0, int n, int end,
           uint16_t *tile)
{
    load_tile(a, l, i0, n, end, tile, ALL);
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

static __device__ __forceinline__ void
clear_sums(float (*to)[4])
{
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int j = 0; j < 4; j++)
            to[t][j] = 0.0f;
}

static_assert((int)WARPS == (int)PARTS && TILES * 4 <= ATTEND_PAIRS, "who adds up what");

/* Sums of this block's part, to who adds up those dims: block w has those that warps w have. */
static __device__ __forceinline__ void
send(int dim, cg::cluster_group &cluster, const float (*acc)[4], float *in)
{
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int tiles = attend_tiles(dim), dims = tiles * 8;
    const int first = attend_sent((int)cluster.block_rank(), mma_row(lane, 0));
    float *to = cluster.map_shared_rank(in, warp) + attend_row_f32(first, dims) +
                mma_col(lane, 0);

#pragma unroll
    for (int t = 0; t < TILES; t++) {
        if (t >= tiles || attend_dims(warp, tiles, t) >= dim)
            break;
        *(float2 *)(to + t * 8) = make_float2(acc[t][0], acc[t][1]);
        *(float2 *)(to + attend_row_f32(mma_row(0, 2), dims) + t * 8) =
            make_float2(acc[t][2], acc[t][3]);
    }
}

/* This block's dims of all heads: parts added up, divided, rotated back. */
static __device__ __forceinline__ void
finish(const struct attend_args &a, int rank, int row, int h0, const float *in,
       const double *den, const float *rest)
{
    const int tiles = attend_tiles(a.dim), at = attend_pair(threadIdx.x);
    const int h = attend_pair_head(threadIdx.x), c = attend_dims(rank, tiles, 0) + at;
    struct sums x = {};

    if (h >= HEADS || h0 + h >= a.n_heads || at >= tiles * 8 || c >= a.dim)
        return;
#pragma unroll
    for (int r = 0; r < PARTS; r++) {
        const int from = attend_sent(r, h);

        add_part(&x, *(const float2 *)(in + attend_row_f32(from, tiles * 8) + at),
                 den[from]);
    }
    put_pair(a, row, h0 + h, c, x.re, x.im, inverse_of(x.den + (double)rest[h]));
}

/* Weights of this block's keys under the maximum of all blocks, their sums to all of them, and what
 * the sink adds. A warp has a head. */
static __device__ __forceinline__ void
weigh(cg::cluster_group &cluster, float sink, int piece, int padded, int cap,
      const float *tops, const float *score, uint16_t *p, double *den, float *rest)
{
    const int h = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int rank = (int)cluster.block_rank();
    const float most = warp_max(lane < PARTS ? tops[attend_sent(lane, h)] : -CUDART_INF_F);
    double sum = 0.0;

    for (int k = 0; k < padded; k += piece)
        sum += weights(score + attend_row_f32(h, cap), k, min(k + piece, padded), most,
                       p + attend_row(h, cap));
    if (lane < PARTS)
        cluster.map_shared_rank(den, lane)[attend_sent(rank, h)] = sum;
    if (lane == 0)
        rest[h] = weight_of(sink, most);
}

/* Grid: PARTS, groups of HEADS, rows. WHOLE: a block has all keys of its part in one tile, which is
 * one piece. */
template <bool WHOLE>
static __global__ void __launch_bounds__(THREADS)
attend_kernel(const __grid_constant__ struct attend_args a,
              const __grid_constant__ struct attend_plan s)
{
    LAUNCH_SHARED(128, uint8_t, memory);
    cg::cluster_group cluster = cg::this_cluster();
    const int row = blockIdx.z, h0 = blockIdx.y * HEADS, rank = (int)cluster.block_rank();
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    uint16_t *tile = (uint16_t *)(memory + s.keys), *q = (uint16_t *)(memory + s.q);
    uint16_t *p = (uint16_t *)(memory + s.p);
    float *score = (float *)(memory + s.score), *in = (float *)(memory + s.in);
    float *slice = (float *)(memory + s.slice), *tops = (float *)(memory + s.tops);
    float *rest = (float *)(memory + s.rest);
    double *den = (double *)(memory + s.den);
    float top = -CUDART_INF_F, acc[1][TILES][4] = {};
    struct head head = {};

    pdl_go();
    cluster_begin();
    const struct list l = list_of(a, row);
    const float sink = h0 + warp < a.n_heads ? a.sink[h0 + warp] : -CUDART_INF_F;
    const int first = attend_first(l.n, rank), end = attend_first(l.n, rank + 1);
    const int n = end - first, padded = (n + 15) / 16 * 16;
    const int piece = WHOLE ? padded : attend_piece(attend_part(l.n));

#pragma unroll 1
    for (int late = 0; late < 2; late++) {
        if (late) {
            pdl_wait();
            head = load_head(a, row, h0 + warp);
        }
        load_tile(a, l, first, WHOLE ? padded : min(s.tile, padded), end, tile,
                  late ? LATE : EARLY);
    }
    put_head(a, head, row, q + attend_row(warp, a.dim));
    for (int k = 0; k < padded; k += s.tile) {
        const int m = WHOLE ? padded : min(s.tile, padded - k);

        if (!WHOLE && k > 0) {
            __syncthreads(); /* the tile before is used up */
            load_again(a, l, first + k, m, end, tile);
        }
        __syncthreads();
        scores_in_slices(a.dim, q, tile, m, slice, s.tile);
        __syncthreads();
        top = add_slices(slice, m, s.tile, a.scale, n - k,
                         score + attend_row_f32(warp, s.cap) + k, top);
        if (WHOLE)
            break;
    }
    __syncthreads();
    top = warp_max(top);
    cluster_begun();
    if (lane < PARTS)
        cluster.map_shared_rank(tops, lane)[attend_sent(rank, warp)] = top;
    cluster.sync();
    weigh(cluster, sink, piece, padded, s.cap, tops, score, p, den, rest);
    __syncthreads();
    for (int from = 0; from < padded; from += piece) {
        float whole[TILES][4];

        if (WHOLE) {
            values<1>(a.dim, p, tile, padded, s.cap, acc);
            break;
        }
        copy_sums(whole, acc[0]);
        clear_sums(acc[0]);
        for (int k = from; k < min(from + piece, padded); k += s.tile) {
            const int m = min(s.tile, min(from + piece, padded) - k);
            const int in_tile = padded > s.tile ? 0 : k;

            if (padded > s.tile) {
                __syncthreads(); /* the tile before is used up */
                load_again(a, l, first + k, m, end, tile);
                __syncthreads();
            }
            values<1>(a.dim, p + k, tile + attend_row(in_tile, a.dim), m, s.cap, acc);
        }
        add_sums(acc[0], whole, acc[0]);
    }
    send(a.dim, cluster, acc[0], in);
    cluster.sync();
    finish(a, rank, row, h0, in, den, rest);
}

template <bool WHOLE>
static int
attend_in(struct cuda_rank *rk, const struct attend_args *a, struct err *e)
{
    const struct attend_plan s = attend_plan_for(a->dim, a->max_keys);
    const dim3 grid(PARTS, ceil_div(a->n_heads, HEADS), a->n);

    SHARED_TRY(attend_kernel<WHOLE>, s.bytes, e);
    CLUSTER_TRY(attend_kernel<WHOLE>, e);
    CU_TRY(launch_cluster(rk, PARTS, attend_kernel<WHOLE>, grid, THREADS, s.bytes, *a, s),
           e);
    return 0;
}

int
attend_cuda(struct cuda_rank *rk, const struct attend_args *a, struct err *e)
{
    if (!attend_can(a, a->max_keys, rk->shared_bytes))
        return err_set(e, ERR_INTERNAL, 0, "attend: %d keys of %d", a->max_keys, a->dim);
    if (a->n == 0)
        return 0;
    if (attend_is_long(a))
        return attend_long_cuda(rk, a, e);
    if (attend_is_many(rk, a))
        return attend_many_cuda(rk, a, e);
    return attend_part(a->max_keys) <= ATTEND_TILE ? attend_in<true>(rk, a, e)
                                                   : attend_in<false>(rk, a, e);
}
