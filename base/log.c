/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"

enum { LINE_MAX_BYTES = 2048 };

static const char *program_name = "fathom";
static enum log_level most_verbose = LOG_INFO;
static int to_journal;
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

unsigned long
log_dropped(void)
{
    return atomic_load(&dropped);
}

/* Copies s with control bytes as \xNN, those of C1 (U+0080 to U+009F: some terminals obey
 * them) included; stops in front of what does not fit. */
static size_t
escape(char *out, size_t room, const char *s)
{
    static const char hex[] = "0123456789abcdef";
    size_t n = 0;
    unsigned char before = 0;

    for (; *s != '\0'; before = (unsigned char)*s++) {
        const unsigned char c = (unsigned char)*s;
        const int is_c1 = (c == 0xc2 && ((unsigned char)s[1] & 0xe0) == 0x80) ||
                          (before == 0xc2 && (c & 0xe0) == 0x80);

        if (c >= 0x20 && c != 0x7f && !is_c1) {
            if (n + 1 > room)
                break;
            out[n++] = (char)c;
        } else {
            if (n + 4 > room)
                break;
            out[n++] = '\\';
            out[n++] = 'x';
            out[n++] = hex[c >> 4];
            out[n++] = hex[c & 15];
        }
    }
    return n;
}

void
log_line(enum log_level level, const char *fmt, ...)
{
    char text[LINE_MAX_BYTES / 2], line[LINE_MAX_BYTES];
    const int was = errno;
    va_list ap;
    int n;

    if (level > most_verbose)
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (to_journal) {
        n = snprintf(line, sizeof line, "<%d>", (int)level);
    } else {
        const time_t now = time(NULL);
        struct tm tm;

        localtime_r(&now, &tm);
        n = (int)strftime(line, sizeof line, "%H:%M:%S ", &tm);
        n += snprintf(line + n, sizeof line - (size_t)n, "%s: %s: ", program_name,
                      level_names[level]);
    }
    n += (int)escape(line + n, sizeof line - (size_t)n - 1, text);
    line[n++] = '\n';
    /* One write a line keeps lines of several threads and processes whole. */
    if (write(STDERR_FILENO, line, (size_t)n) != n)
        atomic_fetch_add(&dropped, 1);
    errno = was;
}
