/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DAEMON_ENGINE_H
#define DAEMON_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/link.h"

struct err;
struct event_base;
struct iovec;
struct options;

/*
 * The engine's life: start, load, watch, restart within a budget, give up. It passes packets
 * on, and believes nothing: a packet that cannot be right is a fault like a crash. Main thread.
 */
enum engine_state {
    ENGINE_LOADING,
    ENGINE_SERVING,
    ENGINE_RESTARTING, /* it died; the next one starts after a pause */
    ENGINE_FAILED,     /* too many faults; the next try when the window is over */
    ENGINE_STOPPED
};

struct engine_calls {
    void *arg;
    void (*ready)(void *arg);
    /* A job's packet. -1: it is a lie, *e says which; the engine is killed. */
    int (*packet)(void *arg, const union link_packet *p, size_t len, struct err *e);
    /* The most tokens that it may compute before it has something to say; 0: no job is under
     * way. */
    uint64_t (*expects)(void *arg);
    /* Sequences and jobs are gone. own_fault: it was not killed from outside; what the system
     * does to a process that needs too much memory counts as its own. */
    void (*lost)(void *arg, bool own_fault);
    /* The budget is used up, or it cannot ever run: then `status` is fathomd's exit status. */
    void (*failed)(void *arg, bool forever, int status);
    void (*stopped)(void *arg);
    void (*progress)(void *arg); /* loading went on */
};

struct engine;

/* Host memory that engines get: set before the first one starts. fd -1: none. */
void engine_set_arena(struct engine *g, int fd, uint64_t bytes);

/* vocab: the model's, as fathomd knows it. */
struct engine *engine_new(struct event_base *base, const struct options *o, uint32_t vocab,
                          const struct engine_calls *calls, struct err *e);
void engine_free(struct engine *g); /* kills it if it runs */
int engine_start(struct engine *g, struct err *e);
void engine_stop(struct engine *g); /* asks it to end; calls->stopped() follows */
void engine_kill(struct engine *g); /* for when that takes too long */

enum engine_state engine_state(const struct engine *g);
const struct link_ready *engine_info(
    const struct engine *g); /* of the last that was ready; NULL */
void engine_status(const struct engine *g, struct link_status *out);
uint64_t engine_restarts(const struct engine *g);
int engine_pid(const struct engine *g);                 /* 0: none */
const struct err *engine_error(const struct engine *g); /* why it last went */

/* Queues a packet (copied). fd: taken over, or -1. Only while it is serving. */
int engine_send(struct engine *g, enum link_type type, uint32_t seq, uint32_t job,
                const struct iovec *iov, int n_iov, int fd, struct err *e);

#endif /* DAEMON_ENGINE_H */
