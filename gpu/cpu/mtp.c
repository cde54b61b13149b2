/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The draft block (spec 10.1): from the streams behind position t, before the head, and the
 * token at t + 1 it guesses the token at t + 2. It is one more window layer with rows of its
 * own, one position behind: the row of token i of a step is the pair (streams in front of it,
 * token i) at the position before. The streams of the last positions wait in a ring for the
 * first token of the next step.
 *
 * Later drafts look back at this layer's window rows, so they are made in every step; the rest
 * of the block runs only for steps that want draft logits.
 */
#include "config.h"

#include <string.h>

#include "base/fp.h"
#include "gpu/cpu/cpu.h"

static uint16_t *
kept_streams(const struct backend *b, const struct seq *q, uint64_t pos)
{
    const size_t width = (size_t)b->c.hc_mult * b->c.hidden;

    return (uint16_t *)(void *)(q->rings + b->net.draft->ring_at) +
           (size_t)ring_slot(pos, DRAFT_SLOTS) * width;
}

/* The pairs of this step: streams to draft_h, tokens, positions, spans. */
static int
list_pairs(struct backend *b, const struct rows *r, struct rows *d)
{
    const size_t width = (size_t)b->c.hc_mult * b->c.hidden;
    struct scratch *s = &b->s;

    *d = (struct rows){.spans = s->draft_spans,
                       .token = s->draft_token,
                       .pos = s->draft_pos,
                       .cs = {s->cs[2], s->cs[2]}};
    for (int i = 0; i < r->n_spans; i++) {
        const struct span *sp = &r->spans[i];
        const int skip = sp->start == 0; /* nothing is in front of the first token */

        s->draft_spans[d->n_spans++] =
            (struct span){.seq = sp->seq,
                          .row0 = d->n,
                          .n = sp->n - skip,
                          .start = sp->start == 0 ? 0 : sp->start - 1};
        for (int t = skip; t < sp->n; t++, d->n++) {
            const uint64_t pos = sp->start + (uint64_t)t - 1;

            memcpy(s->draft_h + (size_t)d->n * width,
                   t > 0 ? s->x + ((size_t)sp->row0 + t - 1) * width
                         : kept_streams(b, sp->seq, pos),
                   width * sizeof *s->x);
            s->draft_token[d->n] = r->token[sp->row0 + t];
            s->draft_pos[d->n] = pos;
        }
    }
    return d->n;
}

static void
keep_streams(struct backend *b, const struct rows *r)
{
    const size_t width = (size_t)b->c.hc_mult * b->c.hidden;

    for (int i = 0; i < r->n_spans; i++) {
        const struct span *s = &r->spans[i];

        for (int t = s->n > DRAFT_SLOTS ? s->n - DRAFT_SLOTS : 0; t < s->n; t++)
            memcpy(kept_streams(b, s->seq, s->start + (uint64_t)t),
                   b->s.x + ((size_t)s->row0 + t) * width, width * sizeof *b->s.x);
    }
}

/* x = e_proj(enorm(embedding)) to all streams + h_proj(hnorm(streams)), each in bf16. */
static void
project_pairs(struct backend *b, const struct rows *d)
{
    const struct model_config *c = &b->c;
    const struct draft *m = b->net.draft;
    const int dim = c->hidden, hc = c->hc_mult, n = d->n;
    struct scratch *s = &b->s;
    struct linear_args a[2] = {
        {.w = &m->e_proj, .x = s->y, .y = s->f, .rows = n},
        {.w = &m->h_proj, .x = s->draft_h, .y = s->draft_x, .rows = n * hc},
    };

    embed_rows(b, d->token, n, 1, s->y);
    b->ops->rmsnorm(&(struct rmsnorm_args){
        .x = s->y, .w = m->enorm, .out = s->y, .rows = n, .dim = dim, .eps = c->rms_eps});
    b->ops->rmsnorm(&(struct rmsnorm_args){.x = s->draft_h,
                                           .w = m->hnorm,
                                           .out = s->draft_h,
                                           .rows = n * hc,
                                           .dim = dim,
                                           .eps = c->rms_eps});
    for (int i = 0; i < 2; i++) {
        a[i].x_stride = a[i].y_stride = dim;
        if (is_quantised(a[i].w))
            b->ops->act_quant(&(struct act_quant_args){.x = a[i].x,
                                                       .y = i == 0 ? s->y : s->draft_h,
                                                       .rows = a[i].rows,
                                                       .dim = dim,
                                                       .stride = dim,
                                                       .group = 128});
    }
    b->ops->linear(a, 2);
    for (int r = 0; r < n * hc; r++)
        for (int i = 0; i < dim; i++) {
            uint16_t *x = &s->draft_x[(size_t)r * dim + i];

            *x = f32_to_bf16(bf16_to_f32(s->f[(size_t)(r / hc) * dim + i]) +
                             bf16_to_f32(*x));
        }
}

/* Draft logits of the sequences that want them; draft_x holds the block's output. */
static void
draft_logits(struct backend *b, const struct step *st, const struct rows *d)
{
    const size_t width = (size_t)b->c.hc_mult * b->c.hidden;
    const size_t vocab = (size_t)b->c.vocab_size;
    struct scratch *s = &b->s;
    int n = 0;

    for (uint32_t i = 0; i < st->n_seqs; i++) {
        const struct span *sp = &d->spans[i];
        float *out = st->seqs[i].mtp_logits;

        if (out == NULL)
            continue;
        if (sp->n < (int)st->seqs[i].n_tokens) {
            memset(out, 0, vocab * sizeof *out);
            out += vocab;
        }
        memcpy(s->head_x + (size_t)n * width, s->draft_x + (size_t)sp->row0 * width,
               (size_t)sp->n * width * sizeof *s->x);
        for (int t = 0; t < sp->n; t++)
            s->head_out[n++] = out + (size_t)t * vocab;
    }
    head_forward(b, &b->net.draft->hc_head, b->net.draft->norm, s->head_x, n, s->head_out);
}

void
draft_forward(struct backend *b, const struct step *st, const struct rows *r)
{
    bool wanted = false;
    struct rows d;

    for (uint32_t i = 0; i < st->n_seqs; i++)
        wanted |= st->seqs[i].mtp_logits != NULL;
    if (list_pairs(b, r, &d) > 0) {
        rope_table(b->freq[0], b->c.rope_dim / 2, d.pos, d.n, b->s.cs[2]);
        project_pairs(b, &d);
        if (wanted)
            layer_forward(b, &b->net.draft->layer, &d, b->s.draft_x);
        else
            layer_keys_only(b, &b->net.draft->layer, &d, b->s.draft_x);
    }
    if (wanted)
        draft_logits(b, st, &d);
    keep_streams(b, r);
}
