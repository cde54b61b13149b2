/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Matrix products on tensor cores, for one row as for hundreds: packed.cuh has the layout and the
 * order of sums, this file the kernels around it. Weights are read once for up to 64 rows. The
 * plain twin is linear.cu, which also does what cannot be packed.
 */
#include "base/err.h"
#include "gpu/cuda/kernels.h"
#include "gpu/cuda/packed.cuh"
#include "gpu/index/linear.h"
#include "gpu/index/rows.h"

enum { MAX_JOBS = 24, THREADS = PACK_WARPS * WARP, ANY_KIND = -1 };

/* first: the block at which each job begins. */
struct packed_jobs {
    struct packed_job j[MAX_JOBS];
    int first[MAX_JOBS + 1];
};

size_t
matrix_packed_bytes(const struct matrix *m)
{
    const size_t n = (size_t)m->out * m->in;

    if (m->kind == MATRIX_F32 || m->out % PACK_M != 0 || m->in % PACK_K != 0 ||
        m->out < PACK_M)
        return 0;
    switch (m->kind) {
    case MATRIX_FP4: return n / 2 + n / 32;
    case MATRIX_FP8: return n;
    default: return 2 * n;
    }
}

static __device__ __forceinline__ bool
has_nan_fp8(uint32_t c)
{
    return __vcmpeq4(c & 0x7f7f7f7f, 0x7f7f7f7f) != 0;
}

/* w: rows row0 .. of the matrix, as many as tiles say. */
static __global__ void __launch_bounds__(256)
pack_kernel(int kind, const uint8_t *w, const uint8_t *scale, uint8_t *to,
            uint32_t *scale_to, int in, int tiles, int *odd)
{
    const int chunks = in / PACK_K, loads = pack_loads(kind);
    const size_t all = (size_t)tiles * chunks * loads * WARP;
    bool nan = false;

    for (size_t i = (size_t)blockIdx.x * 256 + threadIdx.x; i < all;
         i += (size_t)gridDim.x * 256) {
        const int tile = packed_tile(i, loads, chunks), lane = packed_lane(i);
        const int chunk = packed_chunk(i, loads, chunks), load = packed_load(i, loads);
        uint32_t v[4];

        for (int n = 0; n < 4; n++) {
            const int o = packed_output(tile, lane, loads, n);
            const int k = packed_input(chunk, lane, loads, load, n);
            const uint32_t u = *(const uint32_t *)(w + linear_weight(o, in, 4 * loads, k));

            nan |= kind == MATRIX_FP8 && has_nan_fp8(u);
            v[n] = kind == MATRIX_FP4   ? fpbits_e2m1_pack(u)
                   : kind == MATRIX_FP8 ? fpbits_e4m3_pack(u)
                                        : u;
        }
        ((uint4 *)to)[i] = make_uint4(v[0], v[1], v[2], v[3]);
        if (kind == MATRIX_FP4 && lane % 4 == 0) {
            const uint8_t *e = scale + linear_fp4_scales(tile * PACK_M + lane / 4, in) +
                               chunk * (PACK_K / FP4_BLOCK);
            const uint8_t *f = e + linear_fp4_scales(8, in);

            nan |= e[0] == 255 || e[1] == 255 || f[0] == 255 || f[1] == 255;
            scale_to[packed_fp4_scale(tile, chunks, chunk, lane / 4)] =
                e[0] | (uint32_t)f[0] << 8 | (uint32_t)e[1] << 16 | (uint32_t)f[1] << 24;
        }
    }
    if (nan)
        *odd = 1;
}

int
matrix_pack_cuda(struct cuda_rank *rk, const struct matrix *m, int row0, int rows,
                 const void *w, const uint8_t *scale, int *odd, struct err *e)
{
    const size_t bytes = (size_t)m->in *
                         (m->kind == MATRIX_FP4   ? 1
                          : m->kind == MATRIX_FP8 ? 2
                                                  : 4) /
                         2;
    const int chunks = m->in / PACK_K;

    if (row0 % PACK_M != 0 || rows % PACK_M != 0 || matrix_packed_bytes(m) == 0)
        return err_set(e, ERR_INTERNAL, 0, "pack: %d rows at %d of %d", rows, row0, m->out);
    if (rows == 0)
        return 0;
    CU_TRY(launch_kernel(rk->stream, pack_kernel, dim3(rk->sms * 8), 256, 0, m->kind,
                         (const uint8_t *)w, scale, (uint8_t *)m->packed + row0 * bytes,
                         (uint32_t *)((uint8_t *)m->packed + m->out * bytes) +
                             packed_fp4_scale(row0 / PACK_M, chunks, 0, 0),
                         m->in, rows / PACK_M, odd),
           e);
    return 0;
}

/*
 * Outputs of one block for rows r0 .. of a.rows; source: which row of x each is. wait: x comes
 * from the kernel in front. Behind the sums is room for 8 rows of x, if NT is 1.
 */
template <int KIND, int NT, int MT>
static __device__ __forceinline__ void
block_product(const struct packed_job &a, int block, int r0, int r1, const int *source,
              bool wait, float *shared)
{
    constexpr int COLS = NT * PACK_N, SIZE = MT * PACK_M * COLS;

    const int lane = threadIdx.x % WARP, groups = PACK_WARPS / a.split;
    const int o0 = block * groups * MT * PACK_M, end = min(r1, r0 + COLS);
    uint16_t *staged = (uint16_t *)(shared + PACK_WARPS * SIZE);
    const uint16_t *row[NT];

#pragma unroll
    for (int n = 0; n < NT; n++) {
        const int r = r0 + n * PACK_N + lane / 4;

        row[n] = NULL;
        if (r < r1 && NT == 1)
            row[n] = staged + packed_x(r - r0, a.in) + lane % 4 * 8;
        else if (r < r1)
            row[n] = a.x + row_start(source != NULL ? source[r] : r, a.x_stride) +
                     lane % 4 * 8;
    }
    block_tiles<KIND, NT, MT>(
        a, block, row,
        [&] {
            if (wait)
                pdl_wait();
            if (NT == 1)
                stage_x<KIND>(a, r0, end, source, staged);
        },
        shared);
    for (int i = threadIdx.x; i < (end - r0) * groups * MT * PACK_M; i += blockDim.x) {
        const int r = piece_row(i, groups * MT * PACK_M);
        const int at = piece_at(i, groups * MT * PACK_M, 1);
        const int o = o0 + at;
        const float v = shared[packed_sum(at / (MT * PACK_M) * a.split, MT, COLS, 0,
                                          at % (MT * PACK_M), r)];

        if (o >= a.out)
            continue;
        if (a.y_f32)
            ((float *)a.y)[row_start(r0 + r, a.y_stride) + o] = v;
        else
            ((uint16_t *)a.y)[row_start(r0 + r, a.y_stride) + o] = f32_to_bf16(v);
    }
    __syncthreads(); /* shared is free again */
}

template <int NT, int MT>
static __device__ __forceinline__ void
any_kind(const struct packed_job &a, int block, int r0, int r1, const int *source,
         bool wait, float *shared)
{
    switch (a.kind) {
    case MATRIX_FP4:
        block_product<MATRIX_FP4, NT, MT>(a, block, r0, r1, source, wait, shared);
        break;
    case MATRIX_FP8:
        block_product<MATRIX_FP8, NT, MT>(a, block, r0, r1, source, wait, shared);
        break;
    default: block_product<MATRIX_BF16, NT, MT>(a, block, r0, r1, source, wait, shared);
    }
}

/* Blocks on a multiprocessor that registers are kept free for. */
static constexpr int
blocks_wanted(int kind, int nt)
{
    return nt > 2 ? 1 : nt > 1 || kind == MATRIX_FP8 ? 2 : 3;
}

/* Grid: blocks of all jobs, groups of 8 NT rows. ONLY: the kind of all jobs, or ANY_KIND. */
template <int ONLY, int NT, int MT>
static __global__ void __launch_bounds__(THREADS, blocks_wanted(ONLY, NT))
packed_kernel(const __grid_constant__ struct packed_jobs all, int n)
{
    LAUNCH_SHARED(16, float, shared);
    const int r0 = blockIdx.y * NT * PACK_N;
    int i = 0;

    pdl_go();
    while (i + 1 < n && (int)blockIdx.x >= all.first[i + 1])
        i++;
    if (r0 >= all.j[i].rows) {
        pdl_wait();
        return;
    }
    if constexpr (ONLY != ANY_KIND)
        block_product<ONLY, NT, MT>(all.j[i], blockIdx.x - all.first[i], r0, all.j[i].rows,
                                    NULL, true, shared);
    else
        any_kind<NT, MT>(all.j[i], blockIdx.x - all.first[i], r0, all.j[i].rows, NULL, true,
                         shared);
}

/*
 * Grid: blocks of the shared one, which wait for no choice, then those of each active expert;
 * matrices.
 */
template <int KIND, int SHARED, int NT, int MT>
static __global__ void __launch_bounds__(THREADS, NT > 1 ? 2 : blocks_wanted(KIND, NT))
packed_expert_kernel(const __grid_constant__ struct expert_args a, int split, int split_one,
                     int blocks, int blocks_one)
{
    LAUNCH_SHARED(16, float, shared);

    pdl_go();
    if (SHARED >= 0 && (int)blockIdx.x < blocks_one) {
        const struct packed_job j = {(const uint4 *)a.one.packed,
                                     a.one.scale,
                                     a.x_one,
                                     a.y_one,
                                     SHARED,
                                     a.one.out,
                                     a.one.in,
                                     a.rows_one,
                                     a.one.in,
                                     a.one.out,
                                     0,
                                     split_one,
                                     a.quant};

        for (int r = 0; r < a.rows_one; r += NT * PACK_N)
            block_product < SHARED<0 ? MATRIX_FP8 : SHARED, NT, MT>(
                                j, blockIdx.x, r, a.rows_one, NULL, r == 0, shared);
        return;
    }
    const int at = blockIdx.x - blocks_one, active = at / blocks, block = at % blocks;

    pdl_wait();
    if (active >= a.active[0])
        return;
    const int x = a.active[1 + active], r1 = a.first[x + 1];
    const struct matrix *m = &a.w[blockIdx.y][x];
    const struct packed_job j = {(const uint4 *)m->packed,
                                 m->scale,
                                 a.x,
                                 a.y[blockIdx.y],
                                 KIND,
                                 m->out,
                                 m->in,
                                 r1,
                                 m->in,
                                 m->out,
                                 0,
                                 split,
                                 a.quant};

    for (int r = a.first[x]; r < r1; r += NT * PACK_N)
        block_product<KIND, NT, MT>(j, block, r, r1, a.source, false, shared);
}

static int
blocks_of(int out, int split, int mt)
{
    return ceil_div(out, PACK_WARPS / split * mt * PACK_M);
}

/* Dynamic shared memory: sums, and for few rows the rows themselves. */
static size_t
shared_for(int nt, int mt, int rows, int in)
{
    const size_t staged = (size_t)packed_x(rows < PACK_N ? rows : PACK_N, in) * 2;

    return packed_shared(nt, mt) + (nt == 1 ? staged : 0);
}

template <int ONLY, int NT, int MT>
static int
launch(struct cuda_rank *rk, struct packed_jobs *all, int n, int rows, struct err *e)
{
    const dim3 grid_rows(1, ceil_div(rows, NT * PACK_N));
    int blocks = 0, in = 0;

    for (int i = 0; i < n; i++) {
        all->first[i] = blocks;
        blocks += blocks_of(all->j[i].out, all->j[i].split, MT);
        in = all->j[i].in > in ? all->j[i].in : in;
    }
    all->first[n] = blocks;
    const size_t shared = shared_for(NT, MT, rows, in);

    if (shared > rk->shared_bytes)
        return err_set(e, ERR_INTERNAL, 0, "linear: %d inputs", in);
    if (shared > 48 * 1024)
        SHARED_TRY((packed_kernel<ONLY, NT, MT>), shared, e);
    CU_TRY(launch_pdl(rk, packed_kernel<ONLY, NT, MT>, dim3(blocks, grid_rows.y), THREADS,
                      shared, *all, n),
           e);
    return 0;
}

int
packed_linear_cuda(struct cuda_rank *rk, const struct linear_args *a, int n, struct err *e)
{
    struct packed_jobs all;
    int rows = 0, only_fp8 = 1;

    if (n > MAX_JOBS)
        return err_set(e, ERR_INTERNAL, 0, "linear: %d jobs", n);
    for (int i = 0; i < n; i++) {
        const struct matrix *m = a[i].w;

        if (a[i].x_stride % 8 != 0 || !is_aligned(a[i].x, 16))
            return err_set(e, ERR_INTERNAL, 0, "linear: rows %d apart", a[i].x_stride);
        all.j[i] = {(const uint4 *)m->packed,
                    m->scale,
                    a[i].x,
                    a[i].y,
                    m->kind,
                    m->out,
                    m->in,
                    a[i].rows,
                    a[i].x_stride,
                    a[i].y_stride,
                    a[i].y_f32,
                    pack_split(m->kind, m->out, m->in),
                    a[i].quant};
        rows = a[i].rows > rows ? a[i].rows : rows;
        only_fp8 &= m->kind == MATRIX_FP8;
    }
    if (rows == 0)
        return 0;
    if (rows <= 8 && only_fp8)
        return launch<MATRIX_FP8, 1, 1>(rk, &all, n, rows, e);
    if (rows <= 8)
        return launch<ANY_KIND, 1, 1>(rk, &all, n, rows, e);
    if (rows <= 16)
        return launch<ANY_KIND, 2, 2>(rk, &all, n, rows, e);
    if (rows <= 32)
        return launch<ANY_KIND, 4, 2>(rk, &all, n, rows, e);
    return launch<ANY_KIND, 8, 2>(rk, &all, n, rows, e);
}

template <int KIND, int SHARED, int NT, int MT>
static int
launch_experts(struct cuda_rank *rk, const struct expert_args *a, struct err *e)
{
    const int split = pack_split(a->shape.kind, a->shape.out, a->shape.in);
    const int split_one = SHARED >= 0 ? pack_split(a->one.kind, a->one.out, a->one.in)
                                      : split;
    const int routed = blocks_of(a->shape.out, split, MT);
    const int one = SHARED >= 0 ? blocks_of(a->one.out, split_one, MT) : 0;
    const int in = SHARED >= 0 && a->one.in > a->shape.in ? a->one.in : a->shape.in;
    const dim3 grid(one + routed * a->max_active, a->n_mats);
    const size_t shared = shared_for(NT, MT, a->one_row ? 1 : PACK_N, in);

    if (shared > rk->shared_bytes)
        return err_set(e, ERR_INTERNAL, 0, "experts: %d inputs", in);
    if (shared > 48 * 1024)
        SHARED_TRY((packed_expert_kernel<KIND, SHARED, NT, MT>), shared, e);
    CU_TRY(launch_pdl(rk, packed_expert_kernel<KIND, SHARED, NT, MT>, grid, THREADS, shared,
                      *a, split, split_one, routed, one),
           e);
    return 0;
}

template <int KIND, int SHARED>
static int
few_or_many(struct cuda_rank *rk, const struct expert_args *a, struct err *e)
{
    return a->many ? launch_experts<KIND, SHARED, 2, 2>(rk, a, e)
                   : launch_experts<KIND, SHARED, 1, 1>(rk, a, e);
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
