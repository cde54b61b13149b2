/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One step through the model, in the paper's order (spec 4 to 9): embed, layers, head, draft.
 * All of it is work put on the stream; the host waits where logits come back, and at the end.
 */
#include "config.h"

#include <string.h>

#include "base/err.h"
#include "gpu/cuda/cuda.h"

/* What a sublayer has left to be put back into the streams: one row each, or those of experts. */
enum left { NOTHING, ROW, EXPERTS };

/* To the streams x what is left of the sublayer before, and, if there is a next one, its input to
 * s->y and s->yq; b->back says what the way back needs. */
static int
next_input(struct backend *b, int n, uint16_t *x, enum left left, const struct mixer *m,
           const float *norm, struct err *e)
{
    const struct model_config *c = &b->c;
    struct cuda_scratch *s = &b->s;
    const struct streams_mix_args mix = {.x = x,
                                         .post = left != NOTHING ? s->post : NULL,
                                         .comb = s->comb,
                                         .f = left == ROW ? s->f : NULL,
                                         .routed = s->ex,
                                         .shared = s->gs,
                                         .slot = s->slot,
                                         .k = c->n_experts_used,
                                         .fn = m != NULL ? m->fn.w : NULL,
                                         .through = b->exchange ? s->head_x : NULL,
                                         .part = s->part,
                                         .rows = n,
                                         .hc = c->hc_mult,
                                         .dim = c->hidden,
                                         .n_mix = m != NULL ? m->fn.out : 0};

    if (streams_mix_cuda(&b->rk, &mix, e) == -1)
        return -1;
    if (m == NULL)
        return 0;
    b->back = (struct streams_in_args){.x = x,
                                       .part = s->part,
                                       .scale = m->scale,
                                       .base = m->base,
                                       .norm = norm,
                                       .y = s->y,
                                       .yq = s->yq,
                                       .post = s->post,
                                       .comb = s->comb,
                                       .rows = n,
                                       .hc = c->hc_mult,
                                       .dim = c->hidden,
                                       .n_mix = m->fn.out,
                                       .iters = c->hc_sinkhorn_iters,
                                       .chunks = streams_chunks(c->hc_mult, c->hidden),
                                       .norm_eps = c->rms_eps,
                                       .hc_eps = c->hc_eps};
    return streams_in_cuda(&b->rk, &b->back, e);
}

/* A layer but for the end of its second sublayer, which is left. */
static int
layer_body(struct backend *b, const struct layer *l, const struct cuda_rows *r, uint16_t *x,
           enum left left, struct err *e)
{
    struct cuda_scratch *s = &b->s;

    if (next_input(b, r->n, x, left, &l->hc_attn, l->attn_norm, e) == -1 ||
        cuda_attention(b, l, r, s->y, s->f, e) == -1 ||
        next_input(b, r->n, x, ROW, &l->hc_ffn, l->ffn_norm, e) == -1)
        return -1;
    return cuda_moe(b, l, r, s->y, e);
}

int
cuda_layer_forward(struct backend *b, const struct layer *l, const struct cuda_rows *r,
                   uint16_t *x, struct err *e)
{
    if (layer_body(b, l, r, x, NOTHING, e) == -1)
        return -1;
    return next_input(b, r->n, x, EXPERTS, NULL, NULL, e);
}

/* Only what later tokens need of the layer: its window rows. */
int
cuda_layer_keys(struct backend *b, const struct layer *l, const struct cuda_rows *r,
                const uint16_t *x, struct err *e)
{
    struct cuda_scratch *s = &b->s;
    const struct linear_args kv =
        linear_job(&l->wkv, input_for(&l->wkv, s->y, s->yq), s->kv, r->n);

    if (next_input(b, r->n, (uint16_t *)(uintptr_t)x, NOTHING, &l->hc_attn, l->attn_norm,
                   e) == -1 ||
        linear_cuda(&b->rk, &kv, 1, e) == -1)
        return -1;
    return cuda_keys(b, l, r, e);
}

/* m rows of logits to their places: a copy for each run of neighbours. */
static int
logits_out(struct backend *b, float *const *out, int m, struct err *e)
{
    const size_t vocab = (size_t)b->c.vocab_size;

    for (int i = 0, n; i < m; i += n) {
        n = 1;
        if (out[i] == NULL)
            continue;
        while (i + n < m && out[i + n] == out[i] + (size_t)n * vocab)
            n++;
        CU_TRY(cudaMemcpyAsync(out[i], b->s.logits + (size_t)i * vocab,
                               (size_t)n * vocab * sizeof(float), cudaMemcpyDeviceToHost,
                               b->rk.stream),
               e);
    }
    return 0;
}

/* Tokens from m rows of logits, the head's from row `first` on. */
static int
draw_tokens(struct backend *b, const struct head_rows *h, int first, int m, struct err *e)
{
    const struct sample_args a = {.x = b->s.logits,
                                  .draw = h->draws + first,
                                  .token = b->s.token,
                                  .drawn = b->s.drawn + first,
                                  .work = b->s.sample,
                                  .row_bytes = sample_bytes(b->c.vocab_size),
                                  .rows = m,
                                  .n = b->c.vocab_size};

    return h->draw ? sample_cuda(&b->rk, &a, e) : 0;
}

int
cuda_head(struct backend *b, const struct mixer *hc, const float *norm, const uint16_t *src,
          const struct head_rows *h, struct err *e)
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
        next_input(b, h->n, s->head_x, NOTHING, hc, norm, e) == -1)
        return -1;
    for (int i = 0; i < h->n; i += CUDA_LOGIT_ROWS) {
        const int m = h->n - i < CUDA_LOGIT_ROWS ? h->n - i : CUDA_LOGIT_ROWS;
        struct linear_args a =
            linear_job(&b->net.head, s->y + (size_t)i * c->hidden, s->logits, m);

        a.y_f32 = 1;
        if (linear_cuda(&b->rk, &a, 1, e) == -1 || draw_tokens(b, h, i, m, e) == -1 ||
            (!h->stay && logits_out(b, h->out + i, m, e) == -1))
            return -1;
    }
    return 0;
}

/* All of a step between what the host sends and what it gets back. */
static int
body(struct backend *b, const struct cuda_step *p, struct err *e)
{
    struct cuda_scratch *s = &b->s;
    const struct embed_args embed = {.table = b->net.embed,
                                     .rows = p->r.rows,
                                     .x = s->x,
                                     .drawn = s->token,
                                     .n = p->r.n,
                                     .copies = b->c.hc_mult,
                                     .dim = b->c.hidden};

    if (embed_cuda(&b->rk, &embed, e) == -1)
        return -1;
    for (int i = 0; i < b->c.n_layers; i++)
        if (layer_body(b, &b->net.layers[i], &p->r, s->x, i == 0 ? NOTHING : EXPERTS, e) ==
            -1)
            return -1;
    if (next_input(b, p->r.n, s->x, EXPERTS, NULL, NULL, e) == -1 ||
        cuda_head(b, &b->net.hc_head, b->net.norm, s->x, &p->head, e) == -1)
        return -1;
    return b->net.draft != NULL ? cuda_draft(b, p, e) : 0;
}

/* One token of each sequence, logits of all of them, the draft's rows only: a shape that comes again
 * and again. */
static bool
is_decode(const struct backend *b, const struct step *st, const struct cuda_step *p)
{
    if (b->no_graphs || p->r.n > CUDA_LOGIT_ROWS || p->draft_wanted ||
        (b->net.draft != NULL && p->d.n != p->r.n))
        return false;
    for (uint32_t i = 0; i < st->n_seqs; i++)
        if (st->seqs[i].n_tokens != 1 ||
            (st->seqs[i].n_logits != 1 && st->seqs[i].draw == NULL))
            return false;
    return true;
}

/* A graph is for all lengths up to a power of two. */
static uint64_t
length_class(const struct backend *b, uint64_t longest)
{
    uint64_t n = 512;

    while (n < longest)
        n *= 2;
    return n < (uint64_t)b->c.max_positions ? n : (uint64_t)b->c.max_positions;
}

static int
capture(struct backend *b, struct cuda_graph *g, const struct cuda_step *p, struct err *e)
{
    cudaGraph_t graph = NULL;
    int r;

    CU_TRY(cudaStreamBeginCapture(b->rk.stream, cudaStreamCaptureModeThreadLocal), e);
    r = body(b, p, e);
    if (cudaStreamEndCapture(b->rk.stream, &graph) != cudaSuccess || r == -1) {
        if (graph != NULL)
            cudaGraphDestroy(graph);
        return r == -1 ? -1 : err_set(e, ERR_INTERNAL, 0, "a step cannot be captured");
    }
    r = cudaGraphInstantiate(&g->exec, graph, 0) == cudaSuccess ? 0 : -1;
    cudaGraphDestroy(graph);
    return r == 0 ? 0 : err_set(e, ERR_INTERNAL, 0, "a captured step cannot be run");
}

/* The first step of a shape runs as it is, which also loads its kernels; the second is captured;
 * from then on it is replayed. The oldest graph makes room. */
static int
run_graph(struct backend *b, const struct cuda_step *p, struct err *e)
{
    struct cuda_graph *g = NULL, *oldest = &b->graphs[0];

    for (int i = 0; i < CUDA_GRAPHS; i++) {
        struct cuda_graph *at = &b->graphs[i];

        if (at->rows == p->r.n && at->longest == p->r.longest)
            g = at;
        if (at->used < oldest->used)
            oldest = at;
    }
    if (g == NULL) {
        if (oldest->exec != NULL)
            cudaGraphExecDestroy(oldest->exec);
        *oldest = (struct cuda_graph){
            .rows = p->r.n, .longest = p->r.longest, .used = ++b->n_steps};
        return body(b, p, e);
    }
    g->used = ++b->n_steps;
    if (g->exec == NULL && capture(b, g, p, e) == -1)
        return -1;
    CU_TRY(cudaGraphLaunch(g->exec, b->rk.stream), e);
    return 0;
}

/* Everything of a step is on the stream when it returns; upload: which pinned buffer it takes. */
int
cuda_forward_begin(struct backend *b, const struct step *st, int upload, struct err *e)
{
    struct cuda_step p;
    bool decode;

    if (upload_step(b, st, &p, upload, e) == -1 || cuda_tables_send(b, st, e) == -1)
        return -1;
    decode = is_decode(b, st, &p);
    p.head.stay = decode;
    p.head.draw |= decode; /* all graphs of a shape are alike */
    b->kept = p.head.n <= CUDA_LOGIT_ROWS && p.draft_head.n == 0 ? p.head.n : 0;
    if (decode)
        p.r.longest = p.d.longest = length_class(b, p.r.longest);
    if ((decode ? run_graph(b, &p, e) : body(b, &p, e)) == -1)
        return -1;
    for (int i = 0; i < p.r.n_spans; i++) {
        struct cuda_seq *q = b->spans[i].seq;

        q->len += (uint64_t)b->spans[i].n;
        q->high = q->len > q->high ? q->len : q->high;
    }
    b->decoded = decode ? p.r.n : 0;
    return 0;
}

/* What the host waits for: tokens; rows of a decoding step, by pinned memory, as a graph has no say
 * in where they go. */
static int
bring_back(struct backend *b, int n, bool drawn, struct err *e)
{
    const size_t vocab = (size_t)b->c.vocab_size;

    if (drawn)
        CU_TRY(cudaMemcpyAsync(b->drawn_host, b->s.drawn, (size_t)n * sizeof *b->drawn_host,
                               cudaMemcpyDeviceToHost, b->rk.stream),
               e);
    for (int i = 0, m; i < b->decoded; i += m) {
        for (m = 0; i + m < b->decoded && b->head_out[i + m] != NULL;)
            m++;
        if (m > 0)
            CU_TRY(cudaMemcpyAsync(b->logits_host + (size_t)i * vocab,
                                   b->s.logits + (size_t)i * vocab,
                                   (size_t)m * vocab * sizeof(float),
                                   cudaMemcpyDeviceToHost, b->rk.stream),
                   e);
        m += i + m < b->decoded;
    }
    return rank_wait(&b->rk, e);
}

/* The step has been checked and its pages are taken. */
int
cuda_forward(struct backend *b, const struct step *st, struct err *e)
{
    const size_t vocab = (size_t)b->c.vocab_size;
    bool drawn = false;
    int n = 0;

    for (uint32_t i = 0; i < st->n_seqs; i++) {
        drawn |= st->seqs[i].draw != NULL;
        n += st->seqs[i].draw != NULL ? 1 : (int)st->seqs[i].n_logits;
    }
    if (cuda_forward_begin(b, st, 0, e) == -1 || bring_back(b, n, drawn, e) == -1)
        return -1;
    for (int i = 0; i < b->decoded; i++)
        if (b->head_out[i] != NULL)
            memcpy(b->head_out[i], b->logits_host + (size_t)i * vocab,
                   vocab * sizeof(float));
    for (int i = 0; i < n && drawn; i++)
        if (b->head_drawn[i] != NULL)
            *b->head_drawn[i] = b->drawn_host[i];
    return 0;
}

int
cuda_seq_row(struct backend *b, uint32_t seq, float *row, struct err *e)
{
    const size_t vocab = (size_t)b->c.vocab_size;

    for (int i = 0; i < b->kept; i++) {
        if (b->head_seq[i] != seq || b->head_drawn[i] == NULL)
            continue;
        CU_TRY(cudaMemcpyAsync(row, b->s.logits + (size_t)i * vocab, vocab * sizeof *row,
                               cudaMemcpyDeviceToHost, b->rk.stream),
               e);
        return rank_wait(&b->rk, e);
    }
    return err_set(e, ERR_NOT_FOUND, 0, "sequence %u: its row of logits is gone", seq);
}
