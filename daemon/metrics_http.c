/* SPDX-License-Identifier: Apache-2.0 */
/*
 * As much of HTTP as a page needs that is the same for everybody: the first line of a request is
 * looked at, the rest of its head is skipped, the answer is written once and the connection
 * closed.
 */
#include "config.h"

#include <errno.h>
#include <event2/event.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/buf.h"
#include "daemon/metrics_http.h"

enum {
    MAX_PEERS = 16,  /* more wait in the socket's backlog */
    MAX_HEAD = 8192, /* bytes of a request */
    MAX_PAGE = 1 << 20,
    SILENCE_MS = 1000, /* then a client that has said nothing is told without HTTP */
    DEADLINE_MS = 5000,
    PAUSE_MS = 500, /* of accepting, when no descriptor is left */
};

struct peer {
    struct metrics_http *http;
    struct peer *next, **at;
    int fd;
    struct event *on_read, *on_write, *timer;
    bool asked; /* the answer is in out */
    char head[MAX_HEAD];
    size_t n_head, sent;
    struct buf out;
};

struct metrics_http {
    struct event_base *base;
    struct listener listener;
    struct metrics_page page;
    struct event *on_accept, *again;
    struct peer *peers;
    size_t n_peers;
};

static const struct timeval deadline = {.tv_sec = DEADLINE_MS / 1000};
static const struct timeval silence = {.tv_sec = SILENCE_MS / 1000};

/* --- the request -------------------------------------------------------------------------- */

static bool
begins(const char *p, size_t n, const char *with)
{
    return n >= strlen(with) && memcmp(p, with, strlen(with)) == 0;
}

static bool
head_is_whole(const char *p, size_t n)
{
    return memmem(p, n, "\r\n\r\n", 4) != NULL || memmem(p, n, "\n\n", 2) != NULL;
}

enum metrics_ask
metrics_http_ask(const char *p, size_t n)
{
    static const char path[] = "/metrics";
    const char *eol = memchr(p, '\n', n), *target, *end;
    size_t len;

    if (!head_is_whole(p, n))
        return n < MAX_HEAD ? METRICS_ASK_MORE : METRICS_ASK_BAD;
    /* METHOD SP target SP HTTP/1.x, which ends the line */
    len = (size_t)(eol - p);
    if (len > 0 && p[len - 1] == '\r')
        len--;
    target = memchr(p, ' ', len);
    if (target == NULL)
        return METRICS_ASK_BAD;
    target++;
    end = memchr(target, ' ', len - (size_t)(target - p));
    if (end == NULL || !begins(end, len - (size_t)(end - p), " HTTP/1."))
        return METRICS_ASK_BAD;
    if (!begins(p, len, "GET ") && !begins(p, len, "HEAD "))
        return METRICS_ASK_METHOD;
    if ((size_t)(end - target) < sizeof path - 1 ||
        memcmp(target, path, sizeof path - 1) != 0 ||
        (end != target + sizeof path - 1 && target[sizeof path - 1] != '?'))
        return METRICS_ASK_NOT_FOUND;
    return p[0] == 'G' ? METRICS_ASK_GET : METRICS_ASK_HEAD;
}

/* --- the answer --------------------------------------------------------------------------- */

static int
write_answer(struct peer *p, enum metrics_ask ask, struct err *e)
{
    static const struct {
        enum metrics_ask ask;
        const char *status, *text;
    } refusals[] = {
        {METRICS_ASK_BAD, "400 Bad Request", "not a request of HTTP/1\n"},
        {METRICS_ASK_NOT_FOUND, "404 Not Found", "only /metrics is here\n"},
        {METRICS_ASK_METHOD, "405 Method Not Allowed", "GET and HEAD only\n"},
    };

    const char *status = "200 OK", *type = "text/plain; version=0.0.4; charset=utf-8";
    struct buf page;
    int rc = 0;

    buf_init(&page, MAX_PAGE);
    for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
        if (refusals[i].ask == ask) {
            status = refusals[i].status;
            type = "text/plain";
            rc = buf_adds(&page, refusals[i].text, e);
        }
    }
    if (page.len == 0)
        rc = p->http->page.write(p->http->page.arg, &page, e);
    if (rc == 0 && ask != METRICS_ASK_MORE)
        rc = buf_addf(&p->out, e,
                      "HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n"
                      "%sConnection: close\r\n\r\n",
                      status, type, page.len,
                      ask == METRICS_ASK_METHOD ? "Allow: GET, HEAD\r\n" : "");
    if (rc == 0 && ask != METRICS_ASK_HEAD)
        rc = buf_add(&p->out, page.p, page.len, e);
    buf_done(&page);
    return rc;
}

/* --- one client --------------------------------------------------------------------------- */

static void
peer_free(struct peer *p)
{
    struct metrics_http *h = p->http;
    struct event *all[] = {p->on_read, p->on_write, p->timer};

    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        if (all[i] != NULL)
            event_free(all[i]);
    }
    *p->at = p->next;
    if (p->next != NULL)
        p->next->at = p->at;
    close(p->fd);
    buf_done(&p->out);
    free(p);
    if (h->n_peers-- == MAX_PEERS && h->on_accept != NULL)
        event_add(h->on_accept, NULL);
}

static void
on_write(evutil_socket_t fd, short what, void *arg)
{
    struct peer *p = arg;
    ssize_t n;

    (void)what;
    n = send(fd, p->out.p + p->sent, p->out.len - p->sent, MSG_NOSIGNAL);
    if (n >= 0)
        p->sent += (size_t)n;
    if (p->sent == p->out.len || (n == -1 && errno != EAGAIN && errno != EINTR))
        peer_free(p);
    else
        event_add(p->on_write, NULL);
}

static void
answer(struct peer *p, enum metrics_ask ask)
{
    struct err e;

    p->asked = true;
    event_del(p->on_read);
    if (write_answer(p, ask, &e) == -1 || event_add(p->timer, &deadline) == -1) {
        peer_free(p);
        return;
    }
    on_write(p->fd, EV_WRITE, p);
}

static void
on_read(evutil_socket_t fd, short what, void *arg)
{
    struct peer *p = arg;
    const ssize_t n = recv(fd, p->head + p->n_head, sizeof p->head - p->n_head, 0);
    enum metrics_ask ask;

    (void)what;
    if (n == -1) {
        if (errno != EAGAIN && errno != EINTR)
            peer_free(p);
        return;
    }
    if (n == 0) { /* it will say no more: all, or too little */
        answer(p, p->n_head == 0 ? METRICS_ASK_MORE : METRICS_ASK_BAD);
        return;
    }
    if (p->n_head == 0)
        event_add(p->timer, &deadline);
    p->n_head += (size_t)n;
    ask = metrics_http_ask(p->head, p->n_head);
    if (ask != METRICS_ASK_MORE)
        answer(p, ask);
}

static void
on_timer(evutil_socket_t fd, short what, void *arg)
{
    struct peer *p = arg;

    (void)fd;
    (void)what;
    if (p->asked || p->n_head > 0)
        peer_free(p); /* too slow */
    else
        answer(p, METRICS_ASK_MORE);
}

static void
peer_new(struct metrics_http *h, int fd)
{
    struct peer *p = calloc(1, sizeof *p);

    if (p == NULL) {
        close(fd);
        return;
    }
    p->http = h;
    p->fd = fd;
    buf_init(&p->out, MAX_PAGE + MAX_HEAD);
    p->at = &h->peers;
    p->next = h->peers;
    if (p->next != NULL)
        p->next->at = &p->next;
    h->peers = p;
    h->n_peers++;
    p->on_read = event_new(h->base, fd, EV_READ | EV_PERSIST, on_read, p);
    p->on_write = event_new(h->base, fd, EV_WRITE, on_write, p);
    p->timer = evtimer_new(h->base, on_timer, p);
    if (p->on_read == NULL || p->on_write == NULL || p->timer == NULL ||
        event_add(p->on_read, NULL) == -1 || event_add(p->timer, &silence) == -1)
        peer_free(p);
}

/* --- all of them -------------------------------------------------------------------------- */

static void
on_accept(evutil_socket_t fd, short what, void *arg)
{
    static const struct timeval pause = {.tv_usec = PAUSE_MS * 1000};
    struct metrics_http *h = arg;

    (void)what;
    while (h->n_peers < MAX_PEERS) {
        const int one = accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

        if (one != -1) {
            peer_new(h, one);
        } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS ||
                   errno == ENOMEM) {
            event_del(h->on_accept);
            event_add(h->again, &pause);
            return;
        } else if (errno != EINTR && errno != ECONNABORTED) {
            return;
        }
    }
    event_del(h->on_accept);
}

static void
on_again(evutil_socket_t fd, short what, void *arg)
{
    struct metrics_http *h = arg;

    (void)fd;
    (void)what;
    if (h->n_peers < MAX_PEERS)
        event_add(h->on_accept, NULL);
}

struct metrics_http *
metrics_http_new(struct event_base *base, struct listener *l,
                 const struct metrics_page *page, struct err *e)
{
    struct metrics_http *h = calloc(1, sizeof *h);

    if (h == NULL) {
        err_set(e, ERR_QUOTA, errno, "no memory for metrics");
        listener_close(l);
        return NULL;
    }
    h->base = base;
    h->listener = *l;
    *l = LISTENER_NONE;
    h->page = *page;
    h->on_accept = event_new(base, h->listener.fd, EV_READ | EV_PERSIST, on_accept, h);
    h->again = evtimer_new(base, on_again, h);
    if (h->on_accept == NULL || h->again == NULL || event_add(h->on_accept, NULL) == -1) {
        err_set(e, ERR_QUOTA, errno, "no memory for metrics");
        metrics_http_free(h);
        return NULL;
    }
    return h;
}

void
metrics_http_free(struct metrics_http *h)
{
    if (h == NULL)
        return;
    if (h->on_accept != NULL)
        event_free(h->on_accept);
    h->on_accept = NULL;
    if (h->again != NULL)
        event_free(h->again);
    while (h->peers != NULL)
        peer_free(h->peers);
    listener_close(&h->listener);
    free(h);
}
