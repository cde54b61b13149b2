/* SPDX-License-Identifier: Apache-2.0 */
#ifndef KVSTORE_LEDGER_IMPL_H
#define KVSTORE_LEDGER_IMPL_H

#include "base/err.h"
#include "kvstore/ledger.h"
#include "kvstore/sql.h"

/* Of one block 4,000 bytes: a row of the table fills a page of the database but for 3 %, and a
 * short turn rewrites one. */
enum { LEDGER_BLOCK_TOKENS = 1000 };

/* Limits that no session comes near; what is past them is damage. */
#define LEDGER_MAX_TOKENS (UINT64_C(1) << 32)
#define LEDGER_MAX_BYTES  (UINT64_C(1) << 50)
#define LEDGER_MAX_COUNT  (UINT64_C(1) << 62)

struct ledger {
    sqlite3 *db;
    char dir[96];
    uint64_t len; /* tokens */
    bool fresh;   /* just made: no tables yet */
    bool look;    /* to read only */
    bool dead;    /* a commit failed: why */
    int wal_pages;
    bool committed; /* to the log, which has so many pages since */
    struct err why;
};

/* The columns of struct ledger_meta, in this order, in both databases. */
#define LEDGER_META_COLUMNS                                                                   \
    "name TEXT NOT NULL, uid INTEGER NOT NULL, gid INTEGER NOT NULL, mode INTEGER NOT NULL, " \
    "created_ms INTEGER NOT NULL, used_ms INTEGER NOT NULL, turns INTEGER NOT NULL, "         \
    "rollbacks INTEGER NOT NULL, turn_open INTEGER NOT NULL, quarantined INTEGER NOT NULL, "  \
    "fingerprint BLOB NOT NULL, rows_written INTEGER NOT NULL, "                              \
    "state_written INTEGER NOT NULL, rows_tokens INTEGER NOT NULL"
#define LEDGER_META_NAMES                                                                   \
    "name, uid, gid, mode, created_ms, used_ms, turns, rollbacks, turn_open, quarantined, " \
    "fingerprint, rows_written, state_written, rows_tokens"
#define LEDGER_META_FMT "tuuuuuuuuubuuu"
#define LEDGER_META_VALUES(m)                                                      \
    (m)->name, (uint64_t)(m)->uid, (uint64_t)(m)->gid, (uint64_t)(m)->mode,        \
        (m)->created_ms, (m)->used_ms, (m)->turns, (m)->rollbacks,                 \
        (uint64_t)(m)->turn_open, (uint64_t)(m)->quarantined,                      \
        (const void *)(m)->fingerprint, sizeof(m)->fingerprint, (m)->rows_written, \
        (m)->state_written, (m)->rows_tokens

enum { LEDGER_META_N = 14 };

/* Columns col .. col + 13 of a row. */
void ledger_meta_read(struct sql_row *r, int col, struct ledger_meta *m);

/* The rules, for what is read as for what is to be written: what is wrong, or NULL. */
const char *ledger_meta_wrong(const struct ledger_meta *m);
const char *ledger_point_wrong(const struct ledger_point *p, uint64_t len);
const char *ledger_file_wrong(const struct ledger_file *f, uint64_t len);
/* 0: two are the same; -1: no memory. */
int ledger_labels_differ(const struct ledger_content *c);

#define LEDGER_POINTS "SELECT label, automatic, pos, made_ms, n FROM points ORDER BY n"
void ledger_point_read(struct sql_row *r, struct ledger_point *p);

#endif /* KVSTORE_LEDGER_IMPL_H */
