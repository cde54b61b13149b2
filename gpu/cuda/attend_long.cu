/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attention of few rows over long lists, in three kernels: a block for each piece of each part and
 * 16 heads makes scores; one weighs its values under the maximum of all pieces; and the last adds sums of
 * pieces up as a cluster does (attend.cu), so that bits are the same.
 */
#include "base/err.h"
#include "gpu/cuda/attend.cuh"

enum {
    SUM_PAIRS = 4, /* of dims a block of the last kernel */
    SUM_AT_ONCE =
        PARTS, /* pieces that are on their way to it: there are so many, or a multiple */
    MOST_BLOCKS = 1024, /* with more, clusters are as good, and need no scratch */
};

/* What a kernel leaves for the next, in the scratch: of each row and group, of each block. */
struct left {
    float *out;        /* [HEADS][dim] */
    float *score;      /* [HEADS][ATTEND_PIECE] */
    double *den;       /* [HEADS] */
    float *top, *rest; /* [HEADS] */
};

static size_t
left_bytes(int dim)
{
    return (size_t)HEADS *
           ((size_t)(dim + ATTEND_PIECE + 2) * sizeof(float) + sizeof(double));
}

static __device__ __forceinline__ struct left
left_of(const struct attend_args &a, int groups, int blocks, int at)
{
    const size_t all = row_start(row_start(a.n, groups), blocks);
    struct left x;

    x.den = (double *)a.scratch;
    x.out = (float *)(x.den + row_start(all, HEADS));
    x.score = x.out + row_start(all, HEADS * a.dim);
    x.top = x.score + row_start(all, HEADS * ATTEND_PIECE);
    x.rest = x.top + row_start(all, HEADS) + row_start(at, HEADS);
    x.den += row_start(at, HEADS);
    x.out += row_start(at, HEADS * a.dim);
    x.score += row_start(at, HEADS * ATTEND_PIECE);
    x.top += row_start(at, HEADS);
    return x;
}

/* The stretch of a block: keys first .. end - 1 of the list; n of them, and as multiples of 16. */
struct stretch {
    int first, end, n, padded, blocks;
};

static __device__ __forceinline__ struct stretch
stretch_of(int n_keys, int block)
{
    const int part = attend_part(n_keys), pieces = attend_pieces(part);
    const int piece = attend_piece(part), in_part = block % pieces * piece;
    struct stretch x;

    x.blocks = PARTS * pieces;
    x.end = min(attend_first(n_keys, block / pieces) + min(in_part + piece, part), n_keys);
    x.first = min(attend_first(n_keys, block / pieces) + in_part, x.end);
    if (block >= x.blocks)
        x.first = x.end;
    x.n = x.end - x.first;
    x.padded = (x.n + 15) / 16 * 16;
    return x;
}

/* Grid: pieces, groups, rows. */
static __global__ void __launch_bounds__(THREADS)
long_scores_kernel(const __grid_constant__ struct attend_args a)
{
    LAUNCH_SHARED(128, uint8_t, memory);
    const int row = blockIdx.z, h0 = blockIdx.y * HEADS;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int at = (row * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    uint16_t *tile = (uint16_t *)memory, *q = tile + attend_row(ATTEND_PIECE, a.dim);
    float *slice = (float *)(q + attend_row(HEADS, a.dim));

    pdl_go();
    const struct list l = list_of(a, row);
    const struct stretch s = stretch_of(l.n, blockIdx.x);
    const struct left x = left_of(a, gridDim.y, gridDim.x, at);
    struct head head = {};

#pragma unroll 1
    for (int late = 0; late < 2; late++) {
        if (late) {
            pdl_wait();
            head = load_head(a, row, h0 + warp);
        }
        load_tile(a, l, s.first, s.padded, s.end, tile, late ? LATE : EARLY);
    }
    put_head(a, head, row, q + attend_row(warp, a.dim));
    __syncthreads();
    scores_in_slices(a.dim, q, tile, s.padded, slice, ATTEND_PIECE);
    __syncthreads();
    const float top =
        warp_max(add_slices(slice, s.padded, ATTEND_PIECE, a.scale, s.n,
                            x.score + row_start(warp, ATTEND_PIECE), -CUDART_INF_F));

    if (lane == 0)
        x.top[warp] = top;
}

/* The same grid. */
static __global__ void __launch_bounds__(THREADS)
long_values_kernel(const __grid_constant__ struct attend_args a)
{
    LAUNCH_SHARED(128, uint8_t, memory);
    const int row = blockIdx.z, h0 = blockIdx.y * HEADS;
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int first = (row * gridDim.y + blockIdx.y) * gridDim.x;
    const int tiles = attend_tiles(a.dim);
    uint16_t *tile = (uint16_t *)memory, *p = tile + attend_row(ATTEND_PIECE, a.dim);
    float acc[1][TILES][4] = {}, most = -CUDART_INF_F;

    pdl_go();
    const struct list l = list_of(a, row);
    const struct stretch s = stretch_of(l.n, blockIdx.x);
    const float sink = h0 + warp < a.n_heads ? a.sink[h0 + warp] : -CUDART_INF_F;
    const struct left all = left_of(a, gridDim.y, gridDim.x, first);
    const struct left x = left_of(a, gridDim.y, gridDim.x, first + blockIdx.x);

#pragma unroll 1
    for (int late = 0; late < 2; late++) {
        if (late) {
            pdl_wait();
            for (int i = lane; i < s.blocks; i += WARP)
                most = fmaxf(most, all.top[row_start(i, HEADS) + warp]);
        }
        load_tile(a, l, s.first, s.padded, s.end, tile, late ? LATE : EARLY);
    }
    most = warp_max(most);
    const double den = weights(x.score + row_start(warp, ATTEND_PIECE), 0, s.padded, most,
                               p + attend_row(warp, ATTEND_PIECE));

    if (lane == 0) {
        x.den[warp] = den;
        if (blockIdx.x == 0)
            x.rest[warp] = weight_of(sink, most);
    }
    __syncthreads();
    values<1>(a.dim, p, tile, s.padded, ATTEND_PIECE, acc);
#pragma unroll
    for (int t = 0; t < TILES; t++) {
        const int c = attend_dims(warp, tiles, t) + mma_col(lane, 0);

        if (t >= tiles || c >= a.dim)
            break;
#pragma unroll
        for (int i = 0; i < 4; i += 2)
            *(float2 *)(x.out + row_start(mma_row(lane, i), a.dim) + c) =
                make_float2(acc[0][t][i], acc[0][t][i + 1]);
    }
}

/* Grid: pairs of dims, groups, rows. A thread adds up a pair of one head: pieces in their order to
 * parts, and these in theirs. One block a multiprocessor will do: for more of them there would be
 * registers for two loads at a time. */
static __global__ void __launch_bounds__(HEADS *SUM_PAIRS, 1)
long_sums_kernel(const __grid_constant__ struct attend_args a, int blocks)
{
    const int row = blockIdx.z, h = threadIdx.x / SUM_PAIRS;
    const int c = 2 * (blockIdx.x * SUM_PAIRS + threadIdx.x % SUM_PAIRS);
    const int first = (row * gridDim.y + blockIdx.y) * blocks;
    struct sums all = {}, part = {};
    int in_part = 0;

    pdl_go();
    const struct list l = list_of(a, row);
    const int pieces = attend_pieces(attend_part(l.n));
    const struct left x = left_of(a, gridDim.y, blocks, first);

    pdl_wait();
#pragma unroll 1
    for (int at = 0; at < PARTS * pieces; at += SUM_AT_ONCE) {
        float2 v[SUM_AT_ONCE];
        double den[SUM_AT_ONCE];

#pragma unroll
        for (int u = 0; u < SUM_AT_ONCE; u++) {
            const size_t from = row_start(at + u, HEADS) + h;

            v[u] = *(const float2 *)(x.out + row_start(from, a.dim) + c);
            den[u] = x.den[from];
        }
#pragma unroll
        for (int u = 0; u < SUM_AT_ONCE; u++) {
            add_part(&part, v[u], den[u]);
            if (++in_part == pieces) {
                add_part(&all, make_float2(part.re, part.im), part.den);
                part = {};
                in_part = 0;
            }
        }
    }
    if (blockIdx.y * HEADS + h < a.n_heads)
        put_pair(a, row, blockIdx.y * HEADS + h, c, all.re, all.im,
                 inverse_of(all.den + (double)x.rest[h]));
}

/* Blocks for each row and group. */
static int
pieces_of(const struct attend_args *a)
{
    return PARTS * attend_pieces(attend_part(a->max_keys));
}

bool
attend_is_long(const struct attend_args *a)
{
    const size_t groups = (size_t)ceil_div(a->n_heads, HEADS) * (size_t)a->n;
    const size_t blocks = groups * (size_t)pieces_of(a);

    return pieces_of(a) > PARTS && blocks <= MOST_BLOCKS &&
           blocks * left_bytes(a->dim) <= a->scratch_bytes;
}

int
attend_long_cuda(struct cuda_rank *rk, const struct attend_args *a, struct err *e)
{
    const int groups = ceil_div(a->n_heads, HEADS), blocks = pieces_of(a);
    const int keys = attend_row(ATTEND_PIECE, a->dim) * 2;
    const int for_scores = keys + attend_row(HEADS, a->dim) * 2 +
                           attend_row_f32(SLICES * HEADS, ATTEND_PIECE) * 4;
    const int for_values = keys + attend_row(HEADS, ATTEND_PIECE) * 2;
    const dim3 grid(blocks, groups, a->n);

    SHARED_TRY(long_scores_kernel, for_scores, e);
    SHARED_TRY(long_values_kernel, for_values, e);
    CU_TRY(launch_pdl(rk, long_scores_kernel, grid, THREADS, for_scores, *a), e);
    CU_TRY(launch_pdl(rk, long_values_kernel, grid, THREADS, for_values, *a), e);
    CU_TRY(launch_pdl(rk, long_sums_kernel,
                      dim3(ceil_div(a->dim, 2 * SUM_PAIRS), groups, a->n),
                      HEADS * SUM_PAIRS, 0, *a, blocks),
           e);
    return 0;
}
