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
#include "gpu/cuda/attend.cuh"

namespace cg = cooperative_groups;

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

/* Tiles behind the first one of a block, and those that are loaded again. */
static __device__ __noinline__ void
load_again(const struct attend_args &a, const struct list &l, int i0, int n, int end,
           uint16_t *tile)
{
    load_tile(a, l, i0, n, end, tile, ALL);
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

/* This block's dims of all heads: blocks added up, divided, rotated back. */
template <int BLOCKS, int GROUPS>
static __device__ __forceinline__ void
finish(const struct attend_args &a, int rank, int row, int h0, const float *in,
       const double *den, const float *rest)
{
    const int dims = a.dim / BLOCKS;

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
        put_pair(a, row, h0 + h, c, tree<BLOCKS>(v), tree<BLOCKS>(u),
                 tree<BLOCKS>(all) + (double)rest[h]);
    }
}

/* Weights of this block's keys under the maximum of all blocks, their sums to all of them, and what
 * the sinks add. A warp has a head of each group. */
template <int BLOCKS, int GROUPS>
static __device__ __forceinline__ void
weigh(const struct attend_args &a, cg::cluster_group &cluster, int h0, int part, int piece,
      int padded, int cap, const float *tops, const float *score, uint16_t *p, double *den,
      float *rest)
{
    enum { LEAVES = PARTS / BLOCKS, ALL = GROUPS * HEADS };

    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int rank = (int)cluster.block_rank();

#pragma unroll 1
    for (int g = 0; g < GROUPS; g++) {
        const int h = g * HEADS + warp;
        const float most =
            warp_max(lane < BLOCKS ? tops[attend_sent(lane, h, ALL)] : -CUDART_INF_F);
        double sum[LEAVES];

#pragma unroll
        for (int i = 0; i < LEAVES; i++) {
            const int to = min((i + 1) * part, padded);

            sum[i] = 0.0;
            for (int k = i * part; k < to; k += piece)
                sum[i] += weights(score + attend_row_f32(h, cap), k, min(k + piece, to),
                                  most, p + attend_row(h, cap));
        }
        tree<LEAVES>(sum);
        if (lane < BLOCKS)
            cluster.map_shared_rank(den, lane)[attend_sent(rank, h, ALL)] = sum[0];
        if (lane == 0)
            rest[h] = h0 + h < a.n_heads ? exp_f32(a.sink[h0 + h] - most) : 0.0f;
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
        PIECES = GROUPS == 1,                /* a part may have several */
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
    const int part = attend_part(l.n), piece = attend_piece(part);
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
    weigh<BLOCKS, GROUPS>(a, cluster, h0, part, piece, padded, cap, tops, score, p, den,
                          rest);
    __syncthreads();
#pragma unroll 1
    for (int g = 0; g < GROUPS; g += TOGETHER) {
        float kept[TOGETHER][2][TILES][4];

#pragma unroll 1
        for (int i = 0; i < LEAVES; i++) {
            float acc[TOGETHER][TILES][4] = {};
            const int to = min((i + 1) * part, padded);

            for (int from = i * part; from < to; from += piece) {
                float whole[TILES][4];

                if (PIECES) {
                    copy_sums(whole, acc[0]);
                    clear_sums(acc[0]);
                }
                for (int k = from; k < min(from + piece, to); k += s.tile) {
                    const int m = min(s.tile, min(from + piece, to) - k);
                    const int in_tile = padded > s.tile ? 0 : k;

                    if (padded > s.tile) {
                        __syncthreads(); /* the tile before is used up */
                        load_again(a, l, first + k, m, end, tile);
                        __syncthreads();
                    }
                    values<TOGETHER>(a.dim, p + attend_row(g * HEADS, cap) + k,
                                     tile + attend_row(in_tile, a.dim), m, cap, acc);
                }
                if (PIECES)
                    add_sums(acc[0], whole, acc[0]);
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
    if (attend_is_long(a))
        return attend_long_cuda(rk, a, e);
    if (a->n * ceil_div(a->n_heads, HEADS) <= few)
        return attend_in<FEW, 1>(rk, a, e);
    if (a->n * ceil_div(a->n_heads, HEADS) * MEDIUM <= rk->sms)
        return attend_in<MEDIUM, 1>(rk, a, e);
    if (attend_cap(a->max_keys, MANY) <= ATTEND_TILE && fits(a, a->max_keys, MANY, 2, most))
        return attend_in<MANY, 2>(rk, a, e);
    return attend_pieces(attend_part(a->max_keys)) == 1 &&
                   fits(a, a->max_keys, MEDIUM, 2, most)
               ? attend_in<MEDIUM, 2>(rk, a, e)
               : attend_in<MEDIUM, 1>(rk, a, e);
}
