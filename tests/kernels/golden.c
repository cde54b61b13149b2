/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include "tests/kernels/golden.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "tests/test.h"

enum { CACHE_BYTES = 256 << 20 }; /* more than any test here needs */

const struct backend_ops *golden_ops = &backend_cpu;

static int
by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

double
median(double *v, int n)
{
    qsort(v, (size_t)n, sizeof *v, by_value);
    return n % 2 == 1 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

double
row_gap(const float *got, const float *want, size_t n)
{
    double diff = 0, norm = 0;

    for (size_t i = 0; i < n; i++) {
        const double d = (double)got[i] - (double)want[i];

        diff += d * d;
        norm += (double)want[i] * (double)want[i];
    }
    return sqrt(diff / norm);
}

static double
log_sum_exp(const float *x, int n)
{
    float top = x[0];
    double sum = 0;

    for (int i = 1; i < n; i++)
        top = x[i] > top ? x[i] : top;
    for (int i = 0; i < n; i++)
        sum += exp((double)x[i] - (double)top);
    return (double)top + log(sum);
}

static int
arg_max(const float *x, int n)
{
    int best = 0;

    for (int i = 1; i < n; i++)
        if (x[i] > x[best])
            best = i;
    return best;
}

void
logit_gaps(const float *got, const float *want, int rows, int vocab, struct gaps *g)
{
    double *rel = calloc((size_t)rows, sizeof *rel), *kl = calloc((size_t)rows, sizeof *kl);
    int same = 0;

    assert_non_null(rel);
    assert_non_null(kl);
    for (int r = 0; r < rows; r++) {
        const float *a = got + (size_t)r * vocab, *b = want + (size_t)r * vocab;
        const double za = log_sum_exp(a, vocab), zb = log_sum_exp(b, vocab);

        rel[r] = row_gap(a, b, (size_t)vocab);
        for (int i = 0; i < vocab; i++)
            kl[r] += exp((double)b[i] - zb) * ((double)b[i] - zb - ((double)a[i] - za));
        same += arg_max(a, vocab) == arg_max(b, vocab);
    }
    *g = (struct gaps){.rel_median = median(rel, rows),
                       .kl_median = median(kl, rows),
                       .rel_max = rel[rows - 1],
                       .kl_max = kl[rows - 1],
                       .top1 = (double)same / rows,
                       .n = rows};
    free(rel);
    free(kl);
}

/* The floor is a JSON object of sentences; only these two numbers of each are needed. */
static int
read_floor(struct golden *g)
{
    static const char *const keys[] = {"decode vs prefill", "cpu vs cuda prefill",
                                       "cpu vs cuda decode"};
    const char *text = safetensors_meta(g->answers, "noise_floor");
    const char *from = safetensors_meta(g->answers, "decode_from");

    if (text == NULL || from == NULL)
        return -1;
    g->decode_from = atoi(from);
    for (int i = 0; i < 3; i++) {
        const char *at = strstr(text, keys[i]);

        at = at != NULL ? strstr(at, "rel med ") : NULL;
        if (at == NULL || sscanf(at, "rel med %lf max %*f  kl med %lf", &g->floor_rel[i],
                                 &g->floor_kl[i]) != 2)
            return -1;
    }
    return 0;
}

static int
read_answers(struct golden *g, const char *dir, struct err *e)
{
    const struct tensor *t;
    char path[4200];

    snprintf(path, sizeof path, "%s/golden.safetensors", dir);
    g->answers = safetensors_open(path, e);
    if (g->answers == NULL)
        return -1;
    t = safetensors_find(g->answers, "tokens");
    if (t == NULL || t->dtype != DTYPE_I32 || read_floor(g) == -1)
        return err_set(e, ERR_DAMAGED, 0, "%s: no tokens or no noise floor", path);
    g->n_tokens = (int)t->dims[0];
    g->tokens = calloc((size_t)g->n_tokens, sizeof *g->tokens);
    if (g->tokens == NULL)
        return err_set(e, ERR_QUOTA, 0, "no memory");
    memcpy(g->tokens, t->data, (size_t)g->n_tokens * sizeof *g->tokens);
    return 0;
}

/* flash-tiny is in the tree. */
void
golden_dir(const char *name, char *dir, size_t size)
{
    const char *top = getenv("srcdir"), *more = getenv("GOLDEN_DIR");
    char probe[4200];

    snprintf(dir, size, "%s/tests/golden/%s", top != NULL ? top : ".", name);
    snprintf(probe, sizeof probe, "%s/config.json", dir);
    if (access(probe, R_OK) == -1)
        snprintf(dir, size, "%s/%s", more != NULL ? more : "../shared/golden", name);
}

int
golden_open(struct golden *g, const char *name)
{
    struct err e = {0};
    char dir[4096], probe[4200];

    *g = (struct golden){.n_tokens = 0};
    snprintf(g->name, sizeof g->name, "%s", name);
    golden_dir(name, dir, sizeof dir);
    snprintf(probe, sizeof probe, "%s/config.json", dir);
    if (access(probe, R_OK) == -1) {
        print_message("# no %s: GOLDEN_DIR does not name a folder that has it\n", name);
        return 1;
    }
    if (model_config_load(&g->c, dir, &e) == 0)
        g->w = weights_open(dir, &g->c, NULL, NULL, &e);
    if (g->w == NULL || read_answers(g, dir, &e) == -1) {
        print_error("%s: %s\n", name, e.text);
        golden_close(g);
        return -1;
    }
    return 0;
}

void
golden_close(struct golden *g)
{
    safetensors_close(g->answers);
    weights_close(g->w);
    free(g->tokens);
    *g = (struct golden){.n_tokens = 0};
}

const float *
golden_rows(const struct golden *g, const char *name, int *rows)
{
    const struct tensor *t = safetensors_find(g->answers, name);

    if (t == NULL || t->dtype != DTYPE_F32)
        return NULL;
    *rows = (int)t->dims[0];
    return t->data;
}

struct backend *
golden_backend(const struct golden *g, const char *isa, uint32_t max_seqs)
{
    const struct backend_opts o = {
        .isa = isa, .max_seqs = max_seqs, .mtp = true, .kv_bytes = CACHE_BYTES};
    struct err e = {0};
    struct backend *b = golden_ops->open(&g->c, g->w, &o, &e);

    if (b == NULL)
        fail_msg("%s: %s", g->name, e.text);
    return b;
}

void
run_tokens(struct backend *b, uint32_t seq, const uint32_t *tokens, int n, int n_logits,
           float *logits, float *mtp)
{
    struct step_seq share = {.seq = seq,
                             .n_tokens = (uint32_t)n,
                             .tokens = tokens,
                             .n_logits = (uint32_t)n_logits,
                             .logits = logits,
                             .mtp_logits = mtp};
    const struct step s = {.n_seqs = 1, .seqs = &share};
    struct err e = {0};

    if (golden_ops->step(b, &s, &e) == -1)
        fail_msg("step: %s", e.text);
}
