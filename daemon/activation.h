/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DAEMON_ACTIVATION_H
#define DAEMON_ACTIVATION_H

struct err;

/*
 * Descriptors that the service manager passes (sd_listen_fds(3)): sockets of socket units, and
 * what an earlier fathomd gave it to keep (notify_keep()). All are taken at once, by name, and
 * what nobody knows is closed and taken out of the store: it would come again with each start.
 */
struct activation {
    int api;     /* listening Unix stream socket; -1: none was passed */
    int metrics; /* the same, for metrics.h */
    int arena;   /* a memfd of ours, as an earlier fathomd left it, or not: check it */
};

/* ERR_INVALID: sockets were passed, but none that clients could use. */
int activation_take(struct activation *a, struct err *e);
void activation_done(struct activation *a); /* closes what was not taken over */

#endif /* DAEMON_ACTIVATION_H */
