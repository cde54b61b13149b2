/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_INDEX_PACKED_H
#define GPU_INDEX_PACKED_H

#include "base/index_t.h"

/* / and % of what is not negative by a power of two that the compiler need not know: on a device a
 * division takes 20 instructions. */
#ifndef INDEX_SHARE
#    ifdef __CUDA_ARCH__
#        define INDEX_SHARE(a, parts) ((a) >> (31 - __clz(parts)))
#        define INDEX_REST(a, parts)  ((a) & ((parts)-1))
#    else
#        define INDEX_SHARE(a, parts) ((a) / (parts))
#        define INDEX_REST(a, parts)  ((a) % (parts))
#    endif
#endif

/*
 * Packed matrices (gpu/cuda/packed.cuh): tiles of 16 outputs by 64 inputs, each as the 32
 * lanes of a warp load it, 16 bytes (a vector, four words of 32 bits) a lane at a time:
 * once for FP4, twice for FP8, four times for bf16. `loads` stands for the kind. See
 * gpu/index.h for what this text is.
 */
enum {
    PACK_WARPS = 8,
    PACK_LANES = 32,
    PACK_K = 64,   /* inputs of a tile, a chunk */
    PACK_M = 16,   /* outputs of a tile */
    PACK_N = 8,    /* rows of x that go together */
    PACK_PAD = 32, /* elements between rows of x in shared memory: other banks */
};

/* Where a lane's vector number `load` of a tile's chunk lies, in vectors. */
INDEX_FN INDEX_T
packed_vector(INDEX_INT tile, INDEX_INT chunks, INDEX_INT chunk, INDEX_INT loads,
              INDEX_INT load, INDEX_INT lane)
{
    return (((INDEX_T)tile * (INDEX_T)chunks + (INDEX_T)chunk) * (INDEX_T)loads +
            (INDEX_T)load) *
               PACK_LANES +
           (INDEX_T)lane;
}

/* The same backwards: what vector i is. */
INDEX_FN INDEX_INT
packed_lane(INDEX_T i)
{
    return (INDEX_INT)(i % PACK_LANES);
}

INDEX_FN INDEX_INT
packed_load(INDEX_T i, INDEX_INT loads)
{
    return (INDEX_INT)(i / PACK_LANES % (INDEX_T)loads);
}

INDEX_FN INDEX_INT
packed_chunk(INDEX_T i, INDEX_INT loads, INDEX_INT chunks)
{
    return (INDEX_INT)(i / PACK_LANES / (INDEX_T)loads % (INDEX_T)chunks);
}

INDEX_FN INDEX_INT
packed_tile(INDEX_T i, INDEX_INT loads, INDEX_INT chunks)
{
    return (INDEX_INT)(i / PACK_LANES / (INDEX_T)loads / (INDEX_T)chunks);
}

/* The output that word w of a lane's vector belongs to, and its first input; those behind
 * it follow, 8 of FP4, 4 of FP8, 2 of bf16. A vector of bf16 is an mma's a as it is. */
INDEX_FN INDEX_INT
packed_output(INDEX_INT tile, INDEX_INT lane, INDEX_INT w)
{
    return tile * PACK_M + lane / 4 + w % 2 * 8;
}

INDEX_FN INDEX_INT
packed_input(INDEX_INT chunk, INDEX_INT lane, INDEX_INT loads, INDEX_INT load, INDEX_INT w)
{
    return chunk * PACK_K + lane % 4 * 8 +
           INDEX_IF(loads == 4, load / 2 * 32 + load % 2 * 4 + w / 2 * 2,
                    INDEX_IF(loads == 2, load * 32 + w / 2 * 4, w / 2 * 32));
}

/* Words of FP4 scales: four bytes for outputs g and g + 8 of a tile and both halves of a
 * chunk. */
INDEX_FN INDEX_T
packed_fp4_scale(INDEX_INT tile, INDEX_INT chunks, INDEX_INT chunk, INDEX_INT g)
{
    return ((INDEX_T)tile * (INDEX_T)chunks + (INDEX_T)chunk) * 8 + (INDEX_T)g;
}

/* The one scale of an FP8 tile's chunk, as the checkpoint has them: for 128 by 128. */
INDEX_FN INDEX_T
packed_fp8_scale(INDEX_INT tile, INDEX_INT in, INDEX_INT chunk)
{
    return (INDEX_T)(tile * PACK_M / 128) * (INDEX_T)((in + 127) / 128) +
           (INDEX_T)(chunk * PACK_K / 128);
}

/* A block's warps in groups of `split`, a power of two, each with mt tiles: the first one;
 * which part of their inputs a warp has; and the first of a part's chunks: it ends where the
 * next one begins. */
INDEX_FN INDEX_INT
packed_first_tile(INDEX_INT block, INDEX_INT warp, INDEX_INT split, INDEX_INT mt)
{
    return (block * INDEX_SHARE(PACK_WARPS, split) + INDEX_SHARE(warp, split)) * mt;
}

INDEX_FN INDEX_INT
packed_part(INDEX_INT warp, INDEX_INT split)
{
    return INDEX_REST(warp, split);
}

/* Of two matrices of one shape, a block's groups being halves: which one a warp has, and which of
 * its tiles. The same tile of the other is packed_pair_half() groups on. */
INDEX_FN INDEX_INT
packed_pair_half(INDEX_INT split)
{
    return INDEX_SHARE(PACK_WARPS / 2, split);
}

INDEX_FN INDEX_INT
packed_pair_matrix(INDEX_INT warp)
{
    return warp / (PACK_WARPS / 2);
}

INDEX_FN INDEX_INT
packed_pair_tile(INDEX_INT block, INDEX_INT warp, INDEX_INT split)
{
    return INDEX_SHARE(block * (PACK_WARPS / 2) + warp % (PACK_WARPS / 2), split);
}

/* What output a thread of a block acts on, of either matrix, when the sums are there: threads below
 * half a block's outputs. */
INDEX_FN INDEX_INT
packed_pair_output(INDEX_INT block, INDEX_INT half, INDEX_INT thread)
{
    return block * half * PACK_M + thread;
}

INDEX_FN INDEX_INT
packed_first_chunk(INDEX_INT chunks, INDEX_INT part, INDEX_INT split)
{
    return INDEX_SHARE(chunks * part, split);
}

/* Outputs of a block. */
INDEX_FN INDEX_INT
packed_outputs(INDEX_INT split, INDEX_INT mt)
{
    return INDEX_SHARE(PACK_WARPS * PACK_M, split) * mt;
}

/* Sums in shared memory, [warps][mt 16][cols]: the place of tile m's value for output o of
 * 16 and row r. */
INDEX_FN INDEX_INT
packed_sum(INDEX_INT warp, INDEX_INT mt, INDEX_INT cols, INDEX_INT m, INDEX_INT o,
           INDEX_INT r)
{
    return (warp * mt * PACK_M + m * PACK_M + o) * cols + r;
}

/* Row r of x in shared memory, in elements. */
INDEX_FN INDEX_INT
packed_x(INDEX_INT r, INDEX_INT in)
{
    return r * (in + PACK_PAD);
}

/* Where piece `at` of the 8 of a row's chunk lies in shared memory without gaps, in pieces of 16
 * bytes: what lanes of neighbouring rows read at a time are other banks. */
INDEX_FN INDEX_INT
packed_piece(INDEX_INT r, INDEX_INT at)
{
    return r * 8 + (at + r % 2 * 4) % 8;
}

#endif /* GPU_INDEX_PACKED_H */
