/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The compressor (spec 6.1): every `ratio` tokens become one row, a softmax over positions for
 * each channel. Inputs of this step lie in raw, earlier ones in the sequence's ring. A thread is
 * a channel of an entry and goes over its positions in ascending order, three times: at most 128
 * of them, and only one token in `ratio` completes an entry.
 */
#include "base/err.h"
#include "gpu/cuda/device.cuh"
#include "gpu/cuda/kernels.h"
#include "gpu/index.h"
#include "gpu/index/compress.h"

enum { THREADS = 128 };

static __host__ __device__ inline int
width_of(const struct compress_args &a)
{
    return compress_width(a.dim, a.overlap);
}

static __global__ void __launch_bounds__(THREADS)
add_position_kernel(struct compress_args a)
{
    const int width = width_of(a), c = grid_item(blockIdx.x, THREADS, threadIdx.x);
    const uint64_t pos = a.rows[blockIdx.y].pos;

    if (c < width)
        a.raw[compress_row(blockIdx.y, width) + width + c] +=
            a.ape[row_start(ring_slot(pos, a.ratio), width) + c];
}

int
add_position_cuda(struct cuda_rank *rk, const struct compress_args *a, struct err *e)
{
    if (a->n_rows == 0)
        return 0;
    CU_TRY(launch_kernel(rk->stream, add_position_kernel,
                         dim3(ceil_div(width_of(*a), THREADS), a->n_rows), THREADS, 0, *a),
           e);
    return 0;
}

/* Value (and score, width further on) of channel c at position i of entry j's blocks; NULL
 * before the start. The block before counts by its first half, the entry's own by the second. */
static __device__ __forceinline__ const float *
input(const struct compress_args &a, const struct dev_span &s, uint64_t j, int i, int c)
{
    const int width = width_of(a), back = compress_back(a.ratio, a.overlap);
    const uint64_t reach = compress_reach(j, a.ratio, i), pos = reach - back;
    const float *row;

    if (reach < back)
        return NULL;
    if (pos >= s.start)
        row = a.raw + compress_row(step_row(s.row0, pos, s.start), width);
    else
        row = (const float *)(s.rings + a.ring_at) +
              compress_row(ring_slot(pos, a.slots), width);
    return row + compress_channel(c, i, a.dim, a.ratio, a.overlap);
}

static __global__ void __launch_bounds__(THREADS)
pool_kernel(struct compress_args a)
{
    const struct dev_entry entry = a.entries[blockIdx.y];
    const struct dev_span s = a.spans[entry.span];
    const int c = grid_item(blockIdx.x, THREADS, threadIdx.x), width = width_of(a);
    const int n = compress_count(a.ratio, a.overlap);
    float top = -CUDART_INF_F, sum = 0.0f, value = 0.0f;

    if (c >= a.dim)
        return;
    for (int i = 0; i < n; i++) {
        const float *x = input(a, s, entry.j, i, c);

        if (x != NULL)
            top = fmaxf(top, x[width]);
    }
    for (int i = 0; i < n; i++) {
        const float *x = input(a, s, entry.j, i, c);

        sum += x != NULL ? exp_f32(x[width] - top) : 0.0f;
    }
    for (int i = 0; i < n; i++) {
        const float *x = input(a, s, entry.j, i, c);

        if (x != NULL)
            value += exp_f32(x[width] - top) / sum * x[0];
    }
    a.out[row_start(blockIdx.y, a.dim) + c] = f32_to_bf16(value);
}

int
pool_cuda(struct cuda_rank *rk, const struct compress_args *a, struct err *e)
{
    if (a->n_entries == 0)
        return 0;
    CU_TRY(launch_kernel(rk->stream, pool_kernel,
                         dim3(ceil_div(a->dim, THREADS), a->n_entries), THREADS, 0, *a),
           e);
    return 0;
}
