/* SPDX-License-Identifier: Apache-2.0 */
/* The page of metrics, byte for byte where it matters, and what counts as a request for it. */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "daemon/metrics.h"
#include "daemon/metrics_http.h"
#include "tests/test.h"

static void
test_histogram(void **state)
{
    struct histogram h = {0};
    uint64_t n = 0;

    (void)state;
    for (size_t i = 0; i < HISTOGRAM_STEPS; i++) {
        if (i > 0)
            assert_true(histogram_ns[i] > histogram_ns[i - 1]);
        histogram_add(&h, histogram_ns[i]); /* a bound belongs to its own step */
        assert_int_equal(h.n[i], 1);
        histogram_add(&h, histogram_ns[i] + 1);
        assert_int_equal(h.n[i + 1], 1);
        n += 2 * histogram_ns[i] + 1;
        h.n[i] = h.n[i + 1] = 0;
    }
    histogram_add(&h, 0);
    assert_int_equal(h.n[0], 1);
    assert_int_equal(h.sum_ns, n);
}

static void
assert_has(const char *page, const char *part)
{
    if (strstr(page, part) == NULL)
        fail_msg("the page has no '%s'", part);
}

static void
test_page(void **state)
{
    struct metrics_values *v = calloc(1, sizeof *v);
    struct buf out;
    struct err e;
    char *page;

    (void)state;
    v->accepted = UINT64_MAX;
    v->step_ns = 1234567890;
    v->engine_load = 7;
    v->start_ms = 1700000000001;
    v->sessions[SESSION_WARM] = 3;
    v->errors[ERR_QUOTA - 1] = 9;
    v->tier_limit[METRICS_DISK] = UINT64_C(1) << 53;
    histogram_add(&v->wait, 99999);
    histogram_add(&v->wait, 2600000);
    histogram_add(&v->wait, UINT64_C(61000000000));
    buf_init(&out, 1 << 20);
    assert_int_equal(metrics_write(v, &out, &e), 0);
    page = buf_take(&out, &e);
    assert_has(page, "# TYPE fathom_connections_accepted_total counter\n"
                     "fathom_connections_accepted_total 18446744073709551615\n");
    assert_has(page, "\nfathom_engine_step_seconds_total 1.234567890\n");
    assert_has(page, "\nfathom_engine_load_ratio 0.007\n");
    assert_has(page, "\nprocess_start_time_seconds 1700000000.001\n");
    assert_has(page, "\nfathom_sessions{state=\"warm\"} 3\n");
    assert_has(page, "\nfathom_request_errors_total{error=\"quota\"} 9\n");
    assert_has(page, "\nfathom_tier_limit_bytes{tier=\"disk\"} 9007199254740992\n");
    assert_has(page, "fathom_wait_seconds_bucket{le=\"0.0001\"} 1\n"
                     "fathom_wait_seconds_bucket{le=\"0.00025\"} 1\n");
    assert_has(page, "fathom_wait_seconds_bucket{le=\"0.005\"} 2\n");
    assert_has(page, "fathom_wait_seconds_bucket{le=\"1\"} 2\n"
                     "fathom_wait_seconds_bucket{le=\"2.5\"} 2\n");
    assert_has(page, "fathom_wait_seconds_bucket{le=\"60\"} 2\n"
                     "fathom_wait_seconds_bucket{le=\"+Inf\"} 3\n"
                     "fathom_wait_seconds_sum 61.002699999\n"
                     "fathom_wait_seconds_count 3\n");
    free(page);

    buf_init(&out, 1000); /* nothing is cut short */
    assert_int_equal(metrics_write(v, &out, &e), -1);
    assert_int_equal(e.code, ERR_QUOTA);
    buf_done(&out);
    free(v);
}

static void
test_ask(void **state)
{
    static const struct {
        const char *head;
        enum metrics_ask ask;
    } cases[] = {
        {"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", METRICS_ASK_GET},
        {"GET /metrics HTTP/1.0\n\n", METRICS_ASK_GET},
        {"GET /metrics?a=b HTTP/1.1\r\n\r\n", METRICS_ASK_GET},
        {"HEAD /metrics HTTP/1.1\r\n\r\n", METRICS_ASK_HEAD},
        {"GET /metric HTTP/1.1\r\n\r\n", METRICS_ASK_NOT_FOUND},
        {"GET /metricss HTTP/1.1\r\n\r\n", METRICS_ASK_NOT_FOUND},
        {"GET  HTTP/1.1\r\n\r\n", METRICS_ASK_NOT_FOUND},
        {"PUT /metrics HTTP/1.1\r\n\r\n", METRICS_ASK_METHOD},
        {"get /metrics HTTP/1.1\r\n\r\n", METRICS_ASK_METHOD},
        {"GET /metrics\r\n\r\n", METRICS_ASK_BAD},
        {"GET /metrics HTTP/2.0\r\n\r\n", METRICS_ASK_BAD},
        {"GET\r\n /metrics HTTP/1.1\r\n\r\n", METRICS_ASK_BAD},
        {" HTTP/1.1\r\n\r\n", METRICS_ASK_BAD},
        {"\r\n\r\n", METRICS_ASK_BAD},
        {"\n\n", METRICS_ASK_BAD},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const size_t len = strlen(cases[i].head);

        if (metrics_http_ask(cases[i].head, len) != cases[i].ask)
            fail_msg("%s", cases[i].head);
        for (size_t n = 0; n < len; n++) { /* any part of it, of just that size */
            char *part = malloc(n + 1);

            memcpy(part, cases[i].head, n);
            assert_int_equal(metrics_http_ask(part, n), METRICS_ASK_MORE);
            free(part);
        }
    }
}

/* Whatever the bytes, there is an answer, from within them: for the sanitizers. */
static void
test_any_bytes(void **state)
{
    static const char pieces[][12] = {"GET ", "HEAD ", "/metrics", " HTTP/1.", "\r\n", "\n",
                                      "\n\n", " ",     "\r",       "?",        "x",    "/"};
    uint32_t seed = 1;

    (void)state;
    for (int i = 0; i < 20000; i++) {
        char *p = malloc(200);
        size_t n = 0;

        for (int k = 0; k < 8; k++) {
            const char *piece = pieces[(seed >> 16) % 12];

            seed = seed * 1664525 + 1013904223;
            memcpy(p + n, piece, strlen(piece));
            n += strlen(piece);
        }
        p = realloc(p, n);
        metrics_http_ask(p, n);
        free(p);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_histogram),
        cmocka_unit_test(test_page),
        cmocka_unit_test(test_ask),
        cmocka_unit_test(test_any_bytes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
