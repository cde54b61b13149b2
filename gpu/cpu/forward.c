/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One step through the model, in the paper's order (spec 4 to 9): embed, layers, head, draft.
 * All rows of all sequences go through a layer together; what a row becomes depends on its own
 * sequence alone.
 */
#include "config.h"

#include <string.h>

#include "gpu/cpu/cpu.h"

/* Rows of the embedding, `copies` times each: x bf16 [n][copies][d]. */
void
embed_rows(const struct backend *b, const uint32_t *token, int n, int copies, uint16_t *x)
{
    const size_t d = (size_t)b->c.hidden;

    for (int i = 0; i < n; i++)
        for (int k = 0; k < copies; k++)
            memcpy(x + ((size_t)i * copies + k) * d, b->net.embed + (size_t)token[i] * d,
                   d * sizeof *x);
}

/* hc_pre: from the streams x to the sublayer's input y, and post and comb in scratch. */
void
mix_in(struct backend *b, const struct mixer *m, const uint16_t *x, int n, uint16_t *y)
{
    const struct model_config *c = &b->c;
    struct scratch *s = &b->s;
    const int width = c->hc_mult * c->hidden, n_mix = m->fn.out;
    const struct linear_args fn = {.w = &m->fn,
                                   .x = x,
                                   .y = s->mix,
                                   .rows = n,
                                   .x_stride = width,
                                   .y_stride = n_mix,
                                   .y_f32 = 1};

    b->ops->linear(&fn, 1);
    b->ops->hc_pre(&(struct hc_pre_args){.x = x,
                                         .m = s->mix,
                                         .scale = m->scale,
                                         .base = m->base,
                                         .y = y,
                                         .post = n_mix > c->hc_mult ? s->post : NULL,
                                         .comb = n_mix > c->hc_mult ? s->comb : NULL,
                                         .rows = n,
                                         .hc = c->hc_mult,
                                         .dim = c->hidden,
                                         .n_mix = n_mix,
                                         .iters = c->hc_sinkhorn_iters,
                                         .norm_eps = c->rms_eps,
                                         .hc_eps = c->hc_eps});
}

/* hc_post: the sublayer's output f back into the streams x. */
static void
mix_out(struct backend *b, int n, uint16_t *x, const uint16_t *f)
{
    const int hc = b->c.hc_mult;
    struct scratch *s = &b->s;

    for (int r = 0; MUTANT(MUTANT_COMB_NOT_TRANSPOSED) && r < n; r++)
        for (int i = 0; i < hc; i++)
            for (int j = 0; j < i; j++) {
                float *m = s->comb + (size_t)r * hc * hc, t = m[i * hc + j];

                m[i * hc + j] = m[j * hc + i];
                m[j * hc + i] = t;
            }
    b->ops->hc_post(&(struct hc_post_args){.x = x,
                                           .f = f,
                                           .post = s->post,
                                           .comb = s->comb,
                                           .out = x,
                                           .rows = n,
                                           .hc = hc,
                                           .dim = b->c.hidden});
}

static void
norm_rows(struct backend *b, const float *w, int n, uint16_t *y)
{
    b->ops->rmsnorm(&(struct rmsnorm_args){
        .x = y, .w = w, .out = y, .rows = n, .dim = b->c.hidden, .eps = b->c.rms_eps});
}

void
layer_forward(struct backend *b, const struct layer *l, const struct rows *r, uint16_t *x)
{
    struct scratch *s = &b->s;

    mix_in(b, &l->hc_attn, x, r->n, s->y);
    norm_rows(b, l->attn_norm, r->n, s->y);
    attention_forward(b, l, r, s->y, s->f);
    mix_out(b, r->n, x, s->f);

    mix_in(b, &l->hc_ffn, x, r->n, s->y);
    norm_rows(b, l->ffn_norm, r->n, s->y);
    moe_forward(b, l, r, s->y, s->f);
    mix_out(b, r->n, x, s->f);
}

void
layer_keys_only(struct backend *b, const struct layer *l, const struct rows *r,
                const uint16_t *x)
{
    struct scratch *s = &b->s;
    struct linear_args kv = {.w = &l->wkv,
                             .x = s->y,
                             .y = s->kv,
                             .rows = r->n,
                             .x_stride = l->wkv.in,
                             .y_stride = l->wkv.out};

    mix_in(b, &l->hc_attn, x, r->n, s->y);
    norm_rows(b, l->attn_norm, r->n, s->y);
    if (is_quantised(&l->wkv))
        b->ops->act_quant(&(struct act_quant_args){.x = s->y,
                                                   .y = s->y,
                                                   .rows = r->n,
                                                   .dim = l->wkv.in,
                                                   .stride = l->wkv.in,
                                                   .group = 128});
    b->ops->linear(&kv, 1);
    attention_keys(b, l, r);
    attention_store(b, l, r);
}

/* Logits of the rows that were asked for. */
static void
step_logits(struct backend *b, const struct step *st, const struct rows *r)
{
    const size_t width = (size_t)b->c.hc_mult * b->c.hidden;
    struct scratch *s = &b->s;
    int n = 0;

    for (uint32_t i = 0; i < st->n_seqs; i++) {
        const struct step_seq *q = &st->seqs[i];
        const int row0 = r->spans[i].row0 + r->spans[i].n - (int)q->n_logits;

        memcpy(s->head_x + (size_t)n * width, s->x + (size_t)row0 * width,
               q->n_logits * width * sizeof *s->x);
        for (uint32_t t = 0; t < q->n_logits; t++)
            s->head_out[n++] = q->logits + (size_t)t * b->c.vocab_size;
    }
    head_forward(b, &b->net.hc_head, b->net.norm, s->head_x, n, s->head_out);
}

/* The step has been checked and what it needs is reserved. */
void
forward(struct backend *b, const struct step *st)
{
    struct scratch *s = &b->s;
    const int pairs = b->c.rope_dim / 2;
    struct rows r = {.n_spans = (int)st->n_seqs,
                     .spans = s->spans,
                     .token = s->token,
                     .pos = s->pos,
                     .cs = {s->cs[0], s->cs[1]}};

    for (uint32_t i = 0; i < st->n_seqs; i++) {
        const struct step_seq *q = &st->seqs[i];
        struct seq *seq = &b->seqs[q->seq];

        s->spans[i] = (struct span){
            .seq = seq, .row0 = r.n, .n = (int)q->n_tokens, .start = seq->len};
        for (uint32_t t = 0; t < q->n_tokens; t++, r.n++) {
            s->token[r.n] = q->tokens[t];
            s->pos[r.n] = seq->len + t;
        }
    }
    rope_table(b->freq[0], pairs, s->pos, r.n, s->cs[0]);
    rope_table(b->freq[1], pairs, s->pos, r.n, s->cs[1]);

    embed_rows(b, s->token, r.n, b->c.hc_mult, s->x);
    for (int i = 0; i < b->c.n_layers; i++)
        layer_forward(b, &b->net.layers[i], &r, s->x);
    step_logits(b, st, &r);
    if (b->net.draft != NULL)
        draft_forward(b, st, &r);
    for (int i = 0; i < r.n_spans; i++) {
        struct seq *q = r.spans[i].seq;

        q->len += (uint64_t)r.spans[i].n;
        q->high = q->len > q->high ? q->len : q->high;
    }
}
