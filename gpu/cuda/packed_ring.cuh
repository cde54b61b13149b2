/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_CUDA_PACKED_RING_CUH
#define GPU_CUDA_PACKED_RING_CUH

/*
 * Products of packed matrices (packed.cuh) with many rows. A warp has MT tiles of 16 outputs and
 * all inputs, 8 NT rows share each weight that it unpacks. What a block needs of a chunk, rows of x
 * that all its warps share and the weights of each, is copied into a ring of stages in shared
 * memory, several chunks ahead: loads that are under way take no registers. Parts of the inputs,
 * which warps share where rows are few, come one after another and are added up in that order.
 *
 * A thread makes the pieces of x that it has brought into what the tensor cores take, a chunk
 * before they are used; so a chunk has one barrier.
 */
#include "gpu/cuda/packed.cuh"

/* Shared memory of a block: one of two, or the only one of a multiprocessor. */
static constexpr int
ring_room(int nt, int mt)
{
    return nt * mt > 8 ? 226 * 1024 : 113 * 1024;
}

/* A stage: x bf16 [ROWS][PACK_K], pieces placed by packed_piece; of each warp its tiles' vectors
 * [MT][V][lanes]; and FP4's scales, [warps][MT][8] words. */
template <int KIND, int NT, int MT> struct packed_ring {
    static constexpr int V = pack_loads(KIND), ROWS = NT * PACK_N, PIECES = PACK_K / 8;
    static constexpr int COPIES = ROWS * PIECES / PACK_THREADS;
    static constexpr int X_BYTES = ROWS * PACK_K * 2;
    static constexpr int W_BYTES = MT * V * WARP * 16; /* of a warp, as S_BYTES */
    static constexpr int S_BYTES = KIND == MATRIX_FP4 ? MT * 8 * 4 : 0;
    static constexpr int STAGE = X_BYTES + PACK_WARPS * (W_BYTES + S_BYTES);
    static constexpr int SUMS = MT * NT * 4 * PACK_THREADS * 4;
    static constexpr int FIT = (ring_room(NT, MT) - SUMS) / STAGE;
    static constexpr int STAGES = FIT < 6 ? FIT : 6;
    static constexpr int COLUMNS =
        NT < 8 || KIND == MATRIX_FP4 ? 2 : 4; /* of 8 rows, at once */

    static_assert(ROWS * PIECES % PACK_THREADS == 0 && STAGES >= 2, "a stage's pieces");

    const struct packed_job &a;
    uint8_t *ring;               /* [STAGES][STAGE] */
    float *sums;                 /* this thread's are PACK_THREADS apart */
    int from[COPIES];            /* where this thread takes from x what it brings, or -1 */
    const uint4 *w_at[MT];       /* of the chunk that is brought next */
    const uint32_t *scales_from; /* FP4: what this lane brings of them, if it does */
    const uint8_t *scale_at[MT]; /* FP8 */
    float total[MT][NT][4];

    __device__ __forceinline__ packed_ring(const struct packed_job &job, uint8_t *shared)
        : a(job), ring(shared), sums((float *)(shared + STAGES * STAGE) + threadIdx.x)
    {
    }

    __device__ __forceinline__ void find_rows(int r0, int r1, const int *source)
    {
#pragma unroll
        for (int i = 0; i < COPIES; i++) {
            const int id = threadIdx.x + i * PACK_THREADS, r = r0 + piece_row(id, PIECES);

            from[i] = -1;
            if (r < r1)
                from[i] = (source != NULL ? source[r] : r) * a.x_stride +
                          piece_at(id, PIECES, 8);
        }
    }

    /* Tile number m of this warp is that one of the job's matrix, or of another like it. */
    __device__ __forceinline__ void find_weights(int m, const struct expert_weights &w,
                                                 int tile)
    {
        const int chunks = a.in / PACK_K, lane = threadIdx.x % WARP;
        const int at = min(tile, a.out / PACK_M - 1);

        w_at[m] = (const uint4 *)w.packed + packed_vector(at, chunks, 0, V, 0, lane);
        if (KIND != MATRIX_FP4)
            scale_at[m] = w.scale + packed_fp8_scale(at, a.in, 0);
        else if (m == 0 || lane / 2 == m)
            scales_from = (const uint32_t *)w.scale +
                          packed_fp4_scale(at, chunks, 0, lane % 2 * 4);
    }

    __device__ __forceinline__ uint8_t *weights_of(int stage) const
    {
        return ring + stage * STAGE + X_BYTES + threadIdx.x / WARP * (W_BYTES + S_BYTES);
    }

    /* The next chunk's weights begin their way to that stage. */
    __device__ __forceinline__ void bring_weights(int stage)
    {
        const int lane = threadIdx.x % WARP;
        uint8_t *to = weights_of(stage);

#pragma unroll
        for (int m = 0; m < MT; m++) {
#pragma unroll
            for (int v = 0; v < V; v++)
                copy_async(to + ((m * V + v) * WARP + lane) * 16,
                           w_at[m] + packed_vector(0, 1, 0, V, v, 0), true);
            w_at[m] += packed_vector(0, 1, 1, V, 0, 0);
        }
        if constexpr (KIND == MATRIX_FP4) {
            if (lane < MT * 2)
                copy_async(to + W_BYTES + lane * 16, scales_from, true);
            scales_from += packed_fp4_scale(0, 1, 1, 0);
        }
    }

    /* This thread's first piece of x in that stage; the others are PACK_THREADS / PIECES rows on. */
    __device__ __forceinline__ uint8_t *piece_of(int stage) const
    {
        return ring + stage * STAGE +
               packed_piece(piece_row(threadIdx.x, PIECES), threadIdx.x % PIECES) * 16;
    }

    __device__ __forceinline__ void bring_rows(int stage, int chunk)
    {
        uint8_t *to = piece_of(stage);

#pragma unroll
        for (int i = 0; i < COPIES; i++)
            copy_async(to + i * PACK_THREADS * 16,
                       a.x + (from[i] >= 0 ? from[i] + chunk * PACK_K : 0), from[i] >= 0);
    }

    /* What this thread has brought of x becomes what the tensor cores take. */
    __device__ __forceinline__ void make_ready(int stage)
    {
        if constexpr (KIND != MATRIX_BF16) {
#pragma unroll
            for (int i = 0; i < COPIES; i++) {
                uint4 *at = (uint4 *)(piece_of(stage) + i * PACK_THREADS * 16);

                *at = as_wanted<KIND>(*at);
            }
        }
    }

    /* A tile's scales in that stage and chunk. */
    __device__ __forceinline__ uint32_t scale(int stage, int chunk, int m) const
    {
        if constexpr (KIND == MATRIX_FP4)
            return *(const uint32_t *)(weights_of(stage) + W_BYTES + m * 32 +
                                       threadIdx.x % WARP / 4 * 4);
        else if constexpr (KIND == MATRIX_FP8)
            return __ldg(scale_at[m] + packed_fp8_scale(0, a.in, chunk));
        else
            return 0;
    }

    template <int LIVE>
    __device__ __forceinline__ void multiply(int stage, const uint32_t *scales)
    {
        const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
        const uint8_t *x = ring + stage * STAGE;
        const uint8_t *weights = weights_of(stage) + lane * 16;
        uint32_t f[MT][2][2][4];

#pragma unroll
        for (int m = 0; m < MT; m++) {
            uint4 w[V];

#pragma unroll
            for (int v = 0; v < V; v++)
                w[v] = *(const uint4 *)(weights + (m * V + v) * WARP * 16);
            fragments<KIND>(w, 0, f[m][0]);
            fragments<KIND>(w, 1, f[m][1]);
        }
#pragma unroll
        for (int n = 0; n < LIVE; n += COLUMNS) {
            uint4 v[COLUMNS][2];

#pragma unroll
            for (int i = 0; i < COLUMNS; i++)
#pragma unroll
                for (int half = 0; half < 2; half++)
                    v[i][half] = *(const uint4 *)(x + (n + i) * PACK_N * PACK_K * 2 +
                                                  packed_piece(g, half * 4 + t) * 16);
#pragma unroll
            for (int m = 0; m < MT; m++)
                columns_times<KIND, COLUMNS>(f[m], scales[m], v, &total[m][n]);
        }
    }

    __device__ __forceinline__ void begin(void)
    {
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int n = 0; n < NT; n++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    total[m][n][i] = 0.0f;
    }

    /* A part is done. */
    __device__ __forceinline__ void add_part(bool first)
    {
        const float up = packed_up(KIND);

#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int n = 0; n < NT; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float v = total[m][n][i] * up;
                    float *to = sums + ((m * NT + n) * 4 + i) * PACK_THREADS;

                    *to = first ? v : *to + v;
                    total[m][n][i] = 0.0f;
                }
    }

    /* All inputs. Rows there are in the first LIVE eights only. wait: x comes from the kernel in
     * front. */
    template <int LIVE>
    __device__ __forceinline__ void go(int r0, int r1, const int *source, bool wait)
    {
        static_assert(LIVE % COLUMNS == 0, "columns that go together");
        const int chunks = a.in / PACK_K;
        int stage = 0, last = STAGES - 1; /* of this chunk, of what is brought meanwhile */

#pragma unroll
        for (int c = 0; c < STAGES - 1; c++)
            if (c < chunks)
                bring_weights(c);
        if (wait)
            pdl_wait();
        find_rows(r0, r1, source);
#pragma unroll
        for (int c = 0; c < STAGES - 1; c++) {
            if (c < chunks)
                bring_rows(c, c);
            copies_close();
        }
        begin();
        copies_wait<STAGES - 2>();
        make_ready(0);
        __syncthreads();
        for (int c = 0, part = 0, end = packed_first_chunk(chunks, 1, a.split); c < chunks;
             c++) {
            const int next = stage + 1 < STAGES ? stage + 1 : 0;
            uint32_t scales[MT];

#pragma unroll
            for (int m = 0; m < MT; m++)
                scales[m] = scale(stage, c, m);
            if (c + STAGES - 1 < chunks) {
                bring_weights(last);
                bring_rows(last, c + STAGES - 1);
            }
            copies_close();
            if (STAGES > 2) { /* it came while other chunks were used */
                copies_wait<STAGES - 2>();
                make_ready(next);
            }
            multiply<LIVE>(stage, scales);
            if (STAGES == 2) {
                copies_wait<0>();
                make_ready(next);
            }
            __syncthreads(); /* the next stage is ready, this one was read */
            if (c + 1 == end) {
                add_part(part == 0);
                part++;
                end = packed_first_chunk(chunks, part + 1, a.split);
            }
            last = stage;
            stage = next;
        }
    }

    /* Tile m's outputs of those rows, to y. */
    __device__ __forceinline__ void put(int m, int tile, int r0, int r1, void *y) const
    {
        const int lane = threadIdx.x % WARP, o = tile * PACK_M + mma_row(lane, 0);

        if (o >= a.out)
            return;
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const int r = r0 + n * PACK_N + mma_col(lane, i);
                const float *v = sums + ((m * NT + n) * 4 + i) * PACK_THREADS;
                const size_t at = row_start(r, a.y_stride) + o;

                if (r >= r1)
                    continue;
                if (a.y_f32) {
                    ((float *)y)[at] = v[0];
                    ((float *)y)[at + 8] = v[2 * PACK_THREADS];
                } else {
                    ((uint16_t *)y)[at] = f32_to_bf16(v[0]);
                    ((uint16_t *)y)[at + 8] = f32_to_bf16(v[2 * PACK_THREADS]);
                }
            }
    }
};

/* Bytes of shared memory for products of one kind, of any. */
template <int KIND, int NT, int MT>
static constexpr int
ring_bytes(void)
{
    return packed_ring<KIND, NT, MT>::STAGES * packed_ring<KIND, NT, MT>::STAGE +
           packed_ring<KIND, NT, MT>::SUMS;
}

template <int NT, int MT>
static constexpr int
ring_bytes(void)
{
    constexpr int fp4 = ring_bytes<MATRIX_FP4, NT, MT>();
    constexpr int fp8 = ring_bytes<MATRIX_FP8, NT, MT>();
    constexpr int bf16 = ring_bytes<MATRIX_BF16, NT, MT>();

    return fp4 > fp8 && fp4 > bf16 ? fp4 : fp8 > bf16 ? fp8 : bf16;
}

/* Outputs of one block of the job's matrix for rows r0 .. r0 + 8 NT - 1, below r1; source: which row
 * of x each is. wait: x comes from the kernel in front. */
template <int KIND, int NT, int MT>
static __device__ __forceinline__ void
ring_product(const struct packed_job &a, int block, int r0, int r1, const int *source,
             bool wait, uint8_t *shared)
{
    const int tile = packed_first_tile(block, threadIdx.x / WARP, 1, MT);
    packed_ring<KIND, NT, MT> p(a, shared);

#pragma unroll
    for (int m = 0; m < MT; m++)
        p.find_weights(m, {a.w, a.scale}, tile + m);
    p.template go<NT>(r0, r1, source, wait);
#pragma unroll
    for (int m = 0; m < MT; m++)
        p.put(m, tile + m, r0, r1, a.y);
}

#endif /* GPU_CUDA_PACKED_RING_CUH */
