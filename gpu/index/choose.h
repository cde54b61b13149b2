/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_INDEX_CHOOSE_H
#define GPU_INDEX_CHOOSE_H

#include "base/index_t.h"

/*
 * The indexer on tensor cores (gpu/cuda/choose.cu): queries in shared memory as a warp's lanes
 * take them, keys of warps, and how a cluster cuts up the scores of a query. See gpu/index.h for
 * what this text is.
 */
enum {
    CHOOSE_WARPS = 8,
    CHOOSE_KEYS = 32, /* of a warp at a time */
    CHOOSE_LANES = 32,
    CHOOSE_TERMS = 38, /* of eight heads, by 16 bytes, some of which are between others */
    CHOOSE_PARTS = 16, /* blocks of a cluster, at most */
    CHOOSE_CLASSES = 256, /* of a score's upper or lower byte */
    CHOOSE_EIGHTS = 4,    /* eights of scores that a thread can have */
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

/* Scores of a query: the next one's begin at a multiple of 8. */
INDEX_FN INDEX_INT
choose_stride(INDEX_INT n)
{
    return (n + 7) / 8 * 8;
}

/* Scores of one block of a cluster: a multiple of 8. */
INDEX_FN INDEX_INT
choose_part(INDEX_INT n, INDEX_INT parts)
{
    return (n + parts * 8 - 1) / (parts * 8) * 8;
}

/* Eights of a thread, and its first one: neighbours are in one thread. */
INDEX_FN INDEX_INT
choose_each(INDEX_INT part, INDEX_INT threads)
{
    return (part / 8 + threads - 1) / threads;
}

INDEX_FN INDEX_INT
choose_own(INDEX_INT thread, INDEX_INT each)
{
    return thread * each;
}

/* A class has a counter for each lane. They are added up by 4 threads a class, each of which
 * begins at another bank: number i. */
INDEX_FN INDEX_INT
choose_counter(INDEX_INT cls, INDEX_INT lane)
{
    return cls * CHOOSE_LANES + lane;
}

INDEX_FN INDEX_INT
choose_counter_read(INDEX_INT cls, INDEX_INT i)
{
    return cls * CHOOSE_LANES + (i + cls) % CHOOSE_LANES;
}

#endif /* GPU_INDEX_CHOOSE_H */
