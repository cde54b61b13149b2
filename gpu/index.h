/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_INDEX_H
#define GPU_INDEX_H

#include <stdint.h>

/*
 * Where things are: which positions a query looks at, which slot of a ring and which row of
 * which page holds what. One text for C, for kernels, and for the prover (verify/), which
 * puts terms in place of numbers; so a value that depends on a condition is an INDEX_IF.
 *
 * What one family of kernels alone needs is in gpu/index/: attend.h, packed.h, indexer.h,
 * attention.h, compress.h, rows.h (norms, rounding, streams), linear.h.
 */
#include "base/index_t.h"

/* How many of b each it takes for a: blocks of a grid, groups of a row. */
INDEX_FN INDEX_INT
ceil_div(INDEX_INT a, INDEX_INT b)
{
    return (a + b - 1) / b;
}

/* What a thread of a grid does, where each does one thing. */
INDEX_FN INDEX_INT
grid_item(INDEX_INT block, INDEX_INT threads, INDEX_INT thread)
{
    return block * threads + thread;
}

/* Where row number `row` of rows of `width` begins: in elements, or in bytes. */
INDEX_FN INDEX_T
row_start(INDEX_T row, INDEX_T width)
{
    return row * width;
}

/* The oldest position in the window of the query at pos; the newest is pos itself. */
INDEX_FN INDEX_T
window_first(INDEX_T pos, INDEX_T window)
{
    return INDEX_IF(pos + 1 > window, pos + 1 - window, 0);
}

/* Keys of the window of the query at pos, from `first` on. */
INDEX_FN INDEX_INT
window_count(INDEX_T pos, INDEX_T first)
{
    return (INDEX_INT)(pos - first) + 1;
}

INDEX_FN INDEX_INT
window_keys(INDEX_T pos, INDEX_T window)
{
    return window_count(pos, window_first(pos, window));
}

/* Compressed entries that the query at pos may see: those whose last token is at most pos.
 */
INDEX_FN INDEX_T
entries_visible(INDEX_T pos, INDEX_T ratio)
{
    return (pos + 1) / ratio;
}

/* Of `visible` entries, how many the query looks at: all, or where a choice has been made
 * (picks not 0) the topk best of more than those. */
INDEX_FN INDEX_INT
entries_taken(INDEX_INT visible, INDEX_INT topk, INDEX_INT picks)
{
    return INDEX_IF(picks != 0 && visible > topk, topk, visible);
}

/* Rows of a step: that of position pos, in a sequence whose rows begin at row0 with
 * `start`. */
INDEX_FN INDEX_T
step_row(INDEX_INT row0, INDEX_T pos, INDEX_T start)
{
    return (INDEX_T)row0 + (pos - start);
}

/* Rings are indexed by position: a slot is overwritten `slots` positions later. */
INDEX_FN INDEX_T
ring_slot(INDEX_T pos, INDEX_T slots)
{
    return pos % slots;
}

/* Of n rows from `slot` on, those in front of the ring's end: the others are at its beginning. */
INDEX_FN INDEX_T
ring_head(INDEX_T slot, INDEX_T n, INDEX_T slots)
{
    return INDEX_IF(n < slots - slot, n, slots - slot);
}

/* Slots of the rings: what the next token may look back at, itself included, and as many
 * more as a rewind may take back. A compressor looks back at the block that it is in, and
 * with overlap at the one before. */
INDEX_FN INDEX_T
window_slots(INDEX_T window, INDEX_T spare)
{
    return window + spare;
}

INDEX_FN INDEX_T
frontier_slots(INDEX_T ratio, INDEX_T overlap, INDEX_T spare)
{
    return ratio * (1 + overlap) + spare;
}

/* Entry j: row entry_row of page entry_page, with per_page entries on each. */
INDEX_FN INDEX_T
entry_page(INDEX_T j, INDEX_T per_page)
{
    return j / per_page;
}

INDEX_FN INDEX_T
entry_row(INDEX_T j, INDEX_T per_page)
{
    return j % per_page;
}

/* The page that holds the entries of the block in which position pos lies. */
INDEX_FN INDEX_T
page_of(INDEX_T pos, INDEX_T page_tokens)
{
    return pos / page_tokens;
}

#endif /* GPU_INDEX_H */
