/* SPDX-License-Identifier: Apache-2.0 */
/* What reaches stderr, whatever stderr is: each test lends log_line another one. */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "base/log_event.h"
#include "tests/test.h"

static int real_stderr;
static int pipe_fd[2];

static void
lend(int fd)
{
    assert_return_code(dup2(fd, STDERR_FILENO), errno);
}

static int
start(void **state)
{
    (void)state;
    real_stderr = dup(STDERR_FILENO);
    return pipe(pipe_fd);
}

static int
stop(void **state)
{
    (void)state;
    dup2(real_stderr, STDERR_FILENO);
    close(real_stderr);
    close(pipe_fd[0]);
    if (pipe_fd[1] != -1)
        close(pipe_fd[1]);
    return 0;
}

static void
begin_line(void)
{
    fcntl(pipe_fd[0], F_SETFL, O_NONBLOCK);
    lend(pipe_fd[1]);
}

static const char *
end_line(void)
{
    static char line[4096];
    const size_t time = strlen("00:00:00 ");
    ssize_t n;

    dup2(real_stderr, STDERR_FILENO);
    n = read(pipe_fd[0], line, sizeof line - 1);
    line[n > 0 ? n : 0] = '\0';
    return n > (ssize_t)time && line[0] != '<' ? line + time : line;
}

/* What one log_line writes, without the time: 0 bytes if nothing. */
#define LINE_WITH(...)    (begin_line(), log_line(__VA_ARGS__), end_line())
#define line_of(lv, text) LINE_WITH(lv, "%s", text)

static void
test_lines(void **state)
{
    (void)state;
    unsetenv("JOURNAL_STREAM");
    log_init("prog", LOG_INFO);
    assert_string_equal(line_of(LOG_WARNING, "disk-full path=/x"),
                        "prog: warning: disk-full path=/x\n");
    assert_string_equal(line_of(LOG_DEBUG, "not shown"), "");
    log_init("prog", LOG_DEBUG);
    assert_non_null(strstr(line_of(LOG_DEBUG, "shown"), "debug: shown\n"));
}

/* One call, one line: control bytes cannot begin another, nor reach a terminal. */
static void
test_escapes(void **state)
{
    const char *line;

    (void)state;
    log_init("prog", LOG_INFO);
    line = line_of(LOG_INFO, "a\nprog: error: forged\r\x1b[31m\x7f\t\xc3\xa9");
    assert_non_null(
        strstr(line, "a\\x0aprog: error: forged\\x0d\\x1b[31m\\x7f\\x09\xc3\xa9\n"));
    assert_ptr_equal(strchr(line, '\n'), line + strlen(line) - 1);
    line = line_of(LOG_INFO, "\xc2\x9b\xc2\x9b"
                             "31m\xc2\xa0");
    assert_non_null(strstr(line, "\\xc2\\x9b\\xc2\\x9b"
                                 "31m\xc2\xa0\n")); /* CSI as one character */
}

/* What is between a format's quotes ends at the format's quote, whatever a client sent. */
static void
test_values(void **state)
{
    static const struct {
        const char *value, *quoted, *bare;
    } cases[] = {
        {"plain", "why=\"plain\"", "why=plain"},
        {"two words", "why=\"two words\"", "why=\"two words\""},
        {"a\" uid=0 b=\"c", "why=\"a\\\" uid=0 b=\\\"c\"", "why=\"a\\\" uid=0 b=\\\"c\""},
        {"back\\slash\\", "why=\"back\\\\slash\\\\\"", "why=\"back\\\\slash\\\\\""},
        {"k=v", "why=\"k=v\"", "why=\"k=v\""},
        {"", "why=\"\"", "why=\"\""},
        {"a\nb", "why=\"a\\x0ab\"", "why=\"a\\x0ab\""},
        {"%s%n", "why=\"%s%n\"", "why=%s%n"},
    };

    char want[200];

    (void)state;
    log_init("prog", LOG_INFO);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        snprintf(want, sizeof want, "prog: info: ev uid=%d %s end=x\n", 7, cases[i].quoted);
        assert_string_equal(LINE_WITH(LOG_INFO, "ev uid=%d why=\"%s\" end=%.*s", 7,
                                      cases[i].value, 1, "xyz"),
                            want);
        snprintf(want, sizeof want, "prog: info: ev uid=%d %s end=x\n", 7, cases[i].bare);
        assert_string_equal(
            LINE_WITH(LOG_INFO, "ev uid=%d why=%s end=%.*s", 7, cases[i].value, 1, "xyz"),
            want);
    }
}

static struct log_event seen;
static int n_seen;

static bool
see(const struct log_event *ev)
{
    seen = *ev; /* its pointers still point into the first */
    n_seen++;
    assert_int_equal(ev->n_fields, 4);
    assert_string_equal(ev->name, "session-new");
    assert_string_equal(ev->fields[0].key, "name");
    assert_string_equal(ev->fields[0].value, "a\" uid=0");
    assert_string_equal(ev->fields[1].key, "uid");
    assert_string_equal(ev->fields[1].value, "1000");
    assert_string_equal(ev->fields[2].key, "bytes");
    assert_string_equal(ev->fields[2].value, "100%");
    assert_string_equal(ev->fields[3].key, "why");
    assert_string_equal(ev->fields[3].value, "x\ny");
    return n_seen == 1;
}

/* A sink gets values as they are, and what it does not take is written. */
static void
test_sink(void **state)
{
    static const char fmt[] = "session-new name=\"%s\" uid=%u bytes=%d%% word why=\"%s\"";

    (void)state;
    log_init("prog", LOG_INFO);
    n_seen = 0;
    log_set_sink(see);
    assert_string_equal(LINE_WITH(LOG_NOTICE, fmt, "a\" uid=0", 1000u, 100, "x\ny"), "");
    assert_string_equal(
        LINE_WITH(LOG_NOTICE, fmt, "a\" uid=0", 1000u, 100, "x\ny"),
        "prog: notice: session-new name=\"a\\\" uid=0\" uid=1000 bytes=100% "
        "word why=\"x\\x0ay\"\n");
    log_line(LOG_DEBUG, "not shown");
    log_set_sink(NULL);
    assert_int_equal(n_seen, 2);
    assert_int_equal(seen.level, LOG_NOTICE);
}

/* More words, keys, conversions and bytes than there is room for. */
static void
test_too_much(void **state)
{
    static char text[5000], many[400];
    const char *line;

    (void)state;
    log_init("prog", LOG_INFO);
    memset(text, '"', sizeof text - 1);
    for (int n = 0; n < 60; n++) {
        line = LINE_WITH(LOG_INFO, "ev a=\"%.*s\" b=\"%s\"", 900 + n, text, text);
        assert_ptr_equal(strchr(line, '\n'), line + strlen(line) - 1);
        assert_in_range(strlen(line), 1000, LOG_LINE_BYTES + 80);
    }
    for (int i = 0; i < 100; i++)
        memcpy(many + 4 * i, " k=1", 4);
    many[399] = '\0';
    line = LINE_WITH(LOG_INFO,
                     "ev" /* 40 of them */
                     " a=%d a=%d a=%d a=%d a=%d a=%d a=%d a=%d a=%d a=%d"
                     " a=%d a=%d a=%d a=%d a=%d a=%d a=%d a=%d a=%d a=%d"
                     " a=%d a=%d a=%d a=%d a=%d a=%d a=%d a=%d a=%d a=%d"
                     " a=%d a=%d a=%d a=%d a=%d a=%d a=%d a=%d a=%d a=%s",
                     1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1, 2, 3, 4, 5, 6, 7, 8, 9, 20, 1, 2, 3,
                     4, 5, 6, 7, 8, 9, 30, 1, 2, 3, 4, 5, 6, 7, 8, 9, many);
    assert_non_null(strstr(line, "a=30 a=1 a=\"2 a=3"));
    assert_null(strstr(line, " k=1 k=1\n")); /* never outside of quotes */
}

/* Text of any length, of bytes that grow fourfold, is one line that ends. */
static void
test_long(void **state)
{
    static char text[10000];

    (void)state;
    log_init("prog", LOG_INFO);
    for (int c = 1; c < 256; c += 6) {
        const char *line;

        memset(text, c, sizeof text - 1);
        line = line_of(LOG_INFO, text);
        assert_in_range(strlen(line), 1000, LOG_LINE_BYTES + 80);
        assert_ptr_equal(strchr(line, '\n'), line + strlen(line) - 1);
    }
}

static void
test_journal(void **state)
{
    struct stat st;
    char stream[64];

    (void)state;
    assert_int_equal(fstat(pipe_fd[1], &st), 0);
    snprintf(stream, sizeof stream, "%llu:%llu", (unsigned long long)st.st_dev,
             (unsigned long long)st.st_ino);
    setenv("JOURNAL_STREAM", stream, 1);
    lend(pipe_fd[1]);
    log_init("prog", LOG_INFO);
    assert_string_equal(line_of(LOG_ERROR, "x"), "<3>x\n");
    setenv("JOURNAL_STREAM", "1:1", 1); /* somebody else's journal, inherited */
    lend(pipe_fd[1]);
    log_init("prog", LOG_INFO);
    assert_non_null(strstr(line_of(LOG_ERROR, "x"), "prog: error: x\n"));
    unsetenv("JOURNAL_STREAM");
}

/* A log that cannot be written is counted, and errno left alone. */
static void
test_nowhere_to_write(void **state)
{
    const unsigned long was = log_dropped();
    const int full = open("/dev/full", O_WRONLY);

    (void)state;
    log_init("prog", LOG_INFO);
    signal(SIGPIPE, SIG_IGN);
    assert_return_code(full, errno);
    lend(full);
    errno = ERANGE;
    log_line(LOG_INFO, "on a full disk");
    assert_int_equal(errno, ERANGE);
    assert_int_equal(log_dropped(), was + 1);
    close(full);

    close(STDERR_FILENO);
    log_line(LOG_INFO, "closed");
    assert_int_equal(log_dropped(), was + 2);

    close(pipe_fd[0]);
    lend(pipe_fd[1]);
    log_line(LOG_INFO, "nobody reads");
    assert_int_equal(log_dropped(), was + 3);

    assert_int_equal(pipe(pipe_fd), 0);
    fcntl(pipe_fd[1], F_SETFL, O_NONBLOCK);
    lend(pipe_fd[1]);
    for (int i = 0; i < 100000 && log_dropped() == was + 3; i++)
        log_line(LOG_INFO, "the reader sleeps");
    assert_int_equal(log_dropped(), was + 4);
    dup2(real_stderr, STDERR_FILENO);
}

static void
test_levels(void **state)
{
    (void)state;
    assert_int_equal(log_level_parse("error"), LOG_ERROR);
    assert_int_equal(log_level_parse("debug"), LOG_DEBUG);
    assert_int_equal(log_level_parse("Debug"), -1);
    assert_int_equal(log_level_parse(""), -1);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_lines, start, stop),
        cmocka_unit_test_setup_teardown(test_escapes, start, stop),
        cmocka_unit_test_setup_teardown(test_values, start, stop),
        cmocka_unit_test_setup_teardown(test_sink, start, stop),
        cmocka_unit_test_setup_teardown(test_too_much, start, stop),
        cmocka_unit_test_setup_teardown(test_long, start, stop),
        cmocka_unit_test_setup_teardown(test_journal, start, stop),
        cmocka_unit_test_setup_teardown(test_nowhere_to_write, start, stop),
        cmocka_unit_test(test_levels),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
