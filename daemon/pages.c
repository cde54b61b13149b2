/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Statistics pages: figures that clients look at as often as they like. They are brought up to
 * date by one timer for all, which runs only while somebody has a page.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <event2/event.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/err.h"
#include "daemon/conn.h"
#include "daemon/kv.h"
#include "daemon/server.h"
#include "daemon/shm.h"
#include "daemon/status.h"
#include "daemon/work.h"
#include "proto/page.h"

/* As page.def counts them. */
enum {
    SAID_IDLE,
    SAID_QUEUED,
    SAID_REPLAYING,
    SAID_APPENDING,
    SAID_SAMPLING,
    SAID_BROKEN,
    SAID_GONE
};

static void
write_daemon(const struct server *sv, uint64_t *page)
{
    uint64_t w[PAGE_DAEMON_END] = {0};
    struct work_counts n;
    struct kv_counts kv;
    struct store_counts store;
    struct link_status st;
    const struct engine *g = work_engine(sv->work);
    const struct link_ready *info = engine_info(g);

    work_count(sv->work, &n);
    engine_status(g, &st);
    w[PAGE_DAEMON_UPTIME_MS] = (clock_ns() - sv->started_ns) / 1000000;
    w[PAGE_DAEMON_STATE] = status_number(sv);
    w[PAGE_DAEMON_LOAD_PERMILLE] = st.load_permille;
    w[PAGE_DAEMON_CONNECTIONS] = sv->quota.used[QUOTA_CONNECTIONS];
    w[PAGE_DAEMON_REQUESTS] = sv->quota.used[QUOTA_REQUESTS];
    w[PAGE_DAEMON_SESSIONS] = sv->quota.used[QUOTA_SESSIONS];
    w[PAGE_DAEMON_SESSIONS_BUSY] = n.busy;
    w[PAGE_DAEMON_TOKENS] = sv->quota.used[QUOTA_TOKENS];
    w[PAGE_DAEMON_QUEUED] = n.queued;
    w[PAGE_DAEMON_RUNNING] = n.running;
    w[PAGE_DAEMON_APPENDED] = n.appended;
    w[PAGE_DAEMON_DRAWN] = n.drawn;
    w[PAGE_DAEMON_REPLAYED] = n.replayed;
    w[PAGE_DAEMON_EVICTIONS] = n.evictions;
    w[PAGE_DAEMON_ENGINE_RESTARTS] = engine_restarts(g);
    w[PAGE_DAEMON_STEPS] = st.steps;
    w[PAGE_DAEMON_STEP_NS] = st.step_ns;
    w[PAGE_DAEMON_PREFILL_TOKENS] = st.prefill_tokens;
    w[PAGE_DAEMON_DECODE_TOKENS] = st.decode_tokens;
    w[PAGE_DAEMON_KV_BYTES] = st.kv_used;
    w[PAGE_DAEMON_KV_LIMIT] = info != NULL ? info->kv_limit : 0;
    kv_count(work_kv(sv->work), &kv);
    store_count(sv->store, &store);
    w[PAGE_DAEMON_SESSIONS_LOADED] = store.loaded;
    w[PAGE_DAEMON_MEMORY_BYTES] = kv.memory_bytes;
    w[PAGE_DAEMON_MEMORY_LIMIT] = kv.memory_limit;
    w[PAGE_DAEMON_SAVES] = kv.saves;
    w[PAGE_DAEMON_RESTORES] = kv.restores;
    w[PAGE_DAEMON_RESTORES_FAILED] = kv.restores_failed;
    w[PAGE_DAEMON_RESTORED_TOKENS] = kv.restored_tokens;
    w[PAGE_DAEMON_WRITTEN_BYTES] = kv.rows_bytes + kv.state_bytes;
    w[PAGE_DAEMON_READ_BYTES] = kv.read_bytes;
    for (int i = 0; i <= HISTOGRAM_STEPS; i++)
        w[PAGE_DAEMON_COMMITS] += store.commit.n[i];
    w[PAGE_DAEMON_STORE_ERRORS] = store.errors + kv.damaged;
    page_write(page, PAGE_OF_DAEMON, w, PAGE_DAEMON_END);
}

static uint64_t
number_of(enum session_state state)
{
    switch (state) {
    case SESSION_QUEUED: return SAID_QUEUED;
    case SESSION_RESTORING:
    case SESSION_REPLAYING: return SAID_REPLAYING;
    case SESSION_FEEDING: return SAID_APPENDING;
    case SESSION_SAMPLING: return SAID_SAMPLING;
    case SESSION_BROKEN: return SAID_BROKEN;
    case SESSION_GONE: return SAID_GONE;
    default: return SAID_IDLE;
    }
}

static void
write_session(const struct server *sv, const struct session *s, uint64_t *page)
{
    uint64_t w[PAGE_SESSION_END] = {0};

    w[PAGE_SESSION_STATE] = number_of(s->state);
    w[PAGE_SESSION_POS] = s->log.len;
    w[PAGE_SESSION_KV_POS] = work_kv_len(s);
    w[PAGE_SESSION_WAITING] = s->n_ops;
    w[PAGE_SESSION_TURNS] = s->log.turns;
    w[PAGE_SESSION_CHECKPOINTS] = session_points(s);
    w[PAGE_SESSION_ROLLBACKS] = s->log.rollbacks;
    w[PAGE_SESSION_USED_MS] = s->used_ms;
    w[PAGE_SESSION_TIER] = kv_tier(work_kv(sv->work), s);
    w[PAGE_SESSION_DURABLE_POS] = session_log_durable(&s->log);
    page_write(page, PAGE_OF_SESSION, w, PAGE_SESSION_END);
}

static void
let_go(struct page *p)
{
    struct session *s = p->session;

    if (s == NULL)
        return;
    p->session = NULL;
    s->streams--;
    work_released(p->conn->server->work, s);
}

static void
write_page(struct page *p)
{
    const struct session *s = p->session;

    if (!p->of_session)
        write_daemon(p->conn->server, p->shm.map);
    else if (s != NULL)
        write_session(p->conn->server, s, p->shm.map);
    if (s != NULL && s->state == SESSION_GONE)
        let_go(p); /* that was the last word on it */
}

static void
on_time(evutil_socket_t fd, short what, void *arg)
{
    struct server *sv = arg;

    (void)fd;
    (void)what;
    for (struct conn *c = sv->conns; c != NULL; c = c->next) {
        for (struct page *p = c->pages; p != NULL; p = p->next)
            write_page(p);
    }
}

/* The timer runs while there are pages. */
static int
count(struct server *sv, struct err *e)
{
    static const struct timeval often = {.tv_usec = PAGE_EVERY_MS * 1000};

    if (sv->on_page == NULL)
        sv->on_page = event_new(sv->base, -1, EV_PERSIST, on_time, sv);
    if (sv->on_page == NULL || (sv->n_pages == 0 && event_add(sv->on_page, &often) == -1))
        return err_set(e, ERR_QUOTA, errno, "no memory for a timer");
    sv->n_pages++;
    return 0;
}

static void
page_free(struct page *p)
{
    struct server *sv = p->conn->server;

    let_go(p);
    shm_done(&p->shm);
    quota_give(p->conn->user, QUOTA_BYTES, PAGE_BYTES);
    free(p);
    if (--sv->n_pages == 0)
        event_del(sv->on_page);
}

int
page_new(struct conn *c, struct session *s, int *fd, struct err *e)
{
    struct page *p;
    int n = 0;

    for (const struct page *o = c->pages; o != NULL; o = o->next)
        n++;
    if (n >= PAGES_MOST)
        return err_set(e, ERR_QUOTA, 0,
                       "%d statistics pages on one connection are the most", PAGES_MOST);
    p = calloc(1, sizeof *p);
    if (p == NULL)
        return err_set(e, ERR_QUOTA, errno, "no memory for a page");
    if (quota_take(c->user, QUOTA_BYTES, PAGE_BYTES, e) == -1) {
        free(p);
        return -1;
    }
    if (shm_new(&p->shm, s != NULL ? "fathom-session" : "fathom-daemon", PAGE_BYTES, fd,
                e) == -1 ||
        count(c->server, e) == -1) {
        if (p->shm.map != NULL) {
            close(*fd);
            *fd = -1;
        }
        shm_done(&p->shm);
        quota_give(c->user, QUOTA_BYTES, PAGE_BYTES);
        free(p);
        return -1;
    }
    p->conn = c;
    p->session = s;
    p->of_session = s != NULL;
    if (s != NULL)
        s->streams++;
    p->next = c->pages;
    c->pages = p;
    write_page(p);
    return 0;
}

void
pages_drop(struct conn *c)
{
    struct page *p;

    while ((p = c->pages) != NULL) {
        c->pages = p->next;
        page_free(p);
    }
}

void
pages_end(struct server *sv)
{
    assert(sv->n_pages == 0);
    if (sv->on_page != NULL)
        event_free(sv->on_page);
    sv->on_page = NULL;
}
