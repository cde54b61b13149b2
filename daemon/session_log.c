/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/err.h"
#include "base/num.h"
#include "daemon/quota.h"
#include "daemon/session_log.h"

enum { FIRST_TOKENS = 256, FIRST_CHECKPOINTS = 8, TOKEN_BYTES = 4 };

static uint64_t
least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static void
give_tokens(struct session_log *l, uint64_t n)
{
    quota_give(l->owner, QUOTA_TOKENS, n);
    quota_give(l->owner, QUOTA_DISK, n * TOKEN_BYTES);
}

/* They take memory now and space on the disk soon. */
static int
take_tokens(struct session_log *l, uint64_t n, struct err *e)
{
    if (quota_take(l->owner, QUOTA_TOKENS, n, e) == -1)
        return -1;
    if (quota_take(l->owner, QUOTA_DISK, n * TOKEN_BYTES, e) == 0)
        return 0;
    quota_give(l->owner, QUOTA_TOKENS, n);
    return -1;
}

void
session_log_init(struct session_log *l, struct user *owner, size_t max_checkpoints)
{
    *l = (struct session_log){.owner = owner, .max_checkpoints = max_checkpoints};
}

void
session_log_done(struct session_log *l)
{
    give_tokens(l, l->len);
    free(l->tokens);
    free(l->checkpoints);
    free(l->ops);
    *l = (struct session_log){.owner = l->owner, .max_checkpoints = l->max_checkpoints};
}

/* --- the ledger's side -------------------------------------------------------------------- */

void
session_log_found(struct session_log *l, uint64_t len, uint64_t n_points)
{
    quota_force(l->owner, QUOTA_TOKENS, len);
    quota_force(l->owner, QUOTA_DISK, len * TOKEN_BYTES);
    l->len = l->diff.low = l->diff.stored = len;
    l->parked = true;
    l->n_points = n_points;
}

void
session_log_park(struct session_log *l)
{
    assert(!session_log_differs(l) && !l->committing);
    l->parked = true;
    l->n_points = l->n_checkpoints;
    free(l->tokens);
    free(l->checkpoints);
    free(l->ops);
    l->tokens = NULL;
    l->checkpoints = NULL;
    l->ops = NULL;
    l->room = l->n_checkpoints = l->checkpoint_room = 0;
    l->n_ops = l->diff.ops = 0;
}

void
session_log_loaded(struct session_log *l, uint32_t *tokens, uint64_t len,
                   struct checkpoint *points, size_t n_points, struct op_record *ops,
                   size_t n_ops)
{
    const bool meta = l->diff.meta;

    assert(l->parked && n_ops <= OP_IDS_KEPT);
    give_tokens(l, l->len);
    session_log_found(l, len, 0);
    l->parked = false;
    l->tokens = tokens;
    l->room = len;
    l->checkpoints = points;
    l->n_checkpoints = l->checkpoint_room = n_points;
    l->ops = ops;
    l->n_ops = n_ops;
    l->diff =
        (struct session_log_diff){.low = len, .stored = len, .ops = n_ops, .meta = meta};
}

void
session_log_touch(struct session_log *l)
{
    l->diff.meta = true;
}

bool
session_log_differs(const struct session_log *l)
{
    const struct session_log_diff *d = &l->diff;

    return d->meta || d->points || d->ops != l->n_ops || d->low != d->stored ||
           d->low != l->len;
}

void
session_log_take(struct session_log *l)
{
    assert(!l->committing);
    l->committing = true;
    l->taken = l->diff;
    l->diff = (struct session_log_diff){.low = l->len, .stored = l->len, .ops = l->n_ops};
}

/* After a failure the ledger has what it had, or all that was taken: the next commit says so
 * much that it comes to the same. */
void
session_log_stored(struct session_log *l, bool done)
{
    struct session_log_diff *d = &l->diff;
    const struct session_log_diff *t = &l->taken;

    l->committing = false;
    if (done)
        return;
    d->low = least(d->low, t->low);
    d->stored = t->stored;
    d->ops = least(d->ops, t->ops);
    d->points |= t->points;
    d->meta |= t->meta;
}

uint64_t
session_log_durable(const struct session_log *l)
{
    return l->committing ? least(l->taken.low, l->diff.low) : l->diff.low;
}

const struct op_record *
session_log_op(const struct session_log *l, uint64_t number)
{
    return number < l->n_ops && l->n_ops - number <= OP_IDS_KEPT
               ? &l->ops[number % OP_IDS_KEPT]
               : NULL;
}

/* --- changes ------------------------------------------------------------------------------ */

static int
reserve(struct session_log *l, size_t more, struct err *e)
{
    uint64_t room = l->room > 0 ? l->room : FIRST_TOKENS;
    uint32_t *p;

    if (more > SIZE_MAX / sizeof *p / 2 - l->len)
        return err_set(e, ERR_QUOTA, 0, "%zu more tokens are too many", more);
    while (room < l->len + more)
        room *= 2;
    if (room == l->room)
        return 0;
    p = realloc(l->tokens, room * sizeof *p);
    if (p == NULL)
        return err_set(e, ERR_QUOTA, errno, "no memory for %" PRIu64 " tokens", room);
    l->tokens = p;
    l->room = room;
    return 0;
}

int
session_log_append(struct session_log *l, const uint32_t *ids, size_t n, struct err *e)
{
    assert(!l->parked);
    if (reserve(l, n, e) == -1 || take_tokens(l, n, e) == -1)
        return -1;
    if (n > 0)
        memcpy(l->tokens + l->len, ids, n * sizeof *ids);
    l->len += n;
    return 0;
}

/* Results behind pos are taken back; those that the ledger has are told to it again. */
static void
undo_ops(struct session_log *l, uint64_t pos)
{
    const uint64_t first = l->n_ops < OP_IDS_KEPT ? 0 : l->n_ops - OP_IDS_KEPT;

    for (uint64_t i = l->n_ops; i-- > first;) {
        struct op_record *op = &l->ops[i % OP_IDS_KEPT];

        if (op->undone || op->end <= pos)
            continue;
        op->undone = true;
        l->diff.ops = least(l->diff.ops, i);
    }
}

int
session_log_truncate(struct session_log *l, uint64_t pos, struct err *e)
{
    size_t kept = 0;

    if (pos > l->len)
        return err_set(e, ERR_INVALID, 0, "position %" PRIu64 " is past the end, %" PRIu64,
                       pos, l->len);
    assert(!l->parked);
    give_tokens(l, l->len - pos);
    if (pos < l->len)
        l->cuts[l->rollbacks++ % CUTS_KEPT] = pos;
    l->len = pos;
    l->diff.low = least(l->diff.low, pos);
    undo_ops(l, pos);
    for (size_t i = 0; i < l->n_checkpoints; i++) {
        if (l->checkpoints[i].pos <= pos)
            l->checkpoints[kept++] = l->checkpoints[i];
    }
    l->diff.points |= kept != l->n_checkpoints;
    l->diff.meta = true;
    l->n_checkpoints = kept;
    l->turn_open = false;
    return 0;
}

/* Checkpoints of what lay behind the part that went: they mean the same tokens as before. */
static void
move_points(struct session_log *l, const struct checkpoint *old, size_t n,
            const struct session_log_edit *x)
{
    size_t kept = 0;

    for (size_t i = 0; i < n; i++) {
        struct checkpoint c = old[i];

        if (c.pos > x->at && c.pos < x->from)
            continue;
        if (c.pos >= x->from)
            c.pos = c.pos - x->from + x->at + x->n_mid;
        l->checkpoints[kept++] = c;
    }
    l->n_checkpoints = kept;
    l->diff.points = true;
}

int
session_log_edit(struct session_log *l, const struct session_log_edit *x, struct err *e)
{
    const uint64_t n_tail = l->len - x->from;
    const uint64_t len = x->at + x->n_mid + n_tail + x->n_more, was = l->len;
    const size_t n_points = l->n_checkpoints, n_after = (size_t)(len - x->at);
    struct checkpoint *points = malloc((n_points + 1) * sizeof *points);
    uint32_t *after = malloc((n_after + 1) * sizeof *after), *p = after;
    int rc = -1;

    if (points == NULL || after == NULL) {
        err_set(e, ERR_QUOTA, errno, "no memory for %zu tokens", n_after);
    } else if (len <= was || take_tokens(l, len - was, e) == 0) {
        /* Asked for, so that what follows cannot fail half-way: nobody comes in between. */
        if (len > was)
            give_tokens(l, len - was);
        rc = len > was ? reserve(l, len - was, e) : 0;
    }
    if (rc == 0) {
        for (size_t i = 0; i < x->n_mid; i++)
            *p++ = x->mid[i];
        for (uint64_t i = 0; i < n_tail; i++)
            *p++ = l->tokens[x->from + i];
        for (size_t i = 0; i < x->n_more; i++)
            *p++ = x->more[i];
        for (size_t i = 0; i < n_points; i++)
            points[i] = l->checkpoints[i];
        rc = session_log_truncate(l, x->at, e);
    }
    if (rc == 0)
        rc = session_log_append(l, after, n_after, e);
    if (rc == 0)
        move_points(l, points, n_points, x);
    free(points);
    free(after);
    return rc;
}

uint64_t
session_log_low(const struct session_log *l, uint64_t rollbacks)
{
    uint64_t low = l->len;

    if (l->rollbacks - rollbacks > CUTS_KEPT)
        return 0;
    for (; rollbacks < l->rollbacks; rollbacks++) {
        if (l->cuts[rollbacks % CUTS_KEPT] < low)
            low = l->cuts[rollbacks % CUTS_KEPT];
    }
    return low;
}

int
session_log_copy(struct session_log *l, const struct session_log *from, uint64_t pos,
                 struct err *e)
{
    if (session_log_append(l, from->tokens, pos, e) == -1)
        return -1;
    if (from->n_checkpoints > 0) {
        l->checkpoints = malloc(from->n_checkpoints * sizeof *l->checkpoints);
        if (l->checkpoints == NULL)
            return err_set(e, ERR_QUOTA, errno, "no memory for checkpoints");
        memcpy(l->checkpoints, from->checkpoints,
               from->n_checkpoints * sizeof *l->checkpoints);
        l->n_checkpoints = l->checkpoint_room = from->n_checkpoints;
        l->diff.points = true;
    }
    l->diff.meta = true;
    l->turns = from->turns;
    l->turn_open = from->turn_open;
    /* Drops those behind pos; the tokens are as many as it says already. */
    if (pos < from->len)
        return session_log_truncate(l, pos, e);
    return 0;
}

static struct checkpoint *
find(const struct session_log *l, const char *label)
{
    for (size_t i = 0; i < l->n_checkpoints; i++) {
        if (strcmp(l->checkpoints[i].label, label) == 0)
            return &l->checkpoints[i];
    }
    return NULL;
}

const struct checkpoint *
session_log_find(const struct session_log *l, const char *label)
{
    return find(l, label);
}

static void
drop(struct session_log *l, size_t i)
{
    l->diff.points = true;
    l->n_checkpoints--;
    memmove(&l->checkpoints[i], &l->checkpoints[i + 1],
            (l->n_checkpoints - i) * sizeof *l->checkpoints);
}

/* Room for one more checkpoint: below the limit, and in memory. */
static int
make_room(struct session_log *l, struct err *e)
{
    struct checkpoint *p;
    size_t i = 0;

    if (l->n_checkpoints >= l->max_checkpoints) {
        while (i < l->n_checkpoints && !l->checkpoints[i].automatic)
            i++;
        if (i == l->n_checkpoints)
            return err_set(e, ERR_QUOTA, 0,
                           "%zu checkpoints (setting max-checkpoints-per-session)",
                           l->n_checkpoints);
        drop(l, i);
    }
    if (l->n_checkpoints == l->checkpoint_room) {
        const size_t room = l->n_checkpoints < FIRST_CHECKPOINTS ? FIRST_CHECKPOINTS
                                                                 : 2 * l->n_checkpoints;

        p = realloc(l->checkpoints, room * sizeof *p);
        if (p == NULL)
            return err_set(e, ERR_QUOTA, errno, "no memory for checkpoints");
        l->checkpoints = p;
        l->checkpoint_room = room;
    }
    return 0;
}

int
session_log_mark(struct session_log *l, const char *label, bool automatic, struct err *e)
{
    struct checkpoint *c = find(l, label);

    if (c != NULL)
        drop(l, (size_t)(c - l->checkpoints));
    if (make_room(l, e) == -1)
        return -1;
    c = &l->checkpoints[l->n_checkpoints++];
    l->diff.points = true;
    *c = (struct checkpoint){
        .automatic = automatic, .pos = l->len, .made_ms = clock_wall_ms()};
    snprintf(c->label, sizeof c->label, "%s", label);
    return 0;
}

int
session_log_unmark(struct session_log *l, const char *label, struct err *e)
{
    const struct checkpoint *c = find(l, label);

    if (c == NULL)
        return err_set(e, ERR_NOT_FOUND, 0, "no checkpoint '%s'", label);
    drop(l, (size_t)(c - l->checkpoints));
    return 0;
}

void
session_log_begin_turn(struct session_log *l)
{
    l->turn_open = true;
    l->diff.meta = true;
}

int
session_log_turn(struct session_log *l, struct err *e)
{
    char label[32];

    snprintf(label, sizeof label, "turn-%" PRIu64, l->turns + 1);
    if (session_log_mark(l, label, true, e) == -1)
        return -1;
    l->turns++;
    l->turn_open = false;
    l->diff.meta = true;
    return 0;
}

int
session_log_resolve(const struct session_log *l, const char *at, uint64_t *pos,
                    struct err *e)
{
    const struct checkpoint *c = find(l, at);
    struct err not_a_number;

    if (c != NULL) {
        *pos = c->pos;
        return 0;
    }
    if (num_u64(at, 0, UINT64_MAX, pos, &not_a_number) == -1)
        return err_set(e, ERR_NOT_FOUND, 0, "no checkpoint '%s'", at);
    if (*pos > l->len)
        return err_set(e, ERR_INVALID, 0, "position %" PRIu64 " is past the end, %" PRIu64,
                       *pos, l->len);
    return 0;
}

int
session_log_record(struct session_log *l, const struct op_record *op, struct err *e)
{
    if (l->ops == NULL) {
        l->ops = calloc(OP_IDS_KEPT, sizeof *l->ops);
        if (l->ops == NULL)
            return err_set(e, ERR_QUOTA, errno, "no memory for results");
    }
    l->ops[l->n_ops++ % OP_IDS_KEPT] = *op;
    return 0;
}

const struct op_record *
session_log_recall(const struct session_log *l, const uint8_t *id)
{
    const uint64_t n = l->n_ops < OP_IDS_KEPT ? l->n_ops : OP_IDS_KEPT;

    for (uint64_t i = 0; i < n; i++) {
        if (memcmp(l->ops[i].id, id, OP_ID_BYTES) == 0)
            return &l->ops[i];
    }
    return NULL;
}
