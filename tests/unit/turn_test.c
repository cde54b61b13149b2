/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Chat turns as tokens, and the one change of the log that takes reasoning out. Against a slow and
 * plain model of the same: lists, built anew.
 */
#include "config.h"

#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "daemon/options.h"
#include "daemon/quota.h"
#include "daemon/session_log.h"
#include "daemon/turn.h"
#include "tests/test.h"

enum { U = 1, A, T, E, D, ACT, EOS, X = 20 };

static const struct turn_ids ids = {
    .user = U, .assistant = A, .think = T, .think_end = E, .dsml = D, .action = ACT};

struct turn_case {
    uint32_t tokens[24];
    uint64_t n;
    bool found;
    uint64_t at, from;
};

static const struct turn_case cases[] = {
    {{0, U, X, A, T, X, X, E, X, EOS}, 10, true, 4, 8},
    {{0, U, X, A, T, E, X, EOS}, 8, true, 4, 6},
    {{0, U, X, A, T, X, E}, 7, true, 4, 7},
    {{0, U, X, A, T, X, X}, 7, true, 4, 7},          /* cut off in its reasoning */
    {{0, U, X, A, T}, 5, false, 0, 0},               /* nothing was answered yet */
    {{0, U, X, A, E, X, EOS}, 7, false, 0, 0},       /* chat mode */
    {{0, U, X, A, T, ACT, X, E, X}, 9, false, 0, 0}, /* a quick instruction */
    {{0, U, X, T, X, E, X}, 7, false, 0, 0},         /* no turn of the model's */
    {{T, X, E}, 3, false, 0, 0},
    {{A, T, X, E, X}, 5, true, 1, 4},
    /* Only the last exchange. */
    {{0, U, X, A, T, X, E, X, EOS, U, X, A, E, X, EOS}, 15, false, 0, 0},
    {{0, U, X, A, T, X, E, X, EOS, U, X, A, T, X, E, X, EOS}, 17, true, 12, 15},
    /* The first answer of it: what follows is part of the transcript as it is. */
    {{0, U, X, A, T, X, E, X, A, T, X, E}, 12, true, 4, 7},
    {{0}, 0, false, 0, 0},
};

static void
test_reasoning(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct turn_case *c = &cases[i];
        struct turn_cut cut;
        const bool found = turn_reasoning(&ids, c->tokens, c->n, &cut);

        if (found != c->found || (found && (cut.at != c->at || cut.from != c->from)))
            fail_msg("case %zu", i);
    }
}

static void
test_no_such_tokens(void **state)
{
    const struct turn_ids none = {-1, -1, -1, -1, -1, -1};
    struct turn_cut cut;

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_false(turn_reasoning(&none, cases[i].tokens, cases[i].n, &cut));
        assert_false(turn_asks(&none, cases[i].tokens, cases[i].n));
        assert_false(turn_has_tools(&none, cases[i].tokens, cases[i].n));
    }
    assert_true(turn_asks(&ids, cases[0].tokens, cases[0].n));
    assert_false(turn_has_tools(&ids, cases[0].tokens, cases[0].n));
}

/* ---- The log's change ---------------------------------------------------------------- */

static struct options limits = {
    .max_tokens = 60, .max_tokens_user = 60, .max_disk = 240, .max_disk_user = 240};
static uint64_t next_random = 1;

static uint64_t
dice(uint64_t n)
{
    next_random = next_random * UINT64_C(6364136223846793005) + 1442695040888963407u;
    return (next_random >> 33) % n;
}

static void
fill(struct session_log *l, uint64_t n)
{
    struct err e;

    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(session_log_append(l, &i, 1, &e), 0);
}

static void
mark(struct session_log *l, uint64_t pos, const char *label)
{
    struct err e;
    uint32_t kept[60];
    const uint64_t was = l->len;

    /* A checkpoint is made at the end: so the end is there for a moment. */
    memcpy(kept, l->tokens, was * sizeof *kept);
    l->len = pos;
    assert_int_equal(session_log_mark(l, label, false, &e), 0);
    l->len = was;
    assert_memory_equal(l->tokens, kept, was * sizeof *kept);
}

/* One change of random sizes; what the log is afterwards, told in another way. */
static void
try_edit(struct quota *q, struct user *u)
{
    static const uint32_t mid[2] = {900, 901},
                          more[8] = {800, 801, 802, 803, 804, 805, 806, 807};
    const uint64_t n = 1 + dice(40), at = dice(n), from = at + dice(n - at + 1);
    const struct session_log_edit x = {.at = at,
                                       .from = from,
                                       .mid = mid,
                                       .n_mid = dice(3),
                                       .more = more,
                                       .n_more = dice(9)};
    const uint64_t other = dice(40); /* of the user's in another session */
    struct session_log l, o;
    uint32_t want[80];
    uint64_t len = 0, points[4];
    struct err e;
    char label[8];
    int rc;

    session_log_init(&l, u, 8);
    session_log_init(&o, u, 8);
    fill(&l, n);
    fill(&o, other < 60 - n ? other : 60 - n);
    for (int i = 0; i < 4; i++) {
        points[i] = dice(n + 1);
        snprintf(label, sizeof label, "p%d", i);
        mark(&l, points[i], label);
    }
    for (uint64_t i = 0; i < at; i++)
        want[len++] = (uint32_t)i;
    for (size_t i = 0; i < x.n_mid; i++)
        want[len++] = mid[i];
    for (uint64_t i = from; i < n; i++)
        want[len++] = (uint32_t)i;
    for (size_t i = 0; i < x.n_more; i++)
        want[len++] = more[i];

    rc = session_log_edit(&l, &x, &e);
    if (rc == -1) {
        /* For want of quota only, and then nothing has changed. */
        assert_int_equal(e.code, ERR_QUOTA);
        assert_true(o.len + len > 60);
        assert_int_equal(l.len, n);
        for (uint32_t i = 0; i < n; i++)
            assert_int_equal(l.tokens[i], i);
        assert_int_equal(l.n_checkpoints, 4);
    } else {
        assert_int_equal(l.len, len);
        assert_memory_equal(l.tokens, want, len * sizeof *want);
        for (int i = 0; i < 4; i++) {
            const struct checkpoint *c;

            snprintf(label, sizeof label, "p%d", i);
            c = session_log_find(&l, label);
            if (points[i] > at && points[i] < from)
                assert_null(c);
            else if (points[i] >= from)
                assert_int_equal(c->pos, points[i] - from + at + x.n_mid);
            else
                assert_int_equal(c->pos, points[i]);
        }
        assert_int_equal(session_log_low(&l, 0), at < n ? at : len);
    }
    assert_int_equal(u->used[QUOTA_TOKENS], l.len + o.len);
    session_log_done(&l);
    session_log_done(&o);
    assert_int_equal(q->used[QUOTA_TOKENS], 0);
}

static void
test_edit(void **state)
{
    struct quota q;
    struct user *u;
    struct err e;

    (void)state;
    quota_init(&q, &limits);
    u = quota_user(&q, 1, &e);
    for (int i = 0; i < 20000; i++)
        try_edit(&q, u);
    quota_drop(u);
    quota_done(&q);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reasoning),
        cmocka_unit_test(test_no_such_tokens),
        cmocka_unit_test(test_edit),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
