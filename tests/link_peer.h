/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TESTS_LINK_PEER_H
#define TESTS_LINK_PEER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/sampler.h"
#include "proto/link.h"

/*
 * The daemon's end of the link, for tests: sends jobs, notes all that is said about each, and
 * holds the engine to proto/link.h (positions without gaps, one LINK_END, nothing behind it):
 * what breaks a rule fails the test. The engine is a loop in this thread (turn is called while
 * waiting) or a process of its own.
 */
struct peer_job {
    uint32_t seq, type;
    bool ended;
    struct link_end end;
    uint64_t pos;     /* the sequence's length by LINK_FED and LINK_TOKENS */
    uint32_t *tokens; /* drawn, n_tokens */
    struct sample_choice *choices;
    size_t n_tokens;
    float *scores;
    size_t n_scores;
    uint32_t n_fed; /* LINK_FED packets */
    bool is_saved;
    struct link_saved saved;
};

enum { PEER_MAX_JOBS = 4096 };

struct peer {
    int sock;
    int (*turn)(void *arg); /* NULL: the engine runs by itself */
    void *turn_arg;
    struct peer_job jobs[PEER_MAX_JOBS]; /* by number */
    uint32_t n_jobs;                     /* number 0 is not used */
    struct link_ready ready;
    bool is_ready, is_gone, is_fatal;
    struct err fatal;
};

void peer_init(struct peer *p, int sock);
void peer_done(struct peer *p); /* closes the socket */

/* Each returns the job's number. */
uint32_t peer_open(struct peer *p, uint32_t seq, uint32_t owner);
uint32_t peer_fork(struct peer *p, uint32_t from, uint32_t to);
uint32_t peer_close(struct peer *p, uint32_t seq);
uint32_t peer_rewind(struct peer *p, uint32_t seq, uint64_t len);
uint32_t peer_feed(struct peer *p, uint32_t seq, uint64_t pos, const uint32_t *tokens,
                   uint32_t n, bool score);
uint32_t peer_sample(struct peer *p, uint32_t seq, uint64_t pos, uint32_t n_drawn,
                     const struct sample_params *params);
uint32_t peer_logits(struct peer *p, uint32_t seq, int fd);
uint32_t peer_kv_out(struct peer *p, uint32_t seq, uint64_t state_at, uint64_t row_at,
                     const struct link_kv_run *runs, uint32_t n_runs);
uint32_t peer_kv_in(struct peer *p, uint32_t seq, uint64_t pos, uint64_t at,
                    const uint32_t *tokens, uint32_t n);
uint32_t peer_kv_set(struct peer *p, uint32_t seq, uint64_t pos, uint64_t state_at,
                     uint64_t row_at);
void peer_cancel(struct peer *p, uint32_t job);
void peer_quit(struct peer *p);

/* One packet as given, under a new number. */
uint32_t peer_send(struct peer *p, uint16_t type, uint32_t seq, const void *body,
                   size_t len, int fd);

void peer_read(struct peer *p);      /* what has come so far */
bool peer_wait_some(struct peer *p); /* a turn, or until a packet comes; false: gone */
const struct peer_job *peer_wait(struct peer *p, uint32_t job); /* until it has ended */
void peer_wait_ready(struct peer *p);

/* The job must end well, or with that error. */
const struct peer_job *peer_ok(struct peer *p, uint32_t job);
void peer_fails(struct peer *p, uint32_t job, enum err_code code);

#endif /* TESTS_LINK_PEER_H */
