/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The attention sublayer (spec 5), for all rows of a step at once: projections, keys of the
 * window, compressed entries, the indexer's choice, attention, projection back.
 *
 * Window rows of the step itself are in scratch and older ones in the sequence's ring; the ring of
 * a sequence with many rows gets them only when all queries have looked. Key lists and scores are as long as
 * the context, so they are made for as many rows at a time as the scratch holds.
 */
#include "config.h"

#include <math.h>
#include <stdbool.h>

#include "base/err.h"
#include "gpu/cuda/cuda.h"
#include "gpu/index.h"
#include "gpu/index/choose.h"

static int
rotate(struct backend *b, uint16_t *x, const float *cs, int rows, int heads, int dim,
       int inverse, struct err *e)
{
    return rope_cuda(&b->rk,
                     &(struct rope_args){.x = x,
                                         .cs = cs,
                                         .rows = rows,
                                         .heads = heads,
                                         .dim = dim,
                                         .rope_dim = b->c.rope_dim,
                                         .inverse = inverse},
                     e);
}

static const float *
angles(const struct layer *l, const struct cuda_rows *r)
{
    return r->cs[l->ratio != 0];
}

/* wkv or wgate of a compressor into its half of raw f32 [rows][2][width]. */
static struct linear_args
raw_job(const struct compressor *k, const struct matrix *w, const uint16_t *x, float *raw,
        int rows)
{
    struct linear_args a = linear_job(w, x, raw + (w == &k->wgate ? k->width : 0), rows);

    a.y_stride = 2 * k->width;
    a.y_f32 = 1;
    return a;
}

/* From x: qr, kv, and the raw inputs of the compressors and the indexer. */
static int
project_in(struct backend *b, const struct layer *l, int n, const uint16_t *x,
           struct err *e)
{
    struct cuda_scratch *s = &b->s;
    struct linear_args *a = b->jobs;
    int jobs = 0;

    a[jobs++] = linear_job(&l->wq_a, input_for(&l->wq_a, x, s->yq), s->qr, n);
    a[jobs++] = linear_job(&l->wkv, input_for(&l->wkv, x, s->yq), s->kv, n);
    if (l->ratio != 0) {
        a[jobs++] = raw_job(&l->comp, &l->comp.wkv, x, s->raw, n);
        a[jobs++] = raw_job(&l->comp, &l->comp.wgate, x, s->raw, n);
    }
    if (l->indexed) {
        a[jobs++] = raw_job(&l->index_comp, &l->index_comp.wkv, x, s->iraw, n);
        a[jobs++] = raw_job(&l->index_comp, &l->index_comp.wgate, x, s->iraw, n);
        a[jobs++] = linear_job(&l->index_weights, x, s->iw, n);
    }
    return linear_cuda(&b->rk, a, jobs, e);
}

static struct compress_args
compress_job(const struct compressor *k, const struct cuda_rows *r, int ratio_id,
             float *raw)
{
    return (struct compress_args){.raw = raw,
                                  .ape = k->ape,
                                  .rows = r->rows,
                                  .spans = r->spans,
                                  .entries = r->entry[ratio_id].entries,
                                  .ring_at = k->ring_at,
                                  .n_rows = r->n,
                                  .ratio = k->ratio,
                                  .dim = k->dim,
                                  .overlap = k->overlap,
                                  .slots = k->slots,
                                  .count = r->entry[ratio_id].count,
                                  .cs = r->entry[ratio_id].cs,
                                  .norm = k->norm,
                                  .page_at = k->page_at};
}

/* What project_in left, made into keys, entries and the queries' rows. The rounded ones of these lie
 * in z, free until the way back, and at least as wide. */
static struct inputs_args
inputs_job(struct backend *b, const struct layer *l, const struct cuda_rows *r)
{
    const struct model_config *c = &b->c;
    struct cuda_scratch *s = &b->s;
    struct inputs_args a = {.qr = s->qr,
                            .qrq = s->z,
                            .q_norm = l->q_norm,
                            .kv_norm = l->kv_norm,
                            .cs = angles(l, r),
                            .kv = s->kv,
                            .keys = s->rows,
                            .rows = r->rows,
                            .spans = r->spans,
                            .back = b->back,
                            .ring_at = l->ring_at,
                            .n = r->n,
                            .q_dim = c->q_lora_rank,
                            .dim = c->head_dim,
                            .rope_dim = c->rope_dim,
                            .row_bytes = (int)b->at.row,
                            .ring_slots = b->at.ring_slots,
                            .keep = r->most <= MAX_REWIND,
                            .fmt = b->fmt,
                            .eps = c->rms_eps};

    if (l->ratio != 0)
        a.comp = compress_job(&l->comp, r, l->ratio_id, s->raw);
    if (l->indexed) {
        a.index = compress_job(&l->index_comp, r, l->ratio_id, s->iraw);
        a.weights = s->iw;
        a.n_weights = c->index_n_heads;
        a.weight_scale = (float)(1.0 / sqrt(c->index_head_dim) / sqrt(c->index_n_heads));
    }
    return a;
}

/* The window's keys of the step's rows, and nothing else; s->kv is wkv x. */
int
cuda_keys(struct backend *b, const struct layer *l, const struct cuda_rows *r,
          struct err *e)
{
    struct inputs_args a = inputs_job(b, l, r);

    a.qr = NULL;
    if (inputs_cuda(&b->rk, &a, e) == -1)
        return -1;
    return inputs_keep_cuda(&b->rk, &a, e);
}

/* Whether any row of the step must choose among the entries that it sees. */
static bool
picks(const struct backend *b, const struct layer *l, const struct cuda_rows *r)
{
    return l->indexed &&
           r->longest / (uint64_t)l->index_comp.ratio > (uint64_t)b->c.index_topk;
}

/* Whether attention norms and rotates queries itself. */
static bool
takes_raw(const struct backend *b, const struct cuda_rows *r)
{
    return !b->plain_attention && r->n <= ATTEND_RAW_ROWS;
}

/* Whether scores rotate and pack the indexer's queries themselves. */
static bool
scores_take_raw(const struct backend *b, const struct cuda_rows *r)
{
    return !b->plain_index && choose_takes_raw(r->n, b->c.index_head_dim, b->c.rope_dim);
}

/* Queries of attention and indexer, the window's keys and compressed entries, of what project_in
 * left: for few rows by the kernel that multiplies by wq_b. */
static int
project_queries(struct backend *b, const struct layer *l, const struct cuda_rows *r,
                const struct inputs_args *in, struct err *e)
{
    const struct model_config *c = &b->c;
    struct cuda_scratch *s = &b->s;
    struct linear_args *a = b->jobs;
    struct queries_args heads = {
        .q = s->q,
        .iq = s->iq,
        .iqp = s->iqp,
        .cs = angles(l, r),
        .back = &in->back,
        .rows = r->n,
        .n_heads = takes_raw(b, r) ? 0 : c->n_heads,
        .dim = c->head_dim,
        .n_index = picks(b, l, r) && !scores_take_raw(b, r) ? c->index_n_heads : 0,
        .index_dim = c->index_head_dim,
        .rope_dim = c->rope_dim,
        .per_dim = 1.0 / c->head_dim,
        .eps = c->rms_eps};
    int jobs = 0;

    a[jobs++] = linear_job(&l->wq_b, s->qr, s->q, r->n);
    if (picks(b, l, r))
        a[jobs++] = linear_job(&l->index_wq_b, s->qr, s->iq, r->n);
    if (packed_inputs_can(a, jobs, in)) {
        for (int i = 0; i < jobs; i++)
            a[i].quant = is_quantised(a[i].w);
        heads.back = NULL;
        if (packed_inputs_cuda(&b->rk, a, jobs, in, e) == -1)
            return -1;
    } else {
        for (int i = 0; i < jobs; i++)
            a[i].x = input_for(a[i].w, s->qr, s->z);
        if (inputs_cuda(&b->rk, in, e) == -1 || linear_cuda(&b->rk, a, jobs, e) == -1)
            return -1;
    }
    return queries_cuda(&b->rk, &heads, e);
}

/* The same on tensor cores; n rows at a time, as the scratch holds. */
static int
pick_fast(struct backend *b, const struct layer *l, const struct cuda_rows *r, int most,
          struct err *e)
{
    const struct model_config *c = &b->c;
    struct cuda_scratch *s = &b->s;
    const int chunk =
        (int)(s->iscore_bytes / sizeof(uint16_t) / (size_t)choose_stride(most));

    for (int i = 0; i < r->n; i += chunk) {
        const struct choose_args a = {
            .rows = r->rows + i,
            .spans = r->spans,
            .q = s->iqp + (size_t)i * c->index_n_heads * b->at.index_row,
            .raw = scores_take_raw(b, r)
                       ? s->iq + (size_t)i * c->index_n_heads * c->index_head_dim
                       : NULL,
            .cs = angles(l, r) + (size_t)i * c->rope_dim,
            .rope_dim = c->rope_dim,
            .w = s->iw + (size_t)i * c->index_n_heads,
            .score = (uint16_t *)(void *)s->iscore,
            .picked = s->picked + (size_t)i * c->index_topk,
            .page_at = l->index_comp.page_at,
            .n = r->n - i < chunk ? r->n - i : chunk,
            .n_spans = r->n_spans,
            .n_heads = c->index_n_heads,
            .dim = c->index_head_dim,
            .topk = c->index_topk,
            .max_rows = most};

        if (choose_cuda(&b->rk, &a, e) == -1)
            return -1;
    }
    return 0;
}

/* picked [n][topk] of all rows that see more entries than they may pick. */
static int
pick(struct backend *b, const struct layer *l, const struct cuda_rows *r, struct err *e)
{
    const struct model_config *c = &b->c;
    const struct compressor *k = &l->index_comp;
    struct cuda_scratch *s = &b->s;
    const int most = (int)(r->longest / (uint64_t)k->ratio);
    const int chunk = most > 0 ? (int)(s->iscore_bytes / sizeof(float) / (size_t)most) : 1;

    if (!picks(b, l, r))
        return 0;
    if (!b->plain_index)
        return pick_fast(b, l, r, most, e);
    for (int i = 0; i < r->n; i += chunk) {
        const int n = r->n - i < chunk ? r->n - i : chunk;
        const struct index_score_args like = {.q = s->iqp,
                                              .w = s->iw,
                                              .score = s->iscore,
                                              .n_rows = most,
                                              .block_rows = KV_PAGE_TOKENS / k->ratio,
                                              .n_heads = c->index_n_heads,
                                              .dim = c->index_head_dim};
        const struct index_jobs_args jobs = {.rows = r->rows,
                                             .spans = r->spans,
                                             .jobs = s->index,
                                             .like = like,
                                             .q_bytes = c->index_n_heads * b->at.index_row,
                                             .row0 = i,
                                             .n = n,
                                             .max_rows = most,
                                             .ratio = k->ratio,
                                             .topk = c->index_topk};

        if (index_jobs_cuda(&b->rk, &jobs, e) == -1 ||
            index_scores_cuda(&b->rk, s->index, n, &like, k->page_at, e) == -1 ||
            topk_cuda(&b->rk, s->index, n, c->index_topk,
                      s->picked + (size_t)i * c->index_topk, e) == -1)
            return -1;
    }
    return 0;
}

/* The longest key list of the step in this layer. */
static int
most_keys(const struct backend *b, const struct layer *l, const struct cuda_rows *r)
{
    const uint64_t window = (uint64_t)b->c.window, topk = (uint64_t)b->c.index_topk;
    uint64_t n = r->longest < window ? r->longest : window;
    uint64_t entries = l->ratio > 0 ? r->longest / (uint64_t)l->ratio : 0;

    if (l->indexed && entries > topk)
        entries = topk;
    return (int)(n + entries);
}

/* The plain way, for what attend.cu cannot do. */
static int
attend_plain(struct backend *b, const struct layer *l, const struct cuda_rows *r,
             struct err *e)
{
    const struct model_config *c = &b->c;
    struct cuda_scratch *s = &b->s;
    const struct attention_args like = {.q = s->q,
                                        .sink = l->sink,
                                        .o = s->o,
                                        .n_keys = most_keys(b, l, r),
                                        .n_heads = c->n_heads,
                                        .dim = c->head_dim,
                                        .rope_dim = c->rope_dim,
                                        .fmt = b->fmt};
    const size_t list = (size_t)like.n_keys * sizeof(void *);
    const size_t row = list + attention_scratch(&like) * sizeof(float);
    const int chunk = (int)((s->score_bytes - CUDA_ALIGN) / row);

    for (int i = 0; i < r->n; i += chunk) {
        const int n = r->n - i < chunk ? r->n - i : chunk;
        const size_t lists = ((size_t)n * list + CUDA_ALIGN - 1) / CUDA_ALIGN * CUDA_ALIGN;
        const struct keys_args keys = {.rows = r->rows,
                                       .spans = r->spans,
                                       .step_rows = s->rows,
                                       .picked = l->indexed ? s->picked : NULL,
                                       .keys = (const uint8_t **)(void *)s->score,
                                       .jobs = s->att,
                                       .like = like,
                                       .row_bytes = b->at.row,
                                       .ring_at = l->ring_at,
                                       .page_at = l->comp.page_at,
                                       .row0 = i,
                                       .n = n,
                                       .max_keys = like.n_keys,
                                       .window = c->window,
                                       .ring_slots = b->at.ring_slots,
                                       .ratio = l->ratio,
                                       .topk = c->index_topk};

        if (list_keys_cuda(&b->rk, &keys, e) == -1 ||
            attention_cuda(&b->rk, s->att, n, &like, s->score + lists / sizeof *s->score,
                           e) == -1)
            return -1;
    }
    return rotate(b, s->o, angles(l, r), r->n, c->n_heads, c->head_dim, 1, e);
}

/* Longer lists than there are do not show: a graph is made for all of a power of two. */
static int
attend(struct backend *b, const struct layer *l, const struct cuda_rows *r, struct err *e)
{
    const struct model_config *c = &b->c;
    struct cuda_scratch *s = &b->s;
    const struct attend_args a = {.rows = r->rows,
                                  .spans = r->spans,
                                  .step_rows = s->rows,
                                  .picked = l->indexed ? s->picked : NULL,
                                  .q = s->q,
                                  .o = s->o,
                                  .sink = l->sink,
                                  .cs = angles(l, r),
                                  .row_bytes = b->at.row,
                                  .ring_at = l->ring_at,
                                  .page_at = l->comp.page_at,
                                  .n = r->n,
                                  .n_heads = c->n_heads,
                                  .dim = c->head_dim,
                                  .rope_dim = c->rope_dim,
                                  .window = c->window,
                                  .ring_slots = b->at.ring_slots,
                                  .ratio = l->ratio,
                                  .topk = c->index_topk,
                                  .max_keys = most_keys(b, l, r),
                                  .raw = takes_raw(b, r),
                                  .per_dim = 1.0 / c->head_dim,
                                  .scale = 1.0 / sqrt(c->head_dim),
                                  .eps = c->rms_eps,
                                  .scratch = s->score,
                                  .scratch_bytes = s->score_bytes};

    return b->plain_attention ? attend_plain(b, l, r, e) : attend_cuda(&b->rk, &a, e);
}

/* f = wo_b (wo_a o), o rotated back first: values were rotated as keys (spec 5.7, 5.8). */
static int
project_out(struct backend *b, const struct layer *l, const struct cuda_rows *r,
            uint16_t *f, struct err *e)
{
    const struct model_config *c = &b->c;
    struct cuda_scratch *s = &b->s;
    const int z = c->o_groups * c->o_lora_rank, n = r->n;
    struct linear_args back = linear_job(&l->wo_b, s->z, f, n);

    for (int g = 0; g < c->o_groups; g++) {
        const struct matrix *w = &l->wo_a[g];

        b->jobs[g] = linear_job(w, s->o + (size_t)g * w->in, s->z + (size_t)g * w->out, n);
        b->jobs[g].x_stride = c->n_heads * c->head_dim;
        b->jobs[g].y_stride = z;
    }
    if (linear_cuda(&b->rk, b->jobs, c->o_groups, e) == -1)
        return -1;
    back.quant = is_quantised(&l->wo_b) && quantises_itself(&l->wo_b, n);
    if (is_quantised(&l->wo_b) && !back.quant && quantise(b, s->z, s->z, n, z, e) == -1)
        return -1;
    return linear_cuda(&b->rk, &back, 1, e);
}

int
cuda_attention(struct backend *b, const struct layer *l, const struct cuda_rows *r,
               const uint16_t *x, uint16_t *f, struct err *e)
{
    const struct inputs_args in = inputs_job(b, l, r);

    if (project_in(b, l, r->n, x, e) == -1 || project_queries(b, l, r, &in, e) == -1)
        return -1;
    if ((l->indexed && pick(b, l, r, e) == -1) || attend(b, l, r, e) == -1 ||
        inputs_keep_cuda(&b->rk, &in, e) == -1)
        return -1;
    return project_out(b, l, r, f, e);
}
