/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_CUDA_PACKED_MANY_CUH
#define GPU_CUDA_PACKED_MANY_CUH

/*
 * Products of packed matrices (packed.cuh) with few rows of each of many experts. A warp has a tile of
 * 16 outputs and all inputs: parts that warps share where matrices are few come one after another
 * here, and are added up in the same order. A block's warps share 8 rows of x: a run of RUN chunks
 * of them lies in shared memory while the next one is on its way, as are the weights of the next.
 */
#include "gpu/cuda/packed.cuh"

/* Chunks of one part of the inputs, at most RUN of them. */
struct packed_run {
    int c0, c1, part, end; /* end: of the part; part: a.split behind all */
};

static __device__ __forceinline__ struct packed_run
next_run(const struct packed_job &a, struct packed_run r, int most)
{
    if (r.c1 == r.end) {
        r.part++;
        r.end = packed_first_chunk(a.in / PACK_K, min(r.part + 1, a.split), a.split);
    }
    r.c0 = r.c1;
    r.c1 = min(r.c0 + most, r.end);
    return r;
}

template <int KIND> struct packed_many {
    static constexpr int V = pack_loads(KIND), RUN = 8 / V;
    static constexpr int PIECES = RUN * PACK_K / 8; /* of a row, 16 bytes each */
    /* a thread's, one after another while a run goes on, each while STEP of its chunks do */
    static constexpr int COPIES = (PACK_N * PIECES + PACK_THREADS - 1) / PACK_THREADS;
    static constexpr int STEP = RUN / COPIES;
    static constexpr int STAGE = PACK_N * (RUN * PACK_K + PACK_PAD); /* elements */

    const struct packed_job &a;
    uint16_t *staged; /* [2][STAGE] */
    int from[COPIES]; /* where this thread takes from x what it brings of a run, or -1 */
    uint4 x;
    const uint4 *w_at;
    const void *scale_at;
    uint4 w[RUN][V];
    uint32_t scale[RUN];
    float total[1][4], sum[4];

    __device__ __forceinline__ packed_many(const struct packed_job &job, uint16_t *shared)
        : a(job), staged(shared)
    {
    }

    __device__ __forceinline__ void find_rows(int r0, int r1, const int *source)
    {
#pragma unroll
        for (int i = 0; i < COPIES; i++) {
            const int id = threadIdx.x + i * PACK_THREADS, r = r0 + piece_row(id, PIECES);

            from[i] = -1;
            if (id < PACK_N * PIECES && r < r1)
                from[i] = (source != NULL ? source[r] : r) * a.x_stride +
                          piece_at(id, PIECES, 8);
        }
    }

    __device__ __forceinline__ void load_rows(const struct packed_run &r, int turn)
    {
        const int id = threadIdx.x + turn * PACK_THREADS;
        const int c = r.c0 + piece_at(id, PIECES, 8) / PACK_K, at = from[turn];

        x = make_uint4(0, 0, 0, 0);
        if (at >= 0 && c < r.c1)
            x = *(const uint4 *)(a.x + at + r.c0 * PACK_K);
    }

    /* To where no warp reads. */
    __device__ __forceinline__ void stage_rows(int half, int turn)
    {
        const int id = threadIdx.x + turn * PACK_THREADS;

        if (id < PACK_N * PIECES)
            *(uint4 *)(staged + half * STAGE +
                       packed_x(piece_row(id, PIECES), RUN * PACK_K) +
                       piece_at(id, PIECES, 8)) = as_wanted<KIND>(x);
    }

    __device__ __forceinline__ void find_weights(int tile)
    {
        const int chunks = a.in / PACK_K, lane = threadIdx.x % WARP;
        const int at = min(tile, a.out / PACK_M - 1);

        w_at = a.w + packed_vector(at, chunks, 0, V, 0, lane);
        scale_at = scales_of<KIND>(a, at, 0);
    }

    /* The run whose weights are loaded from here on, the one in front being `chunks` long. */
    __device__ __forceinline__ void go_on(int chunks)
    {
        w_at += packed_vector(0, 1, chunks, V, 0, 0);
        if (KIND == MATRIX_FP4)
            scale_at = (const uint32_t *)scale_at + packed_fp4_scale(0, 1, chunks, 0);
    }

    /* Of a run's chunk d. */
    __device__ __forceinline__ void load_weights(const struct packed_run &r, int d)
    {
#pragma unroll
        for (int v = 0; v < V; v++)
            w[d][v] = load_once(w_at + packed_vector(0, 1, d, V, v, 0));
        if constexpr (KIND == MATRIX_FP4)
            scale[d] = __ldg((const uint32_t *)scale_at + packed_fp4_scale(0, 1, d, 0));
        else if constexpr (KIND == MATRIX_FP8)
            scale[d] =
                __ldg((const uint8_t *)scale_at + packed_fp8_scale(0, a.in, r.c0 + d));
        else
            scale[d] = 0;
    }

    __device__ __forceinline__ void multiply(int d, int half)
    {
        const int lane = threadIdx.x % WARP;
        const uint16_t *row = staged + half * STAGE + packed_x(lane / 4, RUN * PACK_K) +
                              lane % 4 * 8 + d * PACK_K;
        const uint4 v[1][2] = {{*(const uint4 *)row, *(const uint4 *)(row + 32)}};

        tile_times<KIND, 1>(w[d], scale[d], v, total);
    }

    /* Run r, whose rows are in that half, while `next` is brought. WHOLE: both are RUN long. */
    template <bool WHOLE>
    __device__ __forceinline__ void run(const struct packed_run &r,
                                        const struct packed_run &next, int half)
    {
#pragma unroll
        for (int d = 0; d < RUN; d++) {
            if (d % STEP == 0)
                load_rows(next, d / STEP);
            if (WHOLE || r.c0 + d < r.c1)
                multiply(d, half);
            if (WHOLE || next.c0 + d < next.c1)
                load_weights(next, d);
            if (d % STEP == STEP - 1)
                stage_rows(half ^ 1, d / STEP);
        }
    }

    __device__ __forceinline__ void begin(void)
    {
#pragma unroll
        for (int i = 0; i < 4; i++)
            total[0][i] = 0.0f;
    }

    /* A part is done. */
    __device__ __forceinline__ void add_part(bool first)
    {
        const float up = packed_up(KIND);

#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float v = total[0][i] * up;

            sum[i] = first ? v : sum[i] + v;
            total[0][i] = 0.0f;
        }
    }

    __device__ __forceinline__ void put(int tile, int r0, int r1)
    {
        const int lane = threadIdx.x % WARP;

#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int o = tile * PACK_M + mma_row(lane, i), r = r0 + mma_col(lane, i);
            const size_t at = row_start(r, a.y_stride) + o;

            if (r >= r1 || o >= a.out)
                continue;
            if (a.y_f32)
                ((float *)a.y)[at] = sum[i];
            else
                ((uint16_t *)a.y)[at] = f32_to_bf16(sum[i]);
        }
    }
};

/* Bytes of shared memory, whatever the kind: an FP4 run is the longest. */
static constexpr int
packed_many_shared(void)
{
    return 2 * 2 * packed_many<MATRIX_FP4>::STAGE;
}

/* Outputs of one block for rows r0 .. r0 + 7, below r1; source: which row of x each is.
 * wait: x comes from the kernel in front. */
template <int KIND>
static __device__ __forceinline__ void
many_product(const struct packed_job &a, int block, int r0, int r1, const int *source,
             bool wait, uint16_t *shared)
{
    const int tile = packed_first_tile(block, threadIdx.x / WARP, 1, 1);
    packed_many<KIND> p(a, shared);
    constexpr int RUN = p.RUN, COPIES = p.COPIES;
    struct packed_run r = next_run(a, {0, 0, -1, 0}, RUN);

    p.find_weights(tile);
#pragma unroll
    for (int d = 0; d < RUN; d++)
        if (r.c0 + d < r.c1)
            p.load_weights(r, d);
    if (wait)
        pdl_wait();
    p.find_rows(r0, r1, source);
#pragma unroll
    for (int t = 0; t < COPIES; t++) {
        p.load_rows(r, t);
        p.stage_rows(0, t);
    }
    p.begin();
    for (int half = 0;; half ^= 1) {
        const struct packed_run next = next_run(a, r, RUN);
        const bool whole = r.c1 - r.c0 == RUN, more = next.c1 - next.c0 == RUN;

        p.go_on(next.c0 - r.c0);
        __syncthreads(); /* the run's rows are there, and those of the one before were read */
        if (whole && more)
            p.template run<true>(r, next, half);
        else
            p.template run<false>(r, next, half);
        if (r.c1 == r.end)
            p.add_part(r.part == 0);
        if (next.part == a.split)
            break;
        r = next;
    }
    p.put(tile, r0, r1);
    __syncthreads(); /* shared is free again */
}

#endif /* GPU_CUDA_PACKED_MANY_CUH */
