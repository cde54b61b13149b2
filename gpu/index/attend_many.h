/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_INDEX_ATTEND_MANY_H
#define GPU_INDEX_ATTEND_MANY_H

#include "gpu/index/attend.h"

/*
 * Attention of many rows (gpu/cuda/attend_many.cu): what of a packed key lies where in a tile, and
 * what lies where in a block's shared memory. See gpu/index.h for what this text is.
 */
enum {
    MANY_HEADS = 2 * ATTEND_HEADS, /* of a block */
    MANY_DIM = 512,
    MANY_NOPE = 448, /* dims that are codes: one byte each */
    MANY_UNITS = MANY_NOPE / 16,
    MANY_WIDE = (MANY_DIM - MANY_NOPE) / 8,     /* pieces of 16 bytes behind the codes */
    MANY_GROUPS = MANY_NOPE / 64,               /* of dims with one scale */
    MANY_ROW = MANY_NOPE + MANY_WIDE * 16 + 16, /* bytes: rows begin in other banks */
    MANY_TEAMS = 4,  /* of a warp for each slice: eights of keys are one team's */
    MANY_STAGES = 2, /* tiles, and slices of scores */
};

/* Keys of a tile: each team has `eights` times 8. */
INDEX_FN INDEX_INT
many_tile(INDEX_INT eights)
{
    return MANY_TEAMS * eights * 8;
}

/* Keys in whole tiles. */
INDEX_FN INDEX_INT
many_cap(INDEX_INT max_keys, INDEX_INT eights)
{
    return (max_keys + many_tile(eights) - 1) / many_tile(eights) * many_tile(eights);
}

/* Byte of a tile where key `at` begins, codes first; and where its pieces behind them do. */
INDEX_FN INDEX_INT
many_key(INDEX_INT at)
{
    return at * MANY_ROW;
}

INDEX_FN INDEX_INT
many_wide(INDEX_INT at, INDEX_INT piece)
{
    return many_key(at) + MANY_NOPE + piece * 16;
}

/* Of one of two packed keys, 16 bytes that a lane loads: pieces behind the codes, by the first lanes;
 * and what ends with its scales. */
INDEX_FN INDEX_INT
many_behind(INDEX_INT lane)
{
    return INDEX_IF(lane < 2 * MANY_WIDE, MANY_NOPE + lane % MANY_WIDE * 16,
                    MANY_NOPE + MANY_WIDE * 16 - 8);
}

/* Elements of a tile's factors, [GROUPS][tile]. */
INDEX_FN INDEX_INT
many_factor(INDEX_INT group, INDEX_INT at, INDEX_INT eights)
{
    return group * (many_tile(eights) + ATTEND_PAD) + at;
}

/* Fours of f32 that a team's warps hand each other: of eight `of` (of keys, of each group of
 * heads), of a slice. */
INDEX_FN INDEX_INT
many_slice(INDEX_INT stage, INDEX_INT team, INDEX_INT of, INDEX_INT slice, INDEX_INT lane,
           INDEX_INT eights)
{
    return (((stage * MANY_TEAMS + team) * 2 * eights + of) * ATTEND_SLICES + slice) * 32 +
           lane;
}

/* The first key in a tile of eight number t of a team. */
INDEX_FN INDEX_INT
many_eight(INDEX_INT team, INDEX_INT t, INDEX_INT eights)
{
    return (team * eights + t) * 8;
}

/* The first of the two keys in a tile that a warp loads in turn t. */
INDEX_FN INDEX_INT
many_load(INDEX_INT warp, INDEX_INT t, INDEX_INT eights)
{
    return (warp * eights + t) * 2;
}

/* The slot of a ring that is i behind `slot`, i at most the ring's slots. */
INDEX_FN INDEX_INT
many_slot(INDEX_INT slot, INDEX_INT i, INDEX_INT slots)
{
    return INDEX_IF(slot + i < slots, slot + i, slot + i - slots);
}

/* Shared memory, by offsets. */
struct many_plan {
    INDEX_INT keys, factor, slice, q, score, row, tops, by, bytes;
};

INDEX_FN struct many_plan
many_plan_for(INDEX_INT max_keys, INDEX_INT eights)
{
    const INDEX_INT cap = many_cap(max_keys, eights);
    INDEX_INT slice_end, q_end;
    struct many_plan s;

    s.keys = 0;                                                    /* [STAGES][tile] */
    s.factor = s.keys + MANY_STAGES * many_key(many_tile(eights)); /* bf16 [STAGES] */
    s.slice = s.factor + MANY_STAGES * many_factor(MANY_GROUPS, 0, eights) * 2;
    s.q = s.slice; /* bf16 [HEADS][dim], until warps have their slices of it */
    slice_end = s.slice + many_slice(MANY_STAGES, 0, 0, 0, 0, eights) * 16;
    q_end = s.q + attend_row(MANY_HEADS, MANY_DIM) * 2;
    s.score = INDEX_IF(slice_end < q_end, q_end, slice_end); /* f32 [HEADS][cap] */
    s.row = s.score + attend_row_f32(MANY_HEADS, cap) * 4;   /* addresses [cap] */
    s.tops = s.row + cap * 8;                             /* f32 [TEAMS * eights][HEADS] */
    s.by = s.tops + MANY_TEAMS * eights * MANY_HEADS * 4; /* f32 [HEADS] */
    s.bytes = s.by + MANY_HEADS * 4;
    return s;
}

#endif /* GPU_INDEX_ATTEND_MANY_H */
