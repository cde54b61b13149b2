/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fathom top: what the daemon is doing, once a second. Its figures are read from the statistics
 * page, in shared memory; only the list of sessions is asked for. On a terminal the screen is
 * drawn anew each time; elsewhere one block follows the other.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "base/err.h"
#include "base/num.h"
#include "client/client.h"

enum {
    ROWS_MOST = 200,
    ROWS_PLAIN = 20,
    HEAD_LINES = 9,
    DELAY_MS = 1000,
    DELAY_MOST_MS = 3600000
};

struct top_row {
    char name[130], state[33], owner[65], tier[17];
    uint64_t pos, bytes, disk_bytes, used_ms;
};

struct top {
    struct client *c;
    struct fathom_page *page;
    uint64_t now[FATHOM_DAEMON_WORDS], before[FATHOM_DAEMON_WORDS];
    struct top_row rows[ROWS_MOST], rows_before[ROWS_MOST];
    size_t n_rows, n_before;
    bool draws; /* on a terminal */
};

static const char *
state_name(uint64_t state)
{
    static const char *const names[] = {"loading", "serving", "restarting", "failed",
                                        "stopping"};

    return state < sizeof names / sizeof *names ? names[state] : "unknown";
}

/* ---- Reading ------------------------------------------------------------------------- */

static void
on_session(void *arg, const struct fathom_session *s)
{
    struct top *t = arg;
    struct top_row *r = &t->rows[t->n_rows];

    if (t->n_rows == ROWS_MOST)
        return;
    snprintf(r->name, sizeof r->name, "%s", s->name);
    snprintf(r->state, sizeof r->state, "%s", s->state);
    snprintf(r->owner, sizeof r->owner, "%s", s->owner);
    snprintf(r->tier, sizeof r->tier, "%s", s->tier);
    r->pos = s->pos;
    r->bytes = s->bytes;
    r->disk_bytes = s->disk_bytes;
    r->used_ms = s->used_ms;
    t->n_rows++;
}

/* How many sessions fit under the head. */
static size_t
rows_wanted(const struct top *t)
{
    struct winsize w;

    if (!t->draws || ioctl(STDOUT_FILENO, TIOCGWINSZ, &w) == -1 || w.ws_row == 0)
        return ROWS_PLAIN;
    return w.ws_row > HEAD_LINES + 1 ? w.ws_row - HEAD_LINES : 1;
}

static void
look(struct top *t)
{
    const struct fathom_watch w = {
        .struct_size = sizeof w, .arg = t, .session = on_session};
    struct client *c = t->c;
    const size_t n = rows_wanted(t);

    memcpy(t->before, t->now, sizeof t->before);
    memcpy(t->rows_before, t->rows, sizeof t->rows_before);
    t->n_before = t->n_rows;
    t->n_rows = 0;
    if (fathom_page_read(t->page, t->now, FATHOM_DAEMON_WORDS) == -1)
        die(70, "the statistics page makes no sense");
    if (client_run(c, fathom_list_recent(c->f, arg_given(c, "all"),
                                         n < ROWS_MOST ? n : ROWS_MOST, &w, &c->e)) == NULL)
        client_fail(c);
}

/* ---- Figures ------------------------------------------------------------------------- */

/* Between the two times that the page was written. */
static double
seconds(const struct top *t)
{
    const uint64_t now = t->now[FATHOM_PAGE_UPDATED_MS],
                   before = t->before[FATHOM_PAGE_UPDATED_MS];

    return now > before ? (double)(now - before) / 1e3 : 1;
}

/* A second; 0 where the count began anew, with another engine. */
static double
rate(const struct top *t, int word)
{
    const uint64_t now = t->now[word], before = t->before[word];

    return now >= before ? (double)(now - before) / seconds(t) : 0;
}

static double
step_ms(const struct top *t)
{
    const uint64_t n = t->now[FATHOM_DAEMON_STEPS] - t->before[FATHOM_DAEMON_STEPS];
    const uint64_t ns = t->now[FATHOM_DAEMON_STEP_NS] - t->before[FATHOM_DAEMON_STEP_NS];

    return n > 0 && n < UINT64_MAX / 2 ? (double)ns / 1e6 / (double)n : 0;
}

static double
row_rate(const struct top *t, const struct top_row *r)
{
    for (size_t i = 0; i < t->n_before; i++) {
        const struct top_row *b = &t->rows_before[i];

        if (strcmp(b->name, r->name) == 0)
            return r->pos >= b->pos ? (double)(r->pos - b->pos) / seconds(t) : 0;
    }
    return 0;
}

/* ---- Showing ------------------------------------------------------------------------- */

static void
as_json(const struct top *t)
{
    static const struct {
        const char *key;
        int word;
    } words[] = {
        {"uptime_ms", FATHOM_DAEMON_UPTIME_MS},
        {"load_permille", FATHOM_DAEMON_LOAD_PERMILLE},
        {"connections", FATHOM_DAEMON_CONNECTIONS},
        {"requests", FATHOM_DAEMON_REQUESTS},
        {"sessions", FATHOM_DAEMON_SESSIONS},
        {"sessions_busy", FATHOM_DAEMON_SESSIONS_BUSY},
        {"tokens", FATHOM_DAEMON_TOKENS},
        {"queued", FATHOM_DAEMON_QUEUED},
        {"running", FATHOM_DAEMON_RUNNING},
        {"appended", FATHOM_DAEMON_APPENDED},
        {"drawn", FATHOM_DAEMON_DRAWN},
        {"replayed", FATHOM_DAEMON_REPLAYED},
        {"evictions", FATHOM_DAEMON_EVICTIONS},
        {"engine_restarts", FATHOM_DAEMON_ENGINE_RESTARTS},
        {"steps", FATHOM_DAEMON_STEPS},
        {"step_ns", FATHOM_DAEMON_STEP_NS},
        {"prefill_tokens", FATHOM_DAEMON_PREFILL_TOKENS},
        {"decode_tokens", FATHOM_DAEMON_DECODE_TOKENS},
        {"kv_bytes", FATHOM_DAEMON_KV_BYTES},
        {"kv_limit", FATHOM_DAEMON_KV_LIMIT},
        {"sessions_loaded", FATHOM_DAEMON_SESSIONS_LOADED},
        {"memory_bytes", FATHOM_DAEMON_MEMORY_BYTES},
        {"memory_limit", FATHOM_DAEMON_MEMORY_LIMIT},
        {"saves", FATHOM_DAEMON_SAVES},
        {"restores", FATHOM_DAEMON_RESTORES},
        {"restores_failed", FATHOM_DAEMON_RESTORES_FAILED},
        {"restored_tokens", FATHOM_DAEMON_RESTORED_TOKENS},
        {"written_bytes", FATHOM_DAEMON_WRITTEN_BYTES},
        {"read_bytes", FATHOM_DAEMON_READ_BYTES},
        {"commits", FATHOM_DAEMON_COMMITS},
        {"store_errors", FATHOM_DAEMON_STORE_ERRORS},
    };

    json_begin(NULL);
    json_u64("time_ms", t->now[FATHOM_PAGE_UPDATED_MS]);
    json_str("state", state_name(t->now[FATHOM_DAEMON_STATE]));
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        json_u64(words[i].key, t->now[words[i].word]);
    json_f64("appended_per_s", rate(t, FATHOM_DAEMON_APPENDED));
    json_f64("drawn_per_s", rate(t, FATHOM_DAEMON_DRAWN));
    json_f64("steps_per_s", rate(t, FATHOM_DAEMON_STEPS));
    json_f64("step_ms", step_ms(t));
    json_list("by_session");
    for (size_t i = 0; i < t->n_rows; i++) {
        const struct top_row *r = &t->rows[i];

        json_begin(NULL);
        json_str("name", r->name);
        json_str("owner", r->owner);
        json_str("state", r->state);
        json_str("tier", r->tier);
        json_u64("pos", r->pos);
        json_f64("tokens_per_s", row_rate(t, r));
        json_u64("bytes", r->bytes);
        json_u64("disk_bytes", r->disk_bytes);
        json_u64("used_ms", r->used_ms);
        json_end();
    }
    json_list_end();
    json_end();
}

static void
print_head(const struct top *t)
{
    const uint64_t *w = t->now, up = w[FATHOM_DAEMON_UPTIME_MS] / 1000;
    char a[32], b[32];

    printf("fathomd %s, up %llu:%02llu:%02llu, %llu connections, %llu requests\n",
           state_name(w[FATHOM_DAEMON_STATE]), (unsigned long long)up / 3600,
           (unsigned long long)up / 60 % 60, (unsigned long long)up % 60,
           (unsigned long long)w[FATHOM_DAEMON_CONNECTIONS],
           (unsigned long long)w[FATHOM_DAEMON_REQUESTS]);
    printf("sessions  %llu, %llu at work; %s tokens\n",
           (unsigned long long)w[FATHOM_DAEMON_SESSIONS],
           (unsigned long long)w[FATHOM_DAEMON_SESSIONS_BUSY],
           fmt_count(a, sizeof a, w[FATHOM_DAEMON_TOKENS]));
    printf(
        "work      %llu running, %llu queued; %s tokens computed again, %llu evictions\n",
        (unsigned long long)w[FATHOM_DAEMON_RUNNING],
        (unsigned long long)w[FATHOM_DAEMON_QUEUED],
        fmt_count(a, sizeof a, w[FATHOM_DAEMON_REPLAYED]),
        (unsigned long long)w[FATHOM_DAEMON_EVICTIONS]);
    printf("tokens/s  %.1f appended, %.1f drawn\n", rate(t, FATHOM_DAEMON_APPENDED),
           rate(t, FATHOM_DAEMON_DRAWN));
    printf("engine    %.1f steps/s of %.1f ms, %llu restarts; caches %s of %s\n",
           rate(t, FATHOM_DAEMON_STEPS), step_ms(t),
           (unsigned long long)w[FATHOM_DAEMON_ENGINE_RESTARTS],
           fmt_bytes(a, sizeof a, (double)w[FATHOM_DAEMON_KV_BYTES]),
           fmt_bytes(b, sizeof b, (double)w[FATHOM_DAEMON_KV_LIMIT]));
    printf("store     memory %s of %s",
           fmt_bytes(a, sizeof a, (double)w[FATHOM_DAEMON_MEMORY_BYTES]),
           fmt_bytes(b, sizeof b, (double)w[FATHOM_DAEMON_MEMORY_LIMIT]));
    printf(", disk %s/s written, %s/s read, %.1f commits/s, %llu errors\n\n",
           fmt_bytes(a, sizeof a, rate(t, FATHOM_DAEMON_WRITTEN_BYTES)),
           fmt_bytes(b, sizeof b, rate(t, FATHOM_DAEMON_READ_BYTES)),
           rate(t, FATHOM_DAEMON_COMMITS),
           (unsigned long long)w[FATHOM_DAEMON_STORE_ERRORS]);
}

static void
print_rows(const struct top *t)
{
    char pos[32], mem[32], disk[32], age[32];

    printf("%-24s %-10s %-6s %12s %9s %10s %10s  %s\n", "SESSION", "STATE", "CACHES",
           "POSITION", "TOKENS/S", "MEMORY", "DISK", "USED");
    for (size_t i = 0; i < t->n_rows; i++) {
        const struct top_row *r = &t->rows[i];

        printf("%-24s %-10s %-6s %12s %9.1f %10s %10s  %s\n", r->name, r->state, r->tier,
               fmt_count(pos, sizeof pos, r->pos), row_rate(t, r),
               fmt_bytes(mem, sizeof mem, (double)r->bytes),
               fmt_bytes(disk, sizeof disk, (double)r->disk_bytes),
               fmt_age(age, sizeof age, r->used_ms));
    }
}

static void
show(const struct top *t, bool first)
{
    if (t->c->json) {
        as_json(t);
    } else {
        if (t->draws)
            fputs("\033[H\033[J", stdout);
        else if (!first)
            putchar('\n');
        print_head(t);
        print_rows(t);
    }
    if (fflush(stdout) == EOF)
        die(EXIT_OUTPUT, "cannot write to standard output");
}

/* ---- The command --------------------------------------------------------------------- */

static struct fathom_page *
open_page(struct client *c)
{
    const struct fathom_result *r;
    struct fathom_page *page;

    do {
        r = client_run(c, fathom_stats(c->f, NULL, &c->e));
    } while (r == NULL && client_again(c));
    if (r == NULL)
        client_fail(c);
    page = fathom_page_open(r->fd, &c->e);
    close(r->fd);
    if (page == NULL)
        client_fail(c);
    return page;
}

static void
pause_ms(uint64_t ms)
{
    struct timespec t = {(time_t)(ms / 1000), (long)(ms % 1000) * 1000000};

    while (nanosleep(&t, &t) == -1 && errno == EINTR)
        ;
}

int
cmd_top(struct client *c)
{
    static struct top t;
    const char *term = getenv("TERM"), *delay = arg_value(c, "delay");
    const bool once = arg_given(c, "once");
    uint64_t ms = DELAY_MS;
    struct err e;

    if (delay != NULL && num_duration_ms(delay, 100, DELAY_MOST_MS, &ms, &e) == -1)
        usage_error(c, "--delay %s: %s", delay, e.text);
    t.c = c;
    t.draws = !once && !c->json && isatty(STDOUT_FILENO) && term != NULL &&
              strcmp(term, "dumb") != 0;
    client_open(c);
    t.page = open_page(c);
    look(&t);
    for (bool first = true; !c->interrupted; first = false) {
        pause_ms(ms);
        look(&t);
        show(&t, first);
        if (once)
            break;
    }
    fathom_page_close(t.page);
    return client_end(c);
}
