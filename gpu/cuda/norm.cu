/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What goes element by element over rows: RMS norm, the query's head norm, rotation.
 *
 * A row is one block's (norm) or one warp's (head), 8 values a thread at a time, so it is read
 * once from memory and once from L2; the kernels are bound by bandwidth, and a cleverer split
 * has nothing to win. Sums of squares are in double: an H200 has the units for it, and the
 * C twin's reason (gpu/cpu/ref_norm.c) holds here too. Bits do not depend on other rows.
 */
#include "base/err.h"
#include "gpu/cuda/device.cuh"
#include "gpu/index/rows.h"
#include "gpu/ops/norm.h"

enum { VEC = 8, MAX_THREADS = 1024, MAX_DIM = 16384, HEADS_A_BLOCK = 8 };

static __device__ __forceinline__ void
load8(const uint16_t *x, float *v)
{
    const uint4 raw = *(const uint4 *)x;

    bf16_pair(raw.x, v);
    bf16_pair(raw.y, v + 2);
    bf16_pair(raw.z, v + 4);
    bf16_pair(raw.w, v + 6);
}

static __device__ __forceinline__ void
store8(uint16_t *x, const float *v)
{
    uint32_t u[4];

    for (int i = 0; i < 4; i++)
        u[i] = f32_to_bf16(v[2 * i]) | (uint32_t)f32_to_bf16(v[2 * i + 1]) << 16;
    *(uint4 *)x = make_uint4(u[0], u[1], u[2], u[3]);
}

static __global__ void __launch_bounds__(MAX_THREADS)
rmsnorm_kernel(struct rmsnorm_args a)
{
    const uint16_t *x = a.x + row_start(blockIdx.x, a.dim);
    uint16_t *out = a.out + row_start(blockIdx.x, a.dim);
    double ss = 0.0;
    float v[VEC];

    for (int i = threadIdx.x * VEC; i < a.dim; i += blockDim.x * VEC) {
        load8(x + i, v);
        for (int k = 0; k < VEC; k++)
            ss += (double)v[k] * (double)v[k];
    }
    const float scale = 1.0f / sqrtf((float)(block_sum(ss) / a.dim) + a.eps);

    for (int i = threadIdx.x * VEC; i < a.dim; i += blockDim.x * VEC) {
        load8(x + i, v);
        for (int k = 0; k < VEC; k++)
            v[k] = a.w[i + k] * (v[k] * scale);
        store8(out + i, v);
    }
}

int
rmsnorm_cuda(struct cuda_rank *rk, const struct rmsnorm_args *a, struct err *e)
{
    const int threads = row_threads(a->dim, VEC, MAX_THREADS);

    if (a->dim <= 0 || a->dim % VEC != 0 || a->dim > MAX_DIM)
        return err_set(e, ERR_INTERNAL, 0, "rmsnorm: dim %d", a->dim);
    if (a->rows == 0)
        return 0;
    CU_TRY(launch_kernel(rk->stream, rmsnorm_kernel, dim3(a->rows), threads, 0, *a), e);
    return 0;
}

static __global__ void __launch_bounds__(HEADS_A_BLOCK *WARP)
head_norm_kernel(struct head_norm_args a)
{
    const int row = warp_item(blockIdx.x, HEADS_A_BLOCK, threadIdx.x);
    const int lane = threadIdx.x % WARP;
    double sum = 0.0;
    float v[VEC], s;

    if (row >= a.rows)
        return;
    uint16_t *q = a.q + row_start(row, a.dim);

    for (int i = lane * VEC; i < a.dim; i += WARP * VEC) {
        load8(q + i, v);
        for (int k = 0; k < VEC; k++)
            sum += (double)bf16_round(v[k] * v[k]);
    }
    s = bf16_round((float)(warp_sum(sum) / a.dim));
    s = bf16_round(s + a.eps);
    s = bf16_round(1.0f / sqrtf(s));
    for (int i = lane * VEC; i < a.dim; i += WARP * VEC) {
        load8(q + i, v);
        for (int k = 0; k < VEC; k++)
            v[k] = v[k] * s;
        store8(q + i, v);
    }
}

int
head_norm_cuda(struct cuda_rank *rk, const struct head_norm_args *a, struct err *e)
{
    if (a->dim <= 0 || a->dim % VEC != 0)
        return err_set(e, ERR_INTERNAL, 0, "head_norm: dim %d", a->dim);
    if (a->rows == 0)
        return 0;
    CU_TRY(launch_kernel(rk->stream, head_norm_kernel,
                         dim3(ceil_div(a->rows, HEADS_A_BLOCK)), HEADS_A_BLOCK * WARP, 0,
                         *a),
           e);
    return 0;
}

/* A block is a row; its threads go over pairs of all heads. */
static __global__ void
rope_kernel(struct rope_args a)
{
    const int pairs = a.rope_dim / 2, nope = a.dim - a.rope_dim;
    const float *cs = a.cs + row_start(blockIdx.x, a.rope_dim);
    uint16_t *x = a.x + row_start(row_start(blockIdx.x, a.heads), a.dim) + nope;

    for (int i = threadIdx.x; i < a.heads * pairs; i += blockDim.x) {
        uint16_t *p = x + rope_pair(i, pairs, a.dim);
        const float re = bf16_to_f32(p[0]), im = bf16_to_f32(p[1]);
        const float c = cs[i % pairs * 2];
        const float s = a.inverse ? -cs[i % pairs * 2 + 1] : cs[i % pairs * 2 + 1];

        p[0] = f32_to_bf16(fmaf(re, c, -(im * s)));
        p[1] = f32_to_bf16(fmaf(re, s, im * c));
    }
}

int
rope_cuda(struct cuda_rank *rk, const struct rope_args *a, struct err *e)
{
    if (a->rope_dim % 2 != 0 || a->rope_dim > a->dim)
        return err_set(e, ERR_INTERNAL, 0, "rope: %d of %d", a->rope_dim, a->dim);
    if (a->rows == 0 || a->rope_dim == 0)
        return 0;
    CU_TRY(launch_kernel(rk->stream, rope_kernel, dim3(a->rows), 256, 0, *a), e);
    return 0;
}
