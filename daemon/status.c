/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "daemon/options.h"
#include "daemon/server.h"
#include "daemon/status.h"
#include "daemon/store.h"
#include "daemon/work.h"

static const char *const words[] = {"loading", "serving", "restarting", "failed",
                                    "stopping"};

enum { LOADING, SERVING, RESTARTING, FAILED, STOPPING };

uint64_t
status_number(const struct server *sv)
{
    if (sv->stopping)
        return STOPPING;
    switch (engine_state(work_engine(sv->work))) {
    case ENGINE_SERVING: return SERVING;
    case ENGINE_FAILED: return FAILED;
    case ENGINE_LOADING:
        return engine_restarts(work_engine(sv->work)) == 0 ? LOADING : RESTARTING;
    default: return RESTARTING;
    }
}

const char *
status_word(const struct server *sv)
{
    return words[status_number(sv)];
}

/* What the disk does not take, behind the sentence. */
static void
add_trouble(const struct server *sv, char *room, size_t size)
{
    const size_t len = strlen(room);
    struct store_counts c;
    char since[32] = "";
    struct tm tm;
    time_t t;

    store_count(sv->store, &c);
    if (c.full + c.read_only == 0)
        return;
    t = (time_t)(c.since_ms / 1000);
    if (gmtime_r(&t, &tm) != NULL)
        strftime(since, sizeof since, "%Y-%m-%d %H:%M:%S UTC", &tm);
    if (c.read_only > 0)
        snprintf(room + len, size - len,
                 "; DEGRADED: %" PRIu64 " sessions read-only since %s", c.read_only, since);
    else
        snprintf(room + len, size - len,
                 "; DEGRADED: disk full, %" PRIu64 " sessions wait since %s", c.full,
                 since);
}

void
status_sentence(const struct server *sv, char *room, size_t size)
{
    const struct engine *g = work_engine(sv->work);
    const struct link_ready *info = engine_info(g);
    const uint64_t sessions = sv->quota.used[QUOTA_SESSIONS];
    struct link_status st;

    engine_status(g, &st);
    if (sv->stopping)
        snprintf(room, size, "stopping: %" PRIu64 " to be saved",
                 kv_unsaved(work_kv(sv->work)));
    else if (engine_state(g) == ENGINE_SERVING)
        snprintf(room, size, "serving %s on %s, %" PRIu64 " session%s, %" PRIu64 " tokens",
                 sv->model, info->backend, sessions, sessions == 1 ? "" : "s",
                 sv->quota.used[QUOTA_TOKENS]);
    else if (engine_state(g) == ENGINE_LOADING)
        snprintf(room, size, "loading %s: %" PRIu64 "%%%s", sv->model,
                 st.load_permille / 10, engine_restarts(g) > 0 ? " (restart)" : "");
    else if (engine_state(g) == ENGINE_FAILED)
        snprintf(room, size,
                 "FAILED: the engine died %" PRIu64 " times; transcripts can be read; the "
                 "last: %.100s",
                 engine_restarts(g) + 1, engine_error(g)->text);
    else
        snprintf(room, size, "restarting the engine: %.150s", engine_error(g)->text);
    add_trouble(sv, room, size);
}
