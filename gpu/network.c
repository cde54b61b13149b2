/* SPDX-License-Identifier: Apache-2.0 */
/* The parts of a model without their weights, and the places of its caches. */
#include "config.h"

#include <errno.h>
#include <stdlib.h>

#include "base/err.h"
#include "gpu/index.h"
#include "gpu/network.h"
#include "model/kvlayout.h"

static void
set_compressor(struct compressor *k, int ratio, int dim)
{
    k->ratio = ratio;
    k->dim = dim;
    k->overlap = ratio == MODEL_CSA_RATIO;
    k->width = k->overlap ? 2 * dim : dim;
}

static void
set_layer(struct layer *l, const struct model_config *c, int ratio, struct matrix *wo_a,
          struct expert *experts)
{
    l->wo_a = wo_a;
    l->experts = experts;
    l->ratio = ratio;
    l->indexed = ratio == MODEL_CSA_RATIO;
    if (ratio != 0)
        set_compressor(&l->comp, ratio, c->head_dim);
    if (l->indexed)
        set_compressor(&l->index_comp, ratio, c->index_head_dim);
}

int
network_new(struct network *net, const struct model_config *c, bool draft, struct err *e)
{
    const size_t n = (size_t)c->n_layers, all = n + draft;
    const size_t groups = (size_t)c->o_groups, experts = (size_t)c->n_experts;
    struct expert *x;
    struct matrix *wo_a;

    if (draft && (c->n_mtp != 1 || c->ratio[n] != 0))
        return err_set(e, ERR_MODEL_MISMATCH, 0,
                       "a draft of %d blocks, ratio %d: only one window block is known",
                       c->n_mtp, c->n_mtp > 0 ? c->ratio[n] : 0);
    *net = (struct network){0};
    /* one block; each kind of element has the alignment of a pointer */
    net->memory = calloc(1, n * sizeof *net->layers + draft * sizeof *net->draft +
                                all * experts * sizeof *x + all * groups * sizeof *wo_a);
    if (net->memory == NULL)
        return err_set(e, ERR_QUOTA, errno, "no memory for the tables of a model");
    net->layers = net->memory;
    x = (struct expert *)(net->layers + n);
    wo_a = (struct matrix *)(x + all * experts);
    if (draft) {
        net->draft = (struct draft *)(wo_a + all * groups);
        set_layer(&net->draft->layer, c, 0, wo_a + n * groups, x + n * experts);
    }
    for (size_t i = 0; i < n; i++)
        set_layer(&net->layers[i], c, c->ratio[i], wo_a + i * groups, x + i * experts);
    return 0;
}

void
network_free(struct network *net)
{
    free(net->memory);
    *net = (struct network){0};
}

struct placing {
    struct network_places *out;
    size_t align;
};

/* `n` more bytes of a sequence; their offset. */
static size_t
ring_take(const struct placing *p, size_t n)
{
    const size_t at = p->out->seq_bytes;

    p->out->seq_bytes = (at + n + p->align - 1) / p->align * p->align;
    return at;
}

static void
place_compressor(const struct placing *p, struct compressor *k, size_t row)
{
    k->slots = (int)frontier_slots((uint64_t)k->ratio, k->overlap, MAX_REWIND);
    k->ring_at = ring_take(p, (size_t)k->slots * 2 * (size_t)k->width * sizeof(float));
    k->row = row;
    k->page_at = p->out->page_bytes;
    p->out->page_bytes += (size_t)(KV_PAGE_TOKENS / k->ratio) * row;
}

static void
place_layer(const struct placing *p, struct layer *l)
{
    struct network_places *o = p->out;

    l->ring_at = ring_take(p, (size_t)o->ring_slots * o->row);
    if (l->ratio == 0)
        return;
    place_compressor(p, &l->comp, o->row);
    if (l->indexed)
        place_compressor(p, &l->index_comp, o->index_row);
    else if (o->min_dense_ratio == 0 || l->ratio < o->min_dense_ratio)
        o->min_dense_ratio = l->ratio;
}

void
network_place(struct network *net, const struct model_config *c, enum kv_fmt fmt,
              size_t align, struct network_places *out)
{
    const struct placing p = {out, align};

    *out = (struct network_places){
        .row = kv_row_size(fmt, c->head_dim, c->rope_dim),
        .index_row = (size_t)kv_index_row_bytes(c->index_head_dim),
        .ring_slots = (int)window_slots((uint64_t)c->window, MAX_REWIND)};
    for (int i = 0; i < c->n_layers; i++)
        place_layer(&p, &net->layers[i]);
    if (net->draft == NULL)
        return;
    place_layer(&p, &net->draft->layer);
    net->draft->ring_at = ring_take(&p, (MAX_REWIND + 1) * (size_t)c->hc_mult *
                                            (size_t)c->hidden * sizeof(uint16_t));
}
