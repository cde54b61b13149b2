/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fathom verify's core on a real disk: it finds what was done to a session, says what is left of
 * it, and changes nothing.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"
#include "kvstore/catalog.h"
#include "kvstore/io.h"
#include "kvstore/verify.h"
#include "tests/kvfile_sample.h"
#include "tests/store_rig.h"
#include "tests/test.h"

enum { LEN = 1000, N_FILES = 5 };

static struct io *io;
static char root[32], dir[CATALOG_DIR_MAX], said[2000];
static struct ledger_file files[N_FILES];
static struct err e;

#define OK(call)                               \
    do {                                       \
        if ((call) == -1)                      \
            fail_msg("%s: %s", #call, e.text); \
    } while (0)

static int
hear(void *arg, bool wrong, const char *text)
{
    const size_t n = strlen(said);

    snprintf(said + n, sizeof said - n, "%s%s\n", wrong ? "! " : "", text);
    return arg != NULL;
}

static struct verify_result
verify(void)
{
    struct verify_result r;

    said[0] = '\0';
    OK(store_verify(io, dir, &kvfile_sample_model, NULL, hear, NULL, &r, &e));
    return r;
}

static void
path_of(int file, char path[256])
{
    char name[KVFILE_NAME_MAX];

    kvfile_name(&files[file].about, name);
    snprintf(path, 256, "%s/%s/%s", root, dir, name);
}

static void
flip(const char *path, long at)
{
    FILE *f = fopen(path, "r+");
    int c;

    assert_non_null(f);
    assert_int_equal(fseek(f, at, SEEK_SET), 0);
    c = fgetc(f) ^ 0x10;
    assert_int_equal(fseek(f, at, SEEK_SET), 0);
    fputc(c, f);
    assert_int_equal(fclose(f), 0);
}

/* 1,000 tokens, chunks 0-511 and 512-895, states at 256, 600 and 1,000. */
static int
setup(void **state)
{
    static uint32_t tokens[LEN];
    struct ledger_meta meta;
    const struct ledger_change first = {
        .meta = &meta, .has_tokens = true, .tokens = tokens, .n_tokens = LEN};
    const struct ledger_change more = {.add = files, .n_add = N_FILES};
    struct catalog *c;
    struct kvfile_id id;
    struct ledger *l;

    (void)state;
    io = rig_folder(root);
    OK(catalog_open(io, &c, &e));
    rig_id(&id, 1);
    rig_meta(&meta, "v");
    rig_tokens(tokens, 1, 0, LEN);
    OK(catalog_create(c, &id, &first, &e));
    catalog_close(c);
    catalog_dir(&id, dir);
    rig_chunk(&files[0], 1, 0, 512);
    rig_chunk(&files[1], 2, 512, 384);
    rig_state(&files[2], 3, 256);
    rig_state(&files[3], 4, 600);
    rig_state(&files[4], 5, LEN);
    for (int i = 0; i < N_FILES; i++)
        OK(rig_publish(io, dir, &files[i], tokens, &e));
    OK(ledger_open(io, dir, false, &l, &e));
    OK(ledger_commit(l, &more, &e));
    ledger_close(l);
    return 0;
}

static int
teardown(void **state)
{
    (void)state;
    rig_folder_done(io, root);
    return 0;
}

static void
test_sound(void **state)
{
    const struct verify_result r = verify();
    struct verify_result stopped;
    char path[256];

    (void)state;
    assert_string_equal(said, "");
    assert_true(r.ledger);
    assert_int_equal(r.wrong, 0);
    assert_int_equal(r.files, 5);
    assert_int_equal(r.files_good, 5);
    assert_int_equal(r.states, 3);
    assert_int_equal(r.best, LEN);
    assert_int_equal(r.recompute, 0);

    /* A file of nobody's is told, but nothing is wrong; it may be stopped. */
    snprintf(path, sizeof path, "%s/%s/k/left", root, dir);
    fclose(fopen(path, "w"));
    assert_int_equal(verify().wrong, 0);
    assert_int_equal(verify().orphans, 1);
    assert_non_null(strstr(said, "k/left: nothing names it"));
    assert_int_equal(store_verify(io, dir, NULL, NULL, hear, &e, &stopped, &e), -1);
    assert_int_equal(e.code, ERR_CANCELLED);
}

static void
test_chunk_damaged(void **state)
{
    struct verify_result r;
    char path[256], name[KVFILE_NAME_MAX];

    (void)state;
    path_of(1, path);
    flip(path, 12000);
    r = verify();
    kvfile_name(&files[1].about, name);
    assert_non_null(strstr(said, name));
    assert_int_equal(r.files_good, 4);
    assert_int_equal(r.states, 2); /* 600 is in the page that begins at 512 */
    assert_int_equal(r.best, 600);
    assert_int_equal(r.recompute, 400);
    assert_int_equal(r.wrong, 2); /* the chunk, and the state that it carried */
    path_of(0, path);
    assert_int_equal(unlink(path), 0);
    r = verify();
    assert_non_null(strstr(said, "is missing"));
    assert_int_equal(r.states, 0);
    assert_int_equal(r.recompute, LEN);
}

static void
test_state_damaged(void **state)
{
    struct verify_result r;
    char path[256];

    (void)state;
    path_of(4, path);
    assert_int_equal(truncate(path, 4096), 0);
    r = verify();
    assert_int_equal(r.wrong, 1);
    assert_int_equal(r.best, 600);
    assert_int_equal(r.recompute, 400);
}

/* A chunk that is sound, but of other tokens than the ledger's. */
static void
test_other_tokens(void **state)
{
    static uint32_t other[LEN];
    struct verify_result r;
    char path[256];

    (void)state;
    path_of(0, path);
    assert_int_equal(unlink(path), 0);
    rig_tokens(other, 2, 0, LEN);
    OK(rig_publish(io, dir, &files[0], other, &e));
    r = verify();
    assert_non_null(strstr(said, "its tokens are not the session's"));
    assert_int_equal(r.states, 0);
}

static void
test_other_model(void **state)
{
    struct kvfile_model other = kvfile_sample_model;
    struct verify_result r;

    (void)state;
    other.fingerprint[5] ^= 1;
    said[0] = '\0';
    OK(store_verify(io, dir, &other, NULL, hear, NULL, &r, &e));
    assert_int_equal(r.files_good, 0);
    OK(store_verify(io, dir, NULL, NULL, hear, NULL, &r, &e));
    assert_int_equal(r.files_good, 5);
}

/* Each gap is told once: from where chunks end to where they go on. */
static void
test_gaps(void **state)
{
    static uint32_t tokens[LEN];
    struct ledger_file chunks[5];
    const struct ledger_change more = {.add = chunks, .n_add = 5};
    const struct kvfile_id drop[2] = {files[0].about.id, files[1].about.id};
    const struct ledger_change less = {.drop = drop, .n_drop = 2};
    struct verify_result r;
    struct ledger *l;

    (void)state;
    rig_tokens(tokens, 1, 0, LEN);
    OK(ledger_open(io, dir, false, &l, &e));
    OK(ledger_commit(l, &less, &e));
    for (unsigned i = 0; i < 5; i++) {
        char name[KVFILE_NAME_MAX], path[256];

        rig_chunk(&chunks[i], 20 + i, 128 * i, 128);
        OK(rig_publish(io, dir, &chunks[i], tokens, &e));
        kvfile_name(&chunks[i].about, name);
        snprintf(path, sizeof path, "%s/%s/%s", root, dir, name);
        if (i % 2 == 1)
            assert_int_equal(unlink(path), 0);
    }
    OK(ledger_commit(l, &more, &e));
    ledger_close(l);
    r = verify();
    assert_non_null(strstr(said, "! tokens 128 to 256 are in no chunk"));
    assert_non_null(strstr(said, "! tokens 384 to 512 are in no chunk"));
    assert_null(strstr(said, "128 to 512"));
    assert_int_equal(r.wrong, 2 + 2 + 3); /* chunks, gaps, states */
    assert_int_equal(r.recompute, LEN);
}

/* Before the next file somebody says that it is enough. */
static void
test_stop(void **state)
{
    const atomic_bool stop = true;
    struct verify_result r;
    struct err why;

    (void)state;
    said[0] = '\0';
    assert_int_equal(
        store_verify(io, dir, &kvfile_sample_model, &stop, hear, NULL, &r, &why), -1);
    assert_int_equal(why.code, ERR_CANCELLED);
    assert_int_equal(r.files_good, 0);
}

static void
test_ledger_damaged(void **state)
{
    struct verify_result r;
    char path[256];
    struct stat st;

    (void)state;
    snprintf(path, sizeof path, "%s/%s/session.db", root, dir);
    assert_int_equal(stat(path, &st), 0);
    for (long at = 100; at < st.st_size; at += 4096)
        flip(path, at);
    r = verify();
    assert_false(r.ledger);
    assert_true(r.wrong > 0);
    assert_int_equal(r.salvage, 896);
    assert_int_equal(unlink(path), 0);
    r = verify();
    assert_false(r.ledger);
    assert_non_null(strstr(said, "is not there"));
    assert_int_equal(r.salvage, 896);
}

static void
test_busy_and_unchanged(void **state)
{
    char before[100], after[100], command[200];
    struct verify_result r;
    struct ledger *l;
    FILE *f;

    (void)state;
    snprintf(command, sizeof command, "find %s -type f | sort | xargs cksum | cksum", root);
    f = popen(command, "r");
    assert_non_null(fgets(before, sizeof before, f));
    pclose(f);
    verify();
    verify();
    f = popen(command, "r");
    assert_non_null(fgets(after, sizeof after, f));
    pclose(f);
    assert_string_equal(before, after);
    OK(ledger_open(io, dir, false, &l, &e));
    assert_int_equal(store_verify(io, dir, NULL, NULL, hear, NULL, &r, &e), -1);
    assert_int_equal(e.code, ERR_BUSY);
    ledger_close(l);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_sound, setup, teardown),
        cmocka_unit_test_setup_teardown(test_chunk_damaged, setup, teardown),
        cmocka_unit_test_setup_teardown(test_state_damaged, setup, teardown),
        cmocka_unit_test_setup_teardown(test_other_tokens, setup, teardown),
        cmocka_unit_test_setup_teardown(test_other_model, setup, teardown),
        cmocka_unit_test_setup_teardown(test_gaps, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stop, setup, teardown),
        cmocka_unit_test_setup_teardown(test_ledger_damaged, setup, teardown),
        cmocka_unit_test_setup_teardown(test_busy_and_unchanged, setup, teardown),
    };

    return cmocka_run_group_tests_name("verify", tests, NULL, NULL);
}
