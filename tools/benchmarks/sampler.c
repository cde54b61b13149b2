/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench-sampler [VOCAB]: what choosing one token costs, by its parameters, for logits that are
 * spread like a model's: most far below a few dozen likely ones. Each figure is also given in units
 * of what every sampler does at least once, libm's exp of every logit, measured in the same run.
 */
#include "config.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/err.h"
#include "model/sampler.h"
#include "tools/benchmarks/samples.h"

enum { VOCAB = 129280, ROUNDS = 300, LIKELY = 30 };

static const struct {
    const char *name;
    float temperature, top_p, min_p;
    uint32_t top_k;
} cases[] = {
    {"temperature 0", 0, 1, 0, 0},
    {"temperature 1", 1, 1, 0, 0},
    {"temperature 0.8, top-p 0.95", .8f, .95f, 0, 0},
    {"temperature 1, top-k 40", 1, 1, 0, 40},
    {"temperature 1, min-p 0.05", 1, 1, .05f, 0},
    {"temperature 5 (nearly all count)", 5, 1, 0, 0},
};

/* Twelve uniform numbers make nearly a normal one. */
static void
make_logits(float *x, uint32_t n)
{
    uint64_t z = 1;

    for (uint32_t i = 0; i < n; i++) {
        double sum = -6;

        for (int k = 0; k < 12; k++) {
            z = z * 6364136223846793005u + 1442695040888963407u;
            sum += (double)(z >> 11) * 0x1p-53;
        }
        x[i] = (float)(sum * 2.2);
    }
    for (uint32_t i = 0; i < LIKELY; i++)
        x[(i * 7919 + 13) % n] = 10 + 0.3f * (float)i;
}

static double
time_exp(const float *x, uint32_t n)
{
    struct samples s = {.n = 0};
    volatile double sink = 0;

    for (int r = 0; r < ROUNDS; r++) {
        const double from = bench_now();
        double sum = 0;

        for (uint32_t i = 0; i < n; i++)
            sum += exp((double)x[i] - 20);
        sink += sum;
        samples_add(&s, bench_now() - from);
    }
    return samples_median(&s);
}

static int
time_case(struct sampler *sampler, const float *x, int i, double unit, struct err *e)
{
    struct samples s = {.n = 0};
    struct sample_params p;
    struct sample_choice c;

    sample_params_init(&p);
    p.temperature = cases[i].temperature;
    p.top_p = cases[i].top_p;
    p.min_p = cases[i].min_p;
    p.top_k = cases[i].top_k;
    for (uint64_t r = 0; r < ROUNDS; r++) {
        const double from = bench_now();

        if (sampler_choose(sampler, &p, x, NULL, 0, r, 0, &c, e) == -1)
            return -1;
        samples_add(&s, bench_now() - from);
    }
    printf("%-34s %7.0f us  %5.2f of one pass of libm's exp\n", cases[i].name,
           samples_median(&s) * 1e6, samples_median(&s) / unit);
    return 0;
}

int
main(int argc, char **argv)
{
    const uint32_t n = argc > 1 ? (uint32_t)strtoul(argv[1], NULL, 10) : VOCAB;
    struct err e = {0};
    struct sampler *s = sampler_new(n, &e);
    float *x = s != NULL ? malloc(n * sizeof *x) : NULL;
    double unit;
    int rc = x != NULL ? 0 : -1;

    if (rc == 0) {
        make_logits(x, n);
        unit = time_exp(x, n);
        printf("%u logits; one pass of libm's exp: %.0f us; medians of %d\n", n, unit * 1e6,
               ROUNDS);
        for (int i = 0; i < (int)(sizeof cases / sizeof *cases) && rc == 0; i++)
            rc = time_case(s, x, i, unit, &e);
    }
    if (rc == -1)
        fprintf(stderr, "bench-sampler: %s\n", e.text[0] != '\0' ? e.text : "no memory");
    free(x);
    sampler_free(s);
    return rc == 0 ? 0 : 1;
}
