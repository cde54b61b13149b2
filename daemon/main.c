/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fathomd: starts everything in order, turns the event loop, stops everything in reverse.
 *
 * SIGTERM and SIGINT: no new work, the step under way is finished, streams end with the
 * position that they reached, then the engine and we go. SIGHUP reads the settings again.
 */
#include "config.h"

#include <errno.h>
#include <event2/event.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/err.h"
#include "base/file.h"
#include "base/log.h"
#include "daemon/activation.h"
#include "daemon/conn.h"
#include "daemon/engine.h"
#include "daemon/journal.h"
#include "daemon/kv.h"
#include "daemon/metrics.h"
#include "daemon/notify.h"
#include "daemon/options.h"
#include "daemon/request.h"
#include "daemon/server.h"
#include "daemon/shm.h"
#include "daemon/status.h"
#include "daemon/store.h"
#include "daemon/text.h"
#include "daemon/transfer.h"
#include "daemon/work.h"
#include "model/config.h"
#include "model/tokenizer.h"

enum {
    EXTEND_USEC = 30 * 1000 * 1000, /* of systemd's patience, asked for while loading */
    EXTEND_EVERY_MS = 5000,
    STATUS_EVERY_MS = 2000,
    FLUSH_MS = 500, /* for readers to take their last frames */
    MAX_TOKENS_BYTES = 1 << 30,
    SPARE_FILES = 64, /* descriptors besides those of connections */
};

/* A store thread that has not looked for work for so long hangs in a disk. */
#define STORE_ANSWER_NS UINT64_C(10000000000)

struct daemon {
    int argc;
    char **argv;
    struct options o;
    struct activation passed;
    struct server server;
    struct metrics *metrics;
    struct tokenizer *tokenizer;
    struct event *on_term, *on_int, *on_hup, *tick, *watchdog, *deadline, *flushed;
    uint64_t extended_ns;
    int status; /* to exit with */
    bool ready;
};

static struct timeval
ms(uint64_t n)
{
    return (struct timeval){.tv_sec = (time_t)(n / 1000),
                            .tv_usec = (suseconds_t)(n % 1000 * 1000)};
}

static void
say_status(struct daemon *d)
{
    char sentence[256];

    status_sentence(&d->server, sentence, sizeof sentence);
    notify_status("%s", sentence);
}

/* Loading and storing may take longer than systemd would wait by itself. */
static void
extend(struct daemon *d)
{
    const uint64_t now = clock_ns();

    if (now - d->extended_ns <= EXTEND_EVERY_MS * UINT64_C(1000000))
        return;
    d->extended_ns = now;
    notify_extend(EXTEND_USEC);
}

/* --- the engine --------------------------------------------------------------------------- */

/* It is ready, was lost, or is further with loading. */
static void
on_changed(void *arg)
{
    struct daemon *d = arg;
    const enum engine_state state = engine_state(work_engine(d->server.work));

    say_status(d);
    if (d->ready || d->server.stopping)
        return;
    if (state == ENGINE_SERVING) {
        d->ready = true;
        notify_ready();
        log_line(LOG_NOTICE, "ready listening on %s", d->o.socket);
    } else {
        extend(d);
    }
}

static void
on_failed(void *arg, bool forever, int status)
{
    struct daemon *d = arg;

    say_status(d);
    /* As long as there is something to read it stays, so that it can be read; else whoever
     * started us knows best what to do. */
    if (d->server.stopping)
        return;
    if (!forever && d->server.quota.used[QUOTA_TOKENS] > 0) {
        if (!d->ready) { /* or systemd would end what can still be read */
            d->ready = true;
            notify_ready();
            log_line(LOG_ERROR, "ready-to-read listening on %s", d->o.socket);
        }
        return;
    }
    log_line(LOG_ERROR, "giving-up status=%d why=\"%s\"", status,
             engine_error(work_engine(d->server.work))->text);
    d->status = status;
    event_base_loopbreak(d->server.base);
}

/* --- stopping ----------------------------------------------------------------------------- */

static void
on_flushed(evutil_socket_t fd, short what, void *arg)
{
    struct daemon *d = arg;

    (void)fd;
    (void)what;
    event_base_loopbreak(d->server.base);
}

/* All is on the disk, or never will be. */
static void
on_stored(void *arg)
{
    struct daemon *d = arg;
    bool waiting = false;

    for (const struct conn *c = d->server.conns; c != NULL; c = c->next)
        waiting |= conn_waiting(c) > 0;
    event_add(d->flushed, &(struct timeval){.tv_usec = waiting ? FLUSH_MS * 1000 : 1});
}

/* The engine has gone, and nothing changes any more. */
static void
on_stopped(void *arg)
{
    struct daemon *d = arg;

    store_end(d->server.store, on_stored, d);
}

static void
on_deadline(evutil_socket_t fd, short what, void *arg)
{
    struct daemon *d = arg;

    (void)fd;
    (void)what;
    log_line(LOG_WARNING, "stop-timeout fix=\"raise stop-timeout\"");
    event_base_loopbreak(d->server.base);
}

static void
on_term(evutil_socket_t sig, short what, void *arg)
{
    struct daemon *d = arg;
    const struct timeval tv = ms(d->o.stop_timeout);
    struct err why;

    (void)what;
    if (d->server.stopping)
        return;
    d->server.stopping = true;
    notify_stopping();
    d->extended_ns = 0; /* at once, whenever it was last done */
    extend(d);
    say_status(d);
    log_line(LOG_NOTICE, "stopping signal=%d", (int)sig);
    server_unlisten(&d->server);
    req_store_stop(&d->server);
    event_add(d->deadline, &tv);
    err_set(&why, ERR_UNAVAILABLE, 0, "fathomd is stopping");
    work_stop(d->server.work, &d->server.quota, &why);
}

/* --- reloading, timers -------------------------------------------------------------------- */

static void
on_hup(evutil_socket_t sig, short what, void *arg)
{
    struct daemon *d = arg;
    char ignored[512];
    struct err e;

    (void)sig;
    (void)what;
    if (d->server.stopping)
        return;
    notify_reloading();
    if (options_reload(&d->o, d->argc, d->argv, ignored, sizeof ignored, &e) == -1) {
        log_line(LOG_ERROR, "reload-refused why=\"%s\"", e.text);
    } else {
        log_init("fathomd", (enum log_level)d->o.log_level);
        log_line(LOG_NOTICE, "reloaded needs-a-restart=\"%s\"", ignored);
    }
    if (d->ready)
        notify_ready();
}

static void
on_tick(evutil_socket_t fd, short what, void *arg)
{
    struct daemon *d = arg;

    (void)fd;
    (void)what;
    say_status(d);
    if (d->server.stopping)
        extend(d); /* until stop-timeout is over */
    journal_tell();
}

static void
on_watchdog(evutil_socket_t fd, short what, void *arg)
{
    const struct daemon *d = arg;
    struct store_alive alive = {0};

    (void)fd;
    (void)what;
    /* The loop turned, or we would not be here; and so must have the store's threads. */
    if (d->server.store != NULL)
        store_alive(d->server.store, &alive);
    if (alive.job_ns < STORE_ANSWER_NS && alive.turned_ns < STORE_ANSWER_NS)
        notify_watchdog();
    else
        log_line(LOG_ERROR, "watchdog-held seconds=%" PRIu64, alive.turned_ns / 1000000000);
}

/* --- starting ----------------------------------------------------------------------------- */

/* What lies in the state directory is believed as far as checksums go, which whoever may write
 * there can make; and files that root leaves there could not be opened by the usual daemon. */
static int
check_state_dir(const char *path, struct err *e)
{
    struct stat st;

    if (stat(path, &st) == -1)
        return err_set(e, ERR_READ_ONLY, errno, "%s: %s", path, strerror(errno));
    if (st.st_uid != geteuid())
        return err_set(e, ERR_PERMISSION, 0,
                       "%s belongs to user %u, and this is user %u: run fathomd as its "
                       "owner, or choose another directory",
                       path, (unsigned)st.st_uid, (unsigned)geteuid());
    if ((st.st_mode & 022) != 0)
        return err_set(e, ERR_PERMISSION, 0,
                       "%s has mode %04o, so that others may write there: chmod go-w", path,
                       (unsigned)(st.st_mode & 07777));
    return 0;
}

/* Before there is a store nobody can be told what it holds; its owners' names may come later. */
static int
open_store(struct daemon *d, struct err *e)
{
    struct server *sv = &d->server;

    if (file_make_dir(d->o.state, e) == -1 || check_state_dir(d->o.state, e) == -1)
        return err_prefix(e, "setting state");
    if (store_open(sv->base, &d->o, &sv->quota, &sv->store, e) == -1 ||
        store_find_all(sv->store, e) == -1)
        return e->code == ERR_EXISTS ? -1 : err_prefix(e, "setting state: %s", d->o.state);
    for (struct user *u = sv->quota.users; u != NULL; u = u->next)
        server_look_up(sv, u);
    return 0;
}

/* A tokenizer of another model may have as many tokens, or fewer, and make nonsense of every
 * text: at least the tokens that begin and end one must be where the model has them. */
static int
check_tokenizer(const struct tokenizer *t, const struct model_config *c, struct err *e)
{
    const int64_t vocab = c->vocab_size;

    const struct {
        const char *literal;
        int64_t id;
    } want[] = {
        {"<｜begin▁of▁sentence｜>", c->bos_id},
        {"<｜end▁of▁sentence｜>", c->eos_id},
    };

    if (tokenizer_n_ids(t) > vocab)
        return err_set(e, ERR_MODEL_MISMATCH, 0,
                       "tokenizer.json has %" PRIu32 " ids, config.json %" PRId64,
                       tokenizer_n_ids(t), vocab);
    for (size_t i = 0; i < sizeof want / sizeof want[0]; i++) {
        if (tokenizer_control_id(t, want[i].literal) != want[i].id)
            return err_set(e, ERR_MODEL_MISMATCH, 0,
                           "tokenizer.json: token %" PRId64
                           " is not %s, as config.json says: it is of another model",
                           want[i].id, want[i].literal);
    }
    return 0;
}

static int
load_model(struct daemon *d, struct err *e)
{
    struct model_config c;
    const char *dir = d->o.model, *end = dir + strlen(dir), *from;

    if (dir[0] == '\0')
        return err_set(e, ERR_INVALID, 0,
                       "no model: give --model DIR, or set model in the "
                       "configuration file");
    if (model_config_load(&c, dir, e) == -1)
        return -1;
    d->tokenizer = tokenizer_load(dir, e);
    if (d->tokenizer == NULL || check_tokenizer(d->tokenizer, &c, e) == -1)
        return -1;
    while (end > dir && end[-1] == '/')
        end--;
    for (from = end; from > dir && from[-1] != '/'; from--)
        ;
    snprintf(d->server.model, sizeof d->server.model, "%.*s", (int)(end - from), from);
    d->server.tokenizer = d->tokenizer;
    d->server.bos = (uint32_t)c.bos_id;
    d->server.eos = (uint32_t)c.eos_id;
    d->server.vocab = (uint32_t)c.vocab_size;
    return 0;
}

static int
name_instance(struct server *sv, struct err *e)
{
    uint8_t random[16];

    if (getrandom(random, sizeof random, 0) != sizeof random)
        return err_set(e, ERR_INTERNAL, errno, "getrandom: %s", strerror(errno));
    for (size_t i = 0; i < sizeof random; i++)
        snprintf(sv->instance + 2 * i, 3, "%02x", random[i]);
    return 0;
}

/* Each connection is a descriptor, each engine needs a few to start: all that we may have. */
static void
raise_limits(const struct options *o)
{
    struct rlimit r;

    if (getrlimit(RLIMIT_NOFILE, &r) == -1)
        return;
    r.rlim_cur = r.rlim_max;
    setrlimit(RLIMIT_NOFILE, &r);
    if (r.rlim_max < o->max_connections + SPARE_FILES)
        log_line(LOG_WARNING,
                 "few-descriptors limit=%" PRIu64 " fix=\"raise LimitNOFILE or lower "
                 "max-connections, %" PRIu64 "\"",
                 (uint64_t)r.rlim_max, o->max_connections);
}

static int
make_events(struct daemon *d, struct err *e)
{
    struct event_base *base = d->server.base;
    const uint64_t usec = notify_watchdog_usec();
    const struct timeval often = ms(STATUS_EVERY_MS),
                         dog = {.tv_sec = (time_t)(usec / 1000000),
                                .tv_usec = (suseconds_t)(usec % 1000000)};

    d->on_term = evsignal_new(base, SIGTERM, on_term, d);
    d->on_int = evsignal_new(base, SIGINT, on_term, d);
    d->on_hup = evsignal_new(base, SIGHUP, on_hup, d);
    d->tick = event_new(base, -1, EV_PERSIST, on_tick, d);
    d->watchdog = event_new(base, -1, EV_PERSIST, on_watchdog, d);
    d->deadline = evtimer_new(base, on_deadline, d);
    d->flushed = evtimer_new(base, on_flushed, d);
    if (d->on_term == NULL || d->on_int == NULL || d->on_hup == NULL || d->tick == NULL ||
        d->watchdog == NULL || d->deadline == NULL || d->flushed == NULL ||
        event_add(d->on_term, NULL) == -1 || event_add(d->on_int, NULL) == -1 ||
        event_add(d->on_hup, NULL) == -1 || event_add(d->tick, &often) == -1 ||
        (usec > 0 && event_add(d->watchdog, &dog) == -1))
        return err_set(e, ERR_QUOTA, errno, "no memory for the event loop");
    return 0;
}

/* The next of us finds its pages where they are, and need not ask for them again. */
static void
keep_arena(int fd)
{
    if (fd != -1)
        notify_keep("arena", fd);
    else
        notify_forget("arena");
}

static int
start(struct daemon *d, struct err *e)
{
    struct server *sv = &d->server;
    const struct work_calls calls = {
        .arg = d, .changed = on_changed, .failed = on_failed, .stopped = on_stopped};
    struct work_model model;

    sv->started_ns = clock_ns();
    raise_limits(&d->o);
    if (activation_take(&d->passed, e) == -1)
        return -1;
    if (load_model(d, e) == -1 || name_instance(sv, e) == -1)
        return -1;
    sv->base = event_base_new();
    if (sv->base == NULL)
        return err_set(e, ERR_INTERNAL, 0, "no event loop");
    if (make_events(d, e) == -1)
        return -1;
    quota_init(&sv->quota, &d->o);
    if (transfers_new(sv->base, &d->o, &sv->transfers, e) == -1)
        return -1;
    sv->text = text_new(sv->base, d->tokenizer, MAX_TOKENS_BYTES, e);
    if (sv->text == NULL || open_store(d, e) == -1)
        return -1;
    model = (struct work_model){
        .bos = sv->bos, .eos = sv->eos, .vocab = sv->vocab, .turn = turn_ids(d->tokenizer)};
    sv->work =
        work_new(sv->base, &d->o, sv->text, sv->store, &model, &calls, d->passed.arena, e);
    d->passed.arena = -1; /* taken over, or closed */
    if (sv->work == NULL)
        return -1;
    keep_arena(kv_arena_fd(work_kv(sv->work)));
    if (server_listen(sv, d->passed.api, e) == -1)
        return -1;
    d->passed.api = -1;
    if (metrics_open(sv, d->passed.metrics, &d->metrics, e) == -1)
        return -1;
    d->passed.metrics = -1;
    return engine_start(work_engine(sv->work), e);
}

static void
stop(struct daemon *d)
{
    struct server *sv = &d->server;
    struct event *all[] = {d->on_term,  d->on_int,   d->on_hup, d->tick,
                           d->watchdog, d->deadline, d->flushed};

    server_unlisten(sv);
    metrics_close(d->metrics);
    conn_close_all(sv);
    transfers_free(sv->transfers);
    pages_end(sv);
    text_free(sv->text);
    /* Before the store, whose files it uses. What a disk holds for ever is not waited for. */
    if (sv->work != NULL && !kv_end(work_kv(sv->work))) {
        log_line(LOG_NOTICE, "stopped status=%d", d->status);
        _exit(d->status);
    }
    req_store_stop(sv);
    store_free(sv->store);
    req_store_end(sv);
    work_end(sv->work, &sv->quota);
    work_free(sv->work);
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        if (all[i] != NULL)
            event_free(all[i]);
    }
    if (sv->base != NULL)
        event_base_free(sv->base);
    tokenizer_free(d->tokenizer);
    activation_done(&d->passed);
}

static int
run(struct daemon *d)
{
    struct err e;

    if (start(d, &e) == -1) {
        log_line(LOG_ERROR, "start-failed why=\"%s\"", e.text);
        notify_errno(e.sys != 0 ? e.sys : EINVAL);
        d->status = err_exit_status(e.code);
        /* A model that is wrong or missing stays so: systemd need not try again. */
        if (e.code == ERR_MODEL_MISMATCH || e.code == ERR_DAMAGED ||
            e.code == ERR_NOT_FOUND || e.code == ERR_INVALID)
            d->status = 78;
    } else {
        say_status(d);
        event_base_dispatch(d->server.base);
    }
    stop(d);
    log_line(LOG_NOTICE, "stopped status=%d", d->status);
    return d->status;
}

int
main(int argc, char **argv)
{
    struct daemon d = {.argc = argc, .argv = argv, .passed = {-1, -1, -1}};
    struct err e;
    int status;

    log_init("fathomd", LOG_INFO);
    journal_init();
    d.server.listener = LISTENER_NONE;
    d.server.spare = -1;
    d.server.o = &d.o;
    if (options_load(&d.o, argc, argv, &e) == -1) {
        log_line(LOG_ERROR, "settings why=\"%s\"", e.text);
        options_done(&d.o);
        return 64;
    }
    if (d.o.help || d.o.version || d.o.check || d.o.dump) {
        if (d.o.help)
            options_usage(stdout);
        else if (d.o.version)
            puts("fathomd " PACKAGE_VERSION);
        else if (d.o.dump)
            options_dump(&d.o, stdout);
        status = fflush(stdout) == 0 ? 0 : 74;
        options_done(&d.o);
        return status;
    }
    log_init("fathomd", (enum log_level)d.o.log_level);
    signal(SIGPIPE, SIG_IGN);
    log_line(LOG_NOTICE, "start version=" PACKAGE_VERSION " model=%s", d.o.model);
    status = run(&d);
    options_done(&d.o);
    return status;
}
