/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_INDEX_MOE_H
#define GPU_INDEX_MOE_H

#include "base/index_t.h"

/*
 * Rows in the order of their experts (gpu/cuda/moe.cu): places of an expert follow one
 * another, in ascending order of (row, choice). See gpu/index.h for what this text is.
 */
enum { MOE_WARP = 32 };

/* Threads, or turns of a loop, for n things, so that no warp is cut. */
INDEX_FN INDEX_INT
whole_warps(INDEX_INT n)
{
    return (n + MOE_WARP - 1) / MOE_WARP * MOE_WARP;
}

/* The place of a row that has `before` others of its expert in front, from the expert's first
 * place on. */
INDEX_FN INDEX_INT
moe_place(INDEX_INT first, INDEX_INT before)
{
    return first + before;
}

#endif /* GPU_INDEX_MOE_H */
