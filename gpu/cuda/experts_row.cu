/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The experts of one row, up to their second matrices, in one kernel: what route_cuda,
 * expert_linear_cuda and swiglu_cuda do one after another. Every block makes the choice for
 * itself, as that takes less time than to wait for another kernel. It has the same outputs of w1
 * and of w3, so that it can act on them. The plain twins are in moe.cu and packed_experts.cu.
 */
#include "base/err.h"
#include "gpu/cuda/gate.cuh"
#include "gpu/cuda/packed.cuh"
#include "gpu/cuda/streams.cuh"

/* Tables of matrices, of which the chosen ones' lines are wanted soon: a thread of all blocks has one
 * of each expert. */
static __device__ __forceinline__ void
prefetch_tables(const struct experts_row_args &a, int thread)
{
    const int n = a.route.n_experts;

    if (thread >= 3 * n)
        return;
    const struct matrix *const table[] = {a.w[0], a.w[1], a.w2};

#pragma unroll
    for (int i = 0; i < 3; i++)
        if (thread >= i * n && thread < (i + 1) * n) {
            prefetch_l2(&table[i][thread - i * n].scale);
            prefetch_l2(&table[i][thread - i * n].packed);
        }
}

/* What kernels behind this one want to know of the choice: the place of number i is i. */
static __device__ __forceinline__ void
tell(const struct experts_row_args &all, const struct choice &c,
     struct expert_weights second)
{
    const struct route_args &a = all.route;
    const int t = threadIdx.x;

    for (int x = t; x <= a.n_experts; x += PACK_THREADS) {
        int before = 0;

        for (int i = 0; i < a.k; i++)
            before += c.id[i] < x;
        a.first[x] = before;
    }
    if (t == 0)
        a.active[0] = a.k;
    if (t >= a.k)
        return;
    a.chosen[t] = a.active[1 + t] = c.id[t];
    a.weight[t] = a.slot_weight[t] = c.weight[t];
    a.slot[t] = t;
    a.source[t] = 0;
    all.second[t] = second;
}

/* The row's experts and weights, by all threads. Loads of the row are under way before any of it is
 * looked at. */
template <int KIND>
static __device__ __forceinline__ void
choose_experts(const struct experts_row_args &a, const struct packed_job &j,
               const float *bias, uint16_t *staged, struct choice *c)
{
    const struct route_args &r = a.route;
    const int t = threadIdx.x;
    float logit[MAX_EXPERTS / PACK_THREADS];

#pragma unroll
    for (int i = 0; i < MAX_EXPERTS / PACK_THREADS; i++)
        logit[i] = t + i * PACK_THREADS < r.n_experts ? r.gate[t + i * PACK_THREADS] : 0.0f;
    stage_x<KIND>(j, 0, 1, NULL, staged);
#pragma unroll
    for (int i = 0; i < MAX_EXPERTS / PACK_THREADS; i++)
        if (t + i * PACK_THREADS < r.n_experts)
            c->score[t + i * PACK_THREADS] = gate_score(logit[i]);
    __syncthreads();
    if (t < WARP)
        choose(r, 0, bias, c);
    __syncthreads();
}

/*
 * Grid: blocks of something else (the shared expert's, and what the way back into the streams
 * needs), which begin first and are done before the others; then the blocks of each choice.
 */
template <int KIND>
static __global__ void __launch_bounds__(PACK_THREADS, blocks_wanted(1))
experts_row_kernel(const __grid_constant__ struct experts_row_args a,
                   const __grid_constant__ struct streams_in_args back, int split, int half,
                   int blocks, int sides)
{
    LAUNCH_SHARED(16, float, shared);
    __shared__ struct choice c;
    __shared__ float bias[MAX_EXPERTS];
    const int t = threadIdx.x, dim = a.shape.out;
    const size_t last = row_start(a.route.k, dim);

    pdl_go();
    if ((int)blockIdx.x < sides) {
        pdl_wait();
        if (blockIdx.x == 1)
            way_back(back, 0);
        else
            for (int o = t; o < dim; o += PACK_THREADS)
                a.gate[last + o] = swiglu(a.gate[last + o], a.up[last + o], 1.0f, a.limit);
        return;
    }
    const int at = blockIdx.x - sides;
    const int i = piece_row(at, blocks), block = piece_at(at, blocks, 1);
    uint16_t *staged = (uint16_t *)((uint8_t *)shared + packed_shared(1, 1));
    const uint16_t *row = t % WARP / 4 == 0 ? staged + t % 4 * 8 : NULL;
    struct packed_job j = {NULL, NULL,       a.x, NULL, KIND,  dim, a.shape.in,
                           1,    a.shape.in, dim, 0,    split, 0};

    const int tile = packed_pair_tile(block, t / WARP, split);

    prefetch_tables(a, at * PACK_THREADS + t);
    if (a.route.bias != NULL)
#pragma unroll
        for (int x = t; x < MAX_EXPERTS; x += PACK_THREADS)
            if (x < a.route.n_experts)
                bias[x] = __ldg(a.route.bias + x);
    pdl_wait();
    choose_experts<KIND>(a, j, bias, staged, &c);
    const struct matrix *m = &a.w[packed_pair_matrix(t / WARP)][c.id[i]];

    j.w = (const uint4 *)m->packed;
    j.scale = m->scale;
    struct expert_weights second = {};

    if (at == 0 && t < a.route.k)
        second = {a.w2[c.id[t]].packed, a.w2[c.id[t]].scale};
    block_parts<KIND, 1, 1>(
        j, tile, &row, [] {}, shared);
    if (at == 0)
        tell(a, c, second);
    if (t >= half * PACK_M)
        return;
    const int o = packed_pair_output(block, half, t);
    const float g = part_sum<1, 1>(shared, split, t, 0);
    const float u = part_sum<1, 1>(shared, split, t + half * PACK_M, 0);

    if (o < dim)
        a.gate[row_start(i, dim) + o] =
            swiglu(f32_to_bf16(g), f32_to_bf16(u), c.weight[i], a.limit);
}

bool
experts_row_can(const struct matrix *shape, int rows, int n_experts, int k)
{
    return rows == 1 && shape->packed != NULL && n_experts <= MAX_EXPERTS &&
           k <= MAX_USED && packed_pair_half(pack_split(shape->kind, shape->in)) > 0;
}

template <int KIND>
static int
launch(struct cuda_rank *rk, const struct experts_row_args *a, struct err *e)
{
    const int split = pack_split(KIND, a->shape.in);
    const int half = packed_pair_half(split);
    const int blocks = ceil_div(a->shape.out, half * PACK_M);
    const struct streams_in_args none = {};
    const int sides = a->route.back != NULL ? 2 : 1;
    const size_t shared = shared_for(1, 1, 1, a->shape.in);

    if (shared > rk->shared_bytes)
        return err_set(e, ERR_INTERNAL, 0, "experts: %d inputs", a->shape.in);
    if (shared > 48 * 1024)
        SHARED_TRY((experts_row_kernel<KIND>), shared, e);
    CU_TRY(launch_pdl(rk, experts_row_kernel<KIND>, dim3(sides + blocks * a->route.k),
                      PACK_THREADS, shared, *a, sides > 1 ? *a->route.back : none, split,
                      half, blocks, sides),
           e);
    return 0;
}

int
experts_row_cuda(struct cuda_rank *rk, const struct experts_row_args *a, struct err *e)
{
    switch (a->shape.kind) {
    case MATRIX_FP4: return launch<MATRIX_FP4>(rk, a, e);
    case MATRIX_FP8: return launch<MATRIX_FP8>(rk, a, e);
    default: return launch<MATRIX_BF16>(rk, a, e);
    }
}
