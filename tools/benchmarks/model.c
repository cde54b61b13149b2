/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a token must cost, from the shapes of a loaded model, and one layer of the published Flash
 * shape with made-up weights: random codes, all 256 experts, so that neither zeros nor a small
 * cache flatter the result.
 */
#include "config.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "tools/benchmarks/bench.h"

/* As the checkpoint stores it. */
static double
stored(const struct matrix *m)
{
    const double n = (double)m->out * m->in;

    switch (m->kind) {
    case MATRIX_BF16: return 2.0 * n;
    case MATRIX_F32: return 4.0 * n;
    case MATRIX_FP8: return n + n / 16384.0;
    case MATRIX_FP4: return n / 2.0 + n / 32.0;
    }
    return 0.0;
}

static void
add(struct cost *c, const struct matrix *m, double times)
{
    c->bytes += times * stored(m);
    c->flops += times * 2.0 * m->out * m->in;
}

static void
add_expert(struct cost *c, const struct expert *x, double times)
{
    add(c, &x->w1, times);
    add(c, &x->w2, times);
    add(c, &x->w3, times);
}

static void
add_attention(struct cost *c, const struct backend *b, const struct layer *l, uint64_t pos)
{
    const struct model_config *m = &b->c;
    const double window = fmin((double)pos + 1.0, m->window);
    const double entries = l->ratio > 0 ? floor(((double)pos + 1.0) / l->ratio) : 0.0;
    const double chosen = l->indexed ? fmin(entries, m->index_topk) : entries;

    c->bytes += (window + chosen) * (double)b->at.row;
    c->flops += 4.0 * m->head_dim * m->n_heads * (window + chosen);
    if (l->indexed && entries > chosen) {
        c->bytes += entries * (double)b->at.index_row;
        c->flops += 2.0 * m->index_n_heads * m->index_head_dim * entries;
    }
}

static void
add_layer(struct cost *c, const struct backend *b, const struct layer *l, uint64_t pos)
{
    add(c, &l->hc_attn.fn, 1.0);
    add(c, &l->hc_ffn.fn, 1.0);
    add(c, &l->wq_a, 1.0);
    add(c, &l->wq_b, 1.0);
    add(c, &l->wkv, 1.0);
    add(c, &l->wo_a[0], b->c.o_groups);
    add(c, &l->wo_b, 1.0);
    if (l->ratio > 0) {
        add(c, &l->comp.wkv, 1.0);
        add(c, &l->comp.wgate, 1.0);
    }
    if (l->indexed) {
        add(c, &l->index_comp.wkv, 1.0);
        add(c, &l->index_comp.wgate, 1.0);
        add(c, &l->index_wq_b, 1.0);
        add(c, &l->index_weights, 1.0);
    }
    add(c, &l->gate, 1.0);
    add_expert(c, &l->shared, 1.0);
    add_expert(c, &l->experts[0], b->c.n_experts_used);
    add_attention(c, b, l, pos);
}

void
token_cost(const struct backend *b, uint64_t pos, bool head, struct cost *out)
{
    *out = (struct cost){0};
    for (int i = 0; i < b->c.n_layers; i++)
        add_layer(out, b, &b->net.layers[i], pos);
    if (head)
        add(out, &b->net.head, 1.0);
}

/* Flash without its vocabulary (spec 1.1). */
static const char flash[] =
    "{\"model_type\": \"deepseek_v4\", \"architectures\": [\"DeepseekV4ForCausalLM\"],"
    "\"vocab_size\": 1024, \"hidden_size\": 4096, \"num_hidden_layers\": 1,"
    "\"num_hash_layers\": 0, \"num_nextn_predict_layers\": 0, \"num_attention_heads\": 64,"
    "\"num_key_value_heads\": 1, \"head_dim\": 512, \"qk_rope_head_dim\": 64,"
    "\"q_lora_rank\": 1024, \"o_groups\": 8, \"o_lora_rank\": 1024, \"sliding_window\": 128,"
    "\"index_n_heads\": 64, \"index_head_dim\": 128, \"index_topk\": 512,"
    "\"compress_ratios\": [%d], \"compress_rope_theta\": 160000, \"rope_theta\": 10000,"
    "\"rope_scaling\": {\"type\": \"yarn\", \"factor\": 16, \"beta_fast\": 32, \"beta_slow\": 1,"
    "\"original_max_position_embeddings\": 65536}, \"max_position_embeddings\": 1048576,"
    "\"n_routed_experts\": 256, \"n_shared_experts\": 1, \"num_experts_per_tok\": 6,"
    "\"moe_intermediate_size\": 2048, \"scoring_func\": \"sqrtsoftplus\","
    "\"topk_method\": \"noaux_tc\", \"norm_topk_prob\": true, \"routed_scaling_factor\": 1.5,"
    "\"swiglu_limit\": 10.0, \"hc_mult\": 4, \"hc_sinkhorn_iters\": 20, \"hc_eps\": 1e-6,"
    "\"rms_norm_eps\": 1e-6, \"hidden_act\": \"silu\", \"attention_bias\": false,"
    "\"attention_dropout\": 0.0, \"initializer_range\": 0.02, \"tie_word_embeddings\": false,"
    "\"torch_dtype\": \"bfloat16\", \"bos_token_id\": 0, \"eos_token_id\": 1,"
    "\"quantization_config\": {\"quant_method\": \"fp8\", \"fmt\": \"e4m3\","
    "\"scale_fmt\": \"ue8m0\", \"activation_scheme\": \"dynamic\","
    "\"weight_block_size\": [128, 128]}, \"expert_dtype\": \"fp4\"}";

static uint64_t
rnd(void)
{
    static uint64_t s = 88172645463325252ull;

    s ^= s << 13;
    s ^= s >> 7;
    s ^= s << 17;
    return s;
}

/* Row-major random weights of a size that keeps activations near 1. */
static void
fill(struct matrix *m, uint8_t *w, uint8_t *scale, size_t n_scales)
{
    const size_t n = (size_t)m->out * m->in;

    memset(scale, m->kind == MATRIX_FP8 ? 127 - 13 : 127 - 8, n_scales);
    if (m->kind == MATRIX_BF16)
        for (size_t i = 0; i < n; i++)
            ((uint16_t *)w)[i] = (uint16_t)((rnd() & 0x807f) | 0x3c80);
    else if (m->kind == MATRIX_F32)
        for (size_t i = 0; i < n; i++)
            ((float *)w)[i] = (float)(int)(rnd() % 2001 - 1000) * 2e-5f;
    else
        for (size_t i = 0; i < (m->kind == MATRIX_FP8 ? n : n / 2); i++) {
            w[i] = (uint8_t)rnd();
            if (m->kind == MATRIX_FP8 && (w[i] & 0x7f) == 0x7f)
                w[i] &= 0xfe;
        }
}

static int
make(struct backend *b, enum matrix_kind kind, int out, int in, struct matrix *m,
     struct err *e)
{
    const size_t n = (size_t)out * (size_t)in, n_scales = n / 32 + 64;
    uint8_t *w = mem_get(b, n, kind == MATRIX_F32 ? 4 : kind == MATRIX_BF16 ? 2 : 1, e);
    uint8_t *scale = mem_get(b, n_scales, 1, e);
    size_t bytes;

    *m = (struct matrix){.kind = kind, .out = out, .in = in, .w = w, .scale = scale};
    if (w == NULL || scale == NULL)
        return -1;
    fill(m, w, scale, n_scales);
    bytes = b->ops->packed_bytes(m);
    if (bytes == 0)
        return 0;
    m->packed = mem_get(b, bytes, 1, e);
    if (m->packed == NULL)
        return -1;
    b->ops->pack(m, m->packed);
    return 0;
}

/* Another matrix like m with bytes of its own: the same codes, shifted in memory by whole steps of
 * the layout, so that no two experts share a line. */
static int
make_like(struct backend *b, const struct matrix *m, size_t turn, struct matrix *copy,
          struct err *e)
{
    const size_t bytes = b->ops->packed_bytes(m);
    const size_t codes = (size_t)m->out * m->in / 2, at = turn * 64 % codes;
    uint8_t *p;

    *copy = *m;
    if (bytes == 0)
        return 0;
    p = mem_get(b, bytes, 1, e);
    if (p == NULL)
        return -1;
    memcpy(p, m->packed, bytes);
    memcpy(p, (const uint8_t *)m->packed + codes - at, at);
    memcpy(p + at, m->packed, codes - at);
    copy->packed = p;
    return 0;
}

static int
make_vector(struct backend *b, int n, float value, const float **out, struct err *e)
{
    float *v = mem_get(b, (size_t)n, sizeof *v, e);

    for (int i = 0; v != NULL && i < n; i++)
        v[i] = value * (0.75f + (float)(rnd() % 1000) / 2000.0f);
    *out = v;
    return v == NULL ? -1 : 0;
}

static int
make_compressor(struct backend *b, int ratio, int dim, struct compressor *k, struct err *e)
{
    k->ratio = ratio;
    k->dim = dim;
    k->overlap = ratio == MODEL_CSA_RATIO;
    k->width = k->overlap ? 2 * dim : dim;
    if (make_vector(b, ratio * k->width, 0.1f, &k->ape, e) == -1 ||
        make_vector(b, dim, 1.0f, &k->norm, e) == -1 ||
        make(b, MATRIX_BF16, k->width, b->c.hidden, &k->wkv, e) == -1)
        return -1;
    return make(b, MATRIX_BF16, k->width, b->c.hidden, &k->wgate, e);
}

static int
make_mixer(struct backend *b, int n_mix, struct mixer *m, struct err *e)
{
    if (make(b, MATRIX_F32, n_mix, b->c.hc_mult * b->c.hidden, &m->fn, e) == -1 ||
        make_vector(b, n_mix, 0.1f, &m->base, e) == -1)
        return -1;
    return make_vector(b, 3, 0.1f, &m->scale, e);
}

static int
make_attention(struct backend *b, struct layer *l, struct err *e)
{
    const struct model_config *c = &b->c;
    const int d = c->hidden, q = c->q_lora_rank,
              in = c->n_heads / c->o_groups * c->head_dim;

    l->wo_a = mem_get(b, (size_t)c->o_groups, sizeof *l->wo_a, e);
    if (l->wo_a == NULL || make_vector(b, q, 1.0f, &l->q_norm, e) == -1 ||
        make_vector(b, c->head_dim, 1.0f, &l->kv_norm, e) == -1 ||
        make_vector(b, c->n_heads, 0.5f, &l->sink, e) == -1 ||
        make(b, MATRIX_FP8, q, d, &l->wq_a, e) == -1 ||
        make(b, MATRIX_FP8, c->n_heads * c->head_dim, q, &l->wq_b, e) == -1 ||
        make(b, MATRIX_FP8, c->head_dim, d, &l->wkv, e) == -1 ||
        make(b, MATRIX_FP8, d, c->o_groups * c->o_lora_rank, &l->wo_b, e) == -1)
        return -1;
    for (int g = 0; g < c->o_groups; g++)
        if (make(b, MATRIX_FP8, c->o_lora_rank, in, &l->wo_a[g], e) == -1)
            return -1;
    if (l->ratio != 0 && make_compressor(b, l->ratio, c->head_dim, &l->comp, e) == -1)
        return -1;
    if (!l->indexed)
        return 0;
    if (make_compressor(b, l->ratio, c->index_head_dim, &l->index_comp, e) == -1 ||
        make(b, MATRIX_FP8, c->index_n_heads * c->index_head_dim, q, &l->index_wq_b, e) ==
            -1)
        return -1;
    return make(b, MATRIX_BF16, c->index_n_heads, d, &l->index_weights, e);
}

static int
make_experts(struct backend *b, struct layer *l, struct err *e)
{
    const struct model_config *c = &b->c;
    const int d = c->hidden, n = c->moe_inter;
    struct expert *x;

    if (make(b, MATRIX_BF16, c->n_experts, d, &l->gate, e) == -1 ||
        make_vector(b, c->n_experts, 0.01f, &l->gate_bias, e) == -1 ||
        make(b, MATRIX_FP8, n, d, &l->shared.w1, e) == -1 ||
        make(b, MATRIX_FP8, n, d, &l->shared.w3, e) == -1 ||
        make(b, MATRIX_FP8, d, n, &l->shared.w2, e) == -1)
        return -1;
    x = l->experts = mem_get(b, (size_t)c->n_experts, sizeof *x, e);
    if (x == NULL || make(b, MATRIX_FP4, n, d, &x[0].w1, e) == -1 ||
        make(b, MATRIX_FP4, n, d, &x[0].w3, e) == -1 ||
        make(b, MATRIX_FP4, d, n, &x[0].w2, e) == -1)
        return -1;
    for (int i = 1; i < c->n_experts; i++)
        if (make_like(b, &x[0].w1, (size_t)i, &x[i].w1, e) == -1 ||
            make_like(b, &x[0].w3, (size_t)i, &x[i].w3, e) == -1 ||
            make_like(b, &x[0].w2, (size_t)i, &x[i].w2, e) == -1)
            return -1;
    return 0;
}

static int
make_model(struct backend *b, const void *arg, bool draft, struct err *e)
{
    const struct model_config *c = &b->c;
    const int n_mix = c->hc_mult * (2 + c->hc_mult);
    struct matrix embed;
    struct layer *l;

    (void)arg;
    (void)draft;
    if (make(b, MATRIX_BF16, c->vocab_size, c->hidden, &embed, e) == -1 ||
        make(b, MATRIX_BF16, c->vocab_size, c->hidden, &b->net.head, e) == -1 ||
        make_vector(b, c->hidden, 1.0f, &b->net.norm, e) == -1 ||
        make_mixer(b, c->hc_mult, &b->net.hc_head, e) == -1)
        return -1;
    b->net.embed = embed.w;
    l = b->net.layers = mem_get(b, 1, sizeof *l, e);
    if (l == NULL)
        return -1;
    l->ratio = c->ratio[0];
    l->indexed = l->ratio == MODEL_CSA_RATIO;
    if (make_mixer(b, n_mix, &l->hc_attn, e) == -1 ||
        make_mixer(b, n_mix, &l->hc_ffn, e) == -1 ||
        make_vector(b, c->hidden, 1.0f, &l->attn_norm, e) == -1 ||
        make_vector(b, c->hidden, 1.0f, &l->ffn_norm, e) == -1 ||
        make_attention(b, l, e) == -1)
        return -1;
    return make_experts(b, l, e);
}

struct backend *
flash_layer(int ratio, const char *isa, int threads, struct err *e)
{
    const struct backend_opts o = {.isa = isa, .n_threads = threads, .max_seqs = 1};
    struct model_config c;
    char text[sizeof flash + 8];

    snprintf(text, sizeof text, flash, ratio);
    if (model_config_parse(&c, text, strlen(text), e) == -1)
        return NULL;
    return cpu_open_with(&c, &o, make_model, NULL, e);
}
