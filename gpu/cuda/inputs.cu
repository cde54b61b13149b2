/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What stands between the projections of the attention sublayer, in two kernels: the plain
 * operations are norm.cu, quant.cu, compress.cu and rows.cu, and a block here does several of them
 * to a row (inputs.cuh). Few rows have the first one's work done beside wq_b (packed_inputs.cuh).
 *
 * inputs: blocks of a row each norm and round the queries' low-rank row, norm, rotate and pack the
 * window's key, keep the compressors' inputs, and finish compressed entries. queries: a warp a
 * head norms and rotates queries, or rotates and packs the indexer's.
 */
#include "base/err.h"
#include "gpu/cuda/inputs.cuh"
#include "gpu/cuda/packed_x.cuh"
#include "gpu/cuda/query.cuh"

enum {
    THREADS = POOL_THREADS,
    WARPS = THREADS / WARP,
    MAX_CHUNKS = 64, /* of a queries' row */
    HEAD_WARPS = 8,
};

/* Pair p of the rotated end of v. */
static __device__ __forceinline__ void
rotate_pair(float *v, const float *cs, int p)
{
    const float re = v[2 * p], im = v[2 * p + 1], c = cs[2 * p], s = cs[2 * p + 1];

    v[2 * p] = bf16_round(fmaf(re, c, -(im * s)));
    v[2 * p + 1] = bf16_round(fmaf(re, s, im * c));
}

/* The queries' row normed in place, and rounded beside. */
static __device__ void
query_row(const struct inputs_args &a, int row)
{
    __shared__ double squares[MAX_CHUNKS];
    uint16_t *x = a.qr + row_start(row, a.q_dim), *q = a.qrq + row_start(row, a.q_dim);
    const int lane = threadIdx.x % WARP, chunks = ceil_div(a.q_dim, ROW_CHUNK);

    for (int k = threadIdx.x / WARP; k < chunks; k += WARPS) {
        const double ss = chunk_squares(row_piece(x, chunk_at(k, lane), a.q_dim));

        if (lane == 0)
            squares[k] = ss;
    }
    __syncthreads();
    const float scale = norm_scale(add_chunks(squares, chunks), 1.0 / a.q_dim, a.eps);

    for (int k = threadIdx.x / WARP; k < chunks; k += WARPS) {
        const int at = chunk_at(k, lane);
        float w[ROW_PIECE] = {};

        if (at < a.q_dim)
            load_piece(a.q_norm + at, w);
        const uint4 u = norm_piece(row_piece(x, at, a.q_dim), w, scale), r = quantised(u);

        if (at >= a.q_dim)
            continue;
        *(uint4 *)(x + at) = u;
        *(uint4 *)(q + at) = r;
    }
}

/* Grid: rows, parts from PART_KEY on: the queries' row behind the others. An entry is never a row's
 * number beyond those of the step. */
template <int N>
static __global__ void __launch_bounds__(THREADS)
inputs_kernel(const __grid_constant__ struct inputs_args a, int parts)
{
    LAUNCH_SHARED(16, float, v);

    pdl_go();
    if ((int)blockIdx.y < parts) {
        inputs_part<N>(a, PART_KEY + blockIdx.y, blockIdx.x, v);
        return;
    }
    pdl_wait();
    query_row(a, blockIdx.x);
}

int
inputs_cuda(struct cuda_rank *rk, const struct inputs_args *a, struct err *e)
{
    const int parts = inputs_parts(a) - PART_KEY;

    if (!inputs_can(a, ROW_CHUNKS) || a->q_dim > MAX_CHUNKS * ROW_CHUNK)
        return err_set(e, ERR_INTERNAL, 0, "inputs: rows of %d and %d", a->dim, a->q_dim);
    if (a->n == 0)
        return 0;
    CU_TRY(launch_pdl(rk,
                      inputs_can(a, FEW_CHUNKS) ? inputs_kernel<FEW_CHUNKS>
                                                : inputs_kernel<ROW_CHUNKS>,
                      dim3(a->n, parts + (a->qr != NULL)), THREADS, inputs_shared(a), *a,
                      parts),
           e);
    return 0;
}

/* Rows of a large step into their rings, when all who look there have looked. */
static __global__ void __launch_bounds__(THREADS)
keep_kernel(const __grid_constant__ struct inputs_args a)
{
    const int i = blockIdx.x;
    const struct dev_row r = a.rows[i];
    const struct dev_span s = a.spans[r.span];

    pdl_go();
    pdl_wait();
    if (blockIdx.y == 0 && i - s.row0 >= s.n - a.ring_slots) {
        const uint32_t *from = (const uint32_t *)(a.keys + row_start(i, a.row_bytes));
        uint32_t *to = (uint32_t *)(s.rings + a.ring_at +
                                    row_start(ring_slot(r.pos, a.ring_slots), a.row_bytes));

        for (int w = threadIdx.x; w < a.row_bytes / 4; w += THREADS)
            to[w] = from[w];
    }
    if (blockIdx.y == 1 && i - s.row0 >= s.n - a.comp.slots)
        keep_row(a.comp, i);
    if (blockIdx.y == 2 && i - s.row0 >= s.n - a.index.slots)
        keep_row(a.index, i);
}

int
inputs_keep_cuda(struct cuda_rank *rk, const struct inputs_args *a, struct err *e)
{
    const int parts = a->n_weights > 0 ? 3 : a->comp.ratio > 0 ? 2 : 1;

    if (a->n == 0 || a->keep)
        return 0;
    CU_TRY(launch_pdl(rk, keep_kernel, dim3(a->n, parts), THREADS, 0, *a), e);
    return 0;
}

/* Grid: groups of HEAD_WARPS heads, rows; the indexer's heads behind the others. beside: a block a
 * row in front of these makes what the way back into the streams needs. */
static __global__ void __launch_bounds__(HEAD_WARPS *WARP)
queries_kernel(const __grid_constant__ struct queries_args a,
               const __grid_constant__ struct streams_in_args back, int beside)
{
    LAUNCH_SHARED(16, float, shared);
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, row = blockIdx.y;
    const int h = grid_item((int)blockIdx.x - beside, HEAD_WARPS, warp), i = h - a.n_heads;
    const float *cs = a.cs + row_start(row, a.rope_dim);
    float *v = shared + warp * (a.dim > a.index_dim ? a.dim : a.index_dim);

    pdl_go();
    pdl_wait();
    if ((int)blockIdx.x < beside) {
        way_back(back, (size_t)row);
        return;
    }
    if (h < a.n_heads) {
        uint16_t *q = a.q + row_start(row_start(row, a.n_heads) + h, a.dim);
        float sum = 0.0f;

        for (int c = lane * QUERY_PIECE; c < a.dim; c += WARP * QUERY_PIECE)
            sum = query_squares(*(const uint4 *)(q + c), sum);
        const uint32_t factor = query_factor(sum, a.per_dim, a.eps);

        for (int c = lane * QUERY_PIECE; c < a.dim; c += WARP * QUERY_PIECE) {
            uint4 *piece = (uint4 *)(q + c);

            *piece = query_piece(*piece, factor, cs, c, a.dim - a.rope_dim);
        }
    } else if (i < a.n_index) {
        const uint16_t *q = a.iq + row_start(row_start(row, a.n_index) + i, a.index_dim);

        for (int c = lane * 2; c < a.index_dim; c += WARP * 2) {
            bf16_pair(*(const uint32_t *)(q + c), v + c);
            if (c >= a.index_dim - a.rope_dim)
                rotate_pair(v + a.index_dim - a.rope_dim, cs,
                            (c - (a.index_dim - a.rope_dim)) / 2);
        }
        index_pack(v, a.index_dim,
                   a.iqp + row_start(row_start(row, a.n_index) + i, fp4_row(a.index_dim)));
    }
}

int
queries_cuda(struct cuda_rank *rk, const struct queries_args *a, struct err *e)
{
    const int dim = a->dim > a->index_dim ? a->dim : a->index_dim;
    const size_t shared = (size_t)HEAD_WARPS * dim * sizeof(float);

    if (a->n_heads > 0 && (a->dim % QUERY_PIECE != 0 || a->rope_dim % QUERY_PIECE != 0))
        return err_set(e, ERR_INTERNAL, 0, "queries: heads of %d", a->dim);
    const struct streams_in_args none = {}, back = a->back != NULL ? *a->back : none;
    const int heads = a->n_heads + a->n_index, beside = a->back != NULL;

    if (a->rows == 0 || heads + beside == 0)
        return 0;
    if (shared > 48 * 1024)
        SHARED_TRY(queries_kernel, shared, e);
    CU_TRY(launch_pdl(rk, queries_kernel,
                      dim3(beside + ceil_div(heads, HEAD_WARPS), a->rows),
                      HEAD_WARPS * WARP, shared, *a, back, beside),
           e);
    return 0;
}
