/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MODEL_KVSIZE_H
#define MODEL_KVSIZE_H

#include <stdint.h>

#include "model/config.h"

/*
 * How many bytes a sequence costs: the one place that knows the packed row rule of spec 15.3
 * (layout P), included by whoever allocates, stores or prints them.
 *
 * A main row is head_dim - rope_dim values in e4m3, rope_dim in bf16, one e8m0 scale for each
 * 64 of the first, padded to 8 bytes: 584 at 512/64. An index row is index_head_dim values in
 * FP4 and one e8m0 scale for each 32: 68 at 128.
 */
enum {
    KV_SCALE_GROUP = 64,       /* values of a main row that share a scale */
    KV_INDEX_SCALE_GROUP = 32, /* the same of an index row */
    KV_ROW_ALIGN = 8,
    KV_PAGE_TOKENS =
        128, /* every ratio divides it, so a page holds whole rows of each layer */
};

static inline int64_t
kv_row_bytes(int head_dim, int rope_dim)
{
    const int64_t plain = head_dim - rope_dim;
    const int64_t scales = (plain + KV_SCALE_GROUP - 1) / KV_SCALE_GROUP;
    const int64_t used = plain + 2 * (int64_t)rope_dim + scales;

    return (used + KV_ROW_ALIGN - 1) / KV_ROW_ALIGN * KV_ROW_ALIGN;
}

static inline int64_t
kv_index_row_bytes(int index_head_dim)
{
    return index_head_dim / 2 + index_head_dim / KV_INDEX_SCALE_GROUP;
}

/* Rows that n more tokens append to a compressed cache: main and index together. */
static inline int64_t
kv_compressed_bytes(const struct model_config *c, int layer, int64_t n_tokens)
{
    const int r = c->ratio[layer];
    int64_t row;

    if (r == 0)
        return 0;
    row = kv_row_bytes(c->head_dim, c->rope_dim);
    if (r == MODEL_CSA_RATIO)
        row += kv_index_row_bytes(c->index_head_dim);
    return n_tokens / r * row;
}

/* What the compressors keep in fp32 between tokens: a value and a score for each channel.
 * At ratio 4 the block before is kept too, and each row has both halves (spec 6.1). */
static inline int64_t
kv_frontier_bytes(const struct model_config *c, int layer)
{
    const int64_t r = c->ratio[layer], f32 = sizeof(float);

    if (r == MODEL_CSA_RATIO)
        return 2 * r * 2 * 2 * f32 * (c->head_dim + (int64_t)c->index_head_dim);
    return r * 2 * f32 * c->head_dim;
}

/* Compressed rows of 128 tokens over the backbone. */
static inline int64_t
kv_page_bytes(const struct model_config *c)
{
    int64_t sum = 0;

    for (int l = 0; l < c->n_layers; l++)
        sum += kv_compressed_bytes(c, l, KV_PAGE_TOKENS);
    return sum;
}

/* What one more token costs in the long run, rounded to the nearest byte. */
static inline int64_t
kv_bytes_per_token(const struct model_config *c)
{
    return (kv_page_bytes(c) + KV_PAGE_TOKENS / 2) / KV_PAGE_TOKENS;
}

/* All that a sequence of n tokens keeps for the backbone: window rows, compressed rows and
 * compressor frontiers. */
static inline int64_t
kv_session_bytes(const struct model_config *c, int64_t n_tokens)
{
    const int64_t window = n_tokens < c->window ? n_tokens : c->window;
    int64_t sum = 0;

    for (int l = 0; l < c->n_layers; l++)
        sum += window * kv_row_bytes(c->head_dim, c->rope_dim) +
               kv_compressed_bytes(c, l, n_tokens) + kv_frontier_bytes(c, l);
    return sum;
}

#endif /* MODEL_KVSIZE_H */
