/* SPDX-License-Identifier: Apache-2.0 */
/* Rows moved about: embedding, gathering, rings, pages. Bound by bandwidth or by nothing. */
#include "base/err.h"
#include "gpu/cuda/device.cuh"
#include "gpu/cuda/kernels.h"
#include "gpu/index.h"
#include "model/synthetic.h"

enum { THREADS = 256 };

/* One block of THREADS copies bytes, a multiple of 4, from and to addresses that are multiples of
 * 4; by fours of words where all are multiples of 16. */
static __device__ __forceinline__ void
copy_words(void *dst, const void *src, size_t bytes)
{
    if (((size_t)dst | (size_t)src | bytes) % sizeof(uint4) == 0) {
        for (size_t i = threadIdx.x; i < bytes / sizeof(uint4); i += 4 * (size_t)THREADS) {
            uint4 v[4];

#pragma unroll
            for (int k = 0; k < 4; k++)
                if (i + k * THREADS < bytes / sizeof(uint4))
                    v[k] = ((const uint4 *)src)[i + k * THREADS];
#pragma unroll
            for (int k = 0; k < 4; k++)
                if (i + k * THREADS < bytes / sizeof(uint4))
                    ((uint4 *)dst)[i + k * THREADS] = v[k];
        }
        return;
    }
    for (size_t i = threadIdx.x; i < bytes / 4; i += THREADS)
        ((uint32_t *)dst)[i] = ((const uint32_t *)src)[i];
}

static __global__ void __launch_bounds__(THREADS)
embed_kernel(const __grid_constant__ struct embed_args a)
{
    struct dev_row *row = (struct dev_row *)&a.rows[blockIdx.y];
    uint32_t token;

    pdl_go();
    pdl_wait();
    token = row->token;
    if (token == TOKEN_DRAWN && a.drawn != NULL) {
        token = a.drawn[blockIdx.y];
        __syncthreads(); /* everyone has read it */
        if (blockIdx.x == 0 && threadIdx.x == 0)
            row->token = token; /* for those who route by it */
    }
    const uint16_t *src = a.table + row_start(token, a.dim);

    copy_words(a.x + row_start(row_start(blockIdx.y, a.copies) + blockIdx.x, a.dim), src,
               (size_t)a.dim * sizeof *src);
}

int
embed_cuda(struct cuda_rank *rk, const struct embed_args *a, struct err *e)
{
    if (a->dim % 2 != 0)
        return err_set(e, ERR_INTERNAL, 0, "embed: dim %d", a->dim);
    if (a->n == 0)
        return 0;
    CU_TRY(launch_pdl(rk, embed_kernel, dim3(a->copies, a->n), THREADS, 0, *a), e);
    return 0;
}

static __global__ void __launch_bounds__(THREADS)
gather_kernel(struct gather_args a)
{
    const int i = blockIdx.x;

    pdl_go();
    pdl_wait();
    const int at = a.index[i];
    const uint8_t *src = (const uint8_t *)a.src + row_start(at, a.bytes);

    if (at < 0)
        src = a.spans[a.rows[i].span].rings + a.ring_at +
              row_start(ring_slot(a.rows[i].pos, a.slots), a.bytes);
    copy_words((uint8_t *)a.dst + row_start(i, a.bytes), src, a.bytes);
}

int
gather_cuda(struct cuda_rank *rk, const struct gather_args *a, struct err *e)
{
    if (a->bytes % 4 != 0)
        return err_set(e, ERR_INTERNAL, 0, "gather: rows of %zu bytes", a->bytes);
    if (a->n == 0)
        return 0;
    CU_TRY(launch_pdl(rk, gather_kernel, dim3(a->n), THREADS, 0, *a), e);
    return 0;
}

static __global__ void __launch_bounds__(THREADS)
ring_store_kernel(struct ring_args a)
{
    const int i = blockIdx.x;
    const struct dev_row r = a.rows[i];
    const struct dev_span s = a.spans[r.span];

    if (i - s.row0 < s.n - a.slots)
        return; /* a later row of this step takes the slot */
    copy_words(s.rings + a.ring_at + row_start(ring_slot(r.pos, a.slots), a.bytes),
               (const uint8_t *)a.src + row_start(i, a.bytes), a.bytes);
}

int
ring_store_cuda(struct cuda_rank *rk, const struct ring_args *a, struct err *e)
{
    if (a->bytes % 4 != 0)
        return err_set(e, ERR_INTERNAL, 0, "ring: rows of %zu bytes", a->bytes);
    if (a->n == 0)
        return 0;
    CU_TRY(launch_kernel(rk->stream, ring_store_kernel, dim3(a->n), THREADS, 0, *a), e);
    return 0;
}

/* Grid: segments, chunks of them. Rows of odd sizes may put a segment anywhere: then bytes. */
static __global__ void __launch_bounds__(THREADS)
copy_list_kernel(const __grid_constant__ struct copy_list l, bool out)
{
    const struct copy_segment &s = l.seg[blockIdx.x];
    uint8_t *to = out ? l.staging + s.at : s.own;
    const uint8_t *from = out ? s.own : l.staging + s.at;
    const size_t first = blockIdx.y * THREADS + threadIdx.x, step = gridDim.y * THREADS;

    if (((size_t)to | (size_t)from | s.bytes) % 4 == 0)
        for (size_t i = first; i < s.bytes / 4; i += step)
            ((uint32_t *)to)[i] = ((const uint32_t *)from)[i];
    else
        for (size_t i = first; i < s.bytes; i += step)
            to[i] = from[i];
}

int
copy_list_cuda(cudaStream_t stream, struct copy_list *l, bool out, struct err *e)
{
    const cudaError_t err = l->n > 0 ? launch_kernel(stream, copy_list_kernel,
                                                     dim3(l->n, 16), THREADS, 0, *l, out)
                                     : cudaSuccess;

    l->n = 0;
    CU_TRY(err, e);
    return 0;
}

/* Index rows may have any number of bytes, so bytes it is. */
static __global__ void __launch_bounds__(THREADS)
entry_store_kernel(struct entry_args a)
{
    const struct dev_entry r = a.entries[blockIdx.x];
    uint8_t *dst = a.spans[r.span].pages[entry_page(r.j, a.per_page)] + a.page_at +
                   row_start(entry_row(r.j, a.per_page), a.row_bytes);
    const uint8_t *src = a.src + row_start(blockIdx.x, a.row_bytes);

    for (size_t i = threadIdx.x; i < a.row_bytes; i += THREADS)
        dst[i] = src[i];
}

int
entry_store_cuda(struct cuda_rank *rk, const struct entry_args *a, struct err *e)
{
    if (a->n == 0)
        return 0;
    CU_TRY(launch_kernel(rk->stream, entry_store_kernel, dim3(a->n), THREADS, 0, *a), e);
    return 0;
}

static __global__ void __launch_bounds__(THREADS)
add_rows_kernel(uint16_t *x, const uint16_t *f, int copies, int dim)
{
    const int c = grid_item(blockIdx.x, THREADS, threadIdx.x);
    const size_t r = blockIdx.y;

    if (c < dim)
        x[row_start(r, dim) + c] =
            f32_to_bf16(bf16_to_f32(f[row_start(r / copies, dim) + c]) +
                        bf16_to_f32(x[row_start(r, dim) + c]));
}

int
add_rows_cuda(struct cuda_rank *rk, uint16_t *x, const uint16_t *f, int rows, int copies,
              int dim, struct err *e)
{
    if (rows == 0)
        return 0;
    CU_TRY(launch_kernel(rk->stream, add_rows_kernel, dim3(ceil_div(dim, THREADS), rows),
                         THREADS, 0, x, f, copies, dim),
           e);
    return 0;
}

static __global__ void __launch_bounds__(THREADS)
scale_kernel(uint16_t *x, size_t n, float s)
{
    const size_t i = row_start(blockIdx.x, THREADS) + threadIdx.x;

    if (i < n)
        x[i] = f32_to_bf16(bf16_to_f32(x[i]) * s);
}

int
scale_cuda(struct cuda_rank *rk, uint16_t *x, size_t n, float s, struct err *e)
{
    if (n == 0)
        return 0;
    CU_TRY(launch_kernel(rk->stream, scale_kernel,
                         dim3((unsigned)((n + THREADS - 1) / THREADS)), THREADS, 0, x, n,
                         s),
           e);
    return 0;
}

/* Eight elements a thread. */
static __global__ void __launch_bounds__(THREADS)
synthetic_kernel(const __grid_constant__ struct synthetic s, uint64_t first, uint64_t n,
                 void *out)
{
    const uint64_t i0 = (row_start(blockIdx.x, THREADS) + threadIdx.x) * 8;

    for (uint64_t i = i0; i < i0 + 8 && i < n; i++)
        switch (s.kind) {
        case SYNTHETIC_BF16:
            ((uint16_t *)out)[i] = f32_to_bf16(synthetic_number(&s, first + i));
            break;
        case SYNTHETIC_F32: ((float *)out)[i] = synthetic_number(&s, first + i); break;
        case SYNTHETIC_IDS: ((int64_t *)out)[i] = synthetic_id(&s, first + i); break;
        default: ((uint8_t *)out)[i] = synthetic_byte(&s, first + i);
        }
}

int
synthetic_cuda(struct cuda_rank *rk, const struct synthetic *s, uint64_t first, uint64_t n,
               void *out, struct err *e)
{
    const uint64_t each = THREADS * 8;

    if (n == 0)
        return 0;
    CU_TRY(launch_kernel(rk->stream, synthetic_kernel,
                         dim3((unsigned)((n + each - 1) / each)), THREADS, 0, *s, first, n,
                         out),
           e);
    return 0;
}
