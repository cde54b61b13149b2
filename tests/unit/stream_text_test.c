/* SPDX-License-Identifier: Apache-2.0 */
/* Drawn tokens to a reader's text: characters whole, stop strings unseen, nothing lost. */
#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "daemon/stream_text.h"
#include "model/tokenizer.h"
#include "tests/small_tokenizer.h"
#include "tests/test.h"

static struct tokenizer *t;

static int
setup(void **state)
{
    char *json = small_tokenizer_json();
    struct err e;

    (void)state;
    t = tokenizer_parse(json, strlen(json), &e);
    free(json);
    return t != NULL ? 0 : -1;
}

static int
teardown(void **state)
{
    (void)state;
    tokenizer_free(t);
    return 0;
}

/* The id whose bytes are just this one; the byte alphabet is in no order of its own. */
static uint32_t
byte_id(unsigned char byte)
{
    for (uint32_t id = SMALL_BYTES; id < SMALL_MERGED; id++) {
        size_t len;
        const char *p = tokenizer_bytes(t, id, &len);

        if (len == 1 && (unsigned char)*p == byte)
            return id;
    }
    fail();
    return 0;
}

/* One token a byte; what comes out after each of them is parted by '|'. */
static char *
stream(const char *text, const struct sample_params *p, uint64_t stop_at)
{
    struct stream_text x;
    struct buf out;
    struct err e;

    buf_init(&out, 10000);
    stream_text_init(&x, t, p, false);
    for (; *text != '\0'; text++) {
        const uint32_t id = byte_id((unsigned char)*text);
        const bool holds = stream_text_would_hold(&x, id);

        assert_int_equal(stream_text_add(&x, id, &out, &e), 0);
        assert_int_equal(holds, x.held.len > 0 && !x.stopped); /* as it was foretold */
        buf_adds(&out, "|", &e);
    }
    assert_int_equal(stream_text_end(&x, stop_at, &out, &e), 0);
    stream_text_done(&x);
    return buf_take(&out, &e);
}

static void
check(const char *text, const struct sample_params *p, uint64_t stop_at, const char *want)
{
    char *got = stream(text, p, stop_at);

    assert_string_equal(got, want);
    free(got);
}

static void
whole_characters(void **state)
{
    struct sample_params p;

    (void)state;
    sample_params_init(&p);
    check("abc", &p, UINT64_MAX, "a|b|c|");
    check("\xc3\xa4x", &p, UINT64_MAX, "|\xc3\xa4|x|");
    check("\xe2\x82\xac", &p, UINT64_MAX, "||\xe2\x82\xac|");
    check("\xf0\x9f\x8c\x8d!", &p, UINT64_MAX, "|||\xf0\x9f\x8c\x8d|!|");
    /* Not UTF-8: held no longer than it may become UTF-8, and never lost. */
    check("\xff\xfe", &p, UINT64_MAX, "\xff|\xfe|");
    check("\x80\x80", &p, UINT64_MAX, "\x80|\x80|");
    check("\xe2x", &p, UINT64_MAX, "|\xe2x|");
    check("\xe2\x82", &p, UINT64_MAX, "||\xe2\x82");
    check("\xc0\xaf", &p, UINT64_MAX, "\xc0|\xaf|");
}

static void
add_stop(struct sample_params *p, const char *s)
{
    p->stops[p->n_stops].len = (uint8_t)strlen(s);
    memcpy(p->stops[p->n_stops++].s, s, strlen(s));
}

static void
stop_strings(void **state)
{
    struct sample_params p;

    (void)state;
    sample_params_init(&p);
    add_stop(&p, "END");
    check("aENDb", &p, 1, "a|||||");
    check("aENx", &p, UINT64_MAX, "a|||ENx|");
    check("aEN", &p, UINT64_MAX, "a|||EN");
    check("EEND", &p, 1, "|E|||");
    add_stop(&p, "EN\xc3\xa4");
    check("EN\xc3\xa4", &p, 0, "||||");
    check("EN\xc3\xb6", &p, UINT64_MAX, "|||EN\xc3\xb6|");
}

/* A control token is no text, and what was held in front of it comes out. */
static void
control_tokens(void **state)
{
    struct sample_params p;
    struct stream_text x;
    struct buf out;
    struct err e;

    (void)state;
    sample_params_init(&p);
    for (int control = 0; control < 2; control++) {
        char *got;

        buf_init(&out, 100);
        stream_text_init(&x, t, &p, control);
        stream_text_add(&x, byte_id('a'), &out, &e);
        stream_text_add(&x, 1, &out, &e);
        stream_text_add(&x, byte_id('b'), &out, &e);
        stream_text_end(&x, UINT64_MAX, &out, &e);
        stream_text_done(&x);
        got = buf_take(&out, &e);
        assert_string_equal(got, control ? "a<eos>b" : "ab");
        free(got);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whole_characters),
        cmocka_unit_test(stop_strings),
        cmocka_unit_test(control_tokens),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
