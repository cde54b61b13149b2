/* SPDX-License-Identifier: Apache-2.0 */
/* The names of a checkpoint's tensors, in the order in which the layers read them. */
#include "config.h"

#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "base/fp.h"
#include "gpu/load.h"

enum { NAME = 96, FP8_BLOCK = 128 };

struct loader {
    const struct model_config *c;
    const struct weights *w;
    char prefix[NAME]; /* "layers.3." */
    int experts;       /* of a layer that are loaded */
    const struct load_ops *ops;
    void *arg;
    struct err *e;
};

/* --- for the backends ----------------------------------------------------------------------- */

void
load_floats(const struct tensor *t, const uint8_t *data, size_t n, float *out)
{
    if (t->dtype == DTYPE_F32)
        memcpy(out, data, n * sizeof *out);
    for (size_t i = 0; t->dtype == DTYPE_BF16 && i < n; i++) {
        uint16_t x;

        memcpy(&x, data + 2 * i, sizeof x);
        out[i] = bf16_to_f32(x);
    }
}

int
load_ids(const struct tensor *t, const uint8_t *data, size_t n, int64_t below, int32_t *out,
         struct err *e)
{
    for (size_t i = 0; i < n; i++) {
        int64_t id;

        memcpy(&id, data + 8 * i, sizeof id);
        if (id < 0 || id >= below)
            return err_set(e, ERR_DAMAGED, 0, "%s[%zu] is %lld, of %lld", t->name, i,
                           (long long)id, (long long)below);
        out[i] = (int32_t)id;
    }
    return 0;
}

struct matrix
load_group(const struct matrix *all, int n, int g)
{
    const size_t size = all->kind == MATRIX_F32 ? 4 : all->kind == MATRIX_BF16 ? 2 : 1;
    const int out = all->out / n;
    const size_t at = (size_t)g * (size_t)out * (size_t)all->in * size;
    struct matrix m = *all;

    m.out = out;
    if (all->packed != NULL)
        m.packed = (uint8_t *)all->packed + at;
    if (all->w != NULL)
        m.w = (const uint8_t *)all->w + at;
    if (all->scale != NULL)
        m.scale = all->scale + (size_t)g * (size_t)(out / FP8_BLOCK) *
                                   (((size_t)all->in + FP8_BLOCK - 1) / FP8_BLOCK);
    return m;
}

/* --- tensors -------------------------------------------------------------------------------- */

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

static int
load_vector(struct loader *ld, const char *name, int64_t n, const float **out)
{
    const struct tensor *t = find(ld, name, n);

    if (t == NULL)
        return -1;
    if (t->dtype != DTYPE_F32 && t->dtype != DTYPE_BF16)
        return err_set(ld->e, ERR_DAMAGED, 0, "tensor %s is neither BF16 nor F32", t->name);
    return ld->ops->vector(ld->arg, t, (size_t)n, out, ld->e);
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

static const struct tensor *
find_scale(struct loader *ld, const char *name, const struct matrix *m)
{
    const int64_t blocks = (int64_t)((m->out + FP8_BLOCK - 1) / FP8_BLOCK) *
                           ((m->in + FP8_BLOCK - 1) / FP8_BLOCK);
    const struct tensor *s;
    char full[NAME];

    snprintf(full, sizeof full, "%s.scale", name);
    s = find(ld, full, m->kind == MATRIX_FP4 ? (int64_t)m->out * (m->in / 32) : blocks);
    if (s != NULL && s->dtype != DTYPE_F8_E8M0) {
        err_set(ld->e, ERR_DAMAGED, 0, "tensor %s is not F8_E8M0", s->name);
        return NULL;
    }
    return s;
}

/* `name` is the linear's: NAME.weight and NAME.scale, or a bare parameter NAME. */
static int
find_matrix(struct loader *ld, const char *name, int out, int in, struct matrix *m,
            const struct tensor **t, const struct tensor **scale)
{
    char full[NAME];

    snprintf(full, sizeof full, "%s.weight", name);
    *t = weights_findf(ld->w, "%s%s", ld->prefix, full);
    if (*t == NULL) {
        snprintf(full, sizeof full, "%s", name);
        *t = weights_findf(ld->w, "%s%s", ld->prefix, full);
    }
    if (*t == NULL)
        return err_set(ld->e, ERR_DAMAGED, 0, "no tensor %s%s.weight", ld->prefix, name);
    *m = (struct matrix){.out = out, .in = in};
    if (set_kind(ld, *t, m) == -1 ||
        find(ld, full, (int64_t)out * in / (m->kind == MATRIX_FP4 ? 2 : 1)) == NULL)
        return -1;
    *scale = is_quantised(m) ? find_scale(ld, name, m) : NULL;
    return is_quantised(m) && *scale == NULL ? -1 : 0;
}

static int
load_matrix(struct loader *ld, const char *name, int out, int in, struct matrix *m)
{
    const struct tensor *t, *scale;

    if (find_matrix(ld, name, out, in, m, &t, &scale) == -1)
        return -1;
    return ld->ops->matrix(ld->arg, t, scale, false, m, ld->e);
}

/* --- parts of a layer ----------------------------------------------------------------------- */

/* wo_a in groups: each is a matrix of its own, [o_lora][H / groups * D] (spec 5.8). */
static int
load_wo_a(struct loader *ld, struct layer *l)
{
    const struct model_config *c = ld->c;
    const int in = c->n_heads / c->o_groups * c->head_dim, out = c->o_lora_rank;
    const struct tensor *t, *scale;
    struct matrix all;

    if (find_matrix(ld, "attn.wo_a", c->o_groups * out, in, &all, &t, &scale) == -1)
        return -1;
    if (all.kind == MATRIX_FP4 || (all.kind == MATRIX_FP8 && out % FP8_BLOCK != 0))
        return err_set(ld->e, ERR_MODEL_MISMATCH, 0,
                       "%sattn.wo_a: groups of %d rows do not fit its scales", ld->prefix,
                       out);
    return ld->ops->groups(ld->arg, t, scale, &all, c->o_groups, l->wo_a, ld->e);
}

static int
load_mixer(struct loader *ld, const char *name, int n_mix, int n_scale, struct mixer *m)
{
    char full[NAME];

    snprintf(full, sizeof full, "%s_fn", name);
    if (load_matrix(ld, full, n_mix, ld->c->hc_mult * ld->c->hidden, &m->fn) == -1)
        return -1;
    snprintf(full, sizeof full, "%s_base", name);
    if (load_vector(ld, full, n_mix, &m->base) == -1)
        return -1;
    snprintf(full, sizeof full, "%s_scale", name);
    return load_vector(ld, full, n_scale, &m->scale);
}

static int
load_compressor(struct loader *ld, const char *name, struct compressor *k)
{
    const int d = ld->c->hidden;
    char full[NAME];

    snprintf(full, sizeof full, "%s.ape", name);
    if (load_vector(ld, full, (int64_t)k->ratio * k->width, &k->ape) == -1)
        return -1;
    snprintf(full, sizeof full, "%s.norm.weight", name);
    if (load_vector(ld, full, k->dim, &k->norm) == -1)
        return -1;
    snprintf(full, sizeof full, "%s.wkv", name);
    if (load_matrix(ld, full, k->width, d, &k->wkv) == -1)
        return -1;
    snprintf(full, sizeof full, "%s.wgate", name);
    return load_matrix(ld, full, k->width, d, &k->wgate);
}

static int
load_attention(struct loader *ld, struct layer *l)
{
    const struct model_config *c = ld->c;
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
    if (load_compressor(ld, "attn.compressor", &l->comp) == -1)
        return -1;
    if (!l->indexed)
        return 0;
    if (load_compressor(ld, "attn.indexer.compressor", &l->index_comp) == -1 ||
        load_matrix(ld, "attn.indexer.wq_b", c->index_n_heads * c->index_head_dim, q,
                    &l->index_wq_b) == -1 ||
        load_matrix(ld, "attn.indexer.weights_proj", c->index_n_heads, d,
                    &l->index_weights) == -1)
        return -1;
    return 0;
}

static int
load_expert(struct loader *ld, const char *name, struct expert *x)
{
    const struct model_config *c = ld->c;
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
load_experts(struct loader *ld, struct layer *l)
{
    for (int i = 0; i < ld->c->n_experts; i++) {
        struct expert *x = &l->experts[i];
        const struct expert *like = &l->experts[0];
        char name[NAME];

        if (i >= ld->experts) {
            *x = l->experts[i % ld->experts];
            continue;
        }
        snprintf(name, sizeof name, "ffn.experts.%d", i);
        if (load_expert(ld, name, x) == -1)
            return -1;
        if (x->w1.kind != like->w1.kind || x->w3.kind != like->w1.kind ||
            x->w2.kind != like->w2.kind)
            return err_set(ld->e, ERR_MODEL_MISMATCH, 0,
                           "%s%s is not of the same type as expert 0", ld->prefix, name);
    }
    return ld->ops->experts != NULL ? ld->ops->experts(ld->arg, l, ld->e) : 0;
}

static int
load_gate_table(struct loader *ld, struct layer *l)
{
    const size_t n = (size_t)ld->c->vocab_size * (size_t)ld->c->n_experts_used;
    const struct tensor *t = find(ld, "ffn.gate.tid2eid", (int64_t)n);

    if (t == NULL)
        return -1;
    if (t->dtype != DTYPE_I64)
        return err_set(ld->e, ERR_DAMAGED, 0, "tensor %s is not I64", t->name);
    return ld->ops->table(ld->arg, t, n, ld->c->n_experts, &l->gate_table, ld->e);
}

static int
load_layer(struct loader *ld, int id, struct layer *l)
{
    const struct model_config *c = ld->c;
    const int n_mix = 2 * c->hc_mult + c->hc_mult * c->hc_mult;

    if (load_mixer(ld, "hc_attn", n_mix, 3, &l->hc_attn) == -1 ||
        load_mixer(ld, "hc_ffn", n_mix, 3, &l->hc_ffn) == -1 ||
        load_vector(ld, "attn_norm.weight", c->hidden, &l->attn_norm) == -1 ||
        load_vector(ld, "ffn_norm.weight", c->hidden, &l->ffn_norm) == -1 ||
        load_attention(ld, l) == -1 ||
        load_matrix(ld, "ffn.gate", c->n_experts, c->hidden, &l->gate) == -1)
        return -1;
    if (id < c->n_hash_layers
            ? load_gate_table(ld, l) == -1
            : load_vector(ld, "ffn.gate.bias", c->n_experts, &l->gate_bias) == -1)
        return -1;
    return load_expert(ld, "ffn.shared_experts", &l->shared) == -1 ? -1
                                                                   : load_experts(ld, l);
}

static int
load_draft(struct loader *ld, struct draft *m)
{
    const struct model_config *c = ld->c;
    const int d = c->hidden;

    snprintf(ld->prefix, sizeof ld->prefix, "mtp.0.");
    if (load_layer(ld, c->n_layers, &m->layer) == -1 ||
        load_matrix(ld, "e_proj", d, d, &m->e_proj) == -1 ||
        load_matrix(ld, "h_proj", d, d, &m->h_proj) == -1 ||
        load_vector(ld, "enorm.weight", d, &m->enorm) == -1 ||
        load_vector(ld, "hnorm.weight", d, &m->hnorm) == -1 ||
        load_vector(ld, "norm.weight", d, &m->norm) == -1 ||
        load_mixer(ld, "hc_head", c->hc_mult, 1, &m->hc_head) == -1)
        return -1;
    return 0;
}

static int
load_embed(struct loader *ld, struct network *net)
{
    const struct tensor *t, *scale;
    struct matrix m;

    if (find_matrix(ld, "embed", ld->c->vocab_size, ld->c->hidden, &m, &t, &scale) == -1)
        return -1;
    if (m.kind != MATRIX_BF16)
        return err_set(ld->e, ERR_DAMAGED, 0, "embed.weight is not BF16");
    if (ld->ops->matrix(ld->arg, t, scale, true, &m, ld->e) == -1)
        return -1;
    net->embed = m.w;
    return 0;
}

int
load_network(struct network *net, const struct model_config *c, const struct weights *w,
             int experts, const struct load_ops *ops, void *arg, struct err *e)
{
    struct loader ld = {.c = c,
                        .w = w,
                        .experts = experts > 0 && experts < c->n_experts ? experts
                                                                         : c->n_experts,
                        .ops = ops,
                        .arg = arg,
                        .e = e};

    if (load_embed(&ld, net) == -1 ||
        load_matrix(&ld, "head", c->vocab_size, c->hidden, &net->head) == -1 ||
        load_vector(&ld, "norm.weight", c->hidden, &net->norm) == -1 ||
        load_mixer(&ld, "hc_head", c->hc_mult, 1, &net->hc_head) == -1)
        return -1;
    for (int i = 0; i < c->n_layers; i++) {
        snprintf(ld.prefix, sizeof ld.prefix, "layers.%d.", i);
        if (load_layer(&ld, i, &net->layers[i]) == -1)
            return -1;
    }
    return net->draft != NULL ? load_draft(&ld, net->draft) : 0;
}
