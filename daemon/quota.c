/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "daemon/options.h"
#include "daemon/quota.h"

static const struct {
    const char *name;          /* as in "512 of 512 sessions" */
    const char *setting, *one; /* their names in options.def */
    size_t total, user;        /* offsets in struct options */
} kinds[QUOTA_KINDS] = {
    [QUOTA_CONNECTIONS] = {"connections", "max-connections", "max-connections-per-user",
                           offsetof(struct options, max_connections),
                           offsetof(struct options, max_connections_user)},
    [QUOTA_REQUESTS] = {"requests", "max-requests-per-user", "max-requests-per-user", 0,
                        offsetof(struct options, max_requests_user)},
    [QUOTA_SESSIONS] = {"sessions", "max-sessions", "max-sessions-per-user",
                        offsetof(struct options, max_sessions),
                        offsetof(struct options, max_sessions_user)},
    [QUOTA_TOKENS] = {"tokens", "max-tokens", "max-tokens-per-user",
                      offsetof(struct options, max_tokens),
                      offsetof(struct options, max_tokens_user)},
    [QUOTA_BYTES] = {"bytes of queued input", "max-queued-input",
                     "max-queued-input-per-user", offsetof(struct options, max_queued),
                     offsetof(struct options, max_queued_user)},
    [QUOTA_DISK] = {"bytes on the disk", "max-disk", "max-disk-per-user",
                    offsetof(struct options, max_disk),
                    offsetof(struct options, max_disk_user)},
};

static uint64_t
setting(const struct quota *q, size_t offset)
{
    return *(const uint64_t *)((const char *)q->o + offset);
}

void
quota_init(struct quota *q, const struct options *o)
{
    *q = (struct quota){.o = o};
}

void
quota_done(struct quota *q)
{
    assert(q->users == NULL);
}

struct user *
quota_find(const struct quota *q, uint32_t uid)
{
    struct user *u = q->users;

    while (u != NULL && u->uid != uid)
        u = u->next;
    return u;
}

struct user *
quota_find_name(const struct quota *q, const char *name)
{
    struct user *u = q->users;

    while (u != NULL && (u->name[0] == '\0' || strcmp(u->name, name) != 0))
        u = u->next;
    return u;
}

struct user *
quota_hold(struct user *u)
{
    u->refs++;
    return u;
}

struct user *
quota_user(struct quota *q, uint32_t uid, struct err *e)
{
    struct user *u = quota_find(q, uid);

    if (u == NULL) {
        u = calloc(1, sizeof *u);
        if (u == NULL) {
            err_set(e, ERR_QUOTA, errno, "no memory for a user");
            return NULL;
        }
        u->uid = uid;
        u->q = q;
        u->next = q->users;
        q->users = u;
    }
    return quota_hold(u);
}

void
quota_drop(struct user *u)
{
    struct user **at;

    if (u == NULL || --u->refs > 0)
        return;
    for (at = &u->q->users; *at != u; at = &(*at)->next)
        ;
    *at = u->next;
    for (int i = 0; i < QUOTA_KINDS; i++)
        assert(u->used[i] == 0);
    free(u->sessions);
    free(u);
}

uint64_t
quota_limit(const struct quota *q, enum quota_kind kind)
{
    return kind == QUOTA_REQUESTS ? UINT64_MAX : setting(q, kinds[kind].total);
}

uint64_t
quota_limit_user(const struct quota *q, enum quota_kind kind)
{
    return setting(q, kinds[kind].user);
}

static uint64_t
room(uint64_t used, uint64_t limit)
{
    return used < limit ? limit - used : 0;
}

uint64_t
quota_left(const struct user *u, enum quota_kind kind, const char **name)
{
    const uint64_t one = room(u->used[kind], quota_limit_user(u->q, kind));
    const uint64_t all = room(u->q->used[kind], quota_limit(u->q, kind));

    *name = one <= all ? kinds[kind].one : kinds[kind].setting;
    return one <= all ? one : all;
}

const char *
quota_name(enum quota_kind kind)
{
    return kinds[kind].name;
}

int
quota_take(struct user *u, enum quota_kind kind, uint64_t n, struct err *e)
{
    struct quota *q = u->q;
    const uint64_t one = quota_limit_user(q, kind), all = quota_limit(q, kind);

    /* A reload may have put a limit below what is used: then nothing more is let in. */
    if (u->used[kind] > one || n > one - u->used[kind])
        return err_set(e, ERR_QUOTA, 0,
                       "user %" PRIu32 " has %" PRIu64 " %s of %" PRIu64
                       " and asks for %" PRIu64 " more (setting %s)",
                       u->uid, u->used[kind], kinds[kind].name, one, n, kinds[kind].one);
    if (q->used[kind] > all || n > all - q->used[kind])
        return err_set(e, ERR_QUOTA, 0,
                       "fathomd has %" PRIu64 " %s of %" PRIu64 ", %" PRIu64
                       " more are asked for (setting %s)",
                       q->used[kind], kinds[kind].name, all, n, kinds[kind].setting);
    u->used[kind] += n;
    q->used[kind] += n;
    return 0;
}

void
quota_force(struct user *u, enum quota_kind kind, uint64_t n)
{
    u->used[kind] += n;
    u->q->used[kind] += n;
}

void
quota_give(struct user *u, enum quota_kind kind, uint64_t n)
{
    assert(n <= u->used[kind] && n <= u->q->used[kind]);
    u->used[kind] -= n;
    u->q->used[kind] -= n;
}
