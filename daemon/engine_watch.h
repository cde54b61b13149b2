/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DAEMON_ENGINE_WATCH_H
#define DAEMON_ENGINE_WATCH_H

#include <stdint.h>

struct link_status;

/*
 * What can be told from outside about an engine that runs: how long its steps take, whether
 * anything moves, and who may have killed it. Main thread; no state but the caller's.
 */
enum { SPEED_SIZES = 21 };

/* The longest steps of late, by the power of two of their tokens; older ones fade. */
struct engine_speed {
    uint64_t longest_ns[SPEED_SIZES];
    uint64_t steps, tokens, ns; /* of the status page, when it was last read */
};

void engine_speed_learn(struct engine_speed *v, const struct link_status *s);
void engine_speed_restart(struct engine_speed *v); /* another engine, the same machine */

/* How long a step of so many tokens may take: base and each for every token; or, once such
 * steps have been measured, ten times as long as they take, if that is less; never below base. */
uint64_t engine_step_limit(const struct engine_speed *v, uint64_t base_ns, uint64_t each_ns,
                           uint64_t tokens);

/* When it was first seen that something is as it is now; 0: it is not. */
struct engine_watch {
    uint64_t step, steps, step_since; /* the step under way */
    uint64_t beat, beat_since;
    uint64_t missing_since;     /* packets that were sent and have not come */
    uint64_t packets, computed; /* at the last packet that came */
};

void engine_watch_see(struct engine_watch *w, const struct link_status *s, uint64_t now);

/* How many processes the system has killed for want of memory: in all, as far as this file
 * tells, and in our control group. UINT64_MAX: neither can be read. */
uint64_t engine_oom_kills(const char *vmstat, const char *self_cgroup, const char *mount);

/* Memory that there is for us: the machine's, or what a control group above us may have. */
uint64_t engine_memory(const char *self_cgroup, const char *mount);

#endif /* DAEMON_ENGINE_WATCH_H */
