/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_CUDA_STREAMS_X_CUH
#define GPU_CUDA_STREAMS_X_CUH

/*
 * x of products behind hyper-connections, for one row: each block makes the sublayer's input from the
 * streams for itself, which is sooner done than a kernel in front could be (packed_x.cuh). Others
 * will want that row too: the first block leaves it where streams_in would.
 */
#include "gpu/cuda/packed_x.cuh"
#include "gpu/cuda/streams.cuh"

struct streams_x {
    static constexpr const int *source = NULL;
    static constexpr bool SIDES = false, FP4 = false;
    static constexpr int BLOCKS =
        2; /* streams are on their way beside weights: registers */
    struct streams_in_args in;

    template <int KIND, int NT>
    __device__ __forceinline__ void ready(const struct packed_job &, int, int,
                                          uint16_t *staged) const
    {
        constexpr bool rounded = KIND != MATRIX_BF16;
        const bool leaves = blockIdx.x == 0;

        static_assert(NT == 1, "rows are staged");
        sublayer_input<4, PACK_THREADS>(
            in, 0, staged, rounded || leaves, [&](int at, uint4 y, uint4 q) {
                *(uint4 *)(staged + at) = as_wanted<KIND>(rounded ? q : y);
                if (leaves) {
                    *(uint4 *)(in.y + at) = y;
                    *(uint4 *)(in.yq + at) = q;
                }
            });
        __syncthreads();
    }

    __device__ __forceinline__ void side(int, float *) const
    {
    }
};

#endif /* GPU_CUDA_STREAMS_X_CUH */
