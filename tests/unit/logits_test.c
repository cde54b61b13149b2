/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Passes over a row of logits: against libm and loops, at sizes around a vector and a block, with
 * NaN and infinities; and the bits of this processor's vectors against those of the plainest one.
 */
#include "config.h"

#include "model/logits.h"
#include "tests/test.h"

/* The same once more, for the processor that the build is for. */
#define EACH_PROCESSOR static
#define logits_clean   plain_clean
#define logits_finite  plain_finite
#define logits_max     plain_max
#define logits_sum     plain_sum
#define logits_weights plain_weights
#include "model/logits.c"
#undef logits_clean
#undef logits_finite
#undef logits_max
#undef logits_sum
#undef logits_weights

enum { MOST = 1500 };

static uint64_t rng_state = 7;

static uint32_t
rng(void)
{
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rng_state >> 32);
}

static float
any_logit(void)
{
    switch (rng() % 40) {
    case 0: return NAN;
    case 1: return -INFINITY;
    case 2: return rng() % 200 == 0 ? INFINITY : 0;
    case 3: return rng() % 4 == 0 ? -FLT_MAX : -0.0f;
    default: return (float)(rng() % 60000) / 1000 - 30;
    }
}

static float
counts_as(float x)
{
    return isnan(x) ? -INFINITY : x > FLT_MAX ? FLT_MAX : x;
}

static void
fill(float *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        x[i] = any_logit();
    x[rng() % n] = 1.5f;
}

static void
check_row(const float *x, uint32_t n, double scale)
{
    float out[MOST], best[MOST / LOGITS_BLOCK + 1], max = -INFINITY;
    uint64_t weights, sum = 0, w[LOGITS_BLOCK];
    double want = 0;

    for (uint32_t i = 0; i < n; i++)
        max = counts_as(x[i]) > max ? counts_as(x[i]) : max;
    assert_true(logits_max(x, n) == max);
    assert_true(logits_clean(x, n, out, best) == max);
    for (uint32_t i = 0; i < n; i++) {
        const double y = ((double)out[i] - (double)max) * scale;

        assert_true(out[i] == counts_as(x[i]));
        assert_true(out[i] <= best[i / LOGITS_BLOCK]);
        want += y < -708 ? 0 : exp(y);
    }
    weights = logits_sum(x, n, max, scale);
    assert_true(fabs((double)weights / LOGITS_UNIT - want) <=
                1e-12 * want + n * 0.51 / LOGITS_UNIT);
    for (uint32_t at = 0; at < n; at += LOGITS_BLOCK) {
        const uint32_t m = n - at < LOGITS_BLOCK ? n - at : LOGITS_BLOCK;
        float most = -INFINITY;

        logits_weights(x + at, m, max, scale, w);
        for (uint32_t i = 0; i < m; i++) {
            const double y = ((double)out[at + i] - (double)max) * scale;

            most = out[at + i] > most ? out[at + i] : most;
            assert_true(fabs((double)w[i] - exp(y) * LOGITS_UNIT) <=
                        0.51 + 1e-15 * (double)w[i]);
            sum += w[i];
        }
        assert_true(best[at / LOGITS_BLOCK] == most);
    }
    assert_true(weights == sum);
}

static void
test_equals_libm(void **state)
{
    float x[MOST];

    (void)state;
    for (uint32_t n = 1; n <= MOST; n = n < 200 ? n + 1 : n * 3 / 2) {
        fill(x, n);
        check_row(x, n, 1);
        check_row(x, n, 1 / 0.7);
        check_row(x, n, 1e30);
    }
    for (uint32_t i = 0; i < MOST; i++) /* all of exp's range */
        x[i] = i == 0 ? 0 : -(float)i * 0.4731f;
    check_row(x, MOST, 1);
}

static void
test_no_number(void **state)
{
    float x[70], out[70], best[2];

    (void)state;
    for (uint32_t i = 0; i < 70; i++)
        x[i] = i % 2 ? NAN : -INFINITY;
    assert_true(logits_max(x, 70) == -INFINITY);
    assert_true(logits_clean(x, 70, out, best) == -INFINITY);
    assert_true(best[0] == -INFINITY && best[1] == -INFINITY && out[69] == -INFINITY);
}

static void
test_finite(void **state)
{
    static const float odd[] = {NAN, INFINITY, -INFINITY};
    float x[100];

    (void)state;
    for (uint32_t n = 1; n <= 100; n++) {
        for (uint32_t i = 0; i < n; i++)
            x[i] = i % 2 ? FLT_MAX : -FLT_MAX;
        assert_true(logits_finite(x, n) && plain_finite(x, n));
        for (uint32_t i = 0; i < n; i++) {
            const float was = x[i];

            x[i] = odd[(i + n) % 3];
            assert_false(logits_finite(x, n) || plain_finite(x, n));
            x[i] = was;
        }
    }
}

static void
test_same_bits_on_every_processor(void **state)
{
    float x[MOST];
    float clean[MOST], best[MOST / LOGITS_BLOCK + 1];
    uint64_t a[LOGITS_BLOCK], b[LOGITS_BLOCK];
    uint32_t differ = 0;

    (void)state;
    for (int round = 0; round < 300; round++) {
        const uint32_t n = 1 + rng() % MOST, m = n < LOGITS_BLOCK ? n : LOGITS_BLOCK;
        const double scale = 0.1 + (double)(rng() % 3000) / 1000;
        float max;

        fill(x, n);
        max = plain_max(x, n);
        assert_true(logits_max(x, n) == max && plain_clean(x, n, clean, best) == max);
        assert_true(logits_sum(x, n, max, scale) == plain_sum(x, n, max, scale));
        logits_weights(x, m, max, scale, a);
        plain_weights(x, m, max, scale, b);
        assert_memory_equal(a, b, m * sizeof *a);
        /* what it would notice: an exp that is another one, by one part in 2^30 */
        differ += logits_sum(x, n, max, scale) !=
                  plain_sum(x, n, max, scale * (1 + 0x1p-30));
    }
    assert_true(differ > 100);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_equals_libm),
        cmocka_unit_test(test_no_number),
        cmocka_unit_test(test_finite),
        cmocka_unit_test(test_same_bits_on_every_processor),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
