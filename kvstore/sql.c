/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What every database of the store has in common. The settings are those of docs/KVFORMAT.md. A
 * database file may have been written by anybody (a copied folder, a broken disk): SQLite
 * is told to believe nothing in it, its schema must be ours to the letter, so no trigger or
 * view of somebody else runs, and values are looked at before they are used. Any thread.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "kvstore/io.h"
#include "kvstore/sql.h"
#include "kvstore/vfs.h"
#include "kvstore/wal.h"

enum { PATH_ROOM = 160, VFS_NAME_ROOM = 32, MOST_BYTES = 1 << 16, MOST_SQL = 1 << 14 };

static enum err_code
code_of(int rc)
{
    switch (rc) {
    case SQLITE_IOERR_DATA:
    case SQLITE_IOERR_READ:
    case SQLITE_IOERR_SHORT_READ: return ERR_DAMAGED;
    case SQLITE_IOERR_NOMEM: return ERR_QUOTA;
    default: break;
    }
    switch (rc & 0xff) {
    case SQLITE_FULL:
    case SQLITE_NOMEM: return ERR_QUOTA;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
    case SQLITE_TOOBIG:
    case SQLITE_FORMAT:
    case SQLITE_ERROR: /* our statements are right: the schema is not ours */
        return ERR_DAMAGED;
    case SQLITE_BUSY:
    case SQLITE_LOCKED: return ERR_BUSY;
    case SQLITE_IOERR:
    case SQLITE_READONLY: return ERR_READ_ONLY;
    default: return ERR_INTERNAL;
    }
}

int
sql_error(sqlite3 *db, struct err *e)
{
    const struct err *cause = vfs_error();
    const char *path;
    int rc;

    if (db == NULL)
        return err_set(e, ERR_QUOTA, ENOMEM, "no memory for a database");
    rc = sqlite3_extended_errcode(db);
    path = sqlite3_db_filename(db, "main");
    switch (rc & 0xff) {
    case SQLITE_IOERR:
    case SQLITE_CANTOPEN:
    case SQLITE_FULL: /* these say why only to the VFS */
        if (cause->code != ERR_NONE)
            return err_set(e, (rc & 0xff) == SQLITE_CANTOPEN ? cause->code : code_of(rc),
                           cause->sys, "%.230s", cause->text);
        break;
    default: break;
    }
    return err_set(e, code_of(rc), 0, "%.100s: %.100s (SQLite %d)",
                   path != NULL ? path : "a database", sqlite3_errmsg(db), rc);
}

int
sql_run(sqlite3 *db, const char *text, struct err *e)
{
    return sqlite3_exec(db, text, NULL, NULL, NULL) == SQLITE_OK ? 0 : sql_error(db, e);
}

int
sql_prepare(sqlite3 *db, const char *text, sqlite3_stmt **out, struct err *e)
{
    return sqlite3_prepare_v2(db, text, -1, out, NULL) == SQLITE_OK ? 0 : sql_error(db, e);
}

static int
bind(sqlite3_stmt *s, struct err *e, const char *fmt, va_list ap)
{
    int rc = sqlite3_reset(s) == SQLITE_OK ? SQLITE_OK : SQLITE_MISUSE;

    for (int i = 1; *fmt != '\0' && rc == SQLITE_OK; fmt++, i++) {
        if (*fmt == 'u') {
            rc = sqlite3_bind_int64(s, i, (sqlite3_int64)va_arg(ap, uint64_t));
        } else if (*fmt == 't') {
            rc = sqlite3_bind_text(s, i, va_arg(ap, const char *), -1, SQLITE_STATIC);
        } else {
            const void *p = va_arg(ap, const void *);

            rc = sqlite3_bind_blob64(s, i, p, va_arg(ap, size_t), SQLITE_STATIC);
        }
    }
    return rc == SQLITE_OK ? 0 : sql_error(sqlite3_db_handle(s), e);
}

int
sql_bind(sqlite3_stmt *s, struct err *e, const char *fmt, ...)
{
    va_list ap;
    int rc;

    va_start(ap, fmt);
    rc = bind(s, e, fmt, ap);
    va_end(ap);
    return rc;
}

int
sql_step(sqlite3_stmt *s, struct err *e)
{
    const int rc = sqlite3_step(s);

    if (rc == SQLITE_ROW)
        return 1;
    return rc == SQLITE_DONE ? 0 : sql_error(sqlite3_db_handle(s), e);
}

int
sql_do(sqlite3 *db, uint64_t *number, struct err *e, const char *text, const char *fmt, ...)
{
    sqlite3_stmt *s = NULL;
    va_list ap;
    int rc;

    if (sql_prepare(db, text, &s, e) == -1)
        return -1;
    va_start(ap, fmt);
    rc = bind(s, e, fmt, ap);
    va_end(ap);
    if (rc == 0)
        rc = sql_step(s, e);
    if (rc == 1 && number != NULL)
        *number = (uint64_t)sqlite3_column_int64(s, 0);
    sqlite3_finalize(s);
    return rc == -1 ? -1 : 0;
}

uint64_t
sql_u64(struct sql_row *r, int col, uint64_t most)
{
    const sqlite3_int64 v = sqlite3_column_int64(r->s, col);

    if (sqlite3_column_type(r->s, col) == SQLITE_INTEGER && v >= 0 && (uint64_t)v <= most)
        return (uint64_t)v;
    if (r->bad == NULL)
        r->bad = sqlite3_column_name(r->s, col);
    return 0;
}

void
sql_blob(struct sql_row *r, int col, void *out, size_t n)
{
    const void *p = sqlite3_column_blob(r->s, col);

    if (sqlite3_column_type(r->s, col) == SQLITE_BLOB && p != NULL &&
        (size_t)sqlite3_column_bytes(r->s, col) == n) {
        memcpy(out, p, n);
        return;
    }
    memset(out, 0, n);
    if (r->bad == NULL)
        r->bad = sqlite3_column_name(r->s, col);
}

void
sql_text(struct sql_row *r, int col, char *out, size_t room)
{
    const unsigned char *p = sqlite3_column_text(r->s, col);
    const size_t n = (size_t)sqlite3_column_bytes(r->s, col);

    if (sqlite3_column_type(r->s, col) == SQLITE_TEXT && p != NULL && n < room &&
        memchr(p, '\0', n) == NULL) {
        memcpy(out, p, n);
        out[n] = '\0';
        return;
    }
    out[0] = '\0';
    if (r->bad == NULL)
        r->bad = sqlite3_column_name(r->s, col);
}

/* The one row and column that a PRAGMA answers with must be that word. */
static int
pragma_is(sqlite3 *db, const char *pragma, const char *want, struct err *e)
{
    sqlite3_stmt *s = NULL;
    int rc = sql_prepare(db, pragma, &s, e);

    if (rc == 0)
        rc = sql_step(s, e);
    if (rc != -1) {
        const char *got = rc == 1 ? (const char *)sqlite3_column_text(s, 0) : NULL;

        rc = got != NULL && strcmp(got, want) == 0
                 ? 0
                 : err_set(e, ERR_DAMAGED, 0, "%.100s: %s: %.100s",
                           sqlite3_db_filename(db, "main"), pragma,
                           got != NULL ? got : "nothing");
        /* What it changes it changes behind its row. */
        if (rc == 0)
            rc = sql_step(s, e);
    }
    sqlite3_finalize(s);
    return rc;
}

static int
settings(sqlite3 *db, enum sql_how how, struct err *e)
{
    static const struct {
        int option, on;
    } config[] = {
        {SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0}, {SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 0},
        {SQLITE_DBCONFIG_ENABLE_TRIGGER, 0}, {SQLITE_DBCONFIG_ENABLE_VIEW, 0},
        {SQLITE_DBCONFIG_DQS_DML, 0},        {SQLITE_DBCONFIG_DQS_DDL, 0},
    };

    sqlite3_extended_result_codes(db, 1);
    sqlite3_limit(db, SQLITE_LIMIT_LENGTH, MOST_BYTES);
    sqlite3_limit(db, SQLITE_LIMIT_SQL_LENGTH, MOST_SQL);
    sqlite3_limit(db, SQLITE_LIMIT_ATTACHED, 0);
    for (size_t i = 0; i < sizeof config / sizeof config[0]; i++) {
        if (sqlite3_db_config(db, config[i].option, config[i].on, NULL) != SQLITE_OK)
            return sql_error(db, e);
    }
    /* In front of the first look at the file: exclusive, or WAL would want shared memory. */
    if (sql_run(db,
                "PRAGMA locking_mode=EXCLUSIVE; PRAGMA temp_store=MEMORY;"
                "PRAGMA cell_size_check=ON; PRAGMA synchronous=FULL;"
                "PRAGMA wal_autocheckpoint=256",
                e) == -1)
        return -1;
    if (how == SQL_CREATE && sqlite3_file_control(db, "main", SQLITE_FCNTL_RESERVE_BYTES,
                                                  &(int){VFS_SUM}) != SQLITE_OK)
        return sql_error(db, e);
    if (how == SQL_CREATE &&
        (sql_run(db, "PRAGMA page_size=4096; PRAGMA synchronous=OFF", e) == -1 ||
         pragma_is(db, "PRAGMA journal_mode=OFF", "off", e) == -1))
        return -1;
    if (how == SQL_LOOK && sql_run(db, "PRAGMA query_only=ON", e) == -1)
        return -1;
    /* After journal_mode=OFF, which it forbids. */
    if (sqlite3_db_config(db, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL) != SQLITE_OK)
        return sql_error(db, e);
    if (how == SQL_WRITE && pragma_is(db, "PRAGMA journal_mode=WAL", "wal", e) == -1)
        return -1;
    return sql_run(db,
                   "PRAGMA cache_size=-128; PRAGMA secure_delete=FAST;"
                   "PRAGMA journal_size_limit=1048576",
                   e);
}

/* Bytes of a file that need not be there. */
static int
size_of(struct io *io, const char *path, bool *there, uint64_t *bytes, struct err *e)
{
    struct io_stat st;

    *there = false;
    *bytes = 0;
    if (io->ops->stat(io, path, &st, e) == -1)
        return e->code == ERR_NOT_FOUND ? 0 : -1;
    *there = true;
    *bytes = st.bytes;
    return 0;
}

int
sql_quick_check(sqlite3 *db, struct err *e)
{
    return pragma_is(db, "PRAGMA quick_check(1)", "ok", e);
}

/* After nobody closed it. */
static int
look_it_over(sqlite3 *db, enum sql_how how, struct err *e)
{
    if (sql_quick_check(db, e) == -1)
        return -1;
    if (how == SQL_WRITE && sqlite3_wal_checkpoint_v2(db, NULL, SQLITE_CHECKPOINT_TRUNCATE,
                                                      NULL, NULL) != SQLITE_OK)
        return sql_error(db, e);
    return 0;
}

/* Each connection has a VFS of its own, so that none outlives its io. A look at a database without
 * a WAL makes none: immutable. */
static int
open_by(struct io *io, const char *path, enum sql_how how, const struct wal_found *wal,
        sqlite3 **db, struct err *e)
{
    static atomic_uint_least64_t n_opened;
    const int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_URI |
                      (how == SQL_CREATE ? SQLITE_OPEN_CREATE : 0);
    char vfs[VFS_NAME_ROOM], uri[PATH_ROOM + 24];

    snprintf(vfs, sizeof vfs, "fathom-%" PRIu64, atomic_fetch_add(&n_opened, 1));
    if (vfs_register(io, vfs, true, e) == -1)
        return -1;
    vfs_clear_error();
    if (wal != NULL)
        vfs_mend_log(vfs, wal);
    snprintf(uri, sizeof uri, "file:%s%s", path,
             how == SQL_LOOK && wal == NULL ? "?immutable=1" : "");
    if (sqlite3_open_v2(uri, db, flags, vfs) == SQLITE_OK)
        return 0;
    sql_error(*db, e);
    sqlite3_close(*db);
    vfs_unregister(vfs);
    *db = NULL;
    return -1;
}

static void
keep_wal(sqlite3 *db)
{
    sqlite3_db_config(db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
}

static int
look_at_log(struct io *io, const char *path, enum sql_how how, struct wal_found *out,
            struct err *e)
{
    if (wal_look(io, path, out, e) == -1)
        return -1;
    if (!out->damaged || how == SQL_GIVE_UP)
        return 0;
    return err_set(e, ERR_DAMAGED, EUCLEAN,
                   "%s: damaged at %" PRIu64
                   ", in front of work that was acknowledged: restore it, or give that up: "
                   "fathom verify --give-up",
                   path, out->at);
}

int
sql_open(struct io *io, const char *path, enum sql_how how, sqlite3 **out, struct err *e)
{
    char wal[PATH_ROOM];
    uint64_t bytes, wal_bytes;
    bool there, wal_there;
    struct wal_found found = {0};
    sqlite3 *db = NULL;

    snprintf(wal, sizeof wal, "%s-wal", path);
    if (size_of(io, wal, &wal_there, &wal_bytes, e) == -1 ||
        size_of(io, path, &there, &bytes, e) == -1)
        return -1;
    if (there != (how != SQL_CREATE))
        return err_set(e, there ? ERR_EXISTS : ERR_NOT_FOUND, 0, "%s: %s", path,
                       there ? "is there already" : "is not there");
    if (how != SQL_CREATE && bytes == 0) /* which SQLite would take for a new one */
        return err_set(e, ERR_DAMAGED, 0, "%s: is empty", path);
    if (wal_bytes > 0 && look_at_log(io, wal, how, &found, e) == -1)
        return -1;
    if (how == SQL_GIVE_UP)
        how = SQL_WRITE;
    if (open_by(io, path, how, wal_there ? &found : NULL, &db, e) == -1)
        return -1;
    if (settings(db, how, e) == -1 || (wal_bytes > 0 && look_it_over(db, how, e) == -1)) {
        sql_close(db, wal_there);
        return -1;
    }
    if (how == SQL_LOOK)
        keep_wal(db);
    *out = db;
    return 0;
}

static void
vfs_name(sqlite3 *db, char name[VFS_NAME_ROOM])
{
    sqlite3_vfs *vfs;

    name[0] = '\0';
    if (sqlite3_file_control(db, "main", SQLITE_FCNTL_VFS_POINTER, &vfs) == SQLITE_OK)
        snprintf(name, VFS_NAME_ROOM, "%s", vfs->zName);
}

uint32_t
sql_mended(sqlite3 *db, uint64_t *at)
{
    char name[VFS_NAME_ROOM];
    const struct wal_found *w;

    vfs_name(db, name);
    w = vfs_mended(name);
    *at = w != NULL ? w->fixes[0].at : 0;
    return w != NULL ? w->n_fixes : 0;
}

void
sql_witness(sqlite3 *db, uint32_t n)
{
    sqlite3_file *log = NULL;

    if (sqlite3_file_control(db, "main", SQLITE_FCNTL_JOURNAL_POINTER, &log) == SQLITE_OK &&
        log != NULL)
        vfs_witness(log, n);
}

int
sql_finish(sqlite3 *db, struct err *e)
{
    return sql_run(db, "PRAGMA synchronous=FULL", e) == -1
               ? -1
               : pragma_is(db, "PRAGMA journal_mode=WAL", "wal", e);
}

void
sql_close(sqlite3 *db, bool as_it_is)
{
    char name[VFS_NAME_ROOM];

    if (db == NULL)
        return;
    if (as_it_is)
        keep_wal(db);
    vfs_name(db, name);
    sqlite3_close(db);
    vfs_unregister(name);
}

/* The first reading of it may find it damaged, so this comes before any other statement. */
static int
numbers(sqlite3 *db, uint32_t application, uint32_t version, uint32_t *found, struct err *e)
{
    const char *path = sqlite3_db_filename(db, "main");
    uint64_t is = 0, v = 0;

    if (sql_do(db, &is, e, "PRAGMA application_id", "") == -1 ||
        sql_do(db, &v, e, "PRAGMA user_version", "") == -1)
        return -1;
    if (is != application)
        return err_set(e, ERR_DAMAGED, 0,
                       "%.100s: not a file of fathom's (application id %" PRIx64
                       ", not %" PRIx32 ")",
                       path, is, application);
    if (v > version)
        return err_set(e, ERR_MODEL_MISMATCH, 0,
                       "%.100s: format %" PRIu64 ", this fathomd knows 1 to %" PRIu32
                       ": it needs a newer one",
                       path, v, version);
    if (v == 0)
        return err_set(e, ERR_DAMAGED, 0, "%.100s: format 0 has never been", path);
    *found = (uint32_t)v;
    return 0;
}

int
sql_schema(sqlite3 *db, uint32_t application, uint32_t version, const char *const *create,
           size_t n, uint32_t *found, struct err *e)
{
    sqlite3_stmt *s = NULL;
    size_t i = 0;
    int rc;

    if (numbers(db, application, version, found, e) == -1)
        return -1;
    if (*found < version)
        return 0;
    if (sql_prepare(db, "SELECT sql FROM sqlite_schema ORDER BY rowid", &s, e) == -1)
        return -1;
    while ((rc = sql_step(s, e)) == 1) {
        const char *sql = (const char *)sqlite3_column_text(s, 0);

        if (i == n || sql == NULL || strcmp(sql, create[i]) != 0)
            break;
        i++;
    }
    sqlite3_finalize(s);
    if (rc == 1 || (rc == 0 && i != n))
        return err_set(e, ERR_DAMAGED, 0,
                       "%.100s: its tables are not those of format %" PRIu32,
                       sqlite3_db_filename(db, "main"), version);
    return rc;
}
