/* SPDX-License-Identifier: Apache-2.0 */
/* The daemon's end of the link for tests; link_peer.h says what it checks. */
#include "config.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/err.h"
#include "tests/link_peer.h"
#include "tests/test.h"

void
peer_init(struct peer *p, int sock)
{
    memset(p, 0, sizeof *p);
    p->sock = sock;
}

void
peer_done(struct peer *p)
{
    for (uint32_t i = 1; i <= p->n_jobs; i++) {
        free(p->jobs[i].tokens);
        free(p->jobs[i].choices);
        free(p->jobs[i].scores);
    }
    if (p->sock != -1)
        close(p->sock);
    peer_init(p, -1);
}

static void
send_packet(struct peer *p, uint16_t type, uint32_t seq, uint32_t job,
            const struct iovec *iov, int n_iov, int fd)
{
    struct link_head h = {.type = type, .seq = seq, .job = job};
    struct err e;

    while (link_send(p->sock, &h, iov, n_iov, fd, &e) == -1) {
        if (e.code == ERR_UNAVAILABLE) { /* the reader will find out */
            p->is_gone = p->turn == NULL;
            return;
        }
        assert_int_equal(e.code, ERR_BUSY);
        if (!peer_wait_some(p))
            return;
    }
}

static uint32_t
new_job(struct peer *p, uint32_t type, uint32_t seq, uint64_t pos)
{
    assert_true(p->n_jobs + 1 < PEER_MAX_JOBS);
    p->n_jobs++;
    p->jobs[p->n_jobs] = (struct peer_job){.seq = seq, .type = type, .pos = pos};
    return p->n_jobs;
}

uint32_t
peer_send(struct peer *p, uint16_t type, uint32_t seq, const void *body, size_t len, int fd)
{
    const uint32_t job = new_job(p, type, seq, 0);
    const struct iovec iov = {(void *)body, len};

    send_packet(p, type, seq, job, &iov, 1, fd);
    return job;
}

uint32_t
peer_open(struct peer *p, uint32_t seq, uint32_t owner)
{
    const struct link_open b = {.owner = owner};

    return peer_send(p, LINK_OPEN, seq, &b, sizeof b, -1);
}

uint32_t
peer_fork(struct peer *p, uint32_t from, uint32_t to)
{
    const struct link_fork b = {.from = from, .owner = 1};

    return peer_send(p, LINK_FORK, to, &b, sizeof b, -1);
}

uint32_t
peer_close(struct peer *p, uint32_t seq)
{
    return peer_send(p, LINK_CLOSE, seq, NULL, 0, -1);
}

uint32_t
peer_rewind(struct peer *p, uint32_t seq, uint64_t len)
{
    const struct link_rewind b = {.len = len};

    return peer_send(p, LINK_REWIND, seq, &b, sizeof b, -1);
}

uint32_t
peer_feed(struct peer *p, uint32_t seq, uint64_t pos, const uint32_t *tokens, uint32_t n,
          bool score)
{
    const struct link_feed b = {.pos = pos, .n = n, .score = score};
    const struct iovec iov[2] = {{(void *)&b, sizeof b},
                                 {(void *)tokens, n * sizeof *tokens}};
    const uint32_t job = new_job(p, LINK_FEED, seq, pos);

    send_packet(p, LINK_FEED, seq, job, iov, 2, -1);
    return job;
}

uint32_t
peer_sample(struct peer *p, uint32_t seq, uint64_t pos, uint32_t n_drawn,
            const struct sample_params *params)
{
    const struct link_sample b = {
        .pos = pos, .n_drawn = n_drawn, .params_bytes = sizeof *params};
    const struct iovec iov[2] = {{(void *)&b, sizeof b}, {(void *)params, sizeof *params}};
    const uint32_t job = new_job(p, LINK_SAMPLE, seq, pos);

    send_packet(p, LINK_SAMPLE, seq, job, iov, 2, -1);
    return job;
}

uint32_t
peer_logits(struct peer *p, uint32_t seq, int fd)
{
    return peer_send(p, LINK_LOGITS, seq, NULL, 0, fd);
}

uint32_t
peer_kv_out(struct peer *p, uint32_t seq, uint64_t state_at, uint64_t row_at,
            const struct link_kv_run *runs, uint32_t n_runs)
{
    const struct link_kv_out b = {.state_at = state_at, .row_at = row_at, .n_runs = n_runs};
    const struct iovec iov[2] = {{(void *)&b, sizeof b},
                                 {(void *)runs, n_runs * sizeof *runs}};
    const uint32_t job = new_job(p, LINK_KV_OUT, seq, 0);

    send_packet(p, LINK_KV_OUT, seq, job, iov, n_runs > 0 ? 2 : 1, -1);
    return job;
}

uint32_t
peer_kv_in(struct peer *p, uint32_t seq, uint64_t pos, uint64_t at, const uint32_t *tokens,
           uint32_t n)
{
    const struct link_kv_in b = {.pos = pos, .at = at, .n = n};
    const struct iovec iov[2] = {{(void *)&b, sizeof b},
                                 {(void *)tokens, n * sizeof *tokens}};
    const uint32_t job = new_job(p, LINK_KV_IN, seq, pos);

    send_packet(p, LINK_KV_IN, seq, job, iov, 2, -1);
    return job;
}

uint32_t
peer_kv_set(struct peer *p, uint32_t seq, uint64_t pos, uint64_t state_at, uint64_t row_at)
{
    const struct link_kv_set b = {.pos = pos, .state_at = state_at, .row_at = row_at};

    return peer_send(p, LINK_KV_SET, seq, &b, sizeof b, -1);
}

void
peer_cancel(struct peer *p, uint32_t job)
{
    send_packet(p, LINK_CANCEL, p->jobs[job].seq, job, NULL, 0, -1);
}

void
peer_quit(struct peer *p)
{
    send_packet(p, LINK_QUIT, 0, 0, NULL, 0, -1);
}

static void
got_fed(struct peer_job *j, const struct link_fed *f)
{
    assert_int_equal(j->type, LINK_FEED);
    assert_true(f->pos > j->pos);
    assert_true(j->n_scores == 0 || f->pos == j->end.pos + j->n_scores);
    j->pos = f->pos;
    j->n_fed++;
}

static void
got_scores(struct peer_job *j, const struct link_scores *s, size_t bytes)
{
    assert_int_equal(j->type, LINK_FEED);
    assert_int_equal(bytes, sizeof *s + s->n * sizeof(float));
    assert_int_equal(s->pos, j->pos);
    if (j->n_scores == 0)
        j->end.pos = s->pos; /* where the scores began, until the end comes */
    j->scores = realloc(j->scores, (j->n_scores + s->n) * sizeof(float));
    memcpy(j->scores + j->n_scores, s + 1, s->n * sizeof(float));
    j->n_scores += s->n;
}

static void
got_tokens(struct peer_job *j, const struct link_tokens *t, size_t bytes)
{
    const struct sample_choice *c = (const void *)(t + 1);

    assert_int_equal(j->type, LINK_SAMPLE);
    assert_int_equal(t->pos, j->pos);
    assert_int_equal(t->choice_bytes, sizeof *c);
    assert_int_equal(bytes, sizeof *t + t->n * sizeof *c);
    j->tokens = realloc(j->tokens, (j->n_tokens + t->n) * sizeof *j->tokens);
    j->choices = realloc(j->choices, (j->n_tokens + t->n) * sizeof *c);
    for (uint32_t i = 0; i < t->n; i++) {
        j->choices[j->n_tokens] = c[i];
        j->tokens[j->n_tokens++] = c[i].id;
    }
    j->pos += t->n;
}

static void
got_saved(struct peer_job *j, const struct link_saved *s, size_t bytes)
{
    assert_int_equal(j->type, LINK_KV_OUT);
    assert_int_equal(bytes, sizeof *s);
    assert_false(j->is_saved);
    j->saved = *s;
    j->is_saved = true;
}

static void
got_end(struct peer_job *j, const struct link_end *le)
{
    j->end = *le;
    j->ended = true;
    if (j->type == LINK_SAMPLE && le->reason != LINK_FAILED)
        assert_int_equal(le->pos, j->pos);
    if (j->type == LINK_KV_OUT)
        assert_int_equal(j->is_saved, le->reason != LINK_FAILED);
    if (j->type == LINK_FEED && le->reason != LINK_FAILED)
        assert_int_equal(le->pos, j->pos);
}

static void
got(struct peer *p, const union link_packet *pk, size_t len)
{
    const uint32_t n = pk->head.job;
    const void *body = &pk->head + 1;
    const size_t bytes = len - sizeof pk->head;
    struct peer_job *j;

    if (pk->head.type == LINK_READY) {
        assert_false(p->is_ready);
        assert_int_equal(bytes, sizeof p->ready);
        memcpy(&p->ready, body, sizeof p->ready);
        p->is_ready = true;
        return;
    }
    assert_false(p->is_fatal);
    if (pk->head.type == LINK_FATAL) {
        assert_int_equal(bytes, sizeof p->fatal);
        link_err(&p->fatal, body);
        p->is_fatal = true;
        return;
    }
    assert_true(p->is_ready);
    assert_in_range(n, 1, p->n_jobs);
    j = &p->jobs[n];
    assert_false(j->ended);
    assert_int_equal(pk->head.seq, j->seq);
    switch (pk->head.type) {
    case LINK_FED: got_fed(j, body); break;
    case LINK_SCORES: got_scores(j, body, bytes); break;
    case LINK_TOKENS: got_tokens(j, body, bytes); break;
    case LINK_SAVED: got_saved(j, body, bytes); break;
    case LINK_END:
        assert_int_equal(bytes, sizeof(struct link_end));
        got_end(j, body);
        break;
    default: fail_msg("packet of type %u", pk->head.type);
    }
}

void
peer_read(struct peer *p)
{
    static union link_packet pk;
    struct err e;
    size_t len;
    int r;

    while ((r = link_recv(p->sock, &pk, &len, NULL, &e)) == 1)
        got(p, &pk, len);
    if (r == -1) {
        assert_int_equal(e.code, ERR_UNAVAILABLE);
        p->is_gone = true;
    }
}

bool
peer_wait_some(struct peer *p)
{
    if (p->is_gone)
        return false;
    if (p->turn != NULL) {
        const int r = p->turn(p->turn_arg);

        peer_read(p);
        p->is_gone |= r != -1;
    } else {
        struct pollfd f = {.fd = p->sock, .events = POLLIN};

        if (poll(&f, 1, 60000) != 1)
            fail_msg("nothing from the engine for a minute");
        peer_read(p);
    }
    return !p->is_gone;
}

const struct peer_job *
peer_wait(struct peer *p, uint32_t job)
{
    while (!p->jobs[job].ended)
        if (!peer_wait_some(p) && !p->jobs[job].ended)
            fail_msg("the engine is gone before job %u has ended: %s", job, p->fatal.text);
    return &p->jobs[job];
}

void
peer_wait_ready(struct peer *p)
{
    while (!p->is_ready)
        if (!peer_wait_some(p) && !p->is_ready)
            fail_msg("the engine does not get ready: %s", p->fatal.text);
}

const struct peer_job *
peer_ok(struct peer *p, uint32_t job)
{
    const struct peer_job *j = peer_wait(p, job);

    if (j->end.reason == LINK_FAILED)
        fail_msg("job %u failed: %s", job, j->end.err.text);
    return j;
}

void
peer_fails(struct peer *p, uint32_t job, enum err_code code)
{
    const struct peer_job *j = peer_wait(p, job);

    if (j->end.reason != LINK_FAILED || j->end.err.code != code)
        fail_msg("job %u: reason %u, %s (%s), not %s", job, j->end.reason,
                 err_name(j->end.err.code), j->end.err.text, err_name(code));
}
