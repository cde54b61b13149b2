/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What stands between the projections of the attention sublayer, in two kernels: the plain
 * operations are norm.cu, quant.cu, compress.cu and rows.cu, and a block here does several of them
 * to a row that stays in shared memory.
 *
 * inputs: blocks of a row each norm and round the queries' low-rank row, norm, rotate and pack the
 * window's key, keep the compressors' inputs, and finish compressed entries. queries: a warp a
 * head norms and rotates queries, or rotates and packs the indexer's.
 */
#include "base/err.h"
#include "gpu/cuda/device.cuh"
#include "gpu/cuda/query.cuh"
#include "gpu/cuda/streams.cuh"
#include "gpu/index.h"
#include "gpu/index/attention.h"
#include "gpu/index/compress.h"
#include "gpu/index/indexer.h"
#include "gpu/index/rows.h"
#include "gpu/ops/attention.h"
#include "model/kvsize.h"

enum {
    THREADS = 512,
    WARPS = THREADS / WARP,
    MAX_DIM = 16384, /* of a row in shared memory */
    HEAD_WARPS = 8,
};

/* v[0..dim): bf16 values, normed in place. */
static __device__ __forceinline__ void
norm_row(float *v, const float *w, int dim, float eps)
{
    double ss = 0.0;

    __syncthreads();
    for (int i = threadIdx.x; i < dim; i += THREADS)
        ss += (double)v[i] * (double)v[i];
    const float scale = 1.0f / sqrtf((float)(block_sum(ss) / dim) + eps);

    for (int i = threadIdx.x; i < dim; i += THREADS)
        v[i] = bf16_round(w[i] * (v[i] * scale));
    __syncthreads();
}

/* Pair p of the rotated end of v. */
static __device__ __forceinline__ void
rotate_pair(float *v, const float *cs, int p)
{
    const float re = v[2 * p], im = v[2 * p + 1], c = cs[2 * p], s = cs[2 * p + 1];

    v[2 * p] = bf16_round(fmaf(re, c, -(im * s)));
    v[2 * p + 1] = bf16_round(fmaf(re, s, im * c));
}

static __device__ __forceinline__ void
rotate_row(float *v, const float *cs, int dim, int rope_dim)
{
    for (int p = threadIdx.x; p < rope_dim / 2; p += THREADS)
        rotate_pair(v + dim - rope_dim, cs, p);
    __syncthreads();
}

/* v packed as struct attention_args says, to one place or two. */
static __device__ void
pack_row(const float *v, int dim, int rope_dim, enum kv_fmt fmt, int row_bytes, uint8_t *to,
         uint8_t *also)
{
    const int nope = fmt == KV_BF16 ? 0 : dim - rope_dim, lane = threadIdx.x % WARP;
    const int groups = ceil_div(nope, KV_GROUP);
    const struct key_parts parts = key_parts_of(dim, nope);

    for (int g = threadIdx.x / WARP; g < groups; g += WARPS) {
        const int i1 = group_end(g * KV_GROUP, KV_GROUP, nope);
        float amax = 1e-4f;

        for (int i = g * KV_GROUP + lane; i < i1; i += WARP)
            amax = fmaxf(amax, fabsf(v[i]));
        const uint8_t ex = f32_to_e8m0_up(warp_max(amax) * (1.0f / 448.0f));

        for (int i = g * KV_GROUP + lane; i < i1; i += WARP) {
            const uint8_t code = f32_to_e4m3(v[i] / e8m0_to_f32(ex));

            to[i] = code;
            if (also != NULL)
                also[i] = code;
        }
        if (lane == 0)
            to[key_scale(parts, g * KV_GROUP)] = ex;
        if (lane == 0 && also != NULL)
            also[key_scale(parts, g * KV_GROUP)] = ex;
    }
    for (int i = nope + threadIdx.x; i < dim; i += THREADS) {
        const uint16_t x = f32_to_bf16(v[i]);
        const int at = key_wide(parts, i);

        to[at] = (uint8_t)x;
        to[at + 1] = (uint8_t)(x >> 8);
        if (also != NULL) {
            also[at] = (uint8_t)x;
            also[at + 1] = (uint8_t)(x >> 8);
        }
    }
    for (int i = parts.scales + groups + threadIdx.x; i < row_bytes; i += THREADS) {
        to[i] = 0;
        if (also != NULL)
            also[i] = 0;
    }
}

/* The indexer's packing of h[0..dim) by one warp: Hadamard, FP4. */
static __device__ void
index_pack(float *h, int dim, uint8_t *y)
{
    const int lane = threadIdx.x % WARP;
    const float scale = 1.0f / sqrtf((float)dim);

    for (int stride = 1; stride < dim; stride *= 2) {
        __syncwarp();
        for (int p = lane; p < dim / 2; p += WARP) {
            const int i = butterfly(p, stride);
            const float lo = h[i], hi = h[i + stride];

            h[i] = lo + hi;
            h[i + stride] = lo - hi;
        }
    }
    __syncwarp();
    for (int g = 0; g < dim / FP4_GROUP; g++) {
        const float v = bf16_round(h[g * FP4_GROUP + lane] * scale);
        const float amax = fmaxf(warp_max(fabsf(v)), 0x1.8p-124f); /* 6 * 2^-126 */
        const uint8_t ex = f32_to_e8m0_up(amax * (1.0f / 6.0f));
        const float u = v / e8m0_to_f32(ex);
        const uint8_t code = f32_to_e2m1(u < -6.0f ? -6.0f : u > 6.0f ? 6.0f : u);
        const uint8_t next = (uint8_t)__shfl_down_sync(~0u, code, 1);

        if (lane % 2 == 0)
            y[g * (FP4_GROUP / 2) + lane / 2] = code | next << 4;
        if (lane == 0)
            y[dim / 2 + g] = ex;
    }
}

static __device__ __forceinline__ void
load_row(float *v, const uint16_t *x, int dim)
{
    for (int i = threadIdx.x; i < dim; i += THREADS)
        v[i] = bf16_to_f32(x[i]);
}

static __device__ void
query_row(const struct inputs_args &a, int row, float *v)
{
    uint16_t *x = a.qr + row_start(row, a.q_dim), *q = a.qrq + row_start(row, a.q_dim);
    const int lane = threadIdx.x % WARP;

    load_row(v, x, a.q_dim);
    norm_row(v, a.q_norm, a.q_dim, a.eps);
    for (int g = threadIdx.x / WARP; g < ceil_div(a.q_dim, 128); g += WARPS) {
        const int i1 = group_end(g * 128, 128, a.q_dim);
        float amax = 1e-4f, s;

        for (int i = g * 128 + lane; i < i1; i += WARP)
            amax = fmaxf(amax, fabsf(v[i]));
        s = e8m0_to_f32(f32_to_e8m0_up(warp_max(amax) * (1.0f / 448.0f)));
        for (int i = g * 128 + lane; i < i1; i += WARP) {
            x[i] = f32_to_bf16(v[i]);
            q[i] = fp8_round(v[i], s);
        }
    }
}

static __device__ void
key_row(const struct inputs_args &a, int row, float *v)
{
    const struct dev_row r = a.rows[row];

    load_row(v, a.kv + row_start(row, a.dim), a.dim);
    norm_row(v, a.kv_norm, a.dim, a.eps);
    rotate_row(v, a.cs + row_start(row, a.rope_dim), a.dim, a.rope_dim);
    pack_row(v, a.dim, a.rope_dim, a.fmt, a.row_bytes, a.keys + row_start(row, a.row_bytes),
             a.keep ? a.spans[r.span].rings + a.ring_at +
                          row_start(ring_slot(r.pos, a.ring_slots), a.row_bytes)
                    : NULL);
}

static __device__ __forceinline__ int
width_of(const struct compress_args &k)
{
    return compress_width(k.dim, k.overlap);
}

/* Value and score of a row of this step into its ring. */
static __device__ void
keep_row(const struct compress_args &k, int row)
{
    const struct dev_row r = k.rows[row];
    const int width = width_of(k);
    const float *raw = k.raw + compress_row(row, width);
    float *to = (float *)(k.spans[r.span].rings + k.ring_at) +
                compress_row(ring_slot(r.pos, k.slots), width);
    const float *ape = k.ape + row_start(ring_slot(r.pos, k.ratio), width);

    for (int c = threadIdx.x; c < width; c += THREADS) {
        to[c] = raw[c];
        to[width + c] = raw[width + c] + ape[c];
    }
}

/* Value and score of channel c at position i of entry j's blocks (compress.cu); false in front of
 * the start. */
static __device__ __forceinline__ bool
input(const struct compress_args &k, const struct dev_span &s, uint64_t j, int i, int c,
      float *value, float *score)
{
    const int width = width_of(k), back = compress_back(k.ratio, k.overlap);
    const int64_t pos = (int64_t)j * k.ratio - back + i;
    const int at = c + (k.overlap && i >= back ? k.dim : 0);

    if (pos < 0)
        return false;
    if ((uint64_t)pos >= s.start) {
        const float *row = k.raw + compress_row(step_row(s.row0, pos, s.start), width);

        *value = row[at];
        *score = row[width + at] + k.ape[row_start(pos % k.ratio, width) + at];
    } else {
        const float *row = (const float *)(s.rings + k.ring_at) +
                           compress_row(ring_slot(pos, k.slots), width);

        *value = row[at];
        *score = row[width + at];
    }
    return true;
}

/* Entry number `at` of the step, from its pool to its place in a page. */
static __device__ void
finish_entry(const struct inputs_args &a, const struct compress_args &k, int at, bool index,
             float *v)
{
    const struct dev_entry entry = k.entries[at];
    const struct dev_span s = k.spans[entry.span];
    const int n = compress_count(k.ratio, k.overlap), per_page = KV_PAGE_TOKENS / k.ratio;
    const int bytes = index ? fp4_row(k.dim) : a.row_bytes;
    uint8_t *to = s.pages[entry_page(entry.j, per_page)] + k.page_at +
                  row_start(entry_row(entry.j, per_page), bytes);

    for (int c = threadIdx.x; c < k.dim; c += THREADS) {
        float top = -CUDART_INF_F, sum = 0.0f, total = 0.0f, value, score;

        for (int i = 0; i < n; i++)
            if (input(k, s, entry.j, i, c, &value, &score))
                top = fmaxf(top, score);
        for (int i = 0; i < n; i++)
            if (input(k, s, entry.j, i, c, &value, &score)) {
                const float p = exp_f32(score - top);

                sum += p;
                total = fmaf(p, value, total);
            }
        v[c] = bf16_round(total / sum);
    }
    norm_row(v, k.norm, k.dim, a.eps);
    rotate_row(v, k.cs + row_start(at, a.rope_dim), k.dim, a.rope_dim);
    if (!index)
        pack_row(v, k.dim, a.rope_dim, a.fmt, bytes, to, NULL);
    else if (threadIdx.x < WARP)
        index_pack(v, k.dim, to);
}

/* Grid: rows, parts. An entry is never a row's number beyond those of the step. */
static __global__ void __launch_bounds__(THREADS)
inputs_kernel(const __grid_constant__ struct inputs_args a)
{
    LAUNCH_SHARED(16, float, v);
    const int i = blockIdx.x;

    pdl_go();
    pdl_wait();
    if (blockIdx.y == gridDim.y - 1) {
        way_back(a.back, (size_t)i);
        return;
    }
    switch (blockIdx.y) {
    case 0:
        if (a.qr != NULL)
            query_row(a, i, v);
        break;
    case 1: key_row(a, i, v); break;
    case 2:
        if (i < *a.comp.count)
            finish_entry(a, a.comp, i, false, v);
        break;
    case 3:
        if (a.keep)
            keep_row(a.comp, i);
        break;
    case 4:
        if (i < *a.index.count)
            finish_entry(a, a.index, i, true, v);
        break;
    case 5:
        if (a.keep)
            keep_row(a.index, i);
        break;
    default:
        for (int h = threadIdx.x; h < a.n_weights; h += THREADS) {
            uint16_t *w = a.weights + row_start(i, a.n_weights) + h;

            *w = f32_to_bf16(bf16_to_f32(*w) * a.weight_scale);
        }
    }
}

int
inputs_cuda(struct cuda_rank *rk, const struct inputs_args *a, struct err *e)
{
    const int dim = a->q_dim > a->dim ? a->q_dim : a->dim;
    const int parts = a->n_weights > 0 ? 7 : a->comp.ratio > 0 ? 4 : 2;

    if (dim > MAX_DIM || a->index.dim > dim || a->comp.dim > dim)
        return err_set(e, ERR_INTERNAL, 0, "inputs: rows of %d", dim);
    if (a->n == 0)
        return 0;
    if (dim * sizeof(float) > 48 * 1024)
        SHARED_TRY(inputs_kernel, dim * sizeof(float), e);
    CU_TRY(launch_pdl(rk, inputs_kernel, dim3(a->n, parts + 1), THREADS,
                      dim * sizeof(float), *a),
           e);
    return 0;
}

/* Rows of a large step into their rings, when all who look there have looked. */
static __global__ void __launch_bounds__(THREADS)
keep_kernel(const __grid_constant__ struct inputs_args a)
{
    const int i = blockIdx.x;
    const struct dev_row r = a.rows[i];
    const struct dev_span s = a.spans[r.span];

    pdl_go();
    pdl_wait();
    if (blockIdx.y == 0 && i - s.row0 >= s.n - a.ring_slots) {
        const uint32_t *from = (const uint32_t *)(a.keys + row_start(i, a.row_bytes));
        uint32_t *to = (uint32_t *)(s.rings + a.ring_at +
                                    row_start(ring_slot(r.pos, a.ring_slots), a.row_bytes));

        for (int w = threadIdx.x; w < a.row_bytes / 4; w += THREADS)
            to[w] = from[w];
    }
    if (blockIdx.y == 1 && i - s.row0 >= s.n - a.comp.slots)
        keep_row(a.comp, i);
    if (blockIdx.y == 2 && i - s.row0 >= s.n - a.index.slots)
        keep_row(a.index, i);
}

int
inputs_keep_cuda(struct cuda_rank *rk, const struct inputs_args *a, struct err *e)
{
    const int parts = a->n_weights > 0 ? 3 : a->comp.ratio > 0 ? 2 : 1;

    if (a->n == 0 || a->keep)
        return 0;
    CU_TRY(launch_pdl(rk, keep_kernel, dim3(a->n, parts), THREADS, 0, *a), e);
    return 0;
}

/* Grid: groups of HEAD_WARPS heads, rows; the indexer's heads behind the others. */
static __global__ void __launch_bounds__(HEAD_WARPS *WARP)
queries_kernel(const __grid_constant__ struct queries_args a)
{
    LAUNCH_SHARED(16, float, shared);
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, row = blockIdx.y;
    const int h = grid_item(blockIdx.x, HEAD_WARPS, warp), i = h - a.n_heads;
    const float *cs = a.cs + row_start(row, a.rope_dim);
    float *v = shared + warp * (a.dim > a.index_dim ? a.dim : a.index_dim);

    pdl_go();
    pdl_wait();
    if (h < a.n_heads) {
        uint16_t *q = a.q + row_start(row_start(row, a.n_heads) + h, a.dim);
        double sum = 0.0;

        for (int c = lane * 2; c < a.dim; c += WARP * 2)
            sum = query_squares(*(const uint32_t *)(q + c), sum);
        const float factor = query_factor(sum, a.dim, a.eps);

        for (int c = lane * 2; c < a.dim; c += WARP * 2) {
            uint32_t *pair = (uint32_t *)(q + c);

            *pair = query_pair(*pair, factor, cs, c, a.dim - a.rope_dim);
        }
    } else if (i < a.n_index) {
        const uint16_t *q = a.iq + row_start(row_start(row, a.n_index) + i, a.index_dim);

        for (int c = lane * 2; c < a.index_dim; c += WARP * 2) {
            bf16_pair(*(const uint32_t *)(q + c), v + c);
            if (c >= a.index_dim - a.rope_dim)
                rotate_pair(v + a.index_dim - a.rope_dim, cs,
                            (c - (a.index_dim - a.rope_dim)) / 2);
        }
        index_pack(v, a.index_dim,
                   a.iqp + row_start(row_start(row, a.n_index) + i, fp4_row(a.index_dim)));
    }
}

int
queries_cuda(struct cuda_rank *rk, const struct queries_args *a, struct err *e)
{
    const int dim = a->dim > a->index_dim ? a->dim : a->index_dim;
    const size_t shared = (size_t)HEAD_WARPS * dim * sizeof(float);

    if (a->dim % 2 != 0 || a->rope_dim % 2 != 0)
        return err_set(e, ERR_INTERNAL, 0, "queries: heads of %d", a->dim);
    if (a->rows == 0 || a->n_heads + a->n_index == 0)
        return 0;
    if (shared > 48 * 1024)
        SHARED_TRY(queries_kernel, shared, e);
    CU_TRY(launch_pdl(rk, queries_kernel,
                      dim3(ceil_div(a->n_heads + a->n_index, HEAD_WARPS), a->rows),
                      HEAD_WARPS * WARP, shared, *a),
           e);
    return 0;
}
