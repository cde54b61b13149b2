/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DAEMON_QUOTA_H
#define DAEMON_QUOTA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;
struct options;
struct session;

/*
 * Quotas: what each user (uid) makes the daemon keep, counted when it is taken on and never
 * later, against a limit of the user and one of all users. Main thread.
 */
enum { USER_NAME_MAX = 32 };

enum quota_kind {
    QUOTA_CONNECTIONS,
    QUOTA_REQUESTS,
    QUOTA_SESSIONS,
    QUOTA_TOKENS,
    QUOTA_BYTES, /* text, tokens and results held for requests under way */
    QUOTA_DISK,  /* bytes of sessions' files; those that forks share count for each */
    QUOTA_KINDS
};

struct quota {
    const struct options *o;
    struct user *users;
    uint64_t used[QUOTA_KINDS];
};

struct user {
    uint32_t uid, refs;
    char name[USER_NAME_MAX + 1]; /* "" until it has been looked up, or if there is none */
    bool looked_up;
    struct quota *q;
    struct user *next;
    struct session **sessions; /* by name: session.c's */
    size_t n_sessions, session_room;
    uint64_t used[QUOTA_KINDS];
};

void quota_init(struct quota *q, const struct options *o);
void quota_done(struct quota *q); /* nobody may hold a user any more */

/* A user is there as long as somebody holds it. NULL: no memory. */
struct user *quota_user(struct quota *q, uint32_t uid, struct err *e);
struct user *quota_hold(struct user *u);
void quota_drop(struct user *u);
struct user *quota_find(const struct quota *q, uint32_t uid); /* not held; NULL: unknown */
struct user *quota_find_name(const struct quota *q, const char *name);

/* All of n or nothing; ERR_QUOTA says which limit, how much is used, and its setting. */
int quota_take(struct user *u, enum quota_kind kind, uint64_t n, struct err *e);
void quota_give(struct user *u, enum quota_kind kind, uint64_t n);
/* What is there already, whatever the limits are now. */
void quota_force(struct user *u, enum quota_kind kind, uint64_t n);

const char *quota_name(enum quota_kind kind);
uint64_t quota_limit(const struct quota *q, enum quota_kind kind);      /* of all users */
uint64_t quota_limit_user(const struct quota *q, enum quota_kind kind); /* of one */
/* What quota_take() would give now at the most, and the setting that makes it so little. */
uint64_t quota_left(const struct user *u, enum quota_kind kind, const char **name);

#endif /* DAEMON_QUOTA_H */
