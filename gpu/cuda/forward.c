/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One step through the model, in the paper's order (spec 4 to 9): embed, layers, head, draft.
 * All of it is work put on the stream; the host waits where logits come back, and at the end.
 */
#include "config.h"

#include "base/err.h"
#include "gpu/cuda/cuda.h"

/* hc_pre: from the streams x to the sublayer's input y, and post and comb in scratch. */
int
cuda_mix_in(struct backend *b, const struct cuda_mixer *m, const uint16_t *x, int n,
            uint16_t *y, struct err *e)
{
    const struct model_config *c = &b->c;
    struct cuda_scratch *s = &b->s;
    const bool whole = m->fn.out > c->hc_mult;
    struct linear_args fn = linear_job(&m->fn, x, s->mix, n);
    const struct hc_pre_args pre = {.x = x,
                                    .m = s->mix,
                                    .scale = m->scale,
                                    .base = m->base,
                                    .y = y,
                                    .post = whole ? s->post : NULL,
                                    .comb = whole ? s->comb : NULL,
                                    .rows = n,
                                    .hc = c->hc_mult,
                                    .dim = c->hidden,
                                    .n_mix = m->fn.out,
                                    .iters = c->hc_sinkhorn_iters,
                                    .norm_eps = c->rms_eps,
                                    .hc_eps = c->hc_eps};

    fn.y_f32 = 1;
    if (linear_cuda(&b->rk, &fn, 1, e) == -1)
        return -1;
    return hc_pre_cuda(&b->rk, &pre, e);
}

/* hc_post: the sublayer's output f back into the streams x. */
static int
mix_out(struct backend *b, int n, uint16_t *x, const uint16_t *f, struct err *e)
{
    const struct hc_post_args a = {.x = x,
                                   .f = f,
                                   .post = b->s.post,
                                   .comb = b->s.comb,
                                   .out = x,
                                   .rows = n,
                                   .hc = b->c.hc_mult,
                                   .dim = b->c.hidden};

    return hc_post_cuda(&b->rk, &a, e);
}

int
cuda_layer_forward(struct backend *b, const struct cuda_layer *l, const struct cuda_rows *r,
                   uint16_t *x, struct err *e)
{
    struct cuda_scratch *s = &b->s;
    const int d = b->c.hidden;

    if (cuda_mix_in(b, &l->hc_attn, x, r->n, s->y, e) == -1 ||
        norm_rows(b, s->y, l->attn_norm, s->y, r->n, d, e) == -1 ||
        cuda_attention(b, l, r, s->y, s->f, e) == -1 || mix_out(b, r->n, x, s->f, e) == -1)
        return -1;
    if (cuda_mix_in(b, &l->hc_ffn, x, r->n, s->y, e) == -1 ||
        norm_rows(b, s->y, l->ffn_norm, s->y, r->n, d, e) == -1 ||
        cuda_moe(b, l, r, s->y, s->f, e) == -1)
        return -1;
    return mix_out(b, r->n, x, s->f, e);
}

/* Only what later tokens need of the layer: its window rows. */
int
cuda_layer_keys(struct backend *b, const struct cuda_layer *l, const struct cuda_rows *r,
                const uint16_t *x, struct err *e)
{
    struct cuda_scratch *s = &b->s;
    const int d = b->c.hidden;
    const struct linear_args kv = linear_job(&l->wkv, s->y, s->kv, r->n);

    if (cuda_mix_in(b, &l->hc_attn, x, r->n, s->y, e) == -1 ||
        norm_rows(b, s->y, l->attn_norm, s->y, r->n, d, e) == -1)
        return -1;
    if (is_quantised(&l->wkv) && quantise(b, s->y, s->y, r->n, d, e) == -1)
        return -1;
    if (linear_cuda(&b->rk, &kv, 1, e) == -1 || cuda_keys(b, l, r, e) == -1)
        return -1;
    return cuda_keys_store(b, l, r, e);
}

/* m rows of logits to their places: a copy for each run of neighbours. */
static int
logits_out(struct backend *b, float *const *out, int m, struct err *e)
{
    const size_t vocab = (size_t)b->c.vocab_size;

    for (int i = 0, n; i < m; i += n) {
        for (n = 1; i + n < m && out[i + n] == out[i] + (size_t)n * vocab;)
            n++;
        CU_TRY(cudaMemcpyAsync(out[i], b->s.logits + (size_t)i * vocab,
                               (size_t)n * vocab * sizeof(float), cudaMemcpyDeviceToHost,
                               b->rk.stream),
               e);
    }
    return 0;
}

int
cuda_head(struct backend *b, const struct cuda_mixer *hc, const float *norm,
          const uint16_t *src, const struct head_rows *h, struct err *e)
{
    const struct model_config *c = &b->c;
    struct cuda_scratch *s = &b->s;
    const struct gather_args rows = {.src = src,
                                     .dst = s->head_x,
                                     .index = h->index,
                                     .bytes = (size_t)c->hc_mult * c->hidden * sizeof *src,
                                     .n = h->n};

    if (h->n == 0)
        return 0;
    if (gather_cuda(&b->rk, &rows, e) == -1 ||
        cuda_mix_in(b, hc, s->head_x, h->n, s->y, e) == -1 ||
        norm_rows(b, s->y, norm, s->y, h->n, c->hidden, e) == -1)
        return -1;
    for (int i = 0; i < h->n; i += CUDA_LOGIT_ROWS) {
        const int m = h->n - i < CUDA_LOGIT_ROWS ? h->n - i : CUDA_LOGIT_ROWS;
        struct linear_args a =
            linear_job(&b->head, s->y + (size_t)i * c->hidden, s->logits, m);

        a.y_f32 = 1;
        if (linear_cuda(&b->rk, &a, 1, e) == -1 || logits_out(b, h->out + i, m, e) == -1)
            return -1;
    }
    return 0;
}

/* The step has been checked and its pages are taken. */
int
cuda_forward(struct backend *b, const struct step *st, struct err *e)
{
    struct cuda_scratch *s = &b->s;
    struct cuda_step p;

    if (upload_step(b, st, &p, e) == -1 || cuda_tables_send(b, st, e) == -1)
        return -1;
    if (embed_cuda(&b->rk,
                   &(struct embed_args){.table = b->embed,
                                        .rows = p.r.rows,
                                        .x = s->x,
                                        .n = p.r.n,
                                        .copies = b->c.hc_mult,
                                        .dim = b->c.hidden},
                   e) == -1)
        return -1;
    for (int i = 0; i < b->c.n_layers; i++)
        if (cuda_layer_forward(b, &b->layers[i], &p.r, s->x, e) == -1)
            return -1;
    if (cuda_head(b, &b->hc_head, b->norm, s->x, &p.head, e) == -1)
        return -1;
    if (b->draft != NULL && cuda_draft(b, &p, e) == -1)
        return -1;
    if (rank_wait(&b->rk, e) == -1)
        return -1;
    for (int i = 0; i < p.r.n_spans; i++) {
        struct cuda_seq *q = b->spans[i].seq;

        q->len += (uint64_t)b->spans[i].n;
        q->high = q->len > q->high ? q->len : q->high;
    }
    return 0;
}
