/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The draft block (spec 10.1): one more window layer with rows of its own, one position behind.
 * Which rows is in upload.c; the streams of the last positions wait in a ring for the first token
 * of the next step. Window rows are made in every step, the rest only for steps that want draft
 * logits.
 */
#include "config.h"

#include "base/err.h"
#include "gpu/cuda/cuda.h"

enum { SLOTS = MAX_REWIND + 1 };

/* draft_h: the streams in front of each draft row. */
static int
gather_streams(struct backend *b, const struct cuda_step *p, struct err *e)
{
    const struct gather_args a = {.src = b->s.x,
                                  .dst = b->s.draft_h,
                                  .index = p->pairs,
                                  .rows = p->d.rows,
                                  .spans = p->d.spans,
                                  .ring_at = b->net.draft->ring_at,
                                  .bytes = (size_t)b->c.hc_mult * b->c.hidden * 2,
                                  .slots = SLOTS,
                                  .n = p->d.n};

    return gather_cuda(&b->rk, &a, e);
}

static int
keep_streams(struct backend *b, const struct cuda_rows *r, struct err *e)
{
    const struct ring_args a = {.src = b->s.x,
                                .rows = r->rows,
                                .spans = r->spans,
                                .ring_at = b->net.draft->ring_at,
                                .bytes = (size_t)b->c.hc_mult * b->c.hidden * 2,
                                .slots = SLOTS,
                                .n = r->n};

    return ring_store_cuda(&b->rk, &a, e);
}

/* x = e_proj(enorm(embedding)) to all streams + h_proj(hnorm(streams)), each in bf16. */
static int
project_pairs(struct backend *b, const struct cuda_rows *d, struct err *e)
{
    const struct model_config *c = &b->c;
    const struct draft *m = b->net.draft;
    const int dim = c->hidden, hc = c->hc_mult, n = d->n;
    struct cuda_scratch *s = &b->s;
    const struct embed_args embed = {
        .table = b->net.embed, .rows = d->rows, .x = s->y, .n = n, .copies = 1, .dim = dim};
    const struct linear_args a[2] = {
        linear_job(&m->e_proj, s->y, s->f, n),
        linear_job(&m->h_proj, s->draft_h, s->draft_x, n * hc)};

    if (embed_cuda(&b->rk, &embed, e) == -1 ||
        norm_rows(b, s->y, m->enorm, s->y, n, dim, e) == -1 ||
        norm_rows(b, s->draft_h, m->hnorm, s->draft_h, n * hc, dim, e) == -1)
        return -1;
    if (is_quantised(&m->e_proj) && quantise(b, s->y, s->y, n, dim, e) == -1)
        return -1;
    if (is_quantised(&m->h_proj) &&
        quantise(b, s->draft_h, s->draft_h, n * hc, dim, e) == -1)
        return -1;
    if (linear_cuda(&b->rk, a, 2, e) == -1)
        return -1;
    return add_rows_cuda(&b->rk, s->draft_x, s->f, n * hc, hc, dim, e);
}

int
cuda_draft(struct backend *b, const struct cuda_step *p, struct err *e)
{
    const struct draft *m = b->net.draft;

    if (p->d.n > 0) {
        if (gather_streams(b, p, e) == -1 || project_pairs(b, &p->d, e) == -1)
            return -1;
        if (p->draft_wanted ? cuda_layer_forward(b, &m->layer, &p->d, b->s.draft_x, e) == -1
                            : cuda_layer_keys(b, &m->layer, &p->d, b->s.draft_x, e) == -1)
            return -1;
    }
    if (cuda_head(b, &m->hc_head, m->norm, b->s.draft_x, &p->draft_head, e) == -1)
        return -1;
    return keep_streams(b, &p->r, e);
}
