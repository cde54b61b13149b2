/* SPDX-License-Identifier: Apache-2.0 */
/*
 * safetensors: hostile headers, one claim wrong at a time, and every cut and many flips of a
 * real file. A flip in the payload cannot be seen: the format has no checksums.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/file.h"
#include "model/safetensors.h"
#include "tests/paths.h"
#include "tests/test.h"

#define T(dtype, shape, from, to) \
    "{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #from "," #to "]}"

/* A file of this header and n bytes of payload, in memory; the caller's to free. */
static uint8_t *
file_of(const char *header, uint64_t n_payload, size_t *len)
{
    const uint64_t n = strlen(header);
    uint8_t *p;

    *len = 8 + n + n_payload;
    p = malloc(*len);
    assert_non_null(p);
    for (int i = 0; i < 8; i++)
        p[i] = (uint8_t)(n >> 8 * i);
    memcpy(p + 8, header, n);
    for (uint64_t i = 0; i < n_payload; i++)
        p[8 + n + i] = (uint8_t)i;
    return p;
}

static const struct {
    const char *header;
    uint64_t n_payload;
    const char *says; /* NULL: accepted */
} headers[] = {
    {"{}", 0, NULL},
    {"{}   ", 0, NULL},
    {"{\"a\":" T("F32", "[2,3]", 0, 24) "}", 24, NULL},
    {"{\"a\":" T("F32", "[]", 0, 4) "}", 4, NULL},
    {"{\"a\":" T("F32", "[0,7]", 0, 0) "}", 0, NULL},
    {"{\"b\":" T("I64", "[1]", 1, 9) ",\"a\":" T("I8", "[1]", 0, 1) "}", 9, NULL},
    {"{\"a\":" T("F8_E4M3", "[1]", 0, 1) ",\"b\":" T("F8_E8M0", "[1]", 1, 2) "}", 2, NULL},
    {"{\"a\":" T("BF16", "[1]", 0, 2) ",\"b\":" T("I32", "[1]", 2, 6) "}", 6, NULL},
    {"{\"__metadata__\":{\"k\":\"v\"},\"a\":" T("I8", "[1]", 0, 1) "}", 1, NULL},

    {"", 0, "JSON"},
    {"[]", 0, "an array where an object"},
    {"{}x", 0, "JSON"},
    {"{\"a\":", 0, "JSON"},
    {"{\"\xff\":1}", 0, "JSON"},
    {"{\"a\\u0000b\":" T("I8", "[1]", 0, 1) "}", 1, "JSON"},
    {"{\"a\":{\"b\":{\"c\":{}}}}", 0, "nested deeper"},
    {"{\"a\":[[[[[[[[[[[[", 0, "nested deeper"},
    {"{}", 1, "behind the last tensor"},
    {"{\"__metadata__\":{\"k\":1}}", 0, "__metadata__.k"},
    {"{\"__metadata__\":[]}", 0, "__metadata__"},
    {"{\"a\":7}", 0, "a: want an object"},
    {"{\"\":" T("I8", "[1]", 0, 1) "}", 1, "name"},
    {"{\"a\\nb\":" T("I8", "[1]", 0, 1) "}", 1, "0x0a"},
    {"{\"a\":" T("I8", "[1]", 0, 1) ",\"a\":" T("I8", "[1]", 0, 1) "}", 1, "duplicate"},
    {"{\"a\":{\"dtype\":\"I8\",\"shape\":[1]}}", 1, "a: want an object"},
    {"{\"a\":{\"dtype\":\"I8\",\"shape\":[1],\"data_offsets\":[0,1],\"x\":0}}", 1,
     "a: want"},
    {"{\"a\":{\"dtype\":1,\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
     "dtype is an integer"},
    {"{\"a\":" T("F64", "[1]", 0, 8) "}", 8, "\"F64\""},
    {"{\"a\":" T("bf16", "[1]", 0, 2) "}", 2, "\"bf16\""},
    {"{\"a\":" T("I8", "1", 0, 1) "}", 1, "shape"},
    {"{\"a\":" T("I8", "[1.0]", 0, 1) "}", 1, "shape[0]"},
    {"{\"a\":" T("I8", "[-1]", 0, 1) "}", 1, "shape[0]"},
    {"{\"a\":" T("I8", "[-1,-1]", 0, 1) "}", 1, "shape[0]"},
    {"{\"a\":" T("I8", "[1,1,1,1,1]", 0, 1) "}", 1, "at most 4"},
    {"{\"a\":" T("F32", "[4611686018427387904,4]", 0, 0) "}", 0, "2^64"},
    {"{\"a\":" T("I64", "[4294967296,4294967296]", 0, 0) "}", 0, "2^64"},
    {"{\"a\":" T("I8", "[9223372036854775807]", 0, 9223372036854775807) "}", 1,
     "cut short"},
    {"{\"a\":" T("I8", "[18446744073709551617]", 0, 1) "}", 1, "JSON"},
    {"{\"a\":" T("I8", "[2]", 0, 1) "}", 1, "2 by its shape"},
    {"{\"a\":" T("F32", "[1]", 0, 1) "}", 1, "4 by its shape"},
    {"{\"a\":" T("I8", "[1]", 1, 0) "}", 1, "data_offsets"},
    {"{\"a\":" T("I8", "[1]", -1, 0) "}", 1, "data_offsets"},
    {"{\"a\":" T("I8", "[2]", 0, 2) "}", 1, "cut short"},
    {"{\"a\":" T("I8", "[1]", 0, 1.0) "}", 1, "data_offsets"},
    {"{\"a\":" T("I8", "[2]", 0, 2) ",\"b\":" T("I8", "[2]", 1, 3) "}", 3, "overlaps"},
    {"{\"a\":" T("I8", "[2]", 0, 2) ",\"b\":" T("I8", "[2]", 0, 2) "}", 2, "overlaps"},
    {"{\"a\":" T("I8", "[1]", 0, 1) ",\"b\":" T("I8", "[1]", 2, 3) "}", 3, "a hole"},
    {"{\"a\":" T("I8", "[1]", 1, 2) "}", 2, "a hole"},
    {"{\"a\":" T("I8", "[1]", 0, 1) "}", 2, "behind the last tensor"},
};

static void
test_headers(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof headers / sizeof *headers; i++) {
        struct err e = {0};
        size_t len;
        uint8_t *p = file_of(headers[i].header, headers[i].n_payload, &len);
        struct safetensors *st = safetensors_parse(p, len, &e);

        if ((st != NULL) != (headers[i].says == NULL) ||
            (st == NULL &&
             (e.code != ERR_DAMAGED || strstr(e.text, headers[i].says) == NULL)))
            fail_msg("%s: %s: %s", headers[i].header, err_name(e.code), e.text);
        safetensors_close(st);
        free(p);
    }
}

static void
test_header_lengths(void **state)
{
    static const uint64_t lengths[] = {3,          UINT64_MAX, UINT64_MAX - 7,   1u << 31,
                                       UINT32_MAX, 33 << 20,   (uint64_t)1 << 63};
    uint8_t p[10] = {0, 0, 0, 0, 0, 0, 0, 0, '{', '}'};
    struct err e;

    (void)state;
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        for (int k = 0; k < 8; k++)
            p[k] = (uint8_t)(lengths[i] >> 8 * k);
        assert_null(safetensors_parse(p, sizeof p, &e));
        assert_int_equal(e.code, ERR_DAMAGED);
    }
    for (size_t len = 0; len < 8; len++)
        assert_null(safetensors_parse(p, len, &e));
}

/* What a header may cost is bounded before it is parsed. */
static void
test_too_many_values(void **state)
{
    const size_t n = 12 << 20;
    char *header = malloc(n + 1);
    struct err e = {0};
    uint8_t *p;
    size_t len;

    (void)state;
    assert_non_null(header);
    memset(header, ',', n);
    memcpy(header, "{\"a\":[0", 7);
    header[n] = '\0';
    p = file_of(header, 0, &len);
    assert_null(safetensors_parse(p, len, &e));
    assert_non_null(strstr(e.text, "JSON values"));
    free(p);
    free(header);
}

static void
test_long_names(void **state)
{
    char header[512], name[SAFETENSORS_MAX_NAME + 2];
    struct safetensors *st;
    struct err e;
    uint8_t *p;
    size_t len;

    (void)state;
    for (size_t n = SAFETENSORS_MAX_NAME; n <= SAFETENSORS_MAX_NAME + 1; n++) {
        memset(name, 'n', n);
        name[n] = '\0';
        snprintf(header, sizeof header, "{\"%s\":" T("I8", "[1]", 0, 1) "}", name);
        p = file_of(header, 1, &len);
        st = safetensors_parse(p, len, &e);
        assert_int_equal(st != NULL, n == SAFETENSORS_MAX_NAME);
        safetensors_close(st);
        free(p);
    }
}

static void
test_lookup(void **state)
{
    const char *header = "{\"__metadata__\":{\"k\":\"v\"},\"z\":" T(
        "F32", "[2,1]", 3, 11) ",\"a\":" T("I8", "[3]", 0, 3) "}";
    struct err e;
    size_t len;
    uint8_t *p = file_of(header, 11, &len);
    struct safetensors *st = safetensors_parse(p, len, &e);
    const struct tensor *t;

    (void)state;
    assert_non_null(st);
    assert_int_equal(safetensors_count(st), 2);
    assert_string_equal(safetensors_at(st, 0)->name, "a");
    assert_null(safetensors_at(st, 2));
    t = safetensors_find(st, "z");
    assert_non_null(t);
    assert_int_equal(t->dtype, DTYPE_F32);
    assert_int_equal(t->n_dims, 2);
    assert_int_equal(t->dims[0], 2);
    assert_int_equal(t->n_bytes, 8);
    assert_int_equal(*(const uint8_t *)t->data, 3); /* unaligned: byte 3 of the payload */
    assert_null(safetensors_find(st, "b"));
    assert_null(safetensors_find(st, "__metadata__"));
    assert_string_equal(safetensors_meta(st, "k"), "v");
    assert_null(safetensors_meta(st, "a"));
    safetensors_close(st);
    free(p);
}

static void
test_a_real_file(void **state)
{
    char path[TEST_PATH];
    struct err e;
    struct safetensors *st =
        safetensors_open(src_path(path, "tests/golden/flash-tiny/golden.safetensors"), &e);

    (void)state;
    assert_non_null(st);
    assert_int_equal(safetensors_find(st, "tokens")->dtype, DTYPE_I32);
    assert_int_equal(safetensors_find(st, "layer_states")->n_dims, 4);
    assert_string_equal(safetensors_meta(st, "decode_from"), "250");
    assert_non_null(strstr(safetensors_meta(st, "noise_floor"), "cpu vs cuda"));
    safetensors_close(st);

    assert_null(safetensors_open(src_path(path, "tests/golden"), &e));
    assert_null(safetensors_open(src_path(path, "tests/golden/none"), &e));
    assert_int_equal(e.code, ERR_NOT_FOUND);
}

/*
 * A small real header with every byte changed in several ways: parsed or refused, never more
 * than that, and whatever is accepted lies inside the file. Cut anywhere it is refused.
 */
static void
test_cuts_and_flips(void **state)
{
    static const uint8_t masks[] = {0x01, 0x02, 0x10, 0x20, 0x80, 0xff};
    const char *header = "{\"__metadata__\":{\"k\":\"v\"},\"abc\":" T(
        "BF16", "[4,8]", 0, 64) ",\"d\":" T("F32", "[4]", 64, 80) "}";
    struct safetensors *st;
    struct err e;
    size_t len, refused = 0;
    uint8_t *p = file_of(header, 80, &len);
    const size_t n_header = len - 80;

    (void)state;
    for (size_t n = 0; n < len; n++) {
        uint8_t *cut = malloc(n + 1); /* so that a sanitizer sees any step over the end */

        memcpy(cut, p, n);
        if (safetensors_parse(cut, n, &e) != NULL)
            fail_msg("cut to %zu of %zu bytes: accepted", n, len);
        free(cut);
    }
    for (size_t at = 0; at < n_header; at++) {
        for (size_t m = 0; m < sizeof masks; m++) {
            p[at] ^= masks[m];
            st = safetensors_parse(p, len, &e);
            for (size_t i = 0; st != NULL && i < safetensors_count(st); i++) {
                const struct tensor *t = safetensors_at(st, i);
                const uint8_t *from = t->data;

                assert_true(from >= p + 8 && from + t->n_bytes <= p + len);
            }
            refused += st == NULL;
            safetensors_close(st);
            p[at] ^= masks[m];
        }
    }
    /* Only names, "k" and "v" can change without being noticed here. */
    assert_true(refused > n_header * sizeof masks * 8 / 10);
    st = safetensors_parse(p, len, &e);
    assert_non_null(st);
    safetensors_close(st);
    free(p);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_headers),         cmocka_unit_test(test_header_lengths),
        cmocka_unit_test(test_too_many_values), cmocka_unit_test(test_long_names),
        cmocka_unit_test(test_lookup),          cmocka_unit_test(test_a_real_file),
        cmocka_unit_test(test_cuts_and_flips),
    };

    return cmocka_run_group_tests_name("safetensors", tests, NULL, NULL);
}
