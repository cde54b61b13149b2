/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The CPU backend against the public reference's answers on three tiny models.
 *
 * Each layer alone: row i of layer_states goes in, row i + 1 must come out, so errors do not
 * add up. Most rows come out bit for bit; where an f32 sum rounds to the other side, a bf16 or
 * FP8 step follows. A choice that flips (top-k, expert) changes a row by far more than that:
 * rows with a gap above FLIP count as flips, and at most MAX_FLIPS of 300 may be. The median is
 * over the others.
 *
 * Whole model: gaps end to end are those of any two implementations that do not round alike
 * everywhere, because quantised activations amplify the first difference; so the bound is the
 * recorded distance of the reference from itself on another device, times 1.15 (relative gap)
 * and 1.3 (KL). That floor was taken over all positions for the prefill and over the last 51
 * for decode; the early rows of a text differ less. So whole prefills are compared over all
 * positions (the logits of the golden states of the last layer; that the head turns these
 * into the golden logits is checked first) with the prefill's floor, and rows late in the text,
 * recorded prefill rows and draft rows among them, with the decode floor.
 */
#include "config.h"

#include "tests/kernels/acceptance.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/fp.h"
#include "gpu/cpu/cpu.h"
#include "tests/test.h"

static const double FLIP = 3e-2, MAX_MEDIAN = 5e-3, REL_FACTOR = 1.15, KL_FACTOR = 1.3;

enum { MAX_FLIPS = 6 };

static void
reopen(struct backend *b)
{
    struct err e = {0};

    golden_ops->seq_close(b, 0);
    assert_int_equal(golden_ops->seq_open(b, 0, &e), 0);
}

/* Layer l on all rows of x bf16 [n][hc][d], as the first n positions of a sequence. */
static void
run_layer(struct accepted *f, int l, uint16_t *x)
{
    struct backend *b = f->cpu;
    const int n = f->g.n_tokens, pairs = f->g.c.rope_dim / 2;
    struct step_seq share = {.n_tokens = (uint32_t)n, .tokens = f->g.tokens};
    const struct step step = {.n_seqs = 1, .seqs = &share};
    const struct span span = {.seq = &b->seqs[0], .n = n};
    const struct rows rows = {.n = n,
                              .n_spans = 1,
                              .spans = &span,
                              .token = f->g.tokens,
                              .pos = b->s.pos,
                              .cs = {b->s.cs[0], b->s.cs[1]}};
    struct err e = {0};

    reopen(b);
    assert_int_equal(state_reserve(b, &step, &e), 0);
    for (int i = 0; i < n; i++)
        b->s.pos[i] = (uint64_t)i;
    for (int k = 0; k < 2; k++)
        rope_table(b->freq[k], pairs, b->s.pos, n, b->s.cs[k]);
    layer_forward(b, &b->net.layers[l], &rows, x);
}

static double
state_gap(const uint16_t *got, const uint16_t *want, size_t n)
{
    float *a = calloc(2 * n, sizeof *a);
    double gap;

    assert_non_null(a);
    for (size_t i = 0; i < n; i++) {
        a[i] = bf16_to_f32(got[i]);
        a[n + i] = bf16_to_f32(want[i]);
    }
    gap = row_gap(a, a + n, n);
    free(a);
    return gap;
}

/* got bf16 [n][hc][d]: what layer l makes of the golden rows in front of it. */
bool
layer_passes(const struct accepted *f, int l, const uint16_t *got)
{
    const size_t width = (size_t)f->g.c.hc_mult * f->g.c.hidden;
    const size_t rows = (size_t)f->g.n_tokens;
    const struct tensor *t = safetensors_find(f->g.answers, "layer_states");
    const uint16_t *want = (const uint16_t *)t->data + (size_t)(l + 1) * rows * width;
    double gap[MAX_STEP_TOKENS], m;
    int n = 0, flips = 0, same = 0;

    for (size_t i = 0; i < rows; i++) {
        const double x = state_gap(got + i * width, want + i * width, width);

        same += x == 0.0;
        if (x > FLIP)
            flips++;
        else
            gap[n++] = x;
    }
    m = median(gap, n);
    print_message("# %s %s layer %d (ratio %d): median %.2e, 90%% below %.2e, %d of %zu "
                  "bit for bit, %d flips\n",
                  f->g.name, f->isa, l, f->g.c.ratio[l], m, gap[n * 9 / 10], same, rows,
                  flips);
    return m <= MAX_MEDIAN && flips <= MAX_FLIPS;
}

bool
layers_pass(struct accepted *f)
{
    const struct tensor *t = safetensors_find(f->g.answers, "layer_states");
    const size_t n = (size_t)f->g.n_tokens * (size_t)f->g.c.hc_mult * (size_t)f->g.c.hidden;
    bool ok = true;

    assert_non_null(t);
    for (int l = 0; l < f->g.c.n_layers; l++) {
        memcpy(f->cpu->s.x, (const uint16_t *)t->data + (size_t)l * n, n * 2);
        run_layer(f, l, f->cpu->s.x);
        ok &= layer_passes(f, l, f->cpu->s.x);
    }
    return ok;
}

static bool
check(const struct accepted *f, const char *what, const float *got, const float *want,
      int rows, enum golden_floor floor)
{
    struct gaps x;

    logit_gaps(got, want, rows, f->g.c.vocab_size, &x);
    print_message(
        "# %s %s %s: relative %.2e (%.2f of the floor), KL %.2e (%.2f), same best "
        "token %.3f of %d rows\n",
        f->g.name, f->isa, what, x.rel_median, x.rel_median / f->g.floor_rel[floor],
        x.kl_median, x.kl_median / f->g.floor_kl[floor], x.top1, rows);
    return x.rel_median <= REL_FACTOR * f->g.floor_rel[floor] &&
           x.kl_median <= KL_FACTOR * f->g.floor_kl[floor];
}

static bool
is_avx512(const struct accepted *f)
{
    struct backend_info info;

    golden_ops->info(f->b, &info);
    return strncmp(info.detail, "avx512", 6) == 0;
}

/* f32 [n][vocab]: the head on the golden states behind the last layer. */
static float *
golden_logits(struct accepted *f)
{
    const struct tensor *t = safetensors_find(f->g.answers, "layer_states");
    const size_t n = (size_t)f->g.n_tokens, vocab = (size_t)f->g.c.vocab_size;
    const size_t width = (size_t)f->g.c.hc_mult * f->g.c.hidden;
    float *all = calloc(n * vocab, sizeof *all), *out[MAX_STEP_TOKENS];
    const float *want;
    struct gaps x;
    int rows;

    assert_non_null(all);
    for (size_t i = 0; i < n; i++)
        out[i] = all + i * vocab;
    head_forward(f->cpu, &f->cpu->net.hc_head, f->cpu->net.norm,
                 (const uint16_t *)t->data + (size_t)f->g.c.n_layers * n * width, (int)n,
                 out);
    want = golden_rows(&f->g, "prefill_logits", &rows);
    assert_non_null(want);
    logit_gaps(all + (n - (size_t)rows) * vocab, want, rows, (int)vocab, &x);
    assert_true(x.rel_median < 1e-5);
    return all;
}

bool
prefill_and_draft_pass(struct accepted *f)
{
    float *got, *draft, *all;
    const float *want;
    size_t n, vocab;
    int rows;
    bool ok;

    n = (size_t)f->g.n_tokens;
    vocab = (size_t)f->g.c.vocab_size;
    got = calloc(n * vocab, sizeof *got);
    draft = calloc(n * vocab, sizeof *draft);
    assert_non_null(got);
    assert_non_null(draft);
    all = golden_logits(f);
    reopen(f->b);
    run_tokens(f->b, 0, f->g.tokens, (int)n, (int)n, got, draft);

    ok = check(f, "prefill, all positions", got, all, (int)n, FLOOR_PREFILL);
    want = golden_rows(&f->g, "prefill_logits", &rows);
    /* Late rows drift more than the 300 of the prefill floor; AVX-512 keeps to it all the same. */
    ok &= check(f, "prefill, last positions", got + (n - (size_t)rows) * vocab, want, rows,
                is_avx512(f) ? FLOOR_PREFILL : FLOOR_DECODE);
    want = golden_rows(&f->g, "mtp_logits", &rows);
    assert_non_null(want);
    ok &= check(f, "draft, last positions", draft + (n - (size_t)rows) * vocab, want, rows,
                FLOOR_DECODE);
    free(all);
    free(got);
    free(draft);
    return ok;
}

bool
token_by_token_pass(struct accepted *f)
{
    const float *want;
    size_t vocab;
    float *got;
    int rows;
    bool ok;

    vocab = (size_t)f->g.c.vocab_size;
    want = golden_rows(&f->g, "decode_logits", &rows);
    assert_non_null(want);
    assert_int_equal(rows, f->g.n_tokens - f->g.decode_from + 1);
    got = calloc((size_t)rows * vocab, sizeof *got);
    assert_non_null(got);
    reopen(f->b);
    run_tokens(f->b, 0, f->g.tokens, f->g.decode_from, 1, got, NULL);
    for (int i = 1; i < rows; i++)
        run_tokens(f->b, 0, f->g.tokens + f->g.decode_from + i - 1, 1, 1,
                   got + (size_t)i * vocab, NULL);
    ok = check(f, "token by token", got, want, rows, FLOOR_DECODE);
    free(got);
    return ok;
}
