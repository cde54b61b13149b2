/* SPDX-License-Identifier: Apache-2.0 */
#include "config.h"

#include <math.h>
#include <string.h>

#include "kvstore/gdsf.h"
#include "tests/test.h"

enum { ITEMS = 12, FIT = 4 };

static const uint64_t SECOND = 1000000000;

static void
test_cost_and_size(void **state)
{
    const struct gdsf g = {0};
    struct gdsf_item dear = {0}, cheap = {0}, large = {0};

    (void)state;
    gdsf_use(&g, &dear, 10, 1000, SECOND);
    gdsf_use(&g, &cheap, 1, 1000, SECOND);
    gdsf_use(&g, &large, 10, 100000, SECOND);
    assert_true(gdsf_before(&cheap, &dear));
    assert_true(gdsf_before(&large, &dear));
    assert_true(gdsf_before(&large, &cheap));
    assert_false(gdsf_before(&dear, &cheap));
    /* Often used weighs as much as dear. */
    for (int i = 0; i < 20; i++)
        gdsf_use(&g, &cheap, 1, 1000, SECOND);
    assert_true(gdsf_before(&dear, &cheap));
    /* It is on a slower tier now: the same use, another cost. */
    gdsf_weigh(&g, &dear, 1000, 1000);
    assert_true(gdsf_before(&cheap, &dear));
}

static void
test_ties_go_by_age(void **state)
{
    const struct gdsf g = {0};
    struct gdsf_item a = {0}, b = {0};

    (void)state;
    gdsf_use(&g, &a, 1, 1, SECOND);
    gdsf_use(&g, &b, 1, 1, 2 * SECOND);
    assert_true(gdsf_before(&a, &b));
    assert_false(gdsf_before(&b, &a));
    assert_false(gdsf_before(&a, &a));
}

static void
test_frequency_decays(void **state)
{
    const struct gdsf g = {0};
    struct gdsf_item i = {0};

    (void)state;
    for (int k = 0; k < 8; k++)
        gdsf_use(&g, &i, 1, 1, SECOND);
    assert_true(fabs(i.frequency - 8) < 1e-9);
    gdsf_use(&g, &i, 1, 1, SECOND + GDSF_HALF_LIFE_S * SECOND);
    assert_true(fabs(i.frequency - 5) < 1e-6);
    /* A clock that goes back neither decays nor grows it but by the one use. */
    gdsf_use(&g, &i, 1, 1, 0);
    assert_true(fabs(i.frequency - 6) < 1e-6);
    assert_int_equal(i.used_ns, SECOND + GDSF_HALF_LIFE_S * SECOND);
}

static void
test_nothing_is_immortal(void **state)
{
    struct gdsf g = {0};
    struct gdsf_item king = {0}, fresh = {0};
    int turns = 0;

    (void)state;
    for (int i = 0; i < 100; i++)
        gdsf_use(&g, &king, 5, 1, SECOND); /* and never again */
    /* Each eviction of what is worth little lifts the level. */
    for (;;) {
        fresh = (struct gdsf_item){0};
        gdsf_use(&g, &fresh, 5, 1, 2 * SECOND);
        if (gdsf_before(&king, &fresh))
            break;
        gdsf_evicted(&g, &fresh);
        assert_true(++turns < 1000);
    }
    assert_true(turns > 10);
    gdsf_use(&g, &fresh, NAN, 1, 3 * SECOND);
    assert_true(fresh.worth == g.level);
    gdsf_use(&g, &fresh, INFINITY, 0, 3 * SECOND);
    assert_true(fresh.worth == g.level);
    gdsf_use(&g, &fresh, 1, 0, 3 * SECOND);
    assert_true(isfinite(fresh.worth));
}

/* Seconds spent to bring things back, over a pattern where a few dear items come again among
 * many cheap ones: less than with least recently used, which is what it stands in for. */
static double
serve(bool by_age)
{
    struct gdsf g = {0};
    struct gdsf_item it[ITEMS] = {0};
    bool in[ITEMS] = {false};
    double spent = 0;
    int n_in = 0;

    for (int t = 1; t < 4000; t++) {
        const int i = t % 5 == 0 ? t / 5 % 2 : 2 + t % (ITEMS - 2);
        const double cost = i < 2 ? 30 : 0.5;
        int out = -1;

        if (!in[i]) {
            spent += cost;
            for (int k = 0; n_in == FIT && k < ITEMS; k++) {
                if (in[k] && (out == -1 || (by_age ? it[k].used_ns < it[out].used_ns
                                                   : gdsf_before(&it[k], &it[out]))))
                    out = k;
            }
            if (out != -1) {
                gdsf_evicted(&g, &it[out]);
                in[out] = false;
                n_in--;
            }
            in[i] = true;
            n_in++;
        }
        gdsf_use(&g, &it[i], cost, 1000, (uint64_t)t * SECOND);
    }
    return spent;
}

static void
test_spends_less_than_lru(void **state)
{
    (void)state;
    assert_true(serve(false) < serve(true) / 2);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cost_and_size),
        cmocka_unit_test(test_ties_go_by_age),
        cmocka_unit_test(test_frequency_decays),
        cmocka_unit_test(test_nothing_is_immortal),
        cmocka_unit_test(test_spends_less_than_lru),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
