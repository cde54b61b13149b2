/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DAEMON_SERVER_H
#define DAEMON_SERVER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "daemon/listener.h"
#include "daemon/quota.h"
#include "proto/wire.h"

struct conn;
struct event;
struct event_base;
struct options;
struct store;
struct text;
struct tokenizer;
struct looking;
struct transfers;
struct work;

/*
 * What all connections share, and the socket that they come from. Main thread.
 */
struct server {
    struct event_base *base;
    const struct options *o;
    struct quota quota;
    struct work *work;
    struct text *text;
    struct store *store;
    const struct tokenizer *tokenizer;
    uint32_t bos, eos, vocab;
    char model[129]; /* its name: the last part of its path */
    char instance[33];
    uint64_t started_ns;
    bool stopping;

    struct conn *conns;
    struct listener listener;
    int spare; /* given up for a moment when descriptors run out */
    struct event *on_accept, *again;
    struct transfers *transfers;
    struct looking *looking; /* req_store.c's */
    struct event *on_page;   /* pages.c's */
    uint32_t n_pages;

    /* Counted since the start. */
    uint64_t accepted, refused, slow;
    uint64_t requests[WIRE_METHODS], errors[ERR_CODES];
};

/* On the socket that was passed (activation.h; taken over), or, with -1, on one made at --socket.
 * ERR_EXISTS: another fathomd listens there. Connections are accepted from here on. */
int server_listen(struct server *sv, int passed, struct err *e);

/* Asks for the user's name, once; whoever needs it sooner takes the number. */
void server_look_up(const struct server *sv, struct user *u);

/* No new connections; those that there are stay. The socket's path goes if it is ours. */
void server_unlisten(struct server *sv);

#endif /* DAEMON_SERVER_H */
