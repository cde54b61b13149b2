/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From a mapped checkpoint to the device. Names and shapes have been compared with the manifest
 * by weights_open; what is checked here is what the manifest leaves open, and what the kernels
 * cannot do: that is said by the name of the tensor.
 *
 * Runs twice (struct arena). Bytes go file -> pinned staging -> arena, each tensor at an aligned
 * address, FP8 and FP4 as they are; vectors become f32, routing tables int32. Two halves of the
 * staging take turns, so that reading a file goes on beside the copy. What tensor cores multiply
 * goes through a slab of device memory and is packed from there (packed.cu).
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/fp.h"
#include "gpu/cuda/cuda.h"
#include "model/synthetic.h"
#include "model/weights.h"

enum { NAME = 96, FP8_BLOCK = 128, HALF = 16 << 20 };

struct loader {
    struct backend *b;
    const struct weights *w;
    char prefix[NAME]; /* "layers.3." */
    uint8_t *staging;  /* [2][HALF], pinned; NULL while sizes are added up */
    cudaEvent_t sent[2];
    int half;
    uint8_t *slab;  /* device, [2][HALF] */
    int *odd;       /* device: a packed weight is no number */
    bool row_major; /* what is loaded now is not to be packed */
    struct err *e;
};

/* `n` bytes to the device: staged piece by piece. *out is where they go. */
static int
put(struct loader *ld, const void *data, size_t n, const void **out)
{
    uint8_t *to = arena_take(&ld->b->arena, n, 1);

    *out = to;
    for (size_t at = 0; ld->staging != NULL && at < n; at += HALF) {
        const size_t m = n - at < HALF ? n - at : HALF;
        uint8_t *piece = ld->staging + (size_t)ld->half * HALF;

        CU_TRY(cudaEventSynchronize(ld->sent[ld->half]), ld->e);
        memcpy(piece, (const uint8_t *)data + at, m);
        CU_TRY(cudaMemcpyAsync(to + at, piece, m, cudaMemcpyHostToDevice, ld->b->rk.stream),
               ld->e);
        CU_TRY(cudaEventRecord(ld->sent[ld->half], ld->b->rk.stream), ld->e);
        ld->half ^= 1;
    }
    return 0;
}

/* A tensor as it is. */
static int
put_tensor(struct loader *ld, const struct tensor *t, const void **out)
{
    struct synthetic s;

    if (t->data != NULL || ld->staging == NULL)
        return put(ld, t->data, t->n_bytes, out);
    s = weights_made(ld->w, t);
    *out = arena_take(&ld->b->arena, t->n_bytes, 1);
    return synthetic_cuda(&ld->b->rk, &s, 0, t->n_bytes / (uint64_t)dtype_bytes(t->dtype),
                          (void *)(uintptr_t)*out, ld->e);
}

/* `n` lines of `line` bytes of t, from line `at` on, to the slab; `host`: the staging's. */
static int
stage(struct loader *ld, const struct tensor *t, int at, int n, size_t line, uint8_t *host,
      uint8_t *dev)
{
    const uint64_t a_line = line / (size_t)dtype_bytes(t->dtype);
    struct synthetic s;

    if (t->data == NULL) {
        s = weights_made(ld->w, t);
        return synthetic_cuda(&ld->b->rk, &s, (uint64_t)at * a_line, (uint64_t)n * a_line,
                              dev, ld->e);
    }
    memcpy(host, (const uint8_t *)t->data + (size_t)at * line, (size_t)n * line);
    CU_TRY(cudaMemcpyAsync(dev, host, (size_t)n * line, cudaMemcpyHostToDevice,
                           ld->b->rk.stream),
           ld->e);
    return 0;
}

/* The same for a matrix to be packed: some rows at a time, FP4 with their scales. */
static int
put_packed(struct loader *ld, const struct tensor *t, const struct tensor *scale,
           struct matrix *m)
{
    const size_t line = t->n_bytes / (size_t)m->out;
    const size_t side = scale != NULL ? (size_t)m->in / 32 : 0;
    const int most = (int)((size_t)HALF / (line + side) / CUDA_ROW_ALIGN * CUDA_ROW_ALIGN);

    m->packed = arena_take(&ld->b->arena, matrix_packed_bytes(m), 1);
    if (scale != NULL)
        m->scale = (const uint8_t *)m->packed + t->n_bytes;
    for (int at = 0, n; ld->staging != NULL && at < m->out; at += n) {
        uint8_t *piece = ld->staging + (size_t)ld->half * HALF;
        uint8_t *dev = ld->slab + (size_t)ld->half * HALF;

        n = m->out - at < most ? m->out - at : most;
        CU_TRY(cudaEventSynchronize(ld->sent[ld->half]), ld->e);
        if (stage(ld, t, at, n, line, piece, dev) == -1 ||
            (scale != NULL && stage(ld, scale, at, n, side, piece + (size_t)n * line,
                                    dev + (size_t)n * line) == -1))
            return -1;
        CU_TRY(cudaEventRecord(ld->sent[ld->half], ld->b->rk.stream), ld->e);
        if (matrix_pack_cuda(&ld->b->rk, m, at, n, dev, dev + (size_t)n * line, ld->odd,
                             ld->e) == -1)
            return -1;
        ld->half ^= 1;
    }
    return 0;
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

/* Of a small tensor, on the host; made up into *made, to be freed. NULL without memory. */
static const uint8_t *
host_data(const struct loader *ld, const struct tensor *t, void **made)
{
    struct synthetic s;

    if (t->data != NULL)
        return t->data;
    *made = malloc(t->n_bytes);
    if (*made == NULL)
        return NULL;
    s = weights_made(ld->w, t);
    synthetic_fill(&s, 0, t->n_bytes / (uint64_t)dtype_bytes(t->dtype), *made);
    return *made;
}

/* bf16 or f32 to f32. */
static int
load_vector(struct loader *ld, const char *name, int64_t n, const float **out)
{
    const struct tensor *t = find(ld, name, n);
    const void *at;
    const uint8_t *data;
    void *made = NULL;
    float *v;
    int r;

    if (t == NULL)
        return -1;
    if (t->dtype != DTYPE_F32 && t->dtype != DTYPE_BF16)
        return err_set(ld->e, ERR_DAMAGED, 0, "tensor %s is neither BF16 nor F32", t->name);
    data = host_data(ld, t, &made);
    v = data != NULL ? malloc((size_t)n * sizeof *v) : NULL;
    if (v == NULL) {
        free(made);
        return err_set(ld->e, ERR_QUOTA, 0, "no memory for %s", t->name);
    }
    if (t->dtype == DTYPE_F32)
        memcpy(v, data, (size_t)n * sizeof *v);
    for (int64_t i = 0; t->dtype == DTYPE_BF16 && i < n; i++) {
        uint16_t x;

        memcpy(&x, data + 2 * i, sizeof x);
        v[i] = bf16_to_f32(x);
    }
    r = put(ld, v, (size_t)n * sizeof *v, &at);
    free(v);
    free(made);
    *out = at;
    return r;
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

static const struct tensor *
find_scale(struct loader *ld, const char *name, const struct matrix *m)
{
    const struct tensor *s = find(ld, name, scale_count(m));

    if (s != NULL && s->dtype != DTYPE_F8_E8M0) {
        err_set(ld->e, ERR_DAMAGED, 0, "tensor %s is not F8_E8M0", s->name);
        return NULL;
    }
    return s;
}

static int
load_scale(struct loader *ld, const struct tensor *s, struct matrix *m)
{
    const void *at;

    if (put_tensor(ld, s, &at) == -1)
        return -1;
    m->scale = at;
    return 0;
}

/* `name` is the linear's: NAME.weight and NAME.scale, or a bare parameter NAME. */
static int
load_matrix(struct loader *ld, const char *name, int out, int in, struct matrix *m)
{
    const struct tensor *t, *scale = NULL;
    char full[NAME], side[NAME];
    bool pack;

    snprintf(full, sizeof full, "%s.weight", name);
    snprintf(side, sizeof side, "%s.scale", name);
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
    if (in % 32 != 0)
        return err_set(ld->e, ERR_MODEL_MISMATCH, 0,
                       "tensor %s has %d inputs; the CUDA kernels take multiples of 32",
                       t->name, in);
    if (find(ld, full, (int64_t)out * in / (m->kind == MATRIX_FP4 ? 2 : 1)) == NULL)
        return -1;
    if (is_quantised(m) && (scale = find_scale(ld, side, m)) == NULL)
        return -1;
    pack = !ld->row_major && matrix_packed_bytes(m) > 0;
    if (pack && m->kind == MATRIX_FP4)
        return put_packed(ld, t, scale, m);
    if ((pack ? put_packed(ld, t, NULL, m) : put_tensor(ld, t, &m->w)) == -1)
        return -1;
    return scale != NULL ? load_scale(ld, scale, m) : 0;
}

/* wo_a in groups: each is a matrix of its own, [o_lora][H / groups * D] (spec 5.8). */
static int
load_wo_a(struct loader *ld, struct cuda_layer *l)
{
    const struct model_config *c = &ld->b->c;
    const int in = c->n_heads / c->o_groups * c->head_dim, out = c->o_lora_rank;
    struct matrix all;
    int r;

    ld->row_major = out % CUDA_ROW_ALIGN != 0;
    r = load_matrix(ld, "attn.wo_a", c->o_groups * out, in, &all);
    ld->row_major = false;
    if (r == -1)
        return -1;
    if (all.kind == MATRIX_FP4 || (all.kind == MATRIX_FP8 && out % FP8_BLOCK != 0))
        return err_set(ld->e, ERR_MODEL_MISMATCH, 0,
                       "%sattn.wo_a: groups of %d rows do not fit its scales", ld->prefix,
                       out);
    for (int g = 0; g < c->o_groups; g++) {
        const size_t size = all.kind == MATRIX_F32 ? 4 : all.kind == MATRIX_BF16 ? 2 : 1;
        struct matrix *m = &l->wo_a[g];

        *m = all;
        m->out = out;
        if (all.packed != NULL)
            m->packed = (uint8_t *)all.packed + (size_t)g * out * in * size;
        else
            m->w = (const uint8_t *)all.w + (size_t)g * out * in * size;
        if (all.scale != NULL)
            m->scale = all.scale + (size_t)g * (out / FP8_BLOCK) *
                                       (((size_t)in + FP8_BLOCK - 1) / FP8_BLOCK);
    }
    return 0;
}

static int
load_mixer(struct loader *ld, const char *name, int n_mix, int n_scale,
           struct cuda_mixer *m)
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
                struct cuda_compressor *k)
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
load_expert(struct loader *ld, const char *name, struct cuda_expert *x)
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
load_gate_table(struct loader *ld, struct cuda_layer *l)
{
    const struct model_config *c = &ld->b->c;
    const size_t n = (size_t)c->vocab_size * c->n_experts_used;
    const struct tensor *t = find(ld, "ffn.gate.tid2eid", (int64_t)n);
    const uint8_t *data;
    const void *at;
    void *made = NULL;
    int32_t *table;
    int r = 0;

    if (t == NULL)
        return -1;
    if (t->dtype != DTYPE_I64)
        return err_set(ld->e, ERR_DAMAGED, 0, "tensor %s is not I64", t->name);
    data = host_data(ld, t, &made);
    table = data != NULL ? malloc(n * sizeof *table) : NULL;
    if (table == NULL) {
        free(made);
        return err_set(ld->e, ERR_QUOTA, 0, "no memory for %s", t->name);
    }
    for (size_t i = 0; i < n && r == 0; i++) {
        int64_t id;

        memcpy(&id, data + 8 * i, sizeof id);
        if (id < 0 || id >= c->n_experts)
            r = err_set(ld->e, ERR_DAMAGED, 0, "%s[%zu] is %lld, of %d experts", t->name, i,
                        (long long)id, c->n_experts);
        table[i] = (int32_t)id;
    }
    if (r == 0)
        r = put(ld, table, n * sizeof *table, &at);
    free(table);
    free(made);
    if (r == 0)
        l->gate_table = at;
    return r;
}

/* All experts, and the tables of their matrices that kernels look them up in. */
static int
load_experts(struct loader *ld, struct cuda_layer *l, struct matrix *w)
{
    const struct model_config *c = &ld->b->c;
    const size_t n = (size_t)c->n_experts, bytes = n * sizeof *w;
    const int made = ld->b->experts_made > 0 && ld->b->experts_made < c->n_experts
                         ? ld->b->experts_made
                         : c->n_experts;
    const void *at[3];

    for (int i = 0; i < c->n_experts; i++) {
        struct cuda_expert x;
        char name[NAME];

        snprintf(name, sizeof name, "ffn.experts.%d", i);
        if (i >= made) {
            for (int k = 0; k < 3; k++)
                w[k * n + i] = w[k * n + i % made];
            continue;
        }
        if (load_expert(ld, name, &x) == -1)
            return -1;
        if (i == 0)
            l->expert = x;
        if (x.w1.kind != l->expert.w1.kind || x.w3.kind != l->expert.w1.kind ||
            x.w2.kind != l->expert.w2.kind)
            return err_set(ld->e, ERR_MODEL_MISMATCH, 0,
                           "%s%s is not of the same type as expert 0", ld->prefix, name);
        w[i] = x.w1;
        w[n + i] = x.w2;
        w[2 * n + i] = x.w3;
    }
    for (int i = 0; i < 3; i++)
        if (put(ld, w + i * n, bytes, &at[i]) == -1)
            return -1;
    l->w1 = at[0];
    l->w2 = at[1];
    l->w3 = at[2];
    return 0;
}

static int
load_moe(struct loader *ld, struct cuda_layer *l, bool by_table)
{
    const struct model_config *c = &ld->b->c;
    struct matrix *w;
    int r;

    if (load_matrix(ld, "ffn.gate", c->n_experts, c->hidden, &l->gate) == -1)
        return -1;
    if (by_table ? load_gate_table(ld, l) == -1
                 : load_vector(ld, "ffn.gate.bias", c->n_experts, &l->gate_bias) == -1)
        return -1;
    if (load_expert(ld, "ffn.shared_experts", &l->shared) == -1)
        return -1;
    w = calloc(3 * (size_t)c->n_experts, sizeof *w);
    if (w == NULL)
        return err_set(ld->e, ERR_QUOTA, 0, "no memory for %d experts", c->n_experts);
    r = load_experts(ld, l, w);
    free(w);
    return r;
}

static int
load_attention(struct loader *ld, struct cuda_layer *l)
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
load_layer(struct loader *ld, int id, struct cuda_layer *l)
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
load_draft(struct loader *ld, struct cuda_draft *m)
{
    const struct model_config *c = &ld->b->c;
    const int d = c->hidden;

    if (c->n_mtp != 1 || c->ratio[c->n_layers] != 0)
        return err_set(ld->e, ERR_MODEL_MISMATCH, 0,
                       "a draft of %d blocks, ratio %d: only one window block is known",
                       c->n_mtp, c->n_mtp > 0 ? c->ratio[c->n_layers] : 0);
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
load_all(struct loader *ld)
{
    struct backend *b = ld->b;
    const struct model_config *c = &b->c;
    struct matrix embed;
    int r;

    ld->row_major = true;
    r = load_matrix(ld, "embed", c->vocab_size, c->hidden, &embed);
    ld->row_major = false;
    if (r == -1)
        return -1;
    if (embed.kind != MATRIX_BF16)
        return err_set(ld->e, ERR_DAMAGED, 0, "embed.weight is not BF16");
    b->embed = embed.w;
    if (load_matrix(ld, "head", c->vocab_size, c->hidden, &b->head) == -1 ||
        load_vector(ld, "norm.weight", c->hidden, &b->norm) == -1 ||
        load_mixer(ld, "hc_head", c->hc_mult, 1, &b->hc_head) == -1)
        return -1;
    for (int i = 0; i < c->n_layers; i++) {
        snprintf(ld->prefix, sizeof ld->prefix, "layers.%d.", i);
        if (load_layer(ld, i, &b->layers[i]) == -1)
            return -1;
    }
    return b->draft != NULL ? load_draft(ld, b->draft) : 0;
}

static int
staging_open(struct loader *ld)
{
    CU_TRY(cudaMallocHost((void **)&ld->staging, 2 * (size_t)HALF), ld->e);
    CU_TRY(cudaMalloc((void **)&ld->slab, 2 * (size_t)HALF), ld->e);
    CU_TRY(cudaMalloc((void **)&ld->odd, sizeof *ld->odd), ld->e);
    CU_TRY(cudaMemsetAsync(ld->odd, 0, sizeof *ld->odd, ld->b->rk.stream), ld->e);
    for (int i = 0; i < 2; i++)
        CU_TRY(cudaEventCreateWithFlags(&ld->sent[i], cudaEventDisableTiming), ld->e);
    return 0;
}

static int
check_packed(struct loader *ld)
{
    int odd = 0;

    CU_TRY(cudaMemcpyAsync(&odd, ld->odd, sizeof odd, cudaMemcpyDeviceToHost,
                           ld->b->rk.stream),
           ld->e);
    if (rank_wait(&ld->b->rk, ld->e) == -1)
        return -1;
    return odd == 0 ? 0
                    : err_set(ld->e, ERR_DAMAGED, 0,
                              "the checkpoint has weights or scales that are no numbers");
}

/* b->layers and b->draft (if wanted) are there, with wo_a's arrays. */
int
cuda_load(struct backend *b, const struct weights *w, bool copy, struct err *e)
{
    struct loader ld = {.b = b, .w = w, .e = e};
    int r = copy ? staging_open(&ld) : 0;

    if (r == 0)
        r = load_all(&ld);
    if (r == 0 && copy)
        r = check_packed(&ld);
    for (int i = 0; i < 2; i++)
        if (ld.sent[i] != NULL)
            cudaEventDestroy(ld.sent[i]);
    cudaFree(ld.slab);
    cudaFree(ld.odd);
    if (ld.staging != NULL)
        cudaFreeHost(ld.staging);
    return r;
}
