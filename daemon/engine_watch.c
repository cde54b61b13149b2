/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "base/num.h"
#include "daemon/engine_watch.h"
#include "proto/link.h"

enum { FADES = 64, MARGIN = 10, LINE_BYTES = 4096 };

static const uint64_t longest_limit = UINT64_C(86400) * 1000000000;

static unsigned
size_of(uint64_t tokens)
{
    unsigned size = 0;

    while (tokens > 1 && size + 1 < SPEED_SIZES) {
        tokens /= 2;
        size++;
    }
    return size;
}

void
engine_speed_restart(struct engine_speed *v)
{
    v->steps = v->tokens = v->ns = 0;
}

/* The counts are read one by one while they change: a step more or less does no harm. */
void
engine_speed_learn(struct engine_speed *v, const struct link_status *s)
{
    const uint64_t tokens = s->prefill_tokens + s->decode_tokens;
    const uint64_t steps = s->steps - v->steps;

    if (s->steps <= v->steps)
        return;
    if (tokens > v->tokens && s->step_ns > v->ns) {
        const unsigned size = size_of((tokens - v->tokens) / steps);
        const uint64_t ns = (s->step_ns - v->ns) / steps;
        uint64_t *longest = &v->longest_ns[size];

        *longest -= *longest / FADES;
        if (ns > *longest)
            *longest = ns < longest_limit ? ns : longest_limit;
    }
    v->steps = s->steps;
    v->tokens = tokens;
    v->ns = s->step_ns;
}

/* From steps of the same size; else from smaller ones, each token as long as there; else from
 * larger ones. 0: nothing is known. */
static uint64_t
expected(const struct engine_speed *v, uint64_t tokens)
{
    const unsigned size = size_of(tokens);

    for (unsigned i = size + 1; i-- > 0;) {
        const uint64_t ns = v->longest_ns[i];

        if (ns == 0)
            continue;
        return ns < longest_limit >> (size - i + 1) ? ns << (size - i + 1) : longest_limit;
    }
    for (unsigned i = size + 1; i < SPEED_SIZES; i++) {
        if (v->longest_ns[i] != 0)
            return v->longest_ns[i];
    }
    return 0;
}

uint64_t
engine_step_limit(const struct engine_speed *v, uint64_t base_ns, uint64_t each_ns,
                  uint64_t tokens)
{
    const uint64_t usual = expected(v, tokens);
    const uint64_t most = base_ns + each_ns * tokens;

    if (usual == 0 || usual >= most / MARGIN)
        return most;
    return MARGIN * usual > base_ns ? MARGIN * usual : base_ns;
}

void
engine_watch_see(struct engine_watch *w, const struct link_status *s, uint64_t now)
{
    if (s->step_began_ns != w->step || s->steps != w->steps) {
        w->step = s->step_began_ns;
        w->steps = s->steps;
        w->step_since = now;
    }
    if (s->beat_ns != w->beat || s->step_began_ns != 0) {
        w->beat = s->beat_ns;
        w->beat_since = now;
    }
}

/* What follows `word` at the start of a line; these files have no size, so no file_read(). */
static int
find_line(const char *path, const char *word, char *room, size_t size)
{
    const size_t len = strlen(word);
    FILE *f = fopen(path, "re");
    char line[LINE_BYTES];
    int rc = -1;

    while (f != NULL && fgets(line, sizeof line, f) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        if (strncmp(line, word, len) == 0)
            rc = snprintf(room, size, "%s", line + len) < (int)size ? 0 : -1;
    }
    if (f != NULL)
        fclose(f);
    return rc;
}

static int
read_count(const char *path, uint64_t *n)
{
    char number[32];
    struct err e;

    if (find_line(path, "oom_kill ", number, sizeof number) == -1)
        return -1;
    return num_u64(number, 0, UINT64_MAX, n, &e);
}

uint64_t
engine_oom_kills(const char *vmstat, const char *self_cgroup, const char *mount)
{
    uint64_t all = UINT64_MAX, ours;
    char group[LINE_BYTES], path[2 * LINE_BYTES];

    if (read_count(vmstat, &all) == -1)
        all = UINT64_MAX;
    /* The unified hierarchy's line: "0::/path". */
    if (find_line(self_cgroup, "0::", group, sizeof group) == -1)
        return all;
    snprintf(path, sizeof path, "%s%s/memory.events", mount, group);
    if (read_count(path, &ours) == -1)
        return all;
    return (all == UINT64_MAX ? 0 : all) + ours;
}

uint64_t
engine_memory(const char *self_cgroup, const char *mount)
{
    const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    uint64_t least = pages > 0 && page > 0 ? (uint64_t)pages * (uint64_t)page : UINT64_MAX;
    uint64_t n;
    char group[LINE_BYTES], path[2 * LINE_BYTES], number[32];
    char *end;
    struct err e;

    if (find_line(self_cgroup, "0::", group, sizeof group) == -1)
        return least;
    do {
        snprintf(path, sizeof path, "%s%s/memory.max", mount, group);
        if (find_line(path, "", number, sizeof number) == 0 &&
            num_u64(number, 0, UINT64_MAX, &n, &e) == 0 && n < least)
            least = n; /* no limit is the word "max" */
        end = strrchr(group, '/');
        if (end != NULL)
            *end = '\0';
    } while (end != NULL);
    return least;
}
