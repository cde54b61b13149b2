/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ledger of a session, opened and changed. Each change is one transaction of SQLite: in a WAL
 * with synchronous=FULL a commit is one write and one fsync, atomic over all tables. Tokens lie in
 * blocks of a fixed number, so an append rewrites the last block and adds others. Reading is in
 * ledger_read.c. One thread at a time for each ledger.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "kvstore/ledger_impl.h"

enum {
    APPLICATION = 0x66744c31, /* "ftL1" */
    CHECKPOINT_PAGES = 256,   /* 1 MiB */
};

/* What sqlite_schema then holds, to the letter. */
static const char *const tables[] = {
    "CREATE TABLE meta (one INTEGER PRIMARY KEY, " LEDGER_META_COLUMNS
    ", len INTEGER NOT NULL) STRICT",
    "CREATE TABLE tokens (block INTEGER PRIMARY KEY, ids BLOB NOT NULL) STRICT",
    "CREATE TABLE points (n INTEGER PRIMARY KEY, label TEXT NOT NULL, "
    "automatic INTEGER NOT NULL, pos INTEGER NOT NULL, made_ms INTEGER NOT NULL) STRICT",
    "CREATE TABLE ops (n INTEGER PRIMARY KEY, id BLOB NOT NULL, body BLOB NOT NULL) STRICT",
    "CREATE TABLE files (id BLOB NOT NULL PRIMARY KEY, type INTEGER NOT NULL, "
    "pos INTEGER NOT NULL, n_tokens INTEGER NOT NULL, state_bytes INTEGER NOT NULL, "
    "logits INTEGER NOT NULL, n_pages INTEGER NOT NULL, turn INTEGER NOT NULL, "
    "bytes INTEGER NOT NULL) STRICT, WITHOUT ROWID",
};

enum { N_TABLES = sizeof tables / sizeof tables[0] };

static int
count_pages(void *arg, sqlite3 *db, const char *schema, int pages)
{
    struct ledger *l = arg;

    (void)db;
    (void)schema;
    l->wal_pages = pages;
    l->committed = true;
    return SQLITE_OK;
}

static int
open_as(struct io *io, const char *dir, enum sql_how how, struct ledger **out,
        struct err *e)
{
    struct ledger *l = calloc(1, sizeof *l);
    char path[sizeof l->dir + 16];
    uint32_t version;

    if (l == NULL)
        return err_set(e, ERR_QUOTA, errno, "no memory for a ledger");
    snprintf(l->dir, sizeof l->dir, "%s", dir);
    snprintf(path, sizeof path, "%s/session.db", l->dir);
    l->look = how == SQL_LOOK;
    l->fresh = how == SQL_CREATE;
    if (sql_open(io, path, how, &l->db, e) == -1 ||
        (!l->fresh && (sql_schema(l->db, APPLICATION, LEDGER_VERSION, tables, N_TABLES,
                                  &version, e) == -1 ||
                       sql_do(l->db, &l->len, e, "SELECT len FROM meta", "") == -1))) {
        l->dead = true;
        ledger_close(l);
        return -1;
    }
    sqlite3_wal_hook(l->db, count_pages, l); /* in the place of SQLite's own checkpoints */
    *out = l;
    return 0;
}

int
ledger_open(struct io *io, const char *dir, bool create, struct ledger **out, struct err *e)
{
    return open_as(io, dir, create ? SQL_CREATE : SQL_WRITE, out, e);
}

int
ledger_look(struct io *io, const char *dir, struct ledger **out, struct err *e)
{
    return open_as(io, dir, SQL_LOOK, out, e);
}

int
ledger_give_up(struct io *io, const char *dir, struct err *e)
{
    struct ledger *l;

    if (open_as(io, dir, SQL_GIVE_UP, &l, e) == -1)
        return -1;
    ledger_close(l);
    return 0;
}

uint32_t
ledger_mended(const struct ledger *l, uint64_t *at)
{
    return sql_mended(l->db, at);
}

void
ledger_close(struct ledger *l)
{
    if (l == NULL)
        return;
    sql_close(l->db, l->dead);
    free(l);
}

/* One that was just made gets its tables together with its first content. */
static int
make_tables(struct ledger *l, struct err *e)
{
    char pragma[80];

    for (int i = 0; i < N_TABLES; i++) {
        if (sql_run(l->db, tables[i], e) == -1)
            return -1;
    }
    snprintf(pragma, sizeof pragma, "PRAGMA application_id=%d; PRAGMA user_version=%d",
             APPLICATION, LEDGER_VERSION);
    return sql_run(l->db, pragma, e);
}

/* The tokens of a block that stay when the session is cut in it. */
static int
kept_tokens(struct ledger *l, uint64_t block, uint32_t *ids, size_t n, struct err *e)
{
    sqlite3_stmt *s = NULL;
    int rc = sql_prepare(l->db, "SELECT ids FROM tokens WHERE block = ?1", &s, e);

    if (rc == 0)
        rc = sql_bind(s, e, "u", block);
    if (rc == 0)
        rc = sql_step(s, e);
    if (rc != -1) {
        const void *p = rc == 1 ? sqlite3_column_blob(s, 0) : NULL;

        if (p == NULL || (size_t)sqlite3_column_bytes(s, 0) < n * sizeof *ids) {
            rc = err_set(e, ERR_DAMAGED, 0, "%s: tokens of block %" PRIu64 " are missing",
                         l->dir, block);
        } else {
            memcpy(ids, p, n * sizeof *ids);
            rc = 0;
        }
    }
    sqlite3_finalize(s);
    return rc;
}

static int
put_blocks(sqlite3_stmt *s, uint64_t from, const uint32_t *kept, const uint32_t *tokens,
           uint64_t n, struct err *e)
{
    uint32_t ids[LEDGER_BLOCK_TOKENS];
    size_t have = from % LEDGER_BLOCK_TOKENS;
    uint64_t block = from / LEDGER_BLOCK_TOKENS;

    memcpy(ids, kept, have * sizeof *ids);
    while (have > 0 || n > 0) {
        const size_t more = n < LEDGER_BLOCK_TOKENS - have ? n : LEDGER_BLOCK_TOKENS - have;

        if (more > 0)
            memcpy(ids + have, tokens, more * sizeof *ids);
        if (sql_bind(s, e, "ub", block, (const void *)ids, (have + more) * sizeof *ids) ==
                -1 ||
            sql_step(s, e) == -1)
            return -1;
        tokens += more;
        n -= more;
        block++;
        have = 0;
    }
    return 0;
}

static int
put_tokens(struct ledger *l, const struct ledger_change *c, struct err *e)
{
    const uint64_t len = c->from + c->n_tokens;
    uint32_t kept[LEDGER_BLOCK_TOKENS];
    const size_t n = c->from % LEDGER_BLOCK_TOKENS;
    sqlite3_stmt *s = NULL;
    int rc;

    if (n > 0 && kept_tokens(l, c->from / LEDGER_BLOCK_TOKENS, kept, n, e) == -1)
        return -1;
    if (c->from < l->len &&
        sql_do(l->db, NULL, e, "DELETE FROM tokens WHERE block >= ?1", "u",
               (len + LEDGER_BLOCK_TOKENS - 1) / LEDGER_BLOCK_TOKENS) == -1)
        return -1;
    rc = sql_prepare(l->db, "INSERT OR REPLACE INTO tokens VALUES (?1, ?2)", &s, e);
    if (rc == 0)
        rc = put_blocks(s, c->from, kept, c->tokens, c->n_tokens, e);
    sqlite3_finalize(s);
    if (rc == 0 && len != l->len)
        rc = sql_do(l->db, NULL, e, "UPDATE meta SET len = ?1", "u", len);
    return rc;
}

static bool
same_point(const struct ledger_point *a, const struct ledger_point *b)
{
    return strcmp(a->label, b->label) == 0 && a->automatic == b->automatic &&
           a->pos == b->pos && a->made_ms == b->made_ms;
}

/* Mostly one more and perhaps the oldest one less: rows that are wanted stay as they are, in
 * order; what is left of the new list goes behind them. */
static int
put_points(struct ledger *l, const struct ledger_point *points, size_t n, struct err *e)
{
    sqlite3_stmt *old = NULL, *add = NULL;
    uint64_t number = 0;
    size_t i = 0;
    int rc = sql_prepare(l->db, LEDGER_POINTS, &old, e);

    while (rc == 0 && (rc = sql_step(old, e)) == 1) {
        struct sql_row r = {.s = old};
        struct ledger_point p;

        ledger_point_read(&r, &p);
        number = (uint64_t)sqlite3_column_int64(old, 4);
        if (i < n && r.bad == NULL && same_point(&p, &points[i])) {
            i++;
            rc = 0;
        } else {
            rc = sql_do(l->db, NULL, e, "DELETE FROM points WHERE n = ?1", "u", number);
        }
    }
    sqlite3_finalize(old);
    if (rc == 0)
        rc = sql_prepare(l->db, "INSERT INTO points VALUES (?1, ?2, ?3, ?4, ?5)", &add, e);
    for (; rc == 0 && i < n; i++) {
        rc = sql_bind(add, e, "utuuu", ++number, points[i].label,
                      (uint64_t)points[i].automatic, points[i].pos, points[i].made_ms);
        if (rc == 0)
            rc = sql_step(add, e);
    }
    sqlite3_finalize(add);
    return rc;
}

static int
put_ops(struct ledger *l, const struct ledger_op *ops, size_t n, struct err *e)
{
    for (size_t i = 0; i < n; i++) {
        const void *id = ops[i].id, *body = ops[i].body;

        if (sql_do(l->db, NULL, e, "UPDATE ops SET body = ?2 WHERE id = ?1", "bb", id,
                   sizeof ops[i].id, body, sizeof ops[i].body) == -1)
            return -1;
        if (sqlite3_changes(l->db) > 0)
            continue;
        if (sql_do(l->db, NULL, e, "INSERT INTO ops (id, body) VALUES (?1, ?2)", "bb", id,
                   sizeof ops[i].id, body, sizeof ops[i].body) == -1 ||
            sql_do(l->db, NULL, e,
                   "DELETE FROM ops WHERE n <= (SELECT max(n) FROM ops) - ?1", "u",
                   (uint64_t)LEDGER_OPS) == -1)
            return -1;
    }
    return 0;
}

static int
put_files(struct ledger *l, const struct ledger_change *c, struct err *e)
{
    for (size_t i = 0; i < c->n_drop; i++) {
        if (sql_do(l->db, NULL, e, "DELETE FROM files WHERE id = ?1", "b",
                   (const void *)c->drop[i].b, sizeof c->drop[i].b) == -1)
            return -1;
    }
    for (size_t i = 0; i < c->n_add; i++) {
        const struct ledger_file *f = &c->add[i];

        if (sql_do(
                l->db, NULL, e,
                "INSERT OR REPLACE INTO files VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
                "buuuuuuuu", (const void *)f->about.id.b, sizeof f->about.id.b,
                (uint64_t)f->about.type, f->about.pos, (uint64_t)f->about.n_tokens,
                f->about.state_bytes, (uint64_t)f->about.logits, (uint64_t)f->n_pages,
                (uint64_t)f->turn, f->bytes) == -1)
            return -1;
    }
    return 0;
}

static int
wrong(const struct ledger *l, const char *what, struct err *e)
{
    return err_set(e, ERR_INTERNAL, 0, "%s: a change that cannot be: %s", l->dir, what);
}

/* What could not be read back is not written. */
static int
check_change(const struct ledger *l, const struct ledger_change *c, struct err *e)
{
    const uint64_t len = c->has_tokens ? c->from + c->n_tokens : l->len;
    const char *why = NULL;

    if (l->look || (l->fresh && c->meta == NULL))
        return wrong(l, l->look ? "opened to read" : "the first one, without metadata", e);
    if (c->has_tokens && (c->from > l->len || c->n_tokens > LEDGER_MAX_TOKENS - c->from))
        return wrong(l, "tokens behind its end", e);
    if (c->meta != NULL)
        why = ledger_meta_wrong(c->meta);
    for (size_t i = 0; why == NULL && c->has_points && i < c->n_points; i++)
        why = ledger_point_wrong(&c->points[i], len);
    for (size_t i = 0; why == NULL && i < c->n_add; i++)
        why = ledger_file_wrong(&c->add[i], len);
    return why != NULL ? wrong(l, why, e) : 0;
}

/* After a cut nothing may be left that lies behind the end. */
static int
check_end(struct ledger *l, uint64_t len, struct err *e)
{
    uint64_t n = 0;

    if (sql_do(l->db, &n, e,
               "SELECT (SELECT count(*) FROM points WHERE pos > ?1) + "
               "(SELECT count(*) FROM files WHERE pos + 128 * n_pages > ?1)",
               "u", len) == -1)
        return -1;
    return n > 0 ? wrong(l, "checkpoints or files behind the new end", e) : 0;
}

static int
apply(struct ledger *l, const struct ledger_change *c, struct err *e)
{
    if (sql_run(l->db, "BEGIN IMMEDIATE", e) == -1)
        return -1;
    if (l->fresh && make_tables(l, e) == -1)
        return -1;
    if (c->meta != NULL &&
        sql_do(l->db, NULL, e,
               "INSERT OR REPLACE INTO meta (one, " LEDGER_META_NAMES ", len) VALUES "
               "(1, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
               LEDGER_META_FMT "u", LEDGER_META_VALUES(c->meta), l->len) == -1)
        return -1;
    if ((c->has_tokens && put_tokens(l, c, e) == -1) ||
        (c->has_points && put_points(l, c->points, c->n_points, e) == -1) ||
        (c->n_ops > 0 && put_ops(l, c->ops, c->n_ops, e) == -1) || put_files(l, c, e) == -1)
        return -1;
    if (c->has_tokens && c->from < l->len && check_end(l, c->from + c->n_tokens, e) == -1)
        return -1;
    return sql_run(l->db, "COMMIT", e);
}

/* What is on the disk now nobody knows: nothing more may be built on it. */
static void
end_of_it(struct ledger *l, const struct err *e)
{
    l->dead = true;
    l->why = *e;
    l->why.code = ERR_READ_ONLY;
}

/* The WAL's pages to where they belong, now and then. The commit before it stands even if this
 * fails. A full disk is no failure: the WAL grows until there is room. SQLite would pass over a
 * failed sync in silence. */
static void
checkpoint(struct ledger *l)
{
    struct err e;

    if (l->wal_pages < CHECKPOINT_PAGES)
        return;
    l->wal_pages = 0;
    if (sqlite3_wal_checkpoint_v2(l->db, NULL, SQLITE_CHECKPOINT_PASSIVE, NULL, NULL) !=
            SQLITE_OK &&
        (sql_error(l->db, &e), e.code != ERR_QUOTA))
        end_of_it(l, &e);
}

int
ledger_commit(struct ledger *l, const struct ledger_change *c, struct err *e)
{
    if (l->dead) {
        *e = l->why;
        return -1;
    }
    if (check_change(l, c, e) == -1)
        return -1;
    l->committed = false;
    if (apply(l, c, e) == 0 && (!l->fresh || sql_finish(l->db, e) == 0)) {
        if (c->has_tokens)
            l->len = c->from + c->n_tokens;
        if (!l->fresh && l->committed)
            sql_witness(l->db, (uint32_t)l->wal_pages);
        l->fresh = false;
        checkpoint(l);
        return 0;
    }
    if (!sqlite3_get_autocommit(l->db))
        sqlite3_exec(l->db, "ROLLBACK", NULL, NULL, NULL);
    if (!l->fresh && (e->code == ERR_QUOTA || e->code == ERR_INTERNAL) &&
        sqlite3_get_autocommit(l->db))
        return -1;
    end_of_it(l, e);
    if (e->code != ERR_QUOTA)
        e->code = ERR_READ_ONLY;
    return -1;
}
