/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which bytes of a sequence leave the engine, and in which order. Everything follows from
 * config.json and from what later tokens look back at (spec 5.3, 6.1, 6.4); nothing here knows
 * how a backend keeps its rows. Pure arithmetic, any thread.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "base/err.h"
#include "model/kvlayout.h"
#include "model/kvsize.h"

enum {
    LAYOUT_VERSION = 1, /* another order or meaning of the parts: another hash */
    PARTS_A_LAYER = 5,
    DRAFT_PARTS = 2,
};

static void
add_part(struct kv_layout *l, struct kv_part p)
{
    if (p.kind == KV_PART_MAIN || p.kind == KV_PART_INDEX) {
        p.page_at = l->page_bytes;
        l->page_bytes += (uint64_t)KV_PAGE_TOKENS / p.ratio * p.row_bytes;
    }
    l->parts[l->n_parts++] = p;
}

/* A compressor's rows, main or index: `dim` values each. */
static struct kv_part
frontier(enum kv_kind kind, int layer, int ratio, int dim)
{
    const int overlap = ratio == MODEL_CSA_RATIO;

    return (struct kv_part){.kind = kind,
                            .dtype = KV_DTYPE_F32,
                            .layer = (uint16_t)layer,
                            .ratio = (uint16_t)ratio,
                            .row_bytes = (uint32_t)(2 * dim * (1 + overlap)) *
                                         (uint32_t)sizeof(float),
                            .span = (uint32_t)overlap};
}

static struct kv_part
window(enum kv_kind kind, int layer, const struct model_config *c)
{
    return (struct kv_part){.kind = kind,
                            .dtype = KV_DTYPE_PACKED,
                            .layer = (uint16_t)layer,
                            .ratio = 1,
                            .row_bytes = (uint32_t)kv_row_bytes(c->head_dim, c->rope_dim),
                            .span = (uint32_t)c->window};
}

static void
add_layer(struct kv_layout *l, const struct model_config *c, int layer)
{
    const int ratio = c->ratio[layer];
    const bool indexed = ratio == MODEL_CSA_RATIO;
    const struct kv_part row = {.layer = (uint16_t)layer, .ratio = (uint16_t)ratio};
    struct kv_part p = row;

    if (ratio != 0) {
        p.kind = KV_PART_MAIN;
        p.dtype = KV_DTYPE_PACKED;
        p.row_bytes = (uint32_t)kv_row_bytes(c->head_dim, c->rope_dim);
        add_part(l, p);
    }
    if (indexed) {
        p = row;
        p.kind = KV_PART_INDEX;
        p.dtype = KV_DTYPE_FP4;
        p.row_bytes = (uint32_t)kv_index_row_bytes(c->index_head_dim);
        add_part(l, p);
    }
    add_part(l, window(KV_PART_WINDOW, layer, c));
    if (ratio != 0)
        add_part(l, frontier(KV_PART_FRONTIER, layer, ratio, c->head_dim));
    if (indexed)
        add_part(l, frontier(KV_PART_INDEX_FRONTIER, layer, ratio, c->index_head_dim));
}

/* Behind the longest of everything: a page but one token full, and past every window. */
static uint64_t
longest_state(const struct kv_layout *l, const struct model_config *c)
{
    const uint64_t pages = ((uint64_t)c->window + 2) / KV_PAGE_TOKENS + 2;

    return kv_state_bytes(l, pages * KV_PAGE_TOKENS - 1);
}

static uint64_t
hash_of(const struct kv_layout *l)
{
    uint64_t h = XXH3_64bits_withSeed(&l->page_bytes, sizeof l->page_bytes, LAYOUT_VERSION);

    for (size_t i = 0; i < l->n_parts; i++) {
        const struct kv_part *p = &l->parts[i];
        const uint64_t all[] = {p->kind,      p->dtype, p->layer,  p->ratio,
                                p->row_bytes, p->span,  p->page_at};

        h = XXH3_64bits_withSeed(all, sizeof all, h);
    }
    return h;
}

int
kv_layout_init(struct kv_layout *l, const struct model_config *c, bool draft, struct err *e)
{
    *l = (struct kv_layout){0};
    for (int i = 0; i < c->n_layers; i++)
        if (c->ratio[i] < 0 || (c->ratio[i] > 0 && KV_PAGE_TOKENS % c->ratio[i] != 0))
            return err_set(e, ERR_MODEL_MISMATCH, 0,
                           "layer %d: ratio %d does not divide %d", i, c->ratio[i],
                           KV_PAGE_TOKENS);
    l->parts = calloc((size_t)c->n_layers * PARTS_A_LAYER + DRAFT_PARTS, sizeof *l->parts);
    if (l->parts == NULL)
        return err_set(e, ERR_QUOTA, 0, "no memory for the layout of %d layers",
                       c->n_layers);
    for (int i = 0; i < c->n_layers; i++)
        add_layer(l, c, i);
    if (draft) {
        add_part(l, window(KV_PART_DRAFT_WINDOW, c->n_layers, c));
        add_part(
            l, (struct kv_part){.kind = KV_PART_DRAFT_STREAMS,
                                .dtype = KV_DTYPE_BF16,
                                .layer = (uint16_t)c->n_layers,
                                .ratio = 1,
                                .row_bytes = (uint32_t)c->hc_mult * (uint32_t)c->hidden * 2,
                                .span = 1});
    }
    l->state_most = longest_state(l, c);
    l->hash = hash_of(l);
    return 0;
}

void
kv_layout_done(struct kv_layout *l)
{
    free(l->parts);
    *l = (struct kv_layout){0};
}

/* The positions behind which a part of that kind ends: pos, or one less for the draft's window,
 * whose row at p is made of the streams behind p and the token at p + 1. */
static uint64_t
end_of(const struct kv_part *p, uint64_t pos)
{
    return p->kind == KV_PART_DRAFT_WINDOW && pos > 0 ? pos - 1 : pos;
}

uint64_t
kv_state_first(const struct kv_part *p, uint64_t pos)
{
    const uint64_t end = end_of(p, pos);

    switch (p->kind) {
    case KV_PART_MAIN:
    case KV_PART_INDEX: return pos / KV_PAGE_TOKENS * ((uint64_t)KV_PAGE_TOKENS / p->ratio);
    case KV_PART_FRONTIER:
    case KV_PART_INDEX_FRONTIER: {
        const uint64_t blocks = pos / p->ratio;

        return (blocks > p->span ? blocks - p->span : 0) * p->ratio;
    }
    default: return end > p->span ? end - p->span : 0;
    }
}

uint64_t
kv_state_rows(const struct kv_part *p, uint64_t pos)
{
    const bool compressed = p->kind == KV_PART_MAIN || p->kind == KV_PART_INDEX;

    return (compressed ? pos / p->ratio : end_of(p, pos)) - kv_state_first(p, pos);
}

uint64_t
kv_state_bytes(const struct kv_layout *l, uint64_t pos)
{
    uint64_t sum = 0;

    for (size_t i = 0; i < l->n_parts; i++)
        sum += kv_state_rows(&l->parts[i], pos) * l->parts[i].row_bytes;
    return sum;
}
