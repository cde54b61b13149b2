/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The catalogue on a real disk: what is in the folders is what it lists, whatever index.db says;
 * folders come and go as a whole; forks share files; sweeping takes what nobody names and no more.
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <sqlite3.h>

#include "base/err.h"
#include "kvstore/catalog.h"
#include "kvstore/catalog_impl.h"
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

struct list {
    struct catalog_entry v[16];
    size_t n;
};

static int
take(void *arg, const struct catalog_entry *en)
{
    struct list *l = arg;

    assert_true(l->n < 16);
    l->v[l->n++] = *en;
    return 0;
}

static const struct catalog_entry *
find(const struct list *l, const struct kvfile_id *id)
{
    for (size_t i = 0; i < l->n; i++) {
        if (memcmp(&l->v[i].id, id, sizeof *id) == 0)
            return &l->v[i];
    }
    return NULL;
}

static struct list
listed(struct catalog *c)
{
    struct list l = {.n = 0};

    OK(catalog_each(c, take, &l, &e));
    return l;
}

static struct catalog *
open_it(void)
{
    struct catalog *c;

    OK(catalog_open(io, &c, &e));
    return c;
}

static void
make(struct catalog *c, unsigned n, const char *name, struct kvfile_id *id)
{
    static uint32_t tokens[1200];
    struct ledger_meta meta;
    const struct ledger_change first = {
        .meta = &meta, .has_tokens = true, .tokens = tokens, .n_tokens = 1200};

    rig_id(id, n);
    rig_meta(&meta, name);
    rig_tokens(tokens, n, 0, 1200);
    OK(catalog_create(c, id, &first, &e));
}

static void
path_of(const struct kvfile_id *id, const char *name, char path[256])
{
    char dir[CATALOG_DIR_MAX];

    catalog_dir(id, dir);
    snprintf(path, 256, "%s/%s/%s", root, dir, name);
}

static void
write_file(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");

    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
}

static bool
is_there(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0;
}

/* Only an empty folder can be removed. */
static bool
holds_some(const char *folder)
{
    char path[64];

    snprintf(path, sizeof path, "%s/%s", root, folder);
    if (rmdir(path) == -1)
        return true;
    assert_int_equal(mkdir(path, 0700), 0);
    return false;
}

static void
sweep(struct catalog *c)
{
    int rc, n = 0;

    while ((rc = catalog_sweep(c, &e)) == 1 && ++n < 1000)
        continue;
    if (rc != 0)
        fail_msg("sweep: %s", rc == 1 ? "no end" : e.text);
}

static void
test_list(void **state)
{
    struct catalog *c = open_it(), *other;
    struct kvfile_id id[3];
    struct ledger_meta meta;
    const struct ledger_change first = {.meta = &meta};
    struct list l;

    (void)state;
    assert_int_equal(listed(c).n, 0);
    make(c, 1, "one", &id[0]);
    make(c, 2, "two", &id[1]);
    make(c, 0x101, "three", &id[2]); /* on the shelf of the first */
    assert_int_equal(catalog_open(io, &other, &e), -1);
    assert_int_equal(e.code, ERR_BUSY);
    for (int i = 0; i < 2; i++) {
        l = listed(c);
        assert_int_equal(l.n, 3);
        assert_string_equal(find(&l, &id[1])->meta.name, "two");
        assert_int_equal(find(&l, &id[2])->len, 1200);
        assert_true(find(&l, &id[2])->disk_bytes >= 4800);
        catalog_close(c);
        c = open_it();
    }
    rig_meta(&meta, "again");
    assert_int_equal(catalog_create(c, &id[1], &first, &e), -1);
    assert_int_equal(e.code, ERR_EXISTS);
    catalog_close(c);
}

static void
no_session(const struct kvfile_id *id)
{
    char path[256];

    path_of(id, "", path);
    assert_false(is_there(path));
}

/* Of a session that was hot, the index is told nothing: it looks. */
static void
test_hot(void **state)
{
    struct catalog *c = open_it();
    struct kvfile_id id;
    struct ledger_meta meta;
    struct ledger *l;
    struct list list;
    char dir[CATALOG_DIR_MAX];
    const struct ledger_change change = {.meta = &meta, .has_tokens = true, .from = 10};

    (void)state;
    make(c, 10, "before", &id);
    OK(catalog_hot(c, &id, true, &e));
    OK(catalog_hot(c, &id, true, &e));
    catalog_dir(&id, dir);
    OK(ledger_open(io, dir, false, &l, &e));
    rig_meta(&meta, "after");
    OK(ledger_commit(l, &change, &e));
    ledger_close(l);
    list = listed(c);
    assert_string_equal(find(&list, &id)->meta.name, "before");
    catalog_close(c);
    c = open_it();
    list = listed(c);
    assert_string_equal(find(&list, &id)->meta.name, "after");
    assert_int_equal(find(&list, &id)->len, 10);

    /* Noted and cold: then what was noted is what is listed. */
    OK(catalog_hot(c, &id, true, &e));
    list.v[0] = *find(&list, &id);
    list.v[0].len = 11;
    OK(catalog_note(c, &list.v[0], &e));
    OK(catalog_hot(c, &id, false, &e));
    catalog_close(c);
    c = open_it();
    list = listed(c);
    assert_int_equal(find(&list, &id)->len, 11);
    OK(catalog_delete(c, &id, &e));
    catalog_close(c);
}

static void
garbage(const char *path)
{
    FILE *f = fopen(path, "r+");

    assert_non_null(f);
    for (int i = 0; i < 20000; i++)
        fputc(i * 7 + 3, f);
    assert_int_equal(fclose(f), 0);
}

static void
index_sql(const char *text)
{
    char path[64];
    sqlite3 *db;

    snprintf(path, sizeof path, "%s/index.db", root);
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    if (sqlite3_exec(db, text, NULL, NULL, NULL) != SQLITE_OK)
        fail_msg("%s: %s", text, sqlite3_errmsg(db));
    assert_int_equal(sqlite3_close(db), SQLITE_OK);
    rig_seal_pages(path);
}

/* The index is a cache: whatever happens to it, the folders say the same again. */
static void
test_index_lost(void **state)
{
    static const char *const lies[] = {
        "UPDATE sessions SET name = '/'",
        "UPDATE sessions SET id = x'00' WHERE name = 'x'",
        "UPDATE sessions SET damaged = 7",
        "INSERT INTO hot VALUES (x'01')",
        "PRAGMA user_version = 9",
        "DROP TABLE hot",
        "UPDATE sessions SET len = -1",
        "DELETE FROM sessions",
        "PRAGMA writable_schema=ON; UPDATE sqlite_schema SET sql = replace(sql, ' STRICT,', '')",
    };
    const size_t n_lies = sizeof lies / sizeof lies[0];
    struct catalog *c = open_it();
    struct kvfile_id id[2];
    char path[64];

    (void)state;
    make(c, 20, "x", &id[0]);
    make(c, 21, "y", &id[1]);
    catalog_close(c);
    snprintf(path, sizeof path, "%s/index.db", root);
    for (size_t i = 0; i < n_lies + 3; i++) {
        struct list l;

        if (i == 0)
            assert_int_equal(unlink(path), 0);
        else if (i == 1)
            garbage(path);
        else if (i == 2)
            assert_int_equal(truncate(path, 0), 0);
        else
            index_sql(lies[i - 3]);
        c = open_it();
        l = listed(c);
        if (find(&l, &id[0]) == NULL || find(&l, &id[1]) == NULL ||
            strcmp(find(&l, &id[0])->meta.name, "x") != 0 || find(&l, &id[1])->len != 1200)
            fail_msg("index %zu", i);
        catalog_close(c);
    }
    c = open_it();
    OK(catalog_delete(c, &id[0], &e));
    OK(catalog_delete(c, &id[1], &e));
    catalog_close(c);
}

/* Folders that come, go and break without our doing. */
static void
test_folders_by_hand(void **state)
{
    struct catalog *c = open_it();
    struct kvfile_id id, copy;
    char from[256], to[256], command[600];
    struct list l;

    (void)state;
    make(c, 30, "orig", &id);
    rig_id(&copy, 31);
    catalog_close(c);
    path_of(&id, "", from);
    path_of(&copy, "", to);
    snprintf(command, sizeof command, "mkdir -p $(dirname %s) && cp -a %s %s", to, from,
             to);
    assert_int_equal(system(command), 0);
    snprintf(command, sizeof command, "mkdir %s/sessions/zz %s/sessions/1e/no-uuid", root,
             root);
    assert_int_equal(system(command), 0);
    c = open_it();
    l = listed(c);
    assert_string_equal(find(&l, &copy)->meta.name, "orig");
    catalog_close(c);

    path_of(&copy, "session.db", to);
    garbage(to);
    c = open_it();
    l = listed(c);
    assert_false(find(&l, &copy)->damaged); /* it was not hot: nobody looks */
    OK(catalog_hot(c, &copy, true, &e));
    catalog_close(c);
    for (int i = 0; i < 2; i++) { /* and again: damage is not taken for granted */
        c = open_it();
        l = listed(c);
        assert_true(find(&l, &copy)->damaged);
        assert_string_equal(find(&l, &copy)->meta.name, "orig");
        assert_non_null(strstr(find(&l, &copy)->why, "session.db"));
        catalog_close(c);
    }
    path_of(&id, "session.db", from);
    snprintf(command, sizeof command, "cp %s %s", from, to);
    assert_int_equal(system(command), 0);
    c = open_it();
    l = listed(c);
    assert_false(find(&l, &copy)->damaged);
    catalog_close(c);

    path_of(&copy, "", to);
    snprintf(command, sizeof command, "rm -r %s", to);
    assert_int_equal(system(command), 0);
    c = open_it();
    l = listed(c);
    assert_null(find(&l, &copy));
    assert_non_null(find(&l, &id));
    OK(catalog_delete(c, &id, &e));
    catalog_close(c);
}

static int
no_more_links(struct io *me, const char *from, const char *to, struct err *err)
{
    (void)me;
    (void)to;
    return err_set(err, ERR_INTERNAL, EMLINK, "%s: too many links", from);
}

/* A session with two chunks and a state, whose files have their names as content. */
static void
make_with_files(struct catalog *c, unsigned n, struct kvfile_id *id,
                struct ledger_file f[3])
{
    struct ledger_change add = {.add = f, .n_add = 3};
    char dir[CATALOG_DIR_MAX], name[KVFILE_NAME_MAX], path[256];
    struct ledger *l;

    make(c, n, "files", id);
    rig_chunk(&f[0], 1, 0, 1024);
    rig_chunk(&f[1], 2, 1024, 128);
    rig_state(&f[2], 3, 1200);
    for (int i = 0; i < 3; i++) {
        f[i].bytes = 4096;
        kvfile_name(&f[i].about, name);
        path_of(id, name, path);
        write_file(path, name);
        assert_int_equal(truncate(path, 4096), 0);
    }
    OK(catalog_hot(c, id, true, &e));
    catalog_dir(id, dir);
    OK(ledger_open(io, dir, false, &l, &e));
    f[2].about.state_bytes = 1;
    OK(ledger_commit(l, &add, &e));
    ledger_close(l);
    OK(catalog_hot(c, id, false, &e));
}

static void
test_fork(void **state)
{
    struct catalog *c = open_it();
    struct kvfile_id id, copy, linked;
    struct ledger_file f[3];
    struct ledger_meta meta;
    struct ledger_change first = {.meta = &meta, .add = f, .n_add = 2, .has_tokens = true};
    static uint32_t tokens[1200];
    const struct io_ops *real = io->ops;
    struct io_ops full = *real;
    char name[KVFILE_NAME_MAX], path[256];
    struct stat st;

    (void)state;
    make_with_files(c, 40, &id, f);
    rig_meta(&meta, "fork");
    rig_tokens(tokens, 40, 0, 1200);
    first.tokens = tokens;
    first.n_tokens = 1200;
    rig_id(&linked, 41);
    OK(catalog_fork(c, &id, &linked, &first, &e));
    full.link = no_more_links;
    io->ops = &full;
    rig_id(&copy, 42);
    OK(catalog_fork(c, &id, &copy, &first, &e));
    io->ops = real;

    kvfile_name(&f[0].about, name);
    path_of(&linked, name, path);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_nlink, 2);
    path_of(&copy, name, path);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_nlink, 1);
    assert_int_equal(st.st_size, 4096);

    OK(catalog_delete(c, &id, &e));
    no_session(&id);
    sweep(c);
    assert_false(holds_some("trash"));
    path_of(&linked, name, path);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_nlink, 1);

    /* A file that is missing: no fork. */
    first.n_add = 3;
    rig_id(&id, 43);
    assert_int_equal(catalog_fork(c, &linked, &id, &first, &e), -1);
    assert_int_equal(e.code, ERR_NOT_FOUND);
    no_session(&id);
    assert_true(holds_some("tmp"));
    sweep(c);
    assert_false(holds_some("tmp"));
    OK(catalog_delete(c, &linked, &e));
    OK(catalog_delete(c, &copy, &e));
    catalog_close(c);
}

static void
test_orphans(void **state)
{
    struct catalog *c = open_it();
    struct ledger_file f[3];
    struct kvfile_id id;
    char orphan[2][256], kept[256], name[KVFILE_NAME_MAX];

    (void)state;
    make_with_files(c, 50, &id, f);
    path_of(&id, "c/00000000-nobody.kvc", orphan[0]);
    path_of(&id, "k/left", orphan[1]);
    kvfile_name(&f[0].about, name);
    path_of(&id, name, kept);
    OK(catalog_hot(c, &id, true, &e));
    write_file(orphan[0], "x");
    write_file(orphan[1], "x");
    sweep(c); /* hot: they may be on their way in */
    assert_true(is_there(orphan[0]) && is_there(orphan[1]));
    OK(catalog_hot(c, &id, false, &e));
    sweep(c);
    assert_false(is_there(orphan[0]) || is_there(orphan[1]));
    assert_true(is_there(kept));
    write_file(orphan[0], "x");
    sweep(c); /* once only: nobody has been writing there */
    assert_true(is_there(orphan[0]));
    catalog_close(c);
    c = open_it();
    OK(catalog_hot(c, &id, true, &e));
    write_file(orphan[0], "x");
    catalog_close(c); /* in the middle of it: a crash, to the next one */
    c = open_it();
    sweep(c);
    assert_false(is_there(orphan[0]));
    assert_true(is_there(kept));
    OK(catalog_delete(c, &id, &e));
    catalog_close(c);
}

static void
test_building_is_not_swept(void **state)
{
    struct catalog *c = open_it();
    char dir[CATALOG_DIR_MAX];
    struct kvfile_id id;

    (void)state;
    rig_id(&id, 60);
    OK(catalog_build_begin(c, &id, dir, &e));
    sweep(c);
    assert_true(holds_some("tmp"));
    catalog_build_drop(c, &id);
    sweep(c);
    assert_false(holds_some("tmp"));
    catalog_close(c);
}

static void
test_quarantine(void **state)
{
    struct catalog *c = open_it();
    struct kvfile_id id;
    char path[256];

    (void)state;
    make(c, 70, "bad", &id);
    OK(catalog_quarantine(c, &id, "it would not load", &e));
    no_session(&id);
    assert_true(holds_some("quarantine"));
    snprintf(path, sizeof path, "grep -q 'would not load' %s/quarantine/*/why", root);
    assert_int_equal(system(path), 0);
    catalog_close(c);
    c = open_it();
    assert_null(find(&(struct list){0}, &id));
    assert_int_equal(catalog_delete(c, &id, &e), -1);
    assert_int_equal(e.code, ERR_NOT_FOUND);
    catalog_close(c);
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

/* A copy to look at: files shared, the ledger its own, left alone by sweeps until it is given up,
 * whatever happens to the session. */
static void
test_copy(void **state)
{
    struct catalog *c = open_it();
    struct kvfile_id id, copy, none;
    char path[256], dir[CATALOG_DIR_MAX], in_copy[512];
    struct stat st;

    (void)state;
    make(c, 50, "original", &id);
    path_of(&id, "c/00000000-a.kvc", path);
    write_file(path, "a chunk");
    rig_id(&none, 51);
    assert_int_equal(catalog_copy(c, &none, true, &copy, dir, &e), -1);
    assert_int_equal(e.code, ERR_NOT_FOUND);

    OK(catalog_copy(c, &id, true, &copy, dir, &e));
    snprintf(in_copy, sizeof in_copy, "%s/%s/c/00000000-a.kvc", root, dir);
    assert_int_equal(stat(in_copy, &st), 0);
    assert_int_equal(st.st_nlink, 2);
    snprintf(in_copy, sizeof in_copy, "%s/%s/session.db", root, dir);
    assert_int_equal(stat(in_copy, &st), 0);
    assert_int_equal(st.st_nlink, 1);
    OK(catalog_delete(c, &id, &e));
    sweep(c);
    assert_int_equal(stat(in_copy, &st), 0);
    catalog_copy_end(c, &copy);
    sweep(c);
    assert_int_equal(stat(in_copy, &st), -1);
    assert_false(holds_some("tmp"));

    make(c, 52, "another", &id);
    OK(catalog_copy(c, &id, false, &copy, dir, &e));
    snprintf(in_copy, sizeof in_copy, "%s/%s/session.db", root, dir);
    assert_int_equal(stat(in_copy, &st), -1);
    catalog_copy_end(c, &copy);
    OK(catalog_delete(c, &id, &e));
    catalog_close(c);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_list, setup, teardown),
        cmocka_unit_test_setup_teardown(test_hot, setup, teardown),
        cmocka_unit_test_setup_teardown(test_index_lost, setup, teardown),
        cmocka_unit_test_setup_teardown(test_folders_by_hand, setup, teardown),
        cmocka_unit_test_setup_teardown(test_fork, setup, teardown),
        cmocka_unit_test_setup_teardown(test_orphans, setup, teardown),
        cmocka_unit_test_setup_teardown(test_building_is_not_swept, setup, teardown),
        cmocka_unit_test_setup_teardown(test_quarantine, setup, teardown),
        cmocka_unit_test_setup_teardown(test_copy, setup, teardown),
    };

    return cmocka_run_group_tests_name("catalog", tests, NULL, NULL);
}
