/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench-serve SOCKET [--contexts N,...] [--batches N,...] [--tokens N]: what a client of a daemon
 * waits for, as libfathom sees it. tools/bench-serve.sh starts one.
 *
 * One session for each context: the time to append it, then the times between the tokens of one
 * sample, the first apart. Then samples side by side, each on a connection and a fork of its own: the
 * rate of all together, counted while all are at work. Contents are random tokens that the small
 * model's tokenizer knows; ends are ignored.
 */
#include "config.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#include "lib/fathom.h"
#include "tools/benchmarks/samples.h"

enum { KNOWN = 8000, MOST_LIST = 16, MOST_BATCH = 64, WARM = 20, PIECE = 100000 };

struct list {
    unsigned long v[MOST_LIST];
    int n;
};

/* One sample under way. */
struct run {
    struct fathom *f;
    struct samples gaps; /* seconds between tokens, without the first WARM */
    double begun, first, last;
    unsigned long tokens;
    int over;
    char name[32];
};

static struct run runs[MOST_BATCH];

static void
fail(const struct fathom_error *e)
{
    fprintf(stderr, "bench-serve: %s\n", e->text);
    exit(EX_UNAVAILABLE);
}

static const struct fathom_result *
finish(struct fathom *f, uint32_t id, struct fathom_error *e)
{
    const struct fathom_result *r = fathom_finish(f, id, e);

    if (r == NULL)
        fail(e);
    return r;
}

static uint32_t
some_token(void)
{
    static uint64_t s = 0x9e3779b97f4a7c15;

    s ^= s << 13;
    s ^= s >> 7;
    s ^= s << 17;
    return 300 + (uint32_t)((s >> 20) % (KNOWN - 300));
}

/* n random tokens behind the session; seconds. */
static double
append(struct fathom *f, const char *name, unsigned long n)
{
    uint32_t *tokens = malloc(PIECE * sizeof *tokens);
    const double began = bench_now();
    struct fathom_append a;
    struct fathom_error e;

    for (unsigned long at = 0; at < n && tokens != NULL; at += a.n_tokens) {
        FATHOM_APPEND_INIT(&a);
        a.name = name;
        a.tokens = tokens;
        a.n_tokens = n - at < PIECE ? n - at : PIECE;
        for (size_t i = 0; i < a.n_tokens; i++)
            tokens[i] = some_token();
        finish(f, fathom_append(f, &a, NULL, &e), &e);
    }
    free(tokens);
    return bench_now() - began;
}

static int
on_token(void *arg, const struct fathom_token *t)
{
    struct run *r = arg;
    const double now = bench_now();

    (void)t;
    if (r->tokens++ == 0)
        r->first = now;
    else if (r->tokens > WARM)
        samples_add(&r->gaps, now - r->last);
    r->last = now;
    return 0;
}

static void
on_done(void *arg, const struct fathom_result *result, const struct fathom_error *e)
{
    struct run *r = arg;

    (void)result;
    if (e != NULL)
        fail(e);
    r->over = 1;
}

static void
begin(struct run *r, unsigned long tokens, double temperature)
{
    const struct fathom_watch w = {
        .struct_size = sizeof w, .arg = r, .token = on_token, .done = on_done};
    struct fathom_sample a;
    struct fathom_error e;

    FATHOM_SAMPLE_INIT(&a);
    a.name = r->name;
    a.n = tokens;
    a.temperature = temperature;
    a.top_p = temperature > 0 ? 0.95 : a.top_p;
    a.ignore_eos = 1;
    a.has_seed = 1;
    a.seed = 1;
    r->gaps.n = 0;
    r->tokens = 0;
    r->over = 0;
    r->begun = bench_now();
    if (fathom_sample(r->f, &a, &w, &e) == 0)
        fail(&e);
}

/* Until all n samples are over. */
static void
serve(int n)
{
    struct pollfd p[MOST_BATCH];
    struct fathom_error e;

    for (int left = n; left > 0;) {
        for (int i = 0; i < n; i++)
            p[i] = (struct pollfd){.fd = fathom_fd(runs[i].f),
                                   .events = (short)fathom_events(runs[i].f)};
        if (poll(p, (nfds_t)n, -1) == -1)
            continue;
        left = n;
        for (int i = 0; i < n; i++) {
            if (p[i].revents != 0 && fathom_process(runs[i].f, &e) == -1)
                fail(&e);
            left -= runs[i].over;
        }
    }
}

static void
one_context(const char *socket, unsigned long context, unsigned long tokens)
{
    struct run *r = &runs[0];
    struct fathom_error e;
    double took;

    r->f = fathom_open(socket, &e);
    if (r->f == NULL)
        fail(&e);
    snprintf(r->name, sizeof r->name, "at-%lu", context);
    finish(r->f, fathom_new(r->f, r->name, 0, &e), &e);
    took = append(r->f, r->name, context);
    printf("context %8lu: appended in %.2f s, %.0f tokens/s\n", context, took,
           (double)context / took);
    for (int warm = 0; warm < 2; warm++) {
        const double temperature = warm;

        begin(r, tokens, temperature);
        serve(1);
        const double median = samples_median(&r->gaps);

        printf(
            "  temperature %.0f: first token after %.1f ms, then %.1f us each (p99 %.1f), "
            "%.1f tokens/s\n",
            temperature, (r->first - r->begun) * 1e3, median * 1e6,
            r->gaps.v[r->gaps.n * 99 / 100] * 1e6, 1.0 / median);
    }
    took = append(r->f, r->name, 128);
    printf("  128 tokens more: %.1f ms\n", took * 1e3);
    fflush(stdout);
    fathom_close(r->f);
}

/* Forks of the first context's session. */
static void
one_batch(const char *socket, unsigned long context, int n, unsigned long tokens)
{
    double from = 0, to = 1e300;
    unsigned long all = 0;
    struct fathom_error e;
    char base[32];

    snprintf(base, sizeof base, "at-%lu", context);
    for (int i = 0; i < n; i++) {
        runs[i].f = fathom_open(socket, &e);
        if (runs[i].f == NULL)
            fail(&e);
        snprintf(runs[i].name, sizeof runs[i].name, "b%d-%d", n, i);
        finish(runs[i].f,
               fathom_fork(runs[i].f, base, runs[i].name, NULL, FATHOM_ANY_POS, &e), &e);
    }
    for (int i = 0; i < n; i++)
        begin(&runs[i], tokens, 1.0);
    serve(n);
    for (int i = 0; i < n; i++) {
        from = runs[i].first > from ? runs[i].first : from;
        to = runs[i].last < to ? runs[i].last : to;
    }
    for (int i = 0; i < n; i++) {
        double at = runs[i].last;

        for (int k = runs[i].gaps.n - 1; k >= 0; at -= runs[i].gaps.v[k--])
            all += at > from && at <= to;
        fathom_close(runs[i].f);
    }
    printf("batch %d: %.1f tokens/s\n", n, (double)all / (to - from));
    fflush(stdout);
}

static int
parse_list(struct list *l, const char *text)
{
    char *end;

    for (l->n = 0; l->n < MOST_LIST; text = end + 1) {
        l->v[l->n] = strtoul(text, &end, 10);
        if (end == text || l->v[l->n++] == 0)
            return -1;
        if (*end == '\0')
            return 0;
        if (*end != ',')
            return -1;
    }
    return -1;
}

int
main(int argc, char **argv)
{
    struct list contexts = {.v = {1024}, .n = 1}, batches = {.n = 0}, tokens = {.v = {256}};
    int r = argc > 1 && argc % 2 == 0 ? 0 : -1;

    for (int i = 2; i < argc && r == 0; i += 2) {
        if (strcmp(argv[i], "--contexts") == 0)
            r = parse_list(&contexts, argv[i + 1]);
        else if (strcmp(argv[i], "--batches") == 0)
            r = parse_list(&batches, argv[i + 1]);
        else if (strcmp(argv[i], "--tokens") == 0)
            r = parse_list(&tokens, argv[i + 1]);
        else
            r = -1;
    }
    for (int i = 0; i < batches.n; i++)
        r = batches.v[i] > MOST_BATCH ? -1 : r;
    if (r == -1 || tokens.v[0] < 2 * WARM || tokens.v[0] > 4000) {
        fprintf(stderr, "usage: bench-serve SOCKET [--contexts N,...] [--batches N,...] "
                        "[--tokens N]; at most 64 in a batch, 40 to 4000 tokens\n");
        return EX_USAGE;
    }
    for (int i = 0; i < contexts.n; i++)
        one_context(argv[1], contexts.v[i], tokens.v[0]);
    for (int i = 0; i < batches.n; i++)
        one_batch(argv[1], contexts.v[0], (int)batches.v[i], tokens.v[0]);
    return 0;
}
