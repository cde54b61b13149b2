/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DAEMON_METRICS_HTTP_H
#define DAEMON_METRICS_HTTP_H

#include <stddef.h>

#include "base/err.h"
#include "daemon/listener.h"

struct buf;
struct event_base;

/*
 * One page, told to whoever connects to a Unix socket: as HTTP to a client that sends a request
 * (GET or HEAD of /metrics), as it is to one that sends nothing within a second or has closed
 * its side. One request a connection, few connections at a time, little to read, a deadline for
 * each: a client that is slow or hostile costs a few kilobytes for a few seconds. Main thread.
 */
struct metrics_http;

struct metrics_page {
    void *arg;
    int (*write)(void *arg, struct buf *out, struct err *e);
};

/* The listener is taken over. */
struct metrics_http *metrics_http_new(struct event_base *base, struct listener *l,
                                      const struct metrics_page *page, struct err *e);
void metrics_http_free(struct metrics_http *h); /* NULL is fine */

/* What the first n bytes of a request ask for. */
enum metrics_ask {
    METRICS_ASK_MORE, /* not whole yet */
    METRICS_ASK_GET = 200,
    METRICS_ASK_HEAD = 201,
    METRICS_ASK_BAD = 400,
    METRICS_ASK_NOT_FOUND = 404,
    METRICS_ASK_METHOD = 405,
};

enum metrics_ask metrics_http_ask(const char *p, size_t n);

#endif /* DAEMON_METRICS_HTTP_H */
