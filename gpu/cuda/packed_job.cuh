/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_CUDA_PACKED_JOB_CUH
#define GPU_CUDA_PACKED_JOB_CUH

/* A product of a packed matrix, as kernels are told of it, and how its inputs are shared out. */
#include "gpu/cuda/device.cuh"
#include "gpu/index/linear.h"
#include "gpu/index/mma.h"
#include "gpu/index/packed.h"
#include "gpu/index/rows.h"
#include "gpu/ops/linear.h"

enum {
    PACK_THREADS = PACK_WARPS * WARP,
    PACK_PART = 8192,
};

/* 16-byte loads of a lane for a tile. */
static __host__ __device__ constexpr int
pack_loads(int kind)
{
    return kind == MATRIX_FP4 ? 1 : kind == MATRIX_FP8 ? 2 : 4;
}

/* Warps that share a tile's inputs: by shape alone, as it decides the order of sums. So many that
 * each has PACK_PART bytes of weights, be they few or many: then warps of different matrices begin
 * and end together. */
static __host__ __device__ inline int
pack_split(int kind, int in)
{
    const int bytes = in / PACK_K * pack_loads(kind) * WARP * 16; /* of a tile */
    int s = 1;

    while (s < PACK_WARPS && s * PACK_PART < bytes)
        s *= 2;
    return s;
}

struct packed_job {
    const uint4 *w;
    const uint8_t *scale;
    const uint16_t *x;
    void *y;
    int kind, out, in, rows, x_stride, y_stride, y_f32, split, quant;
};

static __device__ __forceinline__ uint32_t
times_2_60(uint32_t x)
{
    return times_bf16x2(x, 0x5d805d80);
}

#endif /* GPU_CUDA_PACKED_JOB_CUH */
