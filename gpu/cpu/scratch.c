/* SPDX-License-Identifier: Apache-2.0 */
/* Memory of a step: planned at open for the largest step, so that a step cannot fail midway. */
#include "config.h"

#include <stdlib.h>

#include "base/err.h"
#include "gpu/cpu/cpu.h"

#define GET(field, n)                                            \
    do {                                                         \
        s->field = mem_get(b, (size_t)(n), sizeof *s->field, e); \
        if (s->field == NULL)                                    \
            return -1;                                           \
    } while (0)

static int
plan_attention(struct backend *b, struct err *e)
{
    const struct model_config *c = &b->c;
    const size_t t = MAX_STEP_TOKENS, heads = (size_t)c->n_heads * c->head_dim;
    const size_t iheads = c->index_n_heads;
    const int z = c->o_groups * c->o_lora_rank;
    struct scratch *s = &b->s;

    GET(qr, t * c->q_lora_rank);
    GET(q, t * heads);
    GET(o, t * heads);
    GET(z, t * (size_t)(z > c->q_lora_rank ? z : c->q_lora_rank));
    GET(kv, t * c->head_dim);
    GET(rows, t * b->at.row);
    GET(raw, t * 4 * c->head_dim);
    GET(iraw, t * 4 * c->index_head_dim);
    GET(iq, t * iheads * c->index_head_dim);
    GET(iqp, t * iheads * b->at.index_row);
    GET(iw, t * iheads);
    GET(entry,
        t * (size_t)(c->head_dim > c->index_head_dim ? c->head_dim : c->index_head_dim));
    GET(entry_cs, t * c->rope_dim);
    GET(entry_p, t * b->at.index_row);
    GET(entry_ref, t);
    GET(entry_pos, t);
    GET(att, KEY_ROWS);
    GET(picked, KEY_ROWS * (size_t)c->index_topk);
    return 0;
}

static int
plan_moe(struct backend *b, struct err *e)
{
    const struct model_config *c = &b->c;
    const size_t t = MAX_STEP_TOKENS, k = c->n_experts_used;
    struct scratch *s = &b->s;

    GET(gate, t * c->n_experts);
    GET(chosen, t * k);
    GET(weight, t * k);
    GET(slot, t * k);
    GET(first, c->n_experts + 1);
    GET(gweight, t * (k + 1));
    GET(gx, t * k * c->hidden);
    GET(gg, t * (k + 1) * c->moe_inter);
    GET(gu, t * (k + 1) * c->moe_inter);
    GET(gs, t * c->hidden);
    GET(jobs, 2 * (size_t)c->n_experts + 16 + c->o_groups);
    return 0;
}

int
scratch_plan(struct backend *b, struct err *e)
{
    const struct model_config *c = &b->c;
    const size_t t = MAX_STEP_TOKENS, hc = c->hc_mult, d = c->hidden;
    struct scratch *s = &b->s;

    GET(x, t * hc * d);
    GET(y, t * d);
    GET(yq, t * d);
    GET(f, t * d);
    GET(mix, t * (2 * hc + hc * hc));
    GET(post, t * hc);
    GET(comb, t * hc * hc);
    GET(head_x, t * hc * d);
    GET(head_out, t);
    GET(logits, (size_t)LOGIT_ROWS * c->vocab_size);
    GET(cs[0], t * c->rope_dim);
    GET(cs[1], t * c->rope_dim);
    GET(pos, t);
    GET(token, t);
    GET(spans, b->max_seqs);
    if (b->net.draft != NULL) {
        GET(draft_x, t * hc * d);
        GET(draft_h, t * hc * d);
        GET(cs[2], t * c->rope_dim);
        GET(draft_pos, t);
        GET(draft_token, t);
        GET(draft_spans, b->max_seqs);
    }
    return plan_attention(b, e) == -1 ? -1 : plan_moe(b, e);
}

/*
 * Lists whose length goes with the longest sequence: keys of a query, pages, index scores.
 * Their contents are of one layer of one step, so growing keeps nothing.
 */
int
scratch_reserve(struct backend *b, uint64_t longest, struct err *e)
{
    struct scratch *s = &b->s;
    const size_t pages = (size_t)(longest / KV_PAGE_TOKENS + 1), room = pages + pages / 2;
    const size_t dense = (size_t)b->at.min_dense_ratio;
    const size_t entries = dense > 0 ? room * KV_PAGE_TOKENS / dense : 0;
    const size_t picked = (size_t)b->c.index_topk;
    const size_t keys = (size_t)b->c.window + (entries > picked ? entries : picked);
    const size_t scores = room * KV_PAGE_TOKENS / MODEL_CSA_RATIO;
    const uint8_t **k, **p;
    float *sc;

    if (pages <= s->cap_pages)
        return 0;
    k = calloc(KEY_ROWS * keys, sizeof *k);
    p = calloc(room, sizeof *p);
    sc = calloc(INDEX_ROWS * scores, sizeof *sc);
    if (k == NULL || p == NULL || sc == NULL) {
        free(k);
        free(p);
        free(sc);
        return err_set(e, ERR_QUOTA, 0, "no memory for the key lists of %llu tokens",
                       (unsigned long long)longest);
    }
    scratch_free(b);
    s->keys = k;
    s->blocks = p;
    s->scores = sc;
    s->cap_keys = keys;
    s->cap_pages = room;
    s->cap_scores = scores;
    return 0;
}

void
scratch_free(struct backend *b)
{
    free(b->s.keys);
    free(b->s.blocks);
    free(b->s.scores);
}
