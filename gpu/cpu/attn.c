/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The attention sublayer (spec 5), for all rows of a step at once: projections, keys of the
 * window, compressed entries, the indexer's choice, attention, projection back.
 *
 * Window rows of the step itself are in scratch.rows and older ones in the sequence's ring;
 * the ring gets the step's rows only when all queries have looked, so a step may be longer
 * than the ring.
 */
#include "config.h"

#include <math.h>
#include <string.h>

#include "base/fp.h"
#include "gpu/cpu/cpu.h"
#include "gpu/cpu/kvrow.h"
#include "gpu/cpu/pool.h"

static const float *
angles(const struct layer *l, const struct rows *r)
{
    return r->cs[l->ratio != 0 && !MUTANT(MUTANT_PLAIN_ROPE)];
}

static void
act_quant(struct backend *b, const uint16_t *x, uint16_t *y, int rows, int dim)
{
    b->ops->act_quant(&(struct act_quant_args){
        .x = x, .y = y, .rows = rows, .dim = dim, .stride = dim, .group = 128});
}

static struct linear_args
job(const struct matrix *w, const uint16_t *x, void *y, int rows)
{
    return (struct linear_args){
        .w = w, .x = x, .y = y, .rows = rows, .x_stride = w->in, .y_stride = w->out};
}

/* wkv or wgate of a compressor into its half of raw f32 [rows][2][width]. */
static struct linear_args
raw_job(const struct compressor *k, const struct matrix *w, const uint16_t *x, float *raw,
        int rows)
{
    struct linear_args a = job(w, x, raw + (w == &k->wgate ? k->width : 0), rows);

    a.y_stride = 2 * k->width;
    a.y_f32 = 1;
    return a;
}

/* From x: qr, kv, and the raw inputs of the compressors and the indexer. */
static void
project_in(struct backend *b, const struct layer *l, int n, const uint16_t *x)
{
    struct scratch *s = &b->s;
    struct linear_args *a = s->jobs;
    int jobs = 0;

    act_quant(b, x, s->yq, n, b->c.hidden);
    a[jobs++] = job(&l->wq_a, input_for(&l->wq_a, x, s->yq), s->qr, n);
    a[jobs++] = job(&l->wkv, input_for(&l->wkv, x, s->yq), s->kv, n);
    if (l->ratio != 0) {
        a[jobs++] = raw_job(&l->comp, &l->comp.wkv, x, s->raw, n);
        a[jobs++] = raw_job(&l->comp, &l->comp.wgate, x, s->raw, n);
    }
    if (l->indexed) {
        a[jobs++] = raw_job(&l->index_comp, &l->index_comp.wkv, x, s->iraw, n);
        a[jobs++] = raw_job(&l->index_comp, &l->index_comp.wgate, x, s->iraw, n);
        a[jobs++] = job(&l->index_weights, x, s->iw, n);
    }
    b->ops->linear(a, jobs);
}

/* From qr: the queries of attention and indexer, normed and rotated. */
static void
project_queries(struct backend *b, const struct layer *l, const struct rows *r)
{
    const struct model_config *c = &b->c;
    struct scratch *s = &b->s;
    struct linear_args *a = s->jobs;
    uint16_t *quantised = s->z; /* free until the way back, and at least as wide */
    const int n = r->n;
    int jobs = 0;

    b->ops->rmsnorm(&(struct rmsnorm_args){.x = s->qr,
                                           .w = l->q_norm,
                                           .out = s->qr,
                                           .rows = n,
                                           .dim = c->q_lora_rank,
                                           .eps = c->rms_eps});
    act_quant(b, s->qr, quantised, n, c->q_lora_rank);
    a[jobs++] = job(&l->wq_b, input_for(&l->wq_b, s->qr, quantised), s->q, n);
    if (l->indexed)
        a[jobs++] =
            job(&l->index_wq_b, input_for(&l->index_wq_b, s->qr, quantised), s->iq, n);
    b->ops->linear(a, jobs);
    b->ops->head_norm(&(struct head_norm_args){
        .q = s->q, .rows = n * c->n_heads, .dim = c->head_dim, .eps = c->rms_eps});
    b->ops->rope(&(struct rope_args){.x = s->q,
                                     .cs = angles(l, r),
                                     .rows = n,
                                     .heads = c->n_heads,
                                     .dim = c->head_dim,
                                     .rope_dim = c->rope_dim});
}

static void
pack_keys(const void *arg, int i, int end)
{
    const struct backend *b = arg;
    const int dim = b->c.head_dim;

    for (; i < end; i++)
        kv_row_pack(b->fmt, b->s.kv + (size_t)i * dim, dim, b->c.rope_dim,
                    b->s.rows + (size_t)i * b->at.row);
}

/* The window's keys of the step's rows, packed; s->kv is wkv x. */
void
attention_keys(struct backend *b, const struct layer *l, const struct rows *r)
{
    const struct model_config *c = &b->c;
    struct scratch *s = &b->s;

    b->ops->rmsnorm(&(struct rmsnorm_args){.x = s->kv,
                                           .w = l->kv_norm,
                                           .out = s->kv,
                                           .rows = r->n,
                                           .dim = c->head_dim,
                                           .eps = c->rms_eps});
    b->ops->rope(&(struct rope_args){.x = s->kv,
                                     .cs = angles(l, r),
                                     .rows = r->n,
                                     .heads = 1,
                                     .dim = c->head_dim,
                                     .rope_dim = c->rope_dim});
    pool_run(r->n, 8, pack_keys, b);
}

/* The step's window rows into the rings. */
void
attention_store(struct backend *b, const struct layer *l, const struct rows *r)
{
    const int slots = b->at.ring_slots;

    for (int i = 0; i < r->n_spans; i++) {
        const struct span *s = &r->spans[i];
        uint8_t *ring = s->seq->rings + l->ring_at;

        for (int t = s->n > slots ? s->n - slots : 0; t < s->n; t++)
            memcpy(ring + (size_t)ring_slot(s->start + (uint64_t)t, (uint64_t)slots) *
                              b->at.row,
                   b->s.rows + (size_t)(s->row0 + t) * b->at.row, b->at.row);
    }
}

/* The indexer's queries and weights, ready for scoring. */
static void
index_queries(struct backend *b, const struct layer *l, const struct rows *r)
{
    const struct model_config *c = &b->c;
    struct scratch *s = &b->s;
    const int n = r->n * c->index_n_heads;
    const float scale = (float)(1.0 / sqrt(c->index_head_dim) / sqrt(c->index_n_heads));

    b->ops->rope(&(struct rope_args){.x = s->iq,
                                     .cs = angles(l, r),
                                     .rows = r->n,
                                     .heads = c->index_n_heads,
                                     .dim = c->index_head_dim,
                                     .rope_dim = c->rope_dim});
    b->ops->index_quant(&(struct index_quant_args){
        .x = s->iq, .y = s->iqp, .rows = n, .dim = c->index_head_dim});
    for (int i = 0; i < n; i++)
        s->iw[i] = f32_to_bf16(bf16_to_f32(s->iw[i]) * scale);
}

/* The keys of one row: window oldest first, then compressed entries in ascending order. */
static int
list_keys(struct backend *b, const struct layer *l, const struct span *s, int row,
          const int *picked, const uint8_t **keys)
{
    const uint64_t pos = s->start + (uint64_t)(row - s->row0);
    const uint64_t first = window_first(pos, (uint64_t)b->c.window);
    const uint8_t *ring = s->seq->rings + l->ring_at;
    int n = 0, entries;

    for (uint64_t p = first; p <= pos; p++)
        keys[n++] = p >= s->start
                        ? b->s.rows + ((size_t)s->row0 + (size_t)(p - s->start)) * b->at.row
                        : ring +
                              (size_t)ring_slot(p, (uint64_t)b->at.ring_slots) * b->at.row;
    if (l->ratio == 0)
        return n;
    entries = (int)entries_visible(pos, (uint64_t)l->ratio);
    if (l->indexed && entries > b->c.index_topk) {
        for (int i = 0; i < b->c.index_topk; i++)
            keys[n++] = page_row(s->seq, &l->comp, (uint64_t)picked[i]);
        return n;
    }
    for (int j = 0; j < entries; j++)
        keys[n++] = page_row(s->seq, &l->comp, (uint64_t)j);
    return n;
}

/* o = attention of all rows, KEY_ROWS at a time. */
static void
attend(struct backend *b, const struct layer *l, const struct rows *r)
{
    const struct model_config *c = &b->c;
    const size_t width = (size_t)c->n_heads * c->head_dim;
    struct scratch *s = &b->s;
    int n = 0;

    for (int i = 0; i < r->n_spans; i++) {
        const struct span *sp = &r->spans[i];

        for (int t = 0; t < sp->n; t++) {
            const int row = sp->row0 + t;
            const uint8_t **keys = s->keys + (size_t)n * s->cap_keys;

            if (l->indexed && (t == 0 || n == 0)) {
                const int left = sp->n - t, room = KEY_ROWS - n;

                index_pick(b, l, sp, row, left < room ? left : room,
                           s->picked + (size_t)n * c->index_topk);
            }
            s->att[n] = (struct attention_args){
                .q = s->q + (size_t)row * width,
                .keys = keys,
                .sink = l->sink,
                .o = s->o + (size_t)row * width,
                .n_keys =
                    list_keys(b, l, sp, row, s->picked + (size_t)n * c->index_topk, keys),
                .n_heads = c->n_heads,
                .dim = c->head_dim,
                .rope_dim = c->rope_dim,
                .fmt = b->fmt,
            };
            if (++n == KEY_ROWS) {
                b->ops->attention(s->att, n);
                n = 0;
            }
        }
    }
    if (n > 0)
        b->ops->attention(s->att, n);
}

/* f = wo_b (wo_a o), o rotated back first: values were rotated as keys (spec 5.7, 5.8). */
static void
project_out(struct backend *b, const struct layer *l, const struct rows *r, uint16_t *f)
{
    const struct model_config *c = &b->c;
    struct scratch *s = &b->s;
    const int z = c->o_groups * c->o_lora_rank, n = r->n;
    struct linear_args back;

    if (!MUTANT(MUTANT_NO_INVERSE_ROPE))
        b->ops->rope(&(struct rope_args){.x = s->o,
                                         .cs = angles(l, r),
                                         .rows = n,
                                         .heads = c->n_heads,
                                         .dim = c->head_dim,
                                         .rope_dim = c->rope_dim,
                                         .inverse = 1});
    for (int g = 0; g < c->o_groups; g++) {
        const struct matrix *w = &l->wo_a[g];

        s->jobs[g] = job(w, s->o + (size_t)g * w->in, s->z + (size_t)g * w->out, n);
        s->jobs[g].x_stride = c->n_heads * c->head_dim;
        s->jobs[g].y_stride = z;
    }
    b->ops->linear(s->jobs, c->o_groups);
    if (is_quantised(&l->wo_b))
        act_quant(b, s->z, s->z, n, z);
    back = job(&l->wo_b, s->z, f, n);
    b->ops->linear(&back, 1);
}

void
attention_forward(struct backend *b, const struct layer *l, const struct rows *r,
                  const uint16_t *x, uint16_t *f)
{
    project_in(b, l, r->n, x);
    project_queries(b, l, r);
    attention_keys(b, l, r);
    if (l->indexed) {
        index_queries(b, l, r);
        compress(b, &l->index_comp, r, b->s.iraw, true);
    }
    if (l->ratio != 0)
        compress(b, &l->comp, r, b->s.raw, false);
    attend(b, l, r);
    attention_store(b, l, r);
    project_out(b, l, r, f);
}
