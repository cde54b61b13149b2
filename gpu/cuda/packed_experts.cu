/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Products of expert matrices: which of them run is in device memory, found by blocks themselves.
 * packed.cuh has the layout and the order of sums; the plain twin is linear.cu.
 */
#include "base/err.h"
#include "gpu/cuda/kernels.h"
#include "gpu/cuda/packed_many.cuh"
#include "gpu/cuda/packed_ring.cuh"

/* The shared expert's product, of its first rows. */
static __device__ __forceinline__ struct packed_job
shared_job(const struct expert_args &a, int kind, int rows, int split, int quant)
{
    return {(const uint4 *)a.one.packed,
            a.one.scale,
            a.x_one,
            a.y_one,
            kind,
            a.one.out,
            a.one.in,
            rows,
            a.one.in,
            a.one.out,
            0,
            split,
            quant};
}

/* An expert's, of rows up to this one. */
static __device__ __forceinline__ struct packed_job
routed_job(const struct expert_args &a, int kind, const struct expert_weights &w, int rows,
           int split, int quant)
{
    return {(const uint4 *)w.packed,
            w.scale,
            a.x,
            a.y[blockIdx.y],
            kind,
            a.shape.out,
            a.shape.in,
            rows,
            a.shape.in,
            a.shape.out,
            0,
            split,
            quant};
}

/*
 * Grid: blocks of the shared one, which wait for no choice, then those of each active expert;
 * matrices.
 */
template <int KIND, int SHARED>
static __global__ void __launch_bounds__(PACK_THREADS, blocks_wanted(1))
packed_expert_kernel(const __grid_constant__ struct expert_args a, int split, int split_one,
                     int blocks, int blocks_one)
{
    LAUNCH_SHARED(16, float, shared);

    pdl_go();
    if (SHARED >= 0 && (int)blockIdx.x < blocks_one) {
        const struct packed_job j = shared_job(a, SHARED, a.rows_one, split_one, a.quant);

        for (int r = 0; r < a.rows_one; r += PACK_N)
            block_product <
                SHARED<0 ? MATRIX_FP8 : SHARED, 1, 1>(j, blockIdx.x, r, a.rows_one,
                                                      rows_of_x{NULL, r == 0}, shared);
        return;
    }
    const int at = blockIdx.x - blocks_one, active = at / blocks, block = at % blocks;

    pdl_wait();
    struct expert_weights w;
    int r0 = active, r1 = active + 1;

    if (a.place != NULL)
        w = a.place[active];
    else {
        if (active >= a.active[0])
            return;
        const int x = a.active[1 + active];
        const struct matrix *m = &a.w[blockIdx.y][x];

        w = {m->packed, m->scale};
        r0 = a.first[x];
        r1 = a.first[x + 1];
    }
    const struct packed_job j = routed_job(a, KIND, w, r1, split, a.quant);

    for (int r = r0; r < r1; r += PACK_N)
        block_product<KIND, 1, 1>(j, block, r, r1, rows_of_x{a.source, false}, shared);
}

template <int KIND, int SHARED>
static int
launch_few(struct cuda_rank *rk, const struct expert_args *a, struct err *e)
{
    const int split = pack_split(a->shape.kind, a->shape.in);
    const int split_one = SHARED >= 0 ? pack_split(a->one.kind, a->one.in) : split;
    const int routed = blocks_of(a->shape.out, split, 1);
    const int one = SHARED >= 0 ? blocks_of(a->one.out, split_one, 1) : 0;
    const int in = SHARED >= 0 && a->one.in > a->shape.in ? a->one.in : a->shape.in;
    const dim3 grid(one + routed * a->max_active, a->n_mats);
    const size_t shared = shared_for(1, 1, a->one_row || a->place != NULL ? 1 : PACK_N, in);

    if (shared > rk->shared_bytes)
        return err_set(e, ERR_INTERNAL, 0, "experts: %d inputs", in);
    if (shared > 48 * 1024)
        SHARED_TRY((packed_expert_kernel<KIND, SHARED>), shared, e);
    CU_TRY(launch_pdl(rk, packed_expert_kernel<KIND, SHARED>, grid, PACK_THREADS, shared,
                      *a, split, split_one, routed, one),
           e);
    return 0;
}

/*
 * For more rows in all than a few. Grid: blocks of the shared one for each 8 rows, then as above.
 */
template <int KIND, int SHARED>
static __global__ void __launch_bounds__(PACK_THREADS, 2)
packed_experts_kernel(const __grid_constant__ struct expert_args a, int split,
                      int split_one, int blocks, int blocks_one, int all_one)
{
    LAUNCH_SHARED(16, uint16_t, staged);

    pdl_go();
    if (SHARED >= 0 && (int)blockIdx.x < all_one) {
        const int r0 = blockIdx.x / blocks_one * PACK_N;
        const struct packed_job j =
            shared_job(a, SHARED, min(a.rows_one, r0 + PACK_N), split_one, 0);

        many_product < SHARED<0 ? MATRIX_FP8 : SHARED>(j, blockIdx.x % blocks_one, r0,
                                                       j.rows, NULL, true, staged);
        return;
    }
    const int at = blockIdx.x - all_one, active = at / blocks, block = at % blocks;

    pdl_wait();
    if (active >= a.active[0])
        return;
    const int x = a.active[1 + active];
    const struct matrix *m = &a.w[blockIdx.y][x];
    const struct packed_job j =
        routed_job(a, KIND, {m->packed, m->scale}, a.first[x + 1], split, 0);

    /* the weights of the second time are not loaded with those of the first */
    for (int r = a.first[x]; r < j.rows; r += PACK_N)
        many_product<KIND>(j, unknown(block), r, j.rows, a.source, false, staged);
}

template <int KIND, int SHARED>
static int
launch_many(struct cuda_rank *rk, const struct expert_args *a, struct err *e)
{
    constexpr int shared = packed_many_shared();

    const int split = pack_split(a->shape.kind, a->shape.in);
    const int split_one = SHARED >= 0 ? pack_split(a->one.kind, a->one.in) : split;
    const int routed = blocks_of(a->shape.out, 1, 1);
    const int blocks_one = SHARED >= 0 ? blocks_of(a->one.out, 1, 1) : 0;
    const int all_one = blocks_one * ceil_div(a->rows_one, PACK_N);
    const dim3 grid(all_one + routed * a->max_active, a->n_mats);

    static_assert(shared <= 48 * 1024, "what every kernel may have");
    CU_TRY(launch_pdl(rk, packed_experts_kernel<KIND, SHARED>, grid, PACK_THREADS, shared,
                      *a, split, split_one, routed, blocks_one, all_one),
           e);
    return 0;
}

enum { RING_NT = 4, RING_ROWS = RING_NT * PACK_N };

/*
 * For many rows of most experts, 32 at a time. A warp's two tiles are of both matrices, if there are
 * two: so they share rows of x.
 */
template <int KIND, int SHARED, int MATS>
static __global__ void __launch_bounds__(PACK_THREADS, 2)
packed_ring_experts_kernel(const __grid_constant__ struct expert_args a, int split,
                           int split_one, int blocks, int blocks_one, int all_one)
{
    LAUNCH_SHARED(128, uint8_t, ring);

    pdl_go();
    if (SHARED >= 0 && (int)blockIdx.x < all_one) {
        const int r0 = blockIdx.x / blocks_one * RING_ROWS;
        const struct packed_job j =
            shared_job(a, SHARED, min(a.rows_one, r0 + RING_ROWS), split_one, 0);

        ring_product < SHARED<0 ? MATRIX_FP8 : SHARED, RING_NT, 2>(
                           j, blockIdx.x % blocks_one, r0, j.rows, NULL, true, ring);
        return;
    }
    const int at = blockIdx.x - all_one, active = at / blocks, block = at % blocks;

    pdl_wait();
    if (active >= a.active[0])
        return;
    const int x = a.active[1 + active], warp = threadIdx.x / WARP;
    const int tile = packed_first_tile(block, warp, 1, MATS == 1 ? 2 : 1);
    const struct packed_job j = routed_job(a, KIND, {}, a.first[x + 1], split, 0);

    for (int r = a.first[x]; r < j.rows; r += RING_ROWS) {
        packed_ring<KIND, RING_NT, 2> p(j, ring);

#pragma unroll
        for (int m = 0; m < 2; m++) {
            const struct matrix *w = &a.w[MATS == 1 ? 0 : m][x];

            p.find_weights(m, {w->packed, w->scale}, MATS == 1 ? tile + m : tile);
        }
        if (j.rows - r <= RING_ROWS / 2)
            p.template go<RING_NT / 2>(r, j.rows, a.source, false);
        else
            p.template go<RING_NT>(r, j.rows, a.source, false);
#pragma unroll
        for (int m = 0; m < 2; m++)
            p.put(m, MATS == 1 ? tile + m : tile, r, j.rows, a.y[MATS == 1 ? 0 : m]);
    }
}

template <int KIND, int SHARED, int MATS>
static int
launch_ring(struct cuda_rank *rk, const struct expert_args *a, struct err *e)
{
    constexpr int routed_bytes = ring_bytes<KIND, RING_NT, 2>();
    constexpr int one_bytes = ring_bytes < SHARED < 0 ? KIND : SHARED, RING_NT, 2 > ();
    constexpr int shared = routed_bytes > one_bytes ? routed_bytes : one_bytes;

    const int split = pack_split(a->shape.kind, a->shape.in);
    const int split_one = SHARED >= 0 ? pack_split(a->one.kind, a->one.in) : split;
    const int routed = blocks_of(a->shape.out, 1, MATS == 1 ? 2 : 1);
    const int blocks_one = SHARED >= 0 ? blocks_of(a->one.out, 1, 2) : 0;
    const int all_one = blocks_one * ceil_div(a->rows_one, RING_ROWS);

    SHARED_TRY((packed_ring_experts_kernel<KIND, SHARED, MATS>), shared, e);
    CU_TRY(launch_pdl(rk, packed_ring_experts_kernel<KIND, SHARED, MATS>,
                      dim3(all_one + routed * a->max_active), PACK_THREADS, shared, *a,
                      split, split_one, routed, blocks_one, all_one),
           e);
    return 0;
}

template <int KIND, int SHARED>
static int
few_or_many(struct cuda_rank *rk, const struct expert_args *a, struct err *e)
{
    if (a->quant || a->many == 0)
        return launch_few<KIND, SHARED>(rk, a, e);
    if (a->many <= 4)
        return launch_many<KIND, SHARED>(rk, a, e);
    if constexpr (SHARED < 0)
        if (a->n_mats == 2)
            return launch_ring<KIND, SHARED, 2>(rk, a, e);
    return launch_ring<KIND, SHARED, 1>(rk, a, e);
}

int
packed_expert_cuda(struct cuda_rank *rk, const struct expert_args *a, struct err *e)
{
    const bool shared = a->rows_one > 0;

    if (a->max_active == 0)
        return 0;
    if (shared && (a->n_mats != 1 || a->one.packed == NULL))
        return err_set(e, ERR_INTERNAL, 0, "experts: a shared one beside %d", a->n_mats);
    if (shared && a->shape.kind == MATRIX_FP4 && a->one.kind == MATRIX_FP8)
        return few_or_many<MATRIX_FP4, MATRIX_FP8>(rk, a, e);
    if (shared && a->shape.kind == MATRIX_FP8 && a->one.kind == MATRIX_FP8)
        return few_or_many<MATRIX_FP8, MATRIX_FP8>(rk, a, e);
    if (shared && a->shape.kind == MATRIX_BF16 && a->one.kind == MATRIX_BF16)
        return few_or_many<MATRIX_BF16, MATRIX_BF16>(rk, a, e);
    if (shared)
        return err_set(e, ERR_INTERNAL, 0, "experts: kinds %d and %d", a->shape.kind,
                       a->one.kind);
    switch (a->shape.kind) {
    case MATRIX_FP4: return few_or_many<MATRIX_FP4, -1>(rk, a, e);
    case MATRIX_FP8: return few_or_many<MATRIX_FP8, -1>(rk, a, e);
    default: return few_or_many<MATRIX_BF16, -1>(rk, a, e);
    }
}
