/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_CUDA_PACKED_CUH
#define GPU_CUDA_PACKED_CUH

/*
 * Weights as tensor cores take them, and products of 16 outputs with up to 64 rows.
 *
 * A packed matrix is made of tiles of 16 outputs by 64 inputs, [out/16][in/64], each as the 32
 * lanes of a warp load it: 16 bytes a lane at a time (FP4 once, FP8 twice, BF16 four times), so
 * that a lane has the fragments of mma.m16n8k16. Lane 4 g + t has inputs 8 t .. 8 t + 7 of each
 * 32, of outputs g and g + 8. FP4's scales follow its codes: for each tile and g four bytes, of
 * outputs g and g + 8 in the first and the second 32 inputs.
 *
 * Codes become bf16 by their bits alone: an e4m3's exponent and fraction fall on the lowest of
 * bf16's, 2^120 too small, and an e2m1's 2^126. x comes times 2^60 and the sum takes the rest, so
 * that products stay normal numbers; the tensor cores take subnormal codes as they are. All of it
 * is exact, as products are: what rounds are the sums.
 *
 * The order of a sum is a matter of the matrix's shape: within 32 inputs (FP4) or 64 it is the tensor core's
 * own, times the block's scale they are added up in ascending order, a warp has a part of the
 * inputs and warps are added up in ascending order. Rows of x are columns of their own.
 */
#include "gpu/cuda/packed_job.cuh"
#include "gpu/cuda/packed_x.cuh"

/* e8m0 as f32; 2^-127 counts as 0. */
static __device__ __forceinline__ float
exponent(uint32_t e)
{
    return __uint_as_float(e << 23);
}

/* A tile's scales from its chunk c on, for this lane: FP4 has four of a chunk, FP8 one of two
 * chunks, BF16 none. */
template <int KIND>
static __device__ __forceinline__ const void *
scales_of(const struct packed_job &a, int tile, int c)
{
    if constexpr (KIND == MATRIX_FP4)
        return (const uint32_t *)a.scale +
               packed_fp4_scale(tile, a.in / PACK_K, c, threadIdx.x % WARP / 4);
    else
        return a.scale + packed_fp8_scale(tile, a.in, 0);
}

/* Of chunk c + d, if `at` is scales_of c. */
template <int KIND>
static __device__ __forceinline__ uint32_t
load_scales(const void *at, int c, int d)
{
    if constexpr (KIND == MATRIX_FP4)
        return __ldg((const uint32_t *)at + packed_fp4_scale(0, 1, d, 0));
    else if constexpr (KIND == MATRIX_FP8)
        return __ldg((const uint8_t *)at + (unsigned)(c + d) * PACK_K / 128);
    else
        return 0;
}

/* Fragments of one 32 of a tile: a[2][4] for the two mma. */
template <int KIND>
static __device__ __forceinline__ void
fragments(const uint4 *w, int half, uint32_t (*a)[4])
{
    if constexpr (KIND == MATRIX_FP4) {
        uint32_t low[4], high[4];

        fpbits_e2m1_unpack(half == 0 ? w[0].x : w[0].z, low);
        fpbits_e2m1_unpack(half == 0 ? w[0].y : w[0].w, high);
        for (int j = 0; j < 2; j++) {
            a[j][0] = low[2 * j];
            a[j][1] = high[2 * j];
            a[j][2] = low[2 * j + 1];
            a[j][3] = high[2 * j + 1];
        }
    } else if constexpr (KIND == MATRIX_FP8) {
        fpbits_e4m3_unpack(w[half].x, &a[0][0], &a[0][2]);
        fpbits_e4m3_unpack(w[half].y, &a[0][1], &a[0][3]);
        fpbits_e4m3_unpack(w[half].z, &a[1][0], &a[1][2]);
        fpbits_e4m3_unpack(w[half].w, &a[1][1], &a[1][3]);
    } else {
        for (int j = 0; j < 2; j++) {
            a[j][0] = w[2 * half + j].x;
            a[j][1] = w[2 * half + j].y;
            a[j][2] = w[2 * half + j].z;
            a[j][3] = w[2 * half + j].w;
        }
    }
}

/* total[n] += a tile's fragments times N columns of x, 64 inputs. x[n]: this lane's 2 x 16 bytes of
 * its row. The tensor cores add up what shares scales; sums that wait for nothing take turns. */
template <int KIND, int N>
static __device__ __forceinline__ void
columns_times(const uint32_t (*a)[2][4], uint32_t scale, const uint4 (*x)[2],
              float (*total)[4])
{
    constexpr int SUMS = KIND == MATRIX_FP4 ? 2 : 1; /* of a column */
    float c[N][SUMS][4] = {};

#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int half = SUMS == 2 ? i % 2 : i / 2, k = SUMS == 2 ? i / 2 : i % 2;

#pragma unroll
        for (int n = 0; n < N; n++) {
            const uint4 v = x[n][half];

            mma_bf16(c[n][SUMS == 2 ? half : 0], a[half][k], k == 0 ? v.x : v.z,
                     k == 0 ? v.y : v.w);
        }
    }
#pragma unroll
    for (int n = 0; n < N; n++)
        if constexpr (KIND == MATRIX_FP4) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const float s0 = exponent(scale >> (16 * half) & 0xff);
                const float s1 = exponent(scale >> (16 * half + 8) & 0xff);

                total[n][0] = fmaf(c[n][half][0], s0, total[n][0]);
                total[n][1] = fmaf(c[n][half][1], s0, total[n][1]);
                total[n][2] = fmaf(c[n][half][2], s1, total[n][2]);
                total[n][3] = fmaf(c[n][half][3], s1, total[n][3]);
            }
        } else {
            const float s = KIND == MATRIX_FP8 ? exponent(scale) : 1.0f;

#pragma unroll
            for (int i = 0; i < 4; i++)
                total[n][i] = fmaf(c[n][0][i], s, total[n][i]);
        }
}

/* total[n] += tile times 8 NT rows of x. */
template <int KIND, int NT>
static __device__ __forceinline__ void
tile_times(const uint4 *w, uint32_t scale, const uint4 (*x)[2], float (*total)[4])
{
    uint32_t a[2][2][4];

    fragments<KIND>(w, 0, a[0]);
    fragments<KIND>(w, 1, a[1]);
    columns_times<KIND, NT>(a, scale, x, total);
}

/* What sums lack: codes come that much too small, x 2^60 too large. */
static __device__ __forceinline__ float
packed_up(int kind)
{
    return kind == MATRIX_FP8 ? 0x1p60f : kind == MATRIX_FP4 ? 0x1p66f : 1.0f;
}

/* This lane's inputs of a chunk, from row[n] (NULL: zeros). One column of rows (NT 1) has been
 * staged, more come as they are. */
template <int KIND, int NT>
static __device__ __forceinline__ void
load_x(const uint16_t *const *row, int chunk, uint4 (*x)[2])
{
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint4 v = make_uint4(0, 0, 0, 0);

            if (row[n] != NULL)
                v = *(const uint4 *)(row[n] + chunk * PACK_K + half * 32);
            x[n][half] = KIND != MATRIX_BF16 && NT > 1 ? times_2_60(v) : v;
        }
}

/*
 * Tiles tile .. tile + MT - 1 (of `tiles`; beyond them nothing is loaded) over chunks c0 .. c1
 * for 8 NT rows. Weights of D chunks are under way before the first of x is read: they depend on
 * no kernel before. `ready` makes the rows be there, in all threads.
 */
template <int KIND, int NT, int MT, typename F>
static __device__ __forceinline__ void
tiles_times(const struct packed_job &a, int tile, int c0, int c1,
            const uint16_t *const *row, F ready, float (*total)[NT][4])
{
    constexpr int V = pack_loads(KIND), IN_FLIGHT = NT > 2 ? 4 : 8;
    constexpr int D = IN_FLIGHT / V / MT > 0 ? IN_FLIGHT / V / MT : 1;

    const int lane = threadIdx.x % WARP, chunks = a.in / PACK_K, last = a.out / PACK_M - 1;
    uint4 w[D][MT][V], x[NT][2];
    uint32_t scale[D][MT];
    const uint4 *from[MT]; /* of chunk c, as c goes on */
    const void *scales[MT];

#pragma unroll
    for (int m = 0; m < MT; m++) {
        const int at = min(tile + m, last);

        from[m] = a.w + packed_vector(at, chunks, c0, V, 0, lane);
        scales[m] = scales_of<KIND>(a, at, c0);
    }
#define LOAD(d, next)                                                                   \
    for (int m = 0; m < MT; m++) {                                                      \
        _Pragma("unroll") for (int v = 0; v < V; v++)                                   \
            w[d][m][v] = load_once(from[m] + packed_vector(0, 1, (next) + d, V, v, 0)); \
        scale[d][m] = load_scales<KIND>(scales[m], c, (next) + d);                      \
    }

    int c = c0;

#pragma unroll
    for (int d = 0; d < D; d++)
        if (c + d < c1) {
#pragma unroll
            LOAD(d, 0)
        }
    ready();
    for (; c < c1; c += D) {
#pragma unroll
        for (int d = 0; d < D; d++) {
            if (c + d >= c1)
                break;
            load_x<KIND, NT>(row, c + d, x);
#pragma unroll
            for (int m = 0; m < MT; m++)
                tile_times<KIND, NT>(w[d][m], scale[d][m], x, total[m]);
            if (c + d + D < c1) {
#pragma unroll
                LOAD(d, D)
            }
        }
#pragma unroll
        for (int m = 0; m < MT; m++) {
            from[m] += packed_vector(0, 1, D, V, 0, 0);
            if (KIND == MATRIX_FP4)
                scales[m] = (const uint32_t *)scales[m] + packed_fp4_scale(0, 1, D, 0);
        }
    }
#undef LOAD
}

/* Bytes of shared memory that block_parts wants. */
static __host__ __device__ constexpr int
packed_shared(int nt, int mt)
{
    return PACK_WARPS * mt * PACK_M * nt * PACK_N * 4;
}

/*
 * Each warp's part of the block's outputs, MT tiles of its group from `tile` on, into shared memory;
 * the block is in step when it returns, and part_sum finds outputs.
 * rows: this lane's row of x for each 8 (lane / 4), or NULL.
 */
template <int KIND, int NT, int MT, typename F>
static __device__ __forceinline__ void
block_parts(const struct packed_job &a, int tile, const uint16_t *const *row, F ready,
            float *shared)
{
    constexpr int COLS = NT * PACK_N;

    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, chunks = a.in / PACK_K;
    const float up = packed_up(KIND);
    float total[MT][NT][4] = {};

    const int part = packed_part(warp, a.split);
    const int c0 = packed_first_chunk(chunks, part, a.split);
    const int c1 = packed_first_chunk(chunks, part + 1, a.split);

    /* warps beyond the last tile only get ready */
    tiles_times<KIND, NT, MT>(a, tile, c0, tile * PACK_M < a.out ? c1 : c0, row, ready,
                              total);
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int n = 0; n < NT; n++) {
            float *to = shared + packed_sum(warp, MT, COLS, m, mma_row(lane, 0),
                                            n * PACK_N + mma_col(lane, 0));

            *(float2 *)to = make_float2(total[m][n][0] * up, total[m][n][1] * up);
            *(float2 *)(to + 8 * COLS) =
                make_float2(total[m][n][2] * up, total[m][n][3] * up);
        }
    __syncthreads();
}

/* Output number `at` of the block, of row r: its parts in ascending order. */
template <int NT, int MT>
static __device__ __forceinline__ float
part_sum(const float *shared, int split, int at, int r)
{
    constexpr int COLS = NT * PACK_N;

    const float *from =
        shared + packed_sum(at / (MT * PACK_M) * split, MT, COLS, 0, at % (MT * PACK_M), r);
    float part[PACK_WARPS], sum;

#pragma unroll
    for (int p = 0; p < PACK_WARPS; p++)
        if (p < split)
            part[p] = from[packed_sum(p, MT, COLS, 0, 0, 0)];
    sum = part[0];
#pragma unroll
    for (int p = 1; p < PACK_WARPS; p++)
        if (p < split)
            sum += part[p];
    return sum;
}

/* v, without a word to the compiler that it is: what follows from it is found when it is wanted, not
 * held in registers through a loop. */
static __device__ __forceinline__ int
opaque(int v)
{
    asm volatile("" : "+r"(v));
    return v;
}

/*
 * Outputs of one block for rows r0 .. of r1, which x brings (packed_x.cuh). Behind the sums is room
 * for 8 rows of x, if NT is 1.
 */
template <int KIND, int NT, int MT, typename X>
static __device__ __forceinline__ void
block_product(const struct packed_job &a, int at_block, int r0, int r1, const X &x,
              float *shared)
{
    constexpr int COLS = NT * PACK_N;

    const int lane = threadIdx.x % WARP, end = min(r1, r0 + COLS);
    const int block = opaque(at_block), split = opaque(a.split);
    const int tile = packed_first_tile(block, threadIdx.x / WARP, split, MT);
    const int outs = packed_outputs(split, MT);
    uint16_t *staged = (uint16_t *)((uint8_t *)shared + packed_shared(NT, MT));
    const uint16_t *row[NT];

#pragma unroll
    for (int n = 0; n < NT; n++) {
        const int r = r0 + n * PACK_N + lane / 4;

        row[n] = NULL;
        if (r < r1 && NT == 1)
            row[n] = staged + packed_x(r - r0, a.in) + lane % 4 * 8;
        else if (r < r1)
            row[n] = a.x + row_start(x.source != NULL ? x.source[r] : r, a.x_stride) +
                     lane % 4 * 8;
    }
    block_parts<KIND, NT, MT>(
        a, tile, row, [&] { x.template ready<KIND, NT>(a, r0, end, staged); }, shared);
#pragma unroll 1
    for (int i = threadIdx.x; i < (end - r0) * outs; i += PACK_THREADS) {
        const int r = INDEX_SHARE(i, outs), at = INDEX_REST(i, outs), o = block * outs + at;
        const float v = part_sum<NT, MT>(shared, split, at, r);

        if (o >= a.out)
            continue;
        if (a.y_f32)
            ((float *)a.y)[row_start(r0 + r, a.y_stride) + o] = v;
        else
            ((uint16_t *)a.y)[row_start(r0 + r, a.y_stride) + o] = f32_to_bf16(v);
    }
    __syncthreads(); /* shared is free again */
}

/* Blocks on a multiprocessor that registers are kept free for. */
static constexpr int
blocks_wanted(int nt)
{
    return nt > 2 ? 1 : nt > 1 ? 2 : 3;
}

static inline int
blocks_of(int out, int split, int mt)
{
    return ceil_div(out, PACK_WARPS / split * mt * PACK_M);
}

/* Dynamic shared memory: sums, and for few rows the rows themselves. */
static inline size_t
shared_for(int nt, int mt, int rows, int in)
{
    const size_t staged = (size_t)packed_x(rows < PACK_N ? rows : PACK_N, in) * 2;

    return packed_shared(nt, mt) + (nt == 1 ? staged : 0);
}

#endif /* GPU_CUDA_PACKED_CUH */
