/* SPDX-License-Identifier: Apache-2.0 */
#ifndef BASE_LOG_H
#define BASE_LOG_H

#include <stdbool.h>

/*
 * One line an event, to stderr: `event key=value ...`. Under journald (JOURNAL_STREAM names
 * stderr) a line starts with its <priority>, else with the time and the level. Values are quoted
 * and control bytes escaped (log_event.h), so that text from a client can forge neither a line
 * nor a key. Any thread; a write that fails (a full disk) is dropped and counted, never waited
 * for or retried. Prompt text is never logged, at any level.
 */
enum log_level {
    LOG_ERROR = 3,
    LOG_WARNING = 4,
    LOG_NOTICE = 5,
    LOG_INFO = 6,
    LOG_DEBUG = 7
};

void log_init(const char *program, enum log_level most);
void log_line(enum log_level level, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
int log_level_parse(const char *s); /* "error" ... "debug"; -1 if none of them */
unsigned long log_dropped(void);
bool log_to_journal(void); /* stderr is the journal's, as log_init() found it */

/* Sees each event in front of stderr, from any thread; true: it has taken it. Set before there
 * are threads. NULL: none. */
struct log_event;

void log_set_sink(bool (*to)(const struct log_event *ev));

#endif /* BASE_LOG_H */
