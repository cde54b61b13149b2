/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_INDEX_MMA_H
#define GPU_INDEX_MMA_H

#include "base/index_t.h"

/*
 * mma.m16n8k16 and ldmatrix: which element of a tile a lane has. See gpu/index.h for what this
 * text is.
 */

/* Element i of a lane's four of a product, [16][8]. */
INDEX_FN INDEX_INT
mma_row(INDEX_INT lane, INDEX_INT i)
{
    return lane / 4 + i / 2 * 8;
}

INDEX_FN INDEX_INT
mma_col(INDEX_INT lane, INDEX_INT i)
{
    return lane % 4 * 2 + i % 2;
}

/* The 8 elements that a lane hands to ldmatrix.x4: in which of 16 rows (or of 8), from where on;
 * 16 rows have two eights then, 8 rows four. */
INDEX_FN INDEX_INT
quad_row(INDEX_INT lane, INDEX_INT rows)
{
    return lane % rows;
}

INDEX_FN INDEX_INT
quad_at(INDEX_INT lane, INDEX_INT rows)
{
    return lane / rows * 8;
}

#endif /* GPU_INDEX_MMA_H */
