/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The store when a call to the file system fails, for every call of a workload: the step says so,
 * nothing that was acknowledged is lost, a full disk costs nothing but the step, and a fathomd that
 * is started again finds a store that is sound. And when a fathomd was killed at any call, another
 * one went on, and then the power was cut: what the first had not synced the second must have.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kvstore/io.h"
#include "tests/sim_fs.h"
#include "tests/store_script.h"
#include "tests/test.h"

enum { MOST_STEPS = 40 };

static const struct step one[] = {
    {STEP_CREATE, 0, 700}, {STEP_OPEN, 0, 0},   {STEP_APPEND, 0, 16}, {STEP_POINT, 0, 0},
    {STEP_CHUNK, 0, 5},    {STEP_STATE, 0, 0},  {STEP_DROP, 0, 0},    {STEP_CUT, 0, 200},
    {STEP_APPEND, 0, 900}, {STEP_RENAME, 0, 1}, {STEP_CLOSE, 0, 0},   {STEP_SWEEP, 0, 0},
    {STEP_OPEN, 0, 0},     {STEP_APPEND, 0, 1}, {STEP_CLOSE, 0, 0},   {STEP_END, 0, 0},
};

static const struct step many[] = {
    {STEP_CREATE, 0, 300}, {STEP_OPEN, 0, 0},  {STEP_CHUNK, 0, 2},
    {STEP_STATE, 0, 0},    {STEP_FORK, 0, 1},  {STEP_OPEN, 1, 0},
    {STEP_APPEND, 1, 5},   {STEP_CLOSE, 0, 0}, {STEP_DELETE, 0, 0},
    {STEP_CREATE, 2, 1},   {STEP_SWEEP, 0, 0}, {STEP_QUARANTINE, 2, 0},
    {STEP_CLOSE, 1, 0},    {STEP_FORK, 1, 3},  {STEP_DELETE, 1, 0},
    {STEP_SWEEP, 0, 0},    {STEP_OPEN, 3, 0},  {STEP_RENAME, 3, 7},
    {STEP_CLOSE, 3, 0},    {STEP_END, 0, 0},
};

static const int errnos[] = {EIO, ENOSPC, EDQUOT};
static char texts[MOST_STEPS + 2][SCRIPT_TEXT];
static bool nightly;

/* Without a fault: texts, and the number of calls. */
static uint64_t
rehearse(const struct step *steps)
{
    struct sim *sim = sim_new();
    struct err e = {0};
    struct script x;
    uint64_t n;
    unsigned k = 0;

    assert_int_equal(script_begin(&x, sim_io(sim), &e), 0);
    script_want(&x, texts[0]);
    for (; steps[k].kind != STEP_END; k++) {
        assert_true(k < MOST_STEPS);
        if (script_step(&x, &steps[k], &e) == -1)
            fail_msg("step %u: %s", k, e.text);
        script_want(&x, texts[k + 1]);
    }
    memcpy(texts[k + 1], texts[k], SCRIPT_TEXT);
    script_end(&x);
    n = sim_ops(sim);
    sim_free(sim);
    return n;
}

/* Steps done before one failed. *again: that was done once more, which went well. */
static unsigned
run(struct sim *sim, const struct step *steps, bool may_retry, bool *again, struct err *e)
{
    struct script x;
    unsigned k = 0;

    memset(e, 0, sizeof *e);
    *again = false;
    if (script_begin(&x, sim_io(sim), e) == 0) {
        for (; steps[k].kind != STEP_END; k++) {
            struct err second = {0};

            if (script_step(&x, &steps[k], e) == 0)
                continue;
            if (e->code != ERR_QUOTA || !may_retry)
                break;
            if (script_step(&x, &steps[k], &second) == -1)
                fail_msg("step %u: %s; and again: %s", k, e->text, second.text);
            *again = true;
        }
    } else {
        x.catalog = NULL;
    }
    script_end(&x);
    return k;
}

struct tally {
    uint64_t runs, failed, unnoticed, again;
};

static void
fault(const struct step *steps, const struct sim_fault *f, struct tally *t)
{
    struct sim *sim = sim_new();
    struct err e;
    const char *why;
    bool again;
    unsigned k;

    sim_fault(sim, f);
    /* Once, and nothing was done: then a full disk is no more than a step that waits. */
    k = run(sim, steps, !f->for_good && f->how != SIM_AFTER, &again, &e);
    t->runs++;
    t->again += again;
    if (steps[k].kind != STEP_END) {
        t->failed++;
        if (e.code == ERR_NONE || e.text[0] == '\0')
            fail_msg("call %" PRIu64 ": a failure without a word", f->at);
    } else if (!again) {
        t->unnoticed++;
    }
    assert_int_equal(sim_handles(sim), 0);
    sim_fault(sim, NULL);
    why = script_check(sim_io(sim), texts[k], texts[k + 1], true);
    if (why != NULL)
        fail_msg("call %" PRIu64 ", errno %d, how %d: after %u steps (%s): %s", f->at,
                 f->sys, (int)f->how, k, e.text, why);
    sim_free(sim);
}

/* In the suite each call fails in one way, all ways in turn; at night each in each. */
static void
sweep(const struct step *steps, const char *name)
{
    const uint64_t n = rehearse(steps);
    struct tally t = {0};

    for (uint64_t k = 0; k < n; k++) {
        for (unsigned way = 0; way < 12; way++) {
            const struct sim_fault f = {.at = k,
                                        .sys = errnos[way % 3],
                                        .how = way / 3 == 0   ? SIM_BEFORE
                                               : way / 3 == 1 ? SIM_HALF
                                               : way / 3 == 2 ? SIM_AFTER
                                                              : SIM_BEFORE,
                                        .for_good = way / 3 == 3};

            if (nightly || k % 12 == way)
                fault(steps, &f, &t);
        }
    }
    print_message("# %s: %" PRIu64 " calls, %" PRIu64 " runs with a fault: %" PRIu64
                  " failed a step, %" PRIu64 " were made good by trying again, %" PRIu64
                  " did not matter\n",
                  name, n, t.runs, t.failed, t.again, t.unnoticed);
    assert_true(t.failed > t.runs / 4);
    assert_true(t.again > 0);
}

static void
test_one(void **state)
{
    (void)state;
    sweep(one, "one session");
}

static void
test_many(void **state)
{
    (void)state;
    sweep(many, "many sessions");
}

/* A process that is killed: from some call on nothing that it asks for is done, and unlike with a
 * fault the file system knows nothing of it: what was not synced may still be, by another. */
static const struct io_ops *real;
static uint64_t calls_left;

static bool
is_dead(struct err *e)
{
    if (calls_left == 0) {
        err_set(e, ERR_INTERNAL, EIO, "killed");
        return true;
    }
    calls_left--;
    return false;
}

#define MORTAL(type, name, takes, gives)           \
    static type mortal_##name takes                \
    {                                              \
        return is_dead(e) ? -1 : real->name gives; \
    }

MORTAL(int, open, (struct io * io, const char *p, int how, struct err *e), (io, p, how, e))
MORTAL(int, open_nameless, (struct io * io, const char *dir, struct err *e), (io, dir, e))
MORTAL(ssize_t, read,
       (struct io * io, int h, void *p, size_t n, uint64_t at, struct err *e),
       (io, h, p, n, at, e))
MORTAL(int, write,
       (struct io * io, int h, const void *p, size_t n, uint64_t at, struct err *e),
       (io, h, p, n, at, e))
MORTAL(int, write_bulk,
       (struct io * io, int h, const void *p, size_t n, uint64_t at, struct err *e),
       (io, h, p, n, at, e))
MORTAL(int, reserve, (struct io * io, int h, uint64_t n, struct err *e), (io, h, n, e))
MORTAL(int, truncate, (struct io * io, int h, uint64_t n, struct err *e), (io, h, n, e))
MORTAL(int, sync, (struct io * io, int h, struct err *e), (io, h, e))
MORTAL(int, sync_dir, (struct io * io, const char *dir, struct err *e), (io, dir, e))
MORTAL(int, name, (struct io * io, int h, const char *p, struct err *e), (io, h, p, e))
MORTAL(int, link, (struct io * io, const char *a, const char *b, struct err *e),
       (io, a, b, e))
MORTAL(int, rename, (struct io * io, const char *a, const char *b, struct err *e),
       (io, a, b, e))
MORTAL(int, unlink, (struct io * io, const char *p, struct err *e), (io, p, e))
MORTAL(int, mkdir, (struct io * io, const char *p, struct err *e), (io, p, e))
MORTAL(int, rmdir, (struct io * io, const char *p, struct err *e), (io, p, e))

enum { LATER = 1000 };

struct later {
    char text[SCRIPT_TEXT];
    uint64_t n, looked;
    const char *why;
};

static int
look(void *arg, struct io *io, uint64_t mark, const char *what)
{
    struct later *l = arg;

    (void)what;
    assert_true(mark == LATER);
    if (!nightly && l->n++ % 4 != 0)
        return 0;
    l->looked++;
    l->why = script_check(io, l->text, l->text, false);
    return l->why != NULL;
}

static int
first_one(void *arg, const struct catalog_entry *en)
{
    *(struct catalog_entry *)arg = *en;
    return 1;
}

/* Another process, on what the first has left in the page cache, changes a session, if there is
 * one; l->text is then what must not be lost. False: nothing to change. */
static bool
go_on(struct sim *sim, struct later *l)
{
    struct catalog_entry en;
    struct ledger_change change = {.meta = &en.meta};
    struct ledger *ledger;
    char dir[CATALOG_DIR_MAX];
    struct catalog *c;
    struct err e = {0};
    bool any;

    if (catalog_open(sim_io(sim), &c, &e) == -1)
        fail_msg("open again: %s", e.text);
    any = catalog_each(c, first_one, &en, &e) == 1;
    if (any) {
        en.meta.turns++;
        catalog_dir(&en.id, dir);
        if (catalog_hot(c, &en.id, true, &e) == -1 ||
            ledger_open(sim_io(sim), dir, false, &ledger, &e) == -1)
            fail_msg("open a session again: %s", e.text);
        snprintf(en.meta.name, sizeof en.meta.name, "second");
        if (ledger_commit(ledger, &change, &e) == -1 || catalog_note(c, &en, &e) == -1)
            fail_msg("a second process: %s", e.text);
        ledger_close(ledger);
        if (script_have(sim_io(sim), c, l->text, &e) == -1)
            fail_msg("a second process: %s", e.text);
        sim_mark(sim, LATER);
    }
    catalog_close(c);
    return any;
}

/* Runs `many`, killed at that call. */
static void
run_and_die(struct sim *sim, uint64_t at)
{
    struct io *io = sim_io(sim);
    struct io_ops ops = *io->ops;
    struct err e;
    bool again;

    real = io->ops;
    calls_left = at;
    ops.open = mortal_open;
    ops.open_nameless = mortal_open_nameless;
    ops.read = mortal_read;
    ops.write = mortal_write;
    ops.write_bulk = mortal_write_bulk;
    ops.reserve = mortal_reserve;
    ops.truncate = mortal_truncate;
    ops.sync = mortal_sync;
    ops.sync_dir = mortal_sync_dir;
    ops.name = mortal_name;
    ops.link = mortal_link;
    ops.rename = mortal_rename;
    ops.unlink = mortal_unlink;
    ops.mkdir = mortal_mkdir;
    ops.rmdir = mortal_rmdir;
    io->ops = &ops;
    run(sim, many, false, &again, &e);
    io->ops = real;
}

static void
test_killed_then_power_cut(void **state)
{
    const uint64_t n = rehearse(many);
    uint64_t looked = 0, kills = 0;

    (void)state;
    for (uint64_t k = 0; k < n; k += nightly ? 1 : 11) {
        struct sim *sim = sim_new();
        struct later *l = calloc(1, sizeof *l);

        assert_non_null(l);
        run_and_die(sim, k);
        if (go_on(sim, l)) {
            sim_states(
                sim, &(struct sim_bounds){.all = 4, .samples = 1, .seed = k, .from = LATER},
                look, l, NULL);
            if (l->why != NULL)
                fail_msg("killed at call %" PRIu64 ": %s", k, l->why);
            kills++;
        }
        looked += l->looked;
        free(l);
        sim_free(sim);
    }
    print_message("# %" PRIu64 " kills, %" PRIu64 " states after a second process\n", kills,
                  looked);
    assert_true(looked > 50);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one),
        cmocka_unit_test(test_many),
        cmocka_unit_test(test_killed_then_power_cut),
    };

    nightly = getenv("FATHOM_NIGHTLY") != NULL;
    return cmocka_run_group_tests_name("store faults", tests, NULL, NULL);
}
