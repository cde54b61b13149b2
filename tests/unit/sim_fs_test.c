/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The simulated file system itself: what it must be able to lose it loses (each sync left out has
 * a state that shows it), and what it must not lose it does not.
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "kvstore/io.h"
#include "tests/sim_fs.h"
#include "tests/test.h"

enum { BLOCK = 4096, LONG = 3 * BLOCK, MAX_SEEN = 64 };

/* Every way a file was found in, in the states of a mark. */
struct seen {
    const char *paths[3]; /* up to NULL */
    uint64_t mark;
    char ways[MAX_SEEN][64];
    size_t n;
    uint64_t states;
};

static struct sim *sim;
static struct io *io;
static struct err e;

static uint8_t *
pattern(size_t n, uint8_t seed)
{
    static uint8_t p[2][LONG];
    uint8_t *q = p[seed % 2];

    for (size_t i = 0; i < n; i++)
        q[i] = (uint8_t)(1 + (i * 7 + i / 512 * 13 + seed) % 255);
    return q;
}

/* "none", "empty", "old", "new" (whole and of that pattern), "zeros", "short", "torn". */
static const char *
way_of(struct io *at, const char *path)
{
    static uint8_t got[LONG + 1];
    size_t zeros = 0, n;
    struct err why;
    ssize_t k;
    int h = at->ops->open(at, path, IO_READ, &why);

    if (h == -1)
        return why.code == ERR_NOT_FOUND ? "none" : "error";
    k = at->ops->read(at, h, got, sizeof got, 0, &why);
    at->ops->close(at, h);
    n = (size_t)k;
    if (n == 0)
        return "empty";
    if (memcmp(got, pattern(n, 0), n) == 0)
        return n == LONG ? "old" : "short";
    if (memcmp(got, pattern(n, 1), n) == 0)
        return n == LONG ? "new" : "short";
    for (size_t i = 0; i < n; i++)
        zeros += got[i] == 0;
    return zeros == n ? "zeros" : "torn";
}

static int
look(void *arg, struct io *at, uint64_t mark, const char *what)
{
    struct seen *s = arg;
    char way[64] = "";

    assert_non_null(strstr(what, "after call"));
    s->states++;
    if (mark != s->mark)
        return 0;
    for (int i = 0; i < 3 && s->paths[i] != NULL; i++)
        snprintf(way + strlen(way), sizeof way - strlen(way), "%s%s", i > 0 ? " " : "",
                 way_of(at, s->paths[i]));
    for (size_t i = 0; i < s->n; i++)
        if (strcmp(s->ways[i], way) == 0)
            return 0;
    assert_true(s->n < MAX_SEEN);
    strcpy(s->ways[s->n++], way);
    return 0;
}

static struct seen
states_of(const char *a, const char *b, uint64_t mark)
{
    struct seen s = {.paths = {a, b}, .mark = mark};
    uint64_t n;

    assert_int_equal(sim_states(sim, NULL, look, &s, &n), 0);
    assert_int_equal(n, s.states);
    return s;
}

static bool
has(const struct seen *s, const char *way)
{
    for (size_t i = 0; i < s->n; i++)
        if (strcmp(s->ways[i], way) == 0)
            return true;
    return false;
}

/* Exactly these, in any order. */
static void
want_ways(const struct seen *s, const char *const *ways)
{
    size_t n = 0;

    for (; ways[n] != NULL; n++)
        if (!has(s, ways[n]))
            fail_msg("no state is '%s'", ways[n]);
    for (size_t i = 0; i < s->n && n != s->n; i++)
        print_message("found: %s\n", s->ways[i]);
    assert_int_equal(s->n, n);
}

#define WANT(s, ...) want_ways(s, (const char *const[]){__VA_ARGS__, NULL})

static void
ok(int rc)
{
    if (rc == -1)
        fail_msg("%s", e.text);
}

static int
make(const char *path)
{
    const int h = io->ops->open(io, path, IO_WRITE | IO_CREATE | IO_EXCLUSIVE, &e);

    ok(h);
    return h;
}

/* A file "f" of the old pattern, all durable. */
static int
old_file(void)
{
    const int h = make("f");

    ok(io->ops->write(io, h, pattern(LONG, 0), LONG, 0, &e));
    sim_settle(sim);
    return h;
}

static void
test_name_and_data(void **state)
{
    struct seen s;
    int h = make("f");

    (void)state;
    ok(io->ops->write(io, h, pattern(LONG, 1), LONG, 0, &e));
    sim_mark(sim, 1);
    ok(io->ops->sync(io, h, &e));
    sim_mark(sim, 2);
    ok(io->ops->sync_dir(io, ".", &e));
    sim_mark(sim, 3);
    io->ops->close(io, h);
    s = states_of("f", NULL, 1);
    assert_true(has(&s, "none") && has(&s, "empty") && has(&s, "zeros") &&
                has(&s, "torn") && has(&s, "short") && has(&s, "new"));
    s = states_of("f", NULL, 2); /* the folder was not synced */
    WANT(&s, "none", "new");
    s = states_of("f", NULL, 3);
    WANT(&s, "new");
}

static void
test_data_without_sync(void **state)
{
    struct seen s;
    int h = make("f");

    (void)state;
    ok(io->ops->sync_dir(io, ".", &e));
    ok(io->ops->write(io, h, pattern(LONG, 1), LONG, 0, &e));
    sim_mark(sim, 1);
    s = states_of("f", NULL, 1);
    WANT(&s, "empty", "zeros", "torn", "short", "new");
    io->ops->close(io, h);
}

/* Which of the blocks of this size are the new ones, as bits. */
struct blocks {
    size_t size;
    uint64_t seen[4096];
    size_t n;
};

static bool
has_bits(const struct blocks *b, uint64_t bits)
{
    for (size_t i = 0; i < b->n; i++)
        if (b->seen[i] == bits)
            return true;
    return false;
}

static int
look_at_blocks(void *arg, struct io *at, uint64_t mark, const char *what)
{
    static uint8_t got[LONG];
    struct blocks *b = arg;
    const int h = at->ops->open(at, "f", IO_READ, &e);
    uint64_t bits = 0;

    (void)mark;
    assert_int_equal(at->ops->read(at, h, got, LONG, 0, &e), LONG);
    at->ops->close(at, h);
    for (size_t i = 0; i < LONG / b->size; i++) {
        const size_t k = i * b->size;

        if (memcmp(got + k, pattern(LONG, 1) + k, b->size) == 0)
            bits |= 1u << i;
        else if (memcmp(got + k, pattern(LONG, 0) + k, b->size) != 0)
            fail_msg("%s: block %zu is torn", what, i);
    }
    if (!has_bits(b, bits)) {
        assert_true(b->n < sizeof b->seen / sizeof *b->seen);
        b->seen[b->n++] = bits;
    }
    return 0;
}

static void
test_torn(void **state)
{
    static const uint64_t halves[] = {0, 0xffffff, 0xfff, 0xfff000, 0xffff, 0xffff00};
    struct blocks b = {.size = 512};
    int h = old_file();

    (void)state;
    ok(io->ops->write(io, h, pattern(LONG, 1), LONG, 0, &e));
    sim_states(sim, NULL, look_at_blocks, &b, NULL); /* never below 512 bytes */
    for (size_t i = 0; i < sizeof halves / sizeof *halves; i++)
        assert_true(has_bits(&b, halves[i]));
    assert_int_equal(b.n, 6); /* none, all, and the two halves of 24 and of 3 blocks */
    io->ops->close(io, h);
}

static void
test_reordered(void **state)
{
    struct blocks b = {.size = 512};
    int h = old_file();

    (void)state;
    for (int i = 0; i < 3; i++)
        ok(io->ops->write(io, h, pattern(LONG, 1) + i * BLOCK + 512 * 3, 512,
                          (uint64_t)i * BLOCK + 512 * 3, &e));
    sim_states(sim, NULL, look_at_blocks, &b, NULL);
    assert_int_equal(b.n, 8); /* every subset, so also the last one without the first */
    io->ops->close(io, h);
}

static void
test_same_place_twice(void **state)
{
    struct seen s;
    int h = old_file();

    (void)state;
    ok(io->ops->write(io, h, pattern(LONG, 1), LONG, 0, &e));
    ok(io->ops->sync(io, h, &e));
    ok(io->ops->write(io, h, pattern(LONG, 0), LONG, 0, &e));
    sim_mark(sim, 1);
    ok(io->ops->sync(io, h, &e));
    sim_mark(sim, 2);
    s = states_of("f", NULL, 1);
    WANT(&s, "old", "new", "torn");
    s = states_of("f", NULL, 2);
    WANT(&s, "old");
    io->ops->close(io, h);
}

static void
test_lengths(void **state)
{
    struct seen s;
    int h = old_file();

    (void)state;
    ok(io->ops->truncate(io, h, 0, &e));
    sim_mark(sim, 1);
    ok(io->ops->sync(io, h, &e));
    ok(io->ops->reserve(io, h, LONG, &e));
    sim_mark(sim, 2);
    s = states_of("f", NULL, 1);
    WANT(&s, "old", "empty", "zeros");
    s = states_of("f", NULL, 2);
    WANT(&s, "empty", "zeros");
    io->ops->close(io, h);
}

static void
test_rename(void **state)
{
    struct seen s;

    (void)state;
    io->ops->close(io, old_file());
    ok(io->ops->rename(io, "f", "g", &e));
    sim_mark(sim, 1);
    ok(io->ops->sync_dir(io, ".", &e));
    sim_mark(sim, 2);
    s = states_of("f", "g", 1);
    WANT(&s, "old none", "none old"); /* atomic */
    s = states_of("f", "g", 2);
    WANT(&s, "none old");
}

/* Between folders: certain when both are synced, in either order. */
static void
test_rename_across(void **state)
{
    struct seen s;

    (void)state;
    for (int order = 0; order < 2; order++) {
        ok(io->ops->mkdir(io, "d", &e));
        io->ops->close(io, old_file());
        ok(io->ops->rename(io, "f", "d/f", &e));
        ok(io->ops->sync_dir(io, order ? "d" : ".", &e));
        sim_mark(sim, 1);
        ok(io->ops->sync_dir(io, order ? "." : "d", &e));
        sim_mark(sim, 2);
        s = states_of("f", "d/f", 1);
        WANT(&s, "old none", "none old");
        s = states_of("f", "d/f", 2);
        WANT(&s, "none old");
        ok(io->ops->unlink(io, "d/f", &e));
        ok(io->ops->rmdir(io, "d", &e));
        sim_settle(sim);
    }
}

static void
test_replace(void **state)
{
    struct seen s;
    int h;

    (void)state;
    io->ops->close(io, old_file());
    h = make("g");
    ok(io->ops->write(io, h, pattern(LONG, 1), LONG, 0, &e));
    ok(io->ops->rename(io, "g", "f", &e));
    sim_mark(sim, 1);
    ok(io->ops->sync(io, h, &e));
    sim_mark(sim, 2);
    io->ops->close(io, h);
    s = states_of("f", NULL, 1); /* the famous empty file */
    assert_true(has(&s, "empty") && has(&s, "old") && has(&s, "new") && has(&s, "torn"));
    assert_false(has(&s, "none"));
    s = states_of("f", NULL, 2);
    WANT(&s, "old", "new");
}

static void
test_unlink(void **state)
{
    struct seen s;

    (void)state;
    io->ops->close(io, old_file());
    ok(io->ops->link(io, "f", "g", &e));
    ok(io->ops->unlink(io, "f", &e));
    sim_mark(sim, 1);
    ok(io->ops->sync_dir(io, ".", &e));
    sim_mark(sim, 2);
    s = states_of("f", "g", 1);
    WANT(&s, "old none", "old old", "none none", "none old");
    s = states_of("f", "g", 2);
    WANT(&s, "none old");
}

/* A folder whose name is lost takes with it what is durable inside. */
static void
test_folder(void **state)
{
    struct seen s;
    int h;

    (void)state;
    ok(io->ops->mkdir(io, "d", &e));
    h = make("d/f");
    ok(io->ops->write(io, h, pattern(LONG, 1), LONG, 0, &e));
    ok(io->ops->sync(io, h, &e));
    io->ops->close(io, h);
    ok(io->ops->sync_dir(io, "d", &e));
    sim_mark(sim, 1);
    ok(io->ops->sync_dir(io, ".", &e));
    sim_mark(sim, 2);
    s = states_of("d/f", NULL, 1);
    WANT(&s, "none", "new");
    s = states_of("d/f", NULL, 2);
    WANT(&s, "new");
}

static int
any_name(void *arg, const char *name)
{
    (void)arg;
    print_message("found: %s\n", name);
    return 1;
}

static int
want_nothing(void *arg, struct io *at, uint64_t mark, const char *what)
{
    (void)arg;
    (void)mark;
    (void)what;
    return at->ops->list(at, ".", any_name, NULL, &e);
}

static void
test_nameless(void **state)
{
    static uint8_t p[LONG] __attribute__((aligned(BLOCK)));
    struct seen s;
    uint64_t n;
    int h = io->ops->open_nameless(io, ".", &e);

    (void)state;
    memcpy(p, pattern(LONG, 1), LONG);
    ok(io->ops->reserve(io, h, LONG, &e));
    ok(io->ops->write_bulk(io, h, p, LONG, 0, &e));
    ok(io->ops->sync(io, h, &e));
    ok(io->ops->sync_dir(io, ".", &e));
    sim_mark(sim, 1);
    assert_int_equal(sim_states(sim, NULL, want_nothing, NULL, &n), 0);
    assert_int_equal(n, 2); /* the empty root, for each mark */
    ok(io->ops->name(io, h, "f", &e));
    sim_mark(sim, 2);
    io->ops->close(io, h);
    s = states_of("f", NULL, 2);
    WANT(&s, "none", "new");
}

/* A sync that failed, and one that then succeeds: the data may be lost all the same. */
static void
test_failed_sync(void **state)
{
    struct seen s;

    (void)state;
    for (int fails = 0; fails < 2; fails++) {
        int h = old_file();

        ok(io->ops->write(io, h, pattern(LONG, 1), LONG, 0, &e));
        sim_fault(sim, &(struct sim_fault){.kinds = SIM_SYNC, .sys = EIO});
        if (!fails)
            sim_fault(sim, NULL);
        assert_int_equal(io->ops->sync(io, h, &e), fails ? -1 : 0);
        assert_int_equal(sim_failed(sim), fails);
        ok(io->ops->sync(io, h, &e));
        sim_mark(sim, 1);
        s = states_of("f", NULL, 1);
        if (fails)
            WANT(&s, "old", "new", "torn");
        else
            WANT(&s, "new");
        /* Written again it counts. */
        ok(io->ops->write(io, h, pattern(LONG, 1), LONG, 0, &e));
        ok(io->ops->sync(io, h, &e));
        sim_mark(sim, 2);
        s = states_of("f", NULL, 2);
        WANT(&s, "new");
        io->ops->close(io, h);
        ok(io->ops->unlink(io, "f", &e));
        sim_settle(sim);
    }
}

static void
test_failed_sync_dir(void **state)
{
    struct seen s;

    (void)state;
    io->ops->close(io, old_file());
    ok(io->ops->rename(io, "f", "g", &e));
    sim_fault(sim, &(struct sim_fault){.kinds = SIM_SYNC_DIR, .sys = EIO});
    assert_int_equal(io->ops->sync_dir(io, ".", &e), -1);
    ok(io->ops->sync_dir(io, ".", &e));
    sim_mark(sim, 1);
    s = states_of("f", "g", 1);
    WANT(&s, "old none", "none old");
}

static void
test_faults(void **state)
{
    static uint8_t got[8];
    int h = old_file();

    (void)state;
    sim_fail_at(sim, 1, ENOSPC); /* the second call, whatever it is */
    ok(io->ops->sync(io, h, &e));
    assert_int_equal(io->ops->write(io, h, "x", 1, 0, &e), -1);
    assert_true(e.code == ERR_QUOTA && e.sys == ENOSPC && sim_failed(sim));
    assert_int_equal(io->ops->read(io, h, got, 1, 0, &e), 1);
    assert_int_equal(got[0], pattern(1, 0)[0]); /* nothing was done */
    ok(io->ops->write(io, h, "x", 1, 0, &e));   /* once */

    sim_fault(
        sim,
        &(struct sim_fault){
            .kinds = SIM_WRITE, .at = 1, .sys = EIO, .how = SIM_HALF, .for_good = true});
    ok(io->ops->write(io, h, "aaaa", 4, 0, &e));
    ok(io->ops->sync(io, h, &e)); /* no write */
    for (int i = 0; i < 2; i++) {
        assert_int_equal(io->ops->write(io, h, "bbbb", 4, 0, &e), -1);
        assert_true(e.code == ERR_READ_ONLY && e.sys == EIO);
    }
    sim_fault(sim, NULL);
    assert_int_equal(io->ops->read(io, h, got, 4, 0, &e), 4);
    assert_memory_equal(got, "bbaa", 4);

    sim_fault(sim, &(struct sim_fault){.kinds = SIM_UNLINK, .sys = EIO, .how = SIM_AFTER});
    assert_int_equal(io->ops->unlink(io, "f", &e), -1);
    assert_int_equal(e.code, ERR_READ_ONLY);
    assert_int_equal(io->ops->unlink(io, "f", &e), -1);
    assert_int_equal(e.code, ERR_NOT_FOUND); /* it was done */
    assert_int_equal(sim_calls(sim, SIM_UNLINK), 2);
    assert_true(sim_ops(sim) > sim_calls(sim, SIM_UNLINK | SIM_WRITE));
    io->ops->close(io, h);
}

/* A state is a file system like any: it can be written to, crash, and leaves the others alone. */
static int
look_inside(void *arg, struct io *at, uint64_t mark, const char *what)
{
    struct seen inner = {.paths = {"g"}, .mark = 7};
    uint64_t *n = arg;
    int h;

    (void)what;
    if (mark != 1)
        return 0;
    assert_string_equal(way_of(at, "g"), "none");
    h = at->ops->open(at, "g", IO_WRITE | IO_CREATE, &e);
    ok(at->ops->write(at, h, pattern(LONG, 1), LONG, 0, &e));
    ok(at->ops->sync(at, h, &e));
    at->ops->close(at, h);
    sim_mark(sim_of(at), 7);
    assert_int_equal(sim_states(sim_of(at), NULL, look, &inner, NULL), 0);
    WANT(&inner, "none", "new");
    ++*n;
    return *n == 3 ? 42 : 0;
}

static void
test_states_of_states(void **state)
{
    uint64_t n = 0, looked;
    int h = old_file();

    (void)state;
    ok(io->ops->write(io, h, pattern(LONG, 1), LONG, 0, &e));
    sim_mark(sim, 1);
    io->ops->close(io, h);
    assert_int_equal(sim_states(sim, NULL, look_inside, &n, &looked), 42);
    assert_int_equal(n, 3);
    assert_string_equal(way_of(io, "f"), "new");
    assert_string_equal(way_of(io, "g"), "none");
}

/* Too many for all combinations: still each one lost alone, and the same ones every time. */
static void
test_samples(void **state)
{
    const struct sim_bounds seeds[] = {{.all = 256, .samples = 64, .seed = 1},
                                       {.all = 256, .samples = 64, .seed = 1},
                                       {.all = 256, .samples = 64, .seed = 2},
                                       {.all = 256, .samples = 0, .seed = 1}};
    uint64_t n[4];
    static struct blocks b = {.size = 512};
    int h = old_file();

    (void)state;
    for (int i = 0; i < 20; i++)
        ok(io->ops->write(io, h, pattern(LONG, 1) + i * 512, 512, (uint64_t)i * 512, &e));
    for (int i = 0; i < 4; i++) {
        struct seen s = {.paths = {"f"}};

        assert_int_equal(sim_states(sim, &seeds[i], look, &s, &n[i]), 0);
    }
    assert_int_equal(n[0], n[1]);
    assert_true(n[0] > n[3] && n[2] > n[3] && n[3] > 256);
    assert_int_equal(sim_states(sim, &seeds[3], look_at_blocks, &b, NULL), 0);
    for (int lost = 0; lost < 20; lost++) {
        assert_true(has_bits(&b, 0xfffff & ~(1u << lost)));
        assert_true(has_bits(&b, 1u << lost));
        assert_true(has_bits(&b, (1u << lost) - 1));
    }
    io->ops->close(io, h);
}

static int
set_up(void **state)
{
    (void)state;
    sim = sim_new();
    io = sim_io(sim);
    return 0;
}

static int
tear_down(void **state)
{
    (void)state;
    sim_free(sim);
    return 0;
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_name_and_data),
        TEST(test_data_without_sync),
        TEST(test_torn),
        TEST(test_reordered),
        TEST(test_same_place_twice),
        TEST(test_lengths),
        TEST(test_rename),
        TEST(test_rename_across),
        TEST(test_replace),
        TEST(test_unlink),
        TEST(test_folder),
        TEST(test_nameless),
        TEST(test_failed_sync),
        TEST(test_failed_sync_dir),
        TEST(test_faults),
        TEST(test_states_of_states),
        TEST(test_samples),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
