/* SPDX-License-Identifier: Apache-2.0 */
/* Jobs out of packets: every size and count is checked here. Engine loop thread only. */
#include "config.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/job.h"

static int
read_feed(struct job *j, const struct link_feed *f, size_t rest)
{
    if (f->n == 0 || f->n > LINK_MAX_FEED || f->score > 1)
        return err_set(&j->err, ERR_INVALID, 0, "feed of %u tokens, score %u", f->n,
                       f->score);
    if (rest != f->n * sizeof *j->tokens)
        return err_set(&j->err, ERR_PROTOCOL, 0, "feed of %u tokens with %zu bytes", f->n,
                       rest);
    j->tokens = malloc(rest);
    if (j->tokens == NULL)
        return err_set(&j->err, ERR_QUOTA, 0, "no memory for a feed of %u tokens", f->n);
    memcpy(j->tokens, f + 1, rest);
    return 0;
}

static int
read_sample(struct job *j, const struct link_sample *s, size_t rest)
{
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
    if (j->fd != -1)
        close(j->fd);
    free(j);
}

bool
job_can_be_cancelled(const struct job *j)
{
    return j->type == LINK_FEED || j->type == LINK_SAMPLE || j->type == LINK_LOGITS;
}
