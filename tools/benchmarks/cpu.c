/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench-cpu: how near the CPU backend comes to what this machine can do. Decode of one sequence
 * is a share of the time that reading its bytes takes at the measured bandwidth; prefill one of
 * the time that its multiplications take at OpenBLAS's measured rate. All rates are measured in
 * the same run, because a share of another day's rate means nothing.
 */
#include "config.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "gpu/cpu/pool.h"
#include "model/weights.h"
#include "tools/benchmarks/bench.h"

struct options {
    const char *isa, *model;
    int threads, rounds, decode;
    uint64_t context;
    bool layers;
};

struct machine {
    double bandwidth, gemm;
};

static const char usage[] =
    "usage: tools/bench cpu [-i ISA] [-t THREADS] [-r ROUNDS] [-c CONTEXT] [-d DECODE] [-m] \n"
    "  -c  tokens of prefill before decoding (2048; Flash-shaped layers twice that)\n"
    "  -d  tokens decoded a round (64)   -r rounds (5)   -m  only the model, no Flash layers\n"
    "  MODEL_DIR names the model (models/fathom-mini)\n";

struct result {
    struct samples decode, decode_share;   /* tokens/s; of the bandwidth bound */
    struct samples prefill, prefill_share; /* tokens/s; of the GEMM rate */
};

static int
step(const struct backend_ops *ops, struct backend *b, const uint32_t *tokens, uint32_t n,
     float *logits, struct err *e)
{
    struct step_seq q = {.seq = 0,
                         .n_tokens = n,
                         .tokens = tokens,
                         .n_logits = logits != NULL,
                         .logits = logits};

    return ops->step(b, &(struct step){.n_seqs = 1, .seqs = &q}, e);
}

/* One sequence: a prefill in the largest steps, then single tokens. */
static int
round_trip(struct backend *b, const struct options *o, uint64_t context, bool head,
           const struct machine *m, struct result *r, struct err *e)
{
    const struct backend_ops *ops = &backend_cpu;
    float *logits = head ? malloc((size_t)b->c.vocab_size * sizeof *logits) : NULL;
    uint32_t tokens[MAX_STEP_TOKENS];
    uint64_t seed = 1;
    int rc = ops->seq_open(b, 0, e);

    for (uint64_t pos = 0; rc == 0 && pos < context + (uint64_t)o->decode;) {
        const bool decode = pos >= context;
        const uint64_t left = context - pos;
        const uint32_t n = decode                   ? 1
                           : left < MAX_STEP_TOKENS ? (uint32_t)left
                                                    : MAX_STEP_TOKENS;
        double t, flops = 0.0, bytes = 0.0;

        for (uint32_t i = 0; i < n; i++) {
            struct cost c;

            seed = seed * 6364136223846793005ull + 1442695040888963407ull;
            tokens[i] = (uint32_t)((seed >> 33) % (uint64_t)b->c.vocab_size);
            token_cost(b, pos + i, false, &c);
            flops += c.flops;
            token_cost(b, pos + i, head, &c);
            bytes = c.bytes;
        }
        t = bench_now();
        rc = step(ops, b, tokens, n, decode ? logits : NULL, e);
        t = bench_now() - t;
        pos += n;
        if (decode) {
            samples_add(&r->decode, 1.0 / t);
            samples_add(&r->decode_share, bytes / t / m->bandwidth);
        } else {
            samples_add(&r->prefill, n / t);
            samples_add(&r->prefill_share, m->gemm > 0.0 ? flops / t / m->gemm : 0.0);
        }
    }
    if (rc == 0)
        ops->seq_close(b, 0);
    free(logits);
    return rc;
}

static int
run(const char *name, struct backend *b, const struct options *o, uint64_t context,
    bool head, const struct machine *m, struct err *e)
{
    static struct result r;
    struct cost c;

    r = (struct result){.decode.n = 0};
    for (int i = 0; i < o->rounds; i++)
        if (round_trip(b, o, context, head, m, &r, e) == -1)
            return -1;
    token_cost(b, context, head, &c);
    printf("%-22s %8.1f %8.1f %6.0f%% %5.0f%% %9.0f %7.0f %6.0f%% %5.0f%%\n", name,
           c.bytes / 1e6, samples_median(&r.decode),
           100.0 * samples_median(&r.decode_share), 100.0 * samples_max(&r.decode_share),
           samples_median(&r.prefill),
           samples_median(&r.prefill) * samples_median(&r.prefill_share) > 0.0
               ? samples_median(&r.prefill_share) * m->gemm / 1e9
               : 0.0,
           100.0 * samples_median(&r.prefill_share), 100.0 * samples_max(&r.prefill_share));
    fflush(stdout);
    return 0;
}

static int
bench_model(const struct options *o, const struct machine *m, struct err *e)
{
    const struct backend_opts bo = {.isa = o->isa, .n_threads = o->threads, .max_seqs = 1};
    struct model_config c;
    struct weights *w;
    struct backend *b = NULL;
    int rc = -1;

    if (model_config_load(&c, o->model, e) == -1)
        return -1;
    w = weights_open(o->model, &c, NULL, NULL, e);
    if (w != NULL)
        b = backend_cpu.open(&c, w, &bo, e);
    if (b != NULL)
        rc = run("the model", b, o, o->context, true, m, e);
    backend_cpu.close(b);
    weights_close(w);
    return rc;
}

static int
bench_layers(const struct options *o, const struct machine *m, struct err *e)
{
    static const struct {
        const char *name;
        int ratio;
    } kinds[] = {
        {"Flash layer, window", 0}, {"Flash layer, CSA", 4}, {"Flash layer, HCA", 128}};

    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        struct backend *b = flash_layer(kinds[i].ratio, o->isa, o->threads, e);
        int rc;

        if (b == NULL)
            return -1;
        rc = run(kinds[i].name, b, o, 2 * o->context, false, m, e);
        backend_cpu.close(b);
        if (rc == -1)
            return -1;
    }
    return 0;
}

static int
bench(const char *self, struct options *o, struct err *e)
{
    struct samples bandwidth = {.n = 0};
    struct machine m;
    char kernels[64];

    pool_set_threads(o->threads);
    if (measure_bandwidth(&bandwidth) == -1)
        return err_set(e, ERR_QUOTA, 0, "no memory to measure the bandwidth with");
    m.bandwidth = samples_max(&bandwidth);
    m.gemm = measure_gemm(self, kernels, sizeof kernels);
    printf(
        "%d threads; memory reads %.1f GB/s (median %.1f); OpenBLAS %.0f GFLOP/s (%s)\n\n",
        o->threads, m.bandwidth / 1e9, samples_median(&bandwidth) / 1e9, m.gemm / 1e9,
        kernels);
    printf("%-22s %8s %8s %7s %6s %9s %7s %7s %6s\n", "", "MB", "decode", "of", "",
           "prefill", "GFLOP", "of", "");
    printf("%-22s %8s %8s %7s %6s %9s %7s %7s %6s\n", "", "a token", "tok/s", "bandw.",
           "best", "tok/s", "/s", "GEMM", "best");
    fflush(stdout);
    if (bench_model(o, &m, e) == -1)
        return -1;
    return o->layers ? bench_layers(o, &m, e) : 0;
}

static int
number(const char *text, uint64_t max, uint64_t *out)
{
    char *end;

    *out = strtoull(text, &end, 10);
    return *text >= '0' && *text <= '9' && *end == '\0' && *out >= 1 && *out <= max ? 0
                                                                                    : -1;
}

int
main(int argc, char **argv)
{
    const char *model = getenv("MODEL_DIR");
    struct options o = {.isa = "auto",
                        .model = model != NULL ? model : "models/fathom-mini",
                        .threads = pool_processors(),
                        .rounds = 5,
                        .decode = 64,
                        .context = 2048,
                        .layers = true};
    struct err e = {0};
    char self[1024];
    ssize_t len;
    uint64_t v = 1;
    int opt;

    if (argc == 2 && strcmp(argv[1], "--gemm") == 0)
        return gemm_child();
    while ((opt = getopt(argc, argv, "i:t:r:c:d:m")) != -1) {
        const bool bad = strchr("trcd", opt) != NULL &&
                         number(optarg, opt == 'c' ? 1 << 19 : 1024, &v) == -1;

        switch (bad ? '?' : opt) {
        case 'i': o.isa = optarg; break;
        case 't': o.threads = (int)v; break;
        case 'r': o.rounds = (int)v; break;
        case 'd': o.decode = (int)v; break;
        case 'c': o.context = v; break;
        case 'm': o.layers = false; break;
        default: fputs(usage, stderr); return 64;
        }
    }
    len = readlink("/proc/self/exe", self, sizeof self - 1);
    self[len > 0 ? len : 0] = '\0';
    if (bench(self, &o, &e) == -1) {
        fprintf(stderr, "bench-cpu: %s\n", e.text);
        return 1;
    }
    return 0;
}
