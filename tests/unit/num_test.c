/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <inttypes.h>
#include <string.h>

#include "base/err.h"
#include "base/num.h"
#include "tests/test.h"

typedef int unsigned_parser(const char *, uint64_t, uint64_t, uint64_t *, struct err *);

struct number {
    unsigned_parser *parse;
    const char *s;
    uint64_t min, max, want;
};

static const struct number good[] = {
    {num_u64, "0", 0, 9, 0},
    {num_u64, "9", 0, 9, 9},
    {num_u64, "007", 0, 9, 7},
    {num_u64, "18446744073709551615", 0, UINT64_MAX, UINT64_MAX},
    {num_bytes, "4096", 0, UINT64_MAX, 4096},
    {num_bytes, "1K", 0, UINT64_MAX, 1024},
    {num_bytes, "3MiB", 0, UINT64_MAX, 3 << 20},
    {num_bytes, "64G", 0, UINT64_MAX, 64ull << 30},
    {num_bytes, "16777215T", 0, UINT64_MAX, 16777215ull << 40},
    {num_duration_ms, "30", 0, UINT64_MAX, 30000},
    {num_duration_ms, "30s", 0, UINT64_MAX, 30000},
    {num_duration_ms, "5ms", 0, UINT64_MAX, 5},
    {num_duration_ms, "2min", 0, UINT64_MAX, 120000},
    {num_duration_ms, "1d", 0, UINT64_MAX, 86400000},
};

static const struct number bad[] = {
    {num_u64, "", 0, UINT64_MAX, 0},
    {num_u64, " 1", 0, UINT64_MAX, 0},
    {num_u64, "1 ", 0, UINT64_MAX, 0},
    {num_u64, "+1", 0, UINT64_MAX, 0},
    {num_u64, "-1", 0, UINT64_MAX, 0},
    {num_u64, "0x10", 0, UINT64_MAX, 0},
    {num_u64, "1.5", 0, UINT64_MAX, 0},
    {num_u64, "1K", 0, UINT64_MAX, 0},
    {num_u64, "18446744073709551616", 0, UINT64_MAX, 0},
    {num_u64, "10", 0, 9, 0},
    {num_u64, "1", 2, 9, 0},
    {num_bytes, "G", 0, UINT64_MAX, 0},
    {num_bytes, "1 K", 0, UINT64_MAX, 0},
    {num_bytes, "1k", 0, UINT64_MAX, 0},
    {num_bytes, "1KB", 0, UINT64_MAX, 0},
    {num_bytes, "16777216T", 0, UINT64_MAX, 0},
    {num_bytes, "-1G", 0, UINT64_MAX, 0},
    {num_duration_ms, "1m", 0, UINT64_MAX, 0},
    {num_duration_ms, "18446744073709551615h", 0, UINT64_MAX, 0},
    {num_duration_ms, "1h", 0, 3599999, 0},
};

static void
test_unsigned(void **state)
{
    struct err e;
    uint64_t n;

    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        if (good[i].parse(good[i].s, good[i].min, good[i].max, &n, &e) == -1)
            fail_msg("%s", e.text);
        assert_int_equal(n, good[i].want);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        e = (struct err){0};
        n = 4711;
        if (bad[i].parse(bad[i].s, bad[i].min, bad[i].max, &n, &e) != -1)
            fail_msg("'%s' was taken for %" PRIu64, bad[i].s, n);
        assert_int_equal(n, 4711);
        assert_int_equal(e.code, ERR_INVALID);
        assert_non_null(strstr(e.text, bad[i].s));
    }
}

static void
test_signed(void **state)
{
    static const char *const wrong[] = {"",    "-",   "--1", "- 1", "1-",
                                        "1.0", "+1",  "-6",  "6",   "9223372036854775808",
                                        "0x1", "1e1", " 1"};
    struct err e;
    int64_t n;

    (void)state;
    assert_int_equal(num_i64("-9223372036854775808", INT64_MIN, 0, &n, &e), 0);
    assert_true(n == INT64_MIN);
    assert_int_equal(num_i64("-5", -5, 5, &n, &e), 0);
    assert_int_equal(n, -5);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        if (num_i64(wrong[i], -5, 5, &n, &e) != -1)
            fail_msg("'%s' was taken for %" PRId64, wrong[i], n);
        assert_int_equal(n, -5);
    }
}

static void
test_float(void **state)
{
    static const char *const wrong[] = {"",    "x",    "1x",  " 1",  "1 ",    "nan",
                                        "inf", "-inf", "2.1", "-.1", "1e999", "1,5"};
    struct err e;
    double x;

    (void)state;
    assert_int_equal(num_f64("0.75", 0, 2, &x, &e), 0);
    assert_true(x == 0.75);
    assert_int_equal(num_f64("2", 0, 2, &x, &e), 0);
    assert_true(x == 2);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        if (num_f64(wrong[i], 0, 2, &x, &e) != -1)
            fail_msg("'%s' was taken for %g", wrong[i], x);
        assert_true(x == 2);
    }
}

static void
test_bool(void **state)
{
    static const char *const wrong[] = {"", "y", "YES", "2", "yes "};
    struct err e;
    int v = 7;

    (void)state;
    assert_int_equal(num_bool("yes", &v, &e), 0);
    assert_int_equal(v, 1);
    assert_int_equal(num_bool("off", &v, &e), 0);
    assert_int_equal(v, 0);
    v = 7;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_int_equal(num_bool(wrong[i], &v, &e), -1);
        assert_int_equal(v, 7);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_unsigned),
        cmocka_unit_test(test_signed),
        cmocka_unit_test(test_float),
        cmocka_unit_test(test_bool),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
