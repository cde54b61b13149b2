/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attention of many rows: a block has a row and 32 heads, and all of the row's keys, which go by in
 * tiles, twice: for scores, and when there is a maximum of them, for values. Nothing is exchanged
 * between blocks, and parts are added up in their order where they are made, in registers.
 *
 * A tile holds keys as they are packed, and who multiplies unpacks. 16 codes lie there so that what
 * ldmatrix hands to a lane, four codes, are two pairs of two dims that a product wants together:
 * dims 2 t, 2 t + 8, 2 t + 1, 2 t + 9 by bytes. For scores a lane has the queries of a
 * slice of dims in registers, from the first tile to the last, and the slices' sums are handed on in
 * shared memory. For values, where the keys of a product come by columns, the same bytes are dims
 * d and d + 8 of two keys.
 *
 * The next tile is on its way while one is multiplied.
 */
#include "base/err.h"
#include "gpu/cuda/attend.cuh"
#include "gpu/index/attend_many.h"
#include "gpu/index/attention.h"

enum {
    GROUPS = MANY_HEADS / HEADS,
    TEAMS = MANY_TEAMS,
    CHUNKS = MAX_DIM / 32 / SLICES, /* of 32 dims, of a slice */
    VALUE_TILES = TILES,            /* of 8 dims, of a warp */
    WIDE_SLICE = (MANY_NOPE - (CHUNKS - 1) * 32 * SLICES) /
                 32, /* its last chunk: no codes */
    VALUE_DIMS = VALUE_TILES * 8,
};

static_assert((int)MAX_DIM == (int)MANY_DIM && WARPS == TEAMS * SLICES, "who does what");

/* Four e4m3 codes under their scales as two pairs of bf16 (widen): bytes 0 and 2, bytes 1 and 3. */
static __device__ __forceinline__ void
widen_pairs(uint32_t w, uint32_t factor, uint32_t *even, uint32_t *odd)
{
    const uint32_t up = 0x5d805d80; /* 2^60 twice */

    *even = times_bf16x2(times_bf16x2(fpbits_e4m3_high(w << 8), up), factor);
    *odd = times_bf16x2(times_bf16x2(fpbits_e4m3_high(w), up), factor);
}

/* What a block has in shared memory. */
struct room {
    uint8_t *keys;
    uint16_t *factor, *q;
    float4 *slice;
    float *score, *tops, *by;
    const uint8_t **row;
    int cap;
};

/* Where tile j and its slices are. */
struct stage {
    uint8_t *keys;
    uint16_t *factor;
    float4 *slice;
};

template <int EIGHTS>
static __device__ __forceinline__ struct stage
stage_of(const struct room &r, int j)
{
    const int i = j % MANY_STAGES;
    struct stage s;

    s.keys = r.keys + i * many_key(many_tile(EIGHTS));
    s.factor = r.factor + i * many_factor(MANY_GROUPS, 0, EIGHTS);
    s.slice = r.slice + many_slice(i, 0, 0, 0, 0, EIGHTS);
    return s;
}

static __device__ __forceinline__ struct room
room_of(uint8_t *memory, int max_keys, int eights)
{
    const struct many_plan s = many_plan_for(max_keys, eights);
    struct room r;

    r.keys = memory + s.keys;
    r.factor = (uint16_t *)(memory + s.factor);
    r.q = (uint16_t *)(memory + s.q);
    r.slice = (float4 *)(memory + s.slice);
    r.score = (float *)(memory + s.score);
    r.tops = (float *)(memory + s.tops);
    r.by = (float *)(memory + s.by);
    r.row = (const uint8_t **)(memory + s.row);
    r.cap = many_cap(max_keys, eights);
    return r;
}

/* Where the keys of the list are; the last one again up to the end of its tile. */
static __device__ __forceinline__ void
find_keys(const struct attend_args &a, const struct list &l, int n, const uint8_t **row)
{
    const int slot = (int)ring_slot(l.first, a.ring_slots);
    const int per_page = a.ratio > 0 ? KV_PAGE_TOKENS / a.ratio : 1;

#pragma unroll 1
    for (int k = threadIdx.x; k < n; k += THREADS) {
        const int i = min(k, l.n - 1);

        if (i < l.n_window) {
            const uint64_t p = l.first + (uint64_t)i;

            row[k] = p < l.s.start
                         ? l.s.rings + a.ring_at +
                               row_start(many_slot(slot, i, a.ring_slots), a.row_bytes)
                         : a.step_rows +
                               row_start(step_row(l.s.row0, p, l.s.start), a.row_bytes);
        } else {
            const int j = l.some ? l.picked[i - l.n_window] : i - l.n_window;

            row[k] = l.s.pages[j / per_page] + a.page_at +
                     row_start(j % per_page, a.row_bytes);
        }
    }
}

/* Queries, which are normed and rotated; zeros for heads that there are not. */
static __device__ __forceinline__ void
put_queries(const struct attend_args &a, int row, int h0, uint16_t *q)
{
    const uint16_t *from = a.q + row_start(row_start(row, a.n_heads) + h0, MANY_DIM);

#pragma unroll
    for (int i = threadIdx.x; i < MANY_HEADS * MANY_DIM / 8; i += THREADS) {
        const int h = piece_row(i, MANY_DIM / 8), c = piece_at(i, MANY_DIM / 8, 8);

        *(uint4 *)(q + attend_row(h, MANY_DIM) + c) =
            h0 + h < a.n_heads ? *(const uint4 *)(from + i * 8) : make_uint4(0, 0, 0, 0);
    }
}

/* What a lane loads of two keys and where to: of each 16 codes; of one of them 16 bytes of what is
 * behind the codes, or the scales, which are the last 8. */
struct share {
    int at, code, behind, to_code, to_other;
};

template <int EIGHTS>
static __device__ __forceinline__ struct share
share_of_lane(void)
{
    const int lane = threadIdx.x % WARP, piece = lane % MANY_WIDE;
    const int at = many_load(threadIdx.x / WARP, 0, EIGHTS);
    const int other = at + lane / MANY_WIDE % 2;
    struct share s;

    s.at = unknown(at);
    s.code = unknown(min(lane, MANY_UNITS - 1) * 16);
    s.behind = unknown(many_behind(lane));
    s.to_code = unknown(many_key(at) + lane * 16);
    s.to_other = unknown(lane < 2 * MANY_WIDE ? many_wide(other, piece)
                                              : many_factor(piece, other, EIGHTS));
    return s;
}

struct two_keys {
    uint2 code[2][2], wide[2];
};

/* Turn t of a warp's, of a tile whose first key is `row`. */
static __device__ __forceinline__ struct two_keys
load_two(const struct share &s, const uint8_t *const *row, int t)
{
    const bool second = threadIdx.x & MANY_WIDE;
    const uint8_t *other = row[s.at + 2 * t + second] + s.behind;
    struct two_keys x;

#pragma unroll
    for (int u = 0; u < 2; u++) {
        const uint8_t *from = row[s.at + 2 * t + u] + s.code;

        x.code[u][0] = load_beside((const uint2 *)from);
        x.code[u][1] = load_beside((const uint2 *)from + 1);
    }
    x.wide[0] = load_beside((const uint2 *)other);
    x.wide[1] = load_beside((const uint2 *)other + 1);
    return x;
}

static __device__ __forceinline__ void
put_two(const struct share &s, const struct two_keys &x, uint8_t *keys, uint16_t *factor,
        int t)
{
    const int lane = threadIdx.x % WARP, piece = lane % MANY_WIDE;

    if (lane < MANY_UNITS)
#pragma unroll
        for (int u = 0; u < 2; u++) {
            const uint2 lo = x.code[u][0], hi = x.code[u][1];

            *(uint4 *)(keys + s.to_code + many_key(2 * t + u)) = make_uint4(
                __byte_perm(lo.x, hi.x, 0x5140), __byte_perm(lo.x, hi.x, 0x7362),
                __byte_perm(lo.y, hi.y, 0x5140), __byte_perm(lo.y, hi.y, 0x7362));
        }
    if (lane < 2 * MANY_WIDE)
        *(uint4 *)(keys + s.to_other + many_key(2 * t)) =
            make_uint4(x.wide[0].x, x.wide[0].y, x.wide[1].x, x.wide[1].y);
    else if (piece < MANY_GROUPS) {
        const uint32_t four = piece < 4 ? x.wide[1].x : x.wide[1].y;

        factor[s.to_other + 2 * t] = factor_bf16(__byte_perm(four, 0, 0x4440 + piece % 4));
    }
}

/* A warp's keys of the first tile. */
template <int EIGHTS>
static __device__ __forceinline__ void
first_tile(const struct share &s, const struct room &r)
{
#pragma unroll
    for (int t = 0; t < EIGHTS; t++)
        put_two(s, load_two(s, r.row, t), r.keys, r.factor, t);
}

/* Where a warp's slice of its team's first eight keys is in a tile, for this lane: codes, what is
 * behind them, factors; and where the slice's sums go. */
struct slice {
    int codes, wide, factor, to;
};

template <int EIGHTS>
static __device__ __forceinline__ struct slice
slice_of_warp(void)
{
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int team = warp % TEAMS, slice = warp / TEAMS;
    const int eight = many_eight(team, 0, EIGHTS),
              row = many_key(eight + quad_row(lane, 8));
    struct slice s;

    s.codes = unknown(row + slice * 32 + lane / 16 * 32 * SLICES + lane / 8 % 2 * 16);
    s.wide = unknown(row + MANY_NOPE + (slice - WIDE_SLICE) * 64 + quad_at(lane, 8) * 2);
    s.factor = unknown(many_factor(slice / 2, eight + lane / 4, EIGHTS));
    s.to = unknown(many_slice(0, team, 0, slice, lane, EIGHTS));
    return s;
}

/* A slice of the scores of eight number t: codes are unpacked on the way. */
template <int EIGHTS>
static __device__ __forceinline__ void
slice_of_eight(const uint32_t (*x)[CHUNKS][2][4], const struct slice &s,
               const uint8_t *keys, const uint16_t *factor, int t, float (*c)[2][4])
{
    const bool wide = threadIdx.x / WARP / TEAMS >= WIDE_SLICE;

#pragma unroll
    for (int i = 0; i < CHUNKS; i += 2) {
        uint32_t w[4];

        ldmatrix(w, keys + s.codes + many_key(t * 8) + i * 32 * SLICES);
#pragma unroll
        for (int u = 0; u < 2; u++) {
            uint32_t b[4];

            if (i + u == CHUNKS - 1 && wide)
                ldmatrix(b, keys + s.wide + many_key(t * 8));
            else {
                const uint32_t f =
                    factor[s.factor + many_factor((i + u) * (SLICES / 2), t * 8, EIGHTS)];

                widen_pairs(w[2 * u], f | f << 16, b, b + 1);
                widen_pairs(w[2 * u + 1], f | f << 16, b + 2, b + 3);
            }
#pragma unroll
            for (int g = 0; g < GROUPS; g++) {
                mma_bf16(c[g][0], x[g][i + u][0], b[0], b[1]);
                mma_bf16(c[g][1], x[g][i + u][1], b[2], b[3]);
            }
        }
    }
}

/* The same for those who add slices up. */
template <int EIGHTS>
static __device__ __forceinline__ void
put_slice(const uint32_t (*x)[CHUNKS][2][4], const struct slice &s, const uint8_t *keys,
          const uint16_t *factor, int t, float4 *to)
{
    float c[GROUPS][2][4] = {};

    slice_of_eight<EIGHTS>(x, s, keys, factor, t, c);
#pragma unroll
    for (int g = 0; g < GROUPS; g++)
        to[s.to + many_slice(0, 0, t * GROUPS + g, 0, 0, EIGHTS)] =
            make_float4(c[g][0][0] + c[g][1][0], c[g][0][1] + c[g][1][1],
                        c[g][0][2] + c[g][1][2], c[g][0][3] + c[g][1][3]);
}

/* Tile j's scores, of 16 heads and eight keys by a warp, from their slices; its two heads' largest. */
template <int EIGHTS>
static __device__ __forceinline__ void
add_up(const struct room &r, int j, int n, double by, float *top)
{
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int team = warp % TEAMS, of = warp / TEAMS;
    const int k = j * many_tile(EIGHTS) + many_eight(team, of / GROUPS, EIGHTS) +
                  mma_col(lane, 0);
    float4 c[SLICES];

    if (of >= GROUPS * EIGHTS)
        return;
#pragma unroll
    for (int i = 0; i < SLICES; i++)
        c[i] = r.slice[many_slice(j % MANY_STAGES, team, of, i, lane, EIGHTS)];
    const float x[4][SLICES] = {{c[0].x, c[1].x, c[2].x, c[3].x},
                                {c[0].y, c[1].y, c[2].y, c[3].y},
                                {c[0].z, c[1].z, c[2].z, c[3].z},
                                {c[0].w, c[1].w, c[2].w, c[3].w}};

#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const int h = of % GROUPS * HEADS + mma_row(lane, i);
        const float2 s =
            make_float2(score_of(x[i], by, k < n), score_of(x[i + 1], by, k + 1 < n));

        *(float2 *)(r.score + attend_row_f32(h, r.cap) + k) = s;
        top[i / 2] = fmaxf(top[i / 2], fmaxf(s.x, s.y));
    }
}

/* The largest of what this warp has seen, for each of its heads. */
static __device__ __forceinline__ void
put_tops(const float *top, int eights, float *tops)
{
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int team = warp % TEAMS, of = warp / TEAMS;

#pragma unroll
    for (int i = 0; i < 2; i++) {
        float most = fmaxf(top[i], __shfl_xor_sync(~0u, top[i], 1));

        most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
        if (lane % 4 == 0 && of < GROUPS * eights)
            tops[(team * eights + of / GROUPS) * MANY_HEADS + of % GROUPS * HEADS +
                 mma_row(lane, 2 * i)] = most;
    }
}

/* All scores. Tiles come and go by two stages; in the stage of slices that one tile fills, those of
 * the tile before the last were. */
template <int EIGHTS>
static __device__ __forceinline__ void
all_scores(const struct room &r, int n, int tiles)
{
    const double by = 1.0 / sqrt((double)MANY_DIM);
    const struct slice s = slice_of_warp<EIGHTS>();
    const struct share mine = share_of_lane<EIGHTS>();
    const uint8_t *const *row = r.row;
    uint32_t x[GROUPS][CHUNKS][2][4];
    float top[2] = {-CUDART_INF_F, -CUDART_INF_F};

    first_tile<EIGHTS>(mine, r);
#pragma unroll
    for (int g = 0; g < GROUPS; g++)
        query_slice(MANY_DIM, r.q + attend_row(g * HEADS, MANY_DIM),
                    threadIdx.x / WARP / TEAMS * 32, x[g]);
#pragma unroll 1
    for (int j = 0; j < tiles; j++) {
        const struct stage now = stage_of<EIGHTS>(r, j), next = stage_of<EIGHTS>(r, j + 1);
        const bool more = j + 1 < tiles;

        __syncthreads(); /* the tile is here; queries are read */
        if (j > 0)
            add_up<EIGHTS>(r, j - 1, n, by, top);
        row += many_tile(EIGHTS);
#pragma unroll
        for (int t = 0; t < EIGHTS; t++) {
            struct two_keys two;

            if (more)
                two = load_two(mine, row, t);
            put_slice<EIGHTS>(x, s, now.keys, now.factor, t, now.slice);
            if (more)
                put_two(mine, two, next.keys, next.factor, t);
        }
    }
    __syncthreads();
    add_up<EIGHTS>(r, tiles - 1, n, by, top);
    put_tops(top, EIGHTS, r.tops);
}

/* One of two sums to each half of lanes that differ in bit d: of what both have of it. */
static __device__ __forceinline__ double
halves(double a, double b, int d)
{
    const bool second = threadIdx.x & d;

    return (second ? b : a) + __shfl_xor_sync(~0u, second ? a : b, d);
}

/* Weights of two heads, where their scores were, and the sum of those not rounded, for the first in
 * lanes 0 .. 7, the second in 8 .. 15. Two parts go by at a time, their keys by lanes in turn: a part
 * that begins in the middle of a turn has lanes in other places than one by itself (weights), but
 * with the same neighbours, so that its sum is the same. */
static __device__ __forceinline__ double
weigh_two(float *const *score, int n, int part, const float *most)
{
    const int lane = threadIdx.x % WARP, padded = (n + 15) / 16 * 16;
    double all = 0.0;

#pragma unroll 1
    for (int from = 0, k = lane; from < n; from += 2 * part) {
        double sum[2][2] = {};

#pragma unroll 1
        for (int i = lane; i < 2 * part; i += WARP, k += WARP) {
            float v[2];

#pragma unroll
            for (int u = 0; u < 2; u++) {
                v[u] = weight_of(score[u][min(k, n - 1)], most[u]);
                v[u] = k < n ? v[u] : 0.0f;
                if (i < part)
                    sum[u][0] += (double)v[u];
                else
                    sum[u][1] += (double)v[u];
            }
            __syncwarp(); /* all lanes have read scores where there will be weights */
            if (k < padded) {
                const uint32_t p = to_bf16_pair(v[0], v[1]);

                ((uint16_t *)score[0])[k] = (uint16_t)p;
                ((uint16_t *)score[1])[k] = (uint16_t)(p >> 16);
            }
            __syncwarp();
        }
        double one =
            halves(halves(sum[0][0], sum[0][1], 16), halves(sum[1][0], sum[1][1], 16), 8);

#pragma unroll
        for (int d = 4; d > 0; d /= 2)
            one += __shfl_xor_sync(~0u, one, d);
        all += one; /* right in lanes that have the first part */
        all += __shfl_xor_sync(~0u, one, 16);
    }
    return all;
}

/* Weights under the largest of all scores, and what a head's values are multiplied by. A warp has two
 * heads. */
static __device__ __forceinline__ void
all_weights(const struct attend_args &a, float *score, int cap, const float *tops,
            int n_tops, int h0, int n, int part, float *by)
{
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int h = warp + lane / 8 % 2 * WARPS;
    float most[2], *mine[2];

#pragma unroll
    for (int u = 0; u < 2; u++) {
        most[u] = warp_max(lane < n_tops ? tops[lane * MANY_HEADS + warp + u * WARPS]
                                         : -CUDART_INF_F);
        mine[u] = score + attend_row_f32(warp + u * WARPS, cap);
    }
    const double all = weigh_two(mine, n, part, most);

    if (lane == 0 || lane == 8) {
        const float rest = h0 + h < a.n_heads
                               ? weight_of(a.sink[h0 + h], lane == 0 ? most[0] : most[1])
                               : 0.0f;

        by[h] = inverse_of(all + (double)rest);
    }
}

/* Where the first 16 weights and keys of a tile are for this lane, the latter in dims of its warp; and
 * factors. */
struct values {
    int p, keys, factor;
};

template <int EIGHTS>
static __device__ __forceinline__ struct values
values_of_warp(int stride)
{
    const int lane = threadIdx.x % WARP, d = threadIdx.x / WARP * VALUE_DIMS;
    struct values v;

    v.p = unknown(quad_row(lane, 16) * stride + quad_at(lane, 16));
    v.keys = unknown(many_key(quad_row(lane, 16)) + quad_at(lane, 16) * 2 +
                     (d < MANY_NOPE ? d : MANY_NOPE + (d - MANY_NOPE) * 2));
    v.factor = unknown(many_factor(d / 64, mma_col(lane, 0), EIGHTS));
    return v;
}

/* acc += weights of all heads times 16 keys' values, dims of this warp. */
static __device__ __forceinline__ void
values_of_16(const uint16_t *p, int stride, const uint8_t *keys, const uint16_t *factor,
             float (*acc)[VALUE_TILES][4])
{
    uint32_t x[GROUPS][4], b[VALUE_TILES][2];

#pragma unroll
    for (int g = 0; g < GROUPS; g++)
        ldmatrix(x[g], p + g * HEADS * stride);
    if (threadIdx.x / WARP * VALUE_DIMS < MANY_NOPE) {
        const uint32_t lo = *(const uint32_t *)factor;
        const uint32_t hi = *(const uint32_t *)(factor + 8);
        uint32_t w[4];

        ldmatrix_trans(w, keys);
#pragma unroll
        for (int u = 0; u < 2; u++) {
            widen_pairs(w[2 * u], lo, &b[2 * u][0], &b[2 * u + 1][0]);
            widen_pairs(w[2 * u + 1], hi, &b[2 * u][1], &b[2 * u + 1][1]);
        }
    } else {
        ldmatrix_trans(b[0], keys);
        ldmatrix_trans(b[2], keys + 32);
    }
#pragma unroll
    for (int t = 0; t < VALUE_TILES; t++)
#pragma unroll
        for (int g = 0; g < GROUPS; g++)
            mma_bf16(acc[g][t], x[g], b[t][0], b[t][1]);
}

/* all += part; and a part begins. */
static __device__ __forceinline__ void
next_part(float (*all)[VALUE_TILES][4], float (*part)[VALUE_TILES][4])
{
#pragma unroll
    for (int g = 0; g < GROUPS; g++)
#pragma unroll
        for (int t = 0; t < VALUE_TILES; t++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                all[g][t][i] += part[g][t][i];
                part[g][t][i] = 0.0f;
            }
}

/* Weights times values, part by part; tiles as for scores, the first one is here. */
template <int EIGHTS>
static __device__ __forceinline__ void
all_values(const struct room &r, int n, int part, int tiles, bool again,
           float (*all)[VALUE_TILES][4])
{
    const int stride = attend_row_f32(1, r.cap) * 2;
    const struct values v = values_of_warp<EIGHTS>(stride);
    const struct share mine = share_of_lane<EIGHTS>();
    const uint8_t *const *row = r.row;
    const uint16_t *p = (const uint16_t *)r.score + v.p;
    float acc[GROUPS][VALUE_TILES][4] = {};
    int end = part, k = 0;

    if (again)
        first_tile<EIGHTS>(mine, r);
#pragma unroll 1
    for (int j = 0; j < tiles; j++) {
        const struct stage now = stage_of<EIGHTS>(r, j), next = stage_of<EIGHTS>(r, j + 1);
        const bool more = again && j + 1 < tiles;

        __syncthreads(); /* the tile is here, and weights are */
        row += many_tile(EIGHTS);
#pragma unroll
        for (int t = 0; t < EIGHTS; t++) {
            struct two_keys two;

            if (more)
                two = load_two(mine, row, t);
#pragma unroll
            for (int in = t * 32; in < t * 32 + 32; in += 16, k += 16, p += 16) {
                if (k >= n)
                    continue;
                if (k == end) {
                    next_part(all, acc);
                    end += part;
                }
                values_of_16(p, stride, now.keys + v.keys + many_key(in),
                             now.factor + v.factor + in, acc);
            }
            if (more)
                put_two(mine, two, next.keys, next.factor, t);
        }
    }
    next_part(all, acc);
}

/* Under their weights' sum, rotated back. */
static __device__ __forceinline__ void
put_all(const struct attend_args &a, int row, int h0, const float (*all)[VALUE_TILES][4],
        const float *by)
{
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int c = warp * VALUE_DIMS + mma_col(lane, 0);
    const float *cs = a.cs + row_start(row, MANY_DIM - MANY_NOPE) + c - MANY_NOPE;

#pragma unroll
    for (int g = 0; g < GROUPS; g++)
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
            const int h = g * HEADS + mma_row(lane, i);
            uint16_t *o = a.o + row_start(row_start(row, a.n_heads) + h0 + h, MANY_DIM) + c;
            uint32_t pair[VALUE_TILES];

#pragma unroll
            for (int t = 0; t < VALUE_TILES; t++)
                pair[t] = to_bf16_pair(all[g][t][i] * by[h], all[g][t][i + 1] * by[h]);
            if (warp * VALUE_DIMS >= MANY_NOPE)
#pragma unroll
                for (int t = 0; t < VALUE_TILES; t++)
                    pair[t] = query_turned(pair[t], cs[t * 8], -cs[t * 8 + 1]);
            if (h0 + h < a.n_heads)
#pragma unroll
                for (int t = 0; t < VALUE_TILES; t++)
                    *(uint32_t *)(o + t * 8) = pair[t];
        }
}

/* Grid: twos of groups of heads, rows. */
template <int EIGHTS>
static __global__ void __launch_bounds__(THREADS)
attend_many_kernel(const __grid_constant__ struct attend_args a)
{
    LAUNCH_SHARED(128, uint8_t, memory);
    const struct room r = room_of(memory, a.max_keys, EIGHTS);
    const int row = blockIdx.y, h0 = blockIdx.x * MANY_HEADS, tile = many_tile(EIGHTS);
    float all[GROUPS][VALUE_TILES][4] = {};

    pdl_go();
    pdl_wait();
    const struct list l = list_of(a, row);
    const int part = attend_part(l.n), tiles = ceil_div(l.n, tile);
    const bool again = tiles > MANY_STAGES; /* else all are still here */

    find_keys(a, l, tiles * tile, r.row);
    put_queries(a, row, h0, r.q);
    __syncthreads();
    all_scores<EIGHTS>(r, l.n, tiles);
    __syncthreads(); /* all scores are here */
    all_weights(a, r.score, r.cap, r.tops, TEAMS * EIGHTS, h0, l.n, part, r.by);
    all_values<EIGHTS>(r, l.n, part, tiles, again, all);
    put_all(a, row, h0, all, r.by);
}

/* Of how many eights of keys a team's share of a tile is; 0: this is not for it. Blocks take as
 * long for one row as for one of each multiprocessor, some three times as long as a cluster. */
static int
eights_for(const struct cuda_rank *rk, const struct attend_args *a)
{
    int eights = 2;

    if (a->dim != MANY_DIM || a->dim - a->rope_dim != MANY_NOPE ||
        a->window > a->ring_slots || a->raw ||
        a->n * ceil_div(a->n_heads, HEADS) * 3 <= rk->sms ||
        attend_pieces(attend_part(a->max_keys)) > 1)
        return 0;
    while (eights > 0 &&
           (size_t)many_plan_for(a->max_keys, eights).bytes > rk->shared_bytes)
        eights--;
    return eights;
}

template <int EIGHTS>
static int
attend_in(struct cuda_rank *rk, const struct attend_args *a, struct err *e)
{
    const int shared = many_plan_for(a->max_keys, EIGHTS).bytes;
    const dim3 grid(ceil_div(a->n_heads, MANY_HEADS), a->n);

    SHARED_TRY(attend_many_kernel<EIGHTS>, shared, e);
    CU_TRY(launch_pdl(rk, attend_many_kernel<EIGHTS>, grid, THREADS, shared, *a), e);
    return 0;
}

bool
attend_is_many(const struct cuda_rank *rk, const struct attend_args *a)
{
    return eights_for(rk, a) > 0;
}

int
attend_many_cuda(struct cuda_rank *rk, const struct attend_args *a, struct err *e)
{
    return eights_for(rk, a) == 2 ? attend_in<2>(rk, a, e) : attend_in<1>(rk, a, e);
}
