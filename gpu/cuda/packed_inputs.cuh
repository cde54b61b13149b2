/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_CUDA_PACKED_INPUTS_CUH
#define GPU_CUDA_PACKED_INPUTS_CUH

/*
 * wq_b's rows of x when they are few: each block norms them itself, and blocks beside the product
 * do what else stands between the projections (inputs.cuh).
 */
#include "gpu/cuda/inputs.cuh"
#include "gpu/cuda/packed_x.cuh"

/* A chunk of few rows, counted on from row r, without a division. */
struct row_chunk {
    int r, k;
};

static __device__ __forceinline__ struct row_chunk
next_chunk(int r, int k, int chunks)
{
    for (; k >= chunks; k -= chunks)
        r++;
    return {r, k};
}

static __device__ __forceinline__ uint4
chunk_of(const struct packed_job &a, int row, int end, int at)
{
    return row < end ? row_piece(a.x + row_start(row, a.x_stride), at, a.in)
                     : make_uint4(0, 0, 0, 0);
}

static __device__ __forceinline__ void
keep_chunk(const struct packed_job &a, struct row_chunk c, uint4 u, double *squares,
           uint16_t *staged)
{
    const int lane = threadIdx.x % WARP, at = chunk_at(c.k, lane);
    const double ss = chunk_squares(u);

    if (at < a.in)
        *(uint4 *)(staged + packed_x(c.r, a.in) + at) = u;
    if (lane == 0)
        squares[c.r * NORM_CHUNKS + c.k] = ss;
}

/* Rows r0 .. r1 - 1 as stage_x (packed_x.cuh) has them, but normed first. A chunk of a row is a
 * warp's: as it is, then normed. */
template <int KIND>
static __device__ __forceinline__ void
norm_rows(const struct packed_job &a, const struct inputs_args &in, double of_dim, int r0,
          int r1, uint16_t *staged)
{
    __shared__ double squares[PACK_N][NORM_CHUNKS];
    const int lane = threadIdx.x % WARP, chunks = ceil_div(a.in, ROW_CHUNK);
    const struct row_chunk first = next_chunk(0, threadIdx.x / WARP, chunks);
    float w[ROW_PIECE] = {};
    int has = first.k; /* the chunk whose weights w has */

    if (chunk_at(has, lane) < a.in)
        load_piece(in.q_norm + chunk_at(has, lane), w);
    pdl_wait();
    for (struct row_chunk c = first; c.r < r1 - r0;) {
        const struct row_chunk d = next_chunk(c.r, c.k + PACK_WARPS, chunks);
        const uint4 u = chunk_of(a, r0 + c.r, r1, chunk_at(c.k, lane));
        const uint4 v = chunk_of(a, r0 + d.r, r1, chunk_at(d.k, lane));

        keep_chunk(a, c, u, squares[0], staged);
        if (d.r < r1 - r0)
            keep_chunk(a, d, v, squares[0], staged);
        c = next_chunk(d.r, d.k + PACK_WARPS, chunks);
    }
    __syncthreads();
    for (struct row_chunk c = first; c.r < r1 - r0;
         c = next_chunk(c.r, c.k + PACK_WARPS, chunks)) {
        const int at = chunk_at(c.k, lane);
        uint16_t *x = staged + packed_x(c.r, a.in);

        if (c.k != has && at < a.in)
            load_piece(in.q_norm + at, w);
        has = c.k;
        const float scale =
            norm_scale(add_few_chunks(squares[c.r], chunks), of_dim, in.eps);
        uint4 v = norm_piece(row_piece(x, at, a.in), w, scale);

        if (a.quant)
            v = quantised(v);
        if (at < a.in)
            *(uint4 *)(x + at) = as_wanted<KIND>(v);
    }
    __syncthreads();
}

struct rows_normed {
    static constexpr const int *source = NULL;
    static constexpr bool SIDES = true;
    struct inputs_args in;
    double of_dim; /* 1 / in.q_dim: a division takes long */
    int parts;

    template <int KIND, int NT>
    __device__ __forceinline__ void ready(const struct packed_job &a, int r0, int r1,
                                          uint16_t *staged) const
    {
        static_assert(NT == 1, "few rows");
        norm_rows<KIND>(a, in, of_dim, r0, r1, staged);
    }

    __device__ __forceinline__ void side(int block, float *shared) const
    {
        inputs_part<FEW_CHUNKS>(in, block % parts, block / parts, shared);
    }
};

#endif /* GPU_CUDA_PACKED_INPUTS_CUH */
