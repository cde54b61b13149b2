/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the device must know about a step: spans, positions, tokens, angles, entries that become
 * complete, rows whose logits are wanted. The host knows all of it before the step begins, so it
 * is laid out in pinned memory and sent in one copy, at the same offsets on the device.
 */
#include "config.h"

#include <assert.h>
#include <string.h>

#include "base/err.h"
#include "gpu/cpu/rope.h"
#include "gpu/cuda/cuda.h"

enum { T = CUDA_STEP_TOKENS };

static size_t
padded(size_t n)
{
    return (n + CUDA_ALIGN - 1) / CUDA_ALIGN * CUDA_ALIGN;
}

/* The largest step: all that the functions below take. */
size_t
upload_bytes(const struct backend *b)
{
    const size_t cs = padded((size_t)T * b->c.rope_dim * sizeof(float));
    const size_t rows = padded(T * sizeof(struct dev_span)) +
                        padded(T * sizeof(struct dev_row)) + 2 * cs;
    const size_t entries = padded(T * sizeof(struct dev_entry)) + padded(sizeof(int)) + cs;

    return 2 * rows + CUDA_RATIOS * entries + 3 * padded(T * sizeof(int)) +
           padded(T * sizeof(struct dev_draw));
}

static void *
take(struct upload *u, size_t n, size_t size, const void **dev)
{
    const size_t at = u->used;

    u->used += padded(n * size);
    assert(u->used <= u->size);
    *dev = u->dev + at;
    return u->host + at;
}

static const float *
angles(struct backend *b, const float *freq, int n)
{
    const void *dev;
    float *cs = take(&b->up, (size_t)n * b->c.rope_dim, sizeof *cs, &dev);

    rope_table(freq, b->c.rope_dim / 2, b->pos, n, cs);
    return dev;
}

/* Spans, rows and plain angles of r->span; tokens[i]: of span i. b->pos holds positions. */
static void
send_rows(struct backend *b, struct cuda_rows *r, const uint32_t *const *tokens)
{
    const void *spans_at, *rows_at;
    struct dev_span *spans = take(&b->up, (size_t)r->n_spans, sizeof *spans, &spans_at);
    struct dev_row *rows = take(&b->up, (size_t)r->n, sizeof *rows, &rows_at);

    for (int i = 0; i < r->n_spans; i++) {
        const struct cuda_span *s = &r->span[i];

        spans[i] = (struct dev_span){.rings = b->rings + (size_t)s->id * b->at.seq_bytes,
                                     .pages = b->tables + (size_t)s->id * b->cap_pages,
                                     .start = s->start,
                                     .row0 = s->row0,
                                     .n = s->n};
        for (int t = 0; t < s->n; t++) {
            b->pos[s->row0 + t] = s->start + (uint64_t)t;
            rows[s->row0 + t] = (struct dev_row){
                .pos = s->start + (uint64_t)t, .token = tokens[i][t], .span = i};
        }
    }
    r->spans = spans_at;
    r->rows = rows_at;
    r->cs[0] = r->cs[1] = angles(b, b->freq[0], r->n);
}

/* The entries of one ratio that the step's rows complete. */
static void
send_entries(struct backend *b, struct cuda_rows *r, int id)
{
    const uint64_t ratio = (uint64_t)b->ratios[id];
    const void *at;
    struct dev_entry *entries = take(&b->up, (size_t)r->n, sizeof *entries, &at);
    const void *count_at, *cs_at;
    int *count = take(&b->up, 1, sizeof *count, &count_at), n = 0;
    float *cs = take(&b->up, (size_t)r->n * b->c.rope_dim, sizeof *cs, &cs_at);

    for (int i = 0; i < r->n_spans; i++) {
        const struct cuda_span *s = &r->span[i];
        const uint64_t end = (s->start + (uint64_t)s->n) / ratio;

        for (uint64_t j = s->start / ratio; j < end; j++) {
            entries[n] = (struct dev_entry){.j = j, .span = i};
            b->pos[n++] = j * ratio;
        }
    }
    *count = n;
    rope_table(b->freq[1], b->c.rope_dim / 2, b->pos, n, cs);
    r->entry[id].count = count_at;
    r->entry[id].entries = at;
    r->entry[id].cs = cs_at;
}

static void
step_rows(struct backend *b, const struct step *s, struct cuda_rows *r)
{
    *r = (struct cuda_rows){.n_spans = (int)s->n_seqs, .span = b->spans};
    for (uint32_t i = 0; i < s->n_seqs; i++) {
        const struct step_seq *q = &s->seqs[i];
        struct cuda_seq *seq = &b->seqs[q->seq];
        const uint64_t end = seq->len + q->n_tokens;

        b->spans[i] = (struct cuda_span){.seq = seq,
                                         .id = q->seq,
                                         .row0 = r->n,
                                         .n = (int)q->n_tokens,
                                         .start = seq->len};
        b->tokens[i] = q->tokens;
        r->n += (int)q->n_tokens;
        r->longest = end > r->longest ? end : r->longest;
        r->most = (int)q->n_tokens > r->most ? (int)q->n_tokens : r->most;
    }
    send_rows(b, r, b->tokens);
    if (b->n_ratios > 0)
        r->cs[1] = angles(b, b->freq[1], r->n);
    for (int i = 0; i < b->n_ratios; i++)
        send_entries(b, r, i);
}

static void
head_rows(struct backend *b, const struct step *s, struct cuda_step *p)
{
    const void *at, *draws_at;
    int *index = take(&b->up, (size_t)p->r.n, sizeof *index, &at);
    struct dev_draw *draws = take(&b->up, (size_t)p->r.n, sizeof *draws, &draws_at);
    struct head_rows *h = &p->head;

    *h = (struct head_rows){.index = at, .out = b->head_out, .draws = draws_at};
    for (uint32_t i = 0; i < s->n_seqs; i++) {
        const struct step_seq *q = &s->seqs[i];
        const uint32_t n = q->draw != NULL ? 1 : q->n_logits;
        const int row0 = b->spans[i].row0 + b->spans[i].n - (int)n;

        for (uint32_t t = 0; t < n; t++) {
            index[h->n] = row0 + (int)t;
            draws[h->n] = (struct dev_draw){.pos = b->spans[i].start + q->n_tokens};
            if (q->draw != NULL)
                draws[h->n].d = *q->draw;
            b->head_drawn[h->n] = q->draw != NULL ? q->drawn : NULL;
            b->head_seq[h->n] = q->seq;
            h->out[h->n++] = q->draw != NULL ? NULL
                                             : q->logits + (size_t)t * b->c.vocab_size;
        }
        h->draw |= q->draw != NULL;
    }
}

/* The draft block's rows: the row of token i is the pair (streams in front of it, token i), at
 * the position before. Nothing is in front of a sequence's first token. */
static void
draft_rows(struct backend *b, const struct step *s, struct cuda_step *p)
{
    const void *at;
    int *pairs = take(&b->up, (size_t)p->r.n, sizeof *pairs, &at);
    struct cuda_rows *d = &p->d;

    *d = (struct cuda_rows){.n_spans = p->r.n_spans, .span = b->draft_spans};
    p->pairs = at;
    for (int i = 0; i < d->n_spans; i++) {
        const struct cuda_span *sp = &b->spans[i];
        const int skip = sp->start == 0;

        b->draft_spans[i] = (struct cuda_span){.seq = sp->seq,
                                               .id = sp->id,
                                               .row0 = d->n,
                                               .n = sp->n - skip,
                                               .start = skip ? 0 : sp->start - 1};
        b->tokens[i] = s->seqs[i].tokens + skip;
        for (int t = skip; t < sp->n; t++)
            pairs[d->n++] = t > 0 ? sp->row0 + t - 1 : -1;
    }
    d->longest = p->r.longest;
    d->most = p->r.most;
    if (d->n > 0)
        send_rows(b, d, b->tokens);
}

static void
draft_head_rows(struct backend *b, const struct step *s, struct cuda_step *p)
{
    const size_t vocab = (size_t)b->c.vocab_size;
    const void *at;
    int *index = take(&b->up, (size_t)p->r.n, sizeof *index, &at);
    struct head_rows *h = &p->draft_head;

    *h = (struct head_rows){.index = at, .out = b->draft_out};
    for (uint32_t i = 0; i < s->n_seqs; i++) {
        const struct cuda_span *sp = &b->draft_spans[i];
        float *out = s->seqs[i].mtp_logits;

        if (out == NULL)
            continue;
        p->draft_wanted = true;
        if (sp->n < (int)s->seqs[i].n_tokens) {
            memset(out, 0, vocab * sizeof *out);
            out += vocab;
        }
        for (int t = 0; t < sp->n; t++) {
            index[h->n] = sp->row0 + t;
            h->out[h->n++] = out + (size_t)t * vocab;
        }
    }
}

/* p describes the step and is on its way to the device. */
int
upload_step(struct backend *b, const struct step *s, struct cuda_step *p, int buffer,
            struct err *e)
{
    *p = (struct cuda_step){.draft_wanted = false};
    b->up.used = 0;
    b->up.host = b->up.buffer[buffer];
    step_rows(b, s, &p->r);
    head_rows(b, s, p);
    if (b->net.draft != NULL) {
        draft_rows(b, s, p);
        draft_head_rows(b, s, p);
    }
    CU_TRY(cudaMemcpyAsync(b->up.dev, b->up.host, b->up.used, cudaMemcpyHostToDevice,
                           b->rk.stream),
           e);
    return 0;
}
