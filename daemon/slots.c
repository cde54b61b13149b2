/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The engine's sequences and jobs, seen from the supervisor. Each packet is compared with what
 * was asked for: a job that is not under way, a position that cannot be, a token outside the
 * vocabulary means that the engine is out of its mind, and nothing else that it says counts.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <unistd.h>

#include "daemon/engine.h"
#include "daemon/op.h"
#include "daemon/session.h"
#include "daemon/slots.h"
#include "model/sampler.h"

int
slots_init(struct slots *ss, uint32_t n, struct err *e)
{
    struct engine *g = ss->engine;
    const uint64_t evictions = ss->evictions;

    slots_done(ss);
    ss->engine = g;
    ss->evictions = evictions;
    ss->all = calloc(n, sizeof *ss->all);
    if (ss->all == NULL)
        return err_set(e, ERR_QUOTA, errno, "no memory for %" PRIu32 " sequences", n);
    for (uint32_t i = 0; i < n; i++)
        ss->all[i].number = i;
    ss->n = ss->n_free = n;
    return 0;
}

void
slots_done(struct slots *ss)
{
    free(ss->all);
    *ss = (struct slots){.engine = ss->engine, .evictions = ss->evictions};
}

void
slots_touch(struct slots *ss, struct slot *sl)
{
    sl->used = ++ss->stamp;
}

struct slot *
slots_take(struct slots *ss, struct session *s, enum slot_use use)
{
    for (uint32_t i = 0; i < ss->n; i++) {
        struct slot *sl = &ss->all[i];

        if (sl->use != SLOT_FREE)
            continue;
        *sl = (struct slot){.use = use, .number = i, .session = s};
        ss->n_free--;
        ss->n_snapshots += use == SLOT_SNAPSHOT;
        slots_touch(ss, sl);
        return sl;
    }
    return NULL;
}

static void
set_free(struct slots *ss, struct slot *sl)
{
    ss->n_closing--;
    *sl = (struct slot){.use = SLOT_FREE, .number = sl->number};
    ss->n_free++;
}

bool
slots_room(const struct slots *ss, uint32_t n)
{
    return ss->n_jobs + n <= LINK_MAX_JOBS;
}

/* Job numbers grow, and their low bits are the place in the table: an old one never fits. */
static struct job *
new_job(struct slots *ss, enum link_type type, struct slot *sl, struct err *e)
{
    for (uint32_t i = 0; i < LINK_MAX_JOBS; i++) {
        struct job *j = &ss->jobs[i];

        if (j->number != 0)
            continue;
        if (++ss->next_number >= UINT32_MAX / LINK_MAX_JOBS)
            ss->next_number = 1;
        *j = (struct job){
            .number = ss->next_number * LINK_MAX_JOBS + i, .type = type, .slot = sl};
        ss->n_jobs++;
        sl->jobs++;
        sl->feeds += type == LINK_FEED;
        sl->saves += type == LINK_KV_OUT;
        return j;
    }
    err_set(e, ERR_BUSY, 0, "%d jobs are under way in the engine", LINK_MAX_JOBS);
    return NULL;
}

static void
end_job(struct slots *ss, struct job *j)
{
    j->slot->jobs--;
    j->slot->feeds -= j->type == LINK_FEED;
    j->slot->saves -= j->type == LINK_KV_OUT;
    j->number = 0;
    ss->n_jobs--;
}

static int
send_job(struct slots *ss, struct job *j, const struct iovec *iov, int n_iov, int fd,
         struct err *e)
{
    if (j == NULL) { /* new_job() said why */
        if (fd != -1)
            close(fd);
        return -1;
    }
    if (engine_send(ss->engine, j->type, j->slot->number, j->number, iov, n_iov, fd, e) ==
        0)
        return 0;
    end_job(ss, j);
    return -1;
}

int
slots_open(struct slots *ss, struct slot *sl, uint32_t owner, struct err *e)
{
    struct link_open body = {.owner = owner};

    return send_job(ss, new_job(ss, LINK_OPEN, sl, e), &(struct iovec){&body, sizeof body},
                    1, -1, e);
}

int
slots_fork(struct slots *ss, struct slot *sl, const struct slot *from, uint32_t owner,
           struct err *e)
{
    struct link_fork body = {.from = from->number, .owner = owner};
    struct job *j = new_job(ss, LINK_FORK, sl, e);

    if (j != NULL)
        j->to = from->sent;
    if (send_job(ss, j, &(struct iovec){&body, sizeof body}, 1, -1, e) == -1)
        return -1;
    sl->sent = from->sent;
    sl->floor = from->floor;
    return 0;
}

int
slots_rewind(struct slots *ss, struct slot *sl, uint64_t len, struct err *e)
{
    struct link_rewind body = {.len = len};
    struct job *j = new_job(ss, LINK_REWIND, sl, e);

    if (j != NULL)
        j->to = len;
    if (send_job(ss, j, &(struct iovec){&body, sizeof body}, 1, -1, e) == -1)
        return -1;
    sl->sent = len;
    return 0;
}

int
slots_feed(struct slots *ss, struct slot *sl, const uint32_t *ids, uint32_t n, bool scores,
           struct err *e)
{
    struct link_feed body = {.pos = sl->sent, .n = n, .score = scores};
    const struct iovec iov[] = {{&body, sizeof body}, {(uint32_t *)ids, n * sizeof *ids}};
    struct job *j = new_job(ss, LINK_FEED, sl, e);

    if (j == NULL)
        return -1;
    j->from = j->scored = sl->sent;
    j->to = sl->sent + n;
    j->scores = scores;
    if (send_job(ss, j, iov, 2, -1, e) == -1)
        return -1;
    sl->sent += n;
    return 0;
}

int
slots_sample(struct slots *ss, struct slot *sl, uint64_t n_drawn,
             const struct sample_params *params, uint32_t rows, int fd, struct err *e)
{
    struct link_sample body = {.pos = sl->sent,
                               .n_drawn = (uint32_t)n_drawn,
                               .params_bytes = sizeof *params,
                               .rows = rows};
    const struct iovec iov[] = {{&body, sizeof body},
                                {(struct sample_params *)params, sizeof *params}};
    const int copy = rows > 0 ? dup(fd) : -1;
    struct job *j;

    if (rows > 0 && copy == -1)
        return err_set(e, ERR_QUOTA, errno, "no descriptor left for rows of logits");
    j = new_job(ss, LINK_SAMPLE, sl, e);
    if (j == NULL) {
        if (copy != -1)
            close(copy);
        return -1;
    }
    j->from = sl->sent;
    j->to = sl->sent + params->max_tokens - n_drawn;
    return send_job(ss, j, iov, 2, copy, e);
}

int
slots_logits(struct slots *ss, struct slot *sl, int fd, struct err *e)
{
    const int copy = dup(fd);

    if (copy == -1)
        return err_set(e, ERR_QUOTA, errno, "no descriptor left for the logits");
    return send_job(ss, new_job(ss, LINK_LOGITS, sl, e), NULL, 0, copy, e);
}

int
slots_kv_out(struct slots *ss, struct slot *sl, const struct link_kv_out *what,
             const struct link_kv_run *runs, void *owner, struct err *e)
{
    const struct iovec iov[] = {
        {(struct link_kv_out *)(uintptr_t)what, sizeof *what},
        {(struct link_kv_run *)(uintptr_t)runs, what->n_runs * sizeof *runs}};
    struct job *j = new_job(ss, LINK_KV_OUT, sl, e);

    if (j == NULL)
        return -1;
    j->owner = owner;
    j->state = what->state_at != LINK_NOWHERE;
    return send_job(ss, j, iov, what->n_runs > 0 ? 2 : 1, -1, e);
}

int
slots_kv_in(struct slots *ss, struct slot *sl, const uint32_t *ids, uint32_t n, uint64_t at,
            void *owner, struct err *e)
{
    const struct link_kv_in body = {.pos = sl->sent, .at = at, .n = n};
    const struct iovec iov[] = {{(struct link_kv_in *)(uintptr_t)&body, sizeof body},
                                {(uint32_t *)(uintptr_t)ids, n * sizeof *ids}};
    struct job *j = new_job(ss, LINK_KV_IN, sl, e);

    if (j == NULL)
        return -1;
    j->owner = owner;
    j->from = sl->sent;
    j->to = sl->sent + n;
    if (send_job(ss, j, iov, 2, -1, e) == -1)
        return -1;
    sl->filling = true;
    sl->sent += n;
    return 0;
}

int
slots_kv_set(struct slots *ss, struct slot *sl, uint64_t state_at, uint64_t row_at,
             void *owner, struct err *e)
{
    struct link_kv_set body = {.pos = sl->sent, .state_at = state_at, .row_at = row_at};
    struct job *j = new_job(ss, LINK_KV_SET, sl, e);

    if (j == NULL)
        return -1;
    j->owner = owner;
    j->to = sl->sent;
    return send_job(ss, j, &(struct iovec){&body, sizeof body}, 1, -1, e);
}

void
slots_cancel(struct slots *ss, struct slot *sl)
{
    struct err e;

    for (uint32_t i = 0; i < LINK_MAX_JOBS; i++) {
        const struct job *j = &ss->jobs[i];

        /* Without memory the job runs to its end, which is no harm. */
        if (j->number != 0 && j->slot == sl &&
            (j->type == LINK_FEED || j->type == LINK_SAMPLE || j->type == LINK_LOGITS))
            engine_send(ss->engine, LINK_CANCEL, sl->number, j->number, NULL, 0, -1, &e);
    }
}

/* Without room in the table, or memory, it is tried again when a job has ended. */
static void
send_close(struct slots *ss, struct slot *sl)
{
    struct err e;

    sl->close_sent = send_job(ss, new_job(ss, LINK_CLOSE, sl, &e), NULL, 0, -1, &e) == 0;
}

void
slots_close(struct slots *ss, struct slot *sl)
{
    ss->n_snapshots -= sl->use == SLOT_SNAPSHOT;
    ss->n_closing++;
    sl->use = SLOT_CLOSING;
    if (sl->session != NULL && sl->session->slot == sl)
        sl->session->slot = NULL;
    sl->session = NULL;
    slots_cancel(ss, sl);
    send_close(ss, sl);
}

static void
close_others(struct slots *ss)
{
    for (uint32_t i = 0; i < ss->n && ss->n_closing > 0 && slots_room(ss, 1); i++) {
        if (ss->all[i].use == SLOT_CLOSING && !ss->all[i].close_sent)
            send_close(ss, &ss->all[i]);
    }
}

struct slot *
slots_snapshot(const struct slots *ss, const struct session *s, uint64_t max)
{
    struct slot *best = NULL;

    for (uint32_t i = 0; i < ss->n; i++) {
        struct slot *sl = &ss->all[i];

        if (sl->use == SLOT_SNAPSHOT && sl->session == s && sl->open &&
            sl->snapshot_pos <= max &&
            (best == NULL || sl->snapshot_pos > best->snapshot_pos))
            best = sl;
    }
    return best;
}

void
slots_drop_snapshots(struct slots *ss, const struct session *s, uint64_t beyond)
{
    for (uint32_t i = 0; i < ss->n; i++) {
        struct slot *sl = &ss->all[i];

        if (sl->use == SLOT_SNAPSHOT && sl->session == s && sl->snapshot_pos > beyond)
            slots_close(ss, sl);
    }
}

void
slots_drop_oldest_snapshot(struct slots *ss)
{
    struct slot *best = NULL;

    for (uint32_t i = 0; i < ss->n; i++) {
        struct slot *sl = &ss->all[i];

        if (sl->use == SLOT_SNAPSHOT && (best == NULL || sl->used < best->used))
            best = sl;
    }
    if (best != NULL)
        slots_close(ss, best);
}

static int
lie(struct err *e, const struct job *j, const char *what)
{
    return err_set(e, ERR_PROTOCOL, 0,
                   "job %" PRIu32 " (type %d, sequence %" PRIu32 "): %s", j->number,
                   (int)j->type, j->slot->number, what);
}

static int
read_fed(struct job *j, const union link_packet *p, size_t len, struct slots_news *out,
         struct err *e)
{
    const struct link_fed *b = link_body(p, len, sizeof *b, e);

    if (b == NULL)
        return -1;
    if (j->type != LINK_FEED || b->pos <= j->slot->len || b->pos > j->to ||
        j->slot->len < j->from)
        return lie(e, j, "it took tokens that it was not given");
    if (j->scores && j->scored < b->pos)
        return lie(e, j, "it took tokens without their scores");
    j->slot->len = j->slot->computed = out->pos = b->pos;
    return 0;
}

static int
read_scores(struct job *j, const union link_packet *p, size_t len, struct slots_news *out,
            struct err *e)
{
    const struct link_scores *b = link_body(p, len, sizeof *b, e);

    if (b == NULL)
        return -1;
    if (j->type != LINK_FEED || !j->scores || b->pos != j->scored || b->n == 0 ||
        b->n > j->to - j->scored ||
        len != sizeof p->head + sizeof *b + b->n * sizeof(float))
        return lie(e, j, "it scored other tokens than it was asked to");
    j->scored += b->n;
    out->pos = b->pos;
    out->n = b->n;
    out->scores = (const float *)(const void *)(b + 1);
    return 0;
}

static int
read_tokens(struct job *j, const union link_packet *p, size_t len, uint32_t vocab,
            struct slots_news *out, struct err *e)
{
    const struct link_tokens *b = link_body(p, len, sizeof *b, e);
    const struct sample_choice *c;

    if (b == NULL)
        return -1;
    if (j->type != LINK_SAMPLE || b->pos != j->slot->len || b->n == 0 ||
        b->n > j->to - j->slot->len || b->choice_bytes != sizeof *c ||
        len != sizeof p->head + sizeof *b + b->n * sizeof *c)
        return lie(e, j, "it drew tokens that it was not asked for");
    c = (const struct sample_choice *)(const void *)(b + 1);
    for (uint32_t i = 0; i < b->n; i++) {
        if (c[i].id >= vocab || c[i].n_top > SAMPLER_MAX_TOP || isnan(c[i].logprob))
            return lie(e, j, "it drew a token that there is not");
        for (uint32_t k = 0; k < c[i].n_top; k++) {
            if (c[i].top[k].id >= vocab || isnan(c[i].top[k].logprob))
                return lie(e, j, "it weighed a token that there is not");
        }
    }
    j->slot->len += b->n;
    j->slot->sent = j->slot->computed = j->slot->len;
    out->pos = b->pos;
    out->n = b->n;
    out->tokens = c;
    return 0;
}

/* What it saved: all that was asked for, and of the sequence as it is. */
static int
read_saved(struct job *j, const union link_packet *p, size_t len, struct slots_news *out,
           struct err *e)
{
    const struct link_saved *b = link_body(p, len, sizeof *b, e);
    const uint64_t at = j->slot->len;

    if (b == NULL)
        return -1;
    if (j->type != LINK_KV_OUT || j->saved)
        return lie(e, j, "it saved what it was not asked to");
    if (j->state ? b->pos == 0 || b->pos > at || b->pos + 1 < at || b->state_bytes == 0
                 : b->pos != 0 || b->state_bytes != 0)
        return lie(e, j, "it saved another state than it was asked to");
    j->saved = true;
    out->pos = b->pos;
    out->saved = b;
    return 0;
}

/* The length that the sequence must have now. */
static uint64_t
expected_len(const struct job *j, const struct link_end *b)
{
    if (b->reason == LINK_FAILED)
        return j->slot->len;
    switch (j->type) {
    case LINK_OPEN:
    case LINK_CLOSE: return 0;
    case LINK_FORK:
    case LINK_REWIND:
    case LINK_KV_IN:
    case LINK_KV_SET:
    case LINK_FEED: return j->to;
    default: return j->slot->len;
    }
}

static int
read_end(struct slots *ss, struct job *j, const union link_packet *p, size_t len,
         struct slots_news *out, struct err *e)
{
    const struct link_end *b = link_body(p, len, sizeof *b, e);
    struct slot *sl = j->slot;
    struct err told;

    if (b == NULL)
        return -1;
    if (b->reason > LINK_FAILED || b->pos != expected_len(j, b) || b->computed > b->pos ||
        (j->type == LINK_FEED && b->reason != LINK_FAILED && sl->len != j->to))
        return lie(e, j, "it ended at a position where it cannot be");
    if (j->type == LINK_SAMPLE
            ? b->reason == LINK_DONE || (b->reason == LINK_LIMIT && sl->len != j->to)
            : b->reason != LINK_DONE && b->reason != LINK_FAILED)
        return lie(e, j, "it ended for a reason that cannot be");
    if (j->type == LINK_KV_OUT && (b->reason == LINK_DONE) != j->saved)
        return lie(e, j, "it does not know whether it saved");
    if (b->reason == LINK_FAILED) {
        link_err(&told, &b->err);
        /* These are our own doing, or the engine's confusion: never a client's. */
        if (j->type == LINK_REWIND ||
            (j->type == LINK_CLOSE && (sl->open || told.code != ERR_NOT_FOUND)))
            return lie(e, j, told.text);
        /* What was not saved is the saver's matter: the sequence is as it was. */
        if (sl->err.code == ERR_NONE && j->type != LINK_KV_OUT)
            sl->err = told;
    } else {
        sl->len = b->pos;
        sl->open |= j->type == LINK_OPEN || j->type == LINK_FORK;
        if (j->type == LINK_KV_SET) {
            sl->filling = false;
            sl->floor = b->pos;
        }
    }
    sl->computed = b->computed;
    out->pos = b->pos;
    out->end = b;
    out->job_type = j->type;
    end_job(ss, j);
    if (sl->use == SLOT_CLOSING && sl->jobs == 0 && out->job_type == LINK_CLOSE)
        set_free(ss, sl);
    close_others(ss);
    return 0;
}

int
slots_read(struct slots *ss, const union link_packet *p, size_t len, uint32_t vocab,
           struct slots_news *out, struct err *e)
{
    struct job *j = &ss->jobs[p->head.job % LINK_MAX_JOBS];

    if (p->head.job == 0 || j->number != p->head.job || j->slot->number != p->head.seq)
        return err_set(e, ERR_PROTOCOL, 0,
                       "job %" PRIu32 " of sequence %" PRIu32 " is not under way",
                       p->head.job, p->head.seq);
    *out = (struct slots_news){.type = (enum link_type)p->head.type,
                               .job_type = j->type,
                               .slot = j->slot,
                               .owner = j->owner};
    switch (p->head.type) {
    case LINK_FED: return read_fed(j, p, len, out, e);
    case LINK_SCORES: return read_scores(j, p, len, out, e);
    case LINK_TOKENS: return read_tokens(j, p, len, vocab, out, e);
    case LINK_SAVED: return read_saved(j, p, len, out, e);
    case LINK_END: return read_end(ss, j, p, len, out, e);
    default: return err_set(e, ERR_PROTOCOL, 0, "a packet of type %u", p->head.type);
    }
}
