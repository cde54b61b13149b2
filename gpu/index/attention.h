/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_INDEX_ATTENTION_H
#define GPU_INDEX_ATTENTION_H

#include "base/index_t.h"

/*
 * Attention over packed keys (gpu/cuda/attention.cu): parts of a key row, cells of scores.
 * See gpu/index.h for what this text is.
 */
enum { KEY_GROUP = 64 /* KV_GROUP: elements of a key row that share a scale */ };

/* Where the parts of a packed row are: e4m3 [nope], bf16 [dim - nope], scales. */
struct key_parts {
    INDEX_INT nope, scales;
};

INDEX_FN struct key_parts
key_parts_of(INDEX_INT dim, INDEX_INT nope)
{
    struct key_parts p;

    p.nope = nope;
    p.scales = nope + 2 * (dim - nope);
    return p;
}

/* The scale of element c < nope, and the two bytes of element c >= nope. */
INDEX_FN INDEX_INT
key_scale(struct key_parts p, INDEX_INT c)
{
    return p.scales + c / KEY_GROUP;
}

INDEX_FN INDEX_INT
key_wide(struct key_parts p, INDEX_INT c)
{
    return p.nope + 2 * (c - p.nope);
}

/* A job's scratch: f32 [heads][max_keys] scores, then [heads] denominators. */
INDEX_FN INDEX_T
weight_scratch(INDEX_INT heads, INDEX_INT max_keys)
{
    return (INDEX_T)heads * ((INDEX_T)max_keys + 1);
}

INDEX_FN INDEX_T
weight_cell(INDEX_INT h, INDEX_INT max_keys, INDEX_INT k)
{
    return (INDEX_T)h * (INDEX_T)max_keys + (INDEX_T)k;
}

/* Element c of head h, in q and in o. */
INDEX_FN INDEX_T
head_cell(INDEX_INT h, INDEX_INT dim, INDEX_INT c)
{
    return (INDEX_T)h * (INDEX_T)dim + (INDEX_T)c;
}

#endif /* GPU_INDEX_ATTENTION_H */
