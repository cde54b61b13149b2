/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests about sessions as such: new, list, stat, delete, rename, chmod; and those that wait
 * for their turn in the session's queue: fork, checkpoint, rollback.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "daemon/options.h"
#include "daemon/request.h"
#include "daemon/text.h"
#include "daemon/work.h"

enum { LIST_DEFAULT = 100, LIST_MOST = 1000, PAGE_TOKENS = 128, SHOWN_POINTS = 1024 };

/* --- new and chmod: both may have to look up a group -------------------------------------- */

struct made {
    char name[SESSION_NAME_MAX + 1];
    unsigned mode;
    uint32_t gid;
    bool has_mode, if_absent, chmod;
};

static void
drop_data(struct request *r)
{
    free(r->data);
}

static void
make_session(struct request *r, const struct made *m)
{
    const struct server *sv = r->conn->server;
    struct wire_session_new_result res = {0};
    struct user *u = r->conn->user;
    struct session *s = session_find(u, m->name);
    struct err e;

    res.created = s == NULL;
    if (s != NULL && !m->if_absent) {
        err_set(&e, ERR_EXISTS, 0, "there is a session '%s' already", m->name);
        request_fail_at(r, &e, s->log.len);
        return;
    }
    if (s == NULL) {
        s = session_new(u, sv->o->max_checkpoints, &e);
        if (s == NULL) {
            request_fail(r, &e);
            return;
        }
        if (session_link(s, m->name, &e) == -1) {
            session_free(s);
            request_fail(r, &e);
            return;
        }
        s->gid = m->gid;
        if (m->has_mode)
            s->mode = m->mode;
        log_line(LOG_INFO, "session-new name=%s uid=%" PRIu32, s->name, u->uid);
    }
    res.name = wire_str(s->name);
    res.pos = s->log.len;
    request_reply(r, WIRE_MSG(session_new_result), &res);
}

static void
change_mode(struct request *r, const struct made *m)
{
    r->session->mode = m->mode; /* held: see request_hold() */
    r->session->gid = m->gid;
    request_reply(r, WIRE_MSG(nothing), &(struct wire_nothing){0});
}

static void
on_group(struct text_job *job)
{
    struct request *r = request_of_job(job);
    const struct cred *who = r != NULL ? &r->conn->cred : NULL;
    struct made *m = r != NULL ? r->data : NULL;
    struct err e;

    if (r != NULL && job->err.code != ERR_NONE) {
        request_fail(r, &job->err);
    } else if (r != NULL && who->uid != 0 && !cred_in_group(who, job->number)) {
        err_set(&e, ERR_PERMISSION, 0, "you are not in group %" PRIu32, job->number);
        request_fail(r, &e);
    } else if (r != NULL) {
        m->gid = job->number;
        (m->chmod ? change_mode : make_session)(r, m);
    }
    text_job_free(job);
}

/* m is the request's from now on. */
static void
with_group(struct request *r, struct made *m, bool has_group, struct wire_str group)
{
    struct text_job *job;
    struct err e;
    char *name;

    r->data = m;
    r->drop = drop_data;
    if (!has_group) {
        (m->chmod ? change_mode : make_session)(r, m);
        return;
    }
    job = text_job_new(TEXT_GROUP, on_group, r, &e);
    name = wire_dup(group);
    if (job == NULL || name == NULL) {
        text_job_free(job);
        free(name);
        err_set(&e, ERR_QUOTA, errno, "no memory for a group's name");
        request_fail(r, &e);
        return;
    }
    job->in = name;
    job->n_in = group.len;
    if (request_post(r, job, &e) == -1)
        request_fail(r, &e);
}

void
req_session_new(struct request *r, const void *body)
{
    const struct wire_session_new *q = body;
    struct made *m = calloc(1, sizeof *m);
    struct err e = {0};

    if (m == NULL) {
        err_set(&e, ERR_QUOTA, errno, "no memory for a session");
    } else if (!request_copy(m->name, sizeof m->name, q->name)) {
        err_set(&e, ERR_INVALID, 0, "key 'name': not a session's name");
    } else if (session_name_check(m->name, &e) == 0) {
        m->has_mode = wire_has(q, session_new, mode);
        m->mode = (unsigned)q->mode;
        m->if_absent = q->if_absent;
        m->gid = r->conn->cred.gid;
        with_group(r, m, wire_has(q, session_new, group), q->group);
        return;
    }
    free(m);
    request_fail(r, &e);
}

void
req_chmod(struct request *r, const void *body)
{
    const struct wire_chmod *q = body;
    struct made *m = calloc(1, sizeof *m);
    struct err e;

    if (m == NULL) {
        err_set(&e, ERR_QUOTA, errno, "no memory for a mode");
        request_fail(r, &e);
        return;
    }
    request_hold(r);
    m->chmod = true;
    m->mode = (unsigned)q->mode;
    m->gid = r->session->gid;
    with_group(r, m, wire_has(q, chmod, group), q->group);
}

/* --- list and stat ------------------------------------------------------------------------ */

struct row {
    char name[2 + USER_NAME_MAX + SESSION_NAME_MAX + 8];
    const struct session *s;
};

static int
by_name(const void *a, const void *b)
{
    return strcmp(((const struct row *)a)->name, ((const struct row *)b)->name);
}

/* The sessions behind `after` that the caller may know of, sorted; NULL: no memory. */
static struct row *
collect(const struct conn *c, bool all, const char *after, size_t *n)
{
    const struct quota *q = &c->server->quota;
    struct row *rows = calloc(q->used[QUOTA_SESSIONS] + 1, sizeof *rows);

    *n = 0;
    for (const struct user *u = q->users; rows != NULL && u != NULL; u = u->next) {
        if (u != c->user && !all)
            continue;
        for (const struct session *s = u->sessions; s != NULL; s = s->next) {
            struct row *row = &rows[*n];

            if (s->name[0] == '.' || !session_visible(s, &c->cred))
                continue;
            session_shown(s, &c->cred, row->name, sizeof row->name);
            row->s = s;
            *n += strcmp(row->name, after) > 0;
        }
    }
    if (rows != NULL)
        qsort(rows, *n, sizeof *rows, by_name);
    return rows;
}

static uint64_t
kv_bytes(const struct request *r, const struct session *s)
{
    const struct link_ready *info = engine_info(work_engine(r->conn->server->work));
    const uint64_t len = work_kv_len(s);

    if (info == NULL || len == 0)
        return 0;
    return info->seq_fixed_bytes + (len + PAGE_TOKENS - 1) / PAGE_TOKENS * info->page_bytes;
}

static uint64_t
transcript_bytes(const struct session *s)
{
    return sizeof *s + s->log.room * sizeof *s->log.tokens +
           s->log.n_checkpoints * sizeof *s->log.checkpoints +
           (s->log.ops != NULL ? OP_IDS_KEPT * sizeof *s->log.ops : 0);
}

static const char *
owner_name(const struct session *s, char room[USER_NAME_MAX + 1])
{
    if (s->user->name[0] != '\0')
        return s->user->name;
    snprintf(room, USER_NAME_MAX + 1, "%" PRIu32, s->user->uid);
    return room;
}

void
req_list(struct request *r, const void *body)
{
    const struct wire_list *q = body;
    const uint64_t limit = wire_has(q, list, limit) ? q->limit : LIST_DEFAULT;
    struct wire_list_result res = {0};
    char after[129] = "", (*owners)[USER_NAME_MAX + 1] = NULL;
    struct row *rows = NULL;
    size_t n = 0;
    struct err e;

    if (wire_has(q, list, after) && !request_copy(after, sizeof after, q->after)) {
        err_set(&e, ERR_INVALID, 0, "key 'after': not a session's name");
        request_fail(r, &e);
        return;
    }
    rows = collect(r->conn, q->all, after, &n);
    res.more = n > limit;
    res.sessions.n = (uint32_t)(n < limit ? n : limit);
    res.sessions.v = calloc(res.sessions.n + 1, sizeof *res.sessions.v);
    owners = calloc(res.sessions.n + 1, sizeof *owners);
    if (rows == NULL || res.sessions.v == NULL || owners == NULL) {
        err_set(&e, ERR_QUOTA, errno, "no memory for the list");
        request_fail(r, &e);
    } else {
        for (uint32_t i = 0; i < res.sessions.n; i++) {
            const struct session *s = rows[i].s;

            res.sessions.v[i] = (struct wire_session){
                .name = wire_str(rows[i].name),
                .owner = wire_str(owner_name(s, owners[i])),
                .pos = s->log.len,
                .state = wire_str(session_state_name(s->state)),
                .mode = s->mode,
                .created_ms = s->created_ms,
                .used_ms = s->used_ms,
                .bytes = kv_bytes(r, s) + transcript_bytes(s),
                .checkpoints = s->log.n_checkpoints,
            };
        }
        request_reply(r, WIRE_MSG(list_result), &res);
    }
    free(rows);
    free(owners);
    free(res.sessions.v);
}

static void
put_points(struct wire_stat_result *res, const struct session_log *l, struct wire_point *v)
{
    const size_t skip = l->n_checkpoints > SHOWN_POINTS ? l->n_checkpoints - SHOWN_POINTS
                                                        : 0;

    res->points.v = v;
    for (size_t i = skip; i < l->n_checkpoints; i++) {
        struct wire_point p = {.name = wire_str(l->checkpoints[i].label),
                               .pos = l->checkpoints[i].pos};
        uint32_t at = res->points.n++;

        for (; at > 0 && v[at - 1].pos > p.pos; at--)
            v[at] = v[at - 1];
        v[at] = p;
    }
}

void
req_stat(struct request *r, const void *body)
{
    const struct session *s = r->session;
    const struct link_ready *info = engine_info(work_engine(r->conn->server->work));
    struct wire_point *points = calloc(SHOWN_POINTS, sizeof *points);
    char owner[USER_NAME_MAX + 1], group[16], name[160];
    struct wire_stat_result res = {0};
    struct err e;

    (void)body;
    if (points == NULL) {
        err_set(&e, ERR_QUOTA, errno, "no memory for checkpoints");
        request_fail(r, &e);
        return;
    }
    session_shown(s, &r->conn->cred, name, sizeof name);
    snprintf(group, sizeof group, "%" PRIu32, s->gid);
    res.name = wire_str(name);
    res.owner = wire_str(owner_name(s, owner));
    wire_put(&res, stat_result, group, wire_str(group));
    res.pos = s->log.len;
    res.state = wire_str(session_state_name(s->state));
    res.mode = s->mode;
    res.created_ms = s->created_ms;
    res.used_ms = s->used_ms;
    res.kv_bytes = kv_bytes(r, s);
    res.transcript_bytes = transcript_bytes(s);
    res.bytes = res.kv_bytes + res.transcript_bytes;
    wire_put(&res, stat_result, kv_pos, work_kv_len(s));
    put_points(&res, &s->log, points);
    res.chat = wire_str(s->log.turn_open   ? "user"
                        : s->log.turns > 0 ? "assistant"
                                           : "none");
    res.turns = s->log.turns;
    if (info != NULL) {
        res.bytes_per_token = (double)info->page_bytes / PAGE_TOKENS;
        wire_put(&res, stat_result, max_positions, info->max_positions);
    }
    request_reply(r, WIRE_MSG(stat_result), &res);
    free(points);
}

/* --- at once ------------------------------------------------------------------------------ */

void
req_delete(struct request *r, const void *body)
{
    struct session *s = r->session;

    (void)body;
    log_line(LOG_INFO, "session-delete name=%s uid=%" PRIu32 " by=%" PRIu32, s->name,
             s->user->uid, r->conn->cred.uid);
    work_delete(r->conn->server->work, s);
    request_reply(r, WIRE_MSG(nothing), &(struct wire_nothing){0});
}

void
req_rename(struct request *r, const void *body)
{
    const struct wire_rename *q = body;
    struct session *s = r->session;
    struct wire_pos_result res = {0};
    char to[SESSION_NAME_MAX + 1], was[SESSION_NAME_MAX + 1];
    struct err e;

    if (!request_copy(to, sizeof to, q->to)) {
        err_set(&e, ERR_INVALID, 0, "key 'to': not a session's name");
        request_fail(r, &e);
        return;
    }
    if (session_name_check(to, &e) == -1) {
        request_fail(r, &e);
        return;
    }
    if (strcmp(to, s->name) != 0 && session_find(s->user, to) != NULL) {
        err_set(&e, ERR_EXISTS, 0, "there is a session '%s' already", to);
        request_fail(r, &e);
        return;
    }
    memcpy(was, s->name, sizeof was);
    session_unlink(s);
    session_link(s, to, &e); /* cannot fail: the name is free */
    log_line(LOG_INFO, "session-rename from=%s to=%s uid=%" PRIu32, was, to, s->user->uid);
    res.name = wire_str(s->name);
    res.pos = s->log.len;
    request_reply(r, WIRE_MSG(pos_result), &res);
}

/* --- in the queue ------------------------------------------------------------------------- */

struct queued {
    char label[SESSION_NAME_MAX + 1];
    bool has_label, has_pos;
    uint64_t pos, dropped, replay;
    char to[SESSION_NAME_MAX + 1];
};

static void
on_queued_done(struct op *op)
{
    struct request *r = request_of(op);
    const struct queued *d;
    struct wire_pos_result res = {0};
    char name[160];

    if (r == NULL)
        return;
    if (op->err.code != ERR_NONE) {
        request_fail_at(r, &op->err, op->session->log.len);
        return;
    }
    d = r->data;
    session_shown(op->session, &r->conn->cred, name, sizeof name);
    res.name = wire_str(d->to[0] != '\0' ? d->to : name);
    res.pos = d->to[0] != '\0' ? d->pos : op->session->log.len;
    if (d->dropped > 0)
        wire_put(&res, pos_result, dropped, d->dropped);
    wire_put(&res, pos_result, replay, d->replay);
    request_reply(r, WIRE_MSG(pos_result), &res);
}

static void
queue(struct request *r, const struct op_calls *calls, struct queued *d, bool has_if_pos,
      uint64_t if_pos)
{
    struct err e;
    struct op *op = op_new(OP_CALL, r->session, r->conn->user, calls, r, &e);

    r->data = d;
    r->drop = drop_data;
    if (op == NULL) {
        request_fail(r, &e);
        return;
    }
    op->has_if_pos = has_if_pos;
    op->if_pos = if_pos;
    request_submit(r, op);
}

static struct queued *
new_queued(struct request *r)
{
    struct queued *d = calloc(1, sizeof *d);
    struct err e;

    if (d == NULL) {
        err_set(&e, ERR_QUOTA, errno, "no memory for a request");
        request_fail(r, &e);
    }
    return d;
}

static void
bad_key(struct request *r, void *data, const char *text)
{
    struct err e;

    free(data);
    err_set(&e, ERR_INVALID, 0, "%s", text);
    request_fail(r, &e);
}

static int
resolve(const struct queued *d, const struct session *s, uint64_t *pos, struct err *e)
{
    if (d->has_label)
        return session_log_resolve(&s->log, d->label, pos, e);
    *pos = d->has_pos ? d->pos : s->log.len;
    if (*pos > s->log.len)
        return err_set(e, ERR_INVALID, 0, "position %" PRIu64 " is past the end, %" PRIu64,
                       *pos, s->log.len);
    return 0;
}

static int
run_checkpoint(struct op *op, struct err *e)
{
    struct request *r = op->owner;
    const struct queued *d = r->data;

    if (session_log_mark(&op->session->log, d->label, false, e) == -1)
        return -1;
    work_snapshot(r->conn->server->work, op->session);
    return 0;
}

void
req_checkpoint(struct request *r, const void *body)
{
    static const struct op_calls calls = {.run = run_checkpoint, .done = on_queued_done};
    const struct wire_checkpoint *q = body;
    struct queued *d = new_queued(r);
    struct err e;

    if (d == NULL)
        return;
    if (!request_copy(d->label, sizeof d->label, q->label) ||
        session_name_check(d->label, &e) == -1) {
        bad_key(r, d,
                "key 'label': 1 to 64 of A-Z a-z 0-9 . _ -, not beginning with a dot");
        return;
    }
    queue(r, &calls, d, false, 0);
}

static int
run_rollback(struct op *op, struct err *e)
{
    struct request *r = op->owner;
    struct queued *d = r->data;
    struct session *s = op->session;
    const uint64_t was = s->log.len;
    uint64_t pos;

    if (resolve(d, s, &pos, e) == -1 ||
        work_rollback(r->conn->server->work, s, pos, e) == -1)
        return -1;
    d->dropped = was - pos;
    d->replay = work_replay(r->conn->server->work, s);
    return 0;
}

void
req_rollback(struct request *r, const void *body)
{
    static const struct op_calls calls = {.run = run_rollback, .done = on_queued_done};
    const struct wire_rollback *q = body;
    struct queued *d = new_queued(r);

    if (d == NULL)
        return;
    d->has_label = wire_has(q, rollback, to);
    d->has_pos = wire_has(q, rollback, pos);
    d->pos = q->pos;
    if (d->has_label == d->has_pos) {
        bad_key(r, d, "one of 'to' and 'pos' is needed");
        return;
    }
    if (d->has_label && !request_copy(d->label, sizeof d->label, q->to)) {
        bad_key(r, d, "key 'to': not a checkpoint's label");
        return;
    }
    queue(r, &calls, d, wire_has(q, rollback, if_pos), q->if_pos);
}

/* The new one belongs to whoever asks. */
static int
run_fork(struct op *op, struct err *e)
{
    struct request *r = op->owner;
    struct queued *d = r->data;
    struct server *sv = r->conn->server;
    struct session *s = op->session, *to;
    uint64_t pos;

    if (resolve(d, s, &pos, e) == -1)
        return -1;
    to = session_new(r->conn->user, sv->o->max_checkpoints, e);
    if (to == NULL)
        return -1;
    if (session_link(to, d->to, e) == -1 ||
        session_log_copy(&to->log, &s->log, pos, e) == -1) {
        session_free(to);
        return -1;
    }
    to->gid = r->conn->cred.gid;
    work_fork(sv->work, s, to, pos);
    d->pos = pos;
    d->replay = work_replay(sv->work, to);
    log_line(LOG_INFO, "session-fork from=%s to=%s uid=%" PRIu32, s->name, to->name,
             to->user->uid);
    return 0;
}

void
req_fork(struct request *r, const void *body)
{
    static const struct op_calls calls = {.run = run_fork, .done = on_queued_done};
    const struct wire_fork *q = body;
    struct queued *d = new_queued(r);
    struct err e;

    if (d == NULL)
        return;
    d->has_label = wire_has(q, fork, at);
    d->has_pos = wire_has(q, fork, pos);
    d->pos = q->pos;
    if (d->has_label && d->has_pos) {
        bad_key(r, d, "only one of 'at' and 'pos'");
        return;
    }
    if (!request_copy(d->to, sizeof d->to, q->to) || session_name_check(d->to, &e) == -1) {
        bad_key(r, d, "key 'to': 1 to 64 of A-Z a-z 0-9 . _ -, not beginning with a dot");
        return;
    }
    if (d->has_label && !request_copy(d->label, sizeof d->label, q->at)) {
        bad_key(r, d, "key 'at': not a checkpoint's label");
        return;
    }
    queue(r, &calls, d, false, 0);
}
