/* SPDX-License-Identifier: Apache-2.0 */
#ifndef GPU_CPU_POOL_H
#define GPU_CPU_POOL_H

/*
 * Pool: how the operations share a loop out among threads. A decoded token is a few hundred
 * loops of microseconds each, so what counts is what a loop costs and what happens when
 * the machine is busy. The caller works too and takes ranges like everyone else; it waits for
 * ranges that somebody has begun, never for a thread to show up. A thread that the kernel has
 * put aside therefore delays one range, not every loop (an OpenMP team meets at a barrier
 * after each; docs/PERFORMANCE.md has the figures).
 *
 * One pool a process, its threads start at the first use and sleep when nothing comes. A second
 * caller at the same time, and a call from inside a range, run their loop alone.
 */
enum { POOL_MAX_THREADS = 256 };

/* Threads that work, the caller included: 1..POOL_MAX_THREADS, more is cut. From the calling
 * thread's next loop on. Starts at the number of processors. */
void pool_set_threads(int n);
int pool_threads(void);
int pool_processors(void);

/* f(arg, first, end) for ranges of at most `grain` that together are 0 .. n - 1, in any order,
 * on any thread. Returns when all are done; what they wrote is visible. */
typedef void pool_fn(const void *arg, int first, int end);
void pool_run(int n, int grain, pool_fn *f, const void *arg);

#endif /* GPU_CPU_POOL_H */
