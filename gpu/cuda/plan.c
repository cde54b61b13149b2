/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What lies where: host structs of a model, rings of a sequence, rows of a page, and the scratch
 * of a step, made for the largest step so that one cannot fail midway for want of memory.
 */
#include "config.h"

#include <stdlib.h>

#include "base/err.h"
#include "gpu/cuda/cuda.h"
#include "gpu/index/choose.h"

enum { T = CUDA_STEP_TOKENS };

/* Scratch that goes with the longest sequence serves as many rows at a time as fit in here. */
static const size_t score_most = (size_t)256 << 20, iscore_most = (size_t)64 << 20;

void *
cuda_host(struct backend *b, size_t n, size_t size, struct err *e)
{
    void *p = calloc(n > 0 ? n : 1, size);

    if (p == NULL || b->n_mem == (int)(sizeof b->mem / sizeof b->mem[0])) {
        free(p);
        err_set(e, ERR_QUOTA, 0, "no memory for %zu elements of %zu bytes", n, size);
        return NULL;
    }
    b->mem[b->n_mem++] = p;
    return p;
}

void *
arena_take(struct arena *a, size_t n, size_t size)
{
    const size_t at = a->used;

    a->used = (at + n * size + CUDA_ALIGN - 1) / CUDA_ALIGN * CUDA_ALIGN;
    return a->base == NULL ? NULL : a->base + at;
}

/* Which of the different ratios of the model this one is. */
static int
ratio_id(struct backend *b, int ratio)
{
    for (int i = 0; i < b->n_ratios; i++)
        if (b->ratios[i] == ratio)
            return i;
    b->ratios[b->n_ratios] = ratio;
    return b->n_ratios++;
}

/* Host structs, and where everything lies in a sequence and in a page. */
int
cuda_model_plan(struct backend *b, bool draft, struct err *e)
{
    const struct model_config *c = &b->c;

    if (network_new(&b->net, c, draft, e) == -1)
        return -1;
    network_place(&b->net, c, b->fmt, CUDA_ALIGN, &b->at);
    for (int i = 0; i < c->n_layers; i++)
        if (c->ratio[i] != 0)
            b->net.layers[i].ratio_id = ratio_id(b, c->ratio[i]);
    b->page_stride = (b->at.page_bytes + CUDA_ROW_ALIGN - 1) / CUDA_ROW_ALIGN *
                     CUDA_ROW_ALIGN;
    if (kv_layout_init(&b->layout, c, draft, e) == -1)
        return -1;
    if (b->layout.page_bytes != b->at.page_bytes)
        return err_set(e, ERR_INTERNAL, 0, "pages of %zu bytes, their layout has %llu",
                       b->at.page_bytes, (unsigned long long)b->layout.page_bytes);
    return 0;
}

#define TAKE(field, n) s->field = arena_take(&b->arena, (size_t)(n), sizeof *s->field)

static void
plan_attention(struct backend *b)
{
    const struct model_config *c = &b->c;
    const size_t t = T, heads = (size_t)c->n_heads * c->head_dim, iheads = c->index_n_heads;
    const size_t z = (size_t)c->o_groups * c->o_lora_rank;
    struct cuda_scratch *s = &b->s;

    TAKE(qr, t * c->q_lora_rank);
    TAKE(q, t * heads);
    TAKE(o, t * heads);
    TAKE(z, t * (z > (size_t)c->q_lora_rank ? z : (size_t)c->q_lora_rank));
    TAKE(kv, t * c->head_dim);
    TAKE(rows, t * b->at.row);
    TAKE(raw, t * 4 * c->head_dim);
    TAKE(iraw, t * 4 * c->index_head_dim);
    TAKE(iq, t * iheads * c->index_head_dim);
    TAKE(iqp, t * iheads * b->at.index_row);
    TAKE(iw, t * iheads);
    TAKE(entry,
         t * (size_t)(c->head_dim > c->index_head_dim ? c->head_dim : c->index_head_dim));
    TAKE(entry_p, t * (b->at.row > b->at.index_row ? b->at.row : b->at.index_row));
    TAKE(att, t);
    TAKE(index, t);
    TAKE(picked, t * c->index_topk);
}

/* At least one row of the longest sequence, at most T, else as many as `most` holds. */
static size_t
row_budget(size_t row, size_t most)
{
    const size_t all = row * T;

    return all < most ? all : row > most ? row : most;
}

static void
plan_scores(struct backend *b)
{
    const struct model_config *c = &b->c;
    const size_t positions = (size_t)c->max_positions, topk = (size_t)c->index_topk;
    const size_t dense = b->at.min_dense_ratio > 0 ? positions / b->at.min_dense_ratio : 0;
    const size_t keys = (size_t)c->window + (dense > topk ? dense : topk);
    struct cuda_scratch *s = &b->s;
    const struct attention_args like = {.n_heads = c->n_heads, .n_keys = (int)keys};

    s->score_bytes =
        row_budget(attention_scratch(&like) * sizeof(float) + keys * sizeof(void *),
                   score_most) +
        CUDA_ALIGN;
    s->iscore_bytes = row_budget(
        (positions / MODEL_CSA_RATIO + CHOOSE_UNIT) * sizeof(float), iscore_most);
    b->plain_attention =
        b->fmt != KV_PACKED ||
        !attend_can(&(struct attend_args){.dim = c->head_dim, .rope_dim = c->rope_dim},
                    (int)keys, b->rk.shared_bytes);
    b->plain_index = !choose_can(c->index_n_heads, c->index_head_dim, c->index_topk,
                                 (uint64_t)c->max_positions / MODEL_CSA_RATIO,
                                 b->rk.shared_bytes);
    TAKE(score, s->score_bytes / sizeof *s->score);
    TAKE(iscore, s->iscore_bytes / sizeof *s->iscore);
}

static void
plan_moe(struct backend *b)
{
    const struct model_config *c = &b->c;
    const size_t t = T, k = c->n_experts_used;
    struct cuda_scratch *s = &b->s;

    TAKE(gate, t * c->n_experts);
    TAKE(weight, t * k);
    TAKE(slot_weight, t * k);
    TAKE(chosen, t * k);
    TAKE(slot, t * k);
    TAKE(source, t * k);
    TAKE(first, c->n_experts + 1);
    TAKE(active, c->n_experts + 1);
    TAKE(second, k);
    TAKE(ex, t * k * c->hidden);
    TAKE(gg, t * (k + 1) * c->moe_inter);
    TAKE(gu, t * (k + 1) * c->moe_inter);
    TAKE(gs, t * c->hidden);
}

void
cuda_scratch_plan(struct backend *b)
{
    const struct model_config *c = &b->c;
    const size_t t = T, hc = c->hc_mult, d = c->hidden;
    struct cuda_scratch *s = &b->s;

    TAKE(x, t * hc * d);
    TAKE(y, t * d);
    TAKE(yq, t * d);
    TAKE(f, t * d);
    TAKE(part, t * streams_chunks(c->hc_mult, c->hidden) * (2 * hc + hc * hc + 1));
    TAKE(post, t * hc);
    TAKE(comb, t * hc * hc);
    TAKE(head_x, t * hc * d);
    TAKE(logits, (size_t)CUDA_LOGIT_ROWS * c->vocab_size);
    TAKE(token, CUDA_LOGIT_ROWS);
    TAKE(drawn, t);
    TAKE(sample, CUDA_LOGIT_ROWS * sample_bytes(c->vocab_size));
    if (b->net.draft != NULL) {
        TAKE(draft_x, t * hc * d);
        TAKE(draft_h, t * hc * d);
    }
    plan_attention(b);
    plan_scores(b);
    plan_moe(b);
    for (int i = 0; i < 2; i++)
        b->staging[i] = arena_take(&b->arena, (size_t)b->layout.state_most, 1);
    b->up.size = upload_bytes(b);
    b->up.dev = arena_take(&b->arena, b->up.size, 1);
}
