/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From a mapped checkpoint to the structs that the layers read. Names and shapes have been
 * compared with the manifest by weights_open; what is checked here is what the manifest leaves
 * open: the dtype of a linear decides how it is computed.
 *
 * Big matrices stay where they are in the mapped file. Copied are: what is not aligned to its
 * element size, vectors (bf16 norms become f32), routing tables, and whatever the table of
 * operations wants in a layout of its own.
 */
#include "config.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/fp.h"
#include "gpu/cpu/cpu.h"
#include "model/weights.h"

enum { NAME = 96, FP8_BLOCK = 128 };

struct loader {
    struct backend *b;
    const struct weights *w;
    char prefix[NAME]; /* "layers.3." */
    struct err *e;
};

void *
mem_get(struct backend *b, size_t n, size_t size, struct err *e)
{
    size_t bytes;
    void *p;

    if (__builtin_mul_overflow(n, size, &bytes) || bytes > SIZE_MAX - ALIGN) {
        err_set(e, ERR_QUOTA, 0, "%zu elements of %zu bytes", n, size);
        return NULL;
    }
    if (b->mem.n == b->mem.cap) {
        const size_t cap = b->mem.cap * 2 + 64;
        void **grown = realloc(b->mem.p, cap * sizeof *grown);

        if (grown == NULL)
            goto none;
        b->mem.p = grown;
        b->mem.cap = cap;
    }
    bytes = (bytes + ALIGN - 1) / ALIGN * ALIGN;
    p = aligned_alloc(ALIGN, bytes > 0 ? bytes : ALIGN);
    if (p == NULL)
        goto none;
    memset(p, 0, bytes);
    b->mem.p[b->mem.n++] = p;
    return p;
none:
    err_set(e, ERR_QUOTA, 0, "no memory for %zu elements of %zu bytes", n, size);
    return NULL;
}

/* A tensor that must be there with this many elements, by the name behind the prefix. */
static const struct tensor *
find(struct loader *ld, const char *name, int64_t n)
{
    const struct tensor *t = weights_findf(ld->w, "%s%s", ld->prefix, name);
    int64_t have = 1;

    if (t == NULL) {
        err_set(ld->e, ERR_DAMAGED, 0, "no tensor %s%s", ld->prefix, name);
        return NULL;
    }
    for (int i = 0; i < t->n_dims; i++)
        have *= t->dims[i];
    if (have != n) {
        err_set(ld->e, ERR_DAMAGED, 0, "tensor %s has %lld elements, not %lld", t->name,
                (long long)have, (long long)n);
        return NULL;
    }
    return t;
}

/* bf16 or f32 to f32, always a copy. */
static int
load_vector(struct loader *ld, const char *name, int64_t n, const float **out)
{
    const struct tensor *t = find(ld, name, n);
    float *v;

    if (t == NULL || (v = mem_get(ld->b, (size_t)n, sizeof *v, ld->e)) == NULL)
        return -1;
    if (t->dtype == DTYPE_F32) {
        memcpy(v, t->data, (size_t)n * sizeof *v);
    } else if (t->dtype == DTYPE_BF16) {
        for (int64_t i = 0; i < n; i++) {
            uint16_t x;

            memcpy(&x, (const uint8_t *)t->data + 2 * i, sizeof x);
            v[i] = bf16_to_f32(x);
        }
    } else {
        return err_set(ld->e, ERR_DAMAGED, 0, "tensor %s is neither BF16 nor F32", t->name);
    }
    *out = v;
    return 0;
}

static int
pack(struct loader *ld, struct matrix *m)
{
    const size_t n = ld->b->ops->packed_bytes(m);
    void *p;

    if (n == 0)
        return 0;
    p = mem_get(ld->b, n, 1, ld->e);
    if (p == NULL)
        return -1;
    ld->b->ops->pack(m, p);
    m->packed = p;
    return 0;
}

/* The tensor's bytes, or a copy if they are not aligned to `size`. */
static const void *
aligned(struct loader *ld, const struct tensor *t, size_t size)
{
    void *p;

    if ((uintptr_t)t->data % size == 0)
        return t->data;
    p = mem_get(ld->b, t->n_bytes, 1, ld->e);
    if (p != NULL)
        memcpy(p, t->data, t->n_bytes);
    return p;
}

static int
set_kind(struct loader *ld, const struct tensor *t, struct matrix *m)
{
    switch (t->dtype) {
    case DTYPE_BF16: m->kind = MATRIX_BF16; return 0;
    case DTYPE_F32: m->kind = MATRIX_F32; return 0;
    case DTYPE_F8_E4M3: m->kind = MATRIX_FP8; return 0;
    case DTYPE_I8: m->kind = MATRIX_FP4; return 0;
    default: break;
    }
    return err_set(ld->e, ERR_DAMAGED, 0, "tensor %s cannot be a matrix", t->name);
}

static int64_t
scale_count(const struct matrix *m)
{
    if (m->kind == MATRIX_FP4)
        return (int64_t)m->out * (m->in / 32);
    return (int64_t)((m->out + FP8_BLOCK - 1) / FP8_BLOCK) *
           ((m->in + FP8_BLOCK - 1) / FP8_BLOCK);
}

/* `name` is the linear's: NAME.weight and NAME.scale, or a bare parameter NAME. Not packed. */
static int
find_matrix(struct loader *ld, const char *name, int out, int in, struct matrix *m)
{
    const struct tensor *t;
    char full[NAME];

    snprintf(full, sizeof full, "%s.weight", name);
    t = weights_findf(ld->w, "%s%s", ld->prefix, full);
    if (t == NULL) {
        snprintf(full, sizeof full, "%s", name);
        t = weights_findf(ld->w, "%s%s", ld->prefix, full);
    }
    if (t == NULL)
        return err_set(ld->e, ERR_DAMAGED, 0, "no tensor %s%s.weight", ld->prefix, name);
    *m = (struct matrix){.out = out, .in = in};
    if (set_kind(ld, t, m) == -1)
        return -1;
    if (find(ld, full, (int64_t)out * in / (m->kind == MATRIX_FP4 ? 2 : 1)) == NULL)
        return -1;
    m->w = aligned(ld, t, m->kind == MATRIX_F32 ? 4 : m->kind == MATRIX_BF16 ? 2 : 1);
    if (m->w == NULL)
        return -1;
    if (m->kind == MATRIX_FP8 || m->kind == MATRIX_FP4) {
        const struct tensor *s;

        snprintf(full, sizeof full, "%s.scale", name);
        s = find(ld, full, scale_count(m));
        if (s == NULL)
            return -1;
        if (s->dtype != DTYPE_F8_E8M0)
            return err_set(ld->e, ERR_DAMAGED, 0, "tensor %s is not F8_E8M0", s->name);
        m->scale = s->data;
    }
    return 0;
}

static int
load_matrix(struct loader *ld, const char *name, int out, int in, struct matrix *m)
{
    return find_matrix(ld, name, out, in, m) == -1 ? -1 : pack(ld, m);
}

/* wo_a in groups: each is a matrix of its own, [o_lora][H / groups * D] (spec 5.8). */
static int
load_wo_a(struct loader *ld, struct layer *l)
{
    const struct model_config *c = &ld->b->c;
    const int in = c->n_heads / c->o_groups * c->head_dim, out = c->o_lora_rank;
    struct matrix all;

    if (find_matrix(ld, "attn.wo_a", c->o_groups * out, in, &all) == -1)
        return -1;
    if (all.kind == MATRIX_FP4 || (all.kind == MATRIX_FP8 && out % FP8_BLOCK != 0))
        return err_set(ld->e, ERR_MODEL_MISMATCH, 0,
                       "%sattn.wo_a: groups of %d rows do not fit its scales", ld->prefix,
                       out);
    l->wo_a = mem_get(ld->b, (size_t)c->o_groups, sizeof *l->wo_a, ld->e);
    if (l->wo_a == NULL)
        return -1;
    for (int g = 0; g < c->o_groups; g++) {
        const size_t size = all.kind == MATRIX_F32 ? 4 : all.kind == MATRIX_BF16 ? 2 : 1;
        struct matrix *m = &l->wo_a[g];

        *m = all;
        m->out = out;
        m->w = (const uint8_t *)all.w + (size_t)g * out * in * size;
        if (all.scale != NULL)
            m->scale = all.scale + (size_t)g * (out / FP8_BLOCK) *
                                       (((size_t)in + FP8_BLOCK - 1) / FP8_BLOCK);
        if (pack(ld, m) == -1)
            return -1;
    }
    return 0;
}

static int
load_mixer(struct loader *ld, const char *name, int n_mix, int n_scale, struct mixer *m)
{
    const struct model_config *c = &ld->b->c;
    char full[NAME];

    snprintf(full, sizeof full, "%s_fn", name);
    if (load_matrix(ld, full, n_mix, c->hc_mult * c->hidden, &m->fn) == -1)
        return -1;
    snprintf(full, sizeof full, "%s_base", name);
    if (load_vector(ld, full, n_mix, &m->base) == -1)
        return -1;
    snprintf(full, sizeof full, "%s_scale", name);
    return load_vector(ld, full, n_scale, &m->scale);
}

static int
load_compressor(struct loader *ld, const char *name, int ratio, int dim,
                struct compressor *k)
{
    const int d = ld->b->c.hidden;
    char full[NAME];

    k->ratio = ratio;
    k->dim = dim;
    k->overlap = ratio == MODEL_CSA_RATIO;
    k->width = k->overlap ? 2 * dim : dim;
    snprintf(full, sizeof full, "%s.ape", name);
    if (load_vector(ld, full, (int64_t)ratio * k->width, &k->ape) == -1)
        return -1;
    snprintf(full, sizeof full, "%s.norm.weight", name);
    if (load_vector(ld, full, dim, &k->norm) == -1)
        return -1;
    snprintf(full, sizeof full, "%s.wkv", name);
    if (load_matrix(ld, full, k->width, d, &k->wkv) == -1)
        return -1;
    snprintf(full, sizeof full, "%s.wgate", name);
    return load_matrix(ld, full, k->width, d, &k->wgate);
}

static int
load_expert(struct loader *ld, const char *name, struct expert *x)
{
    const struct model_config *c = &ld->b->c;
    char full[NAME];

    snprintf(full, sizeof full, "%s.w1", name);
    if (load_matrix(ld, full, c->moe_inter, c->hidden, &x->w1) == -1)
        return -1;
    snprintf(full, sizeof full, "%s.w2", name);
    if (load_matrix(ld, full, c->hidden, c->moe_inter, &x->w2) == -1)
        return -1;
    snprintf(full, sizeof full, "%s.w3", name);
    return load_matrix(ld, full, c->moe_inter, c->hidden, &x->w3);
}

static int
load_gate_table(struct loader *ld, struct layer *l)
{
    const struct model_config *c = &ld->b->c;
    const size_t n = (size_t)c->vocab_size * c->n_experts_used;
    const struct tensor *t = find(ld, "ffn.gate.tid2eid", (int64_t)n);
    int32_t *table;

    if (t == NULL)
        return -1;
    if (t->dtype != DTYPE_I64)
        return err_set(ld->e, ERR_DAMAGED, 0, "tensor %s is not I64", t->name);
    table = mem_get(ld->b, n, sizeof *table, ld->e);
    if (table == NULL)
        return -1;
    for (size_t i = 0; i < n; i++) {
        int64_t id;

        memcpy(&id, (const uint8_t *)t->data + 8 * i, sizeof id);
        if (id < 0 || id >= c->n_experts)
            return err_set(ld->e, ERR_DAMAGED, 0, "%s[%zu] is %lld, of %d experts", t->name,
                           i, (long long)id, c->n_experts);
        table[i] = (int32_t)id;
    }
    l->gate_table = table;
    return 0;
}

static int
load_moe(struct loader *ld, struct layer *l, bool by_table)
{
    const struct model_config *c = &ld->b->c;

    if (load_matrix(ld, "ffn.gate", c->n_experts, c->hidden, &l->gate) == -1)
        return -1;
    if (by_table ? load_gate_table(ld, l) == -1
                 : load_vector(ld, "ffn.gate.bias", c->n_experts, &l->gate_bias) == -1)
        return -1;
    if (load_expert(ld, "ffn.shared_experts", &l->shared) == -1)
        return -1;
    l->experts = mem_get(ld->b, (size_t)c->n_experts, sizeof *l->experts, ld->e);
    if (l->experts == NULL)
        return -1;
    for (int i = 0; i < c->n_experts; i++) {
        char name[NAME];

        snprintf(name, sizeof name, "ffn.experts.%d", i);
        if (load_expert(ld, name, &l->experts[i]) == -1)
            return -1;
        if (l->experts[i].w1.kind != l->experts[0].w1.kind ||
            l->experts[i].w3.kind != l->experts[0].w1.kind ||
            l->experts[i].w2.kind != l->experts[0].w2.kind)
            return err_set(ld->e, ERR_MODEL_MISMATCH, 0,
                           "%s%s is not of the same type as expert 0", ld->prefix, name);
    }
    return 0;
}

static int
load_attention(struct loader *ld, struct layer *l)
{
    const struct model_config *c = &ld->b->c;
    const int d = c->hidden, q = c->q_lora_rank;

    if (load_vector(ld, "attn.q_norm.weight", q, &l->q_norm) == -1 ||
        load_vector(ld, "attn.kv_norm.weight", c->head_dim, &l->kv_norm) == -1 ||
        load_vector(ld, "attn.attn_sink", c->n_heads, &l->sink) == -1 ||
        load_matrix(ld, "attn.wq_a", q, d, &l->wq_a) == -1 ||
        load_matrix(ld, "attn.wq_b", c->n_heads * c->head_dim, q, &l->wq_b) == -1 ||
        load_matrix(ld, "attn.wkv", c->head_dim, d, &l->wkv) == -1 ||
        load_wo_a(ld, l) == -1 ||
        load_matrix(ld, "attn.wo_b", d, c->o_groups * c->o_lora_rank, &l->wo_b) == -1)
        return -1;
    if (l->ratio == 0)
        return 0;
    if (load_compressor(ld, "attn.compressor", l->ratio, c->head_dim, &l->comp) == -1)
        return -1;
    if (!l->indexed)
        return 0;
    if (load_compressor(ld, "attn.indexer.compressor", l->ratio, c->index_head_dim,
                        &l->index_comp) == -1 ||
        load_matrix(ld, "attn.indexer.wq_b", c->index_n_heads * c->index_head_dim, q,
                    &l->index_wq_b) == -1 ||
        load_matrix(ld, "attn.indexer.weights_proj", c->index_n_heads, d,
                    &l->index_weights) == -1)
        return -1;
    return 0;
}

static int
load_layer(struct loader *ld, int id, struct layer *l)
{
    const struct model_config *c = &ld->b->c;
    const int n_mix = 2 * c->hc_mult + c->hc_mult * c->hc_mult;

    l->ratio = c->ratio[id];
    l->indexed = l->ratio == MODEL_CSA_RATIO;
    if (load_mixer(ld, "hc_attn", n_mix, 3, &l->hc_attn) == -1 ||
        load_mixer(ld, "hc_ffn", n_mix, 3, &l->hc_ffn) == -1 ||
        load_vector(ld, "attn_norm.weight", c->hidden, &l->attn_norm) == -1 ||
        load_vector(ld, "ffn_norm.weight", c->hidden, &l->ffn_norm) == -1 ||
        load_attention(ld, l) == -1)
        return -1;
    return load_moe(ld, l, id < c->n_hash_layers);
}

static int
load_draft(struct loader *ld)
{
    struct backend *b = ld->b;
    const struct model_config *c = &b->c;
    const int d = c->hidden;
    struct draft *m;

    if (c->n_mtp != 1 || c->ratio[c->n_layers] != 0)
        return err_set(ld->e, ERR_MODEL_MISMATCH, 0,
                       "a draft of %d blocks, ratio %d: only one window block is known",
                       c->n_mtp, c->n_mtp > 0 ? c->ratio[c->n_layers] : 0);
    m = mem_get(b, 1, sizeof *m, ld->e);
    if (m == NULL)
        return -1;
    snprintf(ld->prefix, sizeof ld->prefix, "mtp.0.");
    if (load_layer(ld, c->n_layers, &m->layer) == -1 ||
        load_matrix(ld, "e_proj", d, d, &m->e_proj) == -1 ||
        load_matrix(ld, "h_proj", d, d, &m->h_proj) == -1 ||
        load_vector(ld, "enorm.weight", d, &m->enorm) == -1 ||
        load_vector(ld, "hnorm.weight", d, &m->hnorm) == -1 ||
        load_vector(ld, "norm.weight", d, &m->norm) == -1 ||
        load_mixer(ld, "hc_head", c->hc_mult, 1, &m->hc_head) == -1)
        return -1;
    b->draft = m;
    return 0;
}

int
load_model(struct backend *b, const void *weights, bool draft, struct err *e)
{
    const struct weights *w = weights;
    const struct model_config *c = &b->c;
    struct loader ld = {.b = b, .w = w, .e = e};
    struct matrix embed;

    if (find_matrix(&ld, "embed", c->vocab_size, c->hidden, &embed) == -1)
        return -1;
    if (embed.kind != MATRIX_BF16)
        return err_set(e, ERR_DAMAGED, 0, "embed.weight is not BF16");
    b->embed = embed.w;
    if (load_matrix(&ld, "head", c->vocab_size, c->hidden, &b->head) == -1 ||
        load_vector(&ld, "norm.weight", c->hidden, &b->norm) == -1 ||
        load_mixer(&ld, "hc_head", c->hc_mult, 1, &b->hc_head) == -1)
        return -1;
    b->layers = mem_get(b, (size_t)c->n_layers, sizeof *b->layers, e);
    if (b->layers == NULL)
        return -1;
    for (int i = 0; i < c->n_layers; i++) {
        snprintf(ld.prefix, sizeof ld.prefix, "layers.%d.", i);
        if (load_layer(&ld, i, &b->layers[i]) == -1)
            return -1;
    }
    b->weight_bytes = weights_bytes(w);
    return draft ? load_draft(&ld) : 0;
}
