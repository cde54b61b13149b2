/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_CUDA_GATE_CUH
#define GPU_CUDA_GATE_CUH

/*
 * The choice of a row's experts (spec 8) by one warp, from scores in shared memory: the best k of
 * score + bias, or a table's; and what is between an expert's matrices. Which kernel it is in, and
 * beside how many rows, does not show.
 */
#include "gpu/cuda/device.cuh"
#include "gpu/cuda/kernels.h"
#include "gpu/index/moe.h"
#include "gpu/index/rows.h"

enum { MAX_EXPERTS = 512, MAX_USED = WARP };

struct choice {
    float score[MAX_EXPERTS];
    /* of the chosen ones, by ascending id */
    float own[MAX_USED], weight[MAX_USED];
    int id[MAX_USED];
};

static __device__ __forceinline__ float
gate_score(float logit)
{
    return sqrtf(logit > 20.0f ? logit : (float)log1p((double)exp_f32(logit)));
}

/* Greater for greater v, equal for equal ones; what is no number counts as -infinity. Never 0. */
static __device__ __forceinline__ uint32_t
score_order(float v)
{
    const uint32_t u = __float_as_uint(isnan(v) ? -CUDART_INF_F : v + 0.0f); /* -0 too */

    return u >> 31 != 0 ? ~u : u | 0x80000000;
}

/* Lane i gets number i of the best k of score + bias, of equal ones the lower id first. EACH:
 * experts of a lane, at least n / 32. */
template <int EACH>
static __device__ __forceinline__ int
best_experts(const float *score, const float *bias, int n, int k)
{
    const int lane = threadIdx.x % WARP;
    uint32_t order[EACH]; /* of experts lane, lane + 32 ...; 0: taken */
    int mine = n;

#pragma unroll
    for (int j = 0; j < EACH; j++) {
        const int x = j * WARP + lane;

        order[j] = x < n ? score_order(score[x] + bias[x]) : 0;
    }
    for (int i = 0; i < k; i++) {
        uint32_t best = order[0];
        int at = lane;

#pragma unroll
        for (int j = 1; j < EACH; j++)
            if (order[j] > best) {
                best = order[j];
                at = j * WARP + lane;
            }
        const uint32_t top = __reduce_max_sync(~0u, best);
        const int id = (int)__reduce_min_sync(~0u, best == top ? (uint32_t)at : ~0u);

        mine = lane == i ? id : mine;
#pragma unroll
        for (int j = 0; j < EACH; j++)
            order[j] = id == j * WARP + lane ? 0 : order[j];
    }
    return mine;
}

/* One warp, when the scores are there: c->id and c->weight. bias: a.bias, or a copy of it. */
static __device__ void
choose(const struct route_args &a, size_t row, const float *bias, struct choice *c)
{
    const int lane = threadIdx.x % WARP, n = a.n_experts, k = a.k;
    float sum = 0.0f;
    int id = n, place = 0;

    if (a.bias == NULL)
        id = lane < k ? a.table[row_start(a.token[row].token, k) + lane] : n;
    else if (n <= 8 * WARP)
        id = best_experts<8>(c->score, bias, n, k);
    else
        id = best_experts<MAX_EXPERTS / WARP>(c->score, bias, n, k);
    for (int i = 0; i < k; i++) {
        const int other = __shfl_sync(~0u, id, i);

        place += other < id || (other == id && i < lane);
    }
    const float own = lane < k ? c->score[id] : 0.0f;

    if (lane < k)
        c->own[place] = own;
    __syncwarp();
    for (int i = 0; i < k; i++)
        sum += c->own[i];
    if (lane < k) {
        c->id[place] = id;
        c->weight[place] = own / sum * a.scale;
    }
}

/* bf16(w * silu(min(g, limit)) * clamp(u)): what is between an expert's matrices. */
static __device__ __forceinline__ uint16_t
swiglu(uint16_t gate, uint16_t up, float w, float limit)
{
    float u = bf16_to_f32(up), g = bf16_to_f32(gate);

    u = u < -limit ? -limit : u > limit ? limit : u;
    g = g > limit ? limit : g;
    return f32_to_bf16(w * (g / (1.0f + exp_f32(-g)) * u));
}

#endif /* GPU_CUDA_GATE_CUH */
