/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_CUDA_PACKED_X_CUH
#define GPU_CUDA_PACKED_X_CUH

/*
 * How a block of a product with few rows gets its rows of x: into shared memory, made into what the
 * tensor cores take.
 */
#include "gpu/cuda/packed_job.cuh"

static __device__ __forceinline__ uint4
times_2_60(uint4 v)
{
    return make_uint4(times_2_60(v.x), times_2_60(v.y), times_2_60(v.z), times_2_60(v.w));
}

/* 8 values of a row of x as products with matrices of that kind take them. */
template <int KIND>
static __device__ __forceinline__ uint4
as_wanted(uint4 v)
{
    return KIND != MATRIX_BF16 ? times_2_60(v) : v;
}

/*
 * Rows r0 .. r1 - 1 of x, at most 8, to shared memory, by all threads: rounded to FP8 if `quant`,
 * and times 2^60 where weights want it. A group of 128 that is cut short has zeros behind. A warp
 * takes 256 values of a row at a time, and has two such pieces under way.
 */
template <int KIND>
static __device__ __forceinline__ void
stage_x(const struct packed_job &a, int r0, int r1, const int *source, uint16_t *to)
{
    const int lane = threadIdx.x % WARP;
    int r = r0, k0 = threadIdx.x / WARP * WARP * 8;

    while (r < r1) {
        uint4 v[2];
        int row[2], k[2];

#pragma unroll
        for (int i = 0; i < 2; i++) {
            while (k0 >= a.in && r < r1) {
                k0 -= (a.in + WARP * 8 - 1) / (WARP * 8) * (WARP * 8);
                r++;
            }
            row[i] = r;
            k[i] = k0 + lane * 8;
            v[i] = make_uint4(0, 0, 0, 0);
            if (r < r1 && k[i] < a.in)
                v[i] =
                    *(const uint4 *)(a.x +
                                     row_start(source != NULL ? source[r] : r, a.x_stride) +
                                     k[i]);
            k0 += PACK_THREADS * 8;
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            if (a.quant)
                v[i] = quantised(v[i]);
            if (row[i] < r1 && k[i] < a.in)
                *((uint4 *)to + (unsigned)(packed_x(row[i] - r0, a.in) + k[i]) / 8) =
                    as_wanted<KIND>(v[i]);
        }
    }
    __syncthreads();
}

/*
 * Where a product's rows of x come from is a type: those that a kernel in front has written, or one
 * that makes few rows in every block. Such a type has
 *   source: which row of x each is, or NULL;
 *   ready<KIND, NT>(a, r0, r1, staged): called by all threads of a block when its first weights are
 *     under way; waits for kernels in front, and for NT 1 leaves rows r0 .. r1 - 1, at most 8, in
 *     `staged` (row r at packed_x(r - r0, a.in), as_wanted), the block in step;
 * and if it goes with packed_kernel
 *   SIDES, side(block, shared): whether there are blocks in front of the products' that do
 *     something else, and what. They wait for kernels in front themselves.
 */
struct rows_of_x {
    const int *source;
    bool wait; /* for the kernel in front, which writes x */

    template <int KIND, int NT>
    __device__ __forceinline__ void ready(const struct packed_job &a, int r0, int r1,
                                          uint16_t *staged) const
    {
        if (wait)
            pdl_wait();
        if (NT == 1)
            stage_x<KIND>(a, r0, r1, source, staged);
    }
};

struct rows_in_order {
    static constexpr const int *source = NULL;
    static constexpr bool SIDES = false;

    template <int KIND, int NT>
    __device__ __forceinline__ void ready(const struct packed_job &a, int r0, int r1,
                                          uint16_t *staged) const
    {
        pdl_wait();
        if (NT == 1)
            stage_x<KIND>(a, r0, r1, NULL, staged);
    }

    __device__ __forceinline__ void side(int, float *) const
    {
    }
};

#endif /* GPU_CUDA_PACKED_X_CUH */
