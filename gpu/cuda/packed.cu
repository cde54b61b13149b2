/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Matrix products on tensor cores, for one row as for hundreds: packed.cuh has the layout and the
 * order of sums, this file the kernels around it. Weights are read once for up to 64 rows. The
 * plain twin is linear.cu, which also does what cannot be packed.
 */
#include "base/err.h"
#include "gpu/cuda/kernels.h"
#include "gpu/cuda/packed_inputs.cuh"
#include "gpu/cuda/packed_ring.cuh"

enum { MAX_JOBS = 24, ANY_KIND = -1 };

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
            const int o = packed_output(tile, lane, n);
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

template <int NT, int MT, typename X>
static __device__ __forceinline__ void
any_kind(const struct packed_job &a, int block, int r0, int r1, const X &x, float *shared)
{
    switch (a.kind) {
    case MATRIX_FP4: block_product<MATRIX_FP4, NT, MT>(a, block, r0, r1, x, shared); break;
    case MATRIX_FP8: block_product<MATRIX_FP8, NT, MT>(a, block, r0, r1, x, shared); break;
    default: block_product<MATRIX_BF16, NT, MT>(a, block, r0, r1, x, shared);
    }
}

/* Grid: sides, which begin first, and blocks of all jobs; groups of 8 NT rows. ONLY: the kind of
 * all jobs, or ANY_KIND. */
template <int ONLY, int NT, int MT, typename X>
static __global__ void __launch_bounds__(PACK_THREADS, blocks_wanted(NT))
packed_kernel(const __grid_constant__ struct packed_jobs all, int n,
              const __grid_constant__ X x)
{
    LAUNCH_SHARED(16, float, shared);
    const int r0 = blockIdx.y * NT * PACK_N;
    const int block = blockIdx.x - (X::SIDES ? gridDim.x - all.first[n] : 0);
    int i = 0;

    pdl_go();
    if (X::SIDES && block < 0) {
        x.side(blockIdx.x, shared);
        return;
    }
    while (i + 1 < n && block >= all.first[i + 1])
        i++;
    if (r0 >= all.j[i].rows) {
        pdl_wait();
        return;
    }
    if constexpr (ONLY != ANY_KIND)
        block_product<ONLY, NT, MT>(all.j[i], block - all.first[i], r0, all.j[i].rows, x,
                                    shared);
    else
        any_kind<NT, MT>(all.j[i], block - all.first[i], r0, all.j[i].rows, x, shared);
}

/* sides: how many blocks of X's there are. */
template <int ONLY, int NT, int MT, typename X>
static int
launch(struct cuda_rank *rk, struct packed_jobs *all, int n, int rows, int sides,
       const X &x, struct err *e)
{
    int blocks = 0, in = 0;

    for (int i = 0; i < n; i++) {
        all->first[i] = blocks;
        blocks += blocks_of(all->j[i].out, all->j[i].split, MT);
        in = all->j[i].in > in ? all->j[i].in : in;
    }
    all->first[n] = blocks;
    const dim3 grid(blocks + sides, ceil_div(rows, NT * PACK_N));
    const size_t shared = shared_for(NT, MT, rows, in);

    if (shared > rk->shared_bytes)
        return err_set(e, ERR_INTERNAL, 0, "linear: %d inputs", in);
    if (shared > 48 * 1024)
        SHARED_TRY((packed_kernel<ONLY, NT, MT, X>), shared, e);
    CU_TRY(launch_pdl(rk, packed_kernel<ONLY, NT, MT, X>, grid, PACK_THREADS, shared, *all,
                      n, x),
           e);
    return 0;
}

/* The same for more rows: a block on each multiprocessor, its rows a group of their own. */
template <int NT, int MT>
static __global__ void __launch_bounds__(PACK_THREADS, 1)
packed_ring_kernel(const __grid_constant__ struct packed_jobs all, int n)
{
    LAUNCH_SHARED(128, uint8_t, ring);
    const int r0 = blockIdx.y * NT * PACK_N;
    int i = 0;

    pdl_go();
    while (i + 1 < n && (int)blockIdx.x >= all.first[i + 1])
        i++;
    const struct packed_job &j = all.j[i];
    const int block = blockIdx.x - all.first[i];

    if (r0 >= j.rows) {
        pdl_wait();
        return;
    }
    switch (j.kind) {
    case MATRIX_FP4:
        ring_product<MATRIX_FP4, NT, MT>(j, block, r0, j.rows, NULL, true, ring);
        break;
    case MATRIX_FP8:
        ring_product<MATRIX_FP8, NT, MT>(j, block, r0, j.rows, NULL, true, ring);
        break;
    default: ring_product<MATRIX_BF16, NT, MT>(j, block, r0, j.rows, NULL, true, ring);
    }
}

static int
count_blocks(struct packed_jobs *all, int n, int mt)
{
    int blocks = 0;

    for (int i = 0; i < n; i++) {
        all->first[i] = blocks;
        blocks += blocks_of(all->j[i].out, 1, mt);
    }
    all->first[n] = blocks;
    return blocks;
}

template <int NT, int MT>
static int
launch_ring(struct cuda_rank *rk, struct packed_jobs *all, int n, int rows, struct err *e)
{
    constexpr int shared = ring_bytes<NT, MT>();
    const dim3 grid(count_blocks(all, n, MT), ceil_div(rows, NT * PACK_N));

    SHARED_TRY((packed_ring_kernel<NT, MT>), shared, e);
    CU_TRY(launch_pdl(rk, packed_ring_kernel<NT, MT>, grid, PACK_THREADS, shared, *all, n),
           e);
    return 0;
}

/* What the kernel is told of the products; *rows: the most, *only_fp8: all matrices are. */
static int
jobs_of(const struct linear_args *a, int n, struct packed_jobs *all, int *rows,
        bool *only_fp8, struct err *e)
{
    *rows = 0;
    *only_fp8 = true;
    if (n > MAX_JOBS)
        return err_set(e, ERR_INTERNAL, 0, "linear: %d jobs", n);
    for (int i = 0; i < n; i++) {
        const struct matrix *m = a[i].w;

        if (a[i].x_stride % 8 != 0 || !is_aligned(a[i].x, 16))
            return err_set(e, ERR_INTERNAL, 0, "linear: rows %d apart", a[i].x_stride);
        all->j[i] = {(const uint4 *)m->packed,
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
                     pack_split(m->kind, m->in),
                     a[i].quant};
        *rows = a[i].rows > *rows ? a[i].rows : *rows;
        *only_fp8 &= m->kind == MATRIX_FP8;
    }
    return 0;
}

int
packed_linear_cuda(struct cuda_rank *rk, const struct linear_args *a, int n, struct err *e)
{
    const struct rows_in_order x = {};
    struct packed_jobs all;
    int rows;
    bool only_fp8;

    if (jobs_of(a, n, &all, &rows, &only_fp8, e) == -1)
        return -1;
    if (rows == 0)
        return 0;
    if (rows <= 8 && only_fp8)
        return launch<MATRIX_FP8, 1, 1>(rk, &all, n, rows, 0, x, e);
    if (rows <= 8)
        return launch<ANY_KIND, 1, 1>(rk, &all, n, rows, 0, x, e);
    if (rows <= 16)
        return launch<ANY_KIND, 2, 2>(rk, &all, n, rows, 0, x, e);
    if (rows <= 32)
        return launch<ANY_KIND, 4, 2>(rk, &all, n, rows, 0, x, e);
    if (rows <= 128)
        return launch<ANY_KIND, 8, 2>(rk, &all, n, rows, 0, x, e);
    /* in half as many rows a block takes more than half as long: weights are unpacked for fewer */
    const int blocks = count_blocks(&all, n, 2), sms = rk->sms;
    const int waves = ceil_div(blocks * ceil_div(rows, 16 * PACK_N), sms);
    const int halves = ceil_div(blocks * ceil_div(rows, 8 * PACK_N), sms);

    return waves * 10 <= halves * 6 ? launch_ring<16, 2>(rk, &all, n, rows, e)
                                    : launch_ring<8, 2>(rk, &all, n, rows, e);
}

bool
packed_inputs_can(const struct linear_args *a, int n, const struct inputs_args *in)
{
    for (int i = 0; i < n; i++)
        if (a[i].w->packed == NULL || a[i].w->in != in->q_dim || a[i].rows > PACK_N)
            return false;
    return in->q_dim <= NORM_CHUNKS * ROW_CHUNK && inputs_can(in, FEW_CHUNKS) &&
           inputs_shared(in) <= packed_shared(1, 1);
}

int
packed_inputs_cuda(struct cuda_rank *rk, const struct linear_args *a, int n,
                   const struct inputs_args *in, struct err *e)
{
    const struct rows_normed x = {*in, 1.0 / in->q_dim, inputs_parts(in)};
    struct packed_jobs all;
    int rows;
    bool only_fp8;

    if (!packed_inputs_can(a, n, in))
        return err_set(e, ERR_INTERNAL, 0, "inputs: rows of %d", in->q_dim);
    if (jobs_of(a, n, &all, &rows, &only_fp8, e) == -1)
        return -1;
    if (rows == 0)
        return 0;
    return only_fp8 ? launch<MATRIX_FP8, 1, 1>(rk, &all, n, rows, rows * x.parts, x, e)
                    : launch<ANY_KIND, 1, 1>(rk, &all, n, rows, rows * x.parts, x, e);
}
