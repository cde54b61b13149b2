/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_CUDA_INPUTS_CUH
#define GPU_CUDA_INPUTS_CUH

/*
 * What is done to a row between the projections of the attention sublayer, by a block of any number
 * of warps: kernels of their own do it (inputs.cu), and blocks beside a product (packed.cu). A row
 * is normed by one warp, or by several a chunk each: its squares are added up chunk by chunk, so
 * that the bits are the same.
 */
#include "gpu/cuda/device.cuh"
#include "gpu/cuda/streams.cuh"
#include "gpu/index/attention.h"
#include "gpu/index/compress.h"
#include "gpu/index/indexer.h"
#include "gpu/index/inputs.h"
#include "gpu/ops/attention.h"
#include "model/kvsize.h"

enum {
    FEW_CHUNKS = 2, /* of a warp's row; of any there can be: */
    ROW_CHUNKS = ATTENTION_MAX_DIM / ROW_CHUNK,
    POOL_BATCH = 4, /* inputs of an entry, loaded together */
    POOL_THREADS = 256,
    NORM_CHUNKS = 8, /* of a row that a product norms */
};

static __device__ __forceinline__ void
load_piece(const float *p, float *v)
{
    const float4 low = *(const float4 *)p, high = *(const float4 *)(p + 4);

    v[0] = low.x;
    v[1] = low.y;
    v[2] = low.z;
    v[3] = low.w;
    v[4] = high.x;
    v[5] = high.y;
    v[6] = high.z;
    v[7] = high.w;
}

/* Elements at .. of a bf16 row; beyond its end there are zeros. */
static __device__ __forceinline__ uint4
row_piece(const uint16_t *x, int at, int dim)
{
    return at < dim ? *(const uint4 *)(x + at) : make_uint4(0, 0, 0, 0);
}

/* The squares of a chunk, 8 elements a lane: the same in all lanes. Products are exact. */
static __device__ __forceinline__ double
chunk_squares(const float *v)
{
    double even = (double)v[0] * (double)v[0], odd = (double)v[1] * (double)v[1];

#pragma unroll
    for (int i = 2; i < ROW_PIECE; i += 2) {
        even = fma((double)v[i], (double)v[i], even);
        odd = fma((double)v[i + 1], (double)v[i + 1], odd);
    }
    return warp_sum(even + odd);
}

static __device__ __forceinline__ double
chunk_squares(uint4 u)
{
    float v[ROW_PIECE];

    bf16_eight(u, v);
    return chunk_squares(v);
}

/* In ascending order; a row of few chunks has room for NORM_CHUNKS of them. */
static __device__ __forceinline__ double
add_chunks(const double *squares, int chunks)
{
    double sum = squares[0];

    for (int k = 1; k < chunks; k++)
        sum += squares[k];
    return sum;
}

static __device__ __forceinline__ double
add_few_chunks(const double *squares, int chunks)
{
    double part[NORM_CHUNKS], sum;

#pragma unroll
    for (int k = 0; k < NORM_CHUNKS; k++)
        part[k] = k < chunks ? squares[k] : 0.0;
    sum = part[0];
#pragma unroll
    for (int k = 1; k < NORM_CHUNKS; k++)
        sum += part[k];
    return sum;
}

/* What a row is multiplied by; of_dim: 1 / dim. */
static __device__ __forceinline__ float
norm_scale(double squares, double of_dim, float eps)
{
    return 1.0f / sqrtf((float)(squares * of_dim) + eps);
}

static __device__ __forceinline__ uint4
norm_piece(const float *v, const float *w, float scale)
{
    float y[ROW_PIECE];

#pragma unroll
    for (int i = 0; i < ROW_PIECE; i++)
        y[i] = w[i] * (v[i] * scale);
    return to_bf16_eight(y);
}

static __device__ __forceinline__ uint4
norm_piece(uint4 u, const float *w, float scale)
{
    float v[ROW_PIECE];

    bf16_eight(u, v);
    return norm_piece(v, w, scale);
}

/* A warp's row normed and its end rotated; beyond dim there are zeros. */
template <int N>
static __device__ __forceinline__ void
norm_rotate(float (*v)[ROW_PIECE], const float *norm, const float *cs, int dim,
            int rope_dim, float eps)
{
    const int lane = threadIdx.x % WARP, nope = dim - rope_dim;
    float w[N][ROW_PIECE] = {};
    double squares = 0.0;

#pragma unroll
    for (int k = 0; k < N; k++)
        if (chunk_at(k, lane) < dim)
            load_piece(norm + chunk_at(k, lane), w[k]);
#pragma unroll
    for (int k = 0; k < N; k++)
        if (k * ROW_CHUNK < dim)
            squares += chunk_squares(v[k]);
    const float scale = norm_scale(squares, 1.0 / dim, eps);

#pragma unroll
    for (int k = 0; k < N; k++) {
        bf16_eight(norm_piece(v[k], w[k], scale), v[k]);
#pragma unroll
        for (int i = 0; i < ROW_PIECE; i += 4) {
            const int at = chunk_at(k, lane) + i;

            if (at < nope || at >= dim)
                continue;
            const float4 c = __ldg((const float4 *)(cs + at - nope));
            const float *u = v[k] + i;
            const float x[4] = {u[0], u[1], u[2], u[3]};

            bf16_pair(
                to_bf16_pair(fmaf(x[0], c.x, -(x[1] * c.y)), fmaf(x[0], c.y, x[1] * c.x)),
                v[k] + i);
            bf16_pair(
                to_bf16_pair(fmaf(x[2], c.z, -(x[3] * c.w)), fmaf(x[2], c.w, x[3] * c.z)),
                v[k] + i + 2);
        }
    }
}

/* Four codes of e4m3 under scale s, a power of two. */
static __device__ __forceinline__ uint32_t
four_codes(const float *v, float s)
{
    const float by = __uint_as_float(0x7f000000u - __float_as_uint(s));
    const uint32_t low = __nv_cvt_float2_to_fp8x2(make_float2(v[0] * by, v[1] * by),
                                                  __NV_SATFINITE, __NV_E4M3);
    const uint32_t high = __nv_cvt_float2_to_fp8x2(make_float2(v[2] * by, v[3] * by),
                                                   __NV_SATFINITE, __NV_E4M3);

    return low | high << 16;
}

/* A warp's row packed as struct attention_args says, to one place or two. A group of 64 is 8
 * lanes', and a lane stores four elements at a time. */
template <int N>
static __device__ __forceinline__ void
pack_pieces(const float (*v)[ROW_PIECE], int dim, int rope_dim, enum kv_fmt fmt,
            int row_bytes, uint8_t *to, uint8_t *also)
{
    const int nope = fmt == KV_BF16 ? 0 : dim - rope_dim, lane = threadIdx.x % WARP;
    const struct key_parts parts = key_parts_of(dim, nope);

    also = also != NULL ? also : to;
#pragma unroll
    for (int k = 0; k < N; k++) {
        const int at = chunk_at(k, lane);
        float amax = 1e-4f;

        if (k * ROW_CHUNK >= dim)
            break;
#pragma unroll
        for (int i = 0; i < ROW_PIECE; i++)
            if (at + i < nope)
                amax = fmaxf(amax, fabsf(v[k][i]));
#pragma unroll
        for (int d = KV_GROUP / ROW_PIECE / 2; d > 0; d /= 2)
            amax = fmaxf(amax, __shfl_xor_sync(~0u, amax, d));
        const uint8_t ex = f32_to_e8m0_up(amax * (1.0f / 448.0f));

#pragma unroll
        for (int p = 0; p < 2; p++) {
            uint8_t *place = p == 0 ? to : also;

#pragma unroll
            for (int i = 0; i < ROW_PIECE; i += 4) {
                const float *u = v[k] + i;

                if (at + i < nope)
                    *(uint32_t *)(place + at + i) = four_codes(u, e8m0_to_f32(ex));
                else if (at + i < dim) {
                    uint32_t *wide = (uint32_t *)(place + key_wide(parts, at + i));

                    wide[0] = to_bf16_pair(u[0], u[1]);
                    wide[1] = to_bf16_pair(u[2], u[3]);
                }
            }
            if (at % KV_GROUP == 0 && at < nope)
                place[key_scale(parts, at)] = ex;
        }
    }
    for (int i = parts.scales + ceil_div(nope, KV_GROUP) + lane; i < row_bytes; i += WARP)
        to[i] = also[i] = 0;
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

/* The window's key of a row, by the first warp of a block. */
template <int N>
static __device__ __forceinline__ void
key_row(const struct inputs_args &a, int row)
{
    const struct dev_row r = a.rows[row];
    const int lane = threadIdx.x % WARP;
    const uint16_t *x = a.kv + row_start(row, a.dim);
    uint8_t *ring = a.keep ? a.spans[r.span].rings + a.ring_at +
                                 row_start(ring_slot(r.pos, a.ring_slots), a.row_bytes)
                           : NULL;
    float v[N][ROW_PIECE] = {};

    pdl_wait();
    if (threadIdx.x >= WARP)
        return;
#pragma unroll
    for (int k = 0; k < N; k++)
        if (chunk_at(k, lane) < a.dim)
            bf16_eight(*(const uint4 *)(x + chunk_at(k, lane)), v[k]);
    norm_rotate<N>(v, a.kv_norm, a.cs + row_start(row, a.rope_dim), a.dim, a.rope_dim,
                   a.eps);
    pack_pieces<N>(v, a.dim, a.rope_dim, a.fmt, a.row_bytes,
                   a.keys + row_start(row, a.row_bytes), ring);
}

/* The indexer's weights of a row, by all but the first warp. */
static __device__ __forceinline__ void
scale_weights(const struct inputs_args &a, int row)
{
    uint16_t *w = a.weights + row_start(row, a.n_weights);

    if (threadIdx.x < WARP)
        return;
    for (int h = (int)threadIdx.x - WARP; h < a.n_weights; h += (int)blockDim.x - WARP)
        w[h] = f32_to_bf16(bf16_to_f32(w[h]) * a.weight_scale);
}

static __device__ __forceinline__ int
width_of(const struct compress_args &k)
{
    return compress_width(k.dim, k.overlap);
}

/* Value and score of a row of this step into its ring. */
static __device__ __forceinline__ void
keep_row(const struct compress_args &k, int row)
{
    const struct dev_row r = k.rows[row];
    const int width = width_of(k);
    const float *raw = k.raw + compress_row(row, width);
    float *to = (float *)(k.spans[r.span].rings + k.ring_at) +
                compress_row(ring_slot(r.pos, k.slots), width);
    const float *ape = k.ape + row_start(ring_slot(r.pos, k.ratio), width);

    pdl_wait();
    for (int c = (int)threadIdx.x * 4; c < width; c += (int)blockDim.x * 4) {
        const float4 value = *(const float4 *)(raw + c), add = *(const float4 *)(ape + c);
        float4 score = *(const float4 *)(raw + width + c);

        score.x += add.x;
        score.y += add.y;
        score.z += add.z;
        score.w += add.w;
        *(float4 *)(to + c) = value;
        *(float4 *)(to + width + c) = score;
    }
}

static __device__ __forceinline__ float
quarter(float4 v, int i)
{
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

/* One of an entry's inputs: values at c, scores `width` further on, what is added to these. */
struct entry_input {
    const float *value,
        *ape; /* value NULL: in front of the start; ape NULL: has been added */
};

/* Channel c at position i of entry j's blocks (compress.cu). */
static __device__ __forceinline__ struct entry_input
input_of(const struct compress_args &k, const struct dev_span &s, uint64_t j, int i, int c)
{
    const int width = width_of(k), back = compress_back(k.ratio, k.overlap);
    const int64_t pos = (int64_t)j * k.ratio - back + i;
    const int at = c + (k.overlap && i >= back ? k.dim : 0);
    struct entry_input in = {NULL, NULL};

    if (pos < 0)
        return in;
    if ((uint64_t)pos >= s.start) {
        in.value = k.raw + compress_row(step_row(s.row0, pos, s.start), width) + at;
        in.ape = k.ape + row_start(pos % k.ratio, width) + at;
    } else
        in.value = (const float *)(s.rings + k.ring_at) +
                   compress_row(ring_slot(pos, k.slots), width) + at;
    return in;
}

/* Softmax over some of an entry's inputs, of one channel; top -inf: over none. */
struct pooled {
    float top, sum, total;
};

/* What was summed up with another top, as a factor. */
static __device__ __forceinline__ float
pool_factor(float top, float of)
{
    return top > -CUDART_INF_F ? expf(top - of) : 0.0f;
}

/* Channels c .. c + 3 of inputs first .. end - 1, POOL_BATCH of them on their way at a time. */
static __device__ __forceinline__ void
pool_slice(const struct compress_args &k, const struct dev_span &s, uint64_t j, int first,
           int end, int c, struct pooled *p)
{
    const int width = width_of(k);
    float4 value[POOL_BATCH], score[POOL_BATCH], add[POOL_BATCH];

    for (; first < end; first += POOL_BATCH) {
#pragma unroll
        for (int i = 0; i < POOL_BATCH; i++) {
            struct entry_input in = {NULL, NULL};
            const float none = -CUDART_INF_F;

            if (first + i < end)
                in = input_of(k, s, j, first + i, c);
            value[i] = add[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            score[i] = make_float4(none, none, none, none);
            if (in.value != NULL) {
                value[i] = *(const float4 *)in.value;
                score[i] = *(const float4 *)(in.value + width);
            }
            if (in.ape != NULL)
                add[i] = *(const float4 *)in.ape;
        }
#pragma unroll
        for (int n = 0; n < 4; n++) {
            float x[POOL_BATCH], top = p[n].top, by;

#pragma unroll
            for (int i = 0; i < POOL_BATCH; i++) {
                x[i] = quarter(score[i], n) + quarter(add[i], n);
                top = fmaxf(top, x[i]);
            }
            by = pool_factor(p[n].top, top);
            p[n].top = top;
            p[n].sum *= by;
            p[n].total *= by;
#pragma unroll
            for (int i = 0; i < POOL_BATCH; i++) {
                const float weight = pool_factor(x[i], top);

                p[n].sum += weight;
                p[n].total = fmaf(weight, quarter(value[i], n), p[n].total);
            }
        }
    }
}

/* All channels of entry j (spec 6.1) to v: a thread has four channels of a slice of the inputs, and
 * slices are put together in ascending order. What is in front of the start counts for nothing. */
static __device__ __forceinline__ void
pool(const struct compress_args &k, const struct dev_span &s, uint64_t j, float *v)
{
    __shared__ struct pooled part[POOL_THREADS][4];
    const int n = compress_count(k.ratio, k.overlap), columns = k.dim / 4;
    const int slices = POOL_THREADS / columns, each = ceil_div(n, slices);
    const int slice = threadIdx.x / columns, c = threadIdx.x % columns * 4;

    if (slice < slices) {
        struct pooled p[4];

#pragma unroll
        for (int i = 0; i < 4; i++)
            p[i] = {-CUDART_INF_F, 0.0f, 0.0f};
        pool_slice(k, s, j, slice * each, min((slice + 1) * each, n), c, p);
#pragma unroll
        for (int i = 0; i < 4; i++)
            part[threadIdx.x][i] = p[i];
    }
    __syncthreads();
    for (int at = threadIdx.x; at < k.dim; at += POOL_THREADS) {
        float top = -CUDART_INF_F, sum = 0.0f, total = 0.0f;

        for (int i = 0; i < slices; i++)
            top = fmaxf(top, part[i * columns + at / 4][at % 4].top);
        for (int i = 0; i < slices; i++) {
            const struct pooled p = part[i * columns + at / 4][at % 4];
            const float by = pool_factor(p.top, top);

            sum += p.sum * by;
            total += p.total * by;
        }
        v[at] = bf16_round(total / sum);
    }
}

/* Entry number `at` of the step, if there is one, from its pool to its place in a page. v: f32 [dim]
 * in shared memory. */
template <int N>
static __device__ __forceinline__ void
finish_entry(const struct inputs_args &a, const struct compress_args &k, int at, bool index,
             float *v)
{
    const int lane = threadIdx.x % WARP, per_page = KV_PAGE_TOKENS / k.ratio;
    const int bytes = index ? fp4_row(k.dim) : a.row_bytes;
    float x[N][ROW_PIECE] = {};

    if (at >= *k.count) {
        pdl_wait();
        return;
    }
    const struct dev_entry entry = k.entries[at];
    const struct dev_span s = k.spans[entry.span];
    uint8_t *to = s.pages[entry_page(entry.j, per_page)] + k.page_at +
                  row_start(entry_row(entry.j, per_page), bytes);

    pdl_wait();
    pool(k, s, entry.j, v);
    __syncthreads();
    if (threadIdx.x >= WARP)
        return;
#pragma unroll
    for (int n = 0; n < N; n++)
        if (chunk_at(n, lane) < k.dim)
            load_piece(v + chunk_at(n, lane), x[n]);
    norm_rotate<N>(x, k.norm, k.cs + row_start(at, a.rope_dim), k.dim, a.rope_dim, a.eps);
    if (!index) {
        pack_pieces<N>(x, k.dim, a.rope_dim, a.fmt, bytes, to, NULL);
        return;
    }
#pragma unroll
    for (int n = 0; n < N; n++)
        for (int i = 0; i < ROW_PIECE && chunk_at(n, lane) < k.dim; i++)
            v[chunk_at(n, lane) + i] = x[n][i];
    index_pack(v, k.dim, to);
}

/* Parts of a row that wait for each other nowhere: a block each. v: f32 [dim] in shared memory;
 * N: chunks of a row at most. */
enum { PART_BACK, PART_KEY, PART_ENTRY, PART_KEEP, PART_INDEX, PART_INDEX_KEEP, PARTS };

template <int N>
static __device__ __forceinline__ void
inputs_part(const struct inputs_args &a, int part, int row, float *v)
{
    const bool index = part == PART_INDEX || part == PART_INDEX_KEEP;
    const struct compress_args &k = index ? a.index : a.comp;

    switch (part) {
    case PART_BACK:
        pdl_wait();
        way_back(a.back, (size_t)row);
        break;
    case PART_KEY:
        key_row<N>(a, row);
        scale_weights(a, row);
        break;
    case PART_ENTRY:
    case PART_INDEX: finish_entry<N>(a, k, row, index, v); break;
    default:
        if (a.keep)
            keep_row(k, row);
        else
            pdl_wait();
    }
}

/* Parts that there are: the last ones are the compressor's and the indexer's. */
static inline int
inputs_parts(const struct inputs_args *a)
{
    return a->n_weights > 0 ? PARTS : a->comp.ratio > 0 ? PART_INDEX : PART_ENTRY;
}

/* Shapes that parts can do with that many chunks, and the shared memory that they want. */
static inline bool
inputs_can(const struct inputs_args *a, int chunks)
{
    return a->dim <= chunks * ROW_CHUNK && a->dim % ROW_PIECE == 0 &&
           a->rope_dim % 4 == 0 && a->comp.dim <= a->dim &&
           a->index.dim <= chunks * ROW_CHUNK && a->q_dim % ROW_PIECE == 0;
}

static inline size_t
inputs_shared(const struct inputs_args *a)
{
    return (size_t)(a->dim > a->index.dim ? a->dim : a->index.dim) * sizeof(float);
}

#endif /* GPU_CUDA_INPUTS_CUH */
