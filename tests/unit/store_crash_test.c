/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The store after a power cut at any point of a workload, in any state that the disk may be in: what
 * was acknowledged is there, nothing is there by half, and recovering twice is recovering once.
 * The controls: the same workloads in a wrong order, and with syncs that do nothing, must fail.
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

enum { MOST_STEPS = 80 };

/* A session's life: every kind of commit, files that come and go. */
static const struct step one[] = {
    {STEP_CREATE, 0, 700}, {STEP_OPEN, 0, 0},   {STEP_APPEND, 0, 16}, {STEP_POINT, 0, 0},
    {STEP_CHUNK, 0, 5},    {STEP_STATE, 0, 0},  {STEP_APPEND, 0, 60}, {STEP_CHUNK, 0, 1},
    {STEP_STATE, 0, 0},    {STEP_DROP, 0, 0},   {STEP_CUT, 0, 200},   {STEP_APPEND, 0, 300},
    {STEP_CHUNK, 0, 1},    {STEP_RENAME, 0, 1}, {STEP_CLOSE, 0, 0},   {STEP_SWEEP, 0, 0},
    {STEP_REOPEN, 0, 0},   {STEP_OPEN, 0, 0},   {STEP_APPEND, 0, 1},  {STEP_CLOSE, 0, 0},
    {STEP_END, 0, 0},
};

/* Sessions that come and go, and share files. */
static const struct step many[] = {
    {STEP_CREATE, 0, 300}, {STEP_OPEN, 0, 0},       {STEP_CHUNK, 0, 2},
    {STEP_STATE, 0, 0},    {STEP_FORK, 0, 1},       {STEP_OPEN, 1, 0},
    {STEP_APPEND, 1, 5},   {STEP_APPEND, 0, 9},     {STEP_CLOSE, 0, 0},
    {STEP_DELETE, 0, 0},   {STEP_CREATE, 2, 1},     {STEP_SWEEP, 0, 0},
    {STEP_STATE, 1, 0},    {STEP_QUARANTINE, 2, 0}, {STEP_CLOSE, 1, 0},
    {STEP_FORK, 1, 3},     {STEP_DELETE, 1, 0},     {STEP_REOPEN, 0, 0},
    {STEP_SWEEP, 0, 0},    {STEP_OPEN, 3, 0},       {STEP_RENAME, 3, 7},
    {STEP_CLOSE, 3, 0},    {STEP_END, 0, 0},
};

/* Until the WAL goes to where its pages belong while the session is open. */
#define SIX                                                                             \
    {STEP_APPEND, 0, 16}, {STEP_APPEND, 0, 1}, {STEP_POINT, 0, 0}, {STEP_APPEND, 0, 7}, \
        {STEP_CUT, 0, 30},                                                              \
    {                                                                                   \
        STEP_APPEND, 0, 900                                                             \
    }

static const struct step full[] = {
    {STEP_CREATE, 0, 700},
    {STEP_OPEN, 0, 0},
    SIX,
    SIX,
    SIX,
    SIX,
    SIX,
    SIX,
    SIX,
    SIX,
    {STEP_SETTLE, 0, 0},
    SIX,
    SIX,
    SIX,
    {STEP_CLOSE, 0, 0},
    {STEP_END, 0, 0},
};

static char texts[MOST_STEPS + 2][SCRIPT_TEXT];
static unsigned n_synced, n_synced_open; /* until the store was open */
static uint64_t settled;                 /* the mark of states in front of the first one */
static uint64_t faulty; /* the mark during which the fault was met; 0: it was not */

/* Runs a script to its end; texts[k] is the store after k steps. The steps done. */
static unsigned
run(struct sim *sim, const struct step *steps)
{
    struct err e = {0};
    struct script x;
    unsigned k = 0;

    settled = faulty = 0;
    if (script_begin(&x, sim_io(sim), &e) == -1)
        fail_msg("open: %s", e.text);
    n_synced_open = n_synced;
    script_want(&x, texts[0]);
    sim_mark(sim, 1); /* 0: no store was promised yet */
    for (; steps[k].kind != STEP_END; k++) {
        assert_true(k < MOST_STEPS);
        if (script_step(&x, &steps[k], &e) == -1)
            fail_msg("step %u: %s", k, e.text);
        script_want(&x, texts[k + 1]);
        if (faulty == 0 && sim_failed(sim))
            faulty = k + 1;
        if (steps[k].kind == STEP_SETTLE) {
            sim_settle(sim);
            settled = k + 2;
        }
        sim_mark(sim, k + 2);
    }
    script_end(&x);
    memcpy(texts[k + 1], texts[k], SCRIPT_TEXT);
    return k;
}

/* The suite looks at one state in four; `make nightly` at all, and makes more. */
static bool nightly;
static const struct sim_bounds few = {.all = 4, .samples = 1, .seed = 1};
static const struct sim_bounds many_states = {.all = 64, .samples = 16, .seed = 2};

struct looking {
    unsigned every; /* so-manieth state */
    uint64_t n, n_checked;
    unsigned done_every; /* those that an earlier look had; 0: none */
    bool stop_quietly;   /* a mutant: the first finding is what is wanted */
    bool found;
};

static int
look(void *arg, struct io *io, uint64_t mark, const char *what)
{
    struct looking *l = arg;
    const char *why;

    const uint64_t n = l->n++;

    if (n % l->every != 0 || (l->done_every != 0 && n % l->done_every == 0))
        return 0;
    l->n_checked++;
    mark = mark > 0 ? mark : settled;
    why = script_check(io, texts[mark > 0 ? mark - 1 : 0], texts[mark],
                       l->n_checked % 8 == 1);
    if (why == NULL)
        return 0;
    l->found = true;
    if (!l->stop_quietly)
        print_message("# after %" PRIu64 " steps, %s: %s\n", mark, what, why);
    return 1;
}

static void
all_states(const struct step *steps, const char *name)
{
    struct looking l = {.every = nightly ? 1 : 4};
    struct sim *sim = sim_new();
    uint64_t n = 0;
    unsigned k = run(sim, steps);
    const uint64_t calls = sim_ops(sim);

    sim_states(sim, nightly ? &many_states : &few, look, &l, &n);
    sim_free(sim);
    print_message("# %s: %u steps, %" PRIu64 " calls, %" PRIu64 " states, %" PRIu64
                  " looked at\n",
                  name, k, calls, n, l.n_checked);
    assert_false(l.found);
}

static void
test_one(void **state)
{
    (void)state;
    all_states(one, "one session");
}

static void
test_many(void **state)
{
    (void)state;
    all_states(many, "many sessions");
}

static void
test_full_wal(void **state)
{
    (void)state;
    all_states(full, "a full WAL");
}

/* Of a mutant; a fault is NULL or a sync that lies. What a power cut before the fault leaves is none
 * of it. Most are seen in many states, so one in 32 is looked at first, then the others. */
static bool
is_found(const struct step *steps, const struct sim_fault *fault)
{
    struct looking l = {.every = 32, .stop_quietly = true};
    struct sim_bounds bounds = few;
    struct sim *sim = sim_new();

    sim_fault(sim, fault);
    run(sim, steps);
    assert_true(fault == NULL || faulty > 0);
    bounds.from = faulty;
    sim_states(sim, &bounds, look, &l, NULL);
    if (!l.found) {
        l = (struct looking){.every = 1, .done_every = 32, .stop_quietly = true};
        sim_states(sim, &bounds, look, &l, NULL);
    }
    sim_free(sim);
    return l.found;
}

static void
test_wrong_order(void **state)
{
    static const struct step row_first[] = {
        {STEP_CREATE, 0, 300}, {STEP_OPEN, 0, 0}, {STEP_CHUNK_ROW_FIRST, 0, 1},
        {STEP_CLOSE, 0, 0},    {STEP_END, 0, 0},
    };
    static const struct step file_first[] = {
        {STEP_CREATE, 0, 300},        {STEP_OPEN, 0, 0},  {STEP_STATE, 0, 0},
        {STEP_DROP_FILE_FIRST, 0, 0}, {STEP_CLOSE, 0, 0}, {STEP_END, 0, 0},
    };

    (void)state;
    assert_true(is_found(row_first, NULL));
    assert_true(is_found(file_first, NULL));
}

/* What is synced, in order: in front of the simulated file system. */
enum { MOST_SYNCS = 100, NAME_ROOM = 128 };

static const struct io_ops *real;
static char handles[256][NAME_ROOM], synced[MOST_SYNCS][NAME_ROOM];

static int
note_open(struct io *io, const char *path, int flags, struct err *e)
{
    const int h = real->open(io, path, flags, e);

    if (h >= 0 && h < 256)
        snprintf(handles[h], NAME_ROOM, "%s", path);
    return h;
}

static int
note_nameless(struct io *io, const char *dir, struct err *e)
{
    const int h = real->open_nameless(io, dir, e);

    if (h >= 0 && h < 256)
        snprintf(handles[h], NAME_ROOM, "%s/file", dir);
    return h;
}

static int
note_sync(struct io *io, int h, struct err *e)
{
    if (n_synced < MOST_SYNCS)
        snprintf(synced[n_synced++], NAME_ROOM, "%s", handles[h]);
    return real->sync(io, h, e);
}

static int
note_sync_dir(struct io *io, const char *dir, struct err *e)
{
    if (n_synced < MOST_SYNCS)
        snprintf(synced[n_synced++], NAME_ROOM, "%s/", dir);
    return real->sync_dir(io, dir, e);
}

/* Those whose loss a power cut alone does not show: of the index, a cache; of folders that a fathomd
 * may have made that was killed; and two of SQLite's: of a WAL's head, whose checksums tell the same,
 * and in front of a checkpoint, when each commit has synced the WAL already. */
static bool
is_spare(unsigned k)
{
    static const char wal[] = "session.db-wal";
    const char *end = synced[k] + strlen(synced[k]);
    const bool is_wal = end - synced[k] > (ptrdiff_t)sizeof wal &&
                        strcmp(end - sizeof wal + 1, wal) == 0;

    if (strncmp(synced[k], "index.db", 8) == 0 || strcmp(synced[k], "./") == 0 || k < 2)
        return true;
    /* The folder is synced between the head and the first frames; and the database comes last. */
    return is_wal && k + 1 < n_synced &&
           (strstr(synced[k + 1], "session.db") == NULL
                ? strncmp(synced[k + 1], "sessions/", 9) == 0 &&
                      strlen(synced[k + 1]) == strlen(synced[k]) - sizeof wal + 1
                : strcmp(synced[k + 1] + strlen(synced[k + 1]) - 10, "session.db") == 0);
}

/* Runs it to see what it syncs. */
static void
note_syncs(const struct step *steps)
{
    struct sim *sim = sim_new();
    struct io_ops noting;

    real = sim_io(sim)->ops;
    noting = *real;
    noting.open = note_open;
    noting.open_nameless = note_nameless;
    noting.sync = note_sync;
    noting.sync_dir = note_sync_dir;
    sim_io(sim)->ops = &noting;
    n_synced = 0;
    run(sim, steps);
    sim_free(sim);
}

/* A sync of the index that fails takes nothing from the sessions: every step is done, and is there after
 * any crash. */
static void
test_index_fails(void **state)
{
    static const struct step steps[] = {
        {STEP_CREATE, 0, 300}, {STEP_CREATE, 1, 20}, {STEP_OPEN, 0, 0},
        {STEP_APPEND, 0, 16},  {STEP_CHUNK, 0, 1},   {STEP_OPEN, 1, 0},
        {STEP_APPEND, 1, 9},   {STEP_RENAME, 1, 2},  {STEP_CLOSE, 0, 0},
        {STEP_DELETE, 0, 0},   {STEP_FORK, 1, 3},    {STEP_CLOSE, 1, 0},
        {STEP_SWEEP, 0, 0},    {STEP_REOPEN, 0, 0},  {STEP_END, 0, 0},
    };
    uint64_t n = 0, looked = 0;

    (void)state;
    note_syncs(steps);
    for (unsigned k = n_synced_open; k < n_synced; k++) {
        struct looking l = {.every = nightly ? 1 : 40};
        struct sim *sim;

        if (strncmp(synced[k], "index.db", 8) != 0)
            continue;
        for (int how = SIM_BEFORE; how <= SIM_AFTER; how++) {
            sim = sim_new();
            sim_fault(sim, &(struct sim_fault){.kinds = SIM_SYNC | SIM_SYNC_DIR,
                                               .at = k,
                                               .sys = EIO,
                                               .how = (enum sim_how)how});
            run(sim, steps);
            assert_true(sim_failed(sim));
            sim_states(sim, &few, look, &l, NULL);
            sim_free(sim);
            if (l.found)
                fail_msg("sync %u, of %s, failed", k, synced[k]);
            looked += l.n_checked;
            n++;
        }
    }
    print_message("# %" PRIu64 " syncs of the index failed: all steps were done; %" PRIu64
                  " states looked at\n",
                  n, looked);
    assert_true(n >= 6 && looked > 100);
}

/* Each sync in turn does nothing and says that it did. */
static void
test_lies(void **state)
{
    static const struct step steps[] = {
        {STEP_CREATE, 0, 300}, {STEP_OPEN, 0, 0},  {STEP_APPEND, 0, 16}, {STEP_CHUNK, 0, 1},
        {STEP_FORK, 0, 1},     {STEP_CLOSE, 0, 0}, {STEP_DELETE, 0, 0},  {STEP_END, 0, 0},
    };
    unsigned n_found = 0;

    (void)state;
    note_syncs(steps);
    for (unsigned k = 0; k < n_synced; k++) {
        const struct sim_fault lie = {
            .kinds = SIM_SYNC | SIM_SYNC_DIR, .at = k, .how = SIM_LIE};

        if (is_spare(k))
            continue;
        if (!is_found(steps, &lie))
            fail_msg("nobody needs sync %u, of %s", k, synced[k]);
        n_found++;
    }
    print_message(
        "# %u of %u syncs that lied were found out; the others are not needed here\n",
        n_found, n_synced);
    assert_true(n_found >= 19);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {

        cmocka_unit_test(test_one),      cmocka_unit_test(test_many),
        cmocka_unit_test(test_full_wal), cmocka_unit_test(test_wrong_order),
        cmocka_unit_test(test_lies),     cmocka_unit_test(test_index_fails),
    };

    nightly = getenv("FATHOM_NIGHTLY") != NULL;
    return cmocka_run_group_tests_name("store crash", tests, NULL, NULL);
}
