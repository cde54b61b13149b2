/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Matrix products, plain: a warp (or, for matrices of few rows, up to 8 warps) makes one output
 * for up to 8 rows of x, so a weight is loaded and widened once for 8 rows.
 *
 * The order of a sum is fixed by the matrix's shape: a lane takes 16 bytes of weights at a time,
 * adds their products up in one or four interleaved sums, scales that part (all scales are powers of two
 * and a part never spans two), adds it to its total; lanes and warps add up along a fixed tree.
 * Rows are independent, so bits depend on one row of x and one of W alone.
 *
 * What can be packed goes to packed.cu; this does the rest, and is what that is compared with.
 */
#include "base/err.h"
#include "gpu/cuda/device.cuh"
#include "gpu/cuda/kernels.h"
#include "gpu/index/linear.h"
#include "gpu/ops/linear.h"

enum {
    WARPS = LINEAR_WARPS,
    ROWS = 8,      /* of x at a time */
    MAX_JOBS = 24, /* in one launch: they are its arguments */
};

struct job {
    const void *w;
    const uint8_t *scale;
    const uint16_t *x;
    void *y;
    int kind, out, in, rows, x_stride, y_stride, y_f32, split;
};

struct jobs {
    struct job j[MAX_JOBS];
};

/* Elements in 16 bytes. */
static __host__ __device__ constexpr int
elements(int kind)
{
    return kind == MATRIX_F32 ? 4 : kind == MATRIX_BF16 ? 8 : kind == MATRIX_FP8 ? 16 : 32;
}

/* Sums that they go to in turn, so that a long chain of additions does not wait for each of
 * them; where chunks are short that costs more than it gives. */
static __host__ __device__ constexpr int
sums(int kind)
{
    return kind == MATRIX_FP8 || kind == MATRIX_FP4 ? 4 : 1;
}

static int
split_of(const struct matrix *m)
{
    return linear_split(m->out, m->in / elements(m->kind));
}

/* 16 bytes of weights as f32, without their scale. */
template <int KIND>
static __device__ __forceinline__ void
widen(uint4 raw, float *v)
{
    const uint32_t u[4] = {raw.x, raw.y, raw.z, raw.w};

#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (KIND == MATRIX_F32) {
            v[i] = __uint_as_float(u[i]);
        } else if (KIND == MATRIX_BF16) {
            bf16_pair(u[i], v + 2 * i);
        } else if (KIND == MATRIX_FP8) {
            const float2 lo = e4m3_pair((uint16_t)u[i]);
            const float2 hi = e4m3_pair((uint16_t)(u[i] >> 16));

            v[4 * i] = lo.x;
            v[4 * i + 1] = lo.y;
            v[4 * i + 2] = hi.x;
            v[4 * i + 3] = hi.y;
        } else {
            e2m1_quad(u[i], v + 8 * i);
            e2m1_quad(u[i] >> 16, v + 8 * i + 4);
        }
    }
}

/* The part of one row: element k goes to sum k mod SUMS. */
template <int N, int SUMS>
static __device__ __forceinline__ float
part(const uint16_t *x, const float *w)
{
    float sum[SUMS] = {0}, v[8];

    if constexpr (N == 4) {
        const uint2 raw = *(const uint2 *)x;

        bf16_pair(raw.x, v);
        bf16_pair(raw.y, v + 2);
        for (int k = 0; k < 4; k++)
            sum[0] = fmaf(v[k], w[k], sum[0]);
    } else {
#pragma unroll
        for (int i = 0; i < N; i += 8) {
            const uint4 raw = *(const uint4 *)(x + i);

            bf16_pair(raw.x, v);
            bf16_pair(raw.y, v + 2);
            bf16_pair(raw.z, v + 4);
            bf16_pair(raw.w, v + 6);
#pragma unroll
            for (int k = 0; k < 8; k++)
                sum[k % SUMS] = fmaf(v[k], w[i + k], sum[k % SUMS]);
        }
    }
    if constexpr (SUMS == 1)
        return sum[0];
    else
        return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* This thread's share of output o for R rows: chunks t, t + step, ... of the input. */
template <int KIND, int R>
static __device__ __forceinline__ void
dot(const struct job &a, int o, const uint16_t *const *x, int t, int step, float *acc)
{
    constexpr int N = elements(KIND);

    const int bits = KIND == MATRIX_F32    ? 32
                     : KIND == MATRIX_BF16 ? 16
                     : KIND == MATRIX_FP8  ? 8
                                           : 4;
    const uint8_t *w = (const uint8_t *)a.w + linear_weight(o, a.in, bits, 0);
    const uint8_t *scale = a.scale;

    if (KIND == MATRIX_FP8)
        scale += linear_fp8_scales(o, a.in);
    if (KIND == MATRIX_FP4)
        scale += linear_fp4_scales(o, a.in);
#pragma unroll
    for (int r = 0; r < R; r++)
        acc[r] = 0.0f;
#pragma unroll 4
    for (int k = t * N; k < a.in; k += step * N) {
        const uint4 raw = __ldg((const uint4 *)(w + linear_weight(0, a.in, bits, k)));
        float v[N], s = 1.0f;

        if (KIND == MATRIX_FP8)
            s = e8m0_to_f32(__ldg(scale + k / FP8_BLOCK));
        if (KIND == MATRIX_FP4)
            s = e8m0_to_f32(__ldg(scale + k / FP4_BLOCK));
        widen<KIND>(raw, v);
#pragma unroll
        for (int r = 0; r < R; r++)
            acc[r] = fmaf(part<N, sums(KIND)>(x[r] + k, v), s, acc[r]);
    }
}

/* The block's outputs for rows r0 .. r0 + R - 1 of a.x, or of the rows that source names. */
template <int KIND, int R>
static __device__ __forceinline__ void
block_outputs(const struct job &a, int tile, int r0, int r1, const int *source)
{
    __shared__ float shared[WARPS][R];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int o = linear_output(tile, warp, a.split);
    const int t = linear_chunk(warp, lane, a.split), step = linear_step(a.split);
    const uint16_t *x[R];
    float acc[R] = {0};

    if (o < a.out) {
#pragma unroll
        for (int r = 0; r < R; r++) {
            const int row = r0 + r < r1 ? r0 + r : r1 - 1;

            x[r] = a.x + row_start(source != NULL ? source[row] : row, a.x_stride);
        }
        dot<KIND, R>(a, o, x, t, step, acc);
#pragma unroll
        for (int r = 0; r < R; r++)
            acc[r] = warp_sum(acc[r]);
    }
    if (a.split > 1) {
        __syncthreads(); /* the rows before have been read */
        if (lane == 0)
#pragma unroll
            for (int r = 0; r < R; r++)
                shared[warp][r] = acc[r];
        __syncthreads();
        if (warp % a.split > 0)
            return;
#pragma unroll
        for (int r = 0; r < R; r++)
            for (int w = 1; w < a.split; w++)
                acc[r] += shared[warp + w][r];
    }
    if (lane > 0 || o >= a.out)
        return;
#pragma unroll
    for (int r = 0; r < R; r++) {
        const size_t at = row_start(r0 + r, a.y_stride) + o;

        if (r0 + r >= r1)
            break;
        if (a.y_f32)
            ((float *)a.y)[at] = acc[r];
        else
            ((uint16_t *)a.y)[at] = f32_to_bf16(acc[r]);
    }
}

template <int R>
static __device__ __forceinline__ void
any_kind(const struct job &a, int tile, int r0, int r1, const int *source)
{
    switch (a.kind) {
    case MATRIX_BF16: block_outputs<MATRIX_BF16, R>(a, tile, r0, r1, source); break;
    case MATRIX_F32: block_outputs<MATRIX_F32, R>(a, tile, r0, r1, source); break;
    case MATRIX_FP8: block_outputs<MATRIX_FP8, R>(a, tile, r0, r1, source); break;
    case MATRIX_FP4: block_outputs<MATRIX_FP4, R>(a, tile, r0, r1, source); break;
    }
}

/* Grid: tiles of outputs, R rows, jobs. */
template <int R>
static __global__ void __launch_bounds__(WARPS *WARP, R == 1 ? 5 : 2)
linear_kernel(const __grid_constant__ struct jobs all)
{
    const struct job &a = all.j[blockIdx.z];
    const int r0 = blockIdx.y * R;

    if ((int)blockIdx.x < linear_tiles(a.out, a.split) && r0 < a.rows)
        any_kind<R>(a, blockIdx.x, r0, a.rows, NULL);
}

static int
to_job(const struct linear_args *a, struct job *j, struct err *e)
{
    const struct matrix *m = a->w;

    if (m->in % 32 != 0 || a->x_stride % 8 != 0 || !is_aligned(a->x, 16) ||
        !is_aligned(m->w, 16))
        return err_set(e, ERR_INTERNAL, 0, "linear: %d inputs, rows %d apart", m->in,
                       a->x_stride);
    *j = (struct job){m->w,  m->scale, a->x,        a->y,        m->kind,  m->out,
                      m->in, a->rows,  a->x_stride, a->y_stride, a->y_f32, split_of(m)};
    return 0;
}

static int
launch(struct cuda_rank *rk, const struct jobs *all, int n, struct err *e)
{
    int width = 0, rows = 0;

    for (int i = 0; i < n; i++) {
        const int t = linear_tiles(all->j[i].out, all->j[i].split);

        width = t > width ? t : width;
        rows = all->j[i].rows > rows ? all->j[i].rows : rows;
    }
    if (rows == 0)
        return 0;
    if (rows == 1)
        CU_TRY(launch_kernel(rk->stream, linear_kernel<1>, dim3(width, 1, n), WARPS * WARP,
                             0, *all),
               e);
    else
        CU_TRY(launch_kernel(rk->stream, linear_kernel<ROWS>,
                             dim3(width, ceil_div(rows, ROWS), n), WARPS * WARP, 0, *all),
               e);
    return 0;
}

/* Neighbours that are packed alike go out together. */
static int
linear_plain(struct cuda_rank *rk, const struct linear_args *a, int n, struct err *e)
{
    struct jobs all;

    for (int i = 0; i < n; i += MAX_JOBS) {
        const int m = n - i < MAX_JOBS ? n - i : MAX_JOBS;

        for (int k = 0; k < m; k++)
            if (to_job(&a[i + k], &all.j[k], e) == -1)
                return -1;
        if (launch(rk, &all, m, e) == -1)
            return -1;
    }
    return 0;
}

int
linear_cuda(struct cuda_rank *rk, const struct linear_args *a, int n, struct err *e)
{
    for (int i = 0, m; i < n; i += m) {
        const bool packed = a[i].w->packed != NULL;

        for (m = 1; i + m < n && (a[i + m].w->packed != NULL) == packed && m < MAX_JOBS;)
            m++;
        if ((packed ? packed_linear_cuda(rk, a + i, m, e)
                    : linear_plain(rk, a + i, m, e)) == -1)
            return -1;
    }
    return 0;
}

/* Grid: tiles of outputs, active experts, matrices. */
template <int R>
static __global__ void __launch_bounds__(WARPS *WARP, R == 1 ? 5 : 2)
expert_kernel(const __grid_constant__ struct expert_args a, int split)
{
    if ((int)blockIdx.y >= a.active[0])
        return;
    const int x = a.active[1 + blockIdx.y], r0 = a.first[x], r1 = a.first[x + 1];
    const struct matrix *m = &a.w[blockIdx.z][x];
    const struct job j = {m->w,  m->scale, a.x,   a.y[blockIdx.z], m->kind, m->out,
                          m->in, r1,       m->in, m->out,          0,       split};

    for (int r = r0; r < r1; r += R)
        any_kind<R>(j, blockIdx.x, r, r1, a.source);
}

int
expert_linear_cuda(struct cuda_rank *rk, const struct expert_args *a, struct err *e)
{
    const int split = split_of(&a->shape);
    const dim3 grid(linear_tiles(a->shape.out, split), a->max_active, a->n_mats);

    if (a->shape.in % 32 != 0 || a->n_mats < 1 || a->n_mats > 2)
        return err_set(e, ERR_INTERNAL, 0, "experts: %d inputs", a->shape.in);
    if (a->max_active == 0)
        return 0;
    if (a->shape.packed != NULL)
        return packed_expert_cuda(rk, a, e);
    if (a->one_row)
        CU_TRY(
            launch_kernel(rk->stream, expert_kernel<1>, grid, WARPS * WARP, 0, *a, split),
            e);
    else
        CU_TRY(launch_kernel(rk->stream, expert_kernel<ROWS>, grid, WARPS * WARP, 0, *a,
                             split),
               e);
    return 0;
}
