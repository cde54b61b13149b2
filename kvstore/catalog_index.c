/* SPDX-License-Identifier: Apache-2.0 */
/*
 * index.db against the folders, when the store is opened. Every row of it is read, and with the first
 * thing wrong the whole file is thrown away and made again: it is a cache. Then the folders are
 * listed; those that the index does not know, that were hot, or that were damaged are looked at, rows
 * without a folder go. So the time is that of reading some MB, not of opening 10,000 databases.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "kvstore/catalog_impl.h"
#include "kvstore/io.h"

enum { APPLICATION = 0x66744931, INDEX_VERSION = 1 }; /* "ftI1" */

static const char *const tables[] = {
    "CREATE TABLE sessions (id BLOB NOT NULL PRIMARY KEY, " LEDGER_META_COLUMNS
    ", len INTEGER NOT NULL, n_points INTEGER NOT NULL, disk_bytes INTEGER NOT NULL, "
    "damaged INTEGER NOT NULL, why TEXT NOT NULL, swept INTEGER NOT NULL) STRICT, WITHOUT ROWID",
    "CREATE TABLE hot (id BLOB NOT NULL PRIMARY KEY) STRICT, WITHOUT ROWID",
};

enum { N_TABLES = sizeof tables / sizeof tables[0] };

#define RETRY_NS UINT64_C(60000000000)

/* What the index says, and what there is. */
struct survey {
    struct ids known, doubtful, folders;
    char shelf[8]; /* "ab": whose folders are being listed */
    bool shelves[256], synced[256], others_synced;
    struct err *e;
};

void
catalog_look(struct io *io, const struct kvfile_id *id, struct catalog_entry *en)
{
    char dir[CATALOG_DIR_MAX], path[CATALOG_DIR_MAX + 16];
    struct ledger_content content;
    struct ledger *l = NULL;
    struct io_stat st;
    struct err e = {0};
    int rc;

    en->id = *id;
    en->damaged = false;
    en->why[0] = '\0';
    catalog_dir(id, dir);
    snprintf(path, sizeof path, "%s/session.db", dir);
    rc = ledger_look(io, dir, &l, &e);
    if (rc == 0)
        rc = ledger_brief(l, &content, &e);
    if (rc == 0) {
        en->meta = content.meta;
        en->len = content.len;
        en->n_points = content.n_points;
        en->disk_bytes = io->ops->stat(io, path, &st, &e) == 0 ? st.bytes : 0;
        for (size_t i = 0; i < content.n_files; i++)
            en->disk_bytes += content.files[i].bytes;
        ledger_content_done(&content);
    } else {
        en->damaged = true;
        snprintf(en->why, sizeof en->why, "%.*s", (int)sizeof en->why - 1, e.text);
    }
    ledger_close(l);
}

/* First the database in one step, as its log without it is nothing, but it without its log an older
 * index that looks sound; and nothing of it may come back to stand beside a new one. */
static int
remove_index(struct io *io, struct err *e)
{
    static const char *const names[] = {"index.db-wal", "index.db-journal", "index.old"};

    if (io->ops->rename(io, "index.db", "index.old", e) == -1 && e->code != ERR_NOT_FOUND)
        return -1;
    if (io->ops->sync_dir(io, ".", e) == -1)
        return -1;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (io->ops->unlink(io, names[i], e) == -1 && e->code != ERR_NOT_FOUND)
            return -1;
    }
    return io->ops->sync_dir(io, ".", e);
}

static int
make_index(struct catalog *c, struct err *e)
{
    char pragma[80];

    snprintf(pragma, sizeof pragma, "PRAGMA application_id=%d; PRAGMA user_version=%d",
             APPLICATION, INDEX_VERSION);
    if (sql_open(c->io, "index.db", SQL_CREATE, &c->db, e) == -1 ||
        sql_run(c->db, "BEGIN IMMEDIATE", e) == -1)
        return -1;
    for (int i = 0; i < N_TABLES; i++) {
        if (sql_run(c->db, tables[i], e) == -1)
            return -1;
    }
    if (sql_run(c->db, pragma, e) == -1 || sql_run(c->db, "COMMIT", e) == -1 ||
        sql_finish(c->db, e) == -1)
        return -1;
    return c->io->ops->sync_dir(c->io, ".", e);
}

static int
hot_rows(struct catalog *c, struct err *e)
{
    if (sql_run(c->db, "BEGIN IMMEDIATE", e) == -1)
        return -1;
    for (size_t i = 0; i < c->hot.n; i++) {
        if (sql_do(c->db, NULL, e, "INSERT INTO hot VALUES (?1)", "b",
                   (const void *)c->hot.v[i].b, sizeof c->hot.v[i].b) == -1)
            return -1;
    }
    return sql_run(c->db, "COMMIT; PRAGMA synchronous=NORMAL", e);
}

/* The new one knows no sessions: it is not asked for them before the next start, which then looks at
 * all folders. Rows of the old one are not trusted, as what a failed sync leaves of them nobody knows. */
static int
renew(struct catalog *c, struct err *e)
{
    struct err ignored;

    c->tried_ns = clock_ns();
    if (make_index(c, &ignored) == 0 && hot_rows(c, &ignored) == 0) {
        c->renewals++;
        return 0;
    }
    sql_close(c->db, true);
    c->db = NULL;
    return remove_index(c->io, e); /* then there is none */
}

int
catalog_index_renew(struct catalog *c, struct err *e)
{
    sql_close(c->db, true);
    c->db = NULL;
    return remove_index(c->io, e) == -1 ? -1 : renew(c, e);
}

int
catalog_index_retry(struct catalog *c, struct err *e)
{
    if (clock_ns() - c->tried_ns < RETRY_NS || renew(c, e) == 0)
        return 0;
    e->code = ERR_READ_ONLY;
    c->dead = true;
    c->why = *e;
    return -1;
}

static int
known_row(void *arg, const struct catalog_entry *en)
{
    struct survey *s = arg;

    if (ids_add(&s->known, &en->id, s->e) == -1)
        return -1;
    return en->damaged ? ids_add(&s->doubtful, &en->id, s->e) : 0;
}

static int
read_ids(struct catalog *c, const char *select, struct ids *out, struct err *e)
{
    sqlite3_stmt *q = NULL;
    int rc = sql_prepare(c->db, select, &q, e);

    while (rc == 0 && (rc = sql_step(q, e)) == 1) {
        struct sql_row r = {.s = q};
        struct kvfile_id id;

        sql_blob(&r, 0, id.b, sizeof id.b);
        rc = r.bad != NULL ? err_set(e, ERR_DAMAGED, 0, "index.db: %s", r.bad)
                           : ids_add(out, &id, e);
    }
    sqlite3_finalize(q);
    return rc;
}

static int
read_index(struct catalog *c, struct survey *s, struct err *e)
{
    uint32_t version;

    if (sql_open(c->io, "index.db", SQL_WRITE, &c->db, e) == -1 ||
        sql_schema(c->db, APPLICATION, INDEX_VERSION, tables, N_TABLES, &version, e) == -1)
        return -1;
    if (version != INDEX_VERSION)
        return err_set(e, ERR_DAMAGED, 0, "index.db: an older format");
    return catalog_rows(c->db, known_row, s, e) == -1 ||
                   read_ids(c, "SELECT id FROM hot", &s->doubtful, e) == -1
               ? -1
               : 0;
}

static int
folder(void *arg, const char *name)
{
    struct survey *s = arg;
    struct kvfile_id id;

    if (!catalog_parse_uuid(name, &id) || strncmp(name, s->shelf, 2) != 0)
        return 0; /* not ours */
    return ids_add(&s->folders, &id, s->e);
}

/* "00" to "ff": sessions/ has a folder of that name. */
static int
shelf(void *arg, const char *name)
{
    static const char digits[] = "0123456789abcdef";
    struct survey *s = arg;
    const char *high = memchr(digits, name[0], 16);
    const char *low = high != NULL ? memchr(digits, name[1], 16) : NULL;

    if (low != NULL && name[2] == '\0')
        s->shelves[(high - digits) * 16 + (low - digits)] = true;
    return 0;
}

static int
list_folders(struct catalog *c, struct survey *s, struct err *e)
{
    if (c->io->ops->list(c->io, "sessions", shelf, s, e) == -1)
        return -1;
    for (int i = 0; i < 256; i++) {
        char dir[24];

        if (!s->shelves[i])
            continue;
        snprintf(s->shelf, sizeof s->shelf, "%02x", i);
        snprintf(dir, sizeof dir, "sessions/%s", s->shelf);
        if (c->io->ops->list(c->io, dir, folder, s, e) == -1)
            return -1;
        c->shelf_durable[i] = true;
    }
    return 0;
}

/* A folder that the index does not know, or does not find: put there or taken away by a fathomd
 * that was killed before it had synced that, or by hand. */
static int
make_sure(struct catalog *c, struct survey *s, const struct kvfile_id *id, struct err *e)
{
    static const char *const others[] = {"tmp", "trash", "quarantine"};
    char dir[24];

    if (s->synced[id->b[0]] || !s->shelves[id->b[0]])
        return 0;
    s->synced[id->b[0]] = true;
    for (size_t i = 0; !s->others_synced && i < sizeof others / sizeof others[0]; i++) {
        if (c->io->ops->sync_dir(c->io, others[i], e) == -1)
            return -1;
    }
    s->others_synced = true;
    snprintf(dir, sizeof dir, "sessions/%02x", id->b[0]);
    return c->io->ops->sync_dir(c->io, dir, e);
}

/* A killed fathomd's write-ahead log may hold what it never synced: before the index says what it
 * says, durably, it goes to where it belongs. False: that could not be done. */
static bool
settle(struct catalog *c, const struct kvfile_id *id)
{
    char dir[CATALOG_DIR_MAX], wal[CATALOG_DIR_MAX + 20];
    struct ledger *l = NULL;
    struct io_stat st;
    struct err e;
    uint64_t at;

    catalog_dir(id, dir);
    snprintf(wal, sizeof wal, "%s/session.db-wal", dir);
    if (c->io->ops->stat(c->io, wal, &st, &e) == -1)
        return e.code == ERR_NOT_FOUND;
    if (ledger_open(c->io, dir, false, &l, &e) == -1)
        return false;
    if (ledger_mended(l, &at) > 0 && !ids_has(&c->mended, id))
        ids_add(&c->mended, id, &e); /* to be told; without memory it is not */
    ledger_close(l);
    return true;
}

/* What the index knew of it stays, where the ledger does not tell; and it stays hot, if it was, while
 * that may change by itself. */
static int
look_again(struct catalog *c, struct survey *s, const struct kvfile_id *id, bool known,
           struct err *e)
{
    struct catalog_entry en = {0};

    if (!known && make_sure(c, s, id, e) == -1)
        return -1;
    if (settle(c, id) && sql_do(c->db, NULL, e, "DELETE FROM hot WHERE id = ?1", "b",
                                (const void *)id->b, sizeof id->b) == -1)
        return -1;
    catalog_look(c->io, id, &en);
    if (en.damaged && known)
        return sql_do(c->db, NULL, e,
                      "UPDATE sessions SET damaged = 1, why = ?2 WHERE id = ?1", "bt",
                      (const void *)id->b, sizeof id->b, en.why);
    return catalog_put(c, &en, e);
}

static int
merge(struct catalog *c, struct survey *s, struct err *e)
{
    size_t k = 0;

    if (s->folders.n > 0)
        qsort(s->folders.v, s->folders.n, sizeof *s->folders.v, ids_order);
    if (s->doubtful.n > 0)
        qsort(s->doubtful.v, s->doubtful.n, sizeof *s->doubtful.v, ids_order);
    for (size_t f = 0; f < s->folders.n || k < s->known.n;) {
        const int order = f == s->folders.n ? 1
                          : k == s->known.n ? -1
                                            : ids_order(&s->folders.v[f], &s->known.v[k]);

        if (order > 0) {
            if (make_sure(c, s, &s->known.v[k], e) == -1 ||
                sql_do(c->db, NULL, e, "DELETE FROM sessions WHERE id = ?1", "b",
                       (const void *)s->known.v[k].b, sizeof s->known.v[k].b) == -1)
                return -1;
        } else if (order < 0 || (s->doubtful.n > 0 &&
                                 bsearch(&s->folders.v[f], s->doubtful.v, s->doubtful.n,
                                         sizeof *s->doubtful.v, ids_order) != NULL)) {
            if (look_again(c, s, &s->folders.v[f], order == 0, e) == -1)
                return -1;
        }
        f += order <= 0;
        k += order >= 0;
    }
    return sql_run(c->db, "DELETE FROM hot WHERE id NOT IN (SELECT id FROM sessions)", e);
}

static void
survey_done(struct survey *s)
{
    ids_done(&s->known);
    ids_done(&s->doubtful);
    ids_done(&s->folders);
}

int
catalog_index_open(struct catalog *c, struct err *e)
{
    struct survey s = {.e = e};
    int rc = read_index(c, &s, e);

    if (rc == -1 && (e->code == ERR_DAMAGED || e->code == ERR_NOT_FOUND ||
                     e->code == ERR_MODEL_MISMATCH)) { /* the last: of a newer version */
        sql_close(c->db, true);
        c->db = NULL;
        survey_done(&s);
        rc = remove_index(c->io, e);
        if (rc == 0)
            rc = make_index(c, e);
    }
    if (rc == 0)
        rc = list_folders(c, &s, e);
    if (rc == 0)
        rc = sql_run(c->db, "BEGIN IMMEDIATE", e);
    if (rc == 0)
        rc = merge(c, &s, e);
    if (rc == 0)
        rc = sql_run(c->db, "COMMIT; PRAGMA synchronous=NORMAL", e);
    if (rc == 0)
        rc = read_ids(c, "SELECT id FROM sessions WHERE swept = 0 AND damaged = 0", &c->due,
                      e);
    survey_done(&s);
    return rc;
}
