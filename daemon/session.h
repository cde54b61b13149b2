/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DAEMON_SESSION_H
#define DAEMON_SESSION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/types.h>

#include "daemon/quota.h"
#include "daemon/session_log.h"
#include "kvstore/ledger.h"

struct err;
struct kv_session;
struct op;
struct slot;
struct store;
struct store_fault;
struct store_wait;

enum session_state {

#define STATE(id, name, text) SESSION_##id,
#include "daemon/session_states.def"
    SESSION_STATES
};

/* What a request needs, as bits of a file's mode. */
enum session_right { SESSION_READ = 4, SESSION_WRITE = 2, SESSION_ADMIN = 1 };

/* Who asks: fixed when the connection was made (SO_PEERCRED, SO_PEERGROUPS). */
struct cred {
    uint32_t uid, gid;
    uint32_t *groups;
    size_t n_groups;
};

/* What store.c, load.c and commit.c keep of a session. */
struct session_store {
    struct store *of;
    bool lasting;      /* it has a ledger, or is to get one */
    bool made;         /* it has one */
    bool forked;       /* its ledger is to be made from `from` */
    bool loading;      /* or being taken aside */
    bool listed, late; /* is in the store's list of loaded ones, of dirty ones */
    bool deleting, deleted, aside;
    uint32_t busy;         /* jobs under way: it must not be freed */
    uint32_t failures;     /* loads that found damage */
    struct kvfile_id from; /* its ledger is a fork of this one's */
    uint64_t asked, taken; /* turns of commits: asked for, under way */
    struct store_wait *loads, *commits, *deletes;
    struct store_fault *fault; /* NULL: none */
    char *damage;              /* why it cannot be loaded; NULL */
    uint64_t used_ns, bytes;   /* bytes: of memory, as counted */
    TAILQ_ENTRY(session) loaded_link, dirty_link;
};

/*
 * A named session: an owner, a mode, a log, and what is being done with it. Names belong to
 * their owner, so nobody can take somebody else's. Main thread.
 */
struct session {
    struct user *user;               /* the owner, held */
    char name[SESSION_NAME_MAX + 1]; /* "" once deleted, or for the daemon's own use */
    uint32_t gid;
    unsigned mode; /* 0777 */
    uint64_t created_ms, used_ms;
    enum session_state state;
    struct session_log log;
    uint32_t max_id; /* the largest of the tokens that came from the disk */

    struct kvfile_id id;       /* of its folder in the store */
    uint8_t fingerprint[32];   /* of the model that its tokens are of; zero: none yet */
    struct ledger_file *files; /* chunks by position, then states: session_files.h */
    size_t n_files;
    uint64_t file_bytes; /* of these, known while parked too */
    struct kvfile_id *touched;
    size_t n_touched, n_touched_taken; /* files that the ledger does not know as they are */
    struct ledger_meta kept;           /* of it: quarantined, rows_written, state_written,
                                          rows_tokens; class B's */
    uint32_t holds;                    /* it is not parked: store_hold() */
    struct session_store store;
    struct kv_session *kv; /* kv.h's; NULL: nothing is known of its caches */

    /* work.c's */
    struct op *ops, **ops_tail; /* the first one is under way */
    size_t n_ops;
    struct slot *slot; /* NULL: the engine has nothing of it */
    struct session *next_waiting;
    bool waiting;     /* in the list of those that wait for the engine */
    uint32_t streams; /* readers that still hold it */
    struct session *next_gone, **at_gone; /* deleted, but still held */
};

int session_name_check(const char *name, struct err *e);

enum { SESSION_DISK_BYTES = 32768 }; /* of an empty one's ledger */

/* A new one, empty and with no name in any list; takes one of the owner's quota. */
struct session *session_new(struct user *owner, size_t max_checkpoints, struct err *e);
/* One that is on the disk already: it counts, whatever the limits are now. */
struct session *session_found(struct user *owner, size_t max_checkpoints, struct err *e);
/* Nothing may be under way, no stream may hold it. */
void session_free(struct session *s);

/* Puts it among its owner's; ERR_EXISTS. */
int session_link(struct session *s, const char *name, struct err *e);
void session_unlink(struct session *s); /* its name is free again */

struct session *session_find(const struct user *owner, const char *name);
/* The place among owner->sessions of the first one behind this name. */
size_t session_behind(const struct user *owner, const char *name);

/* "name" or "~owner/name", owner by name or number: the session, if `who` may do that with
 * it. ERR_NOT_FOUND if there is none or `who` may not even know of it, ERR_PERMISSION. */
struct session *session_lookup(struct quota *q, const struct cred *who, const char *path,
                               unsigned need, struct err *e);

/* Its checkpoints, parked or not. */
uint64_t session_points(const struct session *s);

bool session_may(const struct session *s, const struct cred *who, unsigned need);
bool cred_in_group(const struct cred *who, uint32_t gid);

/* Its name as `who` writes it: "name", or "~owner/name". */
void session_shown(const struct session *s, const struct cred *who, char *room,
                   size_t size);
bool session_visible(const struct session *s, const struct cred *who);

bool session_can_move(enum session_state from, enum session_state to);
void session_move(struct session *s, enum session_state to, const char *why);
const char *session_state_name(enum session_state state); /* as on the wire */
const char *session_state_id(enum session_state state);   /* as in the table */

#endif /* DAEMON_SESSION_H */
