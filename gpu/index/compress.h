/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_INDEX_COMPRESS_H
#define GPU_INDEX_COMPRESS_H

#include "base/index_t.h"

/*
 * The compressor (spec 6.1, gpu/cuda/compress.cu). Its inputs are rows of [2][width]:
 * values, then scores. With overlap an entry looks at the block before its own, too, and
 * each position has two inputs side by side: the first for the entry of the next block, the
 * second for that of its own. See gpu/index.h for what this text is.
 */
INDEX_FN INDEX_INT
compress_width(INDEX_INT dim, INDEX_INT overlap)
{
    return INDEX_IF(overlap != 0, 2 * dim, dim);
}

/* Positions that an entry looks at in front of its own block, and all that it looks at. */
INDEX_FN INDEX_INT
compress_back(INDEX_INT ratio, INDEX_INT overlap)
{
    return INDEX_IF(overlap != 0, ratio, 0);
}

INDEX_FN INDEX_INT
compress_count(INDEX_INT ratio, INDEX_INT overlap)
{
    return INDEX_IF(overlap != 0, 2 * ratio, ratio);
}

/* The i-th position that entry j looks at, plus `back`: less than that is before the
 * start. */
INDEX_FN INDEX_T
compress_reach(INDEX_T j, INDEX_INT ratio, INDEX_INT i)
{
    return j * (INDEX_T)ratio + (INDEX_T)i;
}

/* Channel c of the i-th position, among `width` of a row. */
INDEX_FN INDEX_INT
compress_channel(INDEX_INT c, INDEX_INT i, INDEX_INT dim, INDEX_INT ratio,
                 INDEX_INT overlap)
{
    return c + INDEX_IF(overlap != 0 && i >= ratio, dim, 0);
}

/* The values of a row; its scores are `width` further on. */
INDEX_FN INDEX_T
compress_row(INDEX_T row, INDEX_INT width)
{
    return row * 2 * (INDEX_T)width;
}

#endif /* GPU_INDEX_COMPRESS_H */
