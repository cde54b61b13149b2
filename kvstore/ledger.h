/* SPDX-License-Identifier: Apache-2.0 */
#ifndef KVSTORE_LEDGER_H
#define KVSTORE_LEDGER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kvstore/kvfile.h"

struct err;
struct io;

/*
 * The ledger of a session, session.db: all that must not be lost once it was acknowledged (class
 * A), and which files of class B belong to it. SQLite, WAL, synchronous=FULL, exclusive; what
 * ledger_commit() has returned 0 for is there after any crash, and whole transactions only. One
 * thread at a time. After a failed commit the ledger takes no more (ERR_READ_ONLY): close it.
 */
struct ledger;

enum { LEDGER_NAME_MAX = 64, LEDGER_OP_BYTES = 64, LEDGER_OPS = 256, LEDGER_VERSION = 1 };

struct ledger_meta {
    char name[LEDGER_NAME_MAX + 1];
    uint32_t uid, gid, mode;
    uint64_t created_ms, used_ms;
    uint64_t turns, rollbacks;
    uint32_t turn_open;
    uint32_t quarantined;    /* second restore that failed; verify or rollback clears it */
    uint8_t fingerprint[32]; /* of the model that its tokens are of; zero: none yet */
    uint64_t rows_written, state_written, rows_tokens; /* bytes of class B, and for how many
                                                           tokens: fathom show */
};

struct ledger_point { /* a checkpoint's label */
    char label[LEDGER_NAME_MAX + 1];
    bool automatic;
    uint64_t pos, made_ms;
};

struct ledger_op { /* the result of an operation with an op_id, as its owner packs it */
    uint8_t id[16];
    uint8_t body[LEDGER_OP_BYTES];
};

struct ledger_file { /* a chunk or a state */
    struct kvfile_about about;
    uint32_t
        n_pages; /* chunk: of these many the tokens are still the session's (rollback) */
    bool turn;   /* state: at the end of a turn, or named: kept longer */
    uint64_t bytes;
};

/* All that it holds. ledger_content_done() frees the arrays. */
struct ledger_content {
    struct ledger_meta meta;
    uint32_t *tokens; /* [len] */
    uint64_t len;
    struct ledger_point *points; /* in order of making */
    size_t n_points;
    struct ledger_op *ops; /* oldest first, at most LEDGER_OPS */
    size_t n_ops;
    struct ledger_file *files; /* chunks by position, then states by position */
    size_t n_files;
};

void ledger_content_done(struct ledger_content *c);

/* One transaction; what is not said stays as it is. */
struct ledger_change {
    const struct ledger_meta *meta; /* all of it anew */
    bool has_tokens;
    uint64_t from; /* forget tokens from there on, then append */
    const uint32_t *tokens;
    uint64_t n_tokens;
    bool has_points;
    const struct ledger_point *points; /* all of them anew */
    size_t n_points;
    const struct ledger_op
        *ops; /* more of them, the oldest ones go; with the id of one that
                                    is there: its body anew, in its old place */
    size_t n_ops;
    const struct ledger_file *add; /* or, with the id of one that is there, replace it */
    size_t n_add;
    const struct kvfile_id *drop;
    size_t n_drop;
};

/* dir: the session's folder. create: there must be none, else there must be one. A file that
 * quick_check refuses after an unclean end is ERR_DAMAGED, one of a newer format ERR_MODEL_MISMATCH,
 * and says so; one that somebody has open is ERR_BUSY. One just made has no journal before its first commit is over, so
 * that is for a folder that is not in its place yet: catalog_create(). */
int ledger_open(struct io *io, const char *dir, bool create, struct ledger **out,
                struct err *e);
/* Of one whose log is damaged (ERR_DAMAGED with sys EUCLEAN): what is behind the damage is given up,
 * for good, and what is left is put where it belongs. */
int ledger_give_up(struct io *io, const char *dir, struct err *e);
/* To read only: nothing of it changes, not even a WAL that waits to be gone through. */
int ledger_look(struct io *io, const char *dir, struct ledger **out, struct err *e);
/* Bytes of the log with a bit that had turned over, put right when it was opened; the first is at *at. */
uint32_t ledger_mended(const struct ledger *l, uint64_t *at);
/* Truncates the WAL; after it the file stands alone. NULL is fine. */
void ledger_close(struct ledger *l);
/* Believes nothing: what breaks a rule of docs/KVFORMAT.md is ERR_DAMAGED, and named. */
int ledger_load(struct ledger *l, struct ledger_content *out, struct err *e);
/* The same without tokens and ops (len is set): quick however long the session is. */
int ledger_brief(struct ledger *l, struct ledger_content *out, struct err *e);
/* ERR_QUOTA (disk full): nothing has changed and the ledger goes on. ERR_INTERNAL: the change
 * breaks a rule, likewise. Any other failure is ERR_READ_ONLY, for good. */
int ledger_commit(struct ledger *l, const struct ledger_change *c, struct err *e);

#endif /* KVSTORE_LEDGER_H */
