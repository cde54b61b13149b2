/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_INDEX_H
#define GPU_INDEX_H

#include <stdint.h>

/*
 * Where things are: which positions a query looks at, which slot of a ring and which row of
 * which page holds what. Plain arithmetic for C, for kernels, and for a prover.
 */
#ifdef __CUDACC__
#    define INDEX_FN static __host__ __device__ inline
#else
#    define INDEX_FN static inline
#endif

/* The oldest position in the window of the query at pos; the newest is pos itself. */
INDEX_FN uint64_t
window_first(uint64_t pos, uint64_t window)
{
    return pos + 1 > window ? pos + 1 - window : 0;
}

/* Compressed entries that the query at pos may see: those whose last token is at most pos. */
INDEX_FN uint64_t
entries_visible(uint64_t pos, uint64_t ratio)
{
    return (pos + 1) / ratio;
}

/* Rings are indexed by position: a slot is overwritten `slots` positions later. */
INDEX_FN uint64_t
ring_slot(uint64_t pos, uint64_t slots)
{
    return pos % slots;
}

/* Entry j: row entry_row of page entry_page, with per_page entries on each. */
INDEX_FN uint64_t
entry_page(uint64_t j, uint64_t per_page)
{
    return j / per_page;
}

INDEX_FN uint64_t
entry_row(uint64_t j, uint64_t per_page)
{
    return j % per_page;
}

/* The page that holds the entries of the block in which position pos lies. */
INDEX_FN uint64_t
page_of(uint64_t pos, uint64_t page_tokens)
{
    return pos / page_tokens;
}

#endif /* GPU_INDEX_H */
