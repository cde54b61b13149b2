/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests about sessions as the disk has them: export, import, verify. None of them waits in the
 * session's queue, and none holds it up: what is looked at is a copy of its folder whose files are
 * links (catalog_copy), taken by the session's own store thread between two commits.
 */
#include "config.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "daemon/kv.h"
#include "daemon/options.h"
#include "daemon/request.h"
#include "daemon/store.h"
#include "daemon/transfer.h"
#include "daemon/work.h"
#include "kvstore/archive.h"
#include "kvstore/verify.h"

enum { PROBLEMS_SHOWN = 100, PROBLEM_BYTES = 256 };

/* --- park and unpark: operations in the session's queue ----------------------------------- */

static void
on_moved(struct op *op)
{
    struct request *r = request_of(op);
    const struct session *s = op->session;
    struct wire_park_result res = {.pos = s->log.len};
    const struct kv *k;
    char name[160];

    if (r == NULL)
        return;
    if (op->err.code != ERR_NONE) {
        request_fail_at(r, &op->err, s->log.len);
        return;
    }
    k = work_kv(r->conn->server->work);
    session_shown(s, &r->conn->cred, name, sizeof name);
    res.name = wire_str(name);
    res.tier = wire_str(kv_tier_name(kv_tier(k, s)));
    kv_sizes(k, s, &res.memory_bytes, &res.disk_bytes);
    res.replay = op->kind == OP_UNPARK ? op->again : work_replay(r->conn->server->work, s);
    request_reply(r, WIRE_MSG(park_result), &res);
}

static void
move(struct request *r, enum op_kind kind, enum kv_tier tier)
{
    static const struct op_calls calls = {.done = on_moved};
    struct err e;
    struct op *op = op_new(kind, r->session, r->conn->user, &calls, r, &e);

    if (op == NULL) {
        request_fail(r, &e);
        return;
    }
    op->tier = tier;
    request_submit(r, op);
}

void
req_park(struct request *r, const void *body)
{
    const struct wire_park *q = body;
    const bool memory = wire_has(q, park, to) && wire_is(q->to, "memory");
    struct err e;

    if (wire_has(q, park, to) && !memory && !wire_is(q->to, "disk")) {
        err_set(&e, ERR_INVALID, 0, "key 'to': neither memory nor disk");
        request_fail(r, &e);
        return;
    }
    move(r, OP_PARK, memory ? KV_IN_MEMORY : KV_ON_DISK);
}

void
req_unpark(struct request *r, const void *body)
{
    (void)body;
    move(r, OP_UNPARK, KV_IN_ENGINE);
}

/* --- a copy to look at -------------------------------------------------------------------- */

/* What export and verify have in common. It outlives its request if the client leaves. */
struct looking {
    struct looking *next, **at; /* of the server's */
    struct request *r;          /* NULL: nobody waits */
    struct server *sv;
    struct session *s;               /* held */
    char name[SESSION_NAME_MAX + 1]; /* as it was: it may be deleted meanwhile */
    struct store_wait wait;
    bool verify, give_up;

    /* The copy, made in the session's thread. */
    struct catalog *catalog;
    struct io *io;
    bool copied;
    struct kvfile_id copy;
    char dir[CATALOG_DIR_MAX];

    /* export */
    int fd;
    bool tokens_only;
    struct ledger_content content;
    struct transfer *transfer;

    /* verify */
    atomic_bool stop;
    struct verify_result found;
    uint32_t n_problems;
    struct wire_problem problems[PROBLEMS_SHOWN];
    char texts[PROBLEMS_SHOWN][PROBLEM_BYTES];
};

/* Its memory. The descriptor is the transfer's, if there is one. */
static void
looking_drop(struct looking *x)
{
    store_unwait(&x->wait);
    *x->at = x->next;
    if (x->next != NULL)
        x->next->at = x->at;
    if (x->fd != -1 && x->transfer == NULL)
        close(x->fd);
    ledger_content_done(&x->content);
    free(x);
}

static void
looking_free(struct looking *x)
{
    if (x->r != NULL)
        x->r->data = NULL;
    store_unwait(&x->wait);
    if (x->copied) {
        catalog_copy_end(x->catalog, &x->copy);
        store_sweep(x->sv->store);
    }
    x->s->streams--;
    work_released(x->sv->work, x->s);
    looking_drop(x);
}

void
req_store_stop(struct server *sv)
{
    for (struct looking *x = sv->looking; x != NULL; x = x->next)
        atomic_store(&x->stop, true);
}

void
req_store_end(struct server *sv)
{
    while (sv->looking != NULL)
        looking_drop(sv->looking);
}

static void
looking_failed(struct looking *x, const struct err *why)
{
    struct request *r = x->r;

    x->r = NULL;
    if (r != NULL) {
        r->data = NULL;
        request_fail(r, why);
    }
    looking_free(x);
}

/* The client has left, or does not want to know any more. */
static void
on_gone(struct request *r)
{
    struct looking *x = r->data;

    if (x == NULL)
        return;
    x->r = NULL;
    r->data = NULL;
    atomic_store(&x->stop, true);
    if (x->transfer != NULL)
        transfer_cancel(x->transfer);
}

/* In the session's thread: nobody commits meanwhile. */
static int
make_copy(void *arg, struct store_tools *t, struct err *e)
{
    struct looking *x = arg;
    struct ledger *l;

    x->catalog = t->catalog;
    x->io = t->io;
    if (x->verify) {
        t->close(t, &x->s->id); /* then its file stands alone */
        catalog_dir(&x->s->id, x->dir);
        if (x->give_up && ledger_give_up(t->io, x->dir, e) == -1)
            return -1;
    } else {
        l = t->ledger(t, &x->s->id, e);
        if (l == NULL || ledger_load(l, &x->content, e) == -1)
            return -1;
    }
    if (catalog_copy(t->catalog, &x->s->id, x->verify, &x->copy, x->dir, e) == -1)
        return -1;
    x->copied = true;
    return 0;
}

static void begin_export(struct looking *x);
static void begin_verify(struct looking *x);

static void
on_copy(void *arg, const struct err *why)
{
    struct looking *x = arg;
    struct err gone;

    err_set(&gone, ERR_CANCELLED, 0, "cancelled");
    if (why != NULL || x->r == NULL)
        looking_failed(x, why != NULL ? why : &gone);
    else if (x->verify)
        begin_verify(x);
    else
        begin_export(x);
}

/* What there is now is durable, or cannot be: a damaged session is looked at as it is. */
static void
on_durable(struct store_wait *w, const struct err *why)
{
    struct looking *x = w->arg;
    struct err e;

    if (why != NULL && !x->verify)
        looking_failed(x, why);
    else if (store_run(x->sv->store, x->s, false, make_copy, on_copy, x, &e) == -1)
        looking_failed(x, &e);
}

static struct looking *
looking_new(struct request *r, bool verify)
{
    struct looking *x = calloc(1, sizeof *x);
    struct err e;

    if (x == NULL) {
        err_set(&e, ERR_QUOTA, errno, "no memory for a request");
        request_fail(r, &e);
        return NULL;
    }
    x->r = r;
    x->sv = r->conn->server;
    x->s = r->session;
    x->s->streams++;
    snprintf(x->name, sizeof x->name, "%s", x->s->name);
    x->verify = verify;
    x->fd = -1;
    x->wait = (struct store_wait){.fn = on_durable, .arg = x};
    x->next = x->sv->looking;
    x->at = &x->sv->looking;
    if (x->next != NULL)
        x->next->at = &x->next;
    x->sv->looking = x;
    r->data = x;
    r->drop = on_gone;
    return x;
}

static void
looking_begin(struct looking *x)
{
    if (store_commit(x->sv->store, x->s, &x->wait))
        on_durable(&x->wait, NULL);
}

/* --- export ------------------------------------------------------------------------------- */

static int
give(void *arg, const void *p, size_t n, struct err *e)
{
    return transfer_write(arg, p, n, e);
}

static int
run_export(struct transfer *t, struct err *e)
{
    struct looking *x = t->arg;

    return archive_export(x->io, x->dir, &x->content, x->tokens_only, give, t, e);
}

static void
on_exported(struct transfer *t)
{
    struct looking *x = t->arg;
    struct request *r = x->r;
    struct wire_export_result res = {.tokens = x->content.len,
                                     .bytes = t->bytes,
                                     .files = x->tokens_only ? 0 : x->content.n_files,
                                     .digest = wire_bin(t->digest, sizeof t->digest)};

    x->fd = -1; /* the transfer's, closed */
    x->transfer = NULL;
    if (t->err.code != ERR_NONE) {
        looking_failed(x, &t->err);
        return;
    }
    log_line(LOG_INFO, "session-export session=%s uid=%u tokens=%llu bytes=%llu", x->name,
             x->s->user->uid, (unsigned long long)x->content.len,
             (unsigned long long)t->bytes);
    x->r = NULL;
    if (r != NULL) {
        r->data = NULL;
        request_reply(r, WIRE_MSG(export_result), &res);
    }
    looking_free(x);
}

static void
begin_export(struct looking *x)
{
    struct err e;

    x->transfer = transfer_start(x->sv->transfers, x->r->conn->user, x->fd, run_export,
                                 on_exported, x, &e);
    if (x->transfer == NULL)
        looking_failed(x, &e);
}

void
req_export(struct request *r, const void *body)
{
    const struct wire_export *q = body;
    struct looking *x;
    struct err e;

    if (transfer_check(q->to, "to", &e) == -1) {
        close(q->to);
        request_fail(r, &e);
        return;
    }
    x = looking_new(r, false);
    if (x == NULL) {
        close(q->to);
        return;
    }
    x->fd = q->to;
    x->tokens_only = q->tokens_only;
    looking_begin(x);
}

/* --- verify ------------------------------------------------------------------------------- */

static int
on_finding(void *arg, bool wrong, const char *text)
{
    struct looking *x = arg;
    const uint32_t i = x->n_problems;

    if (!wrong || i == PROBLEMS_SHOWN)
        return 0; /* `wrong` of the result counts them all */
    snprintf(x->texts[i], sizeof x->texts[i], "%s", text);
    x->problems[i] = (struct wire_problem){.text = wire_str(x->texts[i])};
    x->n_problems++;
    return 0;
}

static int
run_verify(void *arg, struct store_tools *t, struct err *e)
{
    struct looking *x = arg;

    return store_verify(t->io, x->dir, NULL, &x->stop, on_finding, x, &x->found, e);
}

static void
on_verified(void *arg, const struct err *why)
{
    struct looking *x = arg;
    const struct verify_result *v = &x->found;
    struct request *r = x->r;
    struct wire_verify_result res = {.good = v->wrong == 0,
                                     .wrong = v->wrong,
                                     .ledger = v->ledger,
                                     .tokens = v->len,
                                     .files = v->files,
                                     .files_good = v->files_good,
                                     .states = v->states,
                                     .best = v->best,
                                     .recompute = v->recompute,
                                     .salvage = v->salvage};

    if (why != NULL) {
        looking_failed(x, why);
        return;
    }
    log_line(v->wrong == 0 ? LOG_INFO : LOG_WARNING,
             "session-verify session=%s uid=%u wrong=%llu files=%llu", x->name,
             x->s->user->uid, (unsigned long long)v->wrong, (unsigned long long)v->files);
    if (x->give_up && x->s->state == SESSION_DAMAGED && v->ledger) {
        log_line(LOG_WARNING, "session-gave-up session=%s uid=%u tokens=%llu", x->name,
                 x->s->user->uid, (unsigned long long)v->len);
        store_need(x->sv->store, x->s, NULL, &(struct err){0});
    }
    if (v->wrong == 0) {
        kv_trust(x->s);
        store_commit_soon(x->sv->store, x->s);
    }
    res.problems.v = x->problems;
    res.problems.n = x->n_problems;
    x->r = NULL;
    if (r != NULL) {
        r->data = NULL;
        request_reply(r, WIRE_MSG(verify_result), &res);
    }
    looking_free(x);
}

static void
begin_verify(struct looking *x)
{
    struct err e;

    if (store_run(x->sv->store, x->s, true, run_verify, on_verified, x, &e) == -1)
        looking_failed(x, &e);
}

void
req_verify(struct request *r, const void *body)
{
    const struct wire_verify *q = body;
    const bool give_up = wire_has(q, verify, give_up) && q->give_up;
    struct looking *x;
    struct err e;

    if (give_up && !session_may(r->session, &r->conn->cred, SESSION_WRITE)) {
        err_set(&e, ERR_PERMISSION, 0,
                "giving something up needs the right to write to it");
        request_fail(r, &e);
        return;
    }
    x = looking_new(r, true);
    if (x == NULL)
        return;
    x->give_up = give_up;
    looking_begin(x);
}

/* --- import ------------------------------------------------------------------------------- */

struct importing {
    struct request *r; /* NULL: nobody waits */
    struct server *sv;
    struct user *user; /* held; has paid for a session */
    struct transfer *transfer;
    int fd;
    char name[SESSION_NAME_MAX + 1]; /* "": the one that it had */
    struct archive_import how;
    struct archive_told told;
    struct kvfile_id id;
    struct catalog_entry entry;
};

static void
importing_free(struct importing *x)
{
    if (x->fd != -1)
        close(x->fd);
    quota_give(x->user, QUOTA_SESSIONS, 1);
    quota_drop(x->user);
    free(x);
}

static void
importing_failed(struct importing *x, const struct err *why)
{
    struct request *r = x->r;

    if (r != NULL) {
        r->data = NULL;
        request_fail(r, why);
    }
    importing_free(x);
}

static void
on_import_gone(struct request *r)
{
    struct importing *x = r->data;

    if (x == NULL)
        return;
    x->r = NULL;
    r->data = NULL;
    if (x->transfer != NULL)
        transfer_cancel(x->transfer);
}

static ssize_t
take(void *arg, void *p, size_t room, struct err *e)
{
    return transfer_read(arg, p, room, e);
}

static int
run_import(struct transfer *t, struct err *e)
{
    struct importing *x = t->arg;

    return archive_import(store_catalog(x->sv->store), &x->id, &x->how, take, t, &x->entry,
                          e);
}

static void
on_imported(struct transfer *t)
{
    struct importing *x = t->arg;
    struct wire_import_result res = {.tokens = x->entry.len,
                                     .bytes = t->bytes,
                                     .files = x->told.files,
                                     .left_out = x->told.left_out,
                                     .digest = wire_bin(t->digest, sizeof t->digest)};
    struct request *r = x->r;
    struct session *s = NULL;
    struct err e;

    x->fd = -1;
    x->transfer = NULL;
    if (t->err.code != ERR_NONE) {
        store_sweep(x->sv->store); /* of what it had written in tmp/ */
        importing_failed(x, &t->err);
        return;
    }
    quota_give(x->user, QUOTA_SESSIONS, 1); /* the session takes it now */
    s = store_take_in(x->sv->store, &x->entry, &e);
    quota_force(x->user, QUOTA_SESSIONS, 1);
    if (s == NULL) {
        importing_failed(x, &e); /* it is found at the next start */
        return;
    }
    log_line(LOG_INFO, "session-import session=%s uid=%u tokens=%llu bytes=%llu", s->name,
             s->user->uid, (unsigned long long)x->entry.len, (unsigned long long)t->bytes);
    res.name = wire_str(s->name);
    x->r = NULL;
    if (r != NULL) {
        r->data = NULL;
        request_reply(r, WIRE_MSG(import_result), &res);
    }
    importing_free(x);
}

/* All that the archive is measured against, as it is now. */
static int
read_import(struct request *r, struct importing *x, const struct wire_import *q,
            struct err *e)
{
    const struct session *s;

    if (wire_has(q, import, name)) {
        if (!request_copy(x->name, sizeof x->name, q->name))
            return err_set(e, ERR_INVALID, 0, "key 'name': not a session's name");
        if (session_name_check(x->name, e) == -1)
            return -1;
        s = session_find(x->user, x->name);
        if (s != NULL)
            return err_set(e, ERR_EXISTS, 0, "there is a session '%s' already", x->name);
    }
    catalog_new_id(&x->id);
    x->how = (struct archive_import){.name = x->name[0] != '\0' ? x->name : NULL,
                                     .uid = x->user->uid,
                                     .gid = r->conn->cred.gid,
                                     .mode = 0600,
                                     .now_ms = clock_wall_ms(),
                                     .adopt = true,
                                     .model = kv_model(work_kv(x->sv->work)),
                                     .told = &x->told};
    x->how.most_tokens = quota_left(x->user, QUOTA_TOKENS, &x->how.tokens_limit);
    x->how.most_bytes = quota_left(x->user, QUOTA_DISK, &x->how.bytes_limit);
    if (x->how.model == NULL)
        return err_set(
            e, ERR_UNAVAILABLE, 0,
            "the engine is still loading: what the session is worth here is not known");
    return 0;
}

void
req_import(struct request *r, const void *body)
{
    const struct wire_import *q = body;
    struct importing *x = calloc(1, sizeof *x);
    struct err e = {0};

    if (x == NULL)
        err_set(&e, ERR_QUOTA, errno, "no memory for a request");
    else if (transfer_check(q->from, "from", &e) == 0)
        (void)quota_take(r->conn->user, QUOTA_SESSIONS, 1, &e);
    if (e.code != ERR_NONE) {
        close(q->from);
        free(x);
        request_fail(r, &e);
        return;
    }
    x->r = r;
    x->sv = r->conn->server;
    x->user = quota_hold(r->conn->user);
    x->fd = q->from;
    if (read_import(r, x, q, &e) == 0)
        x->transfer = transfer_start(x->sv->transfers, x->user, x->fd, run_import,
                                     on_imported, x, &e);
    if (x->transfer == NULL) {
        importing_failed(x, &e);
        return;
    }
    r->data = x;
    r->drop = on_import_gone;
}
