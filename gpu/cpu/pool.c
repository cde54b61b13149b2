/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Threads for loops. A loop is published as a ticket: its number in the upper half, the next
 * range in the lower. Taking a range is a compare-and-swap of the whole ticket, so a thread
 * that comes late, with the fields of a loop that is long over, cannot take anything: the number
 * does not match. Fields change only under a ticket without ranges. The loop is over when `done`
 * has counted all ranges.
 *
 * Waiting is a short spin, in which the next loop of a step usually comes, and then a futex.
 */
#include "config.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "gpu/cpu/pool.h"

/* About 20 microseconds: longer than a pause between the loops of a step, shorter than what
 * anyone on a busy machine would notice. */
enum { SPINS = 1500 };

static struct {
    pthread_mutex_t mu;      /* whoever runs a loop */
    _Atomic uint64_t ticket; /* loop number << 32 | next range */
    _Atomic(pool_fn *) f;    /* of the current loop, as are the next three */
    _Atomic(const void *) arg;
    _Atomic int n, grain;
    _Atomic uint32_t ranges;
    _Atomic uint32_t done; /* ranges; a futex of the caller */
    _Atomic bool caller_sleeps;
    _Atomic uint32_t loop; /* the ticket's upper half; a futex of the workers */
    _Atomic int sleepers;
    _Atomic int threads; /* that may work, the caller included; 0: not yet set */
    int started;         /* mu */
} pool = {.mu = PTHREAD_MUTEX_INITIALIZER};

static _Thread_local bool inside; /* a range of a loop runs on this thread */

static void
pause_briefly(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#else
    sched_yield();
#endif
}

static void
futex_wait(_Atomic uint32_t *word, uint32_t value)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void
futex_wake(_Atomic uint32_t *word, int n)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
}

/* Takes ranges of loop `loop` until there are none. */
static void
work(uint32_t loop)
{
    for (;;) {
        uint64_t t = atomic_load(&pool.ticket);
        const uint32_t range = (uint32_t)t;
        pool_fn *const f = atomic_load(&pool.f);
        const void *const arg = atomic_load(&pool.arg);
        const int n = atomic_load(&pool.n), grain = atomic_load(&pool.grain);
        const uint32_t ranges = atomic_load(&pool.ranges);

        if (t >> 32 != loop || range >= ranges)
            return;
        if (!atomic_compare_exchange_strong(&pool.ticket, &t, t + 1))
            continue;

        const int first = (int)range * grain;

        inside = true;
        f(arg, first, n - first < grain ? n : first + grain);
        inside = false;
        if (atomic_fetch_add(&pool.done, 1) + 1 == ranges &&
            atomic_load(&pool.caller_sleeps))
            futex_wake(&pool.done, 1);
    }
}

/* Until another loop than `seen` is there; its number. */
static uint32_t
next_loop(uint32_t seen)
{
    for (int i = 0; i < SPINS; i++) {
        const uint32_t loop = atomic_load(&pool.loop);

        if (loop != seen)
            return loop;
        pause_briefly();
    }
    atomic_fetch_add(&pool.sleepers, 1);
    while (atomic_load(&pool.loop) == seen)
        futex_wait(&pool.loop, seen);
    atomic_fetch_sub(&pool.sleepers, 1);
    return atomic_load(&pool.loop);
}

static void *
worker(void *arg)
{
    const int id = (int)(intptr_t)arg;
    uint32_t loop = 0;

    for (;;) {
        loop = next_loop(loop);
        if (id < atomic_load(&pool.threads))
            work(loop);
    }
    return NULL;
}

/* Signals are for the threads that expect them. What cannot be started is done without. */
static void
start_workers(int n)
{
    sigset_t all, old;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    while (pool.started < n) {
        pthread_t t;

        if (pthread_create(&t, NULL, worker, (void *)(intptr_t)(pool.started + 1)) != 0)
            break;
        pthread_detach(t);
        pool.started++;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
}

static void
wait_done(uint32_t ranges)
{
    for (int i = 0; i < SPINS && atomic_load(&pool.done) != ranges; i++)
        pause_briefly();
    atomic_store(&pool.caller_sleeps, true);
    for (;;) {
        const uint32_t done = atomic_load(&pool.done);

        if (done == ranges)
            break;
        futex_wait(&pool.done, done);
    }
    atomic_store(&pool.caller_sleeps, false);
}

int
pool_processors(void)
{
    cpu_set_t set;

    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

void
pool_set_threads(int n)
{
    atomic_store(&pool.threads, n < 1 ? 1 : n > POOL_MAX_THREADS ? POOL_MAX_THREADS : n);
}

int
pool_threads(void)
{
    if (atomic_load(&pool.threads) == 0)
        pool_set_threads(pool_processors());
    return atomic_load(&pool.threads);
}

void
pool_run(int n, int grain, pool_fn *f, const void *arg)
{
    const int threads = pool_threads();
    uint32_t loop;

    if (n <= 0)
        return;
    if (n <= grain || threads == 1 || inside || pthread_mutex_trylock(&pool.mu) != 0) {
        f(arg, 0, n);
        return;
    }
    if (pool.started < threads - 1)
        start_workers(threads - 1);
    loop = atomic_load(&pool.loop) + 1;

    /* First a ticket that nobody can take: a worker still in the last loop has read that one's
     * ticket, used up, and must not find it valid under the ranges of this loop. */
    atomic_store(&pool.ticket, (uint64_t)loop << 32 | UINT32_MAX);
    atomic_store(&pool.f, f);
    atomic_store(&pool.arg, arg);
    atomic_store(&pool.n, n);
    atomic_store(&pool.grain, grain);
    atomic_store(&pool.ranges, ((uint32_t)n + (uint32_t)grain - 1) / (uint32_t)grain);
    atomic_store(&pool.done, 0);
    atomic_store(&pool.ticket, (uint64_t)loop << 32);
    atomic_store(&pool.loop, loop);
    if (atomic_load(&pool.sleepers) > 0)
        futex_wake(&pool.loop, INT_MAX);
    work(loop);
    wait_done(atomic_load(&pool.ranges));
    pthread_mutex_unlock(&pool.mu);
}
