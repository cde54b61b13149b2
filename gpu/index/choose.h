/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_INDEX_CHOOSE_H
#define GPU_INDEX_CHOOSE_H

#include "base/index_t.h"

/*
 * The indexer on tensor cores (gpu/cuda/choose.cu): queries in shared memory as a warp's lanes
 * take them, keys of warps, and what a thread has of a query's scores. See gpu/index.h for
 * what this text is.
 */
enum {
    CHOOSE_WARPS = 8,
    CHOOSE_KEYS = 32, /* of a warp at a time */
    CHOOSE_LANES = 32,
    CHOOSE_TERMS = 38, /* of eight heads, by 16 bytes, some of which are between others */
    CHOOSE_UNIT = 16,  /* neighbouring scores of which the largest is kept */
    CHOOSE_EIGHTS = 4, /* eights of those that a thread can have */
    CHOOSE_THREADS = 1024,
    CHOOSE_MOST = CHOOSE_THREADS * CHOOSE_EIGHTS * 8 * CHOOSE_UNIT, /* scores of a query */
    CHOOSE_TOPK = 4095,
};

/* Heads go by eight, and two eights at a time; the last ones may not be there. */
INDEX_FN INDEX_INT
choose_eights(INDEX_INT heads)
{
    return (heads + 15) / 16 * 2;
}

/* Lane's 16 bytes of eight heads and a group of 32 elements. */
INDEX_FN INDEX_INT
choose_query(INDEX_INT eight, INDEX_INT groups, INDEX_INT group, INDEX_INT lane)
{
    return (eight * groups + group) * CHOOSE_LANES + lane;
}

/* Where the terms of two heads (0 .. 3) with the keys of four lanes (0 .. 7) are, one word for each
 * of four keys: lanes that write 16 bytes, and those that read 4, fall on banks of their own. */
INDEX_FN INDEX_INT
choose_term(INDEX_INT four, INDEX_INT pair)
{
    return pair * 10 + four;
}

/* The first key of a warp; it goes on CHOOSE_WARPS * CHOOSE_KEYS further for each block. */
INDEX_FN INDEX_INT
choose_first(INDEX_INT block, INDEX_INT warp)
{
    return (block * CHOOSE_WARPS + warp) * CHOOSE_KEYS;
}

/* Number m of the four keys that a lane has. */
INDEX_FN INDEX_INT
choose_key(INDEX_INT first, INDEX_INT m, INDEX_INT lane)
{
    return first + m * 8 + lane / 4;
}

/* Units of neighbouring scores, whose largest ones the choice looks at first. */
INDEX_FN INDEX_INT
choose_units(INDEX_INT n)
{
    return (n + CHOOSE_UNIT - 1) / CHOOSE_UNIT;
}

/* Of a query, behind room for whole units of scores: where the largest of each are. The next
 * query's scores begin at a multiple of 8. */
INDEX_FN INDEX_INT
choose_tops(INDEX_INT n)
{
    return choose_units(n) * CHOOSE_UNIT;
}

INDEX_FN INDEX_INT
choose_stride(INDEX_INT n)
{
    return choose_tops(n) + (choose_units(n) + 7) / 8 * 8;
}

/* Of `all` things, those of a thread: neighbours; and its first one. */
INDEX_FN INDEX_INT
choose_each(INDEX_INT all, INDEX_INT threads)
{
    return (all + threads - 1) / threads;
}

INDEX_FN INDEX_INT
choose_own(INDEX_INT thread, INDEX_INT each)
{
    return thread * each;
}

#endif /* GPU_INDEX_CHOOSE_H */
