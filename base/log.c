/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/log_event.h"

enum { PREFIX_BYTES = 80 };

static const char *program_name = "fathom";
static atomic_int most_verbose = LOG_INFO; /* set again while other threads log */
static atomic_bool to_journal;
static bool (*sink)(const struct log_event *ev);
static atomic_ulong dropped;

static const char *const level_names[] = {
    [LOG_ERROR] = "error", [LOG_WARNING] = "warning", [LOG_NOTICE] = "notice",
    [LOG_INFO] = "info",   [LOG_DEBUG] = "debug",
};

void
log_init(const char *program, enum log_level most)
{
    const char *journal = getenv("JOURNAL_STREAM");
    struct stat st;
    unsigned long long dev, ino;

    program_name = program;
    most_verbose = most;
    to_journal = journal != NULL && sscanf(journal, "%llu:%llu", &dev, &ino) == 2 &&
                 fstat(STDERR_FILENO, &st) == 0 && st.st_dev == dev && st.st_ino == ino;
}

int
log_level_parse(const char *s)
{
    for (int i = LOG_ERROR; i <= LOG_DEBUG; i++) {
        if (strcmp(s, level_names[i]) == 0)
            return i;
    }
    return -1;
}

bool
log_to_journal(void)
{
    return to_journal;
}

void
log_set_sink(bool (*to)(const struct log_event *ev))
{
    sink = to;
}

unsigned long
log_dropped(void)
{
    return atomic_load(&dropped);
}

static void
write_line(const struct log_event *ev)
{
    char line[PREFIX_BYTES + LOG_LINE_BYTES + 1];
    int n;

    if (to_journal) {
        n = snprintf(line, PREFIX_BYTES, "<%d>", ev->level);
    } else {
        const time_t now = time(NULL);
        struct tm tm;

        localtime_r(&now, &tm);
        n = (int)strftime(line, PREFIX_BYTES, "%H:%M:%S ", &tm);
        n += snprintf(line + n, PREFIX_BYTES - (size_t)n, "%.40s: %s: ", program_name,
                      level_names[ev->level]);
    }
    memcpy(line + n, ev->line, ev->line_len);
    n += (int)ev->line_len;
    line[n++] = '\n';
    /* One write a line keeps lines of several threads and processes whole. */
    if (write(STDERR_FILENO, line, (size_t)n) != n)
        atomic_fetch_add(&dropped, 1);
}

void
log_line(enum log_level level, const char *fmt, ...)
{
    struct log_event ev;
    const int was = errno;
    va_list ap;

    if ((int)level > most_verbose)
        return;
    va_start(ap, fmt);
    log_event_make(&ev, level, fmt, ap);
    va_end(ap);
    if (sink == NULL || !sink(&ev))
        write_line(&ev);
    errno = was;
}
