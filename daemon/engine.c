/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One engine after the other. Its end is seen on the pidfd and only there: whatever goes wrong
 * (a packet that lies, a step that takes too long, a link that closes) ends in SIGKILL, the
 * packets that it sent before are read to the last, and then it is waited for. So there is one
 * way down, and no moment in which two engines run.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <event2/event.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/err.h"
#include "base/log.h"
#include "daemon/engine.h"
#include "daemon/engine_spawn.h"
#include "daemon/engine_watch.h"
#include "daemon/options.h"

enum {
    FIRST_PAUSE_MS = 100, /* before a restart; doubled with each fault in the window */
    MAX_PAUSE_MS = 5000,
    WATCH_MS = 100,
    CLOSED_MS = 2000, /* from the link's end to the process's */
    MAX_FAULTS = 1001,
    PACKETS_A_TURN = 64, /* then other events have their turn */
    MAX_STEP_TOKENS = 1 << 20,
};

struct packet {
    struct packet *next;
    int fd;
    struct link_head head;
    size_t len;
    uint8_t body[];
};

struct engine {
    struct event_base *base;
    const struct options *o;
    struct engine_calls calls;
    enum engine_state state;
    struct engine_child child;
    struct engine_arena arena;
    struct event *on_link, *on_writable, *on_exit, *watch, *again;
    struct packet *out, **out_tail;
    struct link_ready info;
    bool has_info, killed, quitting, broken, told;
    uint64_t closed_ns, permille;
    uint64_t progress_ns; /* of loading; then the last packet, or change of `steps` */
    struct engine_watch seen;
    struct engine_speed speed;
    uint64_t packets, packet_ns; /* that came, and when the last did */
    uint64_t oom_kills; /* of the system, when it was started; UINT64_MAX: unknown */
    uint32_t vocab;
    uint64_t restarts;
    uint64_t faults[MAX_FAULTS]; /* when, newest last, those in the window */
    size_t n_faults;
    struct err why; /* it went; code ERR_NONE: nothing has */
    union link_packet in;
};

static const uint64_t MILLION = 1000000; /* ns in a ms */

static void on_again(evutil_socket_t fd, short what, void *arg);

static struct timeval
ms(uint64_t n)
{
    return (struct timeval){.tv_sec = (time_t)(n / 1000),
                            .tv_usec = (suseconds_t)(n % 1000 * 1000)};
}

static uint64_t
word(const uint64_t *p)
{
    return __atomic_load_n(p, __ATOMIC_RELAXED);
}

void
engine_status(const struct engine *g, struct link_status *out)
{
    const struct link_status *s = g->child.status;

    *out = (struct link_status){0};
    if (s == NULL)
        return;
    out->beat_ns = word(&s->beat_ns);
    out->step_began_ns = word(&s->step_began_ns);
    out->step_tokens = word(&s->step_tokens);
    out->load_permille = word(&s->load_permille);
    out->steps = word(&s->steps);
    out->prefill_tokens = word(&s->prefill_tokens);
    out->decode_tokens = word(&s->decode_tokens);
    out->step_ns = word(&s->step_ns);
    out->kv_used = word(&s->kv_used);
    out->packets = word(&s->packets);
    /* It may hold anything: keep what others show to people in range. */
    if (out->load_permille > 1000)
        out->load_permille = 1000;
}

/* The first reason is the one to tell; what follows follows from it. */
static void
set_why(struct engine *g, const struct err *e)
{
    if (!g->told) {
        g->why = *e;
        g->told = true;
    }
}

void
engine_kill(struct engine *g)
{
    if (g->child.pid == 0)
        return;
    g->killed = true;
    if (pidfd_send_signal(g->child.pidfd, SIGKILL, NULL, 0) == -1 && errno != ESRCH)
        log_line(LOG_ERROR, "engine-kill pid=%d why=\"%s\"", g->child.pid, strerror(errno));
}

/* It lied, hangs, or cannot be talked to. */
static void
break_off(struct engine *g, const struct err *e)
{
    set_why(g, e);
    g->broken = true;
    engine_kill(g);
}

static void
drop_out(struct engine *g)
{
    struct packet *p;

    while ((p = g->out) != NULL) {
        g->out = p->next;
        if (p->fd != -1)
            close(p->fd);
        free(p);
    }
    g->out_tail = &g->out;
}

static void
flush(struct engine *g)
{
    struct packet *p;
    struct err e;

    while ((p = g->out) != NULL) {
        const struct iovec iov = {p->body, p->len};

        if (link_send(g->child.sock, &p->head, &iov, p->len > 0, p->fd, &e) == -1) {
            if (e.code == ERR_BUSY)
                event_add(g->on_writable, NULL);
            else if (e.code != ERR_UNAVAILABLE) /* that one the pidfd will tell */
                break_off(g, &e);
            return;
        }
        if (p->fd != -1)
            close(p->fd);
        g->out = p->next;
        if (g->out == NULL)
            g->out_tail = &g->out;
        free(p);
    }
}

int
engine_send(struct engine *g, enum link_type type, uint32_t seq, uint32_t job,
            const struct iovec *iov, int n_iov, int fd, struct err *e)
{
    struct packet *p;
    size_t len = 0, at = 0;

    for (int i = 0; i < n_iov; i++)
        len += iov[i].iov_len;
    p = malloc(sizeof *p + len);
    if (p == NULL) {
        if (fd != -1)
            close(fd);
        return err_set(e, ERR_QUOTA, errno, "no memory for a packet");
    }
    *p = (struct packet){
        .fd = fd, .head = {.type = (uint16_t)type, .seq = seq, .job = job}, .len = len};
    for (int i = 0; i < n_iov; i++) {
        memcpy(p->body + at, iov[i].iov_base, iov[i].iov_len);
        at += iov[i].iov_len;
    }
    *g->out_tail = p;
    g->out_tail = &p->next;
    if (g->out == p)
        flush(g);
    return 0;
}

static int
on_ready(struct engine *g, size_t len, struct err *e)
{
    const struct link_ready *r = link_body(&g->in, len, sizeof *r, e);

    if (r == NULL)
        return -1;
    if (g->state != ENGINE_LOADING)
        return err_set(e, ERR_PROTOCOL, 0, "it says twice that it is ready");
    if (r->vocab != g->vocab)
        return err_set(e, ERR_PROTOCOL, 0,
                       "its vocabulary has %" PRIu32 " tokens, the model's %" PRIu32,
                       r->vocab, g->vocab);
    if (r->max_seqs == 0 || r->max_seqs > g->o->max_sequences || r->max_positions == 0 ||
        r->max_step_tokens == 0 || r->max_step_tokens > MAX_STEP_TOKENS)
        return err_set(e, ERR_PROTOCOL, 0,
                       "its first packet makes no sense: %" PRIu32 " sequences, %" PRIu64
                       " positions, %" PRIu32 " tokens a step",
                       r->max_seqs, r->max_positions, r->max_step_tokens);
    if (g->has_info && memcmp(r->fingerprint, g->info.fingerprint, 32) != 0)
        return err_set(e, ERR_MODEL_MISMATCH, 0,
                       "the model's files have changed since fathomd started");
    g->info = *r;
    g->info.backend[sizeof g->info.backend - 1] = '\0';
    g->info.detail[sizeof g->info.detail - 1] = '\0';
    g->has_info = true;
    g->state = ENGINE_SERVING;
    g->seen.beat_since = g->progress_ns = clock_ns();
    log_line(LOG_NOTICE, "engine-ready pid=%d backend=%s detail=\"%s\" sequences=%" PRIu32,
             g->child.pid, g->info.backend, g->info.detail, g->info.max_seqs);
    g->calls.ready(g->calls.arg);
    return 0;
}

static void
on_fatal(struct engine *g, size_t len)
{
    struct err e, why;
    const struct err *told = link_body(&g->in, len, sizeof *told, &e);

    if (told == NULL)
        return;
    link_err(&why, told);
    set_why(g, &why);
}

/* One packet off the link. False: none is left. */
static bool
read_one(struct engine *g)
{
    size_t len;
    struct err e;
    int rc = link_recv(g->child.sock, &g->in, &len, NULL, &e);

    if (rc == 0)
        return false;
    if (rc == 1) {
        g->packets++;
        g->packet_ns = clock_ns();
        g->seen.missing_since = 0;
    }
    if (rc == 1 && g->in.head.type == LINK_FATAL) {
        on_fatal(g, len);
    } else if (rc == 1 && g->in.head.type == LINK_READY) {
        rc = on_ready(g, len, &e);
    } else if (rc == 1) {
        g->progress_ns = clock_ns();
        if (g->state != ENGINE_SERVING)
            rc = err_set(&e, ERR_PROTOCOL, 0, "a packet before it was ready");
        else
            rc = g->calls.packet(g->calls.arg, &g->in, len, &e);
    } else if (e.code == ERR_UNAVAILABLE) {
        if (g->closed_ns == 0)
            g->closed_ns = clock_ns();
        event_del(g->on_link);
        return false;
    }
    if (rc == -1) {
        err_prefix(&e, "the engine lies");
        break_off(g, &e);
        return false;
    }
    return true;
}

static void
on_link(evutil_socket_t fd, short what, void *arg)
{
    struct engine *g = arg;

    (void)fd;
    (void)what;
    for (int i = 0; i < PACKETS_A_TURN && !g->broken; i++) {
        if (!read_one(g))
            return;
    }
    if (g->broken)
        event_del(g->on_link);
}

static void
on_writable(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    flush(arg);
}

static size_t
faults_in_window(struct engine *g, uint64_t now)
{
    const uint64_t window = g->o->restart_window * MILLION;
    size_t old = 0;

    while (old < g->n_faults && now - g->faults[old] > window)
        old++;
    g->n_faults -= old;
    memmove(g->faults, g->faults + old, g->n_faults * sizeof g->faults[0]);
    return g->n_faults;
}

static void
restart_later(struct engine *g)
{
    const uint64_t now = clock_ns();
    uint64_t pause = FIRST_PAUSE_MS;
    struct timeval tv;

    if (g->n_faults == MAX_FAULTS)
        memmove(g->faults, g->faults + 1, --g->n_faults * sizeof g->faults[0]);
    g->faults[g->n_faults++] = now;
    if (faults_in_window(g, now) > g->o->restart_limit) {
        g->state = ENGINE_FAILED;
        log_line(LOG_ERROR,
                 "engine-failed faults=%zu window_ms=%" PRIu64 " last=\"%s\" "
                 "fix=\"see the lines above; the next try is when the window is over\"",
                 g->n_faults, g->o->restart_window, g->why.text);
        tv = ms(g->o->restart_window);
        event_add(g->again, &tv);
        g->calls.failed(g->calls.arg, false, 1);
        return;
    }
    for (size_t i = 1; i < g->n_faults && pause < MAX_PAUSE_MS; i++)
        pause *= 2;
    g->state = ENGINE_RESTARTING;
    tv = ms(pause < MAX_PAUSE_MS ? pause : MAX_PAUSE_MS);
    event_add(g->again, &tv);
}

/* What its exit status says, unless something said more before. True: never try again. */
static bool
judge(struct engine *g, const siginfo_t *si, int *status)
{
    struct err e;
    bool forever = false;

    if (si->si_code != CLD_EXITED) {
        err_set(&e, ERR_UNAVAILABLE, 0, "the engine was ended by signal %d (%s)",
                si->si_status, strsignal(si->si_status));
    } else if (si->si_status == 127) {
        err_set(&e, ERR_INVALID, 0, "the engine '%s' cannot be started (setting engine)",
                g->o->engine);
        forever = true;
        *status = 78;
    } else if (si->si_status == LINK_EXIT_MODEL || si->si_status == LINK_EXIT_USAGE) {
        err_set(&e, ERR_MODEL_MISMATCH, 0, "the engine cannot load '%s'", g->o->model);
        forever = true;
        *status = 78;
    } else {
        err_set(&e, ERR_UNAVAILABLE, 0, "the engine ended with status %d", si->si_status);
    }
    set_why(g, &e);
    return forever && !g->has_info;
}

static void
forget_child(struct engine *g)
{
    struct event **all[] = {&g->on_link, &g->on_writable, &g->on_exit};

    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        if (*all[i] != NULL)
            event_free(*all[i]);
        *all[i] = NULL;
    }
    event_del(g->watch);
    drop_out(g);
    engine_child_done(&g->child);
}

/* Somebody's kill is nobody's fault. But the kernel's, when memory runs out, is a SIGKILL like
 * any other: then some system's count of such kills has grown; where there is no count to be
 * read, each SIGKILL may have been one. */
static bool
is_own_fault(const struct engine *g, const siginfo_t *si)
{
    if (g->killed || si->si_code == CLD_EXITED)
        return true;
    if (si->si_status == SIGKILL)
        return g->oom_kills == UINT64_MAX ||
               engine_oom_kills("/proc/vmstat", "/proc/self/cgroup", "/sys/fs/cgroup") !=
                   g->oom_kills;
    return si->si_status != SIGTERM && si->si_status != SIGINT && si->si_status != SIGHUP;
}

static void
on_exit_seen(evutil_socket_t fd, short what, void *arg)
{
    struct engine *g = arg;
    siginfo_t si = {0};
    bool forever, own_fault;
    int status = 1;

    (void)what;
    /* What it said before it died still counts: the more tokens, the less to compute again. */
    while (!g->broken && read_one(g))
        ;
    if (waitid(P_PIDFD, (id_t)fd, &si, WEXITED | WNOHANG) == -1 || si.si_pid == 0)
        return;
    own_fault = is_own_fault(g, &si);
    forever = judge(g, &si, &status);
    log_line(g->quitting ? LOG_INFO : LOG_ERROR, "engine-ended pid=%d why=\"%s\"",
             g->child.pid, g->quitting ? "asked to" : g->why.text);
    forget_child(g);
    if (g->quitting) {
        g->state = ENGINE_STOPPED;
        g->calls.stopped(g->calls.arg);
        return;
    }
    g->state = ENGINE_RESTARTING;
    g->calls.lost(g->calls.arg, own_fault);
    if (forever) {
        g->state = ENGINE_FAILED;
        g->calls.failed(g->calls.arg, true, status);
        return;
    }
    restart_later(g);
}

static void
watch_load(struct engine *g, const struct link_status *s, uint64_t now)
{
    struct err e;

    if (s->load_permille != g->permille) {
        g->permille = s->load_permille;
        g->progress_ns = now;
    }
    if (now - g->progress_ns > g->o->load_timeout * MILLION) {
        /* What a backend does with all weights at once is one step of it. */
        err_set(&e, ERR_UNAVAILABLE, 0,
                "loading stood at %" PRIu64 ".%" PRIu64 " %% for %" PRIu64
                " ms (setting load-timeout: a large model may need more)",
                s->load_permille / 10, s->load_permille % 10, g->o->load_timeout);
        break_off(g, &e);
    } else {
        g->calls.progress(g->calls.arg);
    }
}

static void
watch_step(struct engine *g, const struct link_status *s, uint64_t now)
{
    const uint64_t most = g->has_info ? g->info.max_step_tokens : 1;
    const uint64_t tokens = s->step_tokens < most ? s->step_tokens : most;
    const uint64_t limit = engine_step_limit(&g->speed, g->o->step_timeout * MILLION,
                                             g->o->step_timeout_token * MILLION, tokens);
    struct err e;

    if (now - g->seen.step_since <= limit)
        return;
    err_set(&e, ERR_UNAVAILABLE, 0,
            "a step of %" PRIu64 " tokens took more than %" PRIu64
            " ms (setting step-timeout)",
            tokens, limit / MILLION);
    break_off(g, &e);
}

/* Between steps: its loop turns, and with work to do there are steps. */
static void
watch_loop(struct engine *g, uint64_t now)
{
    const uint64_t limit = g->o->step_timeout * MILLION;
    struct err e;

    if (now - g->seen.beat_since > limit) {
        err_set(&e, ERR_UNAVAILABLE, 0, "the engine's loop stands still");
        break_off(g, &e);
    } else if (now - g->progress_ns > limit) {
        err_set(&e, ERR_UNAVAILABLE, 0, "the engine has work and does nothing");
        break_off(g, &e);
    }
}

/* It computes: then what it says must arrive, and it must have something to say in the end. */
static void
watch_talk(struct engine *g, const struct link_status *s, uint64_t owed, uint64_t now)
{
    const uint64_t limit = g->o->step_timeout * MILLION;
    const uint64_t computed = s->prefill_tokens + s->decode_tokens;
    struct err e;

    if (g->seen.packets != g->packets || owed == 0) {
        g->seen.packets = g->packets;
        g->seen.computed = computed;
    }
    if (s->packets <= g->packets)
        g->seen.missing_since = 0;
    else if (g->seen.missing_since == 0)
        g->seen.missing_since = now;
    if (g->seen.missing_since != 0 && now - g->seen.missing_since > limit) {
        err_set(&e, ERR_UNAVAILABLE, 0,
                "the engine has sent %" PRIu64 " packets and %" PRIu64 " came", s->packets,
                g->packets);
        break_off(g, &e);
    } else if (owed > 0 && computed - g->seen.computed > owed &&
               now - g->packet_ns > limit) {
        err_set(&e, ERR_UNAVAILABLE, 0,
                "the engine has computed %" PRIu64 " tokens and says nothing",
                computed - g->seen.computed);
        break_off(g, &e);
    }
}

/* Loading must make progress, a step must end, and between steps the beat must go on. All by
 * our own clock, from when a change was seen: what the page says may be anything. */
static void
on_watch(evutil_socket_t fd, short what, void *arg)
{
    struct engine *g = arg;
    const uint64_t now = clock_ns();
    struct link_status s;
    uint64_t owed;
    struct err e;

    (void)fd;
    (void)what;
    engine_status(g, &s);
    if (g->killed)
        return;
    if (g->closed_ns != 0) {
        if (now - g->closed_ns > CLOSED_MS * MILLION) {
            err_set(&e, ERR_UNAVAILABLE, 0, "the engine closed its link and stays");
            break_off(g, &e);
        }
        return;
    }
    if (g->state == ENGINE_LOADING) {
        watch_load(g, &s, now);
        return;
    }
    owed = g->calls.expects(g->calls.arg);
    if (s.steps != g->speed.steps || owed == 0)
        g->progress_ns = now;
    engine_speed_learn(&g->speed, &s);
    engine_watch_see(&g->seen, &s, now);
    if (s.step_began_ns != 0)
        watch_step(g, &s, now);
    else
        watch_loop(g, now);
    if (!g->killed)
        watch_talk(g, &s, owed, now);
}

int
engine_start(struct engine *g, struct err *e)
{
    const struct timeval often = ms(WATCH_MS);

    assert(g->child.pid == 0);
    g->oom_kills = engine_oom_kills("/proc/vmstat", "/proc/self/cgroup", "/sys/fs/cgroup");
    if (engine_spawn(&g->child, g->o, &g->arena, e) == -1)
        return -1;
    g->state = ENGINE_LOADING;
    g->killed = g->broken = g->told = false;
    g->closed_ns = g->permille = g->packets = 0;
    g->progress_ns = g->packet_ns = clock_ns();
    g->seen = (struct engine_watch){0};
    engine_speed_restart(&g->speed);
    g->on_link = event_new(g->base, g->child.sock, EV_READ | EV_PERSIST, on_link, g);
    g->on_writable = event_new(g->base, g->child.sock, EV_WRITE, on_writable, g);
    g->on_exit = event_new(g->base, g->child.pidfd, EV_READ | EV_PERSIST, on_exit_seen, g);
    if (g->on_link == NULL || g->on_writable == NULL || g->on_exit == NULL ||
        event_add(g->on_link, NULL) == -1 || event_add(g->on_exit, NULL) == -1 ||
        event_add(g->watch, &often) == -1) {
        engine_kill(g);
        waitid(P_PIDFD, (id_t)g->child.pidfd, &(siginfo_t){0}, WEXITED);
        forget_child(g);
        return err_set(e, ERR_QUOTA, errno, "no memory to watch the engine");
    }
    log_line(LOG_INFO, "engine-started pid=%d program=%s", g->child.pid, g->o->engine);
    return 0;
}

static void
on_again(evutil_socket_t fd, short what, void *arg)
{
    struct engine *g = arg;
    struct err e;

    (void)fd;
    (void)what;
    if (g->quitting)
        return;
    g->restarts++;
    if (engine_start(g, &e) == -1) {
        log_line(LOG_ERROR, "engine-start failed=\"%s\"", e.text);
        g->told = false;
        set_why(g, &e);
        restart_later(g);
    }
}

void
engine_set_arena(struct engine *g, int fd, uint64_t bytes)
{
    g->arena = (struct engine_arena){fd, bytes};
}

struct engine *
engine_new(struct event_base *base, const struct options *o, uint32_t vocab,
           const struct engine_calls *calls, struct err *e)
{
    struct engine *g = calloc(1, sizeof *g);

    if (g == NULL) {
        err_set(e, ERR_QUOTA, errno, "no memory for the engine");
        return NULL;
    }
    g->base = base;
    g->o = o;
    g->vocab = vocab;
    g->calls = *calls;
    g->state = ENGINE_STOPPED;
    g->child = (struct engine_child){.pidfd = -1, .sock = -1};
    g->arena.fd = -1;
    g->out_tail = &g->out;
    g->watch = event_new(base, -1, EV_PERSIST, on_watch, g);
    g->again = evtimer_new(base, on_again, g);
    if (g->watch == NULL || g->again == NULL) {
        engine_free(g);
        err_set(e, ERR_QUOTA, errno, "no memory for the engine");
        return NULL;
    }
    return g;
}

void
engine_free(struct engine *g)
{
    if (g == NULL)
        return;
    if (g->child.pid != 0) {
        engine_kill(g);
        waitid(P_PIDFD, (id_t)g->child.pidfd, &(siginfo_t){0}, WEXITED);
    }
    if (g->watch != NULL) {
        forget_child(g);
        event_free(g->watch);
    }
    if (g->again != NULL)
        event_free(g->again);
    free(g);
}

void
engine_stop(struct engine *g)
{
    struct err e;

    g->quitting = true;
    event_del(g->again);
    if (g->child.pid == 0) {
        g->state = ENGINE_STOPPED;
        g->calls.stopped(g->calls.arg);
    } else if (g->state == ENGINE_LOADING ||
               engine_send(g, LINK_QUIT, 0, 0, NULL, 0, -1, &e) == -1) {
        engine_kill(g);
    }
}

enum engine_state
engine_state(const struct engine *g)
{
    return g->state;
}

const struct link_ready *
engine_info(const struct engine *g)
{
    return g->has_info ? &g->info : NULL;
}

uint64_t
engine_restarts(const struct engine *g)
{
    return g->restarts;
}

int
engine_pid(const struct engine *g)
{
    return g->child.pid;
}

const struct err *
engine_error(const struct engine *g)
{
    return &g->why;
}
