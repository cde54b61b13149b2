/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests that wait for their turn in the session's queue: fork, checkpoint, rollback.
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
#include "daemon/session_files.h"
#include "daemon/work.h"

static void
drop_data(struct request *r)
{
    free(r->data);
}

struct queued {
    char label[SESSION_NAME_MAX + 1];
    bool has_label, has_pos, remove;
    uint64_t pos, dropped, replay, restored;
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
    wire_put(&res, pos_result, restored, d->restored);
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

    if (d->remove)
        return session_log_unmark(&op->session->log, d->label, e);
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
    d->remove = q->remove;
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
    d->restored = work_restore(r->conn->server->work, s);
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

/* Files of the past are shared: they count for both, within the limits. */
static int
share_files(struct session *to, const struct session *from, uint64_t pos, struct err *e)
{
    struct ledger_file *files;
    uint64_t bytes = 0;
    size_t n;
    int rc;

    if (session_files_until(from, pos, &files, &n, e) == -1)
        return -1;
    for (size_t i = 0; i < n; i++)
        bytes += files[i].bytes;
    rc = quota_take(to->user, QUOTA_DISK, bytes, e);
    if (rc == 0) {
        quota_give(to->user, QUOTA_DISK, bytes); /* counted by what follows */
        rc = session_files_change(to, files, n, NULL, 0, e);
    }
    free(files);
    return rc;
}

static struct session *
make_fork(struct request *r, struct session *s, uint64_t pos, struct err *e)
{
    const struct queued *d = r->data;
    const struct server *sv = r->conn->server;
    struct session *to = session_new(r->conn->user, sv->o->max_checkpoints, e);

    if (to == NULL)
        return NULL;
    if (session_link(to, d->to, e) == -1 ||
        session_log_copy(&to->log, &s->log, pos, e) == -1 ||
        share_files(to, s, pos, e) == -1 ||
        store_adopt(sv->store, to, to->n_files > 0 ? s : NULL, e) == -1) {
        session_free(to);
        return NULL;
    }
    to->gid = r->conn->cred.gid;
    if (pos > 0) {
        to->max_id = s->max_id;
        memcpy(to->fingerprint, s->fingerprint, sizeof to->fingerprint);
    }
    return to;
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
    to = make_fork(r, s, pos, e);
    if (to == NULL)
        return -1;
    op->made = to;
    work_fork(sv->work, s, to, pos);
    d->pos = pos;
    d->replay = work_replay(sv->work, to);
    d->restored = work_restore(sv->work, to);
    log_line(LOG_INFO, "session-fork session=%s to=%s uid=%" PRIu32, s->name, to->name,
             to->user->uid);
    return 0;
}

void
req_fork(struct request *r, const void *body)
{
    static const struct op_calls calls = {
        .run = run_fork, .reads = true, .done = on_queued_done};
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
