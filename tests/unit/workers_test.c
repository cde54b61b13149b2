/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <event2/event.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "daemon/workers.h"
#include "tests/test.h"

enum { THREADS = 3, JOBS = 200 };

struct job {
    struct worker_job work;
    struct rig *rig;
    int n;
    pthread_t by;
};

struct rig {
    struct event_base *base;
    struct workers *w;
    pthread_mutex_t gate; /* held: who runs a job waits */
    atomic_int ran, ended, dropped;
    int back, last[THREADS];
    pthread_t who[THREADS];
};

static void
on_run(void *arg, struct worker_job *work)
{
    struct rig *r = arg;

    pthread_mutex_lock(&r->gate);
    pthread_mutex_unlock(&r->gate);
    ((struct job *)work)->by = pthread_self();
    atomic_fetch_add(&r->ran, 1);
}

static void
on_back(void *arg, struct worker_job *work)
{
    struct rig *r = arg;
    struct job *j = (struct job *)work;

    assert_true(j->n > r->last[work->thread]);
    if (r->last[work->thread] >= 0)
        assert_true(pthread_equal(j->by, r->who[work->thread]));
    r->who[work->thread] = j->by;
    r->last[work->thread] = j->n;
    r->back++;
    free(j);
}

static void
on_drop(struct worker_job *work)
{
    struct job *j = (struct job *)work;

    atomic_fetch_add(&j->rig->dropped, 1);
    free(j);
}

static void
on_end(void *arg, unsigned thread)
{
    struct rig *r = arg;

    atomic_fetch_add(&r->ended, 1 << (4 * thread));
}

static const struct workers_kind kind = {
    .run = on_run, .back = on_back, .drop = on_drop, .end = on_end, .turn_ms = 1000};

static void
rig_begin(struct rig *r)
{
    struct err e;

    *r = (struct rig){.base = event_base_new(), .gate = PTHREAD_MUTEX_INITIALIZER};
    for (int i = 0; i < THREADS; i++)
        r->last[i] = -1;
    r->w = workers_new(r->base, THREADS, &kind, r, &e);
    assert_non_null(r->w);
}

static void
post(struct rig *r, int n)
{
    struct job *j = calloc(1, sizeof *j);

    assert_non_null(j);
    j->rig = r;
    j->n = n;
    workers_post(r->w, (unsigned)n % THREADS, &j->work);
}

static unsigned
posted(const struct rig *r)
{
    unsigned n = 0;

    for (unsigned i = 0; i < THREADS; i++)
        n += workers_posted(r->w, i);
    return n;
}

/* Each comes back once, those of one thread in order, all of them done by it. */
static void
test_all_come_back_in_order(void **state)
{
    struct rig r;

    (void)state;
    rig_begin(&r);
    for (int n = 0; n < JOBS; n++)
        post(&r, n);
    assert_int_equal(posted(&r), JOBS);
    while (r.back < JOBS)
        event_base_loop(r.base, EVLOOP_ONCE);
    assert_int_equal(posted(&r), 0);
    assert_int_equal(r.ran, JOBS);
    for (unsigned i = 0; i < THREADS; i++) {
        assert_int_equal(workers_since_ns(r.w, i), 0);
        assert_true(workers_turned_ns(r.w, i) > 0);
        for (unsigned k = 0; k < i; k++)
            assert_false(pthread_equal(r.who[i], r.who[k]));
    }
    assert_true(workers_free(r.w, 0));
    assert_int_equal(r.ended, 0x111);
    assert_int_equal(r.dropped, 0);
    event_base_free(r.base);
}

/* Ended with jobs that wait: those under way are waited for, the others neither run nor leak. */
static void
test_the_end_drops_what_waits(void **state)
{
    struct rig r;

    (void)state;
    rig_begin(&r);
    pthread_mutex_lock(&r.gate);
    for (int n = 0; n < JOBS; n++)
        post(&r, n);
    for (unsigned i = 0; i < THREADS; i++) {
        while (workers_since_ns(r.w, i) == 0)
            usleep(1000);
    }
    /* A thread that does not end is left behind, with all that is its own. */
    assert_false(workers_free(r.w, 1));
    assert_int_equal(r.ended, 0);
    assert_int_equal(r.dropped, 0);
    pthread_mutex_unlock(&r.gate);
    assert_true(workers_free(r.w, 0)); /* when it hangs no more */
    assert_int_equal(r.ended, 0x111);
    assert_int_equal(r.ran, THREADS);
    assert_int_equal(r.dropped, JOBS);
    assert_int_equal(r.back, 0);
    event_base_free(r.base);
}

static void
test_the_end_waits_for_jobs(void **state)
{
    struct rig r;

    (void)state;
    rig_begin(&r);
    for (int n = 0; n < JOBS; n++)
        post(&r, n);
    assert_true(workers_free(r.w, 0)); /* none is taken back: the loop has not run */
    assert_int_equal(r.ended, 0x111);
    assert_int_equal(r.dropped, JOBS);
    assert_true(r.ran <= JOBS);
    event_base_free(r.base);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_come_back_in_order),
        cmocka_unit_test(test_the_end_waits_for_jobs),
        cmocka_unit_test(test_the_end_drops_what_waits),
    };

    return cmocka_run_group_tests_name("workers", tests, NULL, NULL);
}
