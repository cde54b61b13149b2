/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hyper-connections (spec 4) around a sublayer. A block is a row: 32 KB at Flash's 4 streams of
 * 4096, read once for the mean square and once, from L2, for the mix. One warp does the Sinkhorn
 * iterations while its block waits: some 40 passes over hc^2 numbers in shared memory, each sum
 * in ascending order as in the C twin, so bits agree where exp does.
 */
#include "base/err.h"
#include "gpu/cuda/device.cuh"
#include "gpu/index/rows.h"
#include "gpu/ops/mhc.h"

enum { THREADS = 512, MAX_HC = 8 };

static __device__ float
sigmoid(float x)
{
    return 1.0f / (1.0f + exp_f32(-x));
}

/* c[i] /= sum of its line + eps: rows (step 1) or columns (step hc). One warp. */
static __device__ void
normalise(float *c, int hc, int step, float eps)
{
    const int lane = threadIdx.x % WARP;
    float v[2] = {0.0f, 0.0f};

    __syncwarp();
    for (int i = lane, k = 0; i < hc * hc; i += WARP, k++) {
        const int first = comb_line(i, hc, step);
        float sum = 0.0f;

        for (int j = 0; j < hc; j++)
            sum += c[first + j * step];
        v[k] = c[i] / (sum + eps);
    }
    __syncwarp(); /* everyone has read */
    for (int i = lane, k = 0; i < hc * hc; i += WARP, k++)
        c[i] = v[k];
}

static __device__ void
sinkhorn(float *c, int hc, int iters, float eps)
{
    const int lane = threadIdx.x % WARP;
    float v[2] = {0.0f, 0.0f};

    __syncwarp();
    for (int i = lane, k = 0; i < hc * hc; i += WARP, k++) {
        const float *row = c + comb_line(i, hc, 1);
        float top = row[0];

        for (int j = 1; j < hc; j++)
            top = fmaxf(top, row[j]);
        v[k] = exp_f32(c[i] - top);
    }
    __syncwarp();
    for (int i = lane, k = 0; i < hc * hc; i += WARP, k++)
        c[i] = v[k];
    __syncwarp();
    for (int i = lane, k = 0; i < hc * hc; i += WARP, k++) {
        float sum = 0.0f;

        for (int j = 0; j < hc; j++)
            sum += c[comb_line(i, hc, 1) + j];
        v[k] = c[i] / sum + eps;
    }
    __syncwarp();
    for (int i = lane, k = 0; i < hc * hc; i += WARP, k++)
        c[i] = v[k];
    normalise(c, hc, hc, eps);
    for (int i = 1; i < iters; i++) {
        normalise(c, hc, 1, eps);
        normalise(c, hc, hc, eps);
    }
    __syncwarp();
}

/* The first warp: coefficients of this row from m, as linear left it, times scale. */
static __device__ void
coefficients(const struct hc_pre_args *a, float scale, float *pre)
{
    __shared__ float comb[MAX_HC * MAX_HC];
    const int lane = threadIdx.x % WARP, hc = a->hc;
    const size_t row = blockIdx.x;
    const float *m = a->m + row_start(row, a->n_mix);

    if (lane < hc)
        pre[lane] = sigmoid(m[lane] * scale * a->scale[0] + a->base[lane]) + a->hc_eps;
    if (a->n_mix == hc)
        return;
    if (lane < hc)
        a->post[row_start(row, hc) + lane] =
            2.0f * sigmoid(m[mix_post(hc, lane)] * scale * a->scale[1] +
                           a->base[mix_post(hc, lane)]);
    for (int i = lane; i < hc * hc; i += WARP)
        comb[i] = m[mix_comb(hc, i)] * scale * a->scale[2] + a->base[mix_comb(hc, i)];
    sinkhorn(comb, hc, a->iters, a->hc_eps);
    for (int i = lane; i < hc * hc; i += WARP)
        a->comb[row_start(row_start(row, hc), hc) + i] = comb[i];
}

static __global__ void __launch_bounds__(THREADS)
hc_pre_kernel(struct hc_pre_args a)
{
    __shared__ float pre[MAX_HC];
    const int n = a.hc * a.dim;
    const uint16_t *x = a.x + row_start(blockIdx.x, n);
    uint16_t *y = a.y + row_start(blockIdx.x, a.dim);
    double ss = 0.0;
    float v[2];

    for (int i = threadIdx.x * 2; i < n; i += blockDim.x * 2) {
        bf16_pair(*(const uint32_t *)(x + i), v);
        ss += (double)v[0] * (double)v[0] + (double)v[1] * (double)v[1];
    }
    const float scale = 1.0f / sqrtf((float)(block_sum(ss) / n) + a.norm_eps);

    if (threadIdx.x < WARP)
        coefficients(&a, scale, pre);
    __syncthreads(); /* pre is there */
    for (int c = threadIdx.x; c < a.dim; c += blockDim.x) {
        float sum = 0.0f;

        for (int i = 0; i < a.hc; i++)
            sum += pre[i] * bf16_to_f32(x[stream_cell(i, a.dim, c)]);
        y[c] = f32_to_bf16(sum);
    }
}

int
hc_pre_cuda(struct cuda_rank *rk, const struct hc_pre_args *a, struct err *e)
{
    const int all = 2 * a->hc + a->hc * a->hc;

    if (a->hc < 1 || a->hc > MAX_HC || a->dim % 2 != 0 ||
        (a->n_mix != a->hc && (a->n_mix != all || a->post == NULL || a->comb == NULL)))
        return err_set(e, ERR_INTERNAL, 0, "hc_pre: %d streams of %d, %d", a->hc, a->dim,
                       a->n_mix);
    if (a->rows == 0)
        return 0;
    CU_TRY(launch_kernel(rk->stream, hc_pre_kernel, dim3(a->rows), THREADS, 0, *a), e);
    return 0;
}

static __global__ void __launch_bounds__(256)
hc_post_kernel(struct hc_post_args a)
{
    const size_t row = blockIdx.y;
    const int c = grid_item(blockIdx.x, blockDim.x, threadIdx.x);
    const uint16_t *x = a.x + row_start(row_start(row, a.hc), a.dim);
    uint16_t *out = a.out + row_start(row_start(row, a.hc), a.dim);
    const float *post = a.post + row_start(row, a.hc);
    const float *comb = a.comb + row_start(row_start(row, a.hc), a.hc);
    float old[MAX_HC];

    if (c >= a.dim)
        return;
    const float f = bf16_to_f32(a.f[row_start(row, a.dim) + c]);

#pragma unroll
    for (int i = 0; i < MAX_HC; i++)
        old[i] = i < a.hc ? bf16_to_f32(x[stream_cell(i, a.dim, c)]) : 0.0f;
    for (int j = 0; j < a.hc; j++) {
        float sum = 0.0f;

#pragma unroll
        for (int i = 0; i < MAX_HC; i++)
            if (i < a.hc)
                sum += comb[stream_cell(i, a.hc, j)] * old[i];
        out[stream_cell(j, a.dim, c)] = f32_to_bf16(post[j] * f + sum);
    }
}

int
hc_post_cuda(struct cuda_rank *rk, const struct hc_post_args *a, struct err *e)
{
    if (a->hc < 1 || a->hc > MAX_HC)
        return err_set(e, ERR_INTERNAL, 0, "hc_post: %d streams", a->hc);
    if (a->rows == 0)
        return 0;
    CU_TRY(launch_kernel(rk->stream, hc_post_kernel, dim3(ceil_div(a->dim, 256), a->rows),
                         256, 0, *a),
           e);
    return 0;
}
