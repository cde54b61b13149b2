/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_INDEX_INDEXER_H
#define GPU_INDEX_INDEXER_H

#include "base/index_t.h"

/*
 * The indexer (gpu/cuda/index.cu): what lies where in a packed row and in shared memory,
 * who does which head, where the chosen go. See gpu/index.h for what this text is.
 */
enum {
    SCORE_KEYS = 64, /* of a block */
    SCORE_PARTS = 4, /* of the heads */
    SCORE_PAD = 16,  /* a lane's 16-byte loads then fall on banks of their own */
    FP4_GROUP = 32,  /* elements that share a scale */
};

/* Bytes of a packed row: e2m1 [dim/2], then e8m0 [dim/32]. */
INDEX_FN INDEX_INT
fp4_row(INDEX_INT dim)
{
    return dim / 2 + dim / FP4_GROUP;
}

/* Shared memory, by offsets: its parts grow with heads and dims. */
struct score_plan {
    INDEX_INT q, key, q_scale, key_scale, w, term, row, bytes;
};

INDEX_FN struct score_plan
score_plan_for(INDEX_INT heads, INDEX_INT dim)
{
    const INDEX_INT groups = dim / FP4_GROUP;
    struct score_plan p;

    p.q = 0;             /* int8 [heads][dim] */
    p.key = heads * dim; /* int8 [KEYS][dim + PAD] */
    p.q_scale = p.key + SCORE_KEYS * (dim + SCORE_PAD);
    p.key_scale = p.q_scale + heads * groups * 4; /* f32 [KEYS][groups] */
    p.w = p.key_scale + SCORE_KEYS * groups * 4;  /* f32 [heads] */
    p.term = p.w + heads * 4;                     /* f32 [heads][KEYS] */
    p.bytes = p.term + heads * SCORE_KEYS * 4;
    p.row = fp4_row(dim);
    return p;
}

/* Where the values of key k begin, and the term of head h and key k. */
INDEX_FN INDEX_INT
score_key(INDEX_INT k, INDEX_INT dim)
{
    return k * (dim + SCORE_PAD);
}

INDEX_FN INDEX_INT
score_term(INDEX_INT h, INDEX_INT k)
{
    return h * SCORE_KEYS + k;
}

/* The first head of a part; the part ends where the next one begins. */
INDEX_FN INDEX_INT
score_head(INDEX_INT part, INDEX_INT heads)
{
    return heads * part / SCORE_PARTS;
}

/* Where the k best go: behind all that are larger and in front of it, and of those equal
 * to the k-th, `rank` are taken. above, equal: how many there are in front. */
INDEX_FN INDEX_INT
topk_place(INDEX_INT above, INDEX_INT equal, INDEX_INT rank)
{
    return above + INDEX_IF(equal < rank, equal, rank);
}

#endif /* GPU_INDEX_INDEXER_H */
