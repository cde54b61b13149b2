/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections. A struct conn is freed only by the loop's own callbacks and only at their end
 * (`dead` marks it before), so that a request may end, and its connection break, in the middle
 * of anything.
 */
#include "config.h"

#include <errno.h>
#include <event2/event.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/err.h"
#include "base/log.h"
#include "daemon/conn.h"
#include "daemon/options.h"
#include "daemon/request.h"
#include "daemon/server.h"
#include "daemon/shm.h"

enum { FRAMES_A_TURN = 32, READS_A_TURN = 8, GROUPS_AT_FIRST = 64, BYE_BYTES = 2048 };

static void
conn_free(struct conn *c)
{
    struct event *all[] = {c->on_read, c->on_write, c->on_gone, c->hello_timer};

    request_leave_all(c);
    rings_drop(c);
    pages_drop(c);
    if (c->at != NULL) {
        *c->at = c->next;
        if (c->next != NULL)
            c->next->at = c->at;
    }
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        if (all[i] != NULL)
            event_free(all[i]);
    }
    frame_in_done(&c->in);
    frame_out_done(&c->out);
    close(c->fd);
    free(c->cred.groups);
    if (c->user != NULL) {
        quota_give(c->user, QUOTA_CONNECTIONS, 1);
        quota_drop(c->user);
    }
    free(c);
}

/* From inside anything: freed at the end of the turn, by on_gone. */
void
conn_drop(struct conn *c)
{
    if (c->dead)
        return;
    c->dead = true;
    event_del(c->on_read);
    event_del(c->on_write);
    event_active(c->on_gone, EV_TIMEOUT, 0);
}

size_t
conn_waiting(const struct conn *c)
{
    return frame_out_waiting(&c->out);
}

static void
try_send(struct conn *c)
{
    struct err e;
    const int rc = frame_out_send(&c->out, c->fd, &e);

    if (rc == -1)
        conn_drop(c);
    else if (rc == 0)
        event_add(c->on_write, NULL);
    else if (c->closing)
        conn_drop(c);
}

static bool
may_read(const struct conn *c)
{
    return !c->closing && c->n_requests < c->server->o->max_requests_conn &&
           conn_waiting(c) < CONN_PAUSE_BYTES;
}

void
conn_kick(struct conn *c)
{
    if (c->dead)
        return;
    if (conn_waiting(c) > 0 || c->closing)
        try_send(c);
    if (c->dead || c->in_turn || c->reading == may_read(c))
        return;
    c->reading = !c->reading;
    if (!c->reading) {
        event_del(c->on_read);
    } else {
        event_add(c->on_read, NULL);
        /* Frames may be waiting that came before the pause. */
        event_active(c->on_read, EV_READ, 0);
    }
}

void
conn_bye(struct conn *c, const struct err *why)
{
    struct wire_error body;
    struct err e;

    if (c->dead || c->closing)
        return;
    log_line(LOG_INFO, "conn-bye conn=%" PRIu64 " uid=%" PRIu32 " code=%s why=\"%s\"",
             c->number, c->cred.uid, err_name(why->code), why->text);
    wire_error_from(&body, why);
    if (wire_notify(&c->out, WIRE_METHOD_bye, &body, &e) == -1) {
        conn_drop(c);
        return;
    }
    c->closing = true;
    request_leave_all(c);
    conn_kick(c);
}

static void
on_frame(struct conn *c, const uint8_t *p, size_t len)
{
    struct wire_in in;
    struct err e;

    if (wire_open(&in, &c->in, p, len, &e) == -1) {
        conn_bye(c, &e);
        return;
    }
    switch (in.shape) {
    case WIRE_REQUEST: request_new(c, &in); break;
    case WIRE_CREDIT: request_credit(c, in.id, in.n); break;
    case WIRE_CANCEL: request_cancel(c, in.id); break;
    default:
        err_set(&e, ERR_PROTOCOL, 0, "a client sends requests, credit and cancels only");
        conn_bye(c, &e);
    }
    wire_close(&in);
}

/* Frames that are here. False: not to be gone on with now. */
static bool
take_frames(struct conn *c)
{
    for (int i = 0; i < FRAMES_A_TURN; i++) {
        const uint8_t *p;
        size_t len;
        struct err e;
        int rc;

        if (!may_read(c) || c->dead)
            return false;
        rc = frame_in_next(&c->in, &p, &len, &e);
        if (rc == -1)
            conn_bye(c, &e);
        if (rc != 1)
            return rc == 0;
        on_frame(c, p, len);
    }
    event_active(c->on_read, EV_READ, 0); /* others have their turn */
    return false;
}

static void
on_read(evutil_socket_t fd, short what, void *arg)
{
    struct conn *c = arg;
    struct err e;

    (void)what;
    if (c->dead)
        return;
    c->in_turn = true;
    for (int i = 0; take_frames(c); i++) {
        int rc;

        if (i == READS_A_TURN) {
            event_active(c->on_read, EV_READ, 0); /* others have their turn */
            break;
        }
        rc = frame_in_recv(&c->in, fd, &e);
        if (rc == -1) {
            if (e.code == ERR_PROTOCOL)
                conn_bye(c, &e);
            else
                conn_drop(c);
        }
        if (rc != 1)
            break;
    }
    c->in_turn = false;
    conn_kick(c);
}

static void
on_write(evutil_socket_t fd, short what, void *arg)
{
    struct conn *c = arg;

    (void)fd;
    (void)what;
    if (c->dead)
        return;
    try_send(c);
    if (!c->dead && conn_waiting(c) < CONN_STREAM_BYTES)
        request_resume_all(c);
    conn_kick(c);
}

void
conn_again(struct conn *c)
{
    /* With more waiting, on_write comes by itself. */
    if (!c->dead && conn_waiting(c) < CONN_STREAM_BYTES)
        event_active(c->on_write, EV_WRITE, 0);
}

/* The peer has closed, seen even while nothing is read; or conn_drop(). */
static void
on_gone(evutil_socket_t fd, short what, void *arg)
{
    struct conn *c = arg;

    (void)fd;
    /* What it sent before it left counts (an append continues): unless we are not reading,
     * the reader comes to the end by itself. */
    if (!c->dead && (what & EV_CLOSED) != 0 && c->reading)
        return;
    log_line(LOG_DEBUG, "conn-end conn=%" PRIu64, c->number);
    conn_free(c);
}

static void
on_hello_late(evutil_socket_t fd, short what, void *arg)
{
    struct conn *c = arg;
    struct err e;

    (void)fd;
    (void)what;
    if (c->hello || c->dead)
        return;
    err_set(&e, ERR_DEADLINE, 0, "no hello within %" PRIu64 " ms (setting hello-timeout)",
            c->server->o->hello_timeout);
    conn_bye(c, &e);
}

/* Who it is, as the kernel says. */
static int
read_cred(struct conn *c, struct err *e)
{
    struct ucred peer;
    socklen_t len = sizeof peer, bytes = GROUPS_AT_FIRST * sizeof(gid_t);

    if (getsockopt(c->fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) == -1)
        return err_set(e, ERR_INTERNAL, errno, "SO_PEERCRED: %s", strerror(errno));
    c->cred.uid = peer.uid;
    c->cred.gid = peer.gid;
    for (int i = 0; i < 2; i++) {
        uint32_t *p = realloc(c->cred.groups, bytes);

        if (p == NULL)
            return err_set(e, ERR_QUOTA, errno, "no memory for a connection");
        c->cred.groups = p;
        if (getsockopt(c->fd, SOL_SOCKET, SO_PEERGROUPS, p, &bytes) == 0) {
            c->cred.n_groups = bytes / sizeof(gid_t);
            return 0;
        }
        if (errno != ERANGE)
            break;
    }
    return 0; /* without them only the primary group counts */
}

static int
set_up(struct conn *c, struct err *e)
{
    struct server *sv = c->server;
    struct user *u;

    if (read_cred(c, e) == -1)
        return -1;
    u = quota_user(&sv->quota, c->cred.uid, e);
    if (u == NULL)
        return -1;
    if (quota_take(u, QUOTA_CONNECTIONS, 1, e) == -1) {
        quota_drop(u);
        return -1;
    }
    c->user = u;
    c->on_read = event_new(sv->base, c->fd, EV_READ | EV_PERSIST, on_read, c);
    c->on_write = event_new(sv->base, c->fd, EV_WRITE, on_write, c);
    c->on_gone = event_new(sv->base, c->fd, EV_CLOSED | EV_PERSIST, on_gone, c);
    c->hello_timer = evtimer_new(sv->base, on_hello_late, c);
    if (c->on_read == NULL || c->on_write == NULL || c->on_gone == NULL ||
        c->hello_timer == NULL || event_add(c->on_read, NULL) == -1 ||
        event_add(c->on_gone, NULL) == -1 ||
        event_add(c->hello_timer,
                  &(struct timeval){
                      .tv_sec = (time_t)(sv->o->hello_timeout / 1000),
                      .tv_usec = (suseconds_t)(sv->o->hello_timeout % 1000 * 1000)}) == -1)
        return err_set(e, ERR_QUOTA, errno, "no memory for a connection");
    c->reading = true;
    return 0;
}

void
conn_new(struct server *sv, int fd)
{
    struct conn *c = calloc(1, sizeof *c);
    struct err e, ignored;

    if (c == NULL) {
        close(fd);
        return;
    }
    c->server = sv;
    c->fd = fd;
    c->number = ++sv->accepted;
    frame_in_init(&c->in);
    frame_out_init(&c->out, sv->o->max_output);
    if (set_up(c, &e) == -1) {
        struct wire_error body;

        /* An empty socket takes this much for sure; if not, the close says it all. */
        sv->refused++;
        log_line(LOG_NOTICE, "conn-refused uid=%" PRIu32 " why=\"%s\"", c->cred.uid,
                 e.text);
        wire_error_from(&body, &e);
        if (wire_notify(&c->out, WIRE_METHOD_bye, &body, &ignored) == 0)
            frame_out_send(&c->out, fd, &ignored);
        conn_free(c);
        return;
    }
    c->next = sv->conns;
    c->at = &sv->conns;
    if (c->next != NULL)
        c->next->at = &c->next;
    sv->conns = c;
    log_line(LOG_DEBUG, "conn-new conn=%" PRIu64 " uid=%" PRIu32, c->number, c->cred.uid);
}

void
conn_close_all(struct server *sv)
{
    while (sv->conns != NULL)
        conn_free(sv->conns);
}
