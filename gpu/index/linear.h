/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_INDEX_LINEAR_H
#define GPU_INDEX_LINEAR_H

#include "base/index_t.h"

/*
 * Plain matrix products (gpu/cuda/linear.cu): which warp makes which output, which lane
 * takes which weights. A block's LINEAR_WARPS warps make LINEAR_WARPS / split outputs,
 * `split` warps each. See gpu/index.h for what this text is.
 */
enum {
    LINEAR_WARPS = 8,
    LINEAR_LANES = 32,
    LINEAR_CHUNKS = 2,        /* loads that a lane should have under way at least */
    LINEAR_FULL_WARPS = 8192, /* what keeps the device busy: no reason to split further */
    FP8_BLOCK = 128,          /* scale blocks, both ways */
    FP4_BLOCK = 32,
};

/* Warps that share an output of a matrix with `chunks` 16-byte loads a row: a matter of
 * shape alone, because it decides the order of sums. A loop on the host, so of plain
 * numbers. */
static inline int
linear_split(int out, int chunks)
{
    int s = 1;

    while (s < LINEAR_WARPS && chunks >= 2 * s * LINEAR_LANES * LINEAR_CHUNKS &&
           (long long)out * 2 * s <= LINEAR_FULL_WARPS)
        s *= 2;
    return s;
}

/* Blocks for so many outputs. */
INDEX_FN INDEX_INT
linear_tiles(INDEX_INT out, INDEX_INT split)
{
    return (out + LINEAR_WARPS / split - 1) / (LINEAR_WARPS / split);
}

INDEX_FN INDEX_INT
linear_output(INDEX_INT tile, INDEX_INT warp, INDEX_INT split)
{
    return tile * (LINEAR_WARPS / split) + warp / split;
}

/* The first chunk of this lane; the others follow linear_step apart. */
INDEX_FN INDEX_INT
linear_chunk(INDEX_INT warp, INDEX_INT lane, INDEX_INT split)
{
    return warp % split * LINEAR_LANES + lane;
}

INDEX_FN INDEX_INT
linear_step(INDEX_INT split)
{
    return split * LINEAR_LANES;
}

/* Byte at which element k of output o lies, `bits` to each. */
INDEX_FN INDEX_T
linear_weight(INDEX_INT o, INDEX_INT in, INDEX_INT bits, INDEX_INT k)
{
    return (INDEX_T)o * (INDEX_T)in * (INDEX_T)bits / 8 + (INDEX_T)k * (INDEX_T)bits / 8;
}

/* The scales of output o begin here; element k has the one k / FP8_BLOCK, k / FP4_BLOCK
 * on. */
INDEX_FN INDEX_T
linear_fp8_scales(INDEX_INT o, INDEX_INT in)
{
    return (INDEX_T)(o / FP8_BLOCK) * (INDEX_T)((in + FP8_BLOCK - 1) / FP8_BLOCK);
}

INDEX_FN INDEX_T
linear_fp4_scales(INDEX_INT o, INDEX_INT in)
{
    return (INDEX_T)o * (INDEX_T)(in / FP4_BLOCK);
}

#endif /* GPU_INDEX_LINEAR_H */
