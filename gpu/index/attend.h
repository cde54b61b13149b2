/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_INDEX_ATTEND_H
#define GPU_INDEX_ATTEND_H

#include "base/index_t.h"

/*
 * Attention by clusters (gpu/cuda/attend.cu): how a row's keys are cut into parts, and what
 * lies where in a block's shared memory. See gpu/index.h for what this text is.
 */
enum {
    ATTEND_PARTS = 8, /* blocks of a cluster */
    ATTEND_HEADS = 16,
    ATTEND_TILE = 96,   /* keys in shared memory at most */
    ATTEND_PAD = 8,     /* elements behind a row: rows begin in other banks */
    ATTEND_PAD_F32 = 4, /* the same of f32 */
};

/* Keys of one part: a multiple of 16. */
INDEX_FN INDEX_INT
attend_part(INDEX_INT n_keys)
{
    return (n_keys + ATTEND_PARTS * 16 - 1) / (ATTEND_PARTS * 16) * 16;
}

/* The first key of a part; it ends where the next one begins. */
INDEX_FN INDEX_INT
attend_first(INDEX_INT n_keys, INDEX_INT rank)
{
    const INDEX_INT first = rank * attend_part(n_keys);

    return INDEX_IF(first < n_keys, first, n_keys);
}

/* Elements of bf16 rows of `n`, and of f32 ones, with what is behind them. */
INDEX_FN INDEX_INT
attend_row(INDEX_INT k, INDEX_INT n)
{
    return k * (n + ATTEND_PAD);
}

INDEX_FN INDEX_INT
attend_row_f32(INDEX_INT h, INDEX_INT n)
{
    return h * (n + ATTEND_PAD_F32);
}

/* Shared memory, by offsets. */
struct attend_plan {
    INDEX_INT tile, keys, q, score, p, bytes;
};

INDEX_FN struct attend_plan
attend_plan_for(INDEX_INT dim, INDEX_INT max_keys)
{
    const INDEX_INT cap = attend_part(max_keys);
    const INDEX_INT out = attend_row_f32(ATTEND_HEADS, dim) * 4;
    struct attend_plan s;

    s.tile = INDEX_IF(cap < ATTEND_TILE, cap, ATTEND_TILE);
    s.keys = 0; /* bf16 [tile][dim], later f32 [HEADS][dim] */
    s.q = attend_row(s.tile, dim) * 2;
    s.q = INDEX_IF(s.q < out, out, s.q);
    s.score = s.q + attend_row(ATTEND_HEADS, dim) * 2;     /* f32 [HEADS][cap] */
    s.p = s.score + attend_row_f32(ATTEND_HEADS, cap) * 4; /* bf16 [HEADS][cap] */
    s.bytes = s.p + attend_row(ATTEND_HEADS, cap) * 2;
    return s;
}

/* Elements that 8 bytes of a packed key become: word `at` is 8 codes, or behind `codes`
 * words 4 elements of bf16. */
INDEX_FN INDEX_INT
attend_element(INDEX_INT at, INDEX_INT codes)
{
    return INDEX_IF(at < codes, at * 8, codes * 8 + (at - codes) * 4);
}

/* The first of the 8 dims that a warp of `tiles` has as number t. */
INDEX_FN INDEX_INT
attend_dims(INDEX_INT warp, INDEX_INT tiles, INDEX_INT t)
{
    return (warp * tiles + t) * 8;
}

/* Pair i of [HEADS][dims] of a block that finishes `dims` dims from rank * dims on. */
INDEX_FN INDEX_INT
attend_pair(INDEX_INT i, INDEX_INT dims, INDEX_INT rank)
{
    return rank * dims + i % (dims / 2) * 2;
}

#endif /* GPU_INDEX_ATTEND_H */
