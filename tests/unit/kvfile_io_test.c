/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Publishing and reading files of class B: on a simulated file system after any crash and with any
 * call failing, and on the real one. The rule for all of it: a file is not there, or it is right;
 * and when publishing returned 0 it is there.
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "kvstore/io.h"
#include "kvstore/kvfile.h"
#include "tests/kvfile_sample.h"
#include "tests/sim_fs.h"
#include "tests/test.h"

enum { ROOM = 1 << 16 };

static const struct kvfile_sample *const all[] = {
    &kvfile_sample_chunk, &kvfile_sample_state, &kvfile_sample_plain};

enum { N_SAMPLES = sizeof all / sizeof *all };

/* 1: there and right; 0: not there; -1: anything else. */
static int
find(struct io *io, const struct kvfile_sample *s, struct err *e)
{
    static uint8_t image[ROOM] __attribute__((aligned(KVFILE_ALIGN)));
    uint64_t n;

    memset(e, 0, sizeof *e);
    if (kvfile_read(io, "s", &s->about, image, ROOM, &n, e) == -1)
        return e->code == ERR_NOT_FOUND ? 0 : -1;
    return kvfile_check(image, n, &kvfile_sample_model, &s->about, NULL, NULL, NULL, e) == 0
               ? 1
               : -1;
}

static struct sim *
new_sim(void)
{
    struct sim *sim = sim_new();
    struct io *io = sim_io(sim);
    struct err e;

    assert_int_equal(io->ops->mkdir(io, "s", &e), 0);
    assert_int_equal(io->ops->mkdir(io, "s/c", &e), 0);
    assert_int_equal(io->ops->mkdir(io, "s/k", &e), 0);
    sim_settle(sim);
    return sim;
}

static int
publish(struct io *io, const struct kvfile_sample *s, struct err *e)
{
    struct kvfile_plan plan;
    uint8_t *image = kvfile_sample_make(s, &plan);
    const int rc = kvfile_publish(io, "s", &s->about, image, plan.bytes, e);

    free(image);
    return rc;
}

/* The same in another order: with the name before the data are certain. */
static int
publish_wrongly(struct io *io, const struct kvfile_sample *s, struct err *e)
{
    char name[KVFILE_NAME_MAX], path[KVFILE_NAME_MAX + 2], dir[4] = "s/";
    struct kvfile_plan plan;
    uint8_t *image = kvfile_sample_make(s, &plan);
    int h, rc;

    kvfile_name(&s->about, name);
    snprintf(path, sizeof path, "s/%s", name);
    dir[2] = name[0];
    h = io->ops->open_nameless(io, dir, e);
    rc = io->ops->write_bulk(io, h, image, plan.bytes, 0, e);
    if (rc == 0)
        rc = io->ops->name(io, h, path, e);
    if (rc == 0)
        rc = io->ops->sync(io, h, e);
    io->ops->close(io, h);
    free(image);
    return rc == 0 ? io->ops->sync_dir(io, dir, e) : -1;
}

static int
look(void *arg, struct io *io, uint64_t mark, const char *what)
{
    const struct kvfile_sample *s = arg;
    struct err e;
    const int found = find(io, s, &e);

    if (found == 1 || (found == 0 && mark == 0))
        return 0;
    print_message("# %s: %s\n", what, found == 0 ? "it is not there" : e.text);
    return 1;
}

/* 0, or 1 if some state breaks the rule. */
static int
bad_states(struct sim *sim, const struct kvfile_sample *s, uint64_t *n)
{
    return sim_states(sim, NULL, look, (void *)(uintptr_t)s, n);
}

static void
test_crash(void **state)
{
    (void)state;
    for (int i = 0; i < N_SAMPLES; i++) {
        struct sim *sim = new_sim();
        struct err e;
        uint64_t n;

        assert_int_equal(publish(sim_io(sim), all[i], &e), 0);
        sim_mark(sim, 1);
        assert_int_equal(find(sim_io(sim), all[i], &e), 1);
        assert_int_equal(bad_states(sim, all[i], &n), 0);
        assert_true(n >= 3); /* without, with, and promised */
        assert_int_equal(sim_handles(sim), 0);
        sim_free(sim);
    }
}

/* Without its sync, without its folder's, in another order: some state shows it. */
static void
test_mutants(void **state)
{
    static const unsigned kinds[] = {SIM_SYNC, SIM_SYNC_DIR};

    (void)state;
    for (int i = 0; i < N_SAMPLES; i++) {
        struct sim *sim;
        struct err e;

        for (int k = 0; k < 2; k++) {
            sim = new_sim();
            sim_fault(sim, &(struct sim_fault){.kinds = kinds[k], .how = SIM_LIE});
            assert_int_equal(publish(sim_io(sim), all[i], &e), 0);
            sim_mark(sim, 1);
            assert_int_equal(bad_states(sim, all[i], NULL), 1);
            sim_free(sim);
        }
        sim = new_sim();
        assert_int_equal(publish_wrongly(sim_io(sim), all[i], &e), 0);
        sim_mark(sim, 1);
        assert_int_equal(bad_states(sim, all[i], NULL), 1);
        sim_free(sim);
    }
}

/* Its name is there already, but not yet for certain: the second call makes it so. */
static void
test_again(void **state)
{
    struct sim *sim = new_sim();
    struct err e;

    (void)state;
    sim_fault(sim, &(struct sim_fault){.kinds = SIM_SYNC_DIR, .how = SIM_LIE});
    assert_int_equal(publish(sim_io(sim), all[0], &e), 0);
    assert_int_equal(publish(sim_io(sim), all[0], &e), 0);
    sim_mark(sim, 1);
    assert_int_equal(bad_states(sim, all[0], NULL), 0);
    sim_settle(sim); /* and a third, when the file is promised: it is never away */
    sim_mark(sim, 1);
    assert_int_equal(publish(sim_io(sim), all[0], &e), 0);
    assert_int_equal(bad_states(sim, all[0], NULL), 0);
    sim_free(sim);
}

static void
want_refusal(const struct err *e, int sys)
{
    const bool full = sys == ENOSPC || sys == EDQUOT;

    if (e->code != (full ? ERR_QUOTA : ERR_READ_ONLY) || e->sys != sys ||
        e->text[0] == '\0')
        fail_msg("%s (%d) for %s: %s", err_name(e->code), e->sys, strerror(sys), e->text);
}

/* One run with this fault. False: it was never met. */
static bool
publish_with(const struct sim_fault *f, const struct kvfile_sample *s)
{
    struct sim *sim = new_sim();
    struct io *io = sim_io(sim);
    struct err e = {0};
    bool failed;
    int rc;

    sim_fault(sim, f);
    rc = publish(io, s, &e);
    failed = sim_failed(sim);
    sim_fault(sim, NULL);
    if (rc == 0)
        sim_mark(sim, 1);
    else
        want_refusal(&e, f->sys);
    if (!failed)
        assert_int_equal(rc, 0);
    /* Only where a call did what it said it had not, or even taking it back failed. */
    if (rc == -1 && f->how != SIM_AFTER && !f->for_good)
        assert_int_equal(find(io, s, &e), 0);
    assert_int_equal(bad_states(sim, s, NULL), 0);
    assert_int_equal(sim_handles(sim), 0);
    /* And when the disk is well again it works. */
    if (publish(io, s, &e) != 0)
        fail_msg("%s", e.text);
    sim_mark(sim, 1);
    assert_int_equal(bad_states(sim, s, NULL), 0);
    sim_free(sim);
    return failed;
}

static void
test_error_sweep(void **state)
{
    static const int errors[] = {EIO, ENOSPC, EDQUOT, EINTR};
    uint64_t runs = 0;

    (void)state;
    for (int i = 0; i < N_SAMPLES; i++)
        for (int how = SIM_BEFORE; how <= SIM_AFTER; how++)
            for (int x = 0; x < 4; x++)
                for (int for_good = 0; for_good < 2; for_good++)
                    for (uint64_t k = 0;; k++, runs++) {
                        const struct sim_fault f = {.at = k,
                                                    .sys = errors[x],
                                                    .how = (enum sim_how)how,
                                                    .for_good = for_good};

                        if (!publish_with(&f, all[i])) {
                            assert_true(k >= 6); /* it has that many calls at least */
                            break;
                        }
                    }
    print_message("# %d runs\n", (int)runs);
}

/* A sync that fails once is answered with another file, for good with an error. */
static void
test_failed_sync(void **state)
{
    static const unsigned kinds[] = {SIM_SYNC, SIM_SYNC_DIR};

    (void)state;
    for (int k = 0; k < 2; k++) {
        struct sim *sim = new_sim();
        struct err e;

        sim_fault(sim, &(struct sim_fault){.kinds = kinds[k], .sys = EIO});
        assert_int_equal(publish(sim_io(sim), all[0], &e), 0);
        assert_true(sim_failed(sim));
        assert_int_equal(sim_calls(sim, SIM_OPEN_NAMELESS), 2);
        sim_mark(sim, 1);
        assert_int_equal(bad_states(sim, all[0], NULL), 0);
        sim_free(sim);

        sim = new_sim();
        sim_fault(sim,
                  &(struct sim_fault){.kinds = kinds[k], .sys = EIO, .for_good = true});
        assert_int_equal(publish(sim_io(sim), all[0], &e), -1);
        want_refusal(&e, EIO);
        assert_int_equal(sim_calls(sim, SIM_OPEN_NAMELESS), 2);
        sim_free(sim);

        sim = new_sim(); /* full is full: no second try */
        sim_fault(sim, &(struct sim_fault){.kinds = SIM_SYNC, .sys = ENOSPC});
        assert_int_equal(publish(sim_io(sim), all[0], &e), -1);
        want_refusal(&e, ENOSPC);
        assert_int_equal(sim_calls(sim, SIM_OPEN_NAMELESS), 1);
        sim_free(sim);
    }
}

static void
test_read_errors(void **state)
{
    static uint8_t image[ROOM] __attribute__((aligned(KVFILE_ALIGN)));
    struct sim *sim = new_sim();
    struct io *io = sim_io(sim);
    char name[KVFILE_NAME_MAX], path[KVFILE_NAME_MAX + 2];
    struct err e;
    uint64_t n;
    int h;

    (void)state;
    assert_int_equal(find(io, all[0], &e), 0);
    assert_int_equal(publish(io, all[0], &e), 0);
    for (uint64_t k = 0;; k++) {
        sim_fail_at(sim, k, EIO);
        h = find(io, all[0], &e);
        if (!sim_failed(sim))
            break;
        assert_int_equal(h, -1);
        assert_int_equal(e.code, ERR_DAMAGED);
        assert_int_equal(sim_handles(sim), 0);
    }
    assert_int_equal(h, 1);
    assert_int_equal(kvfile_read(io, "s", &all[0]->about, image, 4096, &n, &e), -1);
    assert_int_equal(e.code,
                     ERR_DAMAGED); /* no room: not the file that the ledger tells of */

    kvfile_name(&all[0]->about, name);
    snprintf(path, sizeof path, "s/%s", name);
    for (uint64_t cut = 4096 * 3 + 1; cut > 0;
         cut = cut / 4096 * 4096 - (cut % 4096 == 0)) {
        h = io->ops->open(io, path, IO_WRITE, &e);
        assert_int_equal(io->ops->truncate(io, h, cut, &e), 0);
        io->ops->close(io, h);
        assert_int_equal(find(io, all[0], &e), -1);
        assert_int_equal(e.code, ERR_DAMAGED);
    }
    sim_free(sim);
}

/* The real file system, by both ways of bulk transfer. */
static void
test_real(void **state)
{
    char folder[] = "kvfile_io_test_XXXXXX";
    struct err e;

    (void)state;
    assert_non_null(mkdtemp(folder));
    for (int uring = 0; uring < 2; uring++) {
        struct io *io = io_open_root(folder, uring, &e);

        assert_non_null(io);
        assert_int_equal(publish(io, all[0], &e), -1);
        assert_int_equal(e.code, ERR_NOT_FOUND);
        assert_int_equal(io->ops->mkdir(io, "s", &e), 0);
        assert_int_equal(io->ops->mkdir(io, "s/c", &e), 0);
        assert_int_equal(io->ops->mkdir(io, "s/k", &e), 0);
        for (int i = 0; i < N_SAMPLES; i++) {
            char name[KVFILE_NAME_MAX], path[KVFILE_NAME_MAX + 2];

            assert_int_equal(find(io, all[i], &e), 0);
            for (int twice = 0; twice < 2; twice++) {
                if (publish(io, all[i], &e) != 0)
                    fail_msg("%s", e.text);
                assert_int_equal(find(io, all[i], &e), 1);
            }
            kvfile_name(&all[i]->about, name);
            snprintf(path, sizeof path, "s/%s", name);
            assert_int_equal(io->ops->unlink(io, path, &e), 0);
        }
        assert_int_equal(io->ops->rmdir(io, "s/c", &e), 0);
        assert_int_equal(io->ops->rmdir(io, "s/k", &e), 0);
        assert_int_equal(io->ops->rmdir(io, "s", &e), 0);
        io_close_root(io);
    }
    assert_int_equal(rmdir(folder), 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_crash),       cmocka_unit_test(test_mutants),
        cmocka_unit_test(test_again),       cmocka_unit_test(test_error_sweep),
        cmocka_unit_test(test_failed_sync), cmocka_unit_test(test_read_errors),
        cmocka_unit_test(test_real),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
