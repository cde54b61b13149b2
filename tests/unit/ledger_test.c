/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A ledger on a real disk: what was committed is what is loaded, over random changes and against
 * a plain copy in memory; what breaks a rule is refused, written or read; looking changes nothing.
 */
#include "config.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <sqlite3.h>

#include "base/err.h"
#include "base/file.h"
#include "kvstore/catalog.h"
#include "kvstore/io.h"
#include "tests/store_rig.h"
#include "tests/test.h"

static struct io *io;
static char root[32];
static struct err e;

#define OK(call)                               \
    do {                                       \
        if ((call) == -1)                      \
            fail_msg("%s: %s", #call, e.text); \
    } while (0)

static void
make_dir(const char *dir)
{
    OK(io->ops->mkdir(io, dir, &e));
}

/* A ledger with a bit of everything: 2,500 tokens, points, an op, a chunk and a state. */
static void
make(const char *dir)
{
    static uint32_t tokens[2500];
    struct ledger_meta meta;
    struct ledger_point points[2];
    struct ledger_op op;
    struct ledger_file files[2];
    const struct ledger_change first = {.meta = &meta,
                                        .has_tokens = true,
                                        .tokens = tokens,
                                        .n_tokens = 2500,
                                        .has_points = true,
                                        .points = points,
                                        .n_points = 2,
                                        .ops = &op,
                                        .n_ops = 1,
                                        .add = files,
                                        .n_add = 2};
    struct ledger *l;

    rig_meta(&meta, "thesis");
    rig_tokens(tokens, 1, 0, 2500);
    rig_point(&points[0], "turn-1", 700);
    rig_point(&points[1], "draft", 2500);
    rig_op(&op, 1);
    rig_chunk(&files[0], 1, 0, 2432);
    rig_state(&files[1], 2, 2500);
    make_dir(dir);
    OK(ledger_open(io, dir, true, &l, &e));
    OK(ledger_commit(l, &first, &e));
    ledger_close(l);
}

static void
load(const char *dir, struct ledger_content *c)
{
    struct ledger *l;

    OK(ledger_open(io, dir, false, &l, &e));
    OK(ledger_load(l, c, &e));
    ledger_close(l);
}

static void
test_round_trip(void **state)
{
    struct ledger_content c, brief;
    struct ledger *l;

    (void)state;
    make("a");
    load("a", &c);
    assert_int_equal(c.len, 2500);
    for (size_t i = 0; i < c.len; i++)
        assert_int_equal(c.tokens[i], rig_token(1, i));
    assert_int_equal(c.n_points, 2);
    assert_string_equal(c.points[0].label, "turn-1");
    assert_true(c.points[0].automatic);
    assert_string_equal(c.points[1].label, "draft");
    assert_int_equal(c.n_ops, 1);
    assert_int_equal(c.n_files, 2);
    assert_int_equal(c.files[0].n_pages, 19);
    assert_string_equal(c.meta.name, "thesis");
    assert_int_equal(c.meta.mode, 0640);
    OK(ledger_look(io, "a", &l, &e));
    OK(ledger_brief(l, &brief, &e));
    ledger_close(l);
    assert_null(brief.tokens);
    assert_int_equal(brief.len, 2500);
    assert_int_equal(brief.n_files, 2);
    ledger_content_done(&brief);
    ledger_content_done(&c);
    assert_int_equal(ledger_open(io, "a", true, &l, &e), -1);
    assert_int_equal(e.code, ERR_EXISTS);
    assert_int_equal(ledger_open(io, "nowhere", false, &l, &e), -1);
    assert_int_equal(e.code, ERR_NOT_FOUND);
}

/* The same changes to a plain copy. */
struct model {
    struct ledger_content c;
    uint64_t state;
    unsigned n_made;
};

static uint64_t
dice(struct model *m, uint64_t below)
{
    m->state = m->state * 6364136223846793005u + 1442695040888963407u;
    return (m->state >> 33) % below;
}

static void
model_cut(struct model *m, uint64_t to)
{
    size_t k = 0;

    m->c.len = to;
    for (size_t i = 0; i < m->c.n_points; i++) {
        if (m->c.points[i].pos <= to)
            m->c.points[k++] = m->c.points[i];
    }
    m->c.n_points = k;
}

static void
model_op(struct model *m, const struct ledger_op *op)
{
    for (size_t i = 0; i < m->c.n_ops; i++) {
        if (memcmp(m->c.ops[i].id, op->id, sizeof op->id) == 0) {
            m->c.ops[i] = *op;
            return;
        }
    }
    if (m->c.n_ops == LEDGER_OPS)
        memmove(m->c.ops, m->c.ops + 1, --m->c.n_ops * sizeof *m->c.ops);
    m->c.ops[m->c.n_ops++] = *op;
}

static void
step(struct ledger *l, struct model *m)
{
    static uint32_t tokens[4000];
    struct ledger_op ops[20];
    struct ledger_change c = {.meta = dice(m, 3) == 0 ? &m->c.meta : NULL};

    if (c.meta != NULL)
        m->c.meta.turns++;
    if (dice(m, 4) != 0) {
        c.has_tokens = true;
        c.n_tokens = dice(m, 5) == 0 ? dice(m, 4000) : dice(m, 40);
        c.from = dice(m, 4) == 0 ? dice(m, m->c.len + 1) : m->c.len;
        if (c.from < m->c.len) {
            model_cut(m, c.from);
            c.has_points = true;
        }
        rig_tokens(tokens, ++m->n_made, c.from, c.n_tokens);
        memcpy(m->c.tokens + c.from, tokens, c.n_tokens * sizeof *tokens);
        m->c.len += c.n_tokens;
        c.tokens = tokens;
    }
    if (dice(m, 2) == 0) {
        char label[16];

        snprintf(label, sizeof label, "turn-%u", ++m->n_made);
        if (m->c.n_points == 12)
            memmove(m->c.points, m->c.points + 1, --m->c.n_points * sizeof *m->c.points);
        rig_point(&m->c.points[m->c.n_points++], label, m->c.len);
        c.has_points = true;
    }
    c.points = m->c.points;
    c.n_points = m->c.n_points;
    c.ops = ops;
    for (c.n_ops = dice(m, 20); c.n_ops > 0 && dice(m, 8) != 0; c.n_ops--)
        continue;
    for (size_t i = 0; i < c.n_ops; i++) {
        rig_op(&ops[i], (unsigned)dice(m, 400));
        ops[i].body[0] = (uint8_t)++m->n_made;
        model_op(m, &ops[i]);
    }
    OK(ledger_commit(l, &c, &e));
}

static void
test_random_changes(void **state)
{
    struct model m = {.state = 7};
    struct ledger_content c;
    struct ledger *l;
    struct ledger_change first = {.meta = &m.c.meta};

    (void)state;
    m.c.tokens = calloc(1 << 20, sizeof *m.c.tokens);
    m.c.points = calloc(16, sizeof *m.c.points);
    m.c.ops = calloc(LEDGER_OPS + 1, sizeof *m.c.ops);
    rig_meta(&m.c.meta, "random");
    make_dir("r");
    OK(ledger_open(io, "r", true, &l, &e));
    OK(ledger_commit(l, &first, &e));
    for (int i = 0; i < 300; i++) {
        step(l, &m);
        if (i % 10 == 0 || i == 299) {
            const char *differ;

            if (dice(&m, 2) == 0) {
                ledger_close(l);
                OK(ledger_open(io, "r", false, &l, &e));
            }
            OK(ledger_load(l, &c, &e));
            differ = rig_differ(&c, &m.c);
            if (differ != NULL)
                fail_msg("after %d changes: %s", i, differ);
            ledger_content_done(&c);
        }
    }
    ledger_close(l);
    free(m.c.tokens);
    free(m.c.points);
    free(m.c.ops);
}

/* A change that could not be read back changes nothing, and the ledger goes on. */
static void
test_refused_changes(void **state)
{
    struct ledger_content before, after;
    struct ledger_meta bad_name, bad_mode;
    struct ledger_point bad_label, bad_pos, early;
    struct ledger_file bad_chunk, bad_state, late, good;
    uint32_t token = 5;
    const struct ledger_change changes[] = {
        {.meta = &bad_name},
        {.meta = &bad_mode},
        {.has_points = true, .points = &bad_label, .n_points = 1},
        {.has_points = true, .points = &bad_pos, .n_points = 1},
        {.add = &bad_chunk, .n_add = 1},
        {.add = &bad_state, .n_add = 1},
        {.add = &late, .n_add = 1},
        {.has_tokens = true, .from = 2501, .tokens = &token, .n_tokens = 1},
        {.has_tokens = true, .from = 600}, /* points and files would be behind its end */
        {.has_tokens = true,
         .from = 2499,
         .has_points = true,
         .points = &early,
         .n_points = 1},
    };
    struct ledger *l;

    (void)state;
    rig_meta(&bad_name, "../up");
    rig_meta(&bad_mode, "x");
    bad_mode.mode = 01777;
    rig_point(&bad_label, "a b", 1);
    rig_point(&bad_pos, "ab", 2501);
    rig_point(&early, "early", 1);
    rig_chunk(&bad_chunk, 9, 64, 128);
    rig_state(&bad_state, 9, 2501);
    rig_chunk(&late, 9, 2432, 128);
    late.n_pages = 1; /* of which there are 68 tokens */
    make("f");
    load("f", &before);
    OK(ledger_open(io, "f", false, &l, &e));
    for (size_t i = 0; i < sizeof changes / sizeof changes[0]; i++) {
        if (ledger_commit(l, &changes[i], &e) != -1 || e.code != ERR_INTERNAL)
            fail_msg("change %zu: %s", i, e.text);
        OK(ledger_load(l, &after, &e));
        assert_null(rig_differ(&before, &after));
        ledger_content_done(&after);
    }
    rig_chunk(&good, 9, 2432, 128);
    good.n_pages = 0;
    OK(ledger_commit(l, &(struct ledger_change){.add = &good, .n_add = 1}, &e));
    ledger_close(l);
    ledger_content_done(&before);
}

static void
run_sql(const char *dir, const char *sql)
{
    char path[128], *text = NULL;
    sqlite3 *db;

    snprintf(path, sizeof path, "%s/%s/session.db", root, dir);
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    if (sqlite3_exec(db, sql, NULL, NULL, &text) != SQLITE_OK)
        fail_msg("%s: %s", sql, text);
    assert_int_equal(sqlite3_close(db), SQLITE_OK);
    rig_seal_pages(path);
}

static const char *const lies[] = {
    "UPDATE meta SET len = 2499",
    "UPDATE meta SET len = 9223372036854775807",
    "UPDATE meta SET len = -1",
    "UPDATE meta SET name = '../../etc'",
    "UPDATE meta SET name = ''",
    "UPDATE meta SET name = 'a' || char(0) || 'b'",
    "UPDATE meta SET uid = 4294967296",
    "UPDATE meta SET mode = 4095",
    "UPDATE meta SET turn_open = 2",
    "UPDATE meta SET fingerprint = x'00'",
    "INSERT INTO meta SELECT 2, name, uid, gid, mode, created_ms, used_ms, turns, rollbacks, "
    "turn_open, quarantined, fingerprint, rows_written, state_written, rows_tokens, len "
    "FROM meta",
    "DELETE FROM meta",
    "DELETE FROM tokens WHERE block = 1",
    "DELETE FROM tokens",
    "INSERT INTO tokens VALUES (7, x'00000000')",
    "UPDATE tokens SET block = 5 WHERE block = 1",
    "UPDATE tokens SET block = -5 WHERE block = 0",
    "UPDATE tokens SET ids = zeroblob(1999) WHERE block = 2",
    "UPDATE tokens SET ids = CASE block WHEN 0 THEN zeroblob(3996) WHEN 1 THEN zeroblob(4004) "
    "ELSE ids END",
    "UPDATE points SET pos = 2501",
    "UPDATE points SET label = 'a/b' WHERE n = 1",
    "UPDATE points SET label = 'draft'",
    "UPDATE points SET automatic = 3",
    "UPDATE ops SET id = x'01'",
    "UPDATE ops SET body = zeroblob(65)",
    "WITH RECURSIVE k(n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM k LIMIT 256) INSERT INTO ops "
    "SELECT n, zeroblob(16), zeroblob(64) FROM k",
    "UPDATE files SET bytes = 1",
    "UPDATE files SET bytes = 0",
    "UPDATE files SET type = 3",
    "UPDATE files SET pos = pos + 4096",
    "UPDATE files SET pos = 64 WHERE type = 1",
    "UPDATE files SET n_tokens = 4224 WHERE type = 1",
    "UPDATE files SET n_tokens = 0 WHERE type = 1",
    "UPDATE files SET n_pages = 20 WHERE type = 1",
    "UPDATE files SET n_pages = 1 WHERE type = 2",
    "UPDATE files SET state_bytes = 1 << 40 WHERE type = 2",
    "UPDATE files SET logits = 2",
    "UPDATE files SET turn = 1",
    "UPDATE files SET id = x'00' WHERE type = 1",
    "PRAGMA user_version = 0",
    "PRAGMA application_id = 1",
    "CREATE TABLE more (x)",
    "CREATE INDEX i ON tokens (ids)",
    "CREATE VIEW v AS SELECT 1",
    "CREATE TRIGGER t AFTER UPDATE ON meta BEGIN DELETE FROM tokens; END",
    "DROP TABLE ops",
    "DROP TABLE ops; CREATE TABLE ops (n INTEGER PRIMARY KEY, id, body)",
};

static int
try_load(const char *dir)
{
    struct ledger_content c;
    struct ledger *l;
    int rc;

    if (ledger_open(io, dir, false, &l, &e) == -1)
        return -1;
    rc = ledger_load(l, &c, &e);
    if (rc == 0)
        ledger_content_done(&c);
    ledger_close(l);
    return rc;
}

static void
copy_file(const char *from, const char *to)
{
    size_t n;
    char *p = file_read(from, 1 << 24, &n, &e);
    FILE *f = fopen(to, "w");

    assert_non_null(p);
    assert_non_null(f);
    assert_int_equal(fwrite(p, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
    free(p);
}

/* 1: as `want`; 0: something else; -1: refused. */
static int
load_and_compare(const char *dir, const struct ledger_content *want)
{
    struct ledger_content c;
    struct ledger *l;
    int rc;

    if (ledger_look(io, dir, &l, &e) == -1)
        return -1;
    rc = ledger_load(l, &c, &e);
    if (rc == 0) {
        rc = rig_differ(&c, want) == NULL;
        ledger_content_done(&c);
    }
    ledger_close(l);
    return rc;
}

static void
flip(const char *path, long at)
{
    FILE *f = fopen(path, "r+");
    int c;

    assert_non_null(f);
    assert_int_equal(fseek(f, at, SEEK_SET), 0);
    c = fgetc(f);
    assert_int_equal(fseek(f, at, SEEK_SET), 0);
    fputc(c ^ (1 << at % 8), f);
    assert_int_equal(fclose(f), 0);
}

/* One bit anywhere in session.db: refused, or it does not matter; never something else. As the
 * control, with checksums made anew, many of them would be believed. */
static void
test_flips(void **state)
{
    struct ledger_content want;
    unsigned refused = 0, same = 0, believed = 0;
    char from[64], to[64];
    struct ledger *l;
    size_t n;

    (void)state;
    make("flip");
    make_dir("flop");
    OK(ledger_look(io, "flip", &l, &e));
    OK(ledger_load(l, &want, &e));
    ledger_close(l);
    snprintf(from, sizeof from, "%s/flip/session.db", root);
    snprintf(to, sizeof to, "%s/flop/session.db", root);
    free(file_read(from, 1 << 24, &n, &e));
    assert_true(n >= 8 * 4096);
    for (size_t at = 0; at < n; at += at < 100 ? 1 : 53) {
        int rc;

        copy_file(from, to);
        flip(to, (long)at);
        rc = load_and_compare("flop", &want);
        if (rc == 0 || (rc == -1 && e.code != ERR_DAMAGED))
            fail_msg("byte %zu: %s", at, rc == 0 ? "it is believed" : e.text);
        refused += rc == -1;
        same += rc == 1;
        if (at % 3 == 0) {
            rig_seal_pages(to);
            believed += load_and_compare("flop", &want) == 0;
        }
    }
    print_message("%u flips refused, %u without effect; with new checksums %u believed\n",
                  refused, same, believed);
    assert_true(refused > 500 && believed > 50);
    ledger_content_done(&want);
}

/* Each lie is told of a fresh copy; refused with a text that names the folder. */
static void
test_lies(void **state)
{
    char from[64], to[64];

    (void)state;
    make("l");
    make_dir("m");
    snprintf(from, sizeof from, "%s/l/session.db", root);
    snprintf(to, sizeof to, "%s/m/session.db", root);
    copy_file(from, to);
    OK(try_load("m"));
    for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
        copy_file(from, to);
        run_sql("m", lies[i]);
        if (try_load("m") != -1 || e.code != ERR_DAMAGED)
            fail_msg("%s: %s", lies[i], e.text);
        assert_non_null(strstr(e.text, "m/session.db"));
    }
    copy_file(from, to);
    assert_int_equal(truncate(to, 0), 0);
    assert_int_equal(try_load("m"), -1);
    assert_int_equal(e.code, ERR_DAMAGED);
    /* Of a newer fathomd's: nothing is wrong with it. */
    copy_file(from, to);
    run_sql("m", "PRAGMA user_version = 2");
    assert_int_equal(try_load("m"), -1);
    assert_int_equal(e.code, ERR_MODEL_MISMATCH);
    assert_non_null(strstr(e.text, "newer"));
}

/* A folder whose ledger nobody closed: the WAL counts, and the pages are looked at. */
static void
test_unclean(void **state)
{
    const uint32_t token = 77;
    const struct ledger_change more = {
        .has_tokens = true, .from = 2500, .tokens = &token, .n_tokens = 1};
    struct ledger_content c;
    struct ledger *l;
    char path[2][2][64];
    struct stat st;
    FILE *f;

    (void)state;
    make("u");
    make_dir("w");
    OK(ledger_open(io, "u", false, &l, &e));
    OK(ledger_commit(l, &more, &e));
    for (int i = 0; i < 2; i++) {
        snprintf(path[0][i], 64, "%s/u/session.db%s", root, i ? "-wal" : "");
        snprintf(path[1][i], 64, "%s/w/session.db%s", root, i ? "-wal" : "");
        copy_file(path[0][i], path[1][i]);
    }
    ledger_close(l);
    assert_int_equal(stat(path[0][1], &st), -1);
    load("w", &c);
    assert_int_equal(c.len, 2501);
    assert_int_equal(c.tokens[2500], 77);
    ledger_content_done(&c);
    assert_int_equal(stat(path[1][1], &st), -1);

    /* The same with a page of the tokens overwritten that the WAL does not have. */
    OK(ledger_open(io, "u", false, &l, &e));
    OK(ledger_commit(l, &(struct ledger_change){.has_tokens = true, .from = 2500}, &e));
    for (int i = 0; i < 2; i++)
        copy_file(path[0][i], path[1][i]);
    ledger_close(l);
    f = fopen(path[1][0], "r+");
    assert_non_null(f);
    assert_int_equal(fseek(f, -8192, SEEK_END), 0);
    for (int i = 0; i < 4096; i++)
        fputc(0xff, f);
    assert_int_equal(fclose(f), 0);
    assert_int_equal(ledger_open(io, "w", false, &l, &e), -1);
    assert_int_equal(e.code, ERR_DAMAGED);
    assert_non_null(strstr(e.text, "quick_check"));
}

static void
folder_bytes(const char *dir, char *text, size_t room)
{
    struct dirent **names;
    char path[512];
    const int n = (snprintf(path, sizeof path, "%s/%s", root, dir),
                   scandir(path, &names, NULL, alphasort));
    size_t used = 0;

    for (int i = 0; i < n; i++) {
        if (names[i]->d_name[0] != '.') {
            size_t bytes;
            uint32_t sum = 0;
            char *p;

            snprintf(path, sizeof path, "%s/%s/%s", root, dir, names[i]->d_name);
            p = file_read(path, 1 << 24, &bytes, &e);
            assert_non_null(p);
            for (size_t k = 0; k < bytes; k++)
                sum = sum * 31 + (uint8_t)p[k];
            used += (size_t)snprintf(text + used, room - used, "%s %zu %x\n",
                                     names[i]->d_name, bytes, sum);
            free(p);
        }
        free(names[i]);
    }
    free(names);
}

static void
look_at(const char *dir)
{
    char before[512] = "", after[512] = "";
    const uint32_t token = 1;
    struct ledger_content c;
    struct ledger *l;

    folder_bytes(dir, before, sizeof before);
    OK(ledger_look(io, dir, &l, &e));
    OK(ledger_load(l, &c, &e));
    assert_int_equal(ledger_commit(l,
                                   &(struct ledger_change){.has_tokens = true,
                                                           .from = c.len,
                                                           .tokens = &token,
                                                           .n_tokens = 1},
                                   &e),
                     -1);
    ledger_content_done(&c);
    ledger_close(l);
    folder_bytes(dir, after, sizeof after);
    assert_string_equal(before, after);
}

static void
test_look(void **state)
{
    const uint32_t token = 77;
    char from[64], to[64];
    struct ledger *l;

    (void)state;
    make("k");
    look_at("k");
    OK(ledger_open(io, "k", false, &l, &e));
    OK(ledger_commit(l,
                     &(struct ledger_change){
                         .has_tokens = true, .from = 2500, .tokens = &token, .n_tokens = 1},
                     &e));
    make_dir("kk");
    for (int i = 0; i < 2; i++) {
        snprintf(from, sizeof from, "%s/k/session.db%s", root, i ? "-wal" : "");
        snprintf(to, sizeof to, "%s/kk/session.db%s", root, i ? "-wal" : "");
        copy_file(from, to);
    }
    ledger_close(l);
    look_at("kk");
}

/* Runs of white space are one space. */
static void
squeeze(char *s)
{
    char *const start = s, *to = s;

    for (; *s != '\0'; s++) {
        if (strchr(" \n\t", *s) == NULL)
            *to++ = *s;
        else if (to > start && to[-1] != ' ')
            *to++ = ' ';
    }
    *to = '\0';
}

/* docs/KVFORMAT.md has the schema of this database. */
static void
documented(const char *name, const char *doc)
{
    char path[128];
    sqlite3_stmt *s;
    sqlite3 *db;
    int n = 0;

    snprintf(path, sizeof path, "%s/%s", root, name);
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    assert_int_equal(sqlite3_prepare_v2(db, "SELECT sql FROM sqlite_schema", -1, &s, NULL),
                     SQLITE_OK);
    for (; sqlite3_step(s) == SQLITE_ROW; n++) {
        char sql[2000];

        snprintf(sql, sizeof sql, "%s", (const char *)sqlite3_column_text(s, 0));
        squeeze(sql);
        if (strstr(doc, sql) == NULL)
            fail_msg("docs/KVFORMAT.md says other than %s", sql);
    }
    assert_true(n >= 2);
    sqlite3_finalize(s);
    sqlite3_close(db);
}

static void
test_docs(void **state)
{
    const char *top = getenv("srcdir") != NULL ? getenv("srcdir") : ".";
    struct catalog *c;
    char path[4096], *doc;
    size_t n;

    (void)state;
    snprintf(path, sizeof path, "%s/docs/KVFORMAT.md", top);
    doc = file_read(path, 1 << 20, &n, &e);
    if (doc == NULL)
        fail_msg("%s", e.text);
    squeeze(doc);
    OK(catalog_open(io, &c, &e));
    catalog_close(c);
    make("d");
    documented("d/session.db", doc);
    documented("index.db", doc);
    free(doc);
}

static int
setup(void **state)
{
    (void)state;
    io = rig_folder(root);
    return 0;
}

static int
teardown(void **state)
{
    (void)state;
    rig_folder_done(io, root);
    return 0;
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_random_changes),
        cmocka_unit_test(test_refused_changes),
        cmocka_unit_test(test_lies),
        cmocka_unit_test(test_flips),
        cmocka_unit_test(test_unclean),
        cmocka_unit_test(test_look),
        cmocka_unit_test(test_docs),
    };

    return cmocka_run_group_tests_name("ledger", tests, setup, teardown);
}
