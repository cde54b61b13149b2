/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/err.h"
#include "tests/test.h"

static void
test_add_and_drop(void **state)
{
    struct buf b;
    struct err e;

    (void)state;
    buf_init(&b, 1 << 20);
    assert_null(b.p);
    assert_int_equal(buf_add(&b, NULL, 0, &e), 0);
    for (int i = 0; i < 10000; i++)
        assert_int_equal(buf_addf(&b, &e, "%d,", i % 10), 0);
    assert_int_equal(b.len, 20000);
    assert_memory_equal(b.p, "0,1,2,", 6);
    buf_drop(&b, 2);
    assert_memory_equal(b.p, "1,2,3,", 6);
    assert_memory_equal(b.p + b.len - 4, "8,9,", 4);
    buf_drop(&b, b.len);
    assert_int_equal(b.len, 0);
    assert_int_equal(buf_adds(&b, "again", &e), 0);
    assert_memory_equal(b.p, "again", 5);
    buf_done(&b);
    assert_null(b.p);
    assert_int_equal(buf_adds(&b, "and again", &e), 0);
    buf_done(&b);
}

/* Up to the cap and not a byte past it; what does not fit changes nothing. */
static void
test_cap(void **state)
{
    static const size_t caps[] = {1, 5, 63, 64, 65, 1000};

    (void)state;
    for (size_t i = 0; i < sizeof caps / sizeof *caps; i++) {
        const size_t cap = caps[i];
        char *all = calloc(1, cap + 1);
        struct buf b;
        struct err e = {0};

        assert_non_null(all);
        buf_init(&b, cap);
        assert_int_equal(buf_add(&b, all, cap + 1, &e), -1);
        assert_int_equal(e.code, ERR_QUOTA);
        assert_int_equal(b.len, 0);
        assert_int_equal(buf_add(&b, all, cap, &e), 0);
        assert_int_equal(b.len, cap);
        assert_int_equal(buf_add(&b, "x", 1, &e), -1);
        assert_int_equal(buf_addf(&b, &e, "%d", 7), -1);
        assert_int_equal(buf_reserve(&b, SIZE_MAX, &e), -1);
        assert_int_equal(b.len, cap);
        assert_memory_equal(b.p, all, cap);
        buf_done(&b);
        free(all);
    }
}

static void
test_take(void **state)
{
    struct buf b;
    struct err e;
    char *s;

    (void)state;
    buf_init(&b, 100);
    s = buf_take(&b, &e);
    assert_string_equal(s, "");
    free(s);
    assert_int_equal(buf_adds(&b, "text", &e), 0);
    s = buf_take(&b, &e);
    assert_string_equal(s, "text");
    assert_null(b.p);
    assert_int_equal(b.len, 0);
    free(s);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_add_and_drop),
        cmocka_unit_test(test_cap),
        cmocka_unit_test(test_take),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
