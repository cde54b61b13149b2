/* SPDX-License-Identifier: Apache-2.0 */
/* The table of events, the names of fields, and how much is written in a minute. */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "daemon/journal.h"
#include "tests/test.h"

static uint64_t now_ns = 1;

uint64_t __wrap_clock_ns(void);

uint64_t
__wrap_clock_ns(void)
{
    return now_ns;
}

static void
test_table(void **state)
{
    (void)state;
    assert_true(journal_n_events > 20);
    for (size_t i = 0; i < journal_n_events; i++) {
        const struct journal_event *a = &journal_events[i];

        assert_int_equal(strlen(a->id), 32);
        assert_int_equal(strspn(a->id, "0123456789abcdef"), 32);
        assert_int_equal(strspn(a->name, "abcdefghijklmnopqrstuvwxyz-"), strlen(a->name));
        assert_true(strlen(a->subject) > 0 && strlen(a->text) > 0);
        for (size_t k = 0; k < i; k++) {
            assert_string_not_equal(a->id, journal_events[k].id);
            assert_string_not_equal(a->name, journal_events[k].name);
        }
    }
}

static void
test_fields(void **state)
{
    static const struct {
        const char *key, *field;
    } cases[] = {
        {"session", "SESSION"},
        {"uid", "UID"},
        {"why", "ERROR"},
        {"usec", "DURATION_USEC"},
        {"pid", "FATHOM_PID"}, /* not journald's own _PID or OBJECT_PID */
        {"needs-a-restart", "FATHOM_NEEDS_A_RESTART"},
        {"message", "FATHOM_MESSAGE"},
    };

    char field[JOURNAL_FIELD_MAX + 1], longest[200];

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        journal_field(cases[i].key, field);
        assert_string_equal(field, cases[i].field);
    }
    memset(longest, 'k', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    journal_field(longest, field);
    assert_int_equal(strlen(field), JOURNAL_FIELD_MAX);
}

/* Lines that n events of this name leave on stderr; what they say is in the file `log`. */
static char text[1 << 16];

static size_t
lines(const char *event, int n, bool tell)
{
    const int saved = dup(STDERR_FILENO);
    FILE *f = tmpfile();
    size_t got = 0, len;

    assert_non_null(f);
    assert_return_code(dup2(fileno(f), STDERR_FILENO), errno);
    for (int i = 0; i < n; i++)
        log_line(LOG_INFO, "%s uid=%d", event, i);
    if (tell)
        journal_tell();
    dup2(saved, STDERR_FILENO);
    close(saved);
    rewind(f);
    len = fread(text, 1, sizeof text - 1, f);
    text[len] = '\0';
    fclose(f);
    for (size_t i = 0; i < len; i++)
        got += text[i] == '\n';
    return got;
}

static void
test_limit(void **state)
{
    const uint64_t minute = UINT64_C(60000000000);

    (void)state;
    unsetenv("JOURNAL_STREAM");
    log_init("test", LOG_INFO);
    journal_init();
    assert_int_equal(lines("conn-refused", 15, false), 15);
    assert_int_equal(lines("conn-refused", 15, false), 5); /* 20 a minute */
    assert_int_equal(lines("conn-refused", 15, true), 0);
    assert_int_equal(lines("conn-bye", 1, false), 1); /* each event for itself */
    assert_int_equal(lines("ready", 500, false), 500);
    assert_int_equal(lines("no-such-event", 500, false), 500);

    now_ns += minute;
    assert_int_equal(lines("ready", 1, true), 2);
    assert_non_null(strstr(text, "suppressed of=conn-refused n=25"));
    assert_int_equal(lines("ready", 0, true), 0); /* told once */
    assert_int_equal(lines("conn-refused", 25, false), 20);
    now_ns += minute; /* or by the next of its kind */
    assert_int_equal(lines("conn-refused", 1, false), 2);
    assert_non_null(strstr(text, "suppressed of=conn-refused n=5"));
    log_set_sink(NULL);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_fields),
        cmocka_unit_test(test_limit),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
