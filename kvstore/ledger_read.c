/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ledger read back, believing nothing: a file may come from a broken disk or from somebody who
 * wrote it by hand. SQLite keeps its pages apart; here every value is looked at before it is used
 * as a size or an index, and memory is asked for only for rows that are there.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "kvstore/ledger_impl.h"

static int
damaged(const struct ledger *l, const char *what, const char *why, struct err *e)
{
    return err_set(e, ERR_DAMAGED, 0, "%s/session.db: %s: %s", l->dir, what, why);
}

static bool
is_name(const char *s)
{
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
                                  "0123456789._-";
    const size_t n = strlen(s);

    return n >= 1 && n <= LEDGER_NAME_MAX && s[0] != '.' && strspn(s, letters) == n;
}

const char *
ledger_meta_wrong(const struct ledger_meta *m)
{
    if (!is_name(m->name))
        return "name";
    if (m->mode > 0777)
        return "mode";
    if (m->turn_open > 1 || m->quarantined > 1)
        return "turn_open, quarantined";
    if (m->created_ms > LEDGER_MAX_COUNT || m->used_ms > LEDGER_MAX_COUNT ||
        m->turns > LEDGER_MAX_COUNT || m->rollbacks > LEDGER_MAX_COUNT ||
        m->rows_written > LEDGER_MAX_COUNT || m->state_written > LEDGER_MAX_COUNT ||
        m->rows_tokens > LEDGER_MAX_COUNT)
        return "a count out of range";
    return NULL;
}

const char *
ledger_point_wrong(const struct ledger_point *p, uint64_t len)
{
    if (!is_name(p->label))
        return "a checkpoint's label";
    if (p->pos > len)
        return "a checkpoint behind its end";
    return p->made_ms > LEDGER_MAX_COUNT ? "a checkpoint's time" : NULL;
}

const char *
ledger_file_wrong(const struct ledger_file *f, uint64_t len)
{
    const struct kvfile_about *a = &f->about;

    if (f->bytes == 0 || f->bytes % KVFILE_ALIGN != 0 || f->bytes > LEDGER_MAX_BYTES)
        return "a file's size";
    if (a->pos > len)
        return "a file behind its end";
    if (a->type == KVFILE_STATE)
        return a->n_tokens != 0 || f->n_pages != 0 || a->state_bytes > f->bytes
                   ? "sizes of a state"
                   : NULL;
    if (a->type != KVFILE_CHUNK)
        return "a file's type";
    if (a->pos % KVFILE_PAGE_TOKENS != 0 || a->n_tokens % KVFILE_PAGE_TOKENS != 0 ||
        a->n_tokens == 0 ||
        a->pos % KVFILE_CHUNK_TOKENS + a->n_tokens > KVFILE_CHUNK_TOKENS ||
        a->state_bytes != 0 || a->logits || f->turn)
        return "sizes of a chunk";
    if (f->n_pages > a->n_tokens / KVFILE_PAGE_TOKENS ||
        f->n_pages > (len - a->pos) / KVFILE_PAGE_TOKENS)
        return "pages of a chunk";
    return NULL;
}

void
ledger_meta_read(struct sql_row *r, int col, struct ledger_meta *m)
{
    sql_text(r, col++, m->name, sizeof m->name);
    m->uid = (uint32_t)sql_u64(r, col++, UINT32_MAX);
    m->gid = (uint32_t)sql_u64(r, col++, UINT32_MAX);
    m->mode = (uint32_t)sql_u64(r, col++, UINT32_MAX);
    m->created_ms = sql_u64(r, col++, LEDGER_MAX_COUNT);
    m->used_ms = sql_u64(r, col++, LEDGER_MAX_COUNT);
    m->turns = sql_u64(r, col++, LEDGER_MAX_COUNT);
    m->rollbacks = sql_u64(r, col++, LEDGER_MAX_COUNT);
    m->turn_open = (uint32_t)sql_u64(r, col++, 1);
    m->quarantined = (uint32_t)sql_u64(r, col++, 1);
    sql_blob(r, col++, m->fingerprint, sizeof m->fingerprint);
    m->rows_written = sql_u64(r, col++, LEDGER_MAX_COUNT);
    m->state_written = sql_u64(r, col++, LEDGER_MAX_COUNT);
    m->rows_tokens = sql_u64(r, col, LEDGER_MAX_COUNT);
}

void
ledger_point_read(struct sql_row *r, struct ledger_point *p)
{
    sql_text(r, 0, p->label, sizeof p->label);
    p->automatic = sql_u64(r, 1, 1) != 0;
    p->pos = sql_u64(r, 2, LEDGER_MAX_TOKENS);
    p->made_ms = sql_u64(r, 3, LEDGER_MAX_COUNT);
}

static int
load_meta(struct ledger *l, struct ledger_content *c, struct err *e)
{
    sqlite3_stmt *s = NULL;
    struct sql_row r = {0};
    int rc = sql_prepare(l->db, "SELECT " LEDGER_META_NAMES ", len, one FROM meta", &s, e);

    if (rc == 0)
        rc = sql_step(s, e);
    if (rc == 1) {
        r.s = s;
        ledger_meta_read(&r, 0, &c->meta);
        c->len = sql_u64(&r, LEDGER_META_N, LEDGER_MAX_TOKENS);
        if (r.bad == NULL)
            r.bad = ledger_meta_wrong(&c->meta);
        rc = r.bad != NULL ? damaged(l, "metadata", r.bad, e) : sql_step(s, e);
        if (rc == 1)
            rc = damaged(l, "metadata", "more than one row", e);
    } else if (rc == 0) {
        rc = damaged(l, "metadata", "no row", e);
    }
    sqlite3_finalize(s);
    return rc;
}

/* Rows of a table into an array: as many as there are, each read and checked by one(). */
struct rows {
    const char *what, *select;
    size_t size, most;
    const char *(*one)(struct sql_row *r, void *item, uint64_t len);
};

static int
load_rows(struct ledger *l, const struct rows *t, uint64_t len, void **items, size_t *n,
          struct err *e)
{
    sqlite3_stmt *s = NULL;
    size_t room = 0;
    int rc = sql_prepare(l->db, t->select, &s, e);

    while (rc == 0 && (rc = sql_step(s, e)) == 1) {
        struct sql_row r = {.s = s};
        const char *why;

        if (*n == room) {
            void *p = realloc(*items, (room = room > 0 ? 2 * room : 16) * t->size);

            if (p == NULL) {
                rc = err_set(e, ERR_QUOTA, errno, "no memory for %s", t->what);
                break;
            }
            *items = p;
        }
        why = t->one(&r, (char *)*items + *n * t->size, len);
        if (r.bad != NULL)
            why = r.bad;
        else if (why == NULL && *n == t->most)
            why = "too many";
        rc = why != NULL ? damaged(l, t->what, why, e) : 0;
        ++*n;
    }
    sqlite3_finalize(s);
    return rc;
}

static const char *
one_point(struct sql_row *r, void *item, uint64_t len)
{
    struct ledger_point *p = memset(item, 0, sizeof *p);

    ledger_point_read(r, p);
    sql_u64(r, 4, LEDGER_MAX_COUNT);
    return ledger_point_wrong(p, len);
}

static const char *
one_op(struct sql_row *r, void *item, uint64_t len)
{
    struct ledger_op *o = item;

    (void)len;
    sql_blob(r, 0, o->id, sizeof o->id);
    sql_blob(r, 1, o->body, sizeof o->body);
    sql_u64(r, 2, LEDGER_MAX_COUNT);
    return NULL;
}

static const char *
one_file(struct sql_row *r, void *item, uint64_t len)
{
    struct ledger_file *f = memset(item, 0, sizeof *f);

    sql_blob(r, 0, f->about.id.b, sizeof f->about.id.b);
    f->about.type = (enum kvfile_type)sql_u64(r, 1, KVFILE_STATE);
    f->about.pos = sql_u64(r, 2, LEDGER_MAX_TOKENS);
    f->about.n_tokens = (uint32_t)sql_u64(r, 3, KVFILE_CHUNK_TOKENS);
    f->about.state_bytes = sql_u64(r, 4, LEDGER_MAX_BYTES);
    f->about.logits = sql_u64(r, 5, 1) != 0;
    f->n_pages = (uint32_t)sql_u64(r, 6, KVFILE_CHUNK_TOKENS / KVFILE_PAGE_TOKENS);
    f->turn = sql_u64(r, 7, 1) != 0;
    f->bytes = sql_u64(r, 8, LEDGER_MAX_BYTES);
    return ledger_file_wrong(f, len);
}

static const struct rows point_rows = {"checkpoints", LEDGER_POINTS,
                                       sizeof(struct ledger_point), 1 << 20, one_point};
static const struct rows op_rows = {"operations", "SELECT id, body, n FROM ops ORDER BY n",
                                    sizeof(struct ledger_op), LEDGER_OPS, one_op};
static const struct rows file_rows = {
    "files",
    "SELECT id, type, pos, n_tokens, state_bytes, logits, n_pages, turn, bytes FROM files "
    "ORDER BY type, pos, id",
    sizeof(struct ledger_file), 1 << 20, one_file};

static int
by_label(const void *a, const void *b)
{
    const struct ledger_point *const *x = a, *const *y = b;

    return strcmp((*x)->label, (*y)->label);
}

int
ledger_labels_differ(const struct ledger_content *c)
{
    const struct ledger_point **p = malloc((c->n_points + 1) * sizeof *p);
    int differ = 1;

    if (p == NULL)
        return -1;
    for (size_t i = 0; i < c->n_points; i++)
        p[i] = &c->points[i];
    qsort(p, c->n_points, sizeof *p, by_label);
    for (size_t i = 1; differ && i < c->n_points; i++)
        differ = strcmp(p[i - 1]->label, p[i]->label) != 0;
    free(p);
    return differ;
}

/* Of all blocks, without reading them but for the page that each begins on: what there is must be
 * as many as `len` says. */
static int
count_tokens(struct ledger *l, uint64_t len, struct err *e)
{
    sqlite3_stmt *s = NULL;
    uint64_t bytes = 0, blocks = 0;
    int rc = sql_prepare(
        l->db, "SELECT coalesce(sum(length(ids)), 0), count(*) FROM tokens", &s, e);

    if (rc == 0 && (rc = sql_step(s, e)) == 1) {
        bytes = (uint64_t)sqlite3_column_int64(s, 0);
        blocks = (uint64_t)sqlite3_column_int64(s, 1);
        rc = 0;
    }
    sqlite3_finalize(s);
    if (rc == -1)
        return -1;
    if (bytes != len * sizeof(uint32_t) ||
        blocks != (len + LEDGER_BLOCK_TOKENS - 1) / LEDGER_BLOCK_TOKENS)
        return damaged(l, "tokens", "not as many as it says", e);
    return 0;
}

static int
load_tokens(struct ledger *l, struct ledger_content *c, struct err *e)
{
    sqlite3_stmt *s = NULL;
    uint64_t have = 0;
    int rc = count_tokens(l, c->len, e);

    if (rc == 0 && c->len > 0) {
        c->tokens = malloc(c->len * sizeof *c->tokens);
        if (c->tokens == NULL)
            rc = err_set(e, ERR_QUOTA, errno, "no memory for %" PRIu64 " tokens", c->len);
    }
    if (rc == 0)
        rc = sql_prepare(l->db, "SELECT block, ids FROM tokens ORDER BY block", &s, e);
    while (rc == 0 && (rc = sql_step(s, e)) == 1) {
        const uint64_t left = c->len - have;
        const size_t want = left < LEDGER_BLOCK_TOKENS ? left : LEDGER_BLOCK_TOKENS;
        const void *p = sqlite3_column_blob(s, 1);

        if ((uint64_t)sqlite3_column_int64(s, 0) != have / LEDGER_BLOCK_TOKENS ||
            want == 0 || p == NULL || sqlite3_column_type(s, 1) != SQLITE_BLOB ||
            (size_t)sqlite3_column_bytes(s, 1) != want * sizeof *c->tokens) {
            rc = damaged(l, "tokens", "a block of the wrong size or number", e);
        } else {
            memcpy(c->tokens + have, p, want * sizeof *c->tokens);
            have += want;
            rc = 0;
        }
    }
    sqlite3_finalize(s);
    if (rc == 0 && have != c->len)
        rc = damaged(l, "tokens", "not as many as it says", e);
    return rc;
}

static int
load(struct ledger *l, bool all, struct ledger_content *out, struct err *e)
{
    struct ledger_content c = {0};
    void *points = NULL, *ops = NULL, *files = NULL;
    int rc = load_meta(l, &c, e);

    if (rc == 0)
        rc = load_rows(l, &point_rows, c.len, &points, &c.n_points, e);
    c.points = points;
    if (rc == 0)
        rc = load_rows(l, &file_rows, c.len, &files, &c.n_files, e);
    c.files = files;
    if (rc == 0 && all)
        rc = load_rows(l, &op_rows, c.len, &ops, &c.n_ops, e);
    c.ops = ops;
    if (rc == 0) {
        const int differ = ledger_labels_differ(&c);

        if (differ == 0)
            rc = damaged(l, "checkpoints", "two of one label", e);
        else if (differ == -1)
            rc = err_set(e, ERR_QUOTA, errno, "no memory for checkpoints");
    }
    if (rc == 0)
        rc = all ? load_tokens(l, &c, e) : count_tokens(l, c.len, e);
    if (rc == -1)
        ledger_content_done(&c);
    else
        *out = c;
    return rc;
}

int
ledger_load(struct ledger *l, struct ledger_content *out, struct err *e)
{
    return load(l, true, out, e);
}

int
ledger_brief(struct ledger *l, struct ledger_content *out, struct err *e)
{
    return load(l, false, out, e);
}

void
ledger_content_done(struct ledger_content *c)
{
    free(c->tokens);
    free(c->points);
    free(c->ops);
    free(c->files);
    *c = (struct ledger_content){0};
}
