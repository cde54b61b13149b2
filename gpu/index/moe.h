/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_INDEX_MOE_H
#define GPU_INDEX_MOE_H

#include "base/index_t.h"

/*
 * Rows in the order of their experts (gpu/cuda/moe.cu): places of an expert follow one
 * another, in ascending order of (row, choice). See gpu/index.h for what this text is.
 */
enum { MOE_WARP = 32 };

/* Threads for n things, so that no warp is cut. */
INDEX_FN INDEX_INT
whole_warps(INDEX_INT n)
{
    return (n + MOE_WARP - 1) / MOE_WARP * MOE_WARP;
}

/* Of n things in whole warps' stretches, one to each of `warps`: where the part begins, the end of
 * the one before. Behind n there is nothing. */
INDEX_FN INDEX_INT
moe_part(INDEX_INT n, INDEX_INT warps, INDEX_INT part)
{
    return whole_warps((n + warps - 1) / warps) * part;
}

/* The place of a row that has `before` others of its expert in front, from the expert's first
 * place on. */
INDEX_FN INDEX_INT
moe_place(INDEX_INT first, INDEX_INT before)
{
    return first + before;
}

#endif /* GPU_INDEX_MOE_H */
