/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where the numbers come from. They are collected when somebody asks, so that counting costs
 * nothing; only the loop's lag is measured all the time.
 */
#include "config.h"

#include <dirent.h>
#include <errno.h>
#include <event2/event.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/log.h"
#include "daemon/engine.h"
#include "daemon/kv.h"
#include "daemon/metrics.h"
#include "daemon/metrics_http.h"
#include "daemon/options.h"
#include "daemon/server.h"
#include "daemon/store.h"
#include "daemon/work.h"

enum { PULSE_MS = 250 };

struct metrics {
    struct server *server;
    struct metrics_http *http;
    struct event *pulse;
    uint64_t pulse_ns; /* when the last one came */
    struct histogram lag;
};

static uint64_t
count_fds(void)
{
    DIR *d = opendir("/proc/self/fd");
    uint64_t n = 0;

    if (d == NULL)
        return 0;
    for (const struct dirent *f; (f = readdir(d)) != NULL;)
        n += f->d_name[0] != '.';
    closedir(d);
    return n - 1; /* without the one that looks */
}

static uint64_t
resident(void)
{
    FILE *f = fopen("/proc/self/statm", "re");
    uint64_t pages = 0;

    if (f == NULL)
        return 0;
    if (fscanf(f, "%*u %" SCNu64, &pages) != 1)
        pages = 0;
    fclose(f);
    return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static uint64_t
time_ns(const struct timeval *tv)
{
    return (uint64_t)tv->tv_sec * 1000000000 + (uint64_t)tv->tv_usec * 1000;
}

static void
collect_process(const struct metrics *m, struct metrics_values *v)
{
    struct rusage u = {0};
    struct rlimit r = {0};

    getrusage(RUSAGE_SELF, &u);
    getrlimit(RLIMIT_NOFILE, &r);
    v->lag = m->lag;
    v->log_dropped = log_dropped();
    v->open_fds = count_fds();
    v->max_fds = r.rlim_cur;
    v->resident = resident();
    v->cpu_ns = time_ns(&u.ru_utime) + time_ns(&u.ru_stime);
    v->start_ms = clock_wall_ms() - (clock_ns() - m->server->started_ns) / 1000000;
}

static void
collect_clients(const struct server *sv, struct metrics_values *v)
{
    v->connections = sv->quota.used[QUOTA_CONNECTIONS];
    v->accepted = sv->accepted;
    v->refused = sv->refused;
    v->slow = sv->slow;
    memcpy(v->requests, sv->requests, sizeof v->requests);
    memcpy(v->errors, sv->errors + 1, sizeof v->errors);
    v->tokens = sv->quota.used[QUOTA_TOKENS];
    for (const struct user *u = sv->quota.users; u != NULL; u = u->next) {
        for (size_t i = 0; i < u->n_sessions; i++)
            v->sessions[u->sessions[i]->state]++;
    }
}

static void
collect_work(const struct work *w, struct metrics_values *v)
{
    const struct engine *g = work_engine(w);
    const struct link_ready *info = engine_info(g);
    struct work_counts counts;
    struct link_status st;

    work_count(w, &counts);
    v->queued = counts.queued;
    v->running = counts.running;
    v->appended = counts.appended;
    v->drawn = counts.drawn;
    v->replayed = counts.replayed;
    v->evictions = counts.evictions;
    v->broken = counts.broken;
    v->wait = counts.wait;
    v->first = counts.first;
    engine_status(g, &st);
    v->engine_up = engine_state(g) == ENGINE_SERVING;
    v->engine_load = st.load_permille;
    v->engine_restarts = engine_restarts(g);
    v->engine_faults = counts.faults;
    v->steps = st.steps;
    v->step_ns = st.step_ns;
    v->prefill = st.prefill_tokens;
    v->decode = st.decode_tokens;
    v->tier_bytes[METRICS_ENGINE] = st.kv_used;
    if (info != NULL) {
        v->weight_bytes = info->weight_bytes;
        v->tier_limit[METRICS_ENGINE] = info->kv_limit;
    }
}

static void
collect_store(const struct server *sv, struct metrics_values *v)
{
    struct store_counts c;
    struct store_alive alive;

    store_count(sv->store, &c);
    store_alive(sv->store, &alive);
    v->commit = c.commit;
    v->load = c.load;
    v->commit_tokens = c.commit_tokens;
    v->unloads = c.unloads;
    v->store_errors = c.errors;
    v->store_mended = c.mended;
    v->index_failures = c.index_failures;
    v->store_jobs = alive.waiting;
    v->store_job_ns = alive.job_ns;
    v->loaded = c.loaded;
    v->loaded_bytes = c.loaded_bytes;
    v->full = c.full;
    v->read_only = c.read_only;
    v->tier_bytes[METRICS_DISK] = sv->quota.used[QUOTA_DISK];
    v->tier_limit[METRICS_DISK] = quota_limit(&sv->quota, QUOTA_DISK);
}

static void
collect_caches(const struct work *w, struct metrics_values *v)
{
    struct kv_counts c;

    kv_count(work_kv(w), &c);
    v->tier_bytes[METRICS_ARENA] = c.memory_bytes;
    v->tier_limit[METRICS_ARENA] = c.memory_limit;
    v->saves = c.saves;
    v->saves_failed = c.saves_failed;
    v->save = c.save;
    v->saved_rows = c.rows_bytes;
    v->saved_tokens = c.rows_tokens;
    v->saved_states = c.state_bytes;
    v->restores = c.restores;
    v->restores_failed = c.restores_failed;
    v->restore = c.restore;
    v->restored_tokens = c.restored_tokens;
    v->restore_read = c.read_bytes;
    v->cache_damaged = c.damaged;
    v->cache_dropped = c.dropped;
    v->parks = c.parks;
    v->idles = c.idles;
    v->stalled = c.stalled;
}

static int
write_page(void *arg, struct buf *out, struct err *e)
{
    const struct metrics *m = arg;
    struct metrics_values *v = calloc(1, sizeof *v);
    int rc;

    if (v == NULL)
        return err_set(e, ERR_QUOTA, errno, "no memory for metrics");
    collect_clients(m->server, v);
    collect_work(m->server->work, v);
    collect_store(m->server, v);
    collect_caches(m->server->work, v);
    collect_process(m, v);
    rc = metrics_write(v, out, e);
    free(v);
    return rc;
}

static void
on_pulse(evutil_socket_t fd, short what, void *arg)
{
    struct metrics *m = arg;
    const uint64_t now = clock_ns(), period = PULSE_MS * UINT64_C(1000000);

    (void)fd;
    (void)what;
    if (m->pulse_ns != 0)
        histogram_add(&m->lag, now - m->pulse_ns > period ? now - m->pulse_ns - period : 0);
    m->pulse_ns = now;
}

int
metrics_open(struct server *sv, int passed, struct metrics **out, struct err *e)
{
    static const struct timeval often = {.tv_usec = PULSE_MS * 1000};
    struct listener l = LISTENER_NONE;
    struct metrics *m;

    *out = NULL;
    l.fd = passed;
    if (passed == -1 && sv->o->metrics_socket[0] == '\0')
        return 0;
    if (passed == -1 &&
        listener_bind(&l, sv->o->metrics_socket, (unsigned)sv->o->socket_mode,
                      "metrics-socket", e) == -1)
        return -1;
    m = calloc(1, sizeof *m);
    if (m == NULL) {
        listener_close(&l);
        return err_set(e, ERR_QUOTA, errno, "no memory for metrics");
    }
    m->server = sv;
    m->http = metrics_http_new(sv->base, &l, &(struct metrics_page){m, write_page}, e);
    m->pulse = event_new(sv->base, -1, EV_PERSIST, on_pulse, m);
    if (m->http == NULL || m->pulse == NULL || event_add(m->pulse, &often) == -1) {
        metrics_close(m);
        return err_set(e, ERR_QUOTA, errno, "no memory for metrics");
    }
    *out = m;
    return 0;
}

void
metrics_close(struct metrics *m)
{
    if (m == NULL)
        return;
    metrics_http_free(m->http);
    if (m->pulse != NULL)
        event_free(m->pulse);
    free(m);
}
