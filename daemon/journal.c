/* SPDX-License-Identifier: Apache-2.0 */
/*
 * journald's side of the log, and the limit of lines a minute.
 *
 * A line's text is the MESSAGE, so that `journalctl` shows what stderr would have; the fields
 * are for programs. Counts are atomics of their own: two threads that log the same event at the
 * turn of a minute may let one line more or less through, which nobody will miss.
 */
#include "config.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/log_event.h"
#include "daemon/journal.h"

/* Behind base/log.h: it makes macros of our levels' names, with the same numbers. */
#include <systemd/sd-journal.h>

#define MINUTE_NS UINT64_C(60000000000)

enum { FIXED_FIELDS = 5 };

const struct journal_event journal_events[] = {
#define EVENT(name, id, a_minute, subject, text) {name, id, a_minute, subject, text},
#include "daemon/journal.def"
#undef EVENT
};
const size_t journal_n_events = sizeof journal_events / sizeof journal_events[0];

static struct tally {
    _Atomic uint64_t since_ns; /* the minute's begin */
    _Atomic uint32_t n;        /* lines since then, written or not */
} tallies[sizeof journal_events / sizeof journal_events[0]];

/* Keys that programs look for; the same thing has the same field in every event. */
static const struct {
    const char *key, *field;
} fields[] = {
    {"session", "SESSION"}, {"uid", "UID"},         {"pos", "POS"},
    {"tokens", "TOKENS"},   {"bytes", "BYTES"},     {"usec", "DURATION_USEC"},
    {"tier", "TIER"},       {"why", "ERROR"},       {"failed", "ERROR"},
    {"last", "ERROR"},      {"code", "ERROR_CODE"}, {"status", "STATUS"},
};

void
journal_field(const char *key, char field[JOURNAL_FIELD_MAX + 1])
{
    size_t n;

    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        if (strcmp(key, fields[i].key) == 0) {
            strcpy(field, fields[i].field);
            return;
        }
    }
    n = (size_t)snprintf(field, JOURNAL_FIELD_MAX + 1, "FATHOM_");
    for (; *key != '\0' && n < JOURNAL_FIELD_MAX; key++)
        field[n++] = isalnum((unsigned char)*key) ? (char)toupper((unsigned char)*key)
                                                  : '_';
    field[n] = '\0';
}

static size_t
find(const char *name)
{
    size_t i = 0;

    while (i < journal_n_events && strcmp(journal_events[i].name, name) != 0)
        i++;
    return i;
}

static uint32_t
over_limit(size_t i, uint32_t n)
{
    const uint32_t limit = journal_events[i].a_minute;

    return limit != 0 && n > limit ? n - limit : 0;
}

/* The minute is over: a new one, and how many lines the last one kept back. */
static void
next_minute(size_t i, uint64_t now)
{
    uint64_t since = atomic_load(&tallies[i].since_ns);
    uint32_t kept;

    if (now - since < MINUTE_NS ||
        !atomic_compare_exchange_strong(&tallies[i].since_ns, &since, now))
        return;
    kept = over_limit(i, atomic_exchange(&tallies[i].n, 0));
    if (kept > 0)
        log_line(LOG_NOTICE, "suppressed of=%s n=%" PRIu32, journal_events[i].name, kept);
}

void
journal_tell(void)
{
    const uint64_t now = clock_ns();

    for (size_t i = 0; i < journal_n_events; i++) {
        if (atomic_load(&tallies[i].n) > 0)
            next_minute(i, now);
    }
}

static bool
may_be_written(size_t i)
{
    if (i == journal_n_events || journal_events[i].a_minute == 0)
        return true;
    next_minute(i, clock_ns());
    return over_limit(i, atomic_fetch_add(&tallies[i].n, 1) + 1) == 0;
}

/* One record on its way to journald. */
struct record {
    struct iovec iov[FIXED_FIELDS + LOG_MAX_FIELDS];
    int n;
    size_t at;
    char bytes[2 * LOG_LINE_BYTES + LOG_TEXT_BYTES + LOG_MAX_FIELDS * JOURNAL_FIELD_MAX];
};

static void
add(struct record *r, const char *field, const char *value)
{
    const int n =
        snprintf(r->bytes + r->at, sizeof r->bytes - r->at, "%s=%s", field, value);

    if (n < 0 || (size_t)n >= sizeof r->bytes - r->at)
        return;
    r->iov[r->n++] = (struct iovec){r->bytes + r->at, (size_t)n};
    r->at += (size_t)n;
}

static bool
sink(const struct log_event *ev)
{
    const size_t i = find(ev->name);
    const char priority[] = {(char)('0' + ev->level), '\0'};
    char field[JOURNAL_FIELD_MAX + 1];
    struct record r;

    if (!may_be_written(i))
        return true;
    if (!log_to_journal())
        return false;
    r.n = 0;
    r.at = 0;
    add(&r, "MESSAGE", ev->line);
    add(&r, "PRIORITY", priority);
    add(&r, "SYSLOG_IDENTIFIER", "fathomd");
    add(&r, "FATHOM_EVENT", ev->name);
    if (i < journal_n_events)
        add(&r, "MESSAGE_ID", journal_events[i].id);
    for (size_t k = 0; k < ev->n_fields; k++) {
        journal_field(ev->fields[k].key, field);
        add(&r, field, ev->fields[k].value);
    }
    /* Without journald, stderr is still there. */
    return sd_journal_sendv(r.iov, r.n) == 0;
}

void
journal_init(void)
{
    log_set_sink(sink);
}
