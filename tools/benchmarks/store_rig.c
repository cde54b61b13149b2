/* SPDX-License-Identifier: Apache-2.0 */
/* A daemon to be measured: its directories, its life, and what the system says of it. */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/err.h"
#include "tools/benchmarks/samples.h"
#include "tools/benchmarks/store.h"

enum { MOST_CONFIG = 1 << 20, MOST_SETTINGS = 32, PATIENCE_S = 120 };

static int
read_small(const char *path, char *text, size_t size, struct err *e)
{
    FILE *f = fopen(path, "re");
    size_t n;

    if (f == NULL)
        return err_set(e, ERR_NOT_FOUND, errno, "%s: %s", path, strerror(errno));
    n = fread(text, 1, size - 1, f);
    text[n] = '\0';
    fclose(f);
    return 0;
}

/* Where the number behind "vocab_size": is in the text of a config.json, and how long. */
static const char *
vocab_of(const char *text, size_t *len)
{
    const char *p = strstr(text, "\"vocab_size\"");

    if (p == NULL || (p = strchr(p, ':')) == NULL)
        return NULL;
    p += 1 + strspn(p + 1, " \t\n");
    *len = strspn(p, "0123456789");
    return p;
}

static int
make_config(const struct rig *r, const char *model, struct err *e)
{
    char *text = malloc(2 * MOST_CONFIG), *small = text + MOST_CONFIG, path[1300];
    const char *at, *vocab;
    size_t at_len, vocab_len;
    FILE *f;

    if (text == NULL)
        return err_set(e, ERR_QUOTA, errno, "no memory");
    snprintf(path, sizeof path, "%s/models/fathom-mini/config.json", r->top);
    if (read_small(path, small, MOST_CONFIG, e) == -1)
        goto fail;
    snprintf(path, sizeof path, "%s/tests/data/flash/config.json", r->top);
    if (read_small(path, text, MOST_CONFIG, e) == -1)
        goto fail;
    at = vocab_of(text, &at_len);
    vocab = vocab_of(small, &vocab_len);
    snprintf(path, sizeof path, "%s/config.json", model);
    f = fopen(path, "we");
    if (at == NULL || vocab == NULL || f == NULL) {
        if (f != NULL)
            fclose(f);
        err_set(e, ERR_INTERNAL, 0, "%s cannot be made", path);
        goto fail;
    }
    fprintf(f, "%.*s%.*s%s", (int)(at - text), text, (int)vocab_len, vocab, at + at_len);
    fclose(f);
    free(text);
    return 0;

fail:
    free(text);
    return -1;
}

static int
make_model(const struct rig *r, struct err *e)
{
    static const char *const links[] = {"tokenizer.json", "tokenizer_config.json",
                                        "generation_config.json"};
    char model[600], from[1300], to[1300];

    snprintf(model, sizeof model, "%s/model", r->dir);
    if (mkdir(model, 0700) == -1)
        return err_set(e, ERR_INTERNAL, errno, "%s: %s", model, strerror(errno));
    for (size_t i = 0; i < sizeof links / sizeof *links; i++) {
        snprintf(from, sizeof from, "%s/models/fathom-mini/%s", r->top, links[i]);
        snprintf(to, sizeof to, "%s/%s", model, links[i]);
        if (symlink(from, to) == -1)
            return err_set(e, ERR_INTERNAL, errno, "%s: %s", to, strerror(errno));
    }
    return make_config(r, model, e);
}

/* The programs lie beside this one: BUILD/tools/benchmarks/bench-store. */
static int
find_build(struct rig *r, const char *argv0, struct err *e)
{
    char path[PATH_MAX], *end, *model;

    if (realpath(argv0, path) == NULL)
        return err_set(e, ERR_NOT_FOUND, errno, "%s: %s", argv0, strerror(errno));
    for (int up = 0; up < 3; up++) {
        end = strrchr(path, '/');
        if (end == NULL)
            return err_set(e, ERR_NOT_FOUND, 0, "%s is in no build", argv0);
        *end = '\0';
    }
    snprintf(r->daemon, sizeof r->daemon, "%.500s/daemon/fathomd", path);
    snprintf(r->engine, sizeof r->engine, "%.500s/tests/fake_engine", path);
    if (access(r->daemon, X_OK) == -1 || access(r->engine, X_OK) == -1)
        return err_set(e, ERR_NOT_FOUND, 0, "make %s and %s first", r->daemon, r->engine);
    model = getenv("MODEL_DIR");
    if (model == NULL || realpath(model, path) == NULL)
        return err_set(e, ERR_NOT_FOUND, 0,
                       "MODEL_DIR must be the models/fathom-mini of a source tree; "
                       "tools/bench sets it");
    for (int up = 0; up < 2 && (end = strrchr(path, '/')) != NULL; up++)
        *end = '\0';
    snprintf(r->top, sizeof r->top, "%.590s", path);
    return 0;
}

int
rig_make(struct rig *r, const char *argv0, const char *where, struct err *e)
{
    *r = (struct rig){.pid = -1};
    if (find_build(r, argv0, e) == -1)
        return -1;
    snprintf(r->dir, sizeof r->dir, "%.400s/bench-store.XXXXXX", where);
    if (mkdtemp(r->dir) == NULL)
        return err_set(e, ERR_INTERNAL, errno, "%s: %s", r->dir, strerror(errno));
    snprintf(r->sock, sizeof r->sock, "%s/s", r->dir);
    snprintf(r->log, sizeof r->log, "%s/log", r->dir);
    snprintf(r->state, sizeof r->state, "%s/state", r->dir);
    return make_model(r, e);
}

static void
run_daemon(const struct rig *r, const char *const *settings)
{
    const int log = open(r->log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    const char *argv[10 + MOST_SETTINGS] = {r->daemon, "--engine", r->engine,
                                            "--model", NULL,       "--state",
                                            r->state,  "--socket", r->sock};
    char model[600];
    int n = 9;

    snprintf(model, sizeof model, "%s/model", r->dir);
    argv[4] = model;
    for (int i = 0; settings != NULL && settings[i] != NULL && i < MOST_SETTINGS; i++)
        argv[n++] = settings[i];
    if (log != -1)
        dup2(log, STDERR_FILENO);
    execv(r->daemon, (char **)(uintptr_t)argv);
    _exit(127);
}

int
rig_start(struct rig *r, const char *const *settings, double *seconds, struct err *e)
{
    const double began = bench_now();

    unlink(r->log);
    r->pid = fork();
    if (r->pid == -1)
        return err_set(e, ERR_INTERNAL, errno, "fork: %s", strerror(errno));
    if (r->pid == 0)
        run_daemon(r, settings);
    while (rig_logged(r, "listening on") == 0) {
        int status;

        if (waitpid(r->pid, &status, WNOHANG) == r->pid) {
            r->pid = -1;
            return err_set(e, ERR_UNAVAILABLE, 0, "fathomd ended; see %s", r->log);
        }
        if (bench_now() - began > PATIENCE_S)
            return err_set(e, ERR_DEADLINE, 0, "fathomd does not listen; see %s", r->log);
        nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
    }
    if (seconds != NULL)
        *seconds = bench_now() - began;
    return 0;
}

void
rig_stop(struct rig *r)
{
    if (r->pid == -1)
        return;
    kill(r->pid, SIGTERM);
    waitpid(r->pid, NULL, 0);
    r->pid = -1;
}

static int
remove_one(const char *path, const struct stat *st, int type, struct FTW *f)
{
    (void)st;
    (void)type;
    (void)f;
    remove(path);
    return 0;
}

void
rig_remove(struct rig *r)
{
    rig_stop(r);
    if (r->dir[0] != '\0')
        nftw(r->dir, remove_one, 32, FTW_DEPTH | FTW_PHYS);
}

static uint64_t
field_of(const struct rig *r, const char *file, const char *name)
{
    char path[64], text[8192];
    const char *p;
    struct err e;

    snprintf(path, sizeof path, "/proc/%d/%s", (int)r->pid, file);
    if (read_small(path, text, sizeof text, &e) == -1 || (p = strstr(text, name)) == NULL)
        return 0;
    return strtoull(p + strlen(name), NULL, 10);
}

uint64_t
rig_written(const struct rig *r)
{
    return field_of(r, "io", "\nwrite_bytes:");
}

uint64_t
rig_resident(const struct rig *r)
{
    return 1024 * field_of(r, "status", "\nVmRSS:");
}

/* In ticks of 10 ms: of use for the mean of many. */
double
rig_cpu(const struct rig *r)
{
    char path[64], text[1024], *p;
    unsigned long user = 0, kernel = 0;
    struct err e;

    snprintf(path, sizeof path, "/proc/%d/stat", (int)r->pid);
    if (read_small(path, text, sizeof text, &e) == -1 || (p = strrchr(text, ')')) == NULL ||
        sscanf(p, ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user,
               &kernel) != 2)
        return 0;
    return (double)(user + kernel) / (double)sysconf(_SC_CLK_TCK);
}

static const char *count_ending;
static uint64_t counted;

static int
count_one(const char *path, const struct stat *st, int type, struct FTW *f)
{
    const size_t n = strlen(path), k = strlen(count_ending);

    (void)f;
    if (type == FTW_F && n >= k && strcmp(path + n - k, count_ending) == 0)
        counted += (uint64_t)st->st_size;
    return 0;
}

uint64_t
rig_bytes(const struct rig *r, const char *ending)
{
    count_ending = ending;
    counted = 0;
    nftw(r->state, count_one, 32, FTW_PHYS);
    return counted;
}

uint64_t
rig_sum(const struct rig *r, const char *text, const char *key)
{
    FILE *f = fopen(r->log, "re");
    char line[4096];
    const char *at;
    uint64_t n = 0;

    if (f == NULL)
        return 0;
    while (fgets(line, sizeof line, f) != NULL) {
        if (strstr(line, text) != NULL && (at = strstr(line, key)) != NULL)
            n += strtoull(at + strlen(key), NULL, 10);
    }
    fclose(f);
    return n;
}

unsigned
rig_logged(const struct rig *r, const char *text)
{
    FILE *f = fopen(r->log, "re");
    unsigned n = 0;
    char line[4096];

    if (f == NULL)
        return 0;
    while (fgets(line, sizeof line, f) != NULL)
        n += strstr(line, text) != NULL;
    fclose(f);
    return n;
}
