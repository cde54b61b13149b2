/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Experts (spec 8) around their matrices: choice, order of rows by expert, non-linearity, sum.
 * The choice stays on the device; the host launches for the most experts that there can be.
 * Places are given in ascending order of row and results added in ascending order of expert, so
 * the company of other rows does not show.
 */
#include "base/err.h"
#include "gpu/cuda/device.cuh"
#include "gpu/cuda/streams.cuh"
#include "gpu/index/moe.h"
#include "gpu/index/rows.h"
#include "gpu/ops/moe.h"

enum { MAX_EXPERTS = 1024, MAX_USED = 32, THREADS = 256, FEW_ROWS = 8 };

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

    for (int x = threadIdx.x % WARP; x < n; x += WARP) {
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

struct choice {
    float score[MAX_EXPERTS];
    bool taken[MAX_EXPERTS];
    int chosen[MAX_USED];
};

/* One warp, when the scores are there and nothing is taken. */
static __device__ void
choose(const struct route_args &a, size_t row, struct choice *c)
{
    float *score = c->score;
    bool *taken = c->taken;
    int *chosen = c->chosen;
    const int t = threadIdx.x % WARP;

    for (int i = 0; i < a.k; i++) {
        const int x = a.bias == NULL ? a.table[row_start(a.token[row].token, a.k) + i]
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
            a.chosen[row_start(row, a.k) + i] = chosen[i];
            a.weight[row_start(row, a.k) + i] = score[chosen[i]] / sum * a.scale;
        }
    }
}

/* One warp a row. */
static __global__ void __launch_bounds__(WARP)
choose_kernel(const __grid_constant__ struct route_args a,
              const __grid_constant__ struct streams_in_args back)
{
    __shared__ struct choice c;

    pdl_go();
    pdl_wait();
    if (blockIdx.y == 1) {
        way_back(back, blockIdx.x);
        return;
    }
    for (int x = threadIdx.x; x < a.n_experts; x += WARP) {
        c.score[x] = gate_score(a.gate[row_start(blockIdx.x, a.n_experts) + x]);
        c.taken[x] = false;
    }
    __syncwarp();
    choose(a, blockIdx.x, &c);
}

/* One block: a thread is an expert and looks for its rows, in order, twice. */
static __device__ void
assign(const struct route_args &a)
{
    __shared__ int of_warp[2][WARP];
    __shared__ int count[MAX_EXPERTS];
    const int x = threadIdx.x, n = a.rows * a.k, warps = blockDim.x / WARP;
    int at = 0;

    if (n <= 64)
        for (int i = 0; i < n && x < a.n_experts; i++)
            at += a.chosen[i] == x;
    else {
        for (int id = x / WARP; id < a.n_experts; id += warps) {
            int some = 0;

            for (int i = x % WARP; i < whole_warps(n); i += WARP)
                some += __popc(__ballot_sync(~0u, i < n && a.chosen[i] == id));
            if (x % WARP == 0)
                count[id] = some;
        }
        __syncthreads();
        at = x < a.n_experts ? count[x] : 0;
    }
    /* places before this expert's, and how many of the experts before have any */
    const int lane = x % WARP, warp = x / WARP;
    int before = at, some = at > 0;

    for (int d = 1; d < WARP; d *= 2) {
        const int v = __shfl_up_sync(~0u, before, d), u = __shfl_up_sync(~0u, some, d);

        before += lane >= d ? v : 0;
        some += lane >= d ? u : 0;
    }
    if (lane == WARP - 1) {
        of_warp[0][warp] = before;
        of_warp[1][warp] = some;
    }
    __syncthreads();
    for (int w = 0; w < warp; w++) {
        before += of_warp[0][w];
        some += of_warp[1][w];
    }
    if (x < a.n_experts) {
        a.first[x + 1] = before;
        if (x == 0)
            a.first[0] = 0;
        if (at > 0)
            a.active[some] = x; /* active[0] is how many */
        if (x == a.n_experts - 1)
            a.active[0] = some;
    }
    if (n > 64) {
        __syncthreads();
        if (x < a.n_experts)
            count[x] = before - at;
        __syncthreads();
        for (int id = x / WARP; id < a.n_experts; id += warps) {
            int place = count[id];

            for (int i = x % WARP; i < whole_warps(n); i += WARP) {
                const bool is = i < n && a.chosen[i] == id;
                const unsigned all = __ballot_sync(~0u, is);
                const int to = moe_place(place, __popc(all & ((1u << x % WARP) - 1)));

                if (is) {
                    a.slot[i] = to;
                    a.source[to] = i / a.k;
                    a.slot_weight[to] = a.weight[i];
                }
                place += __popc(all);
            }
        }
        return;
    }
    if (at == 0)
        return;
    at = before - at;
    for (int i = 0; i < n; i++) {
        if (a.chosen[i] != x)
            continue;
        a.slot[i] = at;
        a.source[at] = i / a.k;
        a.slot_weight[at++] = a.weight[i];
    }
}

static __global__ void __launch_bounds__(MAX_EXPERTS)
assign_kernel(const __grid_constant__ struct route_args a)
{
    pdl_go();
    pdl_wait();
    assign(a);
}

/* All of it in one block, for few rows: one after another, scores by all threads. */
static __global__ void __launch_bounds__(MAX_EXPERTS)
route_kernel(const __grid_constant__ struct route_args a,
             const __grid_constant__ struct streams_in_args back)
{
    __shared__ struct choice c[FEW_ROWS];

    pdl_go();
    pdl_wait();
    if (blockIdx.x > 0) {
        way_back(back, blockIdx.x - 1);
        return;
    }
    for (int i = threadIdx.x; i < a.rows * a.n_experts; i += blockDim.x) {
        c[piece_row(i, a.n_experts)].score[piece_at(i, a.n_experts, 1)] =
            gate_score(a.gate[i]);
        c[piece_row(i, a.n_experts)].taken[piece_at(i, a.n_experts, 1)] = false;
    }
    __syncthreads();
    for (int r = threadIdx.x / WARP; r < a.rows; r += blockDim.x / WARP)
        choose(a, r, &c[r]);
    __syncthreads(); /* choices are written, and seen by this block */
    assign(a);
}

int
route_cuda(struct cuda_rank *rk, const struct route_args *a, struct err *e)
{
    if (a->n_experts > MAX_EXPERTS || a->k > MAX_USED)
        return err_set(e, ERR_INTERNAL, 0, "route: %d of %d experts", a->k, a->n_experts);
    if (a->rows == 0)
        return 0;
    const int threads = ceil_div(a->n_experts, WARP) * WARP;

    const struct streams_in_args none = {}, back = a->back != NULL ? *a->back : none;
    const int beside = a->back != NULL;

    if (a->rows <= FEW_ROWS) {
        CU_TRY(
            launch_pdl(rk, route_kernel, dim3(1 + beside * a->rows), threads, 0, *a, back),
            e);
        return 0;
    }
    CU_TRY(launch_pdl(rk, choose_kernel, dim3(a->rows, 1 + beside), WARP, 0, *a, back), e);
    CU_TRY(launch_pdl(rk, assign_kernel, dim3(1), threads < 512 ? 512 : threads, 0, *a), e);
    return 0;
}

static __global__ void __launch_bounds__(THREADS)
swiglu_kernel(const __grid_constant__ struct swiglu_args a)
{
    const int c = grid_item(blockIdx.x, THREADS, threadIdx.x);
    const size_t r = blockIdx.y, i = row_start(r, a.dim) + c;

    pdl_go();
    pdl_wait();
    if (c >= a.dim)
        return;
    const float w = a.weight != NULL && (a.weighted == 0 || r < (size_t)a.weighted)
                        ? a.weight[r]
                        : 1.0f;
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
    CU_TRY(launch_pdl(rk, swiglu_kernel, dim3(ceil_div(a->dim, THREADS), a->rows), THREADS,
                      0, *a),
           e);
    return 0;
}

static __global__ void __launch_bounds__(THREADS)
combine_kernel(struct combine_args a)
{
    const int c = grid_item(blockIdx.x, THREADS, threadIdx.x);
    const size_t r = blockIdx.y;
    float sum = 0.0f;

    if (c >= a.dim)
        return;
    for (int i = 0; i < a.k; i++)
        sum += bf16_to_f32(a.routed[row_start(a.slot[row_start(r, a.k) + i], a.dim) + c]);
    a.f[row_start(r, a.dim) + c] =
        f32_to_bf16(sum + bf16_to_f32(a.shared[row_start(r, a.dim) + c]));
}

int
combine_cuda(struct cuda_rank *rk, const struct combine_args *a, struct err *e)
{
    if (a->rows == 0)
        return 0;
    CU_TRY(launch_kernel(rk->stream, combine_kernel,
                         dim3(ceil_div(a->dim, THREADS), a->rows), THREADS, 0, *a),
           e);
    return 0;
}
