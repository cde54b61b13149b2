/* SPDX-License-Identifier: Apache-2.0 */
/* Settings: defaults that fit their own limits, the file, the command line, reload. */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "daemon/options.h"
#include "tests/test.h"

static char path[64];

static const char *
file(const char *text)
{
    FILE *f;
    int fd;

    if (path[0] != '\0')
        unlink(path);
    snprintf(path, sizeof path, "/tmp/options-test-XXXXXX");
    fd = mkstemp(path);
    assert_true(fd != -1);
    f = fdopen(fd, "w");
    fputs(text, f);
    fclose(f);
    return path;
}

/* Words, NULL at the end; the first is the program. */
static int
load(struct options *o, struct err *e, const char *const *words)
{
    int n = 0;

    while (words[n] != NULL)
        n++;
    return options_load(o, n, (char **)(uintptr_t)words, e);
}

#define LOAD(o, e, ...) load(o, e, (const char *[]){"fathomd", __VA_ARGS__, NULL})

static void
files_and_command_line(void **state)
{
    struct options o;
    struct err e;

    (void)state;
    file("; comment\n[engine]\nbackend = cpu\nstep-timeout = 2min\n\n[limits]\n"
         "max-document=2K ; and why\nmax-jobs-per-session = 7\n");
    assert_int_equal(LOAD(&o, &e, "--config", path, "--max-jobs-per-session", "9"), 0);
    assert_string_equal(o.backend, "cpu");
    assert_int_equal(o.step_timeout, 120000);
    assert_int_equal(o.max_document, 2048);
    assert_int_equal(o.max_jobs, 9);
    assert_int_equal(o.max_sessions, 65536);
    assert_int_equal(o.socket_mode, 0660);
    options_done(&o);
}

static void
mistakes(void **state)
{
    static const struct {
        const char *text, *what;
    } wrong[] = {
        {"[limits]\nmax-sesions = 3\n", ":2: unknown setting 'max-sesions'; did you mean "
                                        "'max-sessions'?"},
        {"[limits]\nquite-another = 3\n", ":2: unknown setting 'quite-another'"},
        {"[engine]\nmax-sessions = 3\n", ":2: max-sessions belongs under [limits]"},
        {"max-sessions = 3\n", ":1: max-sessions belongs under [limits]"},
        {"[limits]\nmax-sessions = 3\nmax-sessions = 4\n", ":3: max-sessions is set twice"},
        {"[limits]\n\nmax-sessions = many\n", ":3: max-sessions: 'many' is not a number"},
        {"[limits]\nmax-sessions = -1\n", ":2: max-sessions"},
        {"[limits]\nmax-sessions = 0\n", ":2: max-sessions"},
        {"[daemon]\nsocket-mode = 999\n", ":2: socket-mode"},
        {"[daemon]\nlog-level = loud\n", ":2: log-level"},
        {"[engine]\nstep-timeout = 5 parsecs\n", ":2: step-timeout"},
        {"[limits\nmax-sessions = 3\n", ":1: neither"},
        {"[limits]\nmax-sessions\n", ":2: neither"},
    };

    char line[400];
    struct options o;
    struct err e;

    (void)state;
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        file(wrong[i].text);
        assert_int_equal(LOAD(&o, &e, "--config", path), -1);
        assert_int_equal(e.code, ERR_INVALID);
        if (strstr(e.text, wrong[i].what) == NULL)
            fail_msg("%s: %s", wrong[i].text, e.text);
        options_done(&o);
    }
    /* inih would cut it in two. */
    snprintf(line, sizeof line, "[daemon]\nmodel = /%0300d\n", 1);
    file(line);
    assert_int_equal(LOAD(&o, &e, "--config", path), -1);
    assert_non_null(strstr(e.text, ":2: a line of"));
    options_done(&o);

    assert_int_equal(LOAD(&o, &e, "--config", "/nonexistent"), -1);
    assert_int_equal(e.code, ERR_NOT_FOUND);
    options_done(&o);
    assert_int_equal(LOAD(&o, &e, "--modl", "x"), -1);
    assert_non_null(strstr(e.text, "did you mean '--model'?"));
    options_done(&o);
    assert_int_equal(LOAD(&o, &e, "word"), -1);
    options_done(&o);
    assert_int_equal(LOAD(&o, &e, "--model"), -1);
    options_done(&o);
    /* What the command line overrides is still checked. */
    file("[limits]\nmax-sessions = many\n");
    assert_int_equal(LOAD(&o, &e, "--config", path, "--max-sessions", "3"), -1);
    options_done(&o);
}

static void
reload(void **state)
{
    const char *words[] = {"fathomd", "--config", path, "--max-tokens", "77", NULL};
    char ignored[200];
    struct options o;
    struct err e;

    (void)state;
    file("[limits]\nmax-sessions = 10\n[daemon]\nmodel = /a\n");
    assert_int_equal(load(&o, &e, words), 0);
    {
        FILE *f = fopen(path, "w");

        fputs("[limits]\nmax-sessions = 20\nmax-tokens = 5\n[daemon]\nmodel = /b\n"
              "[engine]\nthreads = 3\n",
              f);
        fclose(f);
    }
    assert_int_equal(
        options_reload(&o, 5, (char **)(uintptr_t)words, ignored, sizeof ignored, &e), 0);
    assert_int_equal(o.max_sessions, 20);
    assert_int_equal(o.max_tokens, 77);
    assert_string_equal(o.model, "/a");
    assert_int_equal(o.threads, 0);
    assert_string_equal(ignored, "model threads");
    {
        FILE *f = fopen(path, "w");

        fputs("[limits]\nmax-sessions = 30\nnonsense = 1\n", f);
        fclose(f);
    }
    assert_int_equal(
        options_reload(&o, 5, (char **)(uintptr_t)words, ignored, sizeof ignored, &e), -1);
    assert_int_equal(o.max_sessions, 20);
    options_done(&o);
}

/* The lines of a dump that set something. */
static void
settings_only(char *text)
{
    char *out = text;

    for (char *save, *line = strtok_r(text, "\n", &save); line != NULL;
         line = strtok_r(NULL, "\n", &save)) {
        if (line[0] != ';')
            out += snprintf(out, strlen(line) + 1, "%s", line);
    }
    *out = '\0';
}

/* Each default is a value that its own entry takes: what is dumped reads back the same. */
static void
dump(void **state)
{
    char *text[2] = {NULL, NULL};
    size_t size[2];
    struct options o;
    struct err e;

    (void)state;
    file("");
    for (int i = 0; i < 2; i++) {
        FILE *f = open_memstream(&text[i], &size[i]);

        assert_int_equal(LOAD(&o, &e, "--config", path), 0);
        options_dump(&o, f);
        fclose(f);
        options_done(&o);
        if (i == 0)
            file(text[0]);
    }
    assert_non_null(strstr(text[0], "(default"));
    assert_non_null(strstr(text[1], "(file"));
    settings_only(text[0]);
    settings_only(text[1]);
    assert_string_equal(text[0], text[1]);
    free(text[0]);
    free(text[1]);
}

static int
clean(void **state)
{
    (void)state;
    if (path[0] != '\0')
        unlink(path);
    return 0;
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(files_and_command_line),
        cmocka_unit_test(mistakes),
        cmocka_unit_test(reload),
        cmocka_unit_test(dump),
    };

    return cmocka_run_group_tests(tests, NULL, clean);
}
