/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What jobs do when it is their turn, short of running the backend. Walking the one list in
 * order of arrival and letting a job run only if no earlier one names its sequences keeps
 * every sequence's jobs in order without queues of their own, and cannot deadlock: the first
 * job in the list is never held up. Engine loop thread only.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"
#include "engine/state.h"

static void
end(struct engine *en, const struct job *j, enum link_reason reason, uint64_t stop_at)
{
    struct link_end le = {.reason = reason, .stop_at = stop_at};

    if (j->seq < en->seqs.max) {
        const struct seq *s = &en->seqs.all[j->seq];

        le.pos = s->len;
        le.computed = s->computed < s->len ? s->computed : s->len;
    }
    if (reason == LINK_FAILED)
        le.err = j->err;
    engine_tell(en, LINK_END, j, &le, sizeof le, NULL, 0);
}

void
work_refuse(struct engine *en, const struct job *j)
{
    end(en, j, LINK_FAILED, 0);
}

enum progress
job_done(struct engine *en, const struct job *j)
{
    end(en, j, LINK_DONE, 0);
    return OVER;
}

enum progress
job_failed(struct engine *en, const struct job *j)
{
    end(en, j, LINK_FAILED, 0);
    return OVER;
}

static int
check_pos(const struct seq *s, uint64_t pos, struct err *e)
{
    if (pos == s->len)
        return 0;
    return err_set(e, ERR_CONFLICT, 0, "position %llu, but the sequence has %zu tokens",
                   (unsigned long long)pos, s->len);
}

/* OPEN, FORK, CLOSE and REWIND: over at once. */
static enum progress
change(struct engine *en, struct job *j)
{
    struct seqs *ss = &en->seqs;
    int r;

    switch (j->type) {
    case LINK_OPEN: r = seq_open(ss, j->seq, j->a.open.owner, &j->err); break;
    case LINK_FORK:
        r = seq_fork(ss, j->a.fork.from, j->seq, j->a.fork.owner, &j->err);
        break;
    case LINK_CLOSE:
        r = seq_close(ss, j->seq, &j->err);
        if (r == 0)
            sched_forget(&en->sched, j->seq);
        break;
    default: r = seq_rewind(ss, j->seq, j->a.rewind.len, &j->err); break;
    }
    return r == 0 ? job_done(en, j) : job_failed(en, j);
}

static int
start_feed(struct engine *en, struct job *j)
{
    const struct link_feed *f = &j->a.feed;
    struct seq *s = seq_find(&en->seqs, j->seq, &j->err);

    if (s == NULL || check_pos(s, f->pos, &j->err) == -1)
        return -1;
    for (uint32_t i = 0; i < f->n; i++)
        if (j->tokens[i] >= en->info.vocab)
            return err_set(&j->err, ERR_INVALID, 0,
                           "token %u at position %llu: ids end at %u", j->tokens[i],
                           (unsigned long long)f->pos + i, en->info.vocab);
    if (seq_put_ahead(&en->seqs, s, j->tokens, f->n, &j->err) == -1)
        return -1;
    if (f->score == 1 && seq_want_row(&en->seqs, j->seq, &j->err) == -1) {
        seq_drop_ahead(s);
        return -1;
    }
    free(j->tokens);
    j->tokens = NULL;
    j->started = true;
    return 0;
}

static enum progress
feed(struct engine *en, struct job *j)
{
    if (!j->started && start_feed(en, j) == -1)
        return job_failed(en, j);
    /* What is fed becomes part of the sequence as steps compute it. */
    return en->seqs.all[j->seq].ahead == 0 ? job_done(en, j) : NEEDS_STEP;
}

static bool
is_stop_token(const struct sample_params *p, uint32_t id)
{
    for (uint32_t i = 0; i < p->n_stop_tokens; i++)
        if (p->stop_tokens[i] == id)
            return true;
    return false;
}

/* True, and LINK_END sent, if the sample is over with `id`, its last token. */
static bool
is_over(struct engine *en, const struct job *j, uint32_t id, bool stopped, uint64_t stop_at)
{
    const struct sampling *sa = j->sampling;

    if (is_stop_token(&sa->params, id))
        end(en, j, LINK_STOP_TOKEN, 0);
    else if (stopped)
        end(en, j, LINK_STOP_STRING, stop_at);
    else if (sa->n_drawn >= sa->params.max_tokens)
        end(en, j, LINK_LIMIT, 0);
    else
        return false;
    return true;
}

static bool
match_stops(struct engine *en, struct sampling *sa, uint32_t id, uint64_t *at)
{
    const char *bytes;
    size_t len;

    if (sa->params.n_stops == 0)
        return false;
    bytes = en->model.token_bytes(en->model.token_arg, id, &len);
    return stop_matcher_feed(&sa->stops, bytes, len, at);
}

/* 0: go on; 1: over already, LINK_END sent; -1: j->err. */
static int
start_sample(struct engine *en, struct job *j)
{
    struct sampling *sa = j->sampling;
    struct seq *s = seq_find(&en->seqs, j->seq, &j->err);
    uint64_t at = 0;
    bool stopped = false;

    if (s == NULL || check_pos(s, j->a.sample.pos, &j->err) == -1 ||
        sample_params_check(&sa->params, en->info.vocab, &j->err) == -1)
        return -1;
    if (s->len == 0)
        return err_set(&j->err, ERR_INVALID, 0, "nothing to go on from: no token was fed");
    if (sa->n_drawn > s->len)
        return err_set(&j->err, ERR_INVALID, 0, "%llu tokens drawn before, of %zu",
                       (unsigned long long)sa->n_drawn, s->len);
    if (j->fd != -1 && job_map_rows(j, en->info.vocab) == -1)
        return -1;
    stop_matcher_init(&sa->stops, &sa->params);
    for (size_t i = s->len - sa->n_drawn; i < s->len && !stopped; i++)
        stopped = match_stops(en, sa, s->tokens[i], &at);
    j->started = true;
    if (sa->n_drawn > 0)
        return is_over(en, j, s->tokens[s->len - 1], stopped, at);
    if (sa->params.max_tokens > 0)
        return 0;
    end(en, j, LINK_LIMIT, 0);
    return 1;
}

/* The row that the token at pos was drawn from, into its slot; see struct link_row. */
static void
put_row(const struct job *j, const float *row, uint32_t vocab, uint64_t pos, double log_sum)
{
    struct link_row *slot =
        (struct link_row *)(void *)(j->rows +
                                    pos % j->a.sample.rows * link_row_bytes(vocab));

    __atomic_store_n(&slot->stamp, 0, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_RELEASE);
    slot->log_sum = log_sum;
    memcpy(slot + 1, row, vocab * sizeof *row);
    __atomic_store_n(&slot->stamp, pos + 1, __ATOMIC_RELEASE);
}

static enum progress
draw(struct engine *en, struct job *j, struct seq *s)
{
    struct sampling *sa = j->sampling;
    const struct link_tokens lt = {
        .pos = s->len, .n = 1, .choice_bytes = sizeof(struct sample_choice)};
    const struct sample_choice *c = choose_one(en, j);
    uint64_t at = 0;
    bool stopped;

    if (c == NULL)
        return job_failed(en, j);
    if (j->rows != NULL)
        put_row(j, s->row, en->info.vocab, s->len, c->log_sum);
    if (seq_append(&en->seqs, s, c->id, &j->err) == -1)
        return job_failed(en, j);
    sa->n_drawn++;
    stopped = match_stops(en, sa, c->id, &at);
    engine_tell(en, LINK_TOKENS, j, &lt, sizeof lt, c, sizeof *c);
    if (!is_over(en, j, c->id, stopped, at))
        return NEEDS_STEP;
    seq_fetch_row(&en->seqs, j->seq); /* a KV_OUT would want it */
    return OVER;
}

static enum progress
sample(struct engine *en, struct job *j)
{
    struct seq *s = &en->seqs.all[j->seq];

    if (!j->started) {
        const int r = start_sample(en, j);

        if (r != 0)
            return r == 1 ? OVER : job_failed(en, j);
    }
    if (j->sampling->has_drawn)
        return draw(en, j, s);
    if (seq_want_row(&en->seqs, j->seq, &j->err) == -1)
        return job_failed(en, j);
    return seq_has_row(s) ? draw(en, j, s) : NEEDS_STEP;
}

static int
write_row(const struct engine *en, const struct job *j, const float *row, struct err *e)
{
    const size_t bytes = en->info.vocab * sizeof *row;
    struct stat st;
    size_t at = 0;

    if (fstat(j->fd, &st) == -1 || !S_ISREG(st.st_mode) || (uint64_t)st.st_size != bytes)
        return err_set(e, ERR_INVALID, 0, "the logits' file is not one of %zu bytes",
                       bytes);
    while (at < bytes) {
        const ssize_t n = pwrite(j->fd, (const char *)row + at, bytes - at, (off_t)at);

        if (n == -1 && errno == EINTR)
            continue;
        if (n <= 0)
            return err_set(e, ERR_INVALID, errno, "the logits' file cannot be written: %s",
                           strerror(errno));
        at += (size_t)n;
    }
    return 0;
}

static enum progress
logits(struct engine *en, struct job *j)
{
    struct seq *s = seq_find(&en->seqs, j->seq, &j->err);

    if (s == NULL)
        return job_failed(en, j);
    if (s->len == 0) {
        err_set(&j->err, ERR_INVALID, 0, "no logits: no token was fed");
        return job_failed(en, j);
    }
    if (seq_want_row(&en->seqs, j->seq, &j->err) == -1)
        return job_failed(en, j);
    if (!seq_has_row(s))
        return NEEDS_STEP;
    return write_row(en, j, s->row, &j->err) == 0 ? job_done(en, j) : job_failed(en, j);
}

static enum progress
advance(struct engine *en, struct job *j)
{
    switch (j->type) {
    case LINK_FEED: return feed(en, j);
    case LINK_SAMPLE: return sample(en, j);
    case LINK_LOGITS: return logits(en, j);
    case LINK_KV_OUT: return copy_out(en, j);
    case LINK_KV_IN: return copy_in(en, j);
    case LINK_KV_SET: return copy_set(en, j);
    default: return change(en, j);
    }
}

static void
wait_for_step(struct engine *en, struct job *j)
{
    const struct seq *s = &en->seqs.all[j->seq];

    en->waiting[en->n_waiting] = j;
    en->items[en->n_waiting++] =
        (struct sched_item){.owner = s->owner,
                            .seq = j->seq,
                            .pos = s->computed,
                            .tokens = (uint32_t)(s->len + s->ahead - s->computed),
                            .scored = j->type == LINK_FEED && j->a.feed.score == 1};
}

/* Does an earlier job name its sequences? Caches that come in may queue up. */
static bool
is_held_up(const struct engine *en, const struct job *j)
{
    const bool fills = j->type == LINK_KV_IN || j->type == LINK_KV_SET;

    if (en->taken[j->seq] == en->turn || (!fills && en->filling[j->seq] == en->turn))
        return true;
    return j->type == LINK_FORK && (en->taken[j->a.fork.from] == en->turn ||
                                    en->filling[j->a.fork.from] == en->turn);
}

/* One job's turn. True if it is over. */
static bool
turn_of(struct engine *en, struct job *j)
{
    enum progress p = NEEDS_STEP;

    if (j->err.code != ERR_NONE && j->copying == NULL) {
        if (j->started)
            seq_drop_ahead(&en->seqs.all[j->seq]);
        work_refuse(en, j);
        return true;
    }
    if (!is_held_up(en, j)) {
        p = advance(en, j);
        if (p == OVER)
            return true;
        if (p == NEEDS_STEP)
            wait_for_step(en, j);
        else
            en->n_copying++;
    }
    if (p == COPIES && j->type == LINK_KV_IN && j->copying != NULL)
        en->filling[j->seq] = en->turn;
    else
        en->taken[j->seq] = en->turn;
    if (j->type == LINK_FORK)
        en->taken[j->a.fork.from] = en->turn;
    return false;
}

void
work(struct engine *en)
{
    struct job **at = &en->jobs;

    choose_all(en);
    en->turn++;
    en->n_waiting = 0;
    en->n_copying = 0;
    en->copies_to_ask = false;
    en->copy_until = 0;
    while (*at != NULL && en->exit == ENGINE_GOES_ON) {
        struct job *j = *at;

        if (!turn_of(en, j)) {
            at = &j->next;
            continue;
        }
        *at = j->next;
        if (j->next == NULL)
            en->jobs_end = at;
        en->n_jobs--;
        job_free(j);
    }
}
