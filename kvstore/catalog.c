/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The catalogue as others see it: open, list, note, hot. What is in index.db can be found in the
 * folders; the one thing that only it knows is which sessions may have changed since (`hot`), and so
 * that alone is synced. Calls may come from any thread; a mutex is held for the time of
 * one transaction.
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "kvstore/catalog_impl.h"
#include "kvstore/io.h"

int
ids_add(struct ids *l, const struct kvfile_id *id, struct err *e)
{
    if (l->n == l->room) {
        const size_t room = l->room > 0 ? 2 * l->room : 64;
        struct kvfile_id *v = realloc(l->v, room * sizeof *v);

        if (v == NULL)
            return err_set(e, ERR_QUOTA, errno, "no memory for %zu sessions", room);
        l->v = v;
        l->room = room;
    }
    l->v[l->n++] = *id;
    return 0;
}

static size_t
ids_find(const struct ids *l, const struct kvfile_id *id)
{
    size_t i = 0;

    while (i < l->n && memcmp(&l->v[i], id, sizeof *id) != 0)
        i++;
    return i;
}

bool
ids_has(const struct ids *l, const struct kvfile_id *id)
{
    return ids_find(l, id) < l->n;
}

void
ids_drop(struct ids *l, const struct kvfile_id *id)
{
    const size_t i = ids_find(l, id);

    if (i < l->n)
        l->v[i] = l->v[--l->n];
}

void
ids_done(struct ids *l)
{
    free(l->v);
    *l = (struct ids){0};
}

int
ids_order(const void *a, const void *b)
{
    return memcmp(a, b, sizeof(struct kvfile_id));
}

void
catalog_uuid(const struct kvfile_id *id, char text[CATALOG_UUID + 1])
{
    char *p = text;

    for (size_t i = 0; i < sizeof id->b; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10)
            *p++ = '-';
        p += sprintf(p, "%02x", id->b[i]);
    }
}

static int
nibble(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

bool
catalog_parse_uuid(const char *text, struct kvfile_id *id)
{
    for (size_t i = 0; i < sizeof id->b; i++) {
        int high, low;

        if ((i == 4 || i == 6 || i == 8 || i == 10) && *text++ != '-')
            return false;
        high = nibble(text[0]);
        low = high < 0 ? -1 : nibble(text[1]);
        if (low < 0)
            return false;
        id->b[i] = (uint8_t)(high << 4 | low);
        text += 2;
    }
    return *text == '\0';
}

void
catalog_dir(const struct kvfile_id *id, char dir[CATALOG_DIR_MAX])
{
    char uuid[CATALOG_UUID + 1];

    catalog_uuid(id, uuid);
    snprintf(dir, CATALOG_DIR_MAX, "sessions/%.2s/%s", uuid, uuid);
}

void
catalog_new_id(struct kvfile_id *id)
{
    size_t have = 0;

    while (have < sizeof id->b) {
        const ssize_t n = getrandom(id->b + have, sizeof id->b - have, 0);

        have += n > 0 ? (size_t)n : 0;
    }
    id->b[6] = (uint8_t)((id->b[6] & 0x0f) | 0x40); /* RFC 9562, version 4 */
    id->b[8] = (uint8_t)((id->b[8] & 0x3f) | 0x80);
}

enum { SPARE_BYTES = 1 << 20 };

static int
take_lock(struct catalog *c, struct err *e)
{
    c->held = c->io->ops->open(c->io, "lock", IO_WRITE | IO_CREATE, e);
    if (c->held == -1)
        return -1;
    if (c->io->ops->lock(c->io, c->held, e) == -1)
        return e->code == ERR_BUSY ? err_set(e, ERR_BUSY, e->sys,
                                             "another fathomd uses this state directory")
                                   : -1;
    return 0;
}

/* The folders, and that they, and what is in sessions/, are there after a crash: they may have been
 * made by a fathomd that was killed before it could sync them. */
static int
make_folders(struct io *io, struct err *e)
{
    static const char *const names[] = {"sessions", "tmp", "trash", "quarantine"};

    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (io->ops->mkdir(io, names[i], e) == -1 && e->code != ERR_EXISTS)
            return -1;
    }
    return io->ops->sync_dir(io, ".", e) == -1 || io->ops->sync_dir(io, "sessions", e) == -1
               ? -1
               : 0;
}

/* Room for the index to be opened on a disk that is full: or nothing could be read before somebody
 * has made room. Whether there is some is luck then, so nothing is said if not. */
static void
make_spare(struct io *io)
{
    struct err ignored;
    const int h = io->ops->open(io, "spare", IO_WRITE | IO_CREATE, &ignored);

    if (h == -1)
        return;
    io->ops->reserve(io, h, SPARE_BYTES, &ignored);
    io->ops->close(io, h);
}

static int
open_index(struct catalog *c, struct err *e)
{
    struct err ignored;
    int rc = catalog_index_open(c, e);

    if (rc == -1 && e->code == ERR_QUOTA &&
        c->io->ops->unlink(c->io, "spare", &ignored) == 0) {
        sql_close(c->db, true);
        c->db = NULL;
        ids_done(&c->hot);
        ids_done(&c->due);
        rc = catalog_index_open(c, e);
    }
    if (rc == 0)
        make_spare(c->io);
    return rc;
}

int
catalog_open(struct io *io, struct catalog **out, struct err *e)
{
    struct catalog *c = calloc(1, sizeof *c);

    if (c == NULL)
        return err_set(e, ERR_QUOTA, errno, "no memory for the catalogue");
    c->io = io;
    c->held = -1;
    pthread_mutex_init(&c->lock, NULL);
    if (take_lock(c, e) == -1 || make_folders(io, e) == -1 || open_index(c, e) == -1) {
        c->dead = true;
        catalog_close(c);
        return -1;
    }
    *out = c;
    return 0;
}

void
catalog_close(struct catalog *c)
{
    if (c == NULL)
        return;
    sql_close(c->db, c->dead);
    if (c->held != -1)
        c->io->ops->close(c->io, c->held);
    ids_done(&c->hot);
    ids_done(&c->due);
    ids_done(&c->building);
    ids_done(&c->mended);
    pthread_mutex_destroy(&c->lock);
    free(c);
}

bool
catalog_mended(const struct catalog *c, const struct kvfile_id *id)
{
    return ids_has(&c->mended, id);
}

#define COLUMNS "id, " LEDGER_META_NAMES ", len, n_points, disk_bytes, damaged, why"

static void
read_entry(struct sql_row *r, struct catalog_entry *en)
{
    int col = 1 + LEDGER_META_N;

    memset(en, 0, sizeof *en);
    sql_blob(r, 0, en->id.b, sizeof en->id.b);
    ledger_meta_read(r, 1, &en->meta);
    en->len = sql_u64(r, col++, LEDGER_MAX_TOKENS);
    en->n_points = sql_u64(r, col++, LEDGER_MAX_COUNT);
    en->disk_bytes = sql_u64(r, col++, LEDGER_MAX_COUNT);
    en->damaged = sql_u64(r, col++, 1) != 0;
    sql_text(r, col, en->why, sizeof en->why);
    /* Of a damaged one not even the name need be known. */
    if (r->bad == NULL && !en->damaged)
        r->bad = ledger_meta_wrong(&en->meta);
}

int
catalog_rows(sqlite3 *db, int (*each)(void *arg, const struct catalog_entry *en), void *arg,
             struct err *e)
{
    sqlite3_stmt *s = NULL;
    int rc = sql_prepare(db, "SELECT " COLUMNS " FROM sessions ORDER BY id", &s, e);

    while (rc == 0 && (rc = sql_step(s, e)) == 1) {
        struct sql_row r = {.s = s};
        struct catalog_entry en;

        read_entry(&r, &en);
        rc = r.bad != NULL ? err_set(e, ERR_DAMAGED, 0, "index.db: %s", r.bad)
                           : each(arg, &en);
    }
    sqlite3_finalize(s);
    return rc;
}

int
catalog_each(struct catalog *c, int (*each)(void *arg, const struct catalog_entry *en),
             void *arg, struct err *e)
{
    int rc;

    pthread_mutex_lock(&c->lock);
    rc = c->db != NULL ? catalog_rows(c->db, each, arg, e)
                       : err_set(e, ERR_UNAVAILABLE, 0, "index.db: there is none");
    pthread_mutex_unlock(&c->lock);
    return rc;
}

int
catalog_put(struct catalog *c, const struct catalog_entry *en, struct err *e)
{
    return sql_do(
        c->db, NULL, e,
        "INSERT INTO sessions (" COLUMNS ", swept) VALUES (?1, ?2, ?3, ?4, ?5, ?6, "
        "?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, 0) "
        "ON CONFLICT (id) DO UPDATE SET (" LEDGER_META_NAMES
        ", len, n_points, disk_bytes, damaged, why) = (?2, ?3, ?4, ?5, ?6, ?7, ?8, "
        "?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20)",
        "b" LEDGER_META_FMT "uuuut", (const void *)en->id.b, sizeof en->id.b,
        LEDGER_META_VALUES(&en->meta), en->len, en->n_points, en->disk_bytes,
        (uint64_t)en->damaged, en->why);
}

int
catalog_index_failed(struct catalog *c, struct err *e)
{
    if (!sqlite3_get_autocommit(c->db))
        sqlite3_exec(c->db, "ROLLBACK", NULL, NULL, NULL);
    if (e->code == ERR_QUOTA && sqlite3_get_autocommit(c->db))
        return -1;
    e->code = ERR_READ_ONLY;
    c->why = *e;
    c->failures++;
    if (catalog_index_renew(c, e) == 0)
        return 0;
    e->code = ERR_READ_ONLY;
    c->dead = true;
    c->why = *e;
    return -1;
}

bool
catalog_has_index(const struct catalog *c)
{
    return c->db != NULL && !c->dead;
}

void
catalog_health(const struct catalog *c, struct catalog_health *out)
{
    *out = (struct catalog_health){c->failures, c->renewals};
}

void
catalog_why(struct catalog *c, struct err *why)
{
    pthread_mutex_lock(&c->lock);
    *why = c->why;
    pthread_mutex_unlock(&c->lock);
}

int
catalog_note(struct catalog *c, const struct catalog_entry *en, struct err *e)
{
    int rc;

    pthread_mutex_lock(&c->lock);
    if (c->dead) {
        *e = c->why;
        rc = -1;
    } else {
        rc = c->db != NULL ? catalog_put(c, en, e) : 0;
        if (rc == -1)
            rc = catalog_index_failed(c, e); /* a new one need not know it */
    }
    pthread_mutex_unlock(&c->lock);
    return rc;
}

static int
set_hot(struct catalog *c, const struct kvfile_id *id, struct err *e)
{
    if (c->dead) {
        *e = c->why;
        return -1;
    }
    if (ids_has(&c->hot, id))
        return 0;
    if (ids_add(&c->hot, id, e) == -1)
        return -1;
    if (c->db == NULL) { /* the next start looks at all of them */
        if (catalog_index_retry(c, e) == 0)
            return 0;
        ids_drop(&c->hot, id);
        return -1;
    }
    if (sql_run(c->db, "PRAGMA synchronous=FULL; BEGIN IMMEDIATE", e) == 0 &&
        sql_do(c->db, NULL, e, "INSERT OR REPLACE INTO hot VALUES (?1)", "b",
               (const void *)id->b, sizeof id->b) == 0 &&
        sql_do(c->db, NULL, e, "UPDATE sessions SET swept = 0 WHERE id = ?1", "b",
               (const void *)id->b, sizeof id->b) == 0 &&
        sql_run(c->db, "COMMIT; PRAGMA synchronous=NORMAL", e) == 0)
        return 0;
    if (catalog_index_failed(c, e) == 0)
        return 0; /* the new one has it */
    ids_drop(&c->hot, id);
    return -1;
}

/* Of the index only: if that is lost, the session is looked at once more than it need be. */
static int
set_cold(struct catalog *c, const struct kvfile_id *id, struct err *e)
{
    struct err ignored;

    ids_drop(&c->hot, id);
    if (!ids_has(&c->due, id))
        ids_add(&c->due, id, &ignored); /* or after the next start */
    if (c->dead) {
        *e = c->why;
        return -1;
    }
    if (c->db == NULL)
        return 0;
    return sql_do(c->db, NULL, e, "DELETE FROM hot WHERE id = ?1", "b", (const void *)id->b,
                  sizeof id->b) == -1
               ? catalog_index_failed(c, e)
               : 0;
}

int
catalog_hot(struct catalog *c, const struct kvfile_id *id, bool hot, struct err *e)
{
    int rc;

    pthread_mutex_lock(&c->lock);
    rc = hot ? set_hot(c, id, e) : set_cold(c, id, e);
    pthread_mutex_unlock(&c->lock);
    return rc;
}
