/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rounding of activations to FP8, of key rows to FP8, of the indexer's vectors to FP4 (spec
 * 3.2, 3.3, 3.6). All of it is exact arithmetic but for the roundings that the formulas name,
 * so the bits are those of the C twins. A group that shares a scale belongs to one warp.
 */
#include "base/err.h"
#include "gpu/cuda/device.cuh"
#include "gpu/cuda/kernels.h"
#include "gpu/index/attention.h"
#include "gpu/index/indexer.h"
#include "gpu/index/rows.h"
#include "gpu/ops/quant.h"

enum { WARPS = 8, MAX_INDEX_DIM = 1024 };

static __device__ __forceinline__ float
clamp(float x, float limit)
{
    return x < -limit ? -limit : x > limit ? limit : x;
}

static __global__ void __launch_bounds__(WARPS *WARP)
act_quant_kernel(struct act_quant_args a, int groups)
{
    const int id = warp_item(blockIdx.x, WARPS, threadIdx.x), lane = threadIdx.x % WARP;
    const int row = group_row(id, groups), i0 = group_first(id, groups, a.group);
    const int i1 = group_end(i0, a.group, a.dim);
    float amax = 1e-4f, s;

    if (row >= a.rows)
        return;
    const uint16_t *x = a.x + row_start(row, a.stride);
    uint16_t *y = a.y + row_start(row, a.stride);

    for (int i = i0 + lane; i < i1; i += WARP)
        amax = fmaxf(amax, fabsf(bf16_to_f32(x[i])));
    s = e8m0_to_f32(f32_to_e8m0_up(warp_max(amax) * (1.0f / 448.0f)));
    for (int i = i0 + lane; i < i1; i += WARP)
        y[i] = fp8_round(bf16_to_f32(x[i]), s);
}

int
act_quant_cuda(struct cuda_rank *rk, const struct act_quant_args *a, struct err *e)
{
    if (a->dim <= 0 || a->group <= 0 || a->stride < a->dim)
        return err_set(e, ERR_INTERNAL, 0, "act_quant: %d in groups of %d", a->dim,
                       a->group);
    if (a->rows == 0)
        return 0;
    const int groups = ceil_div(a->dim, a->group);

    CU_TRY(launch_kernel(rk->stream, act_quant_kernel,
                         dim3(ceil_div(a->rows * groups, WARPS)), WARPS * WARP, 0, *a,
                         groups),
           e);
    return 0;
}

/* A block is a row. Butterflies pair up elements, so their order does not show. */
static __global__ void __launch_bounds__(MAX_INDEX_DIM / 2)
index_quant_kernel(struct index_quant_args a)
{
    __shared__ float h[MAX_INDEX_DIM];
    const int t = threadIdx.x, lane = t % WARP, groups = a.dim / FP4_GROUP;
    const uint16_t *x = a.x + row_start(blockIdx.x, a.dim);
    uint8_t *y = a.y + (size_t)blockIdx.x * fp4_row(a.dim);
    const float scale = 1.0f / sqrtf((float)a.dim);

    for (int i = t; i < a.dim; i += blockDim.x)
        h[i] = bf16_to_f32(x[i]);
    for (int stride = 1; stride < a.dim; stride *= 2) {
        __syncthreads(); /* the pairs of the stride before are written */
        for (int p = t; p < a.dim / 2; p += blockDim.x) {
            const int i = butterfly(p, stride);
            const float lo = h[i], hi = h[i + stride];

            h[i] = lo + hi;
            h[i + stride] = lo - hi;
        }
    }
    __syncthreads();
    for (int g = t / WARP; g < groups; g += blockDim.x / WARP) {
        const float v = bf16_round(h[g * FP4_GROUP + lane] * scale);
        const float amax = fmaxf(warp_max(fabsf(v)), 0x1.8p-124f); /* 6 * 2^-126 */
        const uint8_t ex = f32_to_e8m0_up(amax * (1.0f / 6.0f));
        const uint8_t code = f32_to_e2m1(clamp(v / e8m0_to_f32(ex), 6.0f));
        const uint8_t next = (uint8_t)__shfl_down_sync(~0u, code, 1);

        if (lane % 2 == 0)
            y[g * (FP4_GROUP / 2) + lane / 2] = code | next << 4;
        if (lane == 0)
            y[a.dim / 2 + g] = ex;
    }
}

int
index_quant_cuda(struct cuda_rank *rk, const struct index_quant_args *a, struct err *e)
{
    const int threads = a->dim / 2 < WARP ? WARP : a->dim / 2;

    if (a->dim < FP4_GROUP || a->dim > MAX_INDEX_DIM || (a->dim & (a->dim - 1)) != 0)
        return err_set(e, ERR_INTERNAL, 0, "index_quant: dim %d", a->dim);
    if (a->rows == 0)
        return 0;
    CU_TRY(launch_kernel(rk->stream, index_quant_kernel, dim3(a->rows), threads, 0, *a), e);
    return 0;
}

/* A block is a row, a warp a group of 64. */
static __global__ void __launch_bounds__(WARPS *WARP)
kv_pack_kernel(struct kv_pack_args a, int row_bytes)
{
    const int nope = a.fmt == KV_BF16 ? 0 : a.dim - a.rope_dim;
    const int groups = ceil_div(nope, KV_GROUP);
    const struct key_parts parts = key_parts_of(a.dim, nope);
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const uint16_t *x = a.x + row_start(blockIdx.x, a.dim);
    uint8_t *row = a.rows + row_start(blockIdx.x, row_bytes);

    for (int g = warp; g < groups; g += WARPS) {
        const int i1 = group_end(g * KV_GROUP, KV_GROUP, nope);
        float amax = 1e-4f;

        for (int i = g * KV_GROUP + lane; i < i1; i += WARP)
            amax = fmaxf(amax, fabsf(bf16_to_f32(x[i])));

        const uint8_t ex = f32_to_e8m0_up(warp_max(amax) * (1.0f / 448.0f));

        for (int i = g * KV_GROUP + lane; i < i1; i += WARP)
            row[i] = f32_to_e4m3(bf16_to_f32(x[i]) / e8m0_to_f32(ex));
        if (lane == 0)
            row[key_scale(parts, g * KV_GROUP)] = ex;
    }
    for (int i = nope + threadIdx.x; i < a.dim; i += blockDim.x) {
        row[key_wide(parts, i)] = (uint8_t)x[i];
        row[key_wide(parts, i) + 1] = (uint8_t)(x[i] >> 8);
    }
    for (int i = parts.scales + groups + threadIdx.x; i < row_bytes; i += blockDim.x)
        row[i] = 0;
}

int
kv_pack_cuda(struct cuda_rank *rk, const struct kv_pack_args *a, struct err *e)
{
    if (a->rope_dim > a->dim || a->rope_dim < 0)
        return err_set(e, ERR_INTERNAL, 0, "kv_pack: %d of %d", a->rope_dim, a->dim);
    if (a->n == 0)
        return 0;
    CU_TRY(launch_kernel(rk->stream, kv_pack_kernel, dim3(a->n), WARPS * WARP, 0, *a,
                         (int)a->row_bytes),
           e);
    return 0;
}
