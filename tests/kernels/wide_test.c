/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One layer of each kind in the published Flash's own widths (4096, 64 heads of 512, 64 index
 * heads of 128, top-512), except that it has 8 experts instead of 256: random weights, and a
 * sequence of 2,300 tokens that is random rows, so that the indexer has to choose. The plain
 * operations against the fastest on a few tokens, and those against themselves in other steps.
 *
 * Tokens come out anywhere between 1e-8 and 3e-2 from plain C, in every table: a rounding that
 * falls to the other side early moves FP8 steps (6e-2 of a number) all the way down.
 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/fp.h"
#include "gpu/cpu/cpu.h"
#include "gpu/cpu/kvrow.h"
#include "tests/kernels/golden.h"
#include "tests/test.h"

enum { LEN = 2300, FEW = 3, MANY = 40, VOCAB = 64 };

static uint64_t seed = 88172645463325252u;

static uint32_t
random32(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (uint32_t)(seed >> 32);
}

static float
random_float(float most)
{
    return ((float)random32() / 2147483648.0f - 1.0f) * most;
}

static void *
get(struct backend *b, size_t n, size_t size)
{
    struct err e = {0};
    void *p = mem_get(b, n, size, &e);

    if (p == NULL)
        fail_msg("%s", e.text);
    return p;
}

static const float *
vector(struct backend *b, int n, float base, float spread)
{
    float *v = get(b, (size_t)n, sizeof *v);

    for (int i = 0; i < n; i++)
        v[i] = bf16_round(base + random_float(spread));
    return v;
}

static void
random_bytes(uint8_t *p, size_t n, uint32_t mask)
{
    for (size_t i = 0; i < n; i++)
        p[i] = (uint8_t)(random32() & mask);
}

/* Outputs about as large as inputs. 0xbf keeps e4m3 codes below 2 and clear of NaN. */
static struct matrix
matrix(struct backend *b, enum matrix_kind kind, int out, int in)
{
    struct matrix m = {.kind = kind, .out = out, .in = in};
    const size_t n = (size_t)out * (size_t)in;
    int shift = 0;

    while (1 << 2 * (shift + 1) <= in)
        shift++;
    if (kind == MATRIX_FP8 || kind == MATRIX_FP4) {
        const bool fp8 = kind == MATRIX_FP8;
        const size_t scales = fp8 ? ((size_t)out + 127) / 128 * (((size_t)in + 127) / 128)
                                  : (size_t)out * (size_t)in / 32;
        uint8_t *w = get(b, fp8 ? n : n / 2, 1), *s = get(b, scales, 1);

        random_bytes(w, fp8 ? n : n / 2, fp8 ? 0xbf : 0xff);
        for (size_t i = 0; i < scales; i++)
            s[i] = (uint8_t)(126 - shift - (fp8 ? 0 : 1) + (int)(random32() & 1));
        m.w = w;
        m.scale = s;
    } else if (kind == MATRIX_BF16) {
        uint16_t *w = get(b, n, sizeof *w);

        for (size_t i = 0; i < n; i++)
            w[i] = f32_to_bf16(random_float(1.5f / (float)(1 << shift)));
        m.w = w;
    } else {
        float *w = get(b, n, sizeof *w);

        for (size_t i = 0; i < n; i++)
            w[i] = random_float(1.5f / (float)(1 << shift));
        m.w = w;
    }
    return m;
}

static struct compressor
compressor(struct backend *b, int ratio, int dim)
{
    const bool overlap = ratio == MODEL_CSA_RATIO;
    const int width = overlap ? 2 * dim : dim;

    return (struct compressor){.ratio = ratio,
                               .dim = dim,
                               .overlap = overlap,
                               .width = width,
                               .wkv = matrix(b, MATRIX_BF16, width, b->c.hidden),
                               .wgate = matrix(b, MATRIX_BF16, width, b->c.hidden),
                               .ape = vector(b, ratio * width, 0, 1),
                               .norm = vector(b, dim, 1, 0.2f)};
}

static struct mixer
mixer(struct backend *b)
{
    const int hc = b->c.hc_mult, n = 2 * hc + hc * hc;

    return (struct mixer){.fn = matrix(b, MATRIX_F32, n, hc * b->c.hidden),
                          .base = vector(b, n, 0, 1),
                          .scale = vector(b, 3, 0.5f, 0.3f)};
}

static struct expert
expert(struct backend *b, enum matrix_kind kind)
{
    const int d = b->c.hidden, i = b->c.moe_inter;

    return (struct expert){.w1 = matrix(b, kind, i, d),
                           .w2 = matrix(b, kind, d, i),
                           .w3 = matrix(b, kind, i, d)};
}

static void
make_layer(struct backend *b, struct layer *l, int ratio)
{
    const struct model_config *c = &b->c;
    const int d = c->hidden, q = c->q_lora_rank;

    *l = (struct layer){.ratio = ratio,
                        .indexed = ratio == MODEL_CSA_RATIO,
                        .hc_attn = mixer(b),
                        .hc_ffn = mixer(b),
                        .attn_norm = vector(b, d, 1, 0.2f),
                        .ffn_norm = vector(b, d, 1, 0.2f),
                        .q_norm = vector(b, q, 1, 0.2f),
                        .kv_norm = vector(b, c->head_dim, 1, 0.2f),
                        .sink = vector(b, c->n_heads, 0, 1),
                        .wq_a = matrix(b, MATRIX_FP8, q, d),
                        .wq_b = matrix(b, MATRIX_FP8, c->n_heads * c->head_dim, q),
                        .wkv = matrix(b, MATRIX_FP8, c->head_dim, d),
                        .wo_b = matrix(b, MATRIX_FP8, d, c->o_groups * c->o_lora_rank),
                        .gate = matrix(b, MATRIX_BF16, c->n_experts, d),
                        .gate_bias = vector(b, c->n_experts, 0, 0.1f),
                        .shared = expert(b, MATRIX_FP8)};
    l->wo_a = get(b, (size_t)c->o_groups, sizeof *l->wo_a);
    for (int g = 0; g < c->o_groups; g++)
        l->wo_a[g] =
            matrix(b, MATRIX_FP8, c->o_lora_rank, c->n_heads / c->o_groups * c->head_dim);
    l->experts = get(b, (size_t)c->n_experts, sizeof *l->experts);
    for (int x = 0; x < c->n_experts; x++)
        l->experts[x] = expert(b, MATRIX_FP4);
    if (ratio != 0)
        l->comp = compressor(b, ratio, c->head_dim);
    if (l->indexed) {
        l->index_comp = compressor(b, ratio, c->index_head_dim);
        l->index_wq_b = matrix(b, MATRIX_FP8, c->index_n_heads * c->index_head_dim, q);
        l->index_weights = matrix(b, MATRIX_BF16, c->index_n_heads, d);
    }
}

static void
pack(struct backend *b, struct matrix *m)
{
    const size_t n = m->w != NULL ? b->ops->packed_bytes(m) : 0;

    m->packed = NULL;
    if (n > 0) {
        m->packed = get(b, n, 1);
        b->ops->pack(m, m->packed);
    }
}

static void
use(struct backend *b, const char *isa)
{
    struct layer *l = &b->net.layers[0];
    struct matrix *all[] = {&l->hc_attn.fn,
                            &l->hc_ffn.fn,
                            &l->wq_a,
                            &l->wq_b,
                            &l->wkv,
                            &l->wo_b,
                            &l->comp.wkv,
                            &l->comp.wgate,
                            &l->index_comp.wkv,
                            &l->index_comp.wgate,
                            &l->index_wq_b,
                            &l->index_weights,
                            &l->gate,
                            &l->shared.w1,
                            &l->shared.w2,
                            &l->shared.w3};
    struct err e = {0};

    b->ops = cpu_ops_find(isa, &e);
    if (b->ops == NULL)
        fail_msg("%s", e.text);
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        pack(b, all[i]);
    for (int g = 0; g < b->c.o_groups; g++)
        pack(b, &l->wo_a[g]);
    for (int x = 0; x < b->c.n_experts; x++) {
        pack(b, &l->experts[x].w1);
        pack(b, &l->experts[x].w2);
        pack(b, &l->experts[x].w3);
    }
}

static struct backend *
make_backend(int ratio)
{
    struct backend *b = calloc(1, sizeof *b);
    struct err e = {0};

    assert_non_null(b);
    b->c = (struct model_config){.vocab_size = VOCAB,
                                 .hidden = 4096,
                                 .n_layers = 1,
                                 .n_heads = 64,
                                 .head_dim = 512,
                                 .rope_dim = 64,
                                 .q_lora_rank = 1024,
                                 .o_groups = 8,
                                 .o_lora_rank = 1024,
                                 .window = 128,
                                 .index_n_heads = 64,
                                 .index_head_dim = 128,
                                 .index_topk = 512,
                                 .n_experts = 8,
                                 .n_experts_used = 6,
                                 .moe_inter = 2048,
                                 .ratio = {ratio},
                                 .hc_mult = 4,
                                 .hc_sinkhorn_iters = 20,
                                 .quantized = true,
                                 .fp4_experts = true,
                                 .max_positions = 1 << 20,
                                 .rope_theta = 10000,
                                 .compress_rope_theta = 160000,
                                 .yarn_factor = 16,
                                 .yarn_beta_fast = 32,
                                 .yarn_beta_slow = 1,
                                 .yarn_original_positions = 65536,
                                 .route_scale = 1.5f,
                                 .swiglu_limit = 10,
                                 .rms_eps = 1e-6f,
                                 .hc_eps = 1e-6f};
    b->max_seqs = 2;
    b->kv_limit = 1 << 30;
    b->net.layers = get(b, 1, sizeof *b->net.layers);
    make_layer(b, b->net.layers, ratio);
    for (int i = 0; i < 2; i++) {
        b->freq[i] = get(b, 32, sizeof(float));
        rope_frequencies(&b->c, i == 1, b->freq[i]);
    }
    network_place(&b->net, &b->c, b->fmt, ALIGN, &b->at);
    b->seqs = get(b, b->max_seqs, sizeof *b->seqs);
    assert_int_equal(scratch_plan(b, &e), 0);
    return b;
}

static void
random_row(struct backend *b, uint8_t *row)
{
    uint16_t x[512];

    for (int i = 0; i < 512; i++)
        x[i] = f32_to_bf16(random_float(1.7f));
    kv_row_pack(KV_PACKED, x, 512, b->c.rope_dim, row);
}

static void
random_raw(struct seq *q, const struct compressor *k)
{
    float *ring = (float *)(void *)(q->rings + k->ring_at);

    for (int i = 0; i < k->slots * 2 * k->width; i++)
        ring[i] = random_float(1.7f);
}

/* Sequence 0, as if LEN tokens had gone through it. */
static void
make_past(struct backend *b)
{
    const struct layer *l = &b->net.layers[0];
    struct step_seq share = {.n_tokens = LEN};
    const struct step step = {.n_seqs = 1, .seqs = &share};
    struct seq *q = &b->seqs[0];
    struct err e = {0};

    assert_int_equal(state_open(b, 0, &e), 0);
    assert_int_equal(state_reserve(b, &step, &e), 0);
    q->len = q->high = LEN;
    for (int i = 0; i < b->at.ring_slots; i++)
        random_row(b, q->rings + l->ring_at + (size_t)i * b->at.row);
    if (l->ratio == 0)
        return;
    random_raw(q, &l->comp);
    for (uint64_t j = 0; j < LEN / (uint64_t)l->ratio; j++)
        random_row(b, page_row(q, &l->comp, j));
    if (!l->indexed)
        return;
    random_raw(q, &l->index_comp);
    for (uint64_t j = 0; j < LEN / (uint64_t)l->ratio; j++) {
        uint8_t *row = page_row(q, &l->index_comp, j);

        random_bytes(row, 64, 0xff);
        memset(row + 64, 127, 4);
    }
}

/* A copy of the past, and n tokens of x bf16 [n][hc][d] in steps of at most `most`. */
static void
run_layer(struct backend *b, const uint16_t *x, int n, int most, uint16_t *out)
{
    const size_t width = (size_t)b->c.hc_mult * (size_t)b->c.hidden;
    static const uint32_t token[MANY];
    struct err e = {0};

    state_close(b, 1);
    assert_int_equal(state_fork(b, 0, 1, &e), 0);
    for (int at = 0; at < n; at += most) {
        const int k = n - at < most ? n - at : most;
        struct seq *q = &b->seqs[1];
        struct step_seq share = {.seq = 1, .n_tokens = (uint32_t)k};
        const struct step step = {.n_seqs = 1, .seqs = &share};
        const struct span span = {.seq = q, .n = k, .start = q->len};
        const struct rows rows = {.n = k,
                                  .n_spans = 1,
                                  .spans = &span,
                                  .token = token,
                                  .pos = b->s.pos,
                                  .cs = {b->s.cs[0], b->s.cs[1]}};

        assert_int_equal(state_reserve(b, &step, &e), 0);
        for (int i = 0; i < k; i++)
            b->s.pos[i] = q->len + (uint64_t)i;
        for (int i = 0; i < 2; i++)
            rope_table(b->freq[i], 32, b->s.pos, k, b->s.cs[i]);
        memcpy(b->s.x, x + (size_t)at * width, (size_t)k * width * sizeof *x);
        layer_forward(b, &b->net.layers[0], &rows, b->s.x);
        memcpy(out + (size_t)at * width, b->s.x, (size_t)k * width * sizeof *x);
        q->len += (uint64_t)k;
        q->high = q->len;
    }
}

static double
gap(const uint16_t *got, const uint16_t *want, size_t n)
{
    float *a = calloc(2 * n, sizeof *a);
    double g;

    assert_non_null(a);
    for (size_t i = 0; i < n; i++) {
        a[i] = bf16_to_f32(got[i]);
        a[n + i] = bf16_to_f32(want[i]);
    }
    g = row_gap(a, a + n, n);
    free(a);
    return g;
}

static void
one_kind(int ratio)
{
    struct backend *b = make_backend(ratio);
    const size_t width = (size_t)b->c.hc_mult * (size_t)b->c.hidden;
    uint16_t *x = get(b, MANY * width, sizeof *x), *plain = get(b, FEW * width, sizeof *x);
    uint16_t *fast = get(b, MANY * width, sizeof *x),
             *cut = get(b, MANY * width, sizeof *x);

    for (size_t i = 0; i < MANY * width; i++)
        x[i] = f32_to_bf16(random_float(1.7f));
    make_past(b);
    use(b, "reference");
    run_layer(b, x, FEW, FEW, plain);
    use(b, "auto");
    run_layer(b, x, MANY, MANY, fast);
    for (int i = 0; i < FEW; i++) {
        const double g = gap(fast + (size_t)i * width, plain + (size_t)i * width, width);

        print_message(
            "# ratio %d, token %d: %s from plain C by %.2e, layer moves by %.2f\n", ratio,
            i, b->ops->name, g,
            gap(x + (size_t)i * width, plain + (size_t)i * width, width));
        assert_true(g <= 5e-2);
    }
    run_layer(b, x, MANY, 1, cut);
    assert_memory_equal(cut, fast, MANY * width * sizeof *x);
    run_layer(b, x, MANY, 7, cut);
    assert_memory_equal(cut, fast, MANY * width * sizeof *x);

    /* Control: the lowest bit of the last number of the row just before these tokens. */
    b->seqs[0]
        .rings[b->net.layers[0].ring_at + (size_t)(LEN - 1) % b->at.ring_slots * b->at.row +
               (size_t)(b->c.head_dim + b->c.rope_dim - 2)] ^= 1;
    run_layer(b, x, MANY, MANY, cut);
    assert_memory_not_equal(cut, fast, MANY * width * sizeof *x);
    state_close(b, 0);
    state_close(b, 1);
    scratch_free(b);
    for (size_t i = 0; i < b->mem.n; i++)
        free(b->mem.p[i]);
    free(b->mem.p);
    free(b);
}

static void
window_only(void **state)
{
    (void)state;
    one_kind(0);
}

static void
compressed_4_with_indexer(void **state)
{
    (void)state;
    one_kind(4);
}

static void
compressed_128(void **state)
{
    (void)state;
    one_kind(128);
}

int
main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(window_only),
        cmocka_unit_test(compressed_4_with_indexer),
        cmocka_unit_test(compressed_128),
    };

    return cmocka_run_group_tests_name("a layer of Flash's width", tests, NULL, NULL);
}
