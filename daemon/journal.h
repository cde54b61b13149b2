/* SPDX-License-Identifier: Apache-2.0 */
#ifndef DAEMON_JOURNAL_H
#define DAEMON_JOURNAL_H

#include <stddef.h>
#include <stdint.h>

/*
 * Where log lines go: base/log's sink. Under journald each event has the MESSAGE_ID that
 * journal.def gives its name, and its keys are fields; else it is a line on stderr. Either way
 * no event is written more often in a minute than its entry says. Any thread may log.
 */
void journal_init(void);

/* Tells how many lines have been left out, a minute after the first of them; from a timer. */
void journal_tell(void);

/* The table, for what is made from it and for tests. */
struct journal_event {
    const char *name, *id; /* 32 hexadecimal digits */
    uint32_t a_minute;     /* 0: any number */
    const char *subject, *text;
};

extern const struct journal_event journal_events[];
extern const size_t journal_n_events;

/* The field's name of an event's key: a known one, or FATHOM_ and the key in capitals. */
enum { JOURNAL_FIELD_MAX = 64 };

void journal_field(const char *key, char field[JOURNAL_FIELD_MAX + 1]);

#endif /* DAEMON_JOURNAL_H */
