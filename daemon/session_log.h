/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DAEMON_SESSION_LOG_H
#define DAEMON_SESSION_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;
struct user;

enum {
    SESSION_NAME_MAX = 64,
    OP_ID_BYTES = 16,
    OP_IDS_KEPT = 256,
    CUTS_KEPT = 16,
};

/*
 * The log of a session: its transcript as token ids, its checkpoints, and the results of its
 * last operations. This is the truth; caches in the engine only follow it. Every change to any
 * of it goes through this file, which remembers what the ledger (store.h) does not have yet.
 * While the log is parked only the figures are in memory, and nothing may change but those.
 * Main thread.
 */
struct checkpoint {
    char label[SESSION_NAME_MAX + 1];
    bool automatic; /* made at the end of a turn; dropped first */
    uint64_t pos;   /* the first pos tokens */
    uint64_t made_ms;
};

/* What an operation came to: told again, word for word, when its op_id comes again. */
struct op_record {
    uint8_t id[OP_ID_BYTES];
    uint8_t kind;    /* enum op_kind */
    uint8_t code;    /* enum err_code: it failed, but not without changing something */
    bool undone;     /* a rollback took what it did */
    uint32_t reason; /* of a sample, enum link_reason */
    uint64_t begin, end;
    uint64_t stop_at;
    uint64_t seed; /* of a sample */
};

/* What of a log differs from what was last taken for the ledger. */
struct session_log_diff {
    uint64_t low;    /* tokens: those in front of this are the same */
    uint64_t stored; /* how many the ledger has; at least low */
    uint64_t ops;    /* results: from this number on */
    bool points, meta;
};

struct session_log {
    struct user *owner; /* who pays; not held here */
    bool parked;        /* tokens, checkpoints and results are in the ledger only */
    uint64_t n_points;  /* parked: how many checkpoints there are */
    uint32_t *tokens;   /* [len] */
    uint64_t len, room;
    struct checkpoint *checkpoints; /* in the order in which they were made */
    size_t n_checkpoints, checkpoint_room, max_checkpoints;
    uint64_t turns;           /* finished, since the session began */
    uint64_t rollbacks;       /* how often it became shorter */
    uint64_t cuts[CUTS_KEPT]; /* to which lengths, the last ones: [rollbacks % CUTS_KEPT] */
    bool turn_open;           /* messages are waiting for an answer, or it was cut short */
    struct op_record *ops;    /* ring of OP_IDS_KEPT, made with the first */
    uint64_t n_ops;           /* recorded so far */
    struct session_log_diff diff, taken; /* taken: for the commit under way */
    bool committing;
};

void session_log_init(struct session_log *l, struct user *owner, size_t max_checkpoints);
void session_log_done(struct session_log *l);

/* What the start finds in the ledger: parked, len tokens and n_points checkpoints. What is there
 * counts, whatever the limits are now. */
void session_log_found(struct session_log *l, uint64_t len, uint64_t n_points);
/* Frees what the ledger has, too; nothing may differ from it. */
void session_log_park(struct session_log *l);
/* The ledger's content; takes the arrays over (malloc'ed; ops: room for OP_IDS_KEPT, oldest first,
 * or NULL). */
void session_log_loaded(struct session_log *l, uint32_t *tokens, uint64_t len,
                        struct checkpoint *points, size_t n_points, struct op_record *ops,
                        size_t n_ops);

/* Something beside tokens, checkpoints and results is to be stored: names, modes, files. */
void session_log_touch(struct session_log *l);
bool session_log_differs(const struct session_log *l);
/* What differs is taken for a commit: l->taken says what that was. One at a time. Then it is
 * stored, or it differs again. */
void session_log_take(struct session_log *l);
void session_log_stored(struct session_log *l, bool done);
/* The tokens in front of this are in the ledger for sure. */
uint64_t session_log_durable(const struct session_log *l);
/* The result of this number, 0 for the first; NULL if it is not kept any more. */
const struct op_record *session_log_op(const struct session_log *l, uint64_t number);

/* ERR_QUOTA if the owner may not have them. All or nothing. */
int session_log_append(struct session_log *l, const uint32_t *ids, size_t n, struct err *e);

/* Forgets tokens from pos on, and checkpoints behind it. ERR_INVALID if pos > len. */
int session_log_truncate(struct session_log *l, uint64_t pos, struct err *e);

/* In one change: the tokens in [at, from) make way for `mid`, and `more` come behind the end.
 * Checkpoints within [at, from) go, those behind move along. All or nothing; ERR_QUOTA. */
struct session_log_edit {
    uint64_t at, from;
    const uint32_t *mid, *more;
    size_t n_mid, n_more;
};

int session_log_edit(struct session_log *l, const struct session_log_edit *x,
                     struct err *e);

/* The shortest that it has been since `rollbacks` was this; 0 if that is too long ago to know.
 * What lay behind it then may be other tokens now. */
uint64_t session_log_low(const struct session_log *l, uint64_t rollbacks);

/* The first pos tokens of another, and its checkpoints up to there; l is empty. */
int session_log_copy(struct session_log *l, const struct session_log *from, uint64_t pos,
                     struct err *e);

/* A checkpoint at the end. A label that is there already moves. When there are too many, the
 * oldest automatic one goes; ERR_QUOTA if all are named. */
int session_log_mark(struct session_log *l, const char *label, bool automatic,
                     struct err *e);
int session_log_unmark(struct session_log *l, const char *label, struct err *e);
const struct checkpoint *session_log_find(const struct session_log *l, const char *label);

/* Messages have come that want an answer. */
void session_log_begin_turn(struct session_log *l);

/* The end of a turn: the checkpoint turn-N. */
int session_log_turn(struct session_log *l, struct err *e);

/* `at`: a label, or a position in decimal. */
int session_log_resolve(const struct session_log *l, const char *at, uint64_t *pos,
                        struct err *e);

int session_log_record(struct session_log *l, const struct op_record *op, struct err *e);
const struct op_record *session_log_recall(const struct session_log *l, const uint8_t *id);

#endif /* DAEMON_SESSION_LOG_H */
