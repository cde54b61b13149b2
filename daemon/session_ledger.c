/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "daemon/op.h"
#include "daemon/session.h"
#include "daemon/session_files.h"
#include "daemon/session_ledger.h"
#include "daemon/store_thread.h"

/* The result of an operation in a ledger's row; little-endian. */
struct body {
    uint8_t version, kind, code, undone;
    uint32_t reason;
    uint64_t begin, end, stop_at, seed;
    uint8_t zero[24];
};

_Static_assert(sizeof(struct body) == LEDGER_OP_BYTES, "the whole row");
_Static_assert((int)LEDGER_OPS == (int)OP_IDS_KEPT, "as many as are kept");
_Static_assert((int)LEDGER_NAME_MAX == (int)SESSION_NAME_MAX, "all names fit");

enum { BODY_VERSION = 1 };

static void
pack_op(struct ledger_op *out, const struct op_record *op)
{
    const struct body b = {.version = BODY_VERSION,
                           .kind = op->kind,
                           .code = op->code,
                           .undone = op->undone,
                           .reason = htole32(op->reason),
                           .begin = htole64(op->begin),
                           .end = htole64(op->end),
                           .stop_at = htole64(op->stop_at),
                           .seed = htole64(op->seed)};

    memcpy(out->id, op->id, sizeof out->id);
    memcpy(out->body, &b, sizeof b);
}

static bool
unpack_op(struct op_record *out, const struct ledger_op *op)
{
    struct body b;

    memcpy(&b, op->body, sizeof b);
    *out = (struct op_record){.kind = b.kind,
                              .code = b.code,
                              .undone = b.undone != 0,
                              .reason = le32toh(b.reason),
                              .begin = le64toh(b.begin),
                              .end = le64toh(b.end),
                              .stop_at = le64toh(b.stop_at),
                              .seed = le64toh(b.seed)};
    memcpy(out->id, op->id, sizeof out->id);
    return b.version == BODY_VERSION && b.kind <= OP_CALL && b.code < ERR_CODES &&
           b.undone <= 1 && out->begin <= out->end && out->reason <= LINK_FAILED;
}

/* --- out ---------------------------------------------------------------------------------- */

static void *
copy_of(const void *p, size_t bytes)
{
    void *copy = malloc(bytes + 1);

    if (copy != NULL && bytes > 0)
        memcpy(copy, p, bytes);
    return copy;
}

static void
put_meta(const struct session *s, struct store_job *job)
{
    struct ledger_meta *m = &job->meta;

    *m = s->kept;
    memcpy(m->name, s->name, sizeof m->name);
    m->uid = s->user->uid;
    m->gid = s->gid;
    m->mode = s->mode;
    m->created_ms = s->created_ms;
    m->used_ms = s->used_ms;
    m->turns = s->log.turns;
    m->rollbacks = s->log.rollbacks;
    m->turn_open = s->log.turn_open;
    memcpy(m->fingerprint, s->fingerprint, sizeof m->fingerprint);
    job->change.meta = m;
}

static int
put_points(const struct session_log *l, struct ledger_change *c)
{
    struct ledger_point *v = calloc(l->n_checkpoints + 1, sizeof *v);

    if (v == NULL)
        return -1;
    for (size_t i = 0; i < l->n_checkpoints; i++) {
        const struct checkpoint *p = &l->checkpoints[i];

        v[i].automatic = p->automatic;
        v[i].pos = p->pos;
        v[i].made_ms = p->made_ms;
        memcpy(v[i].label, p->label, sizeof v[i].label);
    }
    c->has_points = true;
    c->points = v;
    c->n_points = l->n_checkpoints;
    return 0;
}

static int
put_ops(const struct session_log *l, struct ledger_change *c)
{
    const uint64_t kept = l->n_ops < OP_IDS_KEPT ? 0 : l->n_ops - OP_IDS_KEPT;
    const uint64_t first = l->diff.ops > kept ? l->diff.ops : kept;
    struct ledger_op *v = calloc(l->n_ops - first + 1, sizeof *v);

    if (v == NULL)
        return -1;
    for (uint64_t i = first; i < l->n_ops; i++)
        pack_op(&v[i - first], session_log_op(l, i));
    c->ops = v;
    c->n_ops = l->n_ops - first;
    return 0;
}

/* Of each file touched what the list says of it now. */
static int
put_files(const struct session *s, struct ledger_change *c)
{
    struct ledger_file *add = calloc(s->n_touched + 1, sizeof *add);
    struct kvfile_id *drop = calloc(s->n_touched + 1, sizeof *drop);

    c->add = add;
    c->drop = drop;
    if (add == NULL || drop == NULL)
        return -1;
    for (size_t i = 0; i < s->n_touched; i++) {
        const struct ledger_file *f = session_file(s, &s->touched[i]);

        if (f != NULL)
            add[c->n_add++] = *f;
        else
            drop[c->n_drop++] = s->touched[i];
    }
    return 0;
}

int
session_to_ledger(const struct session *s, struct store_job *job, struct err *e)
{
    const struct session_log *l = &s->log;
    const struct session_log_diff *d = &l->diff;
    struct ledger_change *c = &job->change;

    put_meta(s, job);
    job->len = l->len;
    job->n_points = session_points(s);
    job->disk_bytes = SESSION_DISK_BYTES + l->len * sizeof *l->tokens + s->file_bytes;
    if (d->low != d->stored || d->low != l->len) {
        c->has_tokens = true;
        c->from = d->low;
        c->n_tokens = l->len - d->low;
        c->tokens = copy_of(l->tokens + d->low, c->n_tokens * sizeof *l->tokens);
        if (c->tokens == NULL)
            goto no_memory;
    }
    if ((d->points && put_points(l, c) == -1) ||
        (d->ops != l->n_ops && put_ops(l, c) == -1) ||
        (s->n_touched > 0 && put_files(s, c) == -1))
        goto no_memory;
    return 0;

no_memory:
    return err_set(e, ERR_QUOTA, errno, "no memory for what is to be stored");
}

/* --- in ----------------------------------------------------------------------------------- */

static struct checkpoint *
points_of(const struct ledger_content *c, struct err *e)
{
    struct checkpoint *v = calloc(c->n_points + 1, sizeof *v);

    if (v == NULL) {
        err_set(e, ERR_QUOTA, errno, "no memory for checkpoints");
        return NULL;
    }
    for (size_t i = 0; i < c->n_points; i++) {
        const struct ledger_point *p = &c->points[i];

        v[i].automatic = p->automatic;
        v[i].pos = p->pos;
        v[i].made_ms = p->made_ms;
        snprintf(v[i].label, sizeof v[i].label, "%s", p->label);
    }
    return v;
}

static int
ops_of(const struct ledger_content *c, struct op_record **out, struct err *e)
{
    struct op_record *v = calloc(OP_IDS_KEPT, sizeof *v);

    if (v == NULL)
        return err_set(e, ERR_QUOTA, errno, "no memory for results");
    for (size_t i = 0; i < c->n_ops && i < OP_IDS_KEPT; i++) {
        if (unpack_op(&v[i], &c->ops[i]))
            continue;
        free(v);
        return err_set(e, ERR_DAMAGED, 0, "the result of operation %zu makes no sense", i);
    }
    *out = v;
    return 0;
}

int
session_from_ledger(struct session *s, struct ledger_content *c, struct err *e)
{
    struct checkpoint *points = points_of(c, e);
    struct op_record *ops = NULL;

    if (points == NULL)
        return -1;
    if (c->n_ops > 0 && ops_of(c, &ops, e) == -1) {
        free(points);
        return -1;
    }
    session_log_loaded(&s->log, c->tokens, c->len, points, c->n_points, ops,
                       c->n_ops < OP_IDS_KEPT ? c->n_ops : OP_IDS_KEPT);
    session_files_loaded(s, c->files, c->n_files);
    c->tokens = NULL;
    c->files = NULL;
    return 0;
}
