/* SPDX-License-Identifier: Apache-2.0 */
/* Jobs out of packets: every size and count is checked here. Engine loop thread only. */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/job.h"

static int
read_tokens(struct job *j, const void *tokens, uint32_t n, size_t rest)
{
    if (n == 0 || n > LINK_MAX_FEED)
        return err_set(&j->err, ERR_INVALID, 0, "%u tokens, 1 to %d are possible", n,
                       LINK_MAX_FEED);
    if (rest != n * sizeof *j->tokens)
        return err_set(&j->err, ERR_PROTOCOL, 0, "%u tokens with %zu bytes", n, rest);
    j->tokens = malloc(rest);
    if (j->tokens == NULL)
        return err_set(&j->err, ERR_QUOTA, 0, "no memory for %u tokens", n);
    memcpy(j->tokens, tokens, rest);
    return 0;
}

static int
read_feed(struct job *j, const struct link_feed *f, size_t rest)
{
    if (f->score > 1)
        return err_set(&j->err, ERR_INVALID, 0, "feed with score %u", f->score);
    return read_tokens(j, f + 1, f->n, rest);
}

static int
read_kv_out(struct job *j, const struct link_kv_out *k, size_t rest)
{
    if (k->n_runs > LINK_KV_RUNS)
        return err_set(&j->err, ERR_INVALID, 0, "%u runs of pages, at most %d at a time",
                       k->n_runs, LINK_KV_RUNS);
    if (rest != k->n_runs * sizeof *j->runs)
        return err_set(&j->err, ERR_PROTOCOL, 0, "%u runs of pages with %zu bytes",
                       k->n_runs, rest);
    if (rest == 0)
        return 0;
    j->runs = malloc(rest);
    if (j->runs == NULL)
        return err_set(&j->err, ERR_QUOTA, 0, "no memory for %u runs", k->n_runs);
    memcpy(j->runs, k + 1, rest);
    return 0;
}

/* The slots stay as large as they are: a file that could shrink would be a SIGBUS in a step. */
int
job_map_rows(struct job *j, uint32_t vocab)
{
    const uint64_t bytes = j->a.sample.rows * link_row_bytes(vocab);
    const int seals = fcntl(j->fd, F_GET_SEALS);
    struct stat st;
    void *p;

    if (seals == -1 || (seals & F_SEAL_SHRINK) == 0 || fstat(j->fd, &st) == -1 ||
        (uint64_t)st.st_size != bytes)
        return err_set(&j->err, ERR_INVALID, 0,
                       "the rows' file is not a sealed one of %llu bytes",
                       (unsigned long long)bytes);
    p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, j->fd, 0);
    if (p == MAP_FAILED)
        return err_set(&j->err, ERR_QUOTA, errno, "mmap of %llu bytes for rows: %s",
                       (unsigned long long)bytes, strerror(errno));
    j->rows = p;
    j->rows_bytes = bytes;
    return 0;
}

static int
read_sample(struct job *j, const struct link_sample *s, size_t rest)
{
    if ((s->rows > 0) != (j->fd != -1))
        return err_set(&j->err, ERR_PROTOCOL, 0, "a sample with %u rows and %s descriptor",
                       s->rows, j->fd != -1 ? "a" : "no");
    if (rest != sizeof(struct sample_params) || s->params_bytes != rest)
        return err_set(&j->err, ERR_PROTOCOL, 0, "sample parameters of %zu bytes, not %zu",
                       rest, sizeof(struct sample_params));
    j->sampling = calloc(1, sizeof *j->sampling);
    if (j->sampling == NULL)
        return err_set(&j->err, ERR_QUOTA, 0, "no memory for a sample");
    memcpy(&j->sampling->params, s + 1, sizeof j->sampling->params);
    j->sampling->n_drawn = s->n_drawn;
    return 0;
}

static int
read_body(struct job *j, const union link_packet *p, size_t len)
{
    static const size_t fixed[] = {
        [LINK_OPEN] = sizeof(struct link_open),
        [LINK_FORK] = sizeof(struct link_fork),
        [LINK_CLOSE] = 0,
        [LINK_REWIND] = sizeof(struct link_rewind),
        [LINK_FEED] = sizeof(struct link_feed),
        [LINK_SAMPLE] = sizeof(struct link_sample),
        [LINK_LOGITS] = 0,
        [LINK_KV_OUT] = sizeof(struct link_kv_out),
        [LINK_KV_IN] = sizeof(struct link_kv_in),
        [LINK_KV_SET] = sizeof(struct link_kv_set),
    };
    const size_t need = fixed[j->type];
    const void *body = link_body(p, len, need, &j->err);
    const size_t rest = len - sizeof p->head - need;

    if (body == NULL)
        return -1;
    memcpy(&j->a, body, need);
    if (j->type == LINK_FEED)
        return read_feed(j, body, rest);
    if (j->type == LINK_SAMPLE)
        return read_sample(j, body, rest);
    if (j->type == LINK_KV_OUT)
        return read_kv_out(j, body, rest);
    if (j->type == LINK_KV_IN)
        return read_tokens(j, (const struct link_kv_in *)body + 1, j->a.kv_in.n, rest);
    if (rest != 0)
        return err_set(&j->err, ERR_PROTOCOL, 0,
                       "packet of type %u with %zu bytes too many", j->type, rest);
    if (j->type == LINK_LOGITS && j->fd == -1)
        return err_set(&j->err, ERR_PROTOCOL, 0, "no descriptor for the logits");
    return 0;
}

struct job *
job_new(const union link_packet *p, size_t len, int fd)
{
    struct job *j = calloc(1, sizeof *j);

    if (j == NULL) {
        if (fd != -1)
            close(fd);
        return NULL;
    }
    j->type = p->head.type;
    j->seq = p->head.seq;
    j->number = p->head.job;
    j->fd = fd;
    read_body(j, p, len);
    return j;
}

void
job_free(struct job *j)
{
    free(j->tokens);
    free(j->sampling);
    free(j->runs);
    free(j->copying);
    if (j->rows != NULL)
        munmap(j->rows, j->rows_bytes);
    if (j->fd != -1)
        close(j->fd);
    free(j);
}

bool
job_can_be_cancelled(const struct job *j)
{
    return j->type == LINK_FEED || j->type == LINK_SAMPLE || j->type == LINK_LOGITS;
}
