/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hyper-connections between sublayers in two kernels (spec 4), of which this is the first and
 * streams_in.cu the second: the plain operations are in mhc.cu, norm.cu and quant.cu, and these do
 * the same to a row that is read once.
 *
 * streams_mix: a block has some columns of all streams. A warp puts the sublayer's output back into
 * one row of them; then all warps, from what the streams now are, make the block's part of the next
 * mixing matrix, each some of its outputs, for 8 rows at a time; a row alone has a kernel for itself.
 * streams_in: a block a row adds those parts up in order and makes the next sublayer's input of the
 * streams. What the way back will need takes Sinkhorn's iterations, a long chain that nobody waits
 * for yet: blocks of later kernels make it (streams.cuh).
 *
 * One row is bound by the chain from the kernel in front to the one behind: what can be known or
 * loaded before that one is done stands in front of pdl_wait, and what it left is asked for at once
 * behind it.
 */
#include "base/err.h"
#include "gpu/cuda/device.cuh"
#include "gpu/cuda/streams.cuh"

enum {
    MIX_WARPS = 8,
    MIX_BLOCKS = 4, /* on a multiprocessor */
    MIX_ROUTED = 8, /* experts' rows under way at a time */
};

/* Outputs of a warp, at most. */
static __host__ __device__ constexpr int
mix_turns(int hc)
{
    return (2 * hc + hc * hc + MIX_WARPS - 1) / MIX_WARPS;
}

static __device__ __forceinline__ void
bf16_four(uint2 u, float *v)
{
    bf16_pair(u.x, v);
    bf16_pair(u.y, v + 2);
}

static __device__ __forceinline__ void
add_four(uint2 u, float *sum)
{
    float v[4];

    bf16_four(u, v);
#pragma unroll
    for (int n = 0; n < 4; n++)
        sum[n] += v[n];
}

static __device__ __forceinline__ uint2
to_bf16_four(const float *v)
{
    return make_uint2(to_bf16_pair(v[0], v[1]), to_bf16_pair(v[2], v[3]));
}

/* The sublayer's output of a row in 4 columns: one row, or the experts' rows added up. */
static __device__ __forceinline__ uint2
sublayer_output(const struct streams_mix_args &a, int row, int c)
{
    const int lane = threadIdx.x % WARP;
    float f[4] = {};

    if (a.f != NULL)
        return *(const uint2 *)(a.f + row_start(row, a.dim) + c);
    const uint2 shared = *(const uint2 *)(a.shared + row_start(row, a.dim) + c);
    const int place = lane < a.k ? a.slot[row_start(row, a.k) + lane] : 0;

    for (int first = 0; first < a.k; first += MIX_ROUTED) {
        uint2 u[MIX_ROUTED];

#pragma unroll
        for (int i = 0; i < MIX_ROUTED; i++) {
            const int at = __shfl_sync(~0u, place, first + i);

            u[i] = make_uint2(0, 0);
            if (first + i < a.k)
                u[i] = *(const uint2 *)(a.routed + row_start(at, a.dim) + c);
        }
#pragma unroll
        for (int i = 0; i < MIX_ROUTED; i++)
            add_four(u[i], f);
    }
    add_four(shared, f);
    return to_bf16_four(f);
}

/* The sublayer's output by way of where two devices would exchange it (gpu/cuda/kernels.h). All lanes
 * of a warp; s: whose stream. */
static __device__ __forceinline__ uint2
exchanged(const struct streams_mix_args &a, int row, int s, int c, bool mine, uint2 f)
{
    uint2 *at = (uint2 *)(a.through + row_start(row, a.dim) + c);

    if (mine && s == 0)
        *at = f;
    __syncwarp();
    return mine ? load_beside(at) : f;
}

/* One stream in 4 columns with the sublayer's output f put back: of all as they were, by a column of
 * comb. */
template <int HC>
static __device__ __forceinline__ uint2
put_back(const uint2 *old, const float *by, float post, uint2 f)
{
    float out[4], sum[4] = {};

#pragma unroll
    for (int i = 0; i < HC; i++) {
        float w[4];

        bf16_four(old[i], w);
#pragma unroll
        for (int n = 0; n < 4; n++)
            sum[n] += by[i] * w[n];
    }
    bf16_four(f, out);
#pragma unroll
    for (int n = 0; n < 4; n++)
        out[n] = post * out[n] + sum[n];
    return to_bf16_four(out);
}

/* Stream s of a row in 4 columns, with the sublayer's output put back, by a warp. */
template <int HC>
static __device__ __forceinline__ uint2
take_in(const struct streams_mix_args &a, int row, int s, int c, bool mine)
{
    const int hc = HC == 4 ? 4 : a.hc;
    uint16_t *x = a.x + row_start(row_start(row, hc), a.dim) + c;
    const float *comb = a.comb + row_start(row_start(row, hc), hc) + s;
    float by[HC], post = 0.0f;
    uint2 old[HC], f, v;

    if (a.post == NULL)
        return mine ? *(const uint2 *)(x + row_start(s, a.dim)) : make_uint2(0, 0);
#pragma unroll
    for (int i = 0; i < HC; i++) {
        const bool is = mine && (HC == 4 || i < hc);

        old[i] = is ? *(const uint2 *)(x + row_start(i, a.dim)) : make_uint2(0, 0);
        by[i] = is ? comb[stream_cell(i, hc, 0)] : 0.0f;
    }
    if (mine)
        post = a.post[row_start(row, hc) + s];
    f = sublayer_output(a, row, mine ? c : 0);
    if (a.through != NULL)
        f = exchanged(a, row, s, c, mine, f);
    v = put_back<HC>(old, by, post, f);
    __syncwarp(); /* all streams have been read */
    if (mine)
        *(uint2 *)(x + row_start(s, a.dim)) = v;
    return v;
}

/* Where a lane finds what it puts back of the only row, one column of one stream: known before the
 * kernels in front are done. */
template <int HC> struct row_places {
    const uint16_t *old[HC], *routed[MIX_ROUTED], *f;
    const float *by, *post;
    uint16_t *x, *through;
};

template <int HC>
static __device__ __forceinline__ void
find_row(const struct streams_mix_args &a, int s, int c, bool mine, row_places<HC> *p)
{
    const int hc = HC == 4 ? 4 : a.hc, at = mine ? c : 0, stream = mine ? s : 0;

#pragma unroll
    for (int i = 0; i < HC; i++)
        p->old[i] = unknown(a.x + stream_cell(HC == 4 || i < hc ? i : 0, a.dim, at));
#pragma unroll
    for (int i = 0; i < MIX_ROUTED; i++)
        p->routed[i] = unknown(a.routed + row_start(max(min(i, a.k - 1), 0), a.dim) + at);
    p->f = unknown((a.f != NULL ? a.f : a.shared) + at);
    p->by = unknown(a.comb + stream);
    p->post = unknown(a.post + stream);
    p->x = unknown(a.x + stream_cell(stream, a.dim, at));
    p->through = unknown(a.through + at);
}

/* The same as take_in of one column, with all loads under way at once; a lane that has none does
 * the first one's work. */
template <int HC>
static __device__ __forceinline__ uint16_t
take_in_row(const struct streams_mix_args &a, const row_places<HC> &p, int s, bool mine)
{
    const int hc = HC == 4 ? 4 : a.hc;
    uint16_t old[HC], u[MIX_ROUTED], own, v;
    float by[HC], f, sum = 0.0f;

    if (a.post == NULL)
        return mine ? *p.x : 0;
#pragma unroll
    for (int i = 0; i < HC; i++) {
        old[i] = *p.old[i];
        by[i] = HC == 4 || i < hc ? p.by[stream_cell(i, hc, 0)] : 0.0f;
    }
    own = *p.f;
    const float post = *p.post;

    if (a.f == NULL) {
#pragma unroll
        for (int i = 0; i < MIX_ROUTED; i++)
            u[i] = *p.routed[i];
#pragma unroll
        for (int i = 0; i < MIX_ROUTED; i++)
            sum += i < a.k ? bf16_to_f32(u[i]) : 0.0f;
        own = (uint16_t)to_bf16_pair(sum + bf16_to_f32(own), 0.0f);
    }
    f = bf16_to_f32(own);
    if (a.through != NULL) {
        if (mine && s == 0)
            *p.through = own;
        __syncwarp();
        f = bf16_to_f32(load_beside(p.through));
    }
    sum = 0.0f;
#pragma unroll
    for (int i = 0; i < HC; i++)
        sum += by[i] * bf16_to_f32(old[i]);
    v = (uint16_t)to_bf16_pair(post * f + sum, 0.0f);
    __syncwarp(); /* all streams have been read */
    if (mine)
        *p.x = v;
    return mine ? v : 0;
}

static __device__ __forceinline__ float
times_four(float4 w, uint2 u)
{
    float v[4];

    bf16_four(u, v);
    return fmaf(w.w, v[3], fmaf(w.z, v[2], fmaf(w.y, v[1], w.x * v[0])));
}

/* What of fn goes with a warp's outputs and a lane's columns, on its way. */
template <int HC>
static __device__ __forceinline__ void
load_fn(const struct streams_mix_args &a, int warp, int s, int c, bool inside, float4 *fn)
{
#pragma unroll
    for (int k = 0; k < mix_turns(HC); k++) {
        const int o = warp + k * MIX_WARPS;

        fn[k] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (inside && a.fn != NULL && o < a.n_mix)
            fn[k] = load_ahead((const float4 *)(a.fn + row_start(o, a.hc * a.dim) +
                                                stream_cell(s, a.dim, c)));
    }
}

/* The sum of squares is an output like the others, with the columns for what goes with them. */
static __device__ __forceinline__ float
squared_four(uint2 u)
{
    float v[4];

    bf16_four(u, v);
    return times_four(make_float4(v[0], v[1], v[2], v[3]), u);
}

/*
 * One row. Grid: chunks of columns. The first warps take the sublayer's output in: a lane has one
 * column of one stream, the other streams of it are other lanes'. A warp's outputs are added up
 * together, four at a time.
 */
template <int HC>
static __global__ void __launch_bounds__(MIX_WARPS *WARP)
streams_mix_row_kernel(const __grid_constant__ struct streams_mix_args a)
{
    constexpr int TURNS = mix_turns(HC), LANES = WARP / HC, SUMS = TURNS / 4 * 4 + 4;

    __shared__ __align__(8) uint16_t x[HC][LANES * 4];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int s = lane / LANES, c = mix_column(blockIdx.x, LANES, lane);
    const int mine = warp * LANES + lane % LANES; /* column of the chunk to take in */
    const int at = mix_column(blockIdx.x, LANES, 0) + mine;
    row_places<HC> from;
    float4 fn[TURNS];
    float v[SUMS] = {}, *to[SUMS / 4];
    bool is[SUMS / 4];

    pdl_go();
    load_fn<HC>(a, warp, s, c, s < a.hc && c < a.dim, fn);
    find_row<HC>(a, s, at, s < a.hc && at < a.dim, &from);
#pragma unroll
    for (int k = 0; k < SUMS; k += 4) {
        const int turn = k + lane / (WARP / 4);
        const int o = turn < TURNS ? warp + turn * MIX_WARPS : a.n_mix;

        to[k / 4] = unknown(a.part + mix_part(0, o, a.n_mix + 1, gridDim.x, blockIdx.x));
        is[k / 4] = lane % (WARP / 4) == 0 &&
                    (turn < TURNS ? o < a.n_mix : turn == TURNS && warp == 0);
    }
    pdl_wait();
    if (mine < LANES * 4)
        x[s][mine] = take_in_row<HC>(a, from, s, s < a.hc && at < a.dim);
    __syncthreads();
    if (a.fn == NULL)
        return;
    const uint2 own = *(const uint2 *)&x[s][lane % LANES * 4];

#pragma unroll
    for (int k = 0; k < TURNS; k++)
        v[k] = times_four(fn[k], own);
    v[TURNS] = squared_four(own);
#pragma unroll
    for (int k = 0; k < SUMS; k += 4) {
        const float sum = spread_sums<4>(v + k);

        if (is[k / 4])
            *to[k / 4] = sum;
    }
}

/*
 * Grid: chunks of columns, groups of `rows` rows, a multiple of 8. A lane has 4 columns of one
 * stream, and of fn what goes with them.
 */
template <int HC>
static __global__ void __launch_bounds__(MIX_WARPS *WARP, HC == 4 ? MIX_BLOCKS : 2)
streams_mix_kernel(const __grid_constant__ struct streams_mix_args a, int rows)
{
    constexpr int TURNS = mix_turns(HC), LANES = WARP / HC;

    __shared__ uint2 x[MIX_WARPS][WARP];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, n = a.n_mix + 1;
    const int s = lane / LANES, c = mix_column(blockIdx.x, LANES, lane);
    const bool inside = s < a.hc && c < a.dim;
    const int end = min(a.rows, (int)(blockIdx.y + 1) * rows);
    float4 fn[TURNS];

    pdl_go();
    load_fn<HC>(a, warp, s, c, inside, fn);
    pdl_wait();
    for (int first = blockIdx.y * rows; first < end; first += MIX_WARPS) {
        const int row = first + warp;
        uint2 own = make_uint2(0, 0);

        if (row < end)
            own = take_in<HC>(a, row, s, c, inside);
        if (a.fn == NULL)
            continue;
        x[warp][lane] = own;
        __syncthreads();
        if (row < end) {
            const float ss = warp_sum(squared_four(own));

            if (lane == 0)
                a.part[mix_part(row, a.n_mix, n, gridDim.x, blockIdx.x)] = ss;
        }
#pragma unroll
        for (int k = 0; k < TURNS; k++) {
            const int o = warp + k * MIX_WARPS;
            float v[MIX_WARPS], sum;

            if (o >= a.n_mix)
                break;
#pragma unroll
            for (int r = 0; r < MIX_WARPS; r++)
                v[r] = times_four(fn[k], x[r][lane]);
            sum = spread_sums<MIX_WARPS>(v);
            if (lane % 4 == 0 && first + lane / 4 < end)
                a.part[mix_part(first + lane / 4, o, n, gridDim.x, blockIdx.x)] = sum;
        }
        __syncthreads(); /* x is free again */
    }
}

static inline int
lanes_of(int hc)
{
    return hc == 4 ? WARP / 4 : WARP / MAX_HC;
}

int
streams_chunks(int hc, int dim)
{
    return mix_chunks(dim, lanes_of(hc));
}

int
streams_mix_cuda(struct cuda_rank *rk, const struct streams_mix_args *a, struct err *e)
{
    const int chunks = streams_chunks(a->hc, a->dim), turns = ceil_div(a->rows, MIX_WARPS);
    const int most = MIX_BLOCKS * rk->sms / chunks;
    const int rows = ceil_div(turns, most > 0 ? most : 1) * MIX_WARPS;
    const dim3 grid(chunks, ceil_div(a->rows, rows > 0 ? rows : 1));
    const bool four = a->hc == 4;

    if (a->hc < 1 || a->hc > MAX_HC || a->dim % 4 != 0 || a->k > WARP ||
        a->n_mix > mix_turns(four ? 4 : MAX_HC) * MIX_WARPS)
        return err_set(e, ERR_INTERNAL, 0, "streams: %d of %d", a->hc, a->dim);
    if (a->rows == 0)
        return 0;
    if (a->rows == 1 && a->k <= MIX_ROUTED)
        CU_TRY(launch_pdl(rk,
                          four ? streams_mix_row_kernel<4> : streams_mix_row_kernel<MAX_HC>,
                          grid, MIX_WARPS * WARP, 0, *a),
               e);
    else
        CU_TRY(launch_pdl(rk, four ? streams_mix_kernel<4> : streams_mix_kernel<MAX_HC>,
                          grid, MIX_WARPS * WARP, 0, *a, rows),
               e);
    return 0;
}
