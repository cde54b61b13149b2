/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_INDEX_ROWS_H
#define GPU_INDEX_ROWS_H

#include "base/index_t.h"

/*
 * What goes element by element over rows (gpu/cuda/norm.cu, quant.cu,
 * mhc.cu): who does which
 * row, group, pair. See gpu/index.h for what this text is.
 */
enum { ROW_WARP = 32 };

/* Blocks of warps that do one thing each: which one is this thread's. */
INDEX_FN INDEX_INT
warp_item(INDEX_INT block, INDEX_INT warps, INDEX_INT thread)
{
    return block * warps + thread / ROW_WARP;
}

/* Piece i of rows that have `pieces` each, of `size` elements: row and first element. */
INDEX_FN INDEX_INT
piece_row(INDEX_INT i, INDEX_INT pieces)
{
    return i / pieces;
}

INDEX_FN INDEX_INT
piece_at(INDEX_INT i, INDEX_INT pieces, INDEX_INT size)
{
    return i % pieces * size;
}

/* Threads for one row, `vec` elements each at a time: whole warps. */
INDEX_FN INDEX_INT
row_threads(INDEX_INT dim, INDEX_INT vec, INDEX_INT most)
{
    const INDEX_INT want = (dim + vec * ROW_WARP - 1) / (vec * ROW_WARP) * ROW_WARP;

    return INDEX_IF(want < most, want, most);
}

/* Groups of a row, ceil_div(dim, group) of them, the last of which may be short, numbered
 * over all rows. */
INDEX_FN INDEX_INT
group_row(INDEX_INT id, INDEX_INT groups)
{
    return id / groups;
}

INDEX_FN INDEX_INT
group_first(INDEX_INT id, INDEX_INT groups, INDEX_INT group)
{
    return id % groups * group;
}

INDEX_FN INDEX_INT
group_end(INDEX_INT first, INDEX_INT group, INDEX_INT dim)
{
    return INDEX_IF(first + group < dim, first + group, dim);
}

/* Pair p of rotations over heads of dim, counted from the first rotated element of the
 * first. */
INDEX_FN INDEX_T
rope_pair(INDEX_INT p, INDEX_INT pairs, INDEX_INT dim)
{
    return (INDEX_T)(p / pairs) * (INDEX_T)dim + (INDEX_T)(p % pairs * 2);
}

/* The lower element of pair p of a butterfly; the upper one is `stride` further on. */
INDEX_FN INDEX_INT
butterfly(INDEX_INT p, INDEX_INT stride)
{
    return p / stride * 2 * stride + p % stride;
}

/* Mixing coefficients of hc streams (spec 4): pre, post, comb, one behind another. */
INDEX_FN INDEX_INT
mix_post(INDEX_INT hc, INDEX_INT i)
{
    return hc + i;
}

INDEX_FN INDEX_INT
mix_comb(INDEX_INT hc, INDEX_INT i)
{
    return 2 * hc + i;
}

/* Element i of comb, [hc][hc]: where its row begins, and where its column does. */
INDEX_FN INDEX_INT
comb_row(INDEX_INT i, INDEX_INT hc)
{
    return i / hc * hc;
}

INDEX_FN INDEX_INT
comb_col(INDEX_INT i, INDEX_INT hc)
{
    return i % hc;
}

/* The same by the step from one element of the line to the next: 1 in a row, hc in a column.
 */
INDEX_FN INDEX_INT
comb_line(INDEX_INT i, INDEX_INT hc, INDEX_INT step)
{
    return INDEX_IF(step == 1, comb_row(i, hc), comb_col(i, hc));
}

/* Element c of stream i. */
INDEX_FN INDEX_INT
stream_cell(INDEX_INT i, INDEX_INT dim, INDEX_INT c)
{
    return i * dim + c;
}

/* A chunk of columns, 4 of them a lane, `lanes` lanes a stream: a lane's first one. */
INDEX_FN INDEX_INT
mix_column(INDEX_INT chunk, INDEX_INT lanes, INDEX_INT lane)
{
    return (chunk * lanes + lane % lanes) * 4;
}

/* Chunks of a row: as many as hold it, and up to three without columns, so that parts of an output
 * are read by fours. */
INDEX_FN INDEX_INT
mix_chunks(INDEX_INT dim, INDEX_INT lanes)
{
    return (dim + lanes * 16 - 1) / (lanes * 16) * 4;
}

/* A chunk's part of output o, of n, of a row's mix: what is added up lies together. */
INDEX_FN INDEX_T
mix_part(INDEX_INT row, INDEX_INT o, INDEX_INT n, INDEX_INT chunks, INDEX_INT chunk)
{
    return ((INDEX_T)row * (INDEX_T)n + (INDEX_T)o) * (INDEX_T)chunks + (INDEX_T)chunk;
}

#endif /* GPU_INDEX_ROWS_H */
