/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DAEMON_ENGINE_SPAWN_H
#define DAEMON_ENGINE_SPAWN_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct err;
struct link_status;
struct options;

/* A running engine as a process: how to talk to it, watch it and see it end. */
struct engine_child {
    pid_t pid; /* 0: there is none */
    int pidfd, sock;
    const struct link_status *status; /* mapped read-only; the engine writes it */
};

/* Memory of fathomd's that the engine copies caches to and from. */
struct engine_arena {
    int fd; /* -1: none */
    uint64_t bytes;
};

/*
 * Starts the engine: descriptor LINK_FD is its end of the link, STATUS_FD the status page, 0 is
 * /dev/null, 2 is ours, ARENA_FD the host memory if there is any, and it has no other. It dies with us, and is in a process group of its
 * own, so that a Ctrl-C is ours alone to answer.
 */
int engine_spawn(struct engine_child *c, const struct options *o,
                 const struct engine_arena *arena, struct err *e);

/* Unmaps and closes; the process must have been waited for. */
void engine_child_done(struct engine_child *c);

#endif /* DAEMON_ENGINE_SPAWN_H */
