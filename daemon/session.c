/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sessions by owner and name, who may do what with them, and the table of their states. Each
 * user's are one array in order: a name is found in a few steps, a page of the list begins where
 * the one before ended, and thousands that come in order at the start move nothing.
 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/err.h"
#include "base/log.h"
#include "base/num.h"
#include "daemon/session.h"
#include "daemon/session_files.h"

enum { FIRST_SESSIONS = 8 };

static const struct {
    const char *id, *name;
} states[SESSION_STATES] = {

#define STATE(id, name, text) [SESSION_##id] = {#id, name},
#include "daemon/session_states.def"
};

static const bool moves[SESSION_STATES][SESSION_STATES] = {
#define MOVE(from, to, why) [SESSION_##from][SESSION_##to] = true,
#include "daemon/session_states.def"
};

const char *
session_state_name(enum session_state state)
{
    return states[state].name;
}

const char *
session_state_id(enum session_state state)
{
    return states[state].id;
}

bool
session_can_move(enum session_state from, enum session_state to)
{
    return moves[from][to];
}

void
session_move(struct session *s, enum session_state to, const char *why)
{
    if (s->state == to)
        return;
    assert(moves[s->state][to]);
    log_line(LOG_DEBUG, "session session=%s uid=%" PRIu32 " state=%s to=%s why=\"%s\"",
             s->name, s->user->uid, states[s->state].id, states[to].id, why);
    s->state = to;
}

int
session_name_check(const char *name, struct err *e)
{
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
                                  "0123456789._-";
    const size_t len = strlen(name);

    if (len < 1 || len > SESSION_NAME_MAX || name[0] == '.' || strspn(name, letters) != len)
        return err_set(e, ERR_INVALID, 0,
                       "the name '%.80s': 1 to %d of A-Z a-z 0-9 . _ -, not beginning with "
                       "a dot",
                       name, SESSION_NAME_MAX);
    return 0;
}

static struct session *
make(struct user *owner, size_t max_checkpoints, struct err *e)
{
    struct session *s = calloc(1, sizeof *s);

    if (s == NULL) {
        err_set(e, ERR_QUOTA, errno, "no memory for a session");
        return NULL;
    }
    s->user = quota_hold(owner);
    s->mode = 0600;
    s->state = SESSION_EMPTY;
    s->ops_tail = &s->ops;
    session_log_init(&s->log, owner, max_checkpoints);
    return s;
}

struct session *
session_new(struct user *owner, size_t max_checkpoints, struct err *e)
{
    struct session *s;

    if (quota_take(owner, QUOTA_SESSIONS, 1, e) == -1)
        return NULL;
    s = make(owner, max_checkpoints, e);
    if (s == NULL)
        quota_give(owner, QUOTA_SESSIONS, 1);
    else
        s->created_ms = s->used_ms = clock_wall_ms();
    return s;
}

struct session *
session_found(struct user *owner, size_t max_checkpoints, struct err *e)
{
    struct session *s = make(owner, max_checkpoints, e);

    if (s != NULL)
        quota_force(owner, QUOTA_SESSIONS, 1);
    return s;
}

void
session_free(struct session *s)
{
    if (s == NULL)
        return;
    assert(s->ops == NULL && s->slot == NULL && !s->waiting && s->streams == 0);
    session_unlink(s);
    session_log_done(&s->log);
    session_files_park(s);
    quota_give(s->user, QUOTA_DISK,
               s->file_bytes + (s->store.lasting ? SESSION_DISK_BYTES : 0));
    quota_give(s->user, QUOTA_SESSIONS, 1);
    quota_drop(s->user);
    free(s->store.fault);
    free(s->store.damage);
    free(s);
}

uint64_t
session_points(const struct session *s)
{
    return s->log.parked ? s->log.n_points : s->log.n_checkpoints;
}

/* Where it is among its owner's, or would be. */
static size_t
place(const struct user *u, const char *name)
{
    size_t from = 0, to = u->n_sessions;

    while (from < to) {
        const size_t mid = from + (to - from) / 2;

        if (strcmp(u->sessions[mid]->name, name) < 0)
            from = mid + 1;
        else
            to = mid;
    }
    return from;
}

struct session *
session_find(const struct user *owner, const char *name)
{
    const size_t at = place(owner, name);

    return at < owner->n_sessions && strcmp(owner->sessions[at]->name, name) == 0
               ? owner->sessions[at]
               : NULL;
}

size_t
session_behind(const struct user *owner, const char *name)
{
    return place(owner, name) + (session_find(owner, name) != NULL);
}

int
session_link(struct session *s, const char *name, struct err *e)
{
    struct user *u = s->user;
    const size_t at = place(u, name);

    if (session_find(u, name) != NULL)
        return err_set(e, ERR_EXISTS, 0, "there is a session '%s' already", name);
    if (u->n_sessions == u->session_room) {
        const size_t room = u->session_room > 0 ? 2 * u->session_room : FIRST_SESSIONS;
        struct session **p = realloc(u->sessions, room * sizeof *p);

        if (p == NULL)
            return err_set(e, ERR_QUOTA, errno, "no memory for a session");
        u->sessions = p;
        u->session_room = room;
    }
    assert(s->name[0] == '\0');
    snprintf(s->name, sizeof s->name, "%s", name);
    memmove(u->sessions + at + 1, u->sessions + at,
            (u->n_sessions - at) * sizeof *u->sessions);
    u->sessions[at] = s;
    u->n_sessions++;
    return 0;
}

void
session_unlink(struct session *s)
{
    struct user *u = s->user;
    size_t at;

    if (s->name[0] == '\0')
        return;
    at = place(u, s->name);
    u->n_sessions--;
    memmove(u->sessions + at, u->sessions + at + 1,
            (u->n_sessions - at) * sizeof *u->sessions);
    s->name[0] = '\0';
}

bool
cred_in_group(const struct cred *who, uint32_t gid)
{
    if (who->gid == gid)
        return true;
    for (size_t i = 0; i < who->n_groups; i++) {
        if (who->groups[i] == gid)
            return true;
    }
    return false;
}

/* As for a file: the first class that fits decides. The owner can always administer, and root
 * do everything. */
static unsigned
rights(const struct session *s, const struct cred *who)
{
    if (who->uid == 0)
        return SESSION_READ | SESSION_WRITE | SESSION_ADMIN;
    if (who->uid == s->user->uid)
        return (s->mode >> 6 & 7) | SESSION_ADMIN;
    if (cred_in_group(who, s->gid))
        return s->mode >> 3 & 7;
    return s->mode & 7;
}

bool
session_may(const struct session *s, const struct cred *who, unsigned need)
{
    return (rights(s, who) & need) == need;
}

bool
session_visible(const struct session *s, const struct cred *who)
{
    return rights(s, who) != 0;
}

void
session_shown(const struct session *s, const struct cred *who, char *room, size_t size)
{
    if (s->user->uid == who->uid)
        snprintf(room, size, "%s", s->name);
    else if (s->user->name[0] != '\0')
        snprintf(room, size, "~%s/%s", s->user->name, s->name);
    else
        snprintf(room, size, "~%" PRIu32 "/%s", s->user->uid, s->name);
}

/* The owner's part of a path: *name is what follows. NULL: no such user here. */
static struct user *
owner_of(struct quota *q, const struct cred *who, const char *path, const char **name)
{
    const char *slash = strchr(path, '/');
    char owner[USER_NAME_MAX + 1];
    struct err not_a_number;
    uint64_t uid;

    if (path[0] != '~' || slash == NULL) {
        *name = path;
        return quota_find(q, who->uid);
    }
    *name = slash + 1;
    if ((size_t)(slash - path) > sizeof owner)
        return NULL;
    snprintf(owner, sizeof owner, "%.*s", (int)(slash - path - 1), path + 1);
    if (num_u64(owner, 0, UINT32_MAX, &uid, &not_a_number) == 0)
        return quota_find(q, (uint32_t)uid);
    return quota_find_name(q, owner);
}

struct session *
session_lookup(struct quota *q, const struct cred *who, const char *path, unsigned need,
               struct err *e)
{
    const char *name;
    struct user *owner = owner_of(q, who, path, &name);
    struct session *s;

    if (session_name_check(name, e) == -1)
        return NULL;
    s = owner != NULL ? session_find(owner, name) : NULL;
    if (s == NULL || !session_visible(s, who)) {
        err_set(e, ERR_NOT_FOUND, 0, "no session '%s'", path);
        return NULL;
    }
    if (!session_may(s, who, need)) {
        err_set(e, ERR_PERMISSION, 0, "the mode of '%s', %04o, does not let you %s it",
                path, s->mode,
                need & SESSION_ADMIN   ? "administer"
                : need & SESSION_WRITE ? "write to"
                                       : "read");
        return NULL;
    }
    if (who->uid == 0 && s->user->uid != 0)
        log_line(LOG_NOTICE, "root-access session=~%" PRIu32 "/%s", s->user->uid, s->name);
    return s;
}
