/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a checkpoint has to hold: names, shapes and number formats, from the config alone.
 *
 * One table for what a layer may have, with the condition on which it has it, and two short
 * ones for the ends of the model and for a draft layer (spec 2.2). Loader, printer and tests all read
 * this one. Any thread.
 */
#include <config.h> /* not "": beside this file lies model/config.h */

#include <assert.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "model/manifest.h"

/* Sizes that shapes are made of, by what the specification calls them. */
enum size {
    ONE,   /* 1, or no such dimension at the end of a shape */
    THREE, /* pre, post, comb */
    V,
    D,
    Q,
    I,
    E,
    TOPK,
    H,       /* heads */
    HEAD,    /* head_dim */
    Q_OUT,   /* heads x head_dim */
    O_GROUP, /* heads x head_dim / o_groups */
    O_MID,   /* o_groups x o_lora_rank */
    R,       /* the layer's ratio */
    C,       /* channels of its compressor */
    IH,      /* index heads */
    IHEAD,
    IQ_OUT,
    IC,
    HC,
    HC_D,
    HC_MIX, /* streams, streams x d, (2 + streams) x streams */
    SIZES
};

enum store {
    LINEAR, /* FP8 and its scales; BF16 when nothing is quantised */
    EXPERT, /* FP4 and its scales, or as LINEAR */
    BF16,
    F32,
    I64,
};

enum when { ALWAYS, COMPRESSED, INDEXED, LEARNED, HASHED };

struct rule {
    const char *name; /* without ".weight" for LINEAR and EXPERT */
    enum manifest_part part;
    enum store store;
    enum size rows, cols;
    enum when when;
};

static const struct rule end_rules[] = {
    {"embed.weight", PART_EMBED, BF16, V, D, ALWAYS},
    {"head.weight", PART_HEAD, BF16, V, D, ALWAYS},
    {"norm.weight", PART_HEAD, BF16, D, ONE, ALWAYS},
    {"hc_head_fn", PART_HEAD, F32, HC, HC_D, ALWAYS},
    {"hc_head_base", PART_HEAD, F32, HC, ONE, ALWAYS},
    {"hc_head_scale", PART_HEAD, F32, ONE, ONE, ALWAYS},
};

static const struct rule layer_rules[] = {
    {"attn_norm.weight", PART_NORMS, BF16, D, ONE, ALWAYS},
    {"ffn_norm.weight", PART_NORMS, BF16, D, ONE, ALWAYS},
    {"hc_attn_fn", PART_MHC, F32, HC_MIX, HC_D, ALWAYS},
    {"hc_attn_base", PART_MHC, F32, HC_MIX, ONE, ALWAYS},
    {"hc_attn_scale", PART_MHC, F32, THREE, ONE, ALWAYS},
    {"hc_ffn_fn", PART_MHC, F32, HC_MIX, HC_D, ALWAYS},
    {"hc_ffn_base", PART_MHC, F32, HC_MIX, ONE, ALWAYS},
    {"hc_ffn_scale", PART_MHC, F32, THREE, ONE, ALWAYS},
    {"attn.wq_a", PART_ATTENTION, LINEAR, Q, D, ALWAYS},
    {"attn.q_norm.weight", PART_ATTENTION, BF16, Q, ONE, ALWAYS},
    {"attn.wq_b", PART_ATTENTION, LINEAR, Q_OUT, Q, ALWAYS},
    {"attn.wkv", PART_ATTENTION, LINEAR, HEAD, D, ALWAYS},
    {"attn.kv_norm.weight", PART_ATTENTION, BF16, HEAD, ONE, ALWAYS},
    {"attn.wo_a", PART_ATTENTION, LINEAR, O_MID, O_GROUP, ALWAYS},
    {"attn.wo_b", PART_ATTENTION, LINEAR, D, O_MID, ALWAYS},
    {"attn.attn_sink", PART_ATTENTION, F32, H, ONE, ALWAYS},
    {"attn.compressor.ape", PART_COMPRESSOR, F32, R, C, COMPRESSED},
    {"attn.compressor.wkv.weight", PART_COMPRESSOR, BF16, C, D, COMPRESSED},
    {"attn.compressor.wgate.weight", PART_COMPRESSOR, BF16, C, D, COMPRESSED},
    {"attn.compressor.norm.weight", PART_COMPRESSOR, BF16, HEAD, ONE, COMPRESSED},
    {"attn.indexer.wq_b", PART_INDEXER, LINEAR, IQ_OUT, Q, INDEXED},
    {"attn.indexer.weights_proj.weight", PART_INDEXER, BF16, IH, D, INDEXED},
    {"attn.indexer.compressor.ape", PART_INDEXER, F32, R, IC, INDEXED},
    {"attn.indexer.compressor.wkv.weight", PART_INDEXER, BF16, IC, D, INDEXED},
    {"attn.indexer.compressor.wgate.weight", PART_INDEXER, BF16, IC, D, INDEXED},
    {"attn.indexer.compressor.norm.weight", PART_INDEXER, BF16, IHEAD, ONE, INDEXED},
    {"ffn.gate.weight", PART_ROUTER, BF16, E, D, ALWAYS},
    {"ffn.gate.bias", PART_ROUTER, F32, E, ONE, LEARNED},
    {"ffn.gate.tid2eid", PART_ROUTER, I64, V, TOPK, HASHED},
    {"ffn.shared_experts.w1", PART_SHARED, LINEAR, I, D, ALWAYS},
    {"ffn.shared_experts.w2", PART_SHARED, LINEAR, D, I, ALWAYS},
    {"ffn.shared_experts.w3", PART_SHARED, LINEAR, I, D, ALWAYS},
};

static const struct rule expert_rules[] = {
    {"w1", PART_EXPERTS, EXPERT, I, D, ALWAYS},
    {"w2", PART_EXPERTS, EXPERT, D, I, ALWAYS},
    {"w3", PART_EXPERTS, EXPERT, I, D, ALWAYS},
};

static const struct rule draft_rules[] = {
    {"e_proj", PART_DRAFT, LINEAR, D, D, ALWAYS},
    {"h_proj", PART_DRAFT, LINEAR, D, D, ALWAYS},
    {"enorm.weight", PART_DRAFT, BF16, D, ONE, ALWAYS},
    {"hnorm.weight", PART_DRAFT, BF16, D, ONE, ALWAYS},
    {"norm.weight", PART_DRAFT, BF16, D, ONE, ALWAYS},
    {"hc_head_fn", PART_DRAFT, F32, HC, HC_D, ALWAYS},
    {"hc_head_base", PART_DRAFT, F32, HC, ONE, ALWAYS},
    {"hc_head_scale", PART_DRAFT, F32, ONE, ONE, ALWAYS},
};

#define COUNT(table) (sizeof(table) / sizeof *(table))

struct walk {
    const struct model_config *c;
    manifest_fn *fn;
    void *arg;
    int layer;
    int64_t size[SIZES];
};

static void
set_sizes(struct walk *w, int layer)
{
    const struct model_config *c = w->c;
    const int r = layer < 0 ? 0 : c->ratio[layer];
    /* Overlapping blocks keep two halves of channels (spec 6). */
    const int64_t halves = r == MODEL_CSA_RATIO ? 2 : 1;
    const int64_t size[SIZES] = {
        [ONE] = 1,
        [THREE] = 3,
        [V] = c->vocab_size,
        [D] = c->hidden,
        [Q] = c->q_lora_rank,
        [I] = c->moe_inter,
        [E] = c->n_experts,
        [TOPK] = c->n_experts_used,
        [H] = c->n_heads,
        [HEAD] = c->head_dim,
        [Q_OUT] = (int64_t)c->n_heads * c->head_dim,
        [O_GROUP] = (int64_t)c->n_heads * c->head_dim / c->o_groups,
        [O_MID] = (int64_t)c->o_groups * c->o_lora_rank,
        [R] = r,
        [C] = halves * c->head_dim,
        [IH] = c->index_n_heads,
        [IHEAD] = c->index_head_dim,
        [IQ_OUT] = (int64_t)c->index_n_heads * c->index_head_dim,
        [IC] = halves * c->index_head_dim,
        [HC] = c->hc_mult,
        [HC_D] = (int64_t)c->hc_mult * c->hidden,
        [HC_MIX] = (2 + (int64_t)c->hc_mult) * c->hc_mult,
    };

    w->layer = layer;
    memcpy(w->size, size, sizeof size);
}

static bool
applies(const struct walk *w, enum when when)
{
    const int r = w->layer < 0 ? 0 : w->c->ratio[w->layer];

    switch (when) {
    case ALWAYS: return true;
    case COMPRESSED: return r != 0;
    case INDEXED: return r == MODEL_CSA_RATIO;
    case LEARNED: return w->layer >= w->c->n_hash_layers;
    case HASHED: return w->layer < w->c->n_hash_layers;
    }
    return false;
}

static int
emit(const struct walk *w, enum manifest_part part, const char *name,
     enum tensor_dtype dtype, int64_t rows, int64_t cols, bool is_vector)
{
    const uint64_t n = (uint64_t)rows * (uint64_t)cols;
    const struct manifest_tensor t = {
        .name = name,
        .part = part,
        .layer = w->layer,
        .dtype = dtype,
        .n_dims = is_vector ? 1 : 2,
        .dims = {rows, is_vector ? 0 : cols},
        .n_bytes = n * (uint64_t)dtype_bytes(dtype),
        .n_params = dtype == DTYPE_F8_E8M0 || dtype == DTYPE_I64 ? 0
                    : dtype == DTYPE_I8                          ? 2 * n
                                                                 : n,
    };

    return w->fn(w->arg, &t);
}

static int64_t
blocks(int64_t n, int64_t of)
{
    return (n + of - 1) / of;
}

/* A rule's one or two tensors (spec 2.2: FP8[o,i], FP4[o,i]). */
static int
emit_rule(const struct walk *w, const char *prefix, const struct rule *r)
{
    const int64_t rows = w->size[r->rows], cols = w->size[r->cols];
    const bool quantized = w->c->quantized && (r->store == LINEAR || r->store == EXPERT);
    const bool fp4 = quantized && r->store == EXPERT && w->c->fp4_experts;
    const bool is_matrix = r->store == LINEAR || r->store == EXPERT;
    enum tensor_dtype dtype = DTYPE_BF16;
    char name[128];
    int x;

    snprintf(name, sizeof name, "%s%s%s", prefix, r->name, is_matrix ? ".weight" : "");
    if (r->store == F32)
        dtype = DTYPE_F32;
    else if (r->store == I64)
        dtype = DTYPE_I64;
    else if (quantized)
        dtype = fp4 ? DTYPE_I8 : DTYPE_F8_E4M3;
    x = emit(w, r->part, name, dtype, rows, fp4 ? cols / 2 : cols, r->cols == ONE);
    if (x != 0 || !quantized)
        return x;
    snprintf(name, sizeof name, "%s%s.scale", prefix, r->name);
    return emit(w, r->part, name, DTYPE_F8_E8M0, fp4 ? rows : blocks(rows, 128),
                fp4 ? blocks(cols, 32) : blocks(cols, 128), false);
}

static int
emit_rules(const struct walk *w, const char *prefix, const struct rule *rules, size_t n)
{
    int x;

    for (size_t i = 0; i < n; i++)
        if (applies(w, rules[i].when) && (x = emit_rule(w, prefix, &rules[i])) != 0)
            return x;
    return 0;
}

static int
walk_layer(struct walk *w, int layer)
{
    const int draft = layer - w->c->n_layers;
    char prefix[64], expert[96];
    int x;

    set_sizes(w, layer);
    if (draft < 0)
        snprintf(prefix, sizeof prefix, "layers.%d.", layer);
    else
        snprintf(prefix, sizeof prefix, "mtp.%d.", draft);
    if ((x = emit_rules(w, prefix, layer_rules, COUNT(layer_rules))) != 0)
        return x;
    for (int j = 0; j < w->c->n_experts; j++) {
        snprintf(expert, sizeof expert, "%sffn.experts.%d.", prefix, j);
        if ((x = emit_rules(w, expert, expert_rules, COUNT(expert_rules))) != 0)
            return x;
    }
    return draft < 0 ? 0 : emit_rules(w, prefix, draft_rules, COUNT(draft_rules));
}

int
manifest_walk(const struct model_config *c, manifest_fn *fn, void *arg)
{
    struct walk w = {.c = c, .fn = fn, .arg = arg};
    int x;

    set_sizes(&w, MANIFEST_OUTSIDE);
    x = emit_rules(&w, "", end_rules, COUNT(end_rules));
    for (int l = 0; x == 0 && l < c->n_layers + c->n_mtp; l++)
        x = walk_layer(&w, l);
    return x;
}

struct totals_arg {
    const struct model_config *c;
    struct manifest_totals *out;
};

static void
add(struct manifest_sum *s, const struct manifest_tensor *t)
{
    s->n_tensors++;
    s->n_params += t->n_params;
    s->n_bytes += t->n_bytes;
}

static int
add_all(void *arg, const struct manifest_tensor *t)
{
    const struct totals_arg *a = arg;

    add(&a->out->all, t);
    add(t->layer >= a->c->n_layers ? &a->out->draft : &a->out->backbone, t);
    add(t->layer < 0 ? &a->out->outside : &a->out->layer[t->layer], t);
    add(&a->out->part[t->part], t);
    add(&a->out->dtype[t->dtype], t);
    return 0;
}

void
manifest_total(const struct model_config *c, struct manifest_totals *out)
{
    struct totals_arg a = {c, out};

    *out = (struct manifest_totals){0};
    manifest_walk(c, add_all, &a);
}

const char *
manifest_part_name(enum manifest_part p)
{
    static const char *const names[PART_COUNT] = {
        [PART_EMBED] = "embedding",       [PART_HEAD] = "head",
        [PART_ATTENTION] = "attention",   [PART_COMPRESSOR] = "compressors",
        [PART_INDEXER] = "indexers",      [PART_NORMS] = "norms",
        [PART_MHC] = "hyper-connections", [PART_ROUTER] = "routers",
        [PART_SHARED] = "shared experts", [PART_EXPERTS] = "routed experts",
        [PART_DRAFT] = "draft",
    };

    assert((unsigned)p < PART_COUNT);
    return names[p];
}

const char *
manifest_layer_kind(const struct model_config *c, int layer)
{
    const int r = c->ratio[layer];

    return r == 0 ? "window" : r == MODEL_CSA_RATIO ? "CSA" : "HCA";
}
