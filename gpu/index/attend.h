/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_INDEX_ATTEND_H
#define GPU_INDEX_ATTEND_H

#include "base/index_t.h"

/*
 * Attention by clusters (gpu/cuda/attend.cu): how a row's keys are cut into parts, and what
 * lies where in a block's shared memory. See gpu/index.h for what this text is.
 */
enum {
    ATTEND_PARTS = 16,  /* of a list; a cluster has as many blocks */
    ATTEND_HEADS = 16,  /* of a group: rows of a product, warps of a block */
    ATTEND_SLICES = 4,  /* of dims: a score is the sum of so many */
    ATTEND_TILE = 128,  /* keys in shared memory at most, if they are all of a block */
    ATTEND_AGAIN = 96,  /* and if more are to come */
    ATTEND_PIECE = 144, /* keys that are added up in one go at most */
    ATTEND_PAIRS = 16,  /* of dims that a block adds up, at most */
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
attend_first(INDEX_INT n_keys, INDEX_INT part)
{
    const INDEX_INT first = part * attend_part(n_keys);

    return INDEX_IF(first < n_keys, first, n_keys);
}

/* Pieces of a part, whose sums are added up in turn, and keys of one: a multiple of 16. */
INDEX_FN INDEX_INT
attend_pieces(INDEX_INT part)
{
    return (part + ATTEND_PIECE - 1) / ATTEND_PIECE;
}

INDEX_FN INDEX_INT
attend_piece(INDEX_INT part)
{
    const INDEX_INT n = attend_pieces(part);

    return (part + n * 16 - 1) / (n * 16) * 16;
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

/* Eights of dims that one of HEADS warps has. */
INDEX_FN INDEX_INT
attend_tiles(INDEX_INT dim)
{
    return (dim / 8 + ATTEND_HEADS - 1) / ATTEND_HEADS;
}

/* The first of the 8 dims that a warp of `tiles` has as number t. */
INDEX_FN INDEX_INT
attend_dims(INDEX_INT warp, INDEX_INT tiles, INDEX_INT t)
{
    return (warp * tiles + t) * 8;
}

/* Shared memory, by offsets. */
struct attend_plan {
    INDEX_INT cap, tile, keys, q, slice, in, score, p, den, tops, rest, bytes;
};

INDEX_FN struct attend_plan
attend_plan_for(INDEX_INT dim, INDEX_INT max_keys)
{
    const INDEX_INT sent = ATTEND_PARTS * ATTEND_HEADS;
    INDEX_INT end, in_end;
    struct attend_plan s;

    s.cap = attend_part(max_keys); /* keys of a block */
    s.tile = INDEX_IF(s.cap > ATTEND_TILE, ATTEND_AGAIN, s.cap);
    s.keys = 0;                                        /* bf16 [tile][dim] */
    s.q = attend_row(s.tile, dim) * 2;                 /* bf16 [HEADS][dim] */
    s.slice = s.q + attend_row(ATTEND_HEADS, dim) * 2; /* f32 [SLICES][HEADS][tile] */
    s.in = s.q; /* f32 [PARTS][HEADS][a warp's dims], when scores are made */
    end = s.slice + attend_row_f32(ATTEND_SLICES * ATTEND_HEADS, s.tile) * 4;
    in_end = s.in + attend_row_f32(sent, attend_tiles(dim) * 8) * 4;
    s.score = INDEX_IF(end < in_end, in_end, end);           /* f32 [HEADS][cap] */
    s.p = s.score + attend_row_f32(ATTEND_HEADS, s.cap) * 4; /* bf16 [HEADS][cap] */
    s.den = s.p + attend_row(ATTEND_HEADS, s.cap) * 2;       /* f64 [PARTS][HEADS] */
    s.tops = s.den + sent * 8;                               /* f32 [PARTS][HEADS] */
    s.rest = s.tops + sent * 4;                              /* f32 [HEADS] */
    s.bytes = s.rest + ATTEND_HEADS * 4;
    return s;
}

/* Elements that 8 bytes of a packed key become: word `at` is 8 codes, or behind `codes`
 * words 4 elements of bf16. */
INDEX_FN INDEX_INT
attend_element(INDEX_INT at, INDEX_INT codes)
{
    return INDEX_IF(at < codes, at * 8, codes * 8 + (at - codes) * 4);
}

/* Row h of what block `rank` of a cluster sends to another. */
INDEX_FN INDEX_INT
attend_sent(INDEX_INT rank, INDEX_INT h)
{
    return rank * ATTEND_HEADS + h;
}

/* Who adds up what parts send: thread t the pair of dims attend_pair(t), of those that a block has,
 * of head attend_pair_head(t). */
INDEX_FN INDEX_INT
attend_pair(INDEX_INT t)
{
    return t % ATTEND_PAIRS * 2;
}

INDEX_FN INDEX_INT
attend_pair_head(INDEX_INT t)
{
    return t / ATTEND_PAIRS;
}

#endif /* GPU_INDEX_ATTEND_H */
