/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench-store [--dir DIR] [TOKENS ...]: sessions of 8192, 131072 and 1000000 tokens (or as said) with
 * caches of Flash's true size, from end to end: libfathom, fathomd, its engine's loop, files. The
 * engine's model is a hash (tests/toy_backend.h), which makes caches up at some GB/s when they leave
 * and looks at every byte when they come back, so what is measured is all but the model.
 *
 * In the same run it measures the disk under DIR (the current directory if not said) and memcpy,
 * and prints shares of them. Needs 4 GB of disk and 6 GB of memory for a million tokens.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "lib/fathom.h"
#include "tools/benchmarks/samples.h"
#include "tools/benchmarks/store.h"

enum { ROUNDS = 5, COMMITS = 200, COMMIT_TOKENS = 16, FORKS = 15, BETWEEN = 3000 };

static const double ROW_BYTES = 449824.0 / 128; /* of Flash, a token: docs/MODEL.md 15.4 */
static const double MB = 1e6;

struct bench {
    struct rig rig;
    struct disk_rates disk;
    struct fathom *f;
    int missed;
};

static int
failed(const struct fathom_error *fe, const char *what, struct err *e)
{
    return err_set(e, ERR_INTERNAL, 0, "%s: %s: %s", what, fe->name, fe->text);
}

static void __attribute__((format(printf, 3, 4)))
target(struct bench *b, bool met, const char *format, ...)
{
    va_list ap;

    va_start(ap, format);
    printf("    target %s: ", met ? "met   " : "MISSED");
    vprintf(format, ap);
    printf("\n");
    va_end(ap);
    b->missed += !met;
}

/* One request, waited for; its seconds are added to *s (NULL: not). */
static int
timed(struct bench *b, const char *what,
      uint32_t (*ask)(struct fathom *, void *, struct fathom_error *), void *arg,
      struct samples *s, struct fathom_result *out, struct err *e)
{
    struct fathom_error fe = {0};
    const double began = bench_now();
    const struct fathom_result *r = fathom_finish(b->f, ask(b->f, arg, &fe), &fe);

    if (r == NULL)
        return failed(&fe, what, e);
    if (s != NULL)
        samples_add(s, bench_now() - began);
    if (out != NULL)
        *out = *r;
    return 0;
}

static uint32_t
ask_park(struct fathom *f, void *arg, struct fathom_error *fe)
{
    return fathom_park(f, arg, 0, fe);
}

static uint32_t
ask_park_memory(struct fathom *f, void *arg, struct fathom_error *fe)
{
    return fathom_park(f, arg, 1, fe);
}

static uint32_t
ask_unpark(struct fathom *f, void *arg, struct fathom_error *fe)
{
    return fathom_unpark(f, arg, fe);
}

static uint32_t
ask_delete(struct fathom *f, void *arg, struct fathom_error *fe)
{
    return fathom_delete(f, arg, fe);
}

static uint32_t
ask_fork(struct fathom *f, void *arg, struct fathom_error *fe)
{
    return fathom_fork(f, arg, "fork", NULL, FATHOM_ANY_POS, fe);
}

struct back {
    const char *name;
    uint64_t pos;
};

static uint32_t
ask_rollback(struct fathom *f, void *arg, struct fathom_error *fe)
{
    const struct back *to = arg;

    return fathom_rollback(f, to->name, NULL, (int64_t)to->pos, fe);
}

static uint32_t
ask_tokens(struct fathom *f, void *arg, struct fathom_error *fe)
{
    static const uint32_t ids[COMMIT_TOKENS] = {300, 301, 302, 303, 304, 305, 306, 307,
                                                308, 309, 310, 311, 312, 313, 314, 315};
    struct fathom_append a;

    FATHOM_APPEND_INIT(&a);
    a.name = arg;
    a.tokens = ids;
    a.n_tokens = COMMIT_TOKENS;
    return fathom_append(f, &a, NULL, fe);
}

static uint32_t
ask_sample(struct fathom *f, void *arg, struct fathom_error *fe)
{
    struct fathom_sample a;

    FATHOM_SAMPLE_INIT(&a);
    a.name = arg;
    a.n = 1;
    a.temperature = 0;
    a.ignore_eos = 1;
    a.quiet = 1;
    return fathom_sample(f, &a, NULL, fe);
}

/* --- building it up -------------------------------------------------------------------------- */

/* " a" is one token. */
static int
append_text(struct bench *b, const char *name, uint64_t tokens, struct err *e)
{
    struct fathom_error fe = {0};
    char *text = malloc(2 * tokens);
    uint64_t pos = 0;
    int rc;

    if (text == NULL)
        return err_set(e, ERR_QUOTA, errno, "no memory for a document");
    for (uint64_t i = 0; i < tokens; i++)
        memcpy(text + 2 * i, " a", 2);
    rc = fathom_append_text(b->f, name, text, 2 * tokens, &pos, &fe);
    free(text);
    if (rc == -1)
        return failed(&fe, "append", e);
    if (pos < tokens || pos > tokens + 1)
        return err_set(e, ERR_INTERNAL, 0, "%" PRIu64 " tokens, not %" PRIu64, pos, tokens);
    return 0;
}

static int
measure_save(struct bench *b, char *name, uint64_t tokens, struct err *e)
{
    const uint64_t written = rig_written(&b->rig), rows_were = rig_bytes(&b->rig, ".kvc"),
                   states_were = rig_bytes(&b->rig, ".kvt");
    const double began = bench_now();
    struct samples park = {.n = 0};
    double appended, rows, states, all, token;

    if (append_text(b, name, tokens, e) == -1)
        return -1;
    appended = bench_now() - began;
    if (timed(b, "park", ask_park, name, &park, NULL, e) == -1)
        return -1;
    all = bench_now() - began;
    rows = (double)(rig_bytes(&b->rig, ".kvc") - rows_were);
    states = (double)(rig_bytes(&b->rig, ".kvt") - states_were);
    token = rows / (double)tokens;
    printf(
        "    append %.2f s, saving side by side; from its end to all on the disk %.0f ms\n",
        appended, 1e3 * park.v[0]);
    printf("    rows %.1f MB, states %.1f MB in all that are kept; written, as the kernel "
           "counts, %.1f MB\n",
           rows / MB, states / MB, (double)(rig_written(&b->rig) - written) / MB);
    printf("    saved at %.0f MB/s: %.0f %% of what the disk writes\n",
           (rows + states) / all / MB, 100 * (rows + states) / all / b->disk.write);
    target(b, token <= 1.10 * ROW_BYTES,
           "%.1f bytes of rows written for a token, %.3f of %.2f (at most 1.10)", token,
           token / ROW_BYTES, ROW_BYTES);
    return 0;
}

/* --- away and back --------------------------------------------------------------------------- */

static int
measure_back(struct bench *b, char *name, uint64_t tokens, bool memory, struct err *e)
{
    const double rows = (double)(tokens / 128) * 449824;
    const char *const from = memory ? "memory" : "disk";
    struct samples park = {.n = 0}, unpark = {.n = 0}, rate = {.n = 0};
    const uint64_t written = rig_written(&b->rig);
    unsigned restored = rig_logged(&b->rig, "cache-restored");
    uint64_t was = rig_sum(&b->rig, "cache-restored", "read="), read = 0;
    double share;

    for (int i = 0; i < ROUNDS; i++) {
        if (timed(b, "park", memory ? ask_park_memory : ask_park, name, &park, NULL, e) ==
                -1 ||
            timed(b, "unpark", ask_unpark, name, &unpark, NULL, e) == -1)
            return -1;
        read = rig_sum(&b->rig, "cache-restored", "read=") - was;
        was += read;
        samples_add(&rate, (memory ? rows : (double)read) / unpark.v[unpark.n - 1]);
    }
    restored = rig_logged(&b->rig, "cache-restored") - restored;
    if (restored != ROUNDS)
        return err_set(e, ERR_INTERNAL, 0, "%u restores, not %d: see %s", restored, ROUNDS,
                       b->rig.log);
    share = samples_median(&rate) / (memory ? b->disk.copy : b->disk.read);
    printf("    park of a saved session to %s: %.1f ms, %.1f MB written; unpark %.0f ms, "
           "%.1f MB read, %.0f MB/s: %.0f %% of %s (best %.0f %%)\n",
           from, 1e3 * samples_median(&park),
           (double)(rig_written(&b->rig) - written) / MB / ROUNDS,
           1e3 * samples_median(&unpark), (double)read / MB, samples_median(&rate) / MB,
           100 * share, memory ? "memcpy" : "what the disk reads",
           100 * samples_max(&rate) / (memory ? b->disk.copy : b->disk.read));
    if (!memory && rows > 64 * MB)
        target(b, share >= 0.85, "restored from disk at %.0f %% of its rate (at least 85)",
               100 * share);
    return 0;
}

/* --- changes --------------------------------------------------------------------------------- */

static int
measure_fork(struct bench *b, char *name, uint64_t tokens, struct err *e)
{
    struct samples s = {.n = 0};
    char fork[] = "fork";
    double cpu = 0;

    for (int i = 0; i < FORKS; i++) {
        const double before = rig_cpu(&b->rig);

        if (timed(b, "fork", ask_fork, name, &s, NULL, e) == -1)
            return -1;
        cpu += rig_cpu(&b->rig) - before;
        if (timed(b, "delete", ask_delete, fork, NULL, NULL, e) == -1)
            return -1;
    }
    printf("    fork: median %.1f ms, worst %.1f ms; %.0f ms of a processor\n",
           1e3 * samples_median(&s), 1e3 * samples_max(&s), 1e3 * cpu / FORKS);
    if (tokens >= 1000000)
        target(b, samples_median(&s) < 0.050,
               "fork of %" PRIu64 " tokens %.1f ms (below 50)", tokens,
               1e3 * samples_median(&s));
    return 0;
}

static int
measure_commit(struct bench *b, char *name, struct err *e)
{
    const double most = fmax(0.003, 3 * b->disk.sync);
    struct samples s = {.n = 0};
    double median;

    for (int i = 0; i < COMMITS; i++) {
        if (timed(b, "append", ask_tokens, name, &s, NULL, e) == -1)
            return -1;
    }
    median = samples_median(&s);
    printf("    commit of %d tokens: median %.2f ms, 99 of 100 below %.2f ms\n",
           COMMIT_TOKENS, 1e3 * median, 1e3 * s.v[s.n * 99 / 100]);
    target(b, median < most, "commit %.2f ms (below %.2f: 3 ms, or 3 fdatasync)",
           1e3 * median, 1e3 * most);
    return 0;
}

static int
measure_rollback(struct bench *b, char *name, uint64_t pos, struct err *e)
{
    struct back to = {name, pos - (pos > 2 * BETWEEN ? BETWEEN : pos / 3)};
    struct samples s = {.n = 0}, draw = {.n = 0};
    struct fathom_result r;

    if (timed(b, "rollback", ask_rollback, &to, &s, &r, e) == -1 ||
        timed(b, "sample", ask_sample, name, &draw, NULL, e) == -1)
        return -1;
    printf("    rollback by %" PRIu64 " to %" PRIu64 ": %.1f ms, says that %" PRIu64
           " tokens are computed again; the next token is drawn after %.0f ms more\n",
           r.dropped, r.pos, 1e3 * s.v[0], r.replay, 1e3 * draw.v[0]);
    return 0;
}

static int
measure(struct bench *b, uint64_t tokens, struct err *e)
{
    struct fathom_error fe = {0};
    char name[32];

    snprintf(name, sizeof name, "s%" PRIu64, tokens);
    printf("%" PRIu64 " tokens, %.1f MB of rows\n", tokens,
           ROW_BYTES * (double)tokens / MB);
    if (fathom_finish(b->f, fathom_new(b->f, name, 0, &fe), &fe) == NULL)
        return failed(&fe, "new", e);
    if (measure_save(b, name, tokens, e) == -1 ||
        timed(b, "unpark", ask_unpark, name, NULL, NULL, e) == -1 ||
        measure_back(b, name, tokens, false, e) == -1 ||
        measure_back(b, name, tokens, true, e) == -1 ||
        measure_fork(b, name, tokens, e) == -1 || measure_commit(b, name, e) == -1 ||
        measure_rollback(b, name, tokens, e) == -1)
        return -1;
    return timed(b, "delete", ask_delete, name, NULL, NULL, e);
}

static int
run(struct bench *b, const uint64_t *sizes, size_t n, struct err *e)
{
    static const char *const settings[] = {
        "--host-memory", "5G", "--max-tokens", "100000000", "--log-level", "info", NULL};
    struct fathom_error fe = {0};

    if (disk_measure(b->rig.dir, &b->disk, e) == -1 ||
        rig_start(&b->rig, settings, NULL, e) == -1)
        return -1;
    printf("disk (O_DIRECT, %s): write %.0f MB/s, read %.0f MB/s, fdatasync "
           "%.2f ms; memcpy %.0f MB/s\n",
           b->disk.how, b->disk.write / MB, b->disk.read / MB, 1e3 * b->disk.sync,
           b->disk.copy / MB);
    b->f = fathom_open(b->rig.sock, &fe);
    if (b->f == NULL)
        return failed(&fe, "connect", e);
    for (size_t i = 0; i < n; i++) {
        if (measure(b, sizes[i], e) == -1)
            return -1;
        fflush(stdout);
    }
    return 0;
}

int
main(int argc, char **argv)
{
    uint64_t sizes[16] = {8192, 131072, 1000000};
    const char *where = ".";
    struct bench b = {.missed = 0};
    size_t n = 3, given = 0;
    struct err e;
    int rc;

    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--dir") == 0 && i + 1 < argc) {
            where = argv[++i];
        } else if (strtoull(argv[i], NULL, 10) >= 1024 && given < 16) {
            sizes[given++] = strtoull(argv[i], NULL, 10);
            n = given;
        } else {
            fprintf(stderr, "usage: tools/bench store [--dir DIR] [TOKENS ...]\n");
            return 64;
        }
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    rc = rig_make(&b.rig, argv[0], where, &e);
    if (rc == 0)
        rc = run(&b, sizes, n, &e);
    if (rc == -1)
        fprintf(stderr, "bench-store: %s\n", e.text);
    else
        printf("%d targets missed\n", b.missed);
    fathom_close(b.f);
    if (getenv("KEEP") == NULL)
        rig_remove(&b.rig);
    return rc == -1 ? 1 : 0;
}
