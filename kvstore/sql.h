/* SPDX-License-Identifier: Apache-2.0 */
#ifndef KVSTORE_SQL_H
#define KVSTORE_SQL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <sqlite3.h>

struct err;
struct io;

/*
 * SQLite as the store uses it: one place for how a database is opened, how its errors become
 * ours, and how values are read that nobody may trust. A connection is used by one thread at a
 * time.
 */
enum sql_how {
    SQL_WRITE, /* one that is there */
    SQL_GIVE_UP, /* likewise, even if its log is damaged (wal.h): what is behind that is gone */
    SQL_LOOK, /* likewise, and nothing of it is changed */
    SQL_CREATE, /* a new one without journal and sync, in a place where a crash makes it nothing:
                   sql_finish() syncs it when its first content is there */
};

/*
 * WAL, synchronous=FULL, exclusive (so there is no -shm file), no triggers, views or extensions, a
 * cache of 128 KiB. A -wal file with something in it says that nobody closed the database: then the
 * log itself is looked at (wal.h), single bits that turned over are put right, and damage beyond that
 * is ERR_DAMAGED with sys EUCLEAN; the database goes through quick_check; and all that the WAL holds
 * is written again to where it belongs. That last step is not for order only: if the fsync of a WAL
 * fails, the kernel may keep pages of it as clean that never reached the disk, and what was appended
 * behind them later would be lost too.
 */
int sql_open(struct io *io, const char *path, enum sql_how how, sqlite3 **out,
             struct err *e);
/* Bytes of the log that were put right when it was opened; the first is at *at. */
uint32_t sql_mended(sqlite3 *db, uint64_t *at);
/* A commit has been synced, and the log has n frames since. */
void sql_witness(sqlite3 *db, uint32_t n);
int sql_finish(sqlite3 *db, struct err *e);
void sql_close(sqlite3 *db,
               bool as_it_is); /* as_it_is: the WAL is left alone. NULL is fine */

/* That the database has exactly these tables, as `create` makes them, and these numbers in its
 * head. A lower version than `version` is for the caller to upgrade: *found. */
int sql_schema(sqlite3 *db, uint32_t application, uint32_t version,
               const char *const *create, size_t n, uint32_t *found, struct err *e);

/* What the last call on db failed with: ERR_QUOTA (full, no memory), ERR_DAMAGED, ERR_BUSY,
 * ERR_NOT_FOUND, ERR_READ_ONLY (a change failed), else ERR_INTERNAL. */
int sql_error(sqlite3 *db, struct err *e);

/* SQLite's own look at every page: ERR_DAMAGED, and what it found first. */
int sql_quick_check(sqlite3 *db, struct err *e);

int sql_run(sqlite3 *db, const char *text, struct err *e);

/* Values for ?1, ?2, ...; one letter of fmt each: u uint64_t, t const char *, b const void * and
 * size_t. Pointers must last until the next step. */
int sql_prepare(sqlite3 *db, const char *text, sqlite3_stmt **out, struct err *e);
int sql_bind(sqlite3_stmt *s, struct err *e, const char *fmt, ...);
int sql_step(sqlite3_stmt *s, struct err *e); /* 1: a row, 0: no more */
/* Prepares, binds, steps once and finishes; the number in the first column, if there is a row. */
int sql_do(sqlite3 *db, uint64_t *number, struct err *e, const char *text, const char *fmt,
           ...);

/* Columns of the row that `s` is at. What is not as it must be is remembered, not told, so that
 * a row is read without a test a column: bad names the first such column, and why. */
struct sql_row {
    sqlite3_stmt *s;
    const char *bad;
};

uint64_t sql_u64(struct sql_row *r, int col, uint64_t most);
void sql_blob(struct sql_row *r, int col, void *out, size_t n);    /* of n bytes */
void sql_text(struct sql_row *r, int col, char *out, size_t room); /* shorter than room */

#endif /* KVSTORE_SQL_H */
