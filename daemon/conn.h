/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DAEMON_CONN_H
#define DAEMON_CONN_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/session.h"
#include "proto/frame.h"
#include "proto/wire.h"

struct event;
struct page;
struct request;
struct ring;
struct server;

enum {
    CONN_STREAM_BYTES = 64 << 10, /* streams wait while more is queued for the reader */
    CONN_PAUSE_BYTES = 256 << 10, /* and nothing is read from it */
};

/*
 * One client's connection: frames in, frames out, its requests under way. Reading stops while
 * the client has enough requests under way or does not read what it asked for; that it left is
 * noticed all the same. Main thread.
 */
struct conn {
    struct conn *next, **at; /* in the server's list */
    struct server *server;
    int fd;
    struct cred cred;
    struct user *user; /* held */
    struct frame_in in;
    struct frame_out out;
    struct event *on_read, *on_write, *on_gone, *hello_timer;
    bool hello, reading, closing, dead, in_turn;
    struct request *requests;
    struct ring *rings; /* shm.c's, newest first */
    struct page *pages;
    uint64_t n_requests;
    uint64_t number;
};

void conn_new(struct server *sv, int fd); /* takes fd over */
void conn_close_all(struct server *sv);

/* Something was appended to c->out, or a request ended: sends, reads on, or gives up. */
void conn_kick(struct conn *c);

/* A request has more for the reader: it is resumed in another turn of the loop, or as soon as
 * the reader has taken enough. */
void conn_again(struct conn *c);

/* At once, without a word; freed when the loop turns. */
void conn_drop(struct conn *c);

/* Tells the client why (bye) and closes once it is sent. */
void conn_bye(struct conn *c, const struct err *why);

/* Bytes that it has yet to read. */
size_t conn_waiting(const struct conn *c);

#endif /* DAEMON_CONN_H */
