/* SPDX-License-Identifier: Apache-2.0 */
/* UTF-8 against a decoder that is written the other way round: from code points to bytes. */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "tests/test.h"

static int
put(uint32_t c, uint8_t p[4])
{
    if (c < 0x80) {
        p[0] = (uint8_t)c;
        return 1;
    }
    if (c < 0x800) {
        p[0] = (uint8_t)(0xc0 | c >> 6);
        p[1] = (uint8_t)(0x80 | (c & 63));
        return 2;
    }
    if (c < 0x10000) {
        p[0] = (uint8_t)(0xe0 | c >> 12);
        p[1] = (uint8_t)(0x80 | (c >> 6 & 63));
        p[2] = (uint8_t)(0x80 | (c & 63));
        return 3;
    }
    p[0] = (uint8_t)(0xf0 | c >> 18);
    p[1] = (uint8_t)(0x80 | (c >> 12 & 63));
    p[2] = (uint8_t)(0x80 | (c >> 6 & 63));
    p[3] = (uint8_t)(0x80 | (c & 63));
    return 4;
}

/* Every code point is a character, and each of its beginnings the beginning of one. */
static void
test_all_code_points(void **state)
{
    (void)state;
    for (uint32_t c = 0; c < 0x110000; c++) {
        uint8_t p[4];
        const int n = put(c, p);

        if (c >= 0xd800 && c < 0xe000) {
            assert_int_equal(utf8_char(p, 3), -1);
            continue;
        }
        assert_int_equal(utf8_char(p, 4), n);
        assert_int_equal(utf8_decode(p, n), c);
        for (int k = 1; k < n; k++)
            assert_int_equal(utf8_char(p, (size_t)k), 0);
    }
}

/* Of all sequences of up to three bytes, those are characters that are a code point's bytes:
 * so that nothing overlong, and nothing else, is taken for one. */
static void
test_all_short_sequences(void **state)
{
    uint32_t characters = 0;

    (void)state;
    for (uint32_t all = 0; all < 1 << 24; all++) {
        const uint8_t p[3] = {(uint8_t)(all >> 16), (uint8_t)(all >> 8), (uint8_t)all};
        const int n = utf8_char(p, 3);

        assert_in_range(n + 3, 0, 6);
        if (n > 0) {
            uint8_t again[4];
            const int k = put(utf8_decode(p, n), again);

            if (k != n || memcmp(again, p, (size_t)n) != 0)
                fail_msg("%06x", (unsigned)all);
            characters += n == 3;
        }
    }
    assert_int_equal(characters, 0x10000 - 0x800 - 0x800);
}

static void
test_bad_runs(void **state)
{
    static const struct {
        const char *bytes;
        int len, want;
    } cases[] = {
        {"\x80", 1, -1},
        {"\xc0\xaf", 2, -1},
        {"\xc1\xbf", 2, -1},
        {"\xe0\x9f\xbf", 3, -1},
        {"\xf0\x8f\xbf\xbf", 4, -1},
        {"\xf4\x90\x80\x80", 4, -1},
        {"\xf5\x80", 2, -1},
        {"\xff", 1, -1},
        {"\xe4\xb8", 2, 0},
        {"\xe4\xb8z", 3, -2},
        {"\xe4z", 2, -1},
        {"\xf0\x9f\x99z", 4, -3},
        {"\xf0\x9fz", 3, -2},
        {"\xed\xa0\x80", 3, -1},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(utf8_char(cases[i].bytes, (size_t)cases[i].len), cases[i].want);
}

/* The end of what is good is found wherever it is: utf8_valid goes eight bytes at a time. */
static void
test_valid_prefix(void **state)
{
    (void)state;
    assert_int_equal(utf8_valid("", 0), 0);
    for (size_t len = 1; len < 40; len++) {
        for (size_t bad = 0; bad < len; bad++) {
            uint8_t *p = malloc(len); /* exactly: a sanitizer sees a read past it */

            assert_non_null(p);
            memset(p, 'a', len);
            assert_int_equal(utf8_valid(p, len), len);
            p[bad] = 0xff;
            assert_int_equal(utf8_valid(p, len), bad);
            p[bad] = 0xe4; /* a character that is not finished */
            assert_int_equal(utf8_valid(p, len), bad);
            free(p);
        }
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_code_points),
        cmocka_unit_test(test_all_short_sequences),
        cmocka_unit_test(test_bad_runs),
        cmocka_unit_test(test_valid_prefix),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
