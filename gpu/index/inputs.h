/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_INDEX_INPUTS_H
#define GPU_INDEX_INPUTS_H

#include "base/index_t.h"

/*
 * Rows between the projections of attention (gpu/cuda/inputs.cuh): a chunk of 256 elements is a
 * warp's, 8 a lane. See gpu/index.h for what this text is.
 */
enum { ROW_PIECE = 8, ROW_CHUNK = 32 * ROW_PIECE };

/* The first of a lane's elements of a chunk. */
INDEX_FN INDEX_INT
chunk_at(INDEX_INT chunk, INDEX_INT lane)
{
    return chunk * ROW_CHUNK + lane * ROW_PIECE;
}

#endif /* GPU_INDEX_INPUTS_H */
