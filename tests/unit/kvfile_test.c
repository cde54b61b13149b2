/* SPDX-License-Identifier: Apache-2.0 */
/* Images of files of class B: every bit of them counts. What a disk does to them is in
 * kvfile_io_test.c. */
#include "config.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/err.h"
#include "kvstore/kvfile.h"
#include "tests/kvfile_sample.h"
#include "tests/test.h"

enum { HEAD = 4096, VERSION_AT = 8, COMPATIBLE_AT = 16, INCOMPATIBLE_AT = 24 };

static const struct kvfile_sample *const all[] = {
    &kvfile_sample_chunk, &kvfile_sample_state, &kvfile_sample_plain};

enum { N_SAMPLES = sizeof all / sizeof *all };

static int
check(const uint8_t *image, uint64_t bytes, struct err *e)
{
    memset(e, 0, sizeof *e);
    return kvfile_check(image, bytes, NULL, NULL, NULL, NULL, NULL, e);
}

/* After a change of the head that its sum is to fit to. */
static void
sum_again(uint8_t *image)
{
    const uint64_t sum = XXH3_64bits(image, HEAD - sizeof sum);

    memcpy(image + HEAD - sizeof sum, &sum, sizeof sum);
}

static void
want_refused(const uint8_t *image, uint64_t bytes, enum err_code code, const char *part)
{
    struct err e;

    if (check(image, bytes, &e) == 0)
        fail_msg("taken, though %s", part);
    if (e.code != code || strstr(e.text, part) == NULL)
        fail_msg("%s: %s; not %s", err_name(e.code), e.text, part);
}

static void
test_round_trip(void **state)
{
    (void)state;
    for (int i = 0; i < N_SAMPLES; i++) {
        struct kvfile_plan plan, found;
        uint8_t *image = kvfile_sample_make(all[i], &plan);
        struct kvfile_about about;
        const uint32_t *tokens;
        struct err e = {0};

        assert_int_equal(plan.bytes % KVFILE_ALIGN, 0);
        assert_int_equal(plan.pages_at % KVFILE_ALIGN, 0);
        assert_int_equal(kvfile_check(image, plan.bytes, &kvfile_sample_model,
                                      &all[i]->about, &about, &found, &tokens, &e),
                         0);
        assert_memory_equal(&plan, &found, sizeof plan);
        assert_int_equal(about.type, all[i]->about.type);
        assert_int_equal(about.pos, all[i]->about.pos);
        assert_int_equal(about.n_tokens, all[i]->about.n_tokens);
        assert_int_equal(about.state_bytes, all[i]->about.state_bytes);
        assert_int_equal(about.logits, all[i]->about.logits);
        if (about.type == KVFILE_CHUNK)
            assert_memory_equal(tokens, all[i]->tokens, 4 * about.n_tokens);
        else
            assert_null(tokens);
        assert_int_equal(check(image, plan.bytes, &e), 0); /* nor need it be told what */
        free(image);
    }
}

/* The format as it is since version 1: other bytes are another version. */
static void
test_golden(void **state)
{
    static const uint64_t hashes[N_SAMPLES] = {0x38fafa2f6a824518, 0xfa269480d5e78da9,
                                               0x19d567ff9949f86f};

    (void)state;
    for (int i = 0; i < N_SAMPLES; i++) {
        struct kvfile_plan plan;
        uint8_t *image = kvfile_sample_make(all[i], &plan);

        assert_int_equal(XXH3_64bits(image, plan.bytes), hashes[i]);
        free(image);
    }
}

static void
test_every_bit(void **state)
{
    (void)state;
    for (int i = 0; i < N_SAMPLES; i++) {
        struct kvfile_plan plan;
        uint8_t *image = kvfile_sample_make(all[i], &plan);
        struct err e;

        for (uint64_t bit = 0; bit < 8 * plan.bytes; bit++) {
            image[bit / 8] ^= (uint8_t)(1u << bit % 8);
            if (check(image, plan.bytes, &e) == 0)
                fail_msg("sample %d: bit %llu of byte %llu changed, and nobody saw it", i,
                         (unsigned long long)bit % 8, (unsigned long long)bit / 8);
            assert_true(e.code == ERR_DAMAGED && e.text[0] != '\0');
            image[bit / 8] ^= (uint8_t)(1u << bit % 8);
        }
        assert_int_equal(check(image, plan.bytes, &e), 0);
        free(image);
    }
}

static void
test_lengths(void **state)
{
    struct kvfile_plan plan;
    uint8_t *image = kvfile_sample_make(&kvfile_sample_chunk, &plan), *longer;
    struct err e;

    (void)state;
    for (uint64_t n = 0; n < plan.bytes; n += n < HEAD + 9 ? 1 : 1111)
        assert_int_equal(check(image, n, &e), -1);
    for (uint64_t n = 0; n < plan.bytes; n += HEAD)
        assert_int_equal(check(image, n, &e), -1);
    longer = aligned_alloc(KVFILE_ALIGN, plan.bytes + HEAD);
    memcpy(longer, image, plan.bytes);
    memset(longer + plan.bytes, 0, HEAD);
    want_refused(longer, plan.bytes + HEAD, ERR_DAMAGED, "the head tells of");
    free(longer);
    free(image);
}

/* As a transfer in text mode does it: all \r\n become \n, or all \n become \r\n. */
static void
test_text_mode(void **state)
{
    struct kvfile_plan plan;
    uint8_t *image = kvfile_sample_make(&kvfile_sample_chunk, &plan);
    uint8_t *text = aligned_alloc(KVFILE_ALIGN, 2 * plan.bytes);
    uint64_t n = 0;

    (void)state;
    for (uint64_t i = 0; i < plan.bytes; i++)
        if (image[i] != '\r' || image[i + 1] != '\n')
            text[n++] = image[i];
    want_refused(text, n, ERR_DAMAGED, "copied as text");
    n = 0;
    for (uint64_t i = 0; i < plan.bytes; i++) {
        if (image[i] == '\n')
            text[n++] = '\r';
        text[n++] = image[i];
    }
    want_refused(text, n, ERR_DAMAGED, "copied as text");
    image[0] &= 0x7f;
    want_refused(image, plan.bytes, ERR_DAMAGED, "copied as text");
    memset(image, 0, 8);
    want_refused(image, plan.bytes, ERR_DAMAGED, "first bytes are others");
    free(text);
    free(image);
}

static void
set_u32(uint8_t *image, size_t at, uint32_t v)
{
    memcpy(image + at, &v, sizeof v);
    sum_again(image);
}

static void
test_versions(void **state)
{
    struct kvfile_plan plan;
    uint8_t *image = kvfile_sample_make(&kvfile_sample_state, &plan);
    struct err e;

    (void)state;
    set_u32(image, VERSION_AT, KVFILE_VERSION + 1);
    want_refused(image, plan.bytes, ERR_MODEL_MISMATCH,
                 "version 2; this fathom reads up to 1");
    set_u32(image, VERSION_AT, 0);
    want_refused(image, plan.bytes, ERR_DAMAGED, "version 0");
    set_u32(image, VERSION_AT, KVFILE_VERSION);
    assert_int_equal(check(image, plan.bytes, &e), 0);
    set_u32(image, INCOMPATIBLE_AT, 4);
    want_refused(image, plan.bytes, ERR_MODEL_MISMATCH, "features 4");
    set_u32(image, INCOMPATIBLE_AT, 0);
    set_u32(image, COMPATIBLE_AT, 0x80000001); /* of these a reader need not know */
    assert_int_equal(check(image, plan.bytes, &e), 0);
    free(image);
}

/* Every 32-bit word of the head set to what a forger may try, with a right sum. */
static void
test_forged_head(void **state)
{
    static const uint32_t tries[] = {0,       1,          2,          3,         127,
                                     128,     129,        4096,       4097,      1u << 24,
                                     1 << 25, 0x7fffffff, 0x80000000, 0xffffffff};

    (void)state;
    for (int i = 0; i < N_SAMPLES; i++) {
        struct kvfile_plan plan;
        uint8_t *image = kvfile_sample_make(all[i], &plan);
        struct err e;

        for (size_t at = 0; at < HEAD - 8; at += 4)
            for (size_t t = 0; t < sizeof tries / sizeof *tries; t++) {
                uint32_t was;
                int rc;

                memcpy(&was, image + at, sizeof was);
                set_u32(image, at, tries[t]);
                rc = kvfile_check(image, plan.bytes, &kvfile_sample_model, &all[i]->about,
                                  NULL, NULL, NULL, &e);
                /* All that is there to be known is known already, but for features. */
                if (rc == 0 && tries[t] != was &&
                    (at < COMPATIBLE_AT || at >= INCOMPATIBLE_AT))
                    fail_msg("sample %d: word at %zu is %x", i, at, (unsigned)tries[t]);
                check(image, plan.bytes, &e); /* believes more; must not crash */
                set_u32(image, at, was);
            }
        assert_int_equal(check(image, plan.bytes, &e), 0);
        free(image);
    }
}

static void
test_padding(void **state)
{
    struct kvfile_plan plan;
    uint8_t *image = kvfile_sample_make(&kvfile_sample_chunk, &plan);
    struct err e;

    (void)state;
    image[HEAD - 9] = 1; /* a right sum does not help */
    sum_again(image);
    want_refused(image, plan.bytes, ERR_DAMAGED, "contradicts itself");
    image[HEAD - 9] = 0;
    sum_again(image);
    image[plan.bytes - 1] = 1;
    want_refused(image, plan.bytes, ERR_DAMAGED, "behind section pages");
    image[plan.bytes - 1] = 0;
    assert_int_equal(check(image, plan.bytes, &e), 0);
    free(image);
}

static void
test_tokens(void **state)
{
    struct kvfile_sample bad = kvfile_sample_chunk;
    uint32_t tokens[KVFILE_CHUNK_TOKENS];
    struct kvfile_plan plan;
    uint8_t *image;

    (void)state;
    memcpy(tokens, bad.tokens, bad.about.n_tokens * sizeof *tokens);
    tokens[bad.about.n_tokens - 1] = kvfile_sample_model.vocab;
    bad.tokens = tokens;
    image = kvfile_sample_make(&bad, &plan);
    want_refused(image, plan.bytes, ERR_DAMAGED, "token 1000 is none of 1000");
    free(image);
}

static void
want_other(const uint8_t *image, uint64_t bytes, const struct kvfile_model *m,
           const struct kvfile_about *a, enum err_code code, const char *part)
{
    struct err e = {0};

    assert_int_equal(kvfile_check(image, bytes, m, a, NULL, NULL, NULL, &e), -1);
    if (e.code != code || strstr(e.text, part) == NULL)
        fail_msg("%s: %s; not %s", err_name(e.code), e.text, part);
}

static void
test_model(void **state)
{
    struct kvfile_model m = kvfile_sample_model;
    struct kvfile_part parts[8];
    struct kvfile_plan plan;
    uint8_t *image = kvfile_sample_make(&kvfile_sample_chunk, &plan);

    (void)state;
    m.fingerprint[31] ^= 1;
    want_other(image, plan.bytes, &m, NULL, ERR_MODEL_MISMATCH,
               "made with model 0001020304050607..., and this is 0001020304050607...");
    m = kvfile_sample_model;
    m.layout++;
    want_other(image, plan.bytes, &m, NULL, ERR_MODEL_MISMATCH, "layout");
    m = kvfile_sample_model;
    m.vocab++;
    want_other(image, plan.bytes, &m, NULL, ERR_MODEL_MISMATCH, "layout");
    m = kvfile_sample_model;
    memcpy(parts, m.parts, m.n_parts * sizeof *parts);
    parts[m.n_parts - 1].span++;
    m.parts = parts;
    want_other(image, plan.bytes, &m, NULL, ERR_MODEL_MISMATCH, "layout");
    free(image);
}

static void
test_about(void **state)
{
    struct kvfile_plan plan;
    uint8_t *image = kvfile_sample_make(&kvfile_sample_chunk, &plan);
    struct kvfile_about a = kvfile_sample_chunk.about;

    (void)state;
    a.pos += KVFILE_PAGE_TOKENS;
    want_other(image, plan.bytes, NULL, &a, ERR_DAMAGED, "not the one of that name");
    a = kvfile_sample_chunk.about;
    a.n_tokens -= KVFILE_PAGE_TOKENS;
    want_other(image, plan.bytes, NULL, &a, ERR_DAMAGED, "not the one of that name");
    a = kvfile_sample_chunk.about;
    a.id.b[15]++;
    want_other(image, plan.bytes, NULL, &a, ERR_DAMAGED, "not the one of that name");
    want_other(image, plan.bytes, NULL, &kvfile_sample_state.about, ERR_DAMAGED,
               "not the one of that name");
    free(image);
}

static void
test_names(void **state)
{
    struct kvfile_about a = {.type = KVFILE_CHUNK, .pos = 4096 + 256};
    char name[KVFILE_NAME_MAX];

    (void)state;
    for (int i = 0; i < 16; i++)
        a.id.b[i] = (uint8_t)(i * 17);
    kvfile_name(&a, name);
    assert_string_equal(name, "c/00000034-00112233445566778899aabbccddeeff.kvc");
    a.type = KVFILE_STATE;
    a.pos = 12345;
    kvfile_name(&a, name);
    assert_string_equal(name, "k/0000000000012345-00112233445566778899aabbccddeeff.kvt");
    a.pos = UINT64_MAX;
    kvfile_name(&a, name);
    assert_string_equal(name,
                        "k/18446744073709551615-00112233445566778899aabbccddeeff.kvt");
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),  cmocka_unit_test(test_golden),
        cmocka_unit_test(test_every_bit),   cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_text_mode),   cmocka_unit_test(test_versions),
        cmocka_unit_test(test_forged_head), cmocka_unit_test(test_padding),
        cmocka_unit_test(test_tokens),      cmocka_unit_test(test_model),
        cmocka_unit_test(test_about),       cmocka_unit_test(test_names),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
