/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests about sessions as such: new, delete, rename, chmod.
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

/* --- new and chmod: both may have to look up a group -------------------------------------- */

struct made {
    char name[SESSION_NAME_MAX + 1];
    unsigned mode;
    uint32_t gid;
    bool has_mode, if_absent, chmod, created;
};

static void
drop_data(struct request *r)
{
    free(r->data);
}

static void
tell_new(struct request *r, const struct err *why)
{
    const struct made *m = r->data;
    struct wire_session_new_result res = {
        .name = wire_str(m->name), .pos = r->session->log.len, .created = m->created};

    if (why != NULL)
        request_fail_at(r, why, r->session->log.len);
    else
        request_reply(r, WIRE_MSG(session_new_result), &res);
}

static struct session *
new_session(struct request *r, const struct made *m, struct err *e)
{
    const struct server *sv = r->conn->server;
    struct session *s = session_new(r->conn->user, sv->o->max_checkpoints, e);

    if (s == NULL)
        return NULL;
    if (session_link(s, m->name, e) == -1 || store_adopt(sv->store, s, NULL, e) == -1) {
        session_free(s);
        return NULL;
    }
    s->gid = m->gid;
    if (m->has_mode)
        s->mode = m->mode;
    log_line(LOG_INFO, "session-new session=%s uid=%" PRIu32, s->name, s->user->uid);
    return s;
}

static void
make_session(struct request *r, struct made *m)
{
    struct session *s = session_find(r->conn->user, m->name);
    struct err e;

    m->created = s == NULL;
    if (s != NULL && !m->if_absent) {
        err_set(&e, ERR_EXISTS, 0, "there is a session '%s' already", m->name);
        request_fail_at(r, &e, s->log.len);
        return;
    }
    if (s == NULL)
        s = new_session(r, m, &e);
    if (s == NULL) {
        request_fail(r, &e);
        return;
    }
    r->session = s;
    request_commit(r, tell_new);
}

static void
tell_nothing(struct request *r, const struct err *why)
{
    if (why != NULL)
        request_fail_at(r, why, r->session->log.len);
    else
        request_reply(r, WIRE_MSG(nothing), &(struct wire_nothing){0});
}

static void
change_mode(struct request *r, struct made *m)
{
    struct session *s = r->session; /* held: see request_hold() */
    struct err e;

    if (store_refuses(s, &e) == -1) {
        request_fail(r, &e);
        return;
    }
    s->mode = m->mode;
    s->gid = m->gid;
    session_log_touch(&s->log);
    request_commit(r, tell_nothing);
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

/* --- at once ------------------------------------------------------------------------------ */

static void
on_deleted(struct store_wait *w, const struct err *why)
{
    tell_nothing(w->arg, why);
}

void
req_delete(struct request *r, const void *body)
{
    struct session *s = r->session;

    (void)body;
    log_line(LOG_INFO, "session-delete session=%s uid=%" PRIu32 " by=%" PRIu32, s->name,
             s->user->uid, r->conn->cred.uid);
    request_hold(r);
    r->changed = true;
    r->wait = (struct store_wait){.fn = on_deleted, .arg = r};
    work_delete(r->conn->server->work, s, &r->wait);
}

static void
tell_renamed(struct request *r, const struct err *why)
{
    const struct wire_pos_result res = {.name = wire_str(r->data),
                                        .pos = r->session->log.len};

    if (why != NULL)
        request_fail_at(r, why, r->session->log.len);
    else
        request_reply(r, WIRE_MSG(pos_result), &res);
}

static int
rename_session(struct session *s, const char *to, struct err *e)
{
    char was[SESSION_NAME_MAX + 1];

    if (session_name_check(to, e) == -1 || store_refuses(s, e) == -1)
        return -1;
    if (strcmp(to, s->name) != 0 && session_find(s->user, to) != NULL)
        return err_set(e, ERR_EXISTS, 0, "there is a session '%s' already", to);
    memcpy(was, s->name, sizeof was);
    session_unlink(s);
    session_link(s, to, e); /* cannot fail: the name is free, and so is its place */
    session_log_touch(&s->log);
    log_line(LOG_INFO, "session-rename session=%s to=%s uid=%" PRIu32, was, to,
             s->user->uid);
    return 0;
}

void
req_rename(struct request *r, const void *body)
{
    const struct wire_rename *q = body;
    char *to = calloc(1, SESSION_NAME_MAX + 1);
    struct err e;

    r->data = to;
    r->drop = drop_data;
    if (to == NULL) {
        err_set(&e, ERR_QUOTA, errno, "no memory for a name");
        request_fail(r, &e);
    } else if (!request_copy(to, SESSION_NAME_MAX + 1, q->to)) {
        err_set(&e, ERR_INVALID, 0, "key 'to': not a session's name");
        request_fail(r, &e);
    } else if (rename_session(r->session, to, &e) == -1) {
        request_fail(r, &e);
    } else {
        request_commit(r, tell_renamed);
    }
}
