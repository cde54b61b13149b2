/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SQLite on the real struct io, in a folder of its own; and on a simulated file system: what was
 * committed is there in every state that a crash could leave, and with any one of the syncs
 * left out there is a state in which it is not.
 */
#include "config.h"

#include <errno.h>
#include <sqlite3.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "kvstore/io.h"
#include "kvstore/vfs.h"
#include "tests/sim_fs.h"
#include "tests/test.h"

static char folder[] = "vfs_test_XXXXXX";
static struct io *io;

static sqlite3 *
open_db(const char *path, int flags)
{
    sqlite3 *db;

    assert_int_equal(sqlite3_open_v2(path, &db, flags, "vfs_test"), SQLITE_OK);
    return db;
}

static void
sql(sqlite3 *db, const char *text)
{
    char *why = NULL;

    if (sqlite3_exec(db, text, NULL, NULL, &why) != SQLITE_OK)
        fail_msg("%s: %s (%s)", text, why, vfs_error()->text);
}

static void
want_text(sqlite3 *db, const char *query, const char *answer)
{
    sqlite3_stmt *st;

    assert_int_equal(sqlite3_prepare_v2(db, query, -1, &st, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_step(st), SQLITE_ROW);
    assert_string_equal((const char *)sqlite3_column_text(st, 0), answer);
    sqlite3_finalize(st);
}

static int
note_name(void *arg, const char *name)
{
    char *all = arg;

    /* In no order that one can rely on: a letter each. */
    strcat(all, strstr(name, "-wal") ? "w" : strstr(name, "-journal") ? "j" : "d");
    if (strstr(name, "-shm"))
        strcat(all, "!");
    return 0;
}

static void
test_wal(void **state)
{
    enum { RW = SQLITE_OPEN_READWRITE };

    char names[32] = "";
    struct err e;
    sqlite3 *db = open_db("d/s.db", RW | SQLITE_OPEN_CREATE);

    (void)state;
    sql(db, "PRAGMA locking_mode=EXCLUSIVE; PRAGMA temp_store=MEMORY");
    want_text(db, "PRAGMA journal_mode=WAL", "wal");
    sql(db, "PRAGMA synchronous=FULL; CREATE TABLE t (a INTEGER PRIMARY KEY, b BLOB)");
    sql(db, "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n WHERE i<3000)"
            "INSERT INTO t SELECT i, randomblob(i % 700) FROM n");
    sql(db, "UPDATE t SET b = zeroblob(3) WHERE a % 3 = 0");
    io->ops->list(io, "d", note_name, names, &e);
    assert_true(strcmp(names, "dw") == 0 || strcmp(names, "wd") == 0);
    want_text(db, "SELECT count(*) FROM t WHERE b = zeroblob(3)", "1000");
    want_text(db, "PRAGMA integrity_check", "ok");
    want_text(db, "SELECT datetime('now') > '2020'", "1"); /* the time of the default VFS */
    assert_int_equal(sqlite3_close(db), SQLITE_OK);
    names[0] = '\0';
    io->ops->list(io, "d", note_name, names, &e);
    assert_string_equal(names, "d"); /* the database stands alone */

    db = open_db("d/s.db", SQLITE_OPEN_READONLY);
    sql(db, "PRAGMA locking_mode=EXCLUSIVE");
    want_text(db, "PRAGMA integrity_check", "ok");
    want_text(db, "SELECT count(*) FROM t", "3000");
    assert_int_equal(sqlite3_exec(db, "DELETE FROM t", NULL, NULL, NULL), SQLITE_READONLY);
    assert_int_equal(sqlite3_close(db), SQLITE_OK);
    assert_int_equal(io->ops->unlink(io, "d/s.db", &e), 0);
}

static void
test_journal(void **state)
{
    sqlite3 *db = open_db("d/j.db", SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE);
    struct err e;

    (void)state;
    want_text(db, "PRAGMA journal_mode=DELETE", "delete");
    sql(db, "CREATE TABLE t (a); INSERT INTO t VALUES (1)");
    sql(db, "BEGIN; DELETE FROM t; ROLLBACK; BEGIN; INSERT INTO t VALUES (2); COMMIT");
    want_text(db, "SELECT group_concat(a) FROM t", "1,2");
    assert_int_equal(sqlite3_close(db), SQLITE_OK);
    assert_int_equal(io->ops->unlink(io, "d/j.db", &e), 0);
}

static void
test_errors(void **state)
{
    char longest[600];
    struct err e;
    sqlite3 *db;

    (void)state;
    vfs_clear_error();
    assert_int_equal(vfs_error()->code, ERR_NONE);
    assert_int_equal(sqlite3_open_v2("d/none.db", &db, SQLITE_OPEN_READWRITE, "vfs_test"),
                     SQLITE_CANTOPEN);
    sqlite3_close(db);
    assert_int_equal(vfs_error()->code, ERR_NOT_FOUND);
    assert_non_null(strstr(vfs_error()->text, "d/none.db"));
    assert_int_equal(sqlite3_open_v2("../x.db", &db, SQLITE_OPEN_READWRITE, "vfs_test"),
                     SQLITE_CANTOPEN);
    sqlite3_close(db);
    memset(longest, 'x', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    assert_int_not_equal(sqlite3_open_v2(longest, &db, SQLITE_OPEN_READWRITE, "vfs_test"),
                         SQLITE_OK);
    sqlite3_close(db);
    assert_int_equal(vfs_register(io, "vfs_test", false, &e), -1); /* the name is taken */
    vfs_unregister("vfs_test_none");
}

enum { COMMITS = 4 };

/* Four transactions; the mark is how many are committed. False: SQLite says no. */
static bool
commit_some(struct sim *sim, const char *mode)
{
    char pragmas[200], insert[100];
    struct err e;
    sqlite3 *db;
    bool ok;

    vfs_register(sim_io(sim), "vfs_test_sim", false, &e);
    ok = sqlite3_open_v2("s.db", &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE,
                         "vfs_test_sim") == SQLITE_OK;
    snprintf(
        pragmas, sizeof pragmas,
        "PRAGMA locking_mode=EXCLUSIVE; PRAGMA temp_store=MEMORY; PRAGMA journal_mode=%s;"
        "PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=6;"
        "CREATE TABLE t (a INTEGER PRIMARY KEY, b BLOB)",
        mode);
    ok = ok && sqlite3_exec(db, pragmas, NULL, NULL, NULL) == SQLITE_OK;
    for (int i = 1; i <= COMMITS && ok; i++) {
        snprintf(insert, sizeof insert, "INSERT INTO t VALUES (%d, zeroblob(%d))", i,
                 i * 1500);
        ok = sqlite3_exec(db, insert, NULL, NULL, NULL) == SQLITE_OK;
        if (ok)
            sim_mark(sim, (uint64_t)i);
    }
    ok = sqlite3_close(db) == SQLITE_OK && ok;
    vfs_unregister("vfs_test_sim");
    return ok;
}

/* A sound database with what was promised, and with at most what was on its way. */
static int
look(void *arg, struct io *at, uint64_t mark, const char *what)
{
    const char *why = "cannot be read";
    sqlite3_stmt *st = NULL;
    int64_t n = -1;
    sqlite3 *db;
    struct err e;

    (void)arg;
    vfs_register(at, "vfs_test_state", false, &e);
    sqlite3_open_v2("s.db", &db, SQLITE_OPEN_READWRITE, "vfs_test_state");
    sqlite3_exec(db, "PRAGMA locking_mode=EXCLUSIVE", NULL, NULL, NULL);
    if (mark == 0) {
        why = NULL; /* nothing was promised */
    } else if (sqlite3_prepare_v2(db, "PRAGMA integrity_check", -1, &st, NULL) ==
                   SQLITE_OK &&
               sqlite3_step(st) == SQLITE_ROW) {
        why = strcmp((const char *)sqlite3_column_text(st, 0), "ok") == 0 ? NULL
                                                                          : "is damaged";
        sqlite3_finalize(st);
        st = NULL;
        if (why == NULL &&
            sqlite3_prepare_v2(db, "SELECT count(*) FROM t WHERE length(b) = a * 1500", -1,
                               &st, NULL) == SQLITE_OK &&
            sqlite3_step(st) == SQLITE_ROW)
            n = sqlite3_column_int64(st, 0);
        if (n != (int64_t)mark && n != (int64_t)mark + 1)
            why = "has other rows";
    }
    sqlite3_finalize(st);
    sqlite3_close(db);
    vfs_unregister("vfs_test_state");
    if (why != NULL)
        print_message("# %s: the database %s (%d rows)\n", what, why, (int)n);
    return why != NULL;
}

static void
crash_states(const char *mode)
{
    static const struct sim_bounds bounds = {.all = 64, .samples = 8, .seed = 1};
    struct sim *sim = sim_new();
    uint64_t n, n_syncs, n_needed = 0;

    assert_true(commit_some(sim, mode));
    assert_int_equal(sim_states(sim, &bounds, look, NULL, &n), 0);
    n_syncs = sim_calls(sim, SIM_SYNC | SIM_SYNC_DIR);
    sim_free(sim);
    for (uint64_t k = 0; k < n_syncs; k++) {
        sim = sim_new();
        sim_fault(sim, &(struct sim_fault){
                           .kinds = SIM_SYNC | SIM_SYNC_DIR, .at = k, .how = SIM_LIE});
        assert_true(commit_some(sim, mode));
        n_needed += sim_states(sim, &bounds, look, NULL, NULL) != 0;
        sim_free(sim);
    }
    print_message("# %s: %d states, %d of %d syncs needed\n", mode, (int)n, (int)n_needed,
                  (int)n_syncs);
    assert_true(n_needed > 0);
}

static void
test_crash_wal(void **state)
{
    (void)state;
    crash_states("WAL");
}

static void
test_crash_journal(void **state)
{
    (void)state;
    crash_states("DELETE");
}

static int
set_up(void **state)
{
    struct err e;

    (void)state;
    if (mkdtemp(folder) == NULL || (io = io_open_root(folder, false, &e)) == NULL)
        return -1;
    return io->ops->mkdir(io, "d", &e) == 0 ? vfs_register(io, "vfs_test", false, &e) : -1;
}

static int
tear_down(void **state)
{
    struct err e;
    int rc;

    (void)state;
    vfs_unregister("vfs_test");
    rc = io->ops->rmdir(io, "d", &e);
    io_close_root(io);
    return rmdir(folder) == 0 ? rc : -1;
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_wal),           cmocka_unit_test(test_journal),
        cmocka_unit_test(test_errors),        cmocka_unit_test(test_crash_wal),
        cmocka_unit_test(test_crash_journal),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
