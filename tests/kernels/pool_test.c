/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pool: every index exactly once whatever the sizes, thread counts and pauses between loops;
 * loops within loops and two callers at a time. To be run under --enable-sanitizers=thread too.
 */
#include "config.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "gpu/cpu/pool.h"
#include "tests/test.h"

enum { MOST = 5000, LOOPS = 3000, QUICK_LOOPS = 200000 };

struct job {
    int *seen; /* plain ints: an index that two threads get is a race that TSan reports */
    int n, grain;
    _Atomic int *ranges;
};

static void
count(const void *arg, int first, int end)
{
    const struct job *j = arg;

    atomic_fetch_add(j->ranges, 1);
    for (int i = first; i < end; i++)
        j->seen[i]++;
}

/* 0 if each of n was seen once, in at most as many ranges as there can be. */
static int
run_one(int n, int grain, int *seen)
{
    _Atomic int ranges = 0;
    const struct job j = {.seen = seen, .n = n, .grain = grain, .ranges = &ranges};
    int wrong = 0;

    memset(seen, 0, MOST * sizeof *seen);
    pool_run(n, grain, count, &j);
    for (int i = 0; i < MOST; i++)
        wrong += seen[i] != (i < n);
    return wrong + (ranges > (n + grain - 1) / grain);
}

static void
test_each_index_once(void **state)
{
    int *seen = malloc(MOST * sizeof *seen);
    unsigned seed = 1;

    (void)state;
    for (int k = 0; k < LOOPS; k++) {
        seed = seed * 1103515245 + 12345;
        if (k % 50 == 0)
            pool_set_threads(1 + (int)(seed >> 16) % 6);
        if (k % 400 == 0) /* long enough for the threads to go to sleep */
            nanosleep(&(struct timespec){.tv_nsec = 3000000}, NULL);
        assert_int_equal(run_one((int)(seed >> 8) % MOST, 1 + (int)(seed >> 4) % 97, seen),
                         0);
    }
    assert_int_equal(run_one(0, 1, seen), 0);
    assert_int_equal(run_one(1, 1, seen), 0);
    assert_int_equal(run_one(MOST, 1, seen), 0);
    free(seen);
}

/* Short and long loops in turn: a thread that comes late to one is still there in the next. */
static void
test_back_to_back(void **state)
{
    int *seen = malloc(MOST * sizeof *seen);

    (void)state;
    pool_set_threads(4);
    for (int k = 0; k < QUICK_LOOPS; k++) {
        const int n = k % 2 == 0 ? 2 : 40;
        _Atomic int ranges = 0;
        const struct job j = {.seen = seen, .n = n, .grain = 1, .ranges = &ranges};

        memset(seen, 0, 64 * sizeof *seen);
        pool_run(n, 1, count, &j);
        assert_true(ranges <= n);
        for (int i = 0; i < 64; i++)
            assert_int_equal(seen[i], i < n);
    }
    free(seen);
}

static void
loop_inside(const void *arg, int first, int end)
{
    _Atomic int *bad = *(_Atomic int *const *)arg;
    int seen[MOST];

    for (int i = first; i < end; i++)
        *bad += run_one(100 + i, 7, seen);
}

static void
test_loops_within_loops(void **state)
{
    _Atomic int bad = 0, *const arg = &bad;

    (void)state;
    pool_set_threads(3);
    pool_run(40, 1, loop_inside, &arg);
    assert_int_equal(bad, 0);
}

static void *
caller(void *arg)
{
    _Atomic int *bad = arg;
    int *seen = malloc(MOST * sizeof *seen);

    for (int k = 0; k < 300; k++)
        *bad += run_one(k * 13 % MOST, 1 + k % 11, seen);
    free(seen);
    return NULL;
}

static void
test_two_callers(void **state)
{
    _Atomic int bad = 0;
    pthread_t t;

    (void)state;
    pool_set_threads(3);
    assert_int_equal(pthread_create(&t, NULL, caller, &bad), 0);
    caller(&bad);
    pthread_join(t, NULL);
    assert_int_equal(bad, 0);
}

static void
test_thread_count(void **state)
{
    (void)state;
    pool_set_threads(0);
    assert_int_equal(pool_threads(), 1);
    pool_set_threads(1 << 20);
    assert_int_equal(pool_threads(), POOL_MAX_THREADS);
    pool_set_threads(2);
    assert_int_equal(pool_threads(), 2);
    assert_true(pool_processors() >= 1);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_index_once),    cmocka_unit_test(test_back_to_back),
        cmocka_unit_test(test_loops_within_loops), cmocka_unit_test(test_two_callers),
        cmocka_unit_test(test_thread_count),
    };

    return cmocka_run_group_tests_name("pool", tests, NULL, NULL);
}
