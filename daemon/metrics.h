/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DAEMON_METRICS_H
#define DAEMON_METRICS_H

#include <stdint.h>

#include "base/err.h"
#include "daemon/histogram.h"
#include "daemon/session.h"
#include "proto/wire.h"

struct buf;
struct server;

/*
 * What the daemon counts, as Prometheus reads it (text format 0.0.4), on a socket of its own:
 * an HTTP client gets /metrics, one that says nothing gets the same without HTTP. Main thread.
 *
 * Whoever counts something keeps it in a struct of its own; metrics.c collects them when somebody
 * asks, by the fields of metrics.def.
 */
enum metrics_tier { METRICS_ENGINE, METRICS_ARENA, METRICS_DISK, METRICS_TIERS };

struct metrics_values {
#define METRIC(id, name, kind, unit, help)                   uint64_t id;
#define FAMILY(id, name, kind, unit, label, n, values, help) uint64_t id[n];
#define HISTOGRAM(id, name, help)                            struct histogram id;
#include "daemon/metrics.def"
#undef METRIC
#undef FAMILY
#undef HISTOGRAM
};

/* The page; ERR_QUOTA if it does not fit into out. */
int metrics_write(const struct metrics_values *v, struct buf *out, struct err *e);

struct metrics;

/* On the socket that was passed (taken over), or with -1 on one made at metrics-socket; *out is
 * NULL if there is neither. */
int metrics_open(struct server *sv, int passed, struct metrics **out, struct err *e);
void metrics_close(struct metrics *m); /* NULL is fine */

#endif /* DAEMON_METRICS_H */
