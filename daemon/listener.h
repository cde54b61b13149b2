/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DAEMON_LISTENER_H
#define DAEMON_LISTENER_H

#include <stdbool.h>

struct err;

/*
 * A listening Unix stream socket: passed by the service manager, or made at a path, which is then
 * ours until it is closed. Main thread.
 */
struct listener {
    int fd;   /* -1: none */
    int lock; /* of the path, if it is ours */
    char *path;
    bool bound;
};

#define LISTENER_NONE ((struct listener){.fd = -1, .lock = -1})

/* ERR_EXISTS: another process has the path. `setting` names it in errors. */
int listener_bind(struct listener *l, const char *path, unsigned mode, const char *setting,
                  struct err *e);
void listener_close(struct listener *l); /* the path goes if it is ours */

#endif /* DAEMON_LISTENER_H */
