/* SPDX-License-Identifier: Apache-2.0 */
#ifndef BASE_LOG_EVENT_H
#define BASE_LOG_EVENT_H

#include <stdarg.h>
#include <stddef.h>

/*
 * A log line taken apart. What is a word, a key or a quote is decided by the format alone:
 * what a conversion puts in is content, whatever bytes it has, so that no value can end its
 * own quotes or begin another key. Any thread; all of it lies in the struct.
 */
enum { LOG_MAX_FIELDS = 24, LOG_TEXT_BYTES = 1024, LOG_LINE_BYTES = 2048 };

struct log_field {
    const char *key, *value; /* as they are: nothing is escaped in them */
};

struct log_event {
    int level;                               /* enum log_level */
    const char *name;                        /* the first word */
    struct log_field fields[LOG_MAX_FIELDS]; /* its key=value words, in order */
    size_t n_fields;
    /* `name word key=value key="two words"` without an end of line: values that need it are
     * quoted, with \" and \\ in quotes, and control bytes are \xNN everywhere. */
    char line[LOG_LINE_BYTES];
    size_t line_len;

    char text[LOG_TEXT_BYTES + 1]; /* what the pointers point to */
};

void log_event_make(struct log_event *ev, int level, const char *fmt, va_list ap)
    __attribute__((format(printf, 3, 0)));

#endif /* BASE_LOG_EVENT_H */
