/* SPDX-License-Identifier: Apache-2.0 */
/* Sessions: names, owners, modes, states. */
#include "config.h"

#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "base/log.h"
#include "daemon/options.h"
#include "daemon/session.h"
#include "tests/test.h"

static struct options limits = {.max_sessions = 6,
                                .max_sessions_user = 4,
                                .max_tokens = 1000,
                                .max_tokens_user = 1000,
                                .max_connections = 10,
                                .max_connections_user = 10,
                                .max_disk = 1 << 20,
                                .max_disk_user = 1 << 20};

static void
names(void **state)
{
    static const char *const good[] = {"a", "A-b_c.9", "0", "-", "_", "a.", "con", "a..b"},
                             *const bad[] = {"",     ".",   "..",   ".a",  "../x",
                                             "a/b",  "a b", "~a",   "a\n", "\xc3\xa4",
                                             "a\\b", "a:b", "a\x7f"};
    char longest[SESSION_NAME_MAX + 2];
    struct err e;

    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++)
        assert_int_equal(session_name_check(good[i], &e), 0);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(session_name_check(bad[i], &e), -1);
        assert_int_equal(e.code, ERR_INVALID);
    }
    memset(longest, 'x', sizeof longest);
    longest[SESSION_NAME_MAX] = '\0';
    assert_int_equal(session_name_check(longest, &e), 0);
    longest[SESSION_NAME_MAX] = 'x';
    longest[SESSION_NAME_MAX + 1] = '\0';
    assert_int_equal(session_name_check(longest, &e), -1);
}

static struct session *
make(struct quota *q, uint32_t uid, const char *name, unsigned mode, uint32_t gid)
{
    struct err e;
    struct user *u = quota_user(q, uid, &e);
    struct session *s = session_new(u, 8, &e);

    assert_non_null(s);
    assert_int_equal(session_link(s, name, &e), 0);
    s->mode = mode;
    s->gid = gid;
    quota_drop(u);
    return s;
}

static void
owners_and_modes(void **state)
{
    /* What each of them may do, as rwx digits: owner, group, other, root. */
    static const struct {
        unsigned mode, owner, group, other;
    } rows[] = {{0600, 7, 0, 0}, {0640, 7, 4, 0}, {0664, 7, 6, 4}, {0777, 7, 7, 7},
                {0000, 1, 0, 0}, {0070, 1, 7, 0}, {0607, 7, 0, 7}};

    uint32_t groups[] = {7, 50};
    const struct cred owner = {.uid = 1, .gid = 9},
                      group = {.uid = 2, .gid = 9, .groups = groups, .n_groups = 2},
                      primary = {.uid = 4, .gid = 50}, other = {.uid = 3, .gid = 9},
                      root = {.uid = 0, .gid = 0};
    const struct cred *all[] = {&owner, &group, &primary, &other, &root};
    struct quota q;
    struct session *s;

    (void)state;
    quota_init(&q, &limits);
    s = make(&q, 1, "s", 0600, 50);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const unsigned may[] = {rows[i].owner, rows[i].group, rows[i].group, rows[i].other,
                                7};

        s->mode = rows[i].mode;
        for (int k = 0; k < 5; k++) {
            struct err e;
            const char *path = k == 0 ? "s" : "~1/s";

            /* The owner's x is always there. */
            for (unsigned need = 1; need < 8; need++) {
                const bool want = (may[k] & need) == need;

                assert_int_equal(session_may(s, all[k], need), want);
                assert_int_equal(session_lookup(&q, all[k], path, need, &e) != NULL, want);
                if (!want)
                    assert_int_equal(e.code, may[k] == 0 ? ERR_NOT_FOUND : ERR_PERMISSION);
            }
        }
    }
    session_free(s);
    quota_done(&q);
}

static void
paths(void **state)
{
    const struct cred me = {.uid = 1, .gid = 1}, you = {.uid = 2, .gid = 2};
    char shown[128];
    struct quota q;
    struct session *a, *b;
    struct err e;

    (void)state;
    quota_init(&q, &limits);
    a = make(&q, 1, "same", 0644, 1);
    b = make(&q, 2, "same", 0644, 2);
    snprintf(a->user->name, sizeof a->user->name, "ann");
    assert_ptr_equal(session_lookup(&q, &me, "same", SESSION_READ, &e), a);
    assert_ptr_equal(session_lookup(&q, &you, "same", SESSION_READ, &e), b);
    assert_ptr_equal(session_lookup(&q, &you, "~1/same", SESSION_READ, &e), a);
    assert_ptr_equal(session_lookup(&q, &you, "~ann/same", SESSION_READ, &e), a);
    assert_null(session_lookup(&q, &you, "~bob/same", SESSION_READ, &e));
    assert_int_equal(e.code, ERR_NOT_FOUND);
    assert_null(session_lookup(&q, &you, "~/same", SESSION_READ, &e));
    assert_null(session_lookup(&q, &you, "~1/../same", SESSION_READ, &e));
    assert_int_equal(e.code, ERR_INVALID);
    assert_null(session_lookup(
        &q, &you, "~11111111111111111111111111111111111111111111111/same", 4, &e));
    session_shown(a, &me, shown, sizeof shown);
    assert_string_equal(shown, "same");
    session_shown(a, &you, shown, sizeof shown);
    assert_string_equal(shown, "~ann/same");
    session_shown(b, &me, shown, sizeof shown);
    assert_string_equal(shown, "~2/same");

    session_free(a);
    session_free(b);
    quota_done(&q);
}

static void
taken_names_and_limits(void **state)
{
    struct quota q;
    struct session *s[4], *more;
    struct user *u;
    struct err e;

    (void)state;
    quota_init(&q, &limits);
    for (int i = 0; i < 4; i++) {
        const char name[] = {(char)('d' - i), '\0'};

        s[i] = make(&q, 1, name, 0600, 1);
    }
    u = s[0]->user;
    assert_null(session_new(u, 8, &e));
    assert_int_equal(e.code, ERR_QUOTA);
    assert_non_null(strstr(e.text, "max-sessions-per-user"));
    session_free(s[3]);
    more = session_new(u, 8, &e);
    assert_non_null(more);
    assert_int_equal(session_link(more, "d", &e), -1);
    assert_int_equal(e.code, ERR_EXISTS);
    assert_int_equal(session_link(more, "a", &e), 0);
    /* The list is in order, whatever the order of making. */
    for (size_t i = 0; i + 1 < u->n_sessions; i++)
        assert_true(strcmp(u->sessions[i]->name, u->sessions[i + 1]->name) < 0);
    assert_int_equal(u->n_sessions, 4);
    assert_int_equal(session_behind(u, ""), 0);
    assert_int_equal(session_behind(u, "b"), 2);
    assert_int_equal(session_behind(u, "bb"), 2);
    assert_int_equal(session_behind(u, "d"), 4);
    session_unlink(s[0]);
    assert_null(session_find(u, "d"));
    for (int i = 0; i < 3; i++)
        session_free(s[i]);
    session_free(more);
    quota_done(&q);
}

/* Every pair of states: what the table allows is what session_move() takes, and the table makes
 * sense as a whole. */
static void
states(void **state)
{
    static const struct {
        int from, to;
    } table[] = {

#define MOVE(from, to, why) {SESSION_##from, SESSION_##to},
#include "daemon/session_states.def"
    };
    bool allowed[SESSION_STATES][SESSION_STATES] = {0}, reached[SESSION_STATES] = {0};

    (void)state;
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        assert_false(allowed[table[i].from][table[i].to]); /* no line twice */
        allowed[table[i].from][table[i].to] = true;
    }
    for (int a = 0; a < SESSION_STATES; a++) {
        for (int b = 0; b < SESSION_STATES; b++)
            assert_int_equal(session_can_move(a, b), allowed[a][b]);
        assert_false(allowed[a][a]);
        assert_false(allowed[SESSION_GONE][a]);
        if (a != SESSION_GONE)
            assert_true(allowed[a][SESSION_GONE]); /* all can be deleted */
        /* The engine has nothing of an empty, cold or broken session: work goes by QUEUED. */
        if (a == SESSION_EMPTY || a == SESSION_COLD || a == SESSION_BROKEN ||
            a == SESSION_PARKED || a == SESSION_LOADING || a == SESSION_DAMAGED) {
            assert_false(allowed[a][SESSION_FEEDING]);
            assert_false(allowed[a][SESSION_SAMPLING]);
            assert_false(allowed[a][SESSION_REPLAYING]);
        }
    }
    reached[SESSION_EMPTY] = true;
    for (int round = 0; round < SESSION_STATES; round++) {
        for (int a = 0; a < SESSION_STATES; a++) {
            for (int b = 0; b < SESSION_STATES; b++)
                reached[b] |= reached[a] && allowed[a][b];
        }
    }
    for (int a = 0; a < SESSION_STATES; a++)
        assert_true(reached[a]);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names),  cmocka_unit_test(owners_and_modes),
        cmocka_unit_test(paths),  cmocka_unit_test(taken_names_and_limits),
        cmocka_unit_test(states),
    };

    log_init("session_test", LOG_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
