/* SPDX-License-Identifier: Apache-2.0 */
/* The transcript, its checkpoints and results, and the quotas that they count against. */
#include "config.h"

#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "daemon/options.h"
#include "daemon/quota.h"
#include "daemon/session_log.h"
#include "tests/test.h"

static struct options limits = {.max_tokens = 5000,
                                .max_tokens_user = 3000,
                                .max_disk = 100000,
                                .max_disk_user = 100000};
static const uint32_t ids[1000] = {11, 22, 33, 44, 55};

struct fixture {
    struct quota q;
    struct user *u;
    struct session_log l;
};

static int
setup(void **state)
{
    static struct fixture f;
    struct err e;

    quota_init(&f.q, &limits);
    f.u = quota_user(&f.q, 1, &e);
    session_log_init(&f.l, f.u, 4);
    *state = &f;
    return 0;
}

static int
teardown(void **state)
{
    struct fixture *f = *state;

    session_log_done(&f->l);
    quota_drop(f->u); /* asserts that nothing is left counted */
    quota_done(&f->q);
    return 0;
}

static void
appends_within_quota(void **state)
{
    struct fixture *f = *state;
    struct err e;

    for (int i = 0; i < 3; i++)
        assert_int_equal(session_log_append(&f->l, ids, 1000, &e), 0);
    assert_int_equal(session_log_append(&f->l, ids, 1, &e), -1);
    assert_int_equal(e.code, ERR_QUOTA);
    assert_int_equal(f->l.len, 3000);
    assert_int_equal(f->u->used[QUOTA_TOKENS], 3000);
    assert_int_equal(f->l.tokens[2001], 22);
    assert_int_equal(session_log_truncate(&f->l, 2999, &e), 0);
    assert_int_equal(session_log_append(&f->l, ids, 1, &e), 0);
    assert_int_equal(f->l.tokens[2999], 11);
    assert_int_equal(session_log_truncate(&f->l, 3001, &e), -1);
    assert_int_equal(e.code, ERR_INVALID);
}

static void
all_users_share_a_limit(void **state)
{
    struct fixture *f = *state;
    struct session_log other;
    struct err e;
    struct user *u = quota_user(&f->q, 2, &e);

    session_log_init(&other, u, 4);
    for (int i = 0; i < 3; i++)
        assert_int_equal(session_log_append(&f->l, ids, 1000, &e), 0);
    for (int i = 0; i < 2; i++)
        assert_int_equal(session_log_append(&other, ids, 1000, &e), 0);
    assert_int_equal(session_log_append(&other, ids, 1, &e), -1);
    assert_non_null(strstr(e.text, "max-tokens"));
    assert_null(strstr(e.text, "per-user"));
    session_log_done(&other);
    quota_drop(u);
}

static void
checkpoints(void **state)
{
    struct fixture *f = *state;
    struct err e;
    uint64_t pos;

    session_log_append(&f->l, ids, 10, &e);
    assert_int_equal(session_log_mark(&f->l, "a", false, &e), 0);
    session_log_append(&f->l, ids, 10, &e);
    assert_int_equal(session_log_turn(&f->l, &e), 0);
    session_log_append(&f->l, ids, 10, &e);
    assert_int_equal(session_log_mark(&f->l, "a", false, &e), 0); /* moves */
    assert_int_equal(session_log_resolve(&f->l, "a", &pos, &e), 0);
    assert_int_equal(pos, 30);
    assert_int_equal(session_log_resolve(&f->l, "turn-1", &pos, &e), 0);
    assert_int_equal(pos, 20);
    assert_int_equal(session_log_resolve(&f->l, "7", &pos, &e), 0);
    assert_int_equal(pos, 7);
    assert_int_equal(session_log_resolve(&f->l, "31", &pos, &e), -1);
    assert_int_equal(session_log_resolve(&f->l, "b", &pos, &e), -1);
    assert_int_equal(e.code, ERR_NOT_FOUND);

    /* Four in all: the oldest that nobody named goes first, then no more fit. */
    assert_int_equal(session_log_mark(&f->l, "b", false, &e), 0);
    assert_int_equal(session_log_mark(&f->l, "c", false, &e), 0);
    assert_int_equal(session_log_mark(&f->l, "d", false, &e), 0);
    assert_null(session_log_find(&f->l, "turn-1"));
    assert_int_equal(session_log_mark(&f->l, "e", false, &e), -1);
    assert_int_equal(e.code, ERR_QUOTA);
    assert_int_equal(f->l.n_checkpoints, 4);

    /* A rollback takes those behind it along. */
    assert_int_equal(session_log_truncate(&f->l, 29, &e), 0);
    assert_int_equal(f->l.n_checkpoints, 0);
    assert_int_equal(f->l.rollbacks, 1);
}

static void
many_turns(void **state)
{
    struct fixture *f = *state;
    struct err e;
    char label[32];

    f->l.max_checkpoints = 100;
    for (int i = 1; i <= 250; i++) {
        assert_int_equal(session_log_append(&f->l, ids, 1, &e), 0);
        assert_int_equal(session_log_turn(&f->l, &e), 0);
        assert_true(f->l.n_checkpoints <= 100);
        snprintf(label, sizeof label, "turn-%d", i);
        assert_int_equal(session_log_find(&f->l, label)->pos, i);
    }
    assert_null(session_log_find(&f->l, "turn-150"));
    assert_non_null(session_log_find(&f->l, "turn-151"));
}

static void
copies(void **state)
{
    struct fixture *f = *state;
    struct session_log to;
    struct err e;

    session_log_append(&f->l, ids, 10, &e);
    session_log_mark(&f->l, "a", false, &e);
    session_log_append(&f->l, ids, 10, &e);
    session_log_mark(&f->l, "b", false, &e);
    session_log_init(&to, f->u, 4);
    assert_int_equal(session_log_copy(&to, &f->l, 12, &e), 0);
    assert_int_equal(to.len, 12);
    assert_memory_equal(to.tokens, f->l.tokens, 12 * sizeof *ids);
    assert_non_null(session_log_find(&to, "a"));
    assert_null(session_log_find(&to, "b"));
    assert_int_equal(f->u->used[QUOTA_TOKENS], 32);
    session_log_done(&to);
}

static void
results(void **state)
{
    struct fixture *f = *state;
    struct op_record r = {.kind = 1};
    struct err e;

    for (uint32_t i = 0; i < 300; i++) {
        memcpy(r.id, &i, sizeof i);
        r.end = i;
        assert_int_equal(session_log_record(&f->l, &r, &e), 0);
    }
    for (uint32_t i = 0; i < 300; i++) {
        const struct op_record *got;

        memcpy(r.id, &i, sizeof i);
        got = session_log_recall(&f->l, r.id);
        assert_int_equal(got != NULL, i >= 300 - OP_IDS_KEPT);
        if (got != NULL)
            assert_int_equal(got->end, i);
    }
}

static void
quota_counts(void **state)
{
    struct fixture *f = *state;
    struct err e;

    limits.max_queued = 100;
    limits.max_queued_user = 80;
    assert_int_equal(quota_take(f->u, QUOTA_BYTES, 80, &e), 0);
    assert_int_equal(quota_take(f->u, QUOTA_BYTES, 1, &e), -1);
    assert_int_equal(quota_take(f->u, QUOTA_BYTES, UINT64_MAX, &e), -1);
    assert_int_equal(quota_take(f->u, QUOTA_BYTES, 0, &e), 0);
    limits.max_queued_user = 10; /* as a reload may */
    assert_int_equal(quota_take(f->u, QUOTA_BYTES, 0, &e), -1);
    quota_give(f->u, QUOTA_BYTES, 80);
    assert_int_equal(quota_take(f->u, QUOTA_BYTES, 10, &e), 0);
    quota_give(f->u, QUOTA_BYTES, 10);
}

/* A copy that came with as many as it has room for gets more. */
static void
copies_are_marked(void **state)
{
    struct fixture *f = *state;
    struct session_log from;
    char label[16];
    struct err e;

    session_log_init(&from, f->u, 100);
    f->l.max_checkpoints = 100;
    assert_int_equal(session_log_append(&from, ids, 20, &e), 0);
    for (int i = 0; i < 9; i++) {
        snprintf(label, sizeof label, "from-%d", i);
        assert_int_equal(session_log_mark(&from, label, false, &e), 0);
    }
    assert_int_equal(session_log_copy(&f->l, &from, 20, &e), 0);
    session_log_done(&from);
    for (int i = 0; i < 20; i++) {
        snprintf(label, sizeof label, "own-%d", i);
        assert_int_equal(session_log_mark(&f->l, label, false, &e), 0);
    }
    assert_int_equal(f->l.n_checkpoints, 29);
    assert_non_null(session_log_find(&f->l, "from-8"));
    assert_non_null(session_log_find(&f->l, "own-19"));
}

static void
what_a_rollback_took(void **state)
{
    struct fixture *f = *state;
    const struct op_record a = {.id = "a", .begin = 0, .end = 10},
                           b = {.id = "b", .begin = 10, .end = 50};
    struct err e;

    assert_int_equal(session_log_append(&f->l, ids, 50, &e), 0);
    assert_int_equal(session_log_record(&f->l, &a, &e), 0);
    assert_int_equal(session_log_record(&f->l, &b, &e), 0);
    assert_int_equal(session_log_low(&f->l, 0), 50);
    assert_int_equal(session_log_truncate(&f->l, 50, &e), 0);
    assert_int_equal(f->l.rollbacks, 0);
    assert_int_equal(session_log_truncate(&f->l, 30, &e), 0);
    assert_int_equal(session_log_append(&f->l, ids, 100, &e), 0);
    assert_int_equal(session_log_low(&f->l, 0), 30);
    assert_int_equal(session_log_low(&f->l, 1), 130);
    assert_false(session_log_recall(&f->l, a.id)->undone);
    assert_true(session_log_recall(&f->l, b.id)->undone);
    for (uint64_t i = 0; i < CUTS_KEPT; i++) {
        assert_int_equal(session_log_truncate(&f->l, 120 - i, &e), 0);
        assert_int_equal(session_log_low(&f->l, 1), 120 - i);
    }
    assert_int_equal(session_log_low(&f->l, 0), 0); /* too long ago: who knows */
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(appends_within_quota, setup, teardown),
        cmocka_unit_test_setup_teardown(all_users_share_a_limit, setup, teardown),
        cmocka_unit_test_setup_teardown(checkpoints, setup, teardown),
        cmocka_unit_test_setup_teardown(many_turns, setup, teardown),
        cmocka_unit_test_setup_teardown(copies, setup, teardown),
        cmocka_unit_test_setup_teardown(results, setup, teardown),
        cmocka_unit_test_setup_teardown(quota_counts, setup, teardown),
        cmocka_unit_test_setup_teardown(copies_are_marked, setup, teardown),
        cmocka_unit_test_setup_teardown(what_a_rollback_took, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
