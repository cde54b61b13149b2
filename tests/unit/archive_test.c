/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Export and import: the same session is the same bytes, comes back as it was, and a tar of which
 * any byte is wrong, missing or too many makes no session.
 */
#include "config.h"

#include <archive.h>
#include <archive_entry.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/err.h"
#include "kvstore/archive.h"
#include "kvstore/io.h"
#include "tests/kvfile_sample.h"
#include "tests/sim_fs.h"
#include "tests/store_rig.h"
#include "tests/test.h"

enum { LEN = 1000 };

static struct io *io;
static struct sim *sim;
static struct catalog *catalog;
static struct kvfile_id original;
static struct ledger_content content;
static struct buf whole, tokens_only; /* exported in setup() */
static unsigned n_imports = 100;
static struct err e;

#define OK(call)                               \
    do {                                       \
        if ((call) == -1)                      \
            fail_msg("%s: %s", #call, e.text); \
    } while (0)

static int
collect(void *arg, const void *p, size_t n, struct err *err)
{
    return buf_add(arg, p, n, err);
}

struct reader {
    const uint8_t *p;
    size_t n, at, step, fail_at;
};

static ssize_t
feed(void *arg, void *p, size_t room, struct err *err)
{
    struct reader *r = arg;
    size_t n = r->n - r->at;

    if (r->fail_at > 0 && r->at >= r->fail_at)
        return err_set(err, ERR_CANCELLED, 0, "stop");
    n = n < room ? n : room;
    if (r->step > 0 && n > r->step)
        n = r->step;
    if (n > 0)
        memcpy(p, r->p + r->at, n);
    r->at += n;
    return (ssize_t)n;
}

static struct archive_import
usual(void)
{
    return (struct archive_import){.uid = 7,
                                   .gid = 8,
                                   .mode = 0600,
                                   .now_ms = 99,
                                   .most_tokens = 1 << 20,
                                   .most_bytes = 1 << 30,
                                   .tokens_limit = "max-tokens",
                                   .bytes_limit = "max-disk",
                                   .model = &kvfile_sample_model};
}

static int
import(const uint8_t *p, size_t n, const struct archive_import *how, struct kvfile_id *id)
{
    struct reader r = {.p = p, .n = n, .step = 700};
    struct catalog_entry en;

    memset(&e, 0, sizeof e);
    rig_id(id, ++n_imports);
    return archive_import(catalog, id, how, feed, &r, &en, &e);
}

static int
count(void *arg, const struct catalog_entry *en)
{
    (void)en;
    ++*(int *)arg;
    return 0;
}

static int
sessions(void)
{
    int n = 0;

    OK(catalog_each(catalog, count, &n, &e));
    return n;
}

static void
load(const struct kvfile_id *id, struct ledger_content *c)
{
    char dir[CATALOG_DIR_MAX];
    struct ledger *l;

    catalog_dir(id, dir);
    OK(ledger_look(io, dir, &l, &e));
    OK(ledger_load(l, c, &e));
    ledger_close(l);
}

static void
make_original(void)
{
    static uint32_t tokens[LEN];
    struct ledger_meta meta;
    struct ledger_point points[2];
    struct ledger_op ops[3];
    struct ledger_file files[3];
    const struct ledger_change first = {.meta = &meta,
                                        .has_tokens = true,
                                        .tokens = tokens,
                                        .n_tokens = LEN,
                                        .has_points = true,
                                        .points = points,
                                        .n_points = 2,
                                        .ops = ops,
                                        .n_ops = 3};
    const struct ledger_change more = {.add = files, .n_add = 3};
    char dir[CATALOG_DIR_MAX];
    struct ledger *l;

    rig_id(&original, 1);
    rig_meta(&meta, "orig");
    memcpy(meta.fingerprint, kvfile_sample_model.fingerprint, sizeof meta.fingerprint);
    rig_tokens(tokens, 1, 0, LEN);
    rig_point(&points[0], "turn-1", 500);
    rig_point(&points[1], "draft", LEN);
    for (unsigned i = 0; i < 3; i++)
        rig_op(&ops[i], i);
    OK(catalog_create(catalog, &original, &first, &e));
    catalog_dir(&original, dir);
    rig_chunk(&files[0], 1, 0, 512);
    rig_chunk(&files[1], 2, 512, 384);
    rig_state(&files[2], 3, LEN);
    for (int i = 0; i < 3; i++)
        OK(rig_publish(io, dir, &files[i], tokens, &e));
    OK(ledger_open(io, dir, false, &l, &e));
    OK(ledger_commit(l, &more, &e));
    ledger_close(l);
}

static void export(const struct kvfile_id *id, bool only, struct buf *out)
{
    struct ledger_content c;
    char dir[CATALOG_DIR_MAX];

    load(id, &c);
    catalog_dir(id, dir);
    buf_init(out, 1 << 26);
    OK(archive_export(io, dir, &c, only, collect, out, &e));
    ledger_content_done(&c);
}

static void
test_round_trip(void **state)
{
    const struct archive_import how = usual();
    struct ledger_content c;
    struct kvfile_id id;
    struct buf again;

    (void)state;
    OK(import(whole.p, whole.len, &how, &id));
    load(&id, &c);
    assert_int_equal(c.meta.uid, 7);
    assert_int_equal(c.meta.gid, 8);
    assert_int_equal(c.meta.mode, 0600);
    assert_int_equal(c.meta.used_ms, 99);
    c.meta.uid = content.meta.uid;
    c.meta.gid = content.meta.gid;
    c.meta.mode = content.meta.mode;
    c.meta.used_ms = content.meta.used_ms;
    assert_null(rig_differ(&c, &content));
    ledger_content_done(&c);

    /* What was imported exports to the same bytes; and so it does twice. */
    export(&id, false, &again);
    assert_int_equal(again.len, whole.len);
    assert_memory_equal(again.p, whole.p, again.len);
    buf_done(&again);
    export(&original, false, &again);
    assert_memory_equal(again.p, whole.p, again.len);
    buf_done(&again);
    OK(catalog_delete(catalog, &id, &e));
}

static void
test_tokens_only(void **state)
{
    struct kvfile_model other = kvfile_sample_model;
    struct archive_import how = usual();
    struct archive_told told;
    struct ledger_content c;
    struct kvfile_id id;

    (void)state;
    assert_true(tokens_only.len < 20480);
    how.name = "renamed";
    OK(import(tokens_only.p, tokens_only.len, &how, &id));
    load(&id, &c);
    assert_int_equal(c.n_files, 0);
    assert_int_equal(c.n_points, 2);
    assert_int_equal(c.len, LEN);
    assert_memory_equal(c.tokens, content.tokens, LEN * sizeof *c.tokens);
    assert_string_equal(c.meta.name, "renamed");
    ledger_content_done(&c);
    OK(catalog_delete(catalog, &id, &e));

    /* Another model: refused, unless it is to be adopted and has these tokens. */
    other.fingerprint[0] ^= 1;
    how.model = &other;
    assert_int_equal(import(tokens_only.p, tokens_only.len, &how, &id), -1);
    assert_int_equal(e.code, ERR_MODEL_MISMATCH);
    how.adopt = true;
    how.told = &told;
    OK(import(whole.p, whole.len, &how, &id));
    assert_int_equal(told.files, 0);
    assert_int_equal(told.left_out, content.n_files);
    load(&id, &c);
    assert_int_equal(c.n_files, 0);
    assert_int_equal(c.len, LEN);
    assert_memory_equal(c.meta.fingerprint, other.fingerprint, 32);
    ledger_content_done(&c);
    OK(catalog_delete(catalog, &id, &e));
    OK(import(tokens_only.p, tokens_only.len, &how, &id));
    load(&id, &c);
    assert_memory_equal(c.meta.fingerprint, other.fingerprint, 32);
    ledger_content_done(&c);
    OK(catalog_delete(catalog, &id, &e));
    other.vocab = 500;
    assert_int_equal(import(tokens_only.p, tokens_only.len, &how, &id), -1);
    assert_int_equal(e.code, ERR_MODEL_MISMATCH);
}

static void
test_limits(void **state)
{
    struct archive_import how = usual();
    struct reader r = {.p = whole.p, .n = whole.len, .fail_at = 20000};
    struct catalog_entry en;
    struct kvfile_id id;

    (void)state;
    how.most_tokens = LEN - 1;
    assert_int_equal(import(whole.p, whole.len, &how, &id), -1);
    assert_int_equal(e.code, ERR_QUOTA);
    how.most_tokens = LEN;
    how.most_bytes = 30000;
    assert_int_equal(import(whole.p, whole.len, &how, &id), -1);
    assert_int_equal(e.code, ERR_QUOTA);
    assert_non_null(strstr(e.text, "30000"));
    how = usual();
    rig_id(&id, ++n_imports);
    assert_int_equal(archive_import(catalog, &id, &how, feed, &r, &en, &e), -1);
    assert_int_equal(e.code, ERR_CANCELLED);
    assert_string_equal(e.text, "stop");
}

static int
stop_at(void *arg, const void *p, size_t n, struct err *err)
{
    size_t *left = arg;

    (void)p;
    if (n > *left)
        return err_set(err, ERR_CANCELLED, 0, "full");
    *left -= n;
    return 0;
}

static void
test_export_stops(void **state)
{
    char dir[CATALOG_DIR_MAX];

    (void)state;
    catalog_dir(&original, dir);
    for (size_t k = 0; k < whole.len; k += 9000) {
        size_t left = k;

        if (archive_export(io, dir, &content, false, stop_at, &left, &e) != -1)
            fail_msg("%zu bytes were enough", k);
        assert_int_equal(e.code, ERR_CANCELLED);
    }
}

/* Every byte flipped, in every way that matters: refused, or the session is the same. */
static void
test_flips(void **state)
{
    const struct archive_import how = usual();
    uint8_t *p = malloc(whole.len);
    unsigned same = 0, refused = 0;

    (void)state;
    assert_non_null(p);
    /* All of the heads and the manifest, samples of the rest: images have tests of their own. */
    for (size_t i = 0; i < whole.len; i += i < 24000 ? 7 : 601) {
        struct kvfile_id id;

        memcpy(p, whole.p, whole.len);
        p[i] ^= (uint8_t)(1u << i % 8);
        if (import(p, whole.len, &how, &id) == -1) {
            assert_true(e.code == ERR_DAMAGED || e.code == ERR_MODEL_MISMATCH);
            refused++;
            continue;
        }
        same++;
        {
            struct buf again;

            export(&id, false, &again);
            if (again.len != whole.len || memcmp(again.p, whole.p, again.len) != 0)
                fail_msg("a flip at %zu made another session", i);
            buf_done(&again);
        }
        OK(catalog_delete(catalog, &id, &e));
    }
    print_message("# %u flips refused, %u without effect (headers of tar, padding)\n",
                  refused, same);
    assert_true(refused > 1000);
    assert_int_equal(sessions(), 1);
    free(p);
}

static void
test_cut(void **state)
{
    const struct archive_import how = usual();
    size_t last = 0;

    (void)state;
    /* Where the last member ends: what follows are blocks of zeros. */
    for (size_t i = 0; i < whole.len; i++)
        last = whole.p[i] != 0 ? i : last;
    for (size_t n = 0; n < last; n += n < 12000 ? 511 : 3001) {
        struct kvfile_id id;

        if (import(whole.p, n, &how, &id) != -1)
            fail_msg("%zu of %zu bytes were taken", n, whole.len);
        if (e.code != ERR_DAMAGED)
            fail_msg("%zu bytes: %s", n, e.text);
    }
    assert_int_equal(sessions(), 1);
}

/* Members of the real tar, put into another one: left out, doubled, renamed, of another kind. */
struct trick {
    const char *name, *what, *said;
};

static const struct trick tricks[] = {
    {"manifest.json", "../manifest.json", "must come here"},
    {"manifest.json", "/manifest.json", "must come here"},
    {"manifest.json", "-", "must come here"},
    {"manifest.json", "+", "must come here"},
    {"tokens.u32", "-", "must come here"},
    {"tokens.u32", "+", "must come here"},
    {"tokens.u32", "@link", "plain file"},
    {"tokens.u32", "@symlink", "plain file"},
    {"tokens.u32", "@dir", "must come here"},
    {"ops.bin", "../../../etc/cron.d/x", "must come here"},
    {"c/", "-", "must come here"},
    {"c/", "+", "must come here"},
    {"k/", "-", "is missing"},
    {"k/", "+", "does not belong"},
    {"k/", "@short", "announced"},
};

static void
write_member(struct archive *out, struct archive_entry *en, const void *p, size_t n)
{
    assert_int_equal(archive_write_header(out, en), ARCHIVE_OK);
    assert_int_equal(archive_write_data(out, p, n), n);
}

static void
play(const struct trick *t, bool once, struct archive *out, struct archive_entry *en,
     const void *p, size_t n)
{
    if (!once) {
        write_member(out, en, p, n);
        return;
    }
    if (t->what[0] == '-')
        return;
    if (t->what[0] == '+')
        write_member(out, en, p, n);
    if (strcmp(t->what, "@link") == 0) {
        archive_entry_set_hardlink(en, "manifest.json");
        archive_entry_set_size(en, n = 0);
    } else if (strcmp(t->what, "@symlink") == 0) {
        archive_entry_set_filetype(en, AE_IFLNK);
        archive_entry_set_symlink(en, "/etc/passwd");
        archive_entry_set_size(en, n = 0);
    } else if (strcmp(t->what, "@dir") == 0) {
        archive_entry_set_filetype(en, AE_IFDIR);
        archive_entry_set_size(en, n = 0);
    } else if (strcmp(t->what, "@short") == 0) {
        archive_entry_set_size(en, (la_int64_t)(n -= 512));
    } else if (t->what[0] != '+') {
        archive_entry_set_pathname(en, t->what);
    }
    write_member(out, en, p, n);
}

static void
trick_tar(const struct trick *t, uint8_t *to, size_t room, size_t *used)
{
    struct archive *in = archive_read_new(), *out = archive_write_new();
    uint8_t *data = malloc(whole.len);
    struct archive_entry *en;
    bool done = false;

    archive_read_support_format_tar(in);
    assert_int_equal(archive_read_open_memory(in, whole.p, whole.len), ARCHIVE_OK);
    archive_write_set_format_pax_restricted(out);
    assert_int_equal(archive_write_open_memory(out, to, room, used), ARCHIVE_OK);
    while (archive_read_next_header(in, &en) == ARCHIVE_OK) {
        const size_t n = (size_t)archive_entry_size(en);
        const bool now = !done &&
                         strncmp(archive_entry_pathname(en), t->name, strlen(t->name)) == 0;

        assert_int_equal(archive_read_data(in, data, n), n);
        play(t, now, out, en, data, n);
        done |= now;
    }
    assert_true(done);
    assert_int_equal(archive_write_close(out), ARCHIVE_OK);
    archive_write_free(out);
    archive_read_free(in);
    free(data);
}

static void
test_tricks(void **state)
{
    const struct archive_import how = usual();
    const size_t room = 2 * whole.len;
    uint8_t *p = malloc(room);

    (void)state;
    assert_non_null(p);
    for (size_t i = 0; i < sizeof tricks / sizeof tricks[0]; i++) {
        struct kvfile_id id;
        size_t n = 0;

        trick_tar(&tricks[i], p, room, &n);
        if (import(p, n, &how, &id) != -1 || e.code != ERR_DAMAGED ||
            strstr(e.text, tricks[i].said) == NULL)
            fail_msg("%s %s: %s", tricks[i].name, tricks[i].what, e.text);
    }
    free(p);
    assert_int_equal(sessions(), 1);
}

/* A file of class B that is damaged does not get out. */
static void
test_export_checks(void **state)
{
    char dir[CATALOG_DIR_MAX], name[KVFILE_NAME_MAX], path[256];
    struct buf out;
    uint8_t byte;
    int h;

    (void)state;
    catalog_dir(&original, dir);
    kvfile_name(&content.files[1].about, name);
    snprintf(path, sizeof path, "%s/%s", dir, name);
    h = io->ops->open(io, path, IO_WRITE, &e);
    assert_int_equal(io->ops->read(io, h, &byte, 1, 9000, &e), 1);
    byte ^= 4;
    OK(io->ops->write(io, h, &byte, 1, 9000, &e));
    io->ops->close(io, h);
    buf_init(&out, 1 << 26);
    assert_int_equal(archive_export(io, dir, &content, false, collect, &out, &e), -1);
    assert_int_equal(e.code, ERR_DAMAGED);
    assert_non_null(strstr(e.text, name));
    buf_done(&out);
    buf_init(&out, 1 << 26);
    OK(archive_export(io, dir, &content, true, collect, &out, &e));
    assert_memory_equal(out.p, tokens_only.p, out.len);
    buf_done(&out);
}

/* A session with two chunks, each of the sample's model or of another one. */
static void
make_mixed(unsigned n, bool first_other, bool second_other, struct buf *out)
{
    static uint32_t tokens[LEN];
    struct kvfile_model other = kvfile_sample_model;
    struct ledger_meta meta;
    struct ledger_file files[2];
    const struct ledger_change first = {
        .meta = &meta, .has_tokens = true, .tokens = tokens, .n_tokens = LEN};
    const struct ledger_change more = {.add = files, .n_add = 2};
    char dir[CATALOG_DIR_MAX];
    struct kvfile_id id;
    struct ledger *l;

    other.fingerprint[3] ^= 1;
    rig_id(&id, n);
    rig_meta(&meta, "mixed");
    memcpy(meta.fingerprint, kvfile_sample_model.fingerprint, sizeof meta.fingerprint);
    rig_tokens(tokens, 1, 0, LEN);
    OK(catalog_create(catalog, &id, &first, &e));
    catalog_dir(&id, dir);
    rig_chunk(&files[0], 1, 0, 512);
    rig_chunk(&files[1], 2, 512, 384);
    for (int i = 0; i < 2; i++) {
        const struct kvfile_sample sample = {.about = files[i].about,
                                             .tokens = tokens + files[i].about.pos};
        struct kvfile_plan plan;
        uint8_t *image = kvfile_sample_make(&sample, &plan);

        if (i == 0 ? first_other : second_other)
            kvfile_seal(&other, &sample.about, sample.tokens, image);
        files[i].bytes = plan.bytes;
        OK(kvfile_publish(io, dir, &files[i].about, image, plan.bytes, &e));
        free(image);
    }
    OK(ledger_open(io, dir, false, &l, &e));
    OK(ledger_commit(l, &more, &e));
    ledger_close(l);
    export(&id, false, out);
    OK(catalog_delete(catalog, &id, &e));
}

/* Without a model to compare with: all files are of one, and it is the one that the manifest names. */
static void
test_one_model(void **state)
{
    struct archive_import how = usual();
    struct kvfile_id id;

    (void)state;
    how.model = NULL;
    for (unsigned k = 0; k < 4; k++) {
        struct buf tar;

        make_mixed(50 + k, k & 1, k & 2, &tar);
        if (k == 0) {
            OK(import(tar.p, tar.len, &how, &id));
            OK(catalog_delete(catalog, &id, &e));
        } else {
            assert_int_equal(import(tar.p, tar.len, &how, &id), -1);
            assert_int_equal(e.code, ERR_MODEL_MISMATCH);
            assert_non_null(strstr(e.text, k == 2 ? "c/00000004" : "c/00000000"));
            assert_null(strstr(e.text, "import"));
        }
        buf_done(&tar);
    }
}

static int
setup(void **state)
{
    (void)state;
    sim = sim_new();
    io = sim_io(sim);
    OK(catalog_open(io, &catalog, &e));
    make_original();
    load(&original, &content);
    export(&original, false, &whole);
    export(&original, true, &tokens_only);
    return 0;
}

static int
teardown(void **state)
{
    (void)state;
    buf_done(&whole);
    buf_done(&tokens_only);
    ledger_content_done(&content);
    catalog_close(catalog);
    sim_free(sim);
    return 0;
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),    cmocka_unit_test(test_tokens_only),
        cmocka_unit_test(test_limits),        cmocka_unit_test(test_export_stops),
        cmocka_unit_test(test_flips),         cmocka_unit_test(test_cut),
        cmocka_unit_test(test_one_model),     cmocka_unit_test(test_tricks),
        cmocka_unit_test(test_export_checks),
    };

    return cmocka_run_group_tests_name("archive", tests, setup, teardown);
}
