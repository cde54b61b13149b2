/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Experts (spec 8) around their matrices: choice, order of rows by expert, non-linearity, sum.
 * The choice stays on the device; the host launches for the most experts that there can be.
 * Places are given in ascending order of row and results added in ascending order of expert, so
 * the company of other rows does not show.
 */
#include "base/err.h"
#include "gpu/cuda/gate.cuh"
#include "gpu/cuda/streams.cuh"
#include "gpu/index/moe.h"
#include "gpu/index/rows.h"
#include "gpu/ops/moe.h"

enum {
    THREADS = 256,
    FEW_ROWS = 8,
    COUNTING = 16, /* warps that share out the choices */
    AHEAD = 4,     /* choices that a lane loads together */
};

/*
 * One block: a thread is an expert, a warp has a part of all choices. First a warp counts those of
 * each expert in its part, and how many of an expert are in front of each; then experts add up what
 * warps have counted, in order; then all places are known.
 */
static __device__ void
assign(const struct route_args &a)
{
    __shared__ uint16_t before[COUNTING][MAX_EXPERTS];
    __shared__ int start[MAX_EXPERTS], of_warp[2][WARP];
    const int x = threadIdx.x, n = a.rows * a.k, lane = x % WARP, warp = x / WARP;
    const int warps = min((int)blockDim.x / WARP, COUNTING);
    const int i0 = moe_part(n, warps, warp), i1 = moe_part(n, warps, warp + 1);

    for (int i = lane; i < a.n_experts && warp < warps; i += WARP)
        before[warp][i] = 0;
    for (int first = i0; first < i1; first += AHEAD * WARP) {
        int id[AHEAD];

#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            const int i = first + j * WARP + lane;

            id[j] = i < min(i1, n) ? a.chosen[i] : -1;
        }
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            const int i = first + j * WARP + lane;
            const uint32_t same = __match_any_sync(~0u, id[j]);
            const int rank = __popc(same & ((1u << lane) - 1));
            int others = 0;

            __syncwarp(); /* counts of the turn before are there */
            if (id[j] >= 0) {
                others = before[warp][id[j]];
                a.slot[i] = others + rank;
            }
            __syncwarp();
            if (id[j] >= 0 && rank == 0)
                before[warp][id[j]] = others + __popc(same);
        }
    }
    __syncthreads();
    int at = 0; /* of this expert */

    if (x < a.n_experts)
        for (int w = 0; w < warps; w++) {
            const int count = before[w][x];

            before[w][x] = at;
            at += count;
        }
    /* places before this expert's, and how many of the experts before have any */
    int all = at, some = at > 0;

    for (int d = 1; d < WARP; d *= 2) {
        const int v = __shfl_up_sync(~0u, all, d), u = __shfl_up_sync(~0u, some, d);

        all += lane >= d ? v : 0;
        some += lane >= d ? u : 0;
    }
    if (lane == WARP - 1) {
        of_warp[0][warp] = all;
        of_warp[1][warp] = some;
    }
    __syncthreads();
    for (int w = 0; w < warp; w++) {
        all += of_warp[0][w];
        some += of_warp[1][w];
    }
    if (x < a.n_experts) {
        start[x] = all - at;
        a.first[x + 1] = all;
        if (x == 0)
            a.first[0] = 0;
        if (at > 0)
            a.active[some] = x; /* active[0] is how many */
        if (x == a.n_experts - 1)
            a.active[0] = some;
    }
    __syncthreads();
    for (int i = i0 + lane; i < min(i1, n); i += AHEAD * WARP) {
        int id[AHEAD], rank[AHEAD];
        float weight[AHEAD];

#pragma unroll
        for (int j = 0; j < AHEAD; j++)
            if (i + j * WARP < min(i1, n)) {
                id[j] = a.chosen[i + j * WARP];
                rank[j] = a.slot[i + j * WARP];
                weight[j] = a.weight[i + j * WARP];
            }
#pragma unroll
        for (int j = 0; j < AHEAD; j++)
            if (i + j * WARP < min(i1, n)) {
                const int to = moe_place(start[id[j]], before[warp][id[j]] + rank[j]);

                a.slot[i + j * WARP] = to;
                a.source[to] = (i + j * WARP) / a.k;
                a.slot_weight[to] = weight[j];
            }
    }
}

static __global__ void __launch_bounds__(MAX_EXPERTS)
assign_kernel(const __grid_constant__ struct route_args a)
{
    pdl_go();
    pdl_wait();
    assign(a);
}

/* The choice of a row, by one warp, to memory. */
static __device__ __forceinline__ void
put_choice(const struct route_args &a, size_t row, struct choice *c)
{
    const int lane = threadIdx.x % WARP;

    choose(a, row, a.bias, c);
    __syncwarp();
    if (lane >= a.k)
        return;
    a.chosen[row_start(row, a.k) + lane] = c->id[lane];
    a.weight[row_start(row, a.k) + lane] = c->weight[lane];
}

/* A block is a row. */
static __global__ void __launch_bounds__(THREADS)
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
    for (int x = threadIdx.x; x < a.n_experts; x += THREADS)
        c.score[x] = gate_score(a.gate[row_start(blockIdx.x, a.n_experts) + x]);
    __syncthreads();
    if (threadIdx.x < WARP)
        put_choice(a, blockIdx.x, &c);
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
    for (int i = threadIdx.x; i < a.rows * a.n_experts; i += blockDim.x)
        c[piece_row(i, a.n_experts)].score[piece_at(i, a.n_experts, 1)] =
            gate_score(a.gate[i]);
    __syncthreads();
    for (int r = threadIdx.x / WARP; r < a.rows; r += blockDim.x / WARP)
        put_choice(a, r, &c[r]);
    __syncthreads(); /* choices are written, and seen by this block */
    assign(a);
}

int
route_cuda(struct cuda_rank *rk, const struct route_args *a, struct err *e)
{
    if (a->n_experts > MAX_EXPERTS || a->k > MAX_USED ||
        a->rows * a->k > UINT16_MAX) /* assign's counts */
        return err_set(e, ERR_INTERNAL, 0, "route: %d of %d experts, %d rows", a->k,
                       a->n_experts, a->rows);
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
    CU_TRY(launch_pdl(rk, choose_kernel, dim3(a->rows, 1 + beside), THREADS, 0, *a, back),
           e);
    CU_TRY(launch_pdl(rk, assign_kernel, dim3(1), MAX_EXPERTS, 0, *a), e);
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

    a.a[i] = swiglu(a.gate[i], a.up[i], w, a.limit);
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
