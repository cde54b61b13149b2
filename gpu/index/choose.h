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
    CHOOSE_PARTS = 8,     /* blocks of a cluster */
    CHOOSE_CLASSES = 256, /* of a score's upper or lower byte */
    CHOOSE_COUNTERS = 32, /* warps of a block that counts */
};

/* Heads go by eight, the last of which may not be there. */
INDEX_FN INDEX_INT
choose_eights(INDEX_INT heads)
{
    return (heads + 7) / 8;
}

/* Lane's 16 bytes of eight heads and a group of 32 elements; and one head's scale of it. */
INDEX_FN INDEX_INT
choose_query(INDEX_INT eight, INDEX_INT groups, INDEX_INT group, INDEX_INT lane)
{
    return (eight * groups + group) * CHOOSE_LANES + lane;
}

INDEX_FN INDEX_INT
choose_scale(INDEX_INT eight, INDEX_INT groups, INDEX_INT group, INDEX_INT head)
{
    return (eight * groups + group) * 8 + head;
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

/* Scores of one block of a cluster: a multiple of 8. */
INDEX_FN INDEX_INT
choose_part(INDEX_INT n)
{
    return (n + CHOOSE_PARTS * 8 - 1) / (CHOOSE_PARTS * 8) * 8;
}

/* Scores of a warp: a multiple of 32. */
INDEX_FN INDEX_INT
choose_stretch(INDEX_INT n)
{
    return (n + CHOOSE_COUNTERS * CHOOSE_LANES - 1) / (CHOOSE_COUNTERS * CHOOSE_LANES) *
           CHOOSE_LANES;
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
