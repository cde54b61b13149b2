/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Experts (spec 8) around their matrices: choice, order of rows by expert, non-linearity, sum.
 * The choice stays on the device; the host launches for the most experts that there can be.
 * Places are given in ascending order of row and results added in ascending order of expert, so
 * the company of other rows does not show.
 */
#include "base/err.h"
#include "gpu/cuda/device.cuh"
#include "gpu/cuda/kernels.h"
#include "gpu/ops/moe.h"

enum { MAX_EXPERTS = 1024, MAX_USED = 32, THREADS = 256 };

static __device__ __forceinline__ float
gate_score(float logit)
{
    return sqrtf(logit > 20.0f ? logit : (float)log1p((double)exp_f32(logit)));
}

/* The best not yet taken of score + bias: the larger, of equal ones the lower id; what is no
 * number comes last. The same answer in every lane. */
static __device__ int
best_left(const float *score, const float *bias, const bool *taken, int n)
{
    float best = -CUDART_INF_F;
    int id = n;

    for (int x = threadIdx.x; x < n; x += WARP) {
        float v = score[x] + bias[x];

        v = isnan(v) ? -CUDART_INF_F : v;
        if (!taken[x] && (id == n || v > best)) {
            best = v;
            id = x;
        }
    }
    for (int d = WARP / 2; d > 0; d /= 2) {
        const float v = __shfl_xor_sync(~0u, best, d);
        const int x = __shfl_xor_sync(~0u, id, d);

        if (x < n && (id == n || v > best || (v == best && x < id))) {
            best = v;
            id = x;
        }
    }
    return id;
}

/* One warp a row. */
static __global__ void __launch_bounds__(WARP)
choose_kernel(struct route_args a)
{
    __shared__ float score[MAX_EXPERTS];
    __shared__ bool taken[MAX_EXPERTS];
    __shared__ int chosen[MAX_USED];
    const int t = threadIdx.x;
    const size_t row = blockIdx.x;

    for (int x = t; x < a.n_experts; x += WARP) {
        score[x] = gate_score(a.gate[row * a.n_experts + x]);
        taken[x] = false;
    }
    __syncwarp();
    for (int i = 0; i < a.k; i++) {
        const int x = a.bias == NULL ? a.table[(size_t)a.token[row].token * a.k + i]
                                     : best_left(score, a.bias, taken, a.n_experts);

        if (t == 0) {
            int at = i; /* kept in ascending order */

            for (; at > 0 && chosen[at - 1] > x; at--)
                chosen[at] = chosen[at - 1];
            chosen[at] = x;
            taken[x] = true;
        }
        __syncwarp();
    }
    if (t == 0) {
        float sum = 0.0f;

        for (int i = 0; i < a.k; i++)
            sum += score[chosen[i]];
        for (int i = 0; i < a.k; i++) {
            a.chosen[row * a.k + i] = chosen[i];
            a.weight[row * a.k + i] = score[chosen[i]] / sum * a.scale;
        }
    }
}

/* One block: a thread is an expert and looks for its rows, in order, twice. */
static __global__ void __launch_bounds__(MAX_EXPERTS)
assign_kernel(struct route_args a)
{
    __shared__ int count[MAX_EXPERTS];
    const int x = threadIdx.x, n = a.rows * a.k;
    int at = 0;

    for (int i = 0; i < n && x < a.n_experts; i++)
        at += a.chosen[i] == x;
    count[x] = at;
    __syncthreads();
    if (x == 0) {
        int sum = 0, active = 0;

        for (int i = 0; i < a.n_experts; i++) {
            const int c = count[i];

            if (c > 0)
                a.active[1 + active++] = i;
            a.first[i] = count[i] = sum;
            sum += c;
        }
        a.first[a.n_experts] = sum;
        a.active[0] = active;
    }
    __syncthreads();
    if (at == 0)
        return;
    at = count[x];
    for (int i = 0; i < n; i++) {
        if (a.chosen[i] != x)
            continue;
        a.slot[i] = at;
        a.source[at] = i / a.k;
        a.slot_weight[at++] = a.weight[i];
    }
}

int
route_cuda(struct cuda_rank *rk, const struct route_args *a, struct err *e)
{
    if (a->n_experts > MAX_EXPERTS || a->k > MAX_USED)
        return err_set(e, ERR_INTERNAL, 0, "route: %d of %d experts", a->k, a->n_experts);
    if (a->rows == 0)
        return 0;
    choose_kernel<<<a->rows, WARP, 0, rk->stream>>>(*a);
    CU_TRY(cudaGetLastError(), e);
    assign_kernel<<<1, ceil_div(a->n_experts, WARP) * WARP, 0, rk->stream>>>(*a);
    CU_TRY(cudaGetLastError(), e);
    return 0;
}

static __global__ void __launch_bounds__(THREADS)
swiglu_kernel(struct swiglu_args a)
{
    const int c = blockIdx.x * THREADS + threadIdx.x;
    const size_t r = blockIdx.y, i = r * a.dim + c;

    if (c >= a.dim)
        return;
    const float w = a.weight != NULL ? a.weight[r] : 1.0f;
    float u = bf16_to_f32(a.up[i]), g = bf16_to_f32(a.gate[i]);

    u = u < -a.limit ? -a.limit : u > a.limit ? a.limit : u;
    g = g > a.limit ? a.limit : g;
    a.a[i] = f32_to_bf16(w * (g / (1.0f + exp_f32(-g)) * u));
}

int
swiglu_cuda(struct cuda_rank *rk, const struct swiglu_args *a, struct err *e)
{
    if (a->rows == 0)
        return 0;
    swiglu_kernel<<<dim3(ceil_div(a->dim, THREADS), a->rows), THREADS, 0, rk->stream>>>(*a);
    CU_TRY(cudaGetLastError(), e);
    return 0;
}

static __global__ void __launch_bounds__(THREADS)
combine_kernel(struct combine_args a)
{
    const int c = blockIdx.x * THREADS + threadIdx.x;
    const size_t r = blockIdx.y;
    float sum = 0.0f;

    if (c >= a.dim)
        return;
    for (int i = 0; i < a.k; i++)
        sum += bf16_to_f32(a.routed[(size_t)a.slot[r * a.k + i] * a.dim + c]);
    a.f[r * a.dim + c] = f32_to_bf16(sum + bf16_to_f32(a.shared[r * a.dim + c]));
}

int
combine_cuda(struct cuda_rank *rk, const struct combine_args *a, struct err *e)
{
    if (a->rows == 0)
        return 0;
    combine_kernel<<<dim3(ceil_div(a->dim, THREADS), a->rows), THREADS, 0, rk->stream>>>(
        *a);
    CU_TRY(cudaGetLastError(), e);
    return 0;
}
