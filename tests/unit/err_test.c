/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <string.h>

#include "base/err.h"
#include "tests/test.h"

static void
test_set_and_prefix(void **state)
{
    struct err e = {0};

    (void)state;
    assert_int_equal(err_set(&e, ERR_NOT_FOUND, 2, "%s: %d", "name", 5), -1);
    assert_int_equal(e.code, ERR_NOT_FOUND);
    assert_int_equal(e.sys, 2);
    assert_string_equal(e.text, "name: 5");
    assert_int_equal(err_prefix(&e, "file %d", 7), -1);
    assert_string_equal(e.text, "file 7: name: 5");
    assert_int_equal(e.code, ERR_NOT_FOUND);
    assert_int_equal(e.sys, 2);
}

/* A text that is too long is cut, with its NUL, wherever it grows. */
static void
test_long_text(void **state)
{
    struct {
        struct err e;
        char behind[8];
    } s;

    char text[1000];

    (void)state;
    memset(text, 'x', sizeof text);
    text[sizeof text - 1] = '\0';
    memcpy(s.behind, "intact!", 8);
    err_set(&s.e, ERR_INVALID, 0, "%s", text);
    assert_int_equal(strlen(s.e.text), sizeof s.e.text - 1);
    err_prefix(&s.e, "in %s", "front");
    assert_memory_equal(s.e.text, "in front: xxx", 13);
    assert_int_equal(strlen(s.e.text), sizeof s.e.text - 1);
    err_prefix(&s.e, "%s", text);
    assert_int_equal(strlen(s.e.text), sizeof s.e.text - 1);
    assert_memory_equal(s.behind, "intact!", 8);
}

/* The table: names differ, the numbers are those on the wire, exit statuses sysexits'. */
static void
test_table(void **state)
{
    (void)state;
    for (int i = 1; i < ERR_CODES; i++) {
        const char *name = err_name((enum err_code)i);

        assert_string_not_equal(name, "unknown");
        assert_true(strlen(err_meaning((enum err_code)i)) > 10);
        assert_in_range(err_exit_status((enum err_code)i), 64, 78);
        for (int k = 1; k < i; k++)
            assert_string_not_equal(name, err_name((enum err_code)k));
    }
    assert_int_equal(ERR_CODES, 17);
    assert_int_equal(ERR_INVALID, 1);
    assert_int_equal(ERR_READ_ONLY, 16);
    assert_int_equal(err_is_retryable(ERR_BUSY), 1);
    assert_int_equal(err_is_retryable(ERR_INVALID), 0);
}

static void
test_outside_the_table(void **state)
{
    static const int codes[] = {-1, ERR_CODES, 1 << 30};

    (void)state;
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++) {
        assert_string_equal(err_name((enum err_code)codes[i]), "unknown");
        assert_int_equal(err_exit_status((enum err_code)codes[i]), 70);
        assert_non_null(err_meaning((enum err_code)codes[i]));
        assert_int_equal(err_is_retryable((enum err_code)codes[i]), 0);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_set_and_prefix),
        cmocka_unit_test(test_long_text),
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_outside_the_table),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
