/* SPDX-License-Identifier: Apache-2.0 */
/*
 * list and stat: which sessions there are, and all about one.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/options.h"
#include "daemon/request.h"
#include "daemon/work.h"

enum { LIST_DEFAULT = 100, PAGE_TOKENS = 128, SHOWN_POINTS = 1024 };

struct row {
    char name[2 + USER_NAME_MAX + SESSION_NAME_MAX + 8];
    const struct session *s;
};

/* A user's sessions as the caller sees them: their names all begin with this. */
struct owner {
    char prefix[2 + USER_NAME_MAX + 2];
    const struct user *u;
};

static int
by_prefix(const void *a, const void *b)
{
    return strcmp(((const struct owner *)a)->prefix, ((const struct owner *)b)->prefix);
}

/* The caller, and with `all` everybody, in the order of what their sessions are called. */
static struct owner *
owners(const struct conn *c, bool all, size_t *n)
{
    const struct quota *q = &c->server->quota;
    struct owner *v;
    size_t most = 1;

    for (const struct user *u = q->users; all && u != NULL; u = u->next)
        most++;
    v = calloc(most, sizeof *v);
    *n = 0;
    if (v == NULL)
        return NULL;
    for (const struct user *u = q->users; u != NULL; u = u->next) {
        struct owner *o = &v[*n];

        if (u != c->user && !all)
            continue;
        o->u = u;
        if (u != c->user && u->name[0] != '\0')
            snprintf(o->prefix, sizeof o->prefix, "~%s/", u->name);
        else if (u != c->user)
            snprintf(o->prefix, sizeof o->prefix, "~%" PRIu32 "/", u->uid);
        ++*n;
    }
    qsort(v, *n, sizeof *v, by_prefix);
    return v;
}

/* Where this user's part of the list goes on behind a name, for prefix and name together are
 * in order. */
static size_t
go_on(const struct owner *o, const char *after)
{
    const size_t len = strlen(o->prefix);
    const int cmp = strncmp(o->prefix, after, len);

    if (cmp != 0)
        return cmp < 0 ? o->u->n_sessions : 0;
    return session_behind(o->u, after + len);
}

static bool
is_fresher(const struct session *a, const struct session *b)
{
    if ((a->ops != NULL) != (b->ops != NULL))
        return a->ops != NULL;
    return a->used_ms > b->used_ms;
}

/* At most n sessions behind `after` that the caller may know of, in order: how many. */
static size_t
collect(const struct conn *c, const struct owner *v, size_t n_owners, const char *after,
        struct row *rows, size_t n)
{
    size_t got = 0;

    for (size_t k = 0; k < n_owners && got < n; k++) {
        for (size_t i = go_on(&v[k], after); i < v[k].u->n_sessions && got < n; i++) {
            const struct session *s = v[k].u->sessions[i];

            if (s->name[0] == '.' || !session_visible(s, &c->cred))
                continue;
            snprintf(rows[got].name, sizeof rows[got].name, "%s%s", v[k].prefix, s->name);
            rows[got++].s = s;
        }
    }
    return got;
}

/* The same, at most n, those at work first, then the last used. */
static size_t
collect_recent(const struct conn *c, const struct owner *v, size_t n_owners,
               struct row *rows, size_t n)
{
    size_t got = 0;

    for (size_t k = 0; k < n_owners; k++) {
        for (size_t i = 0; i < v[k].u->n_sessions; i++) {
            const struct session *s = v[k].u->sessions[i];
            size_t at = got;

            if (s->name[0] == '.' || !session_visible(s, &c->cred))
                continue;
            while (at > 0 && is_fresher(s, rows[at - 1].s))
                at--;
            if (at == n)
                continue;
            got += got < n;
            memmove(&rows[at + 1], &rows[at], (got - at - 1) * sizeof *rows);
            snprintf(rows[at].name, sizeof rows[at].name, "%s%s", v[k].prefix, s->name);
            rows[at].s = s;
        }
    }
    return got;
}

static uint64_t
disk_bytes(const struct session *s)
{
    return s->store.lasting
               ? SESSION_DISK_BYTES + s->log.len * sizeof(uint32_t) + s->file_bytes
               : 0;
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
    char after[129] = "", (*names)[USER_NAME_MAX + 1] = NULL;
    struct owner *from = NULL;
    struct row *rows = NULL;
    size_t n_from = 0, n = 0;
    struct err e;

    if (q->recent && wire_has(q, list, after)) {
        err_set(&e, ERR_INVALID, 0, "key 'after': only in a list by name");
        request_fail(r, &e);
        return;
    }
    if (wire_has(q, list, after) && !request_copy(after, sizeof after, q->after)) {
        err_set(&e, ERR_INVALID, 0, "key 'after': not a session's name");
        request_fail(r, &e);
        return;
    }
    from = owners(r->conn, q->all, &n_from);
    rows = calloc(limit + 1, sizeof *rows);
    res.sessions.v = calloc(limit + 1, sizeof *res.sessions.v);
    names = calloc(limit + 1, sizeof *names);
    if (from == NULL || rows == NULL || res.sessions.v == NULL || names == NULL) {
        err_set(&e, ERR_QUOTA, errno, "no memory for the list");
        request_fail(r, &e);
    } else {
        n = q->recent ? collect_recent(r->conn, from, n_from, rows, limit + 1)
                      : collect(r->conn, from, n_from, after, rows, limit + 1);
        res.more = n > limit;
        res.sessions.n = (uint32_t)(n < limit ? n : limit);
        for (uint32_t i = 0; i < res.sessions.n; i++) {
            const struct session *s = rows[i].s;

            res.sessions.v[i] = (struct wire_session){
                .name = wire_str(rows[i].name),
                .owner = wire_str(owner_name(s, names[i])),
                .pos = s->log.len,
                .state = wire_str(session_state_name(s->state)),
                .mode = s->mode,
                .created_ms = s->created_ms,
                .used_ms = s->used_ms,
                .bytes = kv_bytes(r, s) + transcript_bytes(s),
                .checkpoints = session_points(s),
            };
            wire_put(&res.sessions.v[i], session, disk_bytes, disk_bytes(s));
            wire_put(&res.sessions.v[i], session, tier,
                     wire_str(kv_tier_name(kv_tier(work_kv(r->conn->server->work), s))));
        }
        request_reply(r, WIRE_MSG(list_result), &res);
    }
    free(from);
    free(rows);
    free(names);
    free(res.sessions.v);
}

/* The state at this position is on the disk, or, behind a token that was drawn last and is not in
 * the caches yet, the one in front of it. */
static bool
has_state(const struct session *s, uint64_t pos)
{
    for (size_t i = 0; i < s->n_files; i++) {
        const struct kvfile_about *a = &s->files[i].about;

        if (a->type == KVFILE_STATE && (a->pos == pos || a->pos + 1 == pos))
            return true;
    }
    return false;
}

static void
put_points(struct wire_stat_result *res, const struct session *s, struct wire_point *v)
{
    const struct session_log *l = &s->log;
    const size_t skip = l->n_checkpoints > SHOWN_POINTS ? l->n_checkpoints - SHOWN_POINTS
                                                        : 0;

    res->points.v = v;
    for (size_t i = skip; i < l->n_checkpoints; i++) {
        struct wire_point p = {.name = wire_str(l->checkpoints[i].label),
                               .pos = l->checkpoints[i].pos};
        uint32_t at = res->points.n++;

        if (has_state(s, p.pos))
            wire_put(&p, point, durable, true);
        for (; at > 0 && v[at - 1].pos > p.pos; at--)
            v[at] = v[at - 1];
        v[at] = p;
    }
}

/* What cannot be loaded is told without its checkpoints. */
static void
tell_stat(struct request *r, const struct err *why)
{
    const struct session *s = r->session;
    const struct link_ready *info = engine_info(work_engine(r->conn->server->work));
    struct wire_point *points = calloc(SHOWN_POINTS, sizeof *points);
    char owner[USER_NAME_MAX + 1], group[16], name[160];
    struct wire_stat_result res = {0};
    uint64_t memory, disk;
    struct err e, trouble;

    if (why != NULL && s->state != SESSION_DAMAGED) {
        free(points);
        request_fail_at(r, why, s->log.len);
        return;
    }
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
    put_points(&res, s, points);
    res.chat = wire_str(s->log.turn_open   ? "user"
                        : s->log.turns > 0 ? "assistant"
                                           : "none");
    res.turns = s->log.turns;
    kv_sizes(work_kv(r->conn->server->work), s, &memory, &disk);
    wire_put(&res, stat_result, tier,
             wire_str(kv_tier_name(kv_tier(work_kv(r->conn->server->work), s))));
    wire_put(&res, stat_result, memory_bytes, memory);
    if (s->store.lasting) {
        wire_put(&res, stat_result, durable_pos, session_log_durable(&s->log));
        wire_put(&res, stat_result, disk_bytes, disk_bytes(s));
        wire_put(&res, stat_result, file_bytes, s->file_bytes);
        wire_put(&res, stat_result, written_rows, s->kept.rows_written);
        wire_put(&res, stat_result, written_states, s->kept.state_written);
        wire_put(&res, stat_result, written_tokens, s->kept.rows_tokens);
    }
    if (info != NULL) {
        res.bytes_per_token = (double)info->page_bytes / PAGE_TOKENS;
        wire_put(&res, stat_result, max_positions, info->max_positions);
    }
    if (store_refuses(s, &trouble) == -1)
        wire_put(&res, stat_result, why, wire_str(trouble.text));
    else if (s->kept.quarantined)
        wire_put(&res, stat_result, why,
                 wire_str("its caches failed and are not used: `fathom verify` looks them "
                          "over, a rollback drops those behind it"));
    request_reply(r, WIRE_MSG(stat_result), &res);
    free(points);
}

void
req_stat(struct request *r, const void *body)
{
    struct err why;

    (void)body;
    if (r->session->state == SESSION_DAMAGED && store_refuses(r->session, &why) == -1)
        tell_stat(r, &why); /* to look at it is no new try */
    else
        request_load(r, tell_stat);
}
