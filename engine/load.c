/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loading, in the order in which it can fail cheaply: config, tokenizer, tensors' names and
 * shapes, then the bytes. The checkpoint is mapped, so its bytes are first read once from end
 * to end: that is sequential, so the disk is at its best, and it is the one part long enough
 * to be worth a figure in the daemon's status. Engine main thread, before the loop.
 */
#include "config.h"

#include <dirent.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/err.h"
#include "base/log.h"
#include "engine/load.h"
#include "model/tokenizer.h"
#include "model/weights.h"
#include "proto/link.h"

/* Parts of 1000. */
enum { AT_TENSORS = 30, AT_BYTES = 50, AT_BACKEND = 800, AT_TRIAL = 990 };

enum { PIECE = 8 << 20, MOST_REPORTS = 20 };

static void
say_progress(struct link_status *st, uint64_t permille)
{
    if (st == NULL)
        return;
    __atomic_store_n(&st->beat_ns, clock_ns(), __ATOMIC_RELAXED);
    __atomic_store_n(&st->load_permille, permille, __ATOMIC_RELAXED);
}

static void
report(void *arg, const char *line)
{
    int *n = arg;

    if ((*n)++ < MOST_REPORTS)
        log_line(LOG_ERROR, "checkpoint text=\"%s\"", line);
}

static int
is_shard(const struct dirent *d)
{
    const char *dot = strrchr(d->d_name, '.');

    return dot != NULL && strcmp(dot, ".safetensors") == 0;
}

/* The sizes of all shards; -1 if there are too many bytes for memory to hold them. */
static int64_t
shard_bytes(int dir, struct dirent **names, int n)
{
    const int64_t memory = (int64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE);
    int64_t sum = 0;

    for (int i = 0; i < n; i++) {
        struct stat st;

        if (fstatat(dir, names[i]->d_name, &st, 0) == 0 && S_ISREG(st.st_mode))
            sum += st.st_size;
    }
    return sum < memory / 4 * 3 ? sum : -1;
}

/* Reads one file for the page cache. What cannot be read is for the mapping to complain of. */
static void
warm_file(int dir, const char *name, char *piece, int64_t *done, int64_t all,
          struct link_status *st)
{
    const int fd = openat(dir, name, O_RDONLY | O_CLOEXEC);
    ssize_t n;

    if (fd == -1)
        return;
    while ((n = read(fd, piece, PIECE)) > 0) {
        *done += n;
        if (*done <= all)
            say_progress(st, AT_BYTES + (uint64_t)((AT_BACKEND - AT_BYTES) *
                                                   ((double)*done / (double)all)));
    }
    close(fd);
}

static void
warm(const char *path, struct link_status *st)
{
    const int dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    struct dirent **names = NULL;
    const int n = dir == -1 ? 0 : scandirat(dir, ".", &names, is_shard, alphasort);
    const int64_t all = n > 0 ? shard_bytes(dir, names, n) : -1;
    char *piece = all > 0 ? malloc(PIECE) : NULL;
    int64_t done = 0;

    for (int i = 0; i < n; i++) {
        if (piece != NULL)
            warm_file(dir, names[i]->d_name, piece, &done, all, st);
        free(names[i]);
    }
    free(names);
    free(piece);
    if (dir != -1)
        close(dir);
}

static const char *
token_bytes(const void *arg, uint32_t id, size_t *len)
{
    const struct tokenizer *t = arg;

    if (!tokenizer_is_control(t, id))
        return tokenizer_bytes(t, id, len);
    *len = 0;
    return "";
}

/* One token through all layers. */
static int
try_it(const struct loaded *l, struct err *e)
{
    const struct backend_ops *ops = l->model.ops;
    const uint32_t bos = (uint32_t)l->config.bos_id, vocab = (uint32_t)l->config.vocab_size;
    float *row = calloc(vocab, sizeof *row);
    struct step_seq share = {
        .seq = 0, .n_tokens = 1, .tokens = &bos, .n_logits = 1, .logits = row};
    const struct step st = {.n_seqs = 1, .seqs = &share};
    int r;

    if (row == NULL)
        return err_set(e, ERR_QUOTA, 0, "no memory for a row of %u logits", vocab);
    r = ops->seq_open(l->backend, 0, e);
    if (r == 0) {
        r = ops->step(l->backend, &st, e);
        ops->seq_close(l->backend, 0);
    }
    for (uint32_t i = 0; r == 0 && i < vocab; i++)
        if (!isfinite(row[i]))
            r = err_set(e, ERR_DAMAGED, 0, "the model's logits are not finite");
    free(row);
    return r == 0 ? 0 : err_prefix(e, "trying the model with one token");
}

int
load(struct loaded *l, const struct engine_args *a, struct link_status *status,
     struct err *e)
{
    int reports = 0;

    *l = (struct loaded){.model.token_bytes = token_bytes};
    l->model.ops = backend_find(a->backend, e);
    if (l->model.ops == NULL || model_config_load(&l->config, a->model, e) == -1)
        return -1;
    l->tokenizer = tokenizer_load(a->model, e);
    if (l->tokenizer == NULL)
        return -1;
    if (tokenizer_n_ids(l->tokenizer) > (uint32_t)l->config.vocab_size)
        return err_set(e, ERR_DAMAGED, 0, "tokenizer.json has %u ids, config.json %d",
                       tokenizer_n_ids(l->tokenizer), l->config.vocab_size);
    say_progress(status, AT_TENSORS);
    l->weights = a->synthetic ? weights_synthetic(&l->config, a->seed, e)
                              : weights_open(a->model, &l->config, report, &reports, e);
    if (reports > MOST_REPORTS)
        log_line(LOG_ERROR, "checkpoint text=\"and %d more\"", reports - MOST_REPORTS);
    if (l->weights == NULL)
        return -1;
    warm(a->model, status);
    weights_fingerprint(l->weights, l->model.fingerprint);
    say_progress(status, AT_BACKEND);
    if (kv_layout_init(&l->layout, &l->config, a->opts.mtp, e) == -1)
        return -1;
    l->backend = l->model.ops->open(&l->config, l->weights, &a->opts, e);
    if (l->backend == NULL)
        return -1;
    say_progress(status, AT_TRIAL);
    l->model.backend = l->backend;
    l->model.layout = &l->layout;
    l->model.arena = a->opts.arena;
    l->model.arena_bytes = a->opts.arena_bytes;
    l->model.token_arg = l->tokenizer;
    return try_it(l, e);
}

void
load_done(struct loaded *l)
{
    if (l->backend != NULL)
        l->model.ops->close(l->backend);
    weights_close(l->weights);
    tokenizer_free(l->tokenizer);
    kv_layout_done(&l->layout);
    *l = (struct loaded){0};
}
