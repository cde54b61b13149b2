/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The store and its threads on a real directory: many sessions through few open ledgers, commits
 * that serve all who asked, sessions that are deleted while they are made, jobs of others, parking,
 * and what a second start finds.
 */
#include "config.h"

#include <event2/event.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "base/log.h"
#include "daemon/options.h"
#include "daemon/session.h"
#include "daemon/session_files.h"
#include "daemon/store.h"
#include "tests/test.h"

enum { MANY = 5 * STORE_HANDLES, ROUNDS = 1 };

static struct options opts = {.max_sessions = 1000,
                              .max_sessions_user = 1000,
                              .max_tokens = 1 << 20,
                              .max_tokens_user = 1 << 20,
                              .max_disk = UINT64_C(1) << 40,
                              .max_disk_user = UINT64_C(1) << 40,
                              .max_checkpoints = 8,
                              .transcript_memory = 1 << 30,
                              .park_after = 86400000};

struct fixture {
    char dir[64];
    struct event_base *base;
    struct quota q;
    struct store *st;
    struct store_listener heard;
    int loaded, unloading, deleted, idle, ended;
};

static int n_told;
static struct err last;

static void
on_told(struct store_wait *w, const struct err *why)
{
    (void)w;
    n_told++;
    last = why != NULL ? *why : (struct err){0};
}

static void
on_ended(void *arg)
{
    ((struct fixture *)arg)->ended++;
}

#define HEARD(what)                                     \
    static void on_##what(void *arg, struct session *s) \
    {                                                   \
        (void)s;                                        \
        ((struct fixture *)arg)->what++;                \
    }
HEARD(loaded)
HEARD(unloading)
HEARD(deleted)
HEARD(idle)

/* Turns the loop until n are told. */
static void
until(struct fixture *f, const int *n, int want)
{
    while (*n < want)
        assert_int_not_equal(event_base_loop(f->base, EVLOOP_ONCE), -1);
}

static void
open_store(struct fixture *f)
{
    struct err e = {0};

    quota_init(&f->q, &opts);
    if (store_open(f->base, &opts, &f->q, &f->st, &e) == -1)
        fail_msg("%s", e.text);
    f->heard = (struct store_listener){.arg = f,
                                       .loaded = on_loaded,
                                       .unloading = on_unloading,
                                       .deleted = on_deleted,
                                       .idle = on_idle};
    f->loaded = f->unloading = f->deleted = f->idle = f->ended = 0;
    store_listen(f->st, &f->heard);
    assert_int_equal(store_find_all(f->st, &e), 0);
}

static void
close_store(struct fixture *f)
{
    store_end(f->st, on_ended, f);
    until(f, &f->ended, 1);
    store_free(f->st);
    for (struct user *u = f->q.users, *next; u != NULL; u = next) {
        next = u->next;
        quota_hold(u);
        while (u->n_sessions > 0)
            session_free(u->sessions[u->n_sessions - 1]);
        quota_drop(u);
    }
    quota_done(&f->q);
}

static int
setup(void **state)
{
    static struct fixture f;

    strcpy(f.dir, "/tmp/store-test-XXXXXX");
    assert_non_null(mkdtemp(f.dir));
    opts.state = f.dir;
    f.base = event_base_new();
    n_told = 0;
    open_store(&f);
    *state = &f;
    return 0;
}

static int
teardown(void **state)
{
    struct fixture *f = *state;
    char command[128];

    close_store(f);
    event_base_free(f->base);
    snprintf(command, sizeof command, "rm -rf %s", f->dir);
    return system(command);
}

static struct session *
make(struct fixture *f, const char *name, uint32_t n)
{
    uint32_t ids[256];
    struct err e;
    struct user *u = quota_user(&f->q, 7, &e);
    struct session *s = session_new(u, 8, &e);

    for (uint32_t i = 0; i < n; i++)
        ids[i] = n + i;
    assert_int_equal(session_link(s, name, &e), 0);
    assert_int_equal(session_log_append(&s->log, ids, n, &e), 0);
    assert_int_equal(store_adopt(f->st, s, NULL, &e), 0);
    quota_drop(u);
    return s;
}

static struct session *
find(struct fixture *f, const char *name)
{
    return session_find(quota_find(&f->q, 7), name);
}

/* Far more sessions than handles: each is written again and again, and all of it is there. */
static void
many_sessions(void **state)
{
    struct fixture *f = *state;
    struct store_wait *w = calloc(MANY, sizeof *w);
    struct err e;
    char name[16];

    for (int i = 0; i < MANY; i++) {
        snprintf(name, sizeof name, "s%d", i);
        w[i].fn = on_told;
        assert_false(store_commit(f->st, make(f, name, (uint32_t)i % 200), &w[i]));
    }
    until(f, &n_told, MANY);
    assert_int_equal(last.code, ERR_NONE);
    for (uint32_t round = 1; round <= ROUNDS; round++) {
        for (int i = 0; i < MANY; i++) {
            struct session *s = quota_find(&f->q, 7)->sessions[i];

            assert_int_equal(session_log_append(&s->log, &round, 1, &e), 0);
            assert_false(store_commit(f->st, s, &w[i]));
        }
        until(f, &n_told, MANY * (1 + (int)round));
        assert_int_equal(last.code, ERR_NONE);
    }
    close_store(f);
    open_store(f);
    for (int i = 0; i < MANY; i++) {
        struct session *s;

        snprintf(name, sizeof name, "s%d", i);
        s = find(f, name);
        assert_non_null(s);
        assert_int_equal(s->state, SESSION_PARKED);
        assert_int_equal(s->log.len, i % 200 + ROUNDS);
        assert_int_equal(store_need(f->st, s, NULL, &e), 0);
    }
    until(f, &f->loaded, MANY);
    for (int i = 0; i < MANY; i++) {
        const struct session *s;

        snprintf(name, sizeof name, "s%d", i);
        s = find(f, name);
        for (int k = 0; k < i % 200; k++)
            assert_int_equal(s->log.tokens[k], i % 200 + k);
        for (uint32_t k = 0; k < ROUNDS; k++)
            assert_int_equal(s->log.tokens[i % 200 + (int)k], k + 1);
    }
    free(w);
}

/* Those who ask while a commit is under way share the next one. */
static void
commits_are_shared(void **state)
{
    struct fixture *f = *state;
    struct session *s = make(f, "s", 5);
    struct store_wait w[20] = {{0}};
    struct store_counts c;
    uint64_t n_commits = 0;
    struct err e;

    for (uint32_t i = 0; i < 20; i++) {
        w[i].fn = on_told;
        assert_int_equal(session_log_append(&s->log, &i, 1, &e), 0);
        assert_false(store_commit(f->st, s, &w[i]));
    }
    store_unwait(&w[3]);
    store_unwait(&w[3]); /* which does not wait any more */
    until(f, &n_told, 19);
    store_count(f->st, &c);
    for (size_t i = 0; i <= HISTOGRAM_STEPS; i++)
        n_commits += c.commit.n[i];
    assert_int_equal(n_commits, 2);
    assert_int_equal(c.commit_tokens, 25);
    assert_int_equal(session_log_durable(&s->log), 25);
    assert_true(store_commit(f->st, s, &w[0])); /* nothing to do: nobody is told */
    assert_null(w[0].at);
}

/* A session is deleted while it is being made, while it is being read, and at rest. */
static void
deletes(void **state)
{
    struct fixture *f = *state;
    struct session *s[3] = {NULL, make(f, "b", 2), make(f, "c", 3)};
    struct store_wait made = {.fn = on_told},
                      w[3] = {{.fn = on_told}, {.fn = on_told}, {.fn = on_told}};
    struct err e;

    store_commit(f->st, s[1], NULL);
    store_commit(f->st, s[2], &made);
    until(f, &n_told, 1);
    close_store(f);
    open_store(f);
    s[0] = make(f, "a", 1);
    s[1] = find(f, "b");
    s[2] = find(f, "c");
    store_commit(f->st, s[0], NULL);
    assert_int_equal(store_need(f->st, s[1], NULL, &e), 0);
    for (int i = 0; i < 3; i++) {
        s[i]->state = SESSION_GONE;
        store_delete(f->st, s[i], &w[i]);
    }
    until(f, &n_told, 4);
    assert_int_equal(last.code, ERR_NONE);
    assert_int_equal(f->deleted, 3);
    assert_int_equal(f->loaded, 0);
    until(f, &f->idle, 3);
    for (int i = 0; i < 3; i++)
        session_free(s[i]);
    close_store(f);
    open_store(f);
    assert_int_equal(f->q.used[QUOTA_SESSIONS], 0);
}

struct task {
    int n_done, fd[2];
    uint64_t seen;
    struct kvfile_id id;
    bool longer;
    struct err err;
};

static int
look(void *arg, struct store_tools *t, struct err *e)
{
    struct task *task = arg;
    struct ledger_content c;
    struct ledger *l = t->ledger(t, &task->id, e);

    if (l == NULL || ledger_load(l, &c, e) == -1)
        return -1;
    task->seen = c.len;
    ledger_content_done(&c);
    t->close(t, &task->id);
    return 0;
}

static int
wait_for_byte(void *arg, struct store_tools *t, struct err *e)
{
    struct task *task = arg;
    char byte;

    (void)t;
    (void)e;
    return read(task->fd[0], &byte, 1) == 1 ? 0 : -1;
}

static void
on_done(void *arg, const struct err *why)
{
    struct task *task = arg;

    task->n_done++;
    task->err = why != NULL ? *why : (struct err){0};
}

/* Jobs of others: in turn with commits, or beside them; and how one sees a thread that hangs. */
static void
jobs_of_others(void **state)
{
    struct fixture *f = *state;
    struct session *s = make(f, "s", 9);
    struct task task = {.id = s->id}, slow = {.id = s->id}, longer = {.id = s->id};
    struct store_alive alive;
    struct store_wait w = {.fn = on_told};
    struct err e;

    store_commit(f->st, s, &w);
    assert_int_equal(store_run(f->st, s, false, look, on_done, &task, &e), 0);
    until(f, &task.n_done, 1);
    assert_int_equal(task.err.code, ERR_NONE);
    assert_int_equal(task.seen, 9);
    assert_int_equal(n_told, 1); /* it was posted earlier */

    assert_int_equal(pipe(slow.fd), 0);
    memcpy(longer.fd, slow.fd, sizeof slow.fd);
    assert_int_equal(store_run(f->st, s, true, wait_for_byte, on_done, &longer, &e), 0);
    assert_int_equal(session_log_append(&s->log, (uint32_t[]){1}, 1, &e), 0);
    assert_false(store_commit(f->st, s, &w));
    until(f, &n_told, 2); /* the long one does not hold it up */
    store_alive(f->st, &alive);
    assert_int_equal(alive.job_ns, 0);
    assert_int_equal(alive.waiting, 1);
    assert_int_equal(longer.n_done, 0);
    assert_int_equal(write(slow.fd[1], "x", 1), 1);
    until(f, &longer.n_done, 1);

    assert_int_equal(store_run(f->st, s, false, wait_for_byte, on_done, &slow, &e), 0);
    assert_int_equal(session_log_append(&s->log, (uint32_t[]){1}, 1, &e), 0);
    assert_false(store_commit(f->st, s, &w));
    do {
        usleep(1000);
        store_alive(f->st, &alive);
    } while (alive.job_ns < 5000000);
    assert_int_equal(alive.waiting, 2);
    assert_int_equal(n_told, 2); /* it waits for its turn */
    assert_int_equal(write(slow.fd[1], "x", 1), 1);
    until(f, &n_told, 3);
    assert_int_equal(slow.n_done, 1);
    /* Without ledgers. */
    assert_int_equal(store_run(f->st, s, true, look, on_done, &task, &e), 0);
    until(f, &task.n_done, 2);
    assert_int_equal(task.err.code, ERR_INTERNAL);
    close(slow.fd[0]);
    close(slow.fd[1]);
}

/* It leaves memory when nobody needs it: not while it is held, busy, or not stored. */
static void
parking(void **state)
{
    struct fixture *f = *state;
    struct session *s = make(f, "s", 50);
    struct store_wait w = {.fn = on_told};
    struct ledger_file file = {.about = {.type = KVFILE_STATE, .pos = 50, .id.b = {1}},
                               .turn = true,
                               .bytes = 8192};
    struct err e;

    assert_int_equal(session_files_change(s, &file, 1, NULL, 0, &e), 0);
    s->state = SESSION_COLD;
    store_hold(s);
    opts.park_after = 0;
    assert_false(store_commit(f->st, s, &w));
    until(f, &n_told, 1);
    event_base_loopexit(f->base, &(struct timeval){.tv_sec = 1, .tv_usec = 200000});
    event_base_dispatch(f->base);
    assert_false(s->log.parked);
    store_release(s);
    until(f, &f->unloading, 1);
    assert_true(s->log.parked);
    assert_null(s->log.tokens);
    assert_null(s->files);
    assert_int_equal(f->q.used[QUOTA_DISK], SESSION_DISK_BYTES + 50 * 4 + 8192);
    opts.park_after = 86400000;

    /* A name changes without the rest being read; then it comes back. */
    s->mode = 0640;
    session_log_touch(&s->log);
    assert_false(store_commit(f->st, s, &w));
    until(f, &n_told, 2);
    assert_true(s->log.parked);
    assert_int_equal(store_need(f->st, s, &w, &e), 0);
    until(f, &n_told, 3);
    assert_int_equal(store_need(f->st, s, &w, &e), 1);
    assert_int_equal(s->log.tokens[49], 99);
    assert_int_equal(s->n_files, 1);
    assert_memory_equal(s->files, &file, sizeof file);
    close_store(f);
    open_store(f);
    assert_int_equal(find(f, "s")->mode, 0640);
    assert_int_equal(f->q.used[QUOTA_DISK], SESSION_DISK_BYTES + 50 * 4 + 8192);
}

/* Only one daemon has a store; and two sessions that have come to one name are both there. */
static void
others(void **state)
{
    struct fixture *f = *state;
    struct store *second;
    struct quota q;
    struct err e;
    struct store_wait w[2] = {{.fn = on_told}, {.fn = on_told}};
    struct session *s = make(f, "same", 1), *t = make(f, "other", 2);

    quota_init(&q, &opts);
    assert_int_equal(store_open(f->base, &opts, &q, &second, &e), -1);
    assert_int_equal(e.code, ERR_EXISTS);
    t->created_ms++;
    store_commit(f->st, s, &w[0]);
    strcpy(t->name, "same"); /* as if the end had come in the middle */
    store_commit(f->st, t, &w[1]);
    until(f, &n_told, 2);
    strcpy(t->name, "other");
    close_store(f);
    open_store(f);
    assert_int_equal(find(f, "same")->log.len, 1);
    assert_int_equal(find(f, "same.2")->log.len, 2);
    close_store(f); /* which writes the new name down */
    open_store(f);
    assert_int_equal(find(f, "same.2")->log.len, 2);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(commits_are_shared, setup, teardown),
        cmocka_unit_test_setup_teardown(deletes, setup, teardown),
        cmocka_unit_test_setup_teardown(jobs_of_others, setup, teardown),
        cmocka_unit_test_setup_teardown(parking, setup, teardown),
        cmocka_unit_test_setup_teardown(others, setup, teardown),
        cmocka_unit_test_setup_teardown(many_sessions, setup, teardown),
    };

    log_init("store_test", LOG_ERROR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
