/* SPDX-License-Identifier: Apache-2.0 */
/* Rows moved about: embedding, gathering, rings, pages. Bound by bandwidth or by nothing. */
#include "base/err.h"
#include "gpu/cuda/device.cuh"
#include "gpu/cuda/kernels.h"
#include "gpu/index.h"

enum { THREADS = 256 };

/* One block copies bytes, a multiple of 4, from and to addresses that are multiples of 4. */
static __device__ __forceinline__ void
copy_words(void *dst, const void *src, size_t bytes)
{
    for (size_t i = threadIdx.x; i < bytes / 4; i += blockDim.x)
        ((uint32_t *)dst)[i] = ((const uint32_t *)src)[i];
}

static __global__ void __launch_bounds__(THREADS)
embed_kernel(struct embed_args a)
{
    const uint16_t *src = a.table + (size_t)a.rows[blockIdx.y].token * a.dim;

    copy_words(a.x + ((size_t)blockIdx.y * a.copies + blockIdx.x) * a.dim, src,
               (size_t)a.dim * sizeof *src);
}

int
embed_cuda(struct cuda_rank *rk, const struct embed_args *a, struct err *e)
{
    if (a->dim % 2 != 0)
        return err_set(e, ERR_INTERNAL, 0, "embed: dim %d", a->dim);
    if (a->n == 0)
        return 0;
    embed_kernel<<<dim3(a->copies, a->n), THREADS, 0, rk->stream>>>(*a);
    CU_TRY(cudaGetLastError(), e);
    return 0;
}

static __global__ void __launch_bounds__(THREADS)
gather_kernel(struct gather_args a)
{
    const int i = blockIdx.x, at = a.index[i];
    const uint8_t *src = (const uint8_t *)a.src + (size_t)at * a.bytes;

    if (at < 0)
        src = a.spans[a.rows[i].span].rings + a.ring_at +
              ring_slot(a.rows[i].pos, a.slots) * a.bytes;
    copy_words((uint8_t *)a.dst + (size_t)i * a.bytes, src, a.bytes);
}

int
gather_cuda(struct cuda_rank *rk, const struct gather_args *a, struct err *e)
{
    if (a->bytes % 4 != 0)
        return err_set(e, ERR_INTERNAL, 0, "gather: rows of %zu bytes", a->bytes);
    if (a->n == 0)
        return 0;
    gather_kernel<<<a->n, THREADS, 0, rk->stream>>>(*a);
    CU_TRY(cudaGetLastError(), e);
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
    copy_words(s.rings + a.ring_at + ring_slot(r.pos, a.slots) * a.bytes,
               (const uint8_t *)a.src + (size_t)i * a.bytes, a.bytes);
}

int
ring_store_cuda(struct cuda_rank *rk, const struct ring_args *a, struct err *e)
{
    if (a->bytes % 4 != 0)
        return err_set(e, ERR_INTERNAL, 0, "ring: rows of %zu bytes", a->bytes);
    if (a->n == 0)
        return 0;
    ring_store_kernel<<<a->n, THREADS, 0, rk->stream>>>(*a);
    CU_TRY(cudaGetLastError(), e);
    return 0;
}

/* Index rows may have any number of bytes, so bytes it is. */
static __global__ void __launch_bounds__(THREADS)
entry_store_kernel(struct entry_args a)
{
    const struct dev_entry r = a.entries[blockIdx.x];
    uint8_t *dst = a.spans[r.span].pages[entry_page(r.j, a.per_page)] + a.page_at +
                   entry_row(r.j, a.per_page) * a.row_bytes;
    const uint8_t *src = a.src + (size_t)blockIdx.x * a.row_bytes;

    for (size_t i = threadIdx.x; i < a.row_bytes; i += THREADS)
        dst[i] = src[i];
}

int
entry_store_cuda(struct cuda_rank *rk, const struct entry_args *a, struct err *e)
{
    if (a->n == 0)
        return 0;
    entry_store_kernel<<<a->n, THREADS, 0, rk->stream>>>(*a);
    CU_TRY(cudaGetLastError(), e);
    return 0;
}

static __global__ void __launch_bounds__(THREADS)
add_rows_kernel(uint16_t *x, const uint16_t *f, int copies, int dim)
{
    const int c = blockIdx.x * THREADS + threadIdx.x;
    const size_t r = blockIdx.y;

    if (c < dim)
        x[r * dim + c] =
            f32_to_bf16(bf16_to_f32(f[r / copies * dim + c]) + bf16_to_f32(x[r * dim + c]));
}

int
add_rows_cuda(struct cuda_rank *rk, uint16_t *x, const uint16_t *f, int rows, int copies,
              int dim, struct err *e)
{
    if (rows == 0)
        return 0;
    add_rows_kernel<<<dim3(ceil_div(dim, THREADS), rows), THREADS, 0, rk->stream>>>(
        x, f, copies, dim);
    CU_TRY(cudaGetLastError(), e);
    return 0;
}

static __global__ void __launch_bounds__(THREADS)
scale_kernel(uint16_t *x, size_t n, float s)
{
    const size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x;

    if (i < n)
        x[i] = f32_to_bf16(bf16_to_f32(x[i]) * s);
}

int
scale_cuda(struct cuda_rank *rk, uint16_t *x, size_t n, float s, struct err *e)
{
    if (n == 0)
        return 0;
    scale_kernel<<<(unsigned)((n + THREADS - 1) / THREADS), THREADS, 0, rk->stream>>>(x, n,
                                                                                      s);
    CU_TRY(cudaGetLastError(), e);
    return 0;
}
